"""The GRPO stage: the loss by hand, agreement of engine and trainer, watchdogs that stop it, and exact resume."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from grpo_stage import (
    SETTINGS,
    Killed,
    LyingStale,
    Stale,
    grpo,
    hashes,
    kill_at,
    lines,
    open_method,
    parity,
    write_inputs,
)

import fathom.engines.hf
import fathom.train.grpo
import fathom.train.loop
from fathom import commands, estimates, estimates_training, physics
from fathom.errors import BudgetStop, InputError, WorkError
from fathom.ledger import Meter
from fathom.recipe.schema import load_recipe
from fathom.records import Problem, Verdict, write_jsonl
from fathom.stages import OPS
from fathom.train.chains import read_batch, read_facts
from fathom.train.checkpoint import Checkpoints
from fathom.train.config import GrpoConfig
from fathom.train.loop import backward
from fathom.train.losses import clipped_policy_loss, truncated_importance
from fathom.train.model import load_model
from fathom.train.trunk import FusedStep

BASE = Path(fathom.__file__).parent / "data" / "fathom-tiny-base"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("grpo"))


# ------------------------------------------------------------------------------ the loss


def test_loss_and_gradient_by_hand():
    """Ratios 1, 1.5 (clipped above 1.28 only where the advantage is positive) and 0.5 (below 0.8, where it is negative)."""
    old = torch.tensor([-1.0] * 5)
    ratios = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5])
    advantages = torch.tensor([0.5, 0.5, -0.5, 0.5, -0.5])
    corrections = torch.tensor([1.0, 1.0, 2.0, 1.0, 1.0])
    logprobs = (old + ratios.log()).requires_grad_()
    loss = clipped_policy_loss(logprobs, old, advantages, corrections, 0.2, 0.28)
    loss.backward()
    assert loss.item() == pytest.approx(-(0.5 + 0.64 - 2 * 0.75 + 0.25 - 0.4))
    # d/d logp of ratio * A is ratio * A itself; nothing where the clipped branch is the smaller
    assert logprobs.grad.tolist() == pytest.approx([-0.5, 0.0, 1.5, -0.25, 0.0])


def test_the_correction_is_truncated():
    old, sampled = torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([-1.0, -3.0, -0.5])
    assert truncated_importance(old, sampled, 2.0).tolist() == pytest.approx([1.0, 2.0, math.exp(-0.5)])


@pytest.mark.parametrize("kind", ["plain", "fused"])
def test_gradients_of_a_step_equal_plain_policy_gradients(kind, inputs, tmp_path):
    """Before the first update every ratio is 1: the gradient is the mean of -advantage * correction * grad log p over tokens."""
    method = open_method(inputs, tmp_path, updates=1, step=kind)
    assert isinstance(method.forward, FusedStep) == (kind == "fused")
    step = method.step(0)
    assert len(step.packs) > 1
    total = sum(backward(method.forward, method, pack, step.normalizer).item() for pack in step.packs)
    ours = {name: p.grad.clone() for name, p in method.model.named_parameters()}

    peer = load_model(inputs["model"])  # each chain alone, whole logits, the sum written out
    chains = [chain for group in method.batch(0).groups for chain in group]
    tokens = sum(len(chain.ids) - chain.prompt_tokens for chain in chains)
    assert step.normalizer == tokens
    expected = torch.zeros(())
    for chain in chains:
        ids = torch.tensor(chain.ids)
        hidden_documents = fathom.train.model.Documents.of((len(ids),), torch.device("cpu"))
        hidden = peer.base_model(
            input_ids=ids[None], position_ids=torch.arange(len(ids))[None], documents=hidden_documents, use_cache=False
        ).last_hidden_state[0]
        logprobs = torch.log_softmax(peer.lm_head(hidden), dim=-1)[:-1].gather(1, ids[1:, None])[:, 0]
        logprobs = logprobs[chain.prompt_tokens - 1 :]
        correction = (logprobs.detach() - torch.tensor(chain.sampled)).exp()
        expected = expected - (chain.advantage * correction * logprobs).sum() / tokens
    expected.backward()
    advantage = sum(chain.advantage * chain.tokens for chain in chains) / tokens
    assert total == pytest.approx(-advantage, abs=1e-5)
    for name, p in peer.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_before_the_first_update_of_several_every_ratio_is_1(inputs, tmp_path):
    """What is measured before an update and what the update computes are rounded alike."""
    method = open_method(inputs, tmp_path, updates=2, step="fused")
    ratios = []

    def note(logprobs_N, some):
        ratios.append((logprobs_N.detach() - some.old_N).exp())
        return method.loss(logprobs_N, some)

    for pack in method.step(0).packs:
        method.forward.accumulate_loss(pack, note)
    assert len(ratios) > 1
    torch.testing.assert_close(torch.cat(ratios), torch.ones(sum(map(len, ratios))), rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------ a batch


def test_engine_and_trainer_agree_also_after_updates(inputs, tmp_path):
    metrics = grpo(inputs, tmp_path)
    facts = lines(tmp_path / "out/batches.jsonl")
    assert [row["batch"] for row in facts] == [1, 2, 3]
    assert metrics["gap_largest"] == max(row["gap"] for row in facts) < 1e-4
    batches = [read_batch(path) for path in sorted((tmp_path / "scratch/batches").iterdir())]
    gaps = [
        abs(sampled - old)
        for batch in batches
        for chain in batch.chains
        for sampled, old in zip(chain.sampled, chain.old, strict=True)
    ]
    assert len(batches) == 3 and max(gaps) < 1e-4
    first, last = (batch.chains[0].old[0] for batch in (batches[0], batches[-1]))
    assert first != last
    assert ["held_out" in row for row in facts] == [True, False, True]


def test_groups_without_signal_are_dropped_and_refilled(inputs, tmp_path):
    hopeless = {"0", "4", "8", "12", "16"}

    def grade(problem, text, truncated=False):
        verdict = parity(problem, text, truncated)
        return replace(verdict, correct=False) if problem.gold in hopeless else verdict

    method = open_method(inputs, tmp_path, grade=grade, reward={"weight": 0}, refills=4)
    batch = method.batch(0)
    assert batch.facts.drawn > batch.facts.groups == len(batch.groups) == 4
    golds = {problem.id: problem.gold for problem in method.drawing.problems}
    assert hopeless.isdisjoint(golds[chain.problem_id] for group in batch.groups for chain in group)
    for group in batch.groups:
        assert sum(chain.advantage for chain in group) == pytest.approx(0, abs=1e-9)
        assert len({chain.advantage for chain in group}) > 1
    assert batch.facts.next_place == batch.facts.drawn
    with pytest.raises(WorkError, match=r"batch 1: 0 of \d+ problems gave a group with signal"):
        open_method(inputs, tmp_path / "never", grade=lambda *_: Verdict(None, False, "no/1"), refills=4).batch(0)


def test_a_round_that_an_epochs_end_cuts_short_uses_no_refill(inputs, tmp_path):
    drawing = open_method(inputs, tmp_path, refills=0, reward={"weight": 0.5}).drawing
    collected = drawing.collect(0, len(drawing.problems) - 1)
    assert len(collected.groups) >= drawing.config.groups
    assert collected.next_place == len(drawing.problems) - 1 + len(collected.groups)


def test_a_prompt_without_room_for_its_completion_is_refused_before_the_first_batch(inputs, tmp_path):
    with pytest.raises(
        InputError, match=r"'p\d+' has a prompt of .* max_tokens 4096 exceeds the model's 4096 positions"
    ):
        open_method(inputs, tmp_path, max_tokens=4096)


def test_overlong_chains_can_be_left_out_of_their_group(inputs, tmp_path):
    kept = open_method(inputs, tmp_path / "kept", samples=8, max_tokens=60, updates=1).batch(0)
    assert 0 < kept.facts.truncated < 1
    left = open_method(inputs, tmp_path / "left", samples=8, max_tokens=60, updates=1, overlong_filter=True).batch(0)
    assert any(len(chain.sampled) == 60 for group in kept.groups for chain in group)
    assert all(len(chain.sampled) < 60 for group in left.groups for chain in group)
    assert left.facts.truncated > 0  # they are seen all the same
    for group in left.groups:
        assert sum(chain.advantage for chain in group) == pytest.approx(0, abs=1e-9)


def test_it_learns_what_is_rewarded(inputs, tmp_path):
    """Any chain that ends in time is correct, and shorter ones are worth more."""

    def ends(problem, text, truncated=False):
        return Verdict(text, not truncated, "ends/1")

    loose = {"held_out": 0, "fooled": 1.0, "entropy_fall": 0.0}
    metrics = grpo(
        inputs,
        tmp_path,
        ends,
        batches=8,
        samples=16,
        updates=1,
        max_tokens=40,
        learning_rate=1e-2,
        checkpoint_every=20,
        watchdogs=loose,
    )
    assert metrics["truncated_last"] < metrics["truncated_first"] - 0.3
    assert metrics["tokens_last"] < 0.7 * metrics["tokens_first"]
    assert metrics["reward_last"] > metrics["reward_first"]


# ------------------------------------------------------------------------------ watchdogs, at work


def test_a_grader_that_always_says_yes_is_caught(inputs, tmp_path):
    with pytest.raises(WorkError, match="batch 1: the grader calls 100% of other problems' answers correct"):
        grpo(inputs, tmp_path, lambda *_: Verdict("yes", True, "yes/1"), max_tokens=60, watchdogs={"held_out": 0})


@pytest.mark.parametrize(
    ("engine", "reason"), [(Stale, "weights that are 1 batches old"), (LyingStale, "differ by .* nats per token")]
)
def test_stale_weights_are_caught(inputs, tmp_path, monkeypatch, engine, reason):
    monkeypatch.setattr(fathom.engines.hf, "TransformersEngine", engine)
    with pytest.raises(WorkError, match=f"batch 2: .*{reason}.*stopped before training on it"):
        grpo(inputs, tmp_path, learning_rate=2e-2)


def test_a_reward_that_rises_while_held_out_pass1_falls_is_caught(inputs, tmp_path, monkeypatch):
    """The grader is right on training problems at first, and learns to be content; held-out problems get worse."""
    asked = []

    def drifting(problem, text, truncated=False):
        asked.append(problem.id)
        held_out = problem.id in apart
        generous = len(asked) > 40
        correct = not generous if held_out else parity(problem, text).correct or (generous and len(text) % 3 > 0)
        return Verdict(text, correct, "drifting/1")

    method = open_method(inputs, tmp_path / "look")
    apart = {problem.id for problem in method.drawing.held_out}
    loose = {"held_out": 4, "held_out_samples": 4, "held_out_every": 1, "fooled": 1.0}
    with pytest.raises(WorkError, match=r"the reward rose from .* while held-out pass@1 fell from 1\.000"):
        grpo(inputs, tmp_path, drifting, batches=6, watchdogs=loose)


# ------------------------------------------------------------------------------ resume


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    work = tmp_path_factory.mktemp("undisturbed")
    grpo(inputs, work)
    return hashes(work / "out")


@pytest.mark.parametrize(
    ("place", "count"),
    [
        ("grade", 5),  # within the first chunk of the first batch
        ("grade", 45),
        ("write", 2),  # the second batch is drawn but not written
        ("step", 2),  # within the first batch's updates, no checkpoint yet
        ("step", 4),  # after a checkpoint in the middle of the second batch
        ("step", 5),  # a batch was drawn since the checkpoint
        ("step", 6),
    ],
)
def test_killed_within_a_step_it_ends_in_the_same_bytes(undisturbed, inputs, tmp_path, monkeypatch, place, count):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        grade = kill_at(place, count, put=patch.setattr)
        grpo(inputs, tmp_path, grade)
    grpo(inputs, tmp_path)
    assert hashes(tmp_path / "out") == undisturbed


def test_how_it_is_drawn_may_change_between_kill_and_resume(undisturbed, inputs, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at("step", 5, put=patch.setattr)
        grpo(inputs, tmp_path)
    grpo(inputs, tmp_path, engine={"kind": "transformers", "slots": 7}, chunk=3)
    assert hashes(tmp_path / "out") == undisturbed


def test_what_was_not_trained_on_is_named(inputs, tmp_path):
    grpo(inputs, tmp_path, batches=1, refills=0)
    reasons = {row["id"]: row["reason"] for row in lines(tmp_path / "out/removed.jsonl")}
    drawn = {chain.problem_id for chain in read_batch(tmp_path / "scratch/batches/000000.safetensors").chains}
    assert sorted(reasons.values()) == ["held out, to measure pass@1"] * 4 + ["the last batch came before it"] * 6
    assert drawn.isdisjoint(reasons)


class SpentInTheSecondBatch(Meter):
    """Its budget is spent once the loop has begun the first step of the second batch."""

    left = SETTINGS["updates"]

    def check(self) -> None:
        if (self.scratch / "batches/000000.safetensors").exists():
            self.left -= 1
            if self.left < 0:
                raise BudgetStop("the budget is spent")


def test_a_budget_that_ends_while_a_batch_is_drawn_keeps_the_updates_before_it(undisturbed, inputs, tmp_path):
    with pytest.raises(BudgetStop):
        grpo(inputs, tmp_path, meter=SpentInTheSecondBatch, checkpoint_every=20)
    assert Checkpoints(tmp_path / "scratch/ckpt").steps() == [SETTINGS["updates"]]
    grpo(inputs, tmp_path)
    assert hashes(tmp_path / "out") == undisturbed


def test_what_was_drawn_is_not_drawn_again(undisturbed, inputs, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at("step", 2, put=patch.setattr)
        grpo(inputs, tmp_path)
    asked = []

    def grade(problem, text, truncated=False):
        asked.append(problem.id)
        return parity(problem, text, truncated)

    grpo(inputs, tmp_path / "whole", grade)
    whole, asked[:] = len(asked), []
    grpo(inputs, tmp_path, grade)
    first = read_facts(tmp_path / "scratch/batches/000000.safetensors")
    once = first.drawn * 4 + 4 * 2 + first.drawn  # its chains, the held-out ones, the swapped answers
    assert len(asked) == whole - once
    assert hashes(tmp_path / "out") == undisturbed


# ------------------------------------------------------------------------------ beside training


@pytest.mark.parametrize("device", ["cpu", "h200"])
def test_the_plan_knows_what_a_stage_will_take(device):
    config = GrpoConfig(**SETTINGS)
    shape = physics.shape_of(BASE)
    setting = estimates.Setting(device, 1, None, {"base": shape})
    once = estimates_training.grpo(config, {}, setting)
    twice = estimates_training.grpo(config.model_copy(update={"batches": 6}), {}, setting)
    assert 0 < once.seconds.low < once.seconds.mid < once.seconds.high
    assert twice.seconds.mid > once.seconds.mid and twice.tokens.mid > 1.5 * once.tokens.mid
    assert once.shape == shape


def test_the_rs_recipe_puts_grpo_before_the_sft_of_v04():
    recipes = Path(fathom.__file__).parents[1] / "recipes"
    tiny, rs = (load_recipe(recipes / name, OPS) for name in ("fathom-r1-tiny.yaml", "fathom-r1-rs-tiny.yaml"))
    ops = {stage.name: stage.op.target.rpartition(":")[2] for stage in rs.stages}
    added = {"seldom": "run_select", "rs": "run_grpo", "eval_rs": "run_evaluate"}
    assert ops.items() >= added.items()
    assert {stage.name for stage in tiny.stages} - ops.keys() == {"solved", "control", "eval_control", "eval_v04"}
    assert rs.stage("v04").config.model == "rs" and rs.stage("rs").config.problems == "seldom"
    assert rs.stage("v04").config.model_copy(update={"model": "base"}) == tiny.stage("v04").config
    assert rs.upstream("merged") >= {"rs", "v04", "v06"}


def test_by_hand_it_writes_a_model_that_loads(inputs, tmp_path):
    settings = {name: value for name, value in SETTINGS.items() if name not in ("model", "problems")}
    problems = [Problem(f"p{i}", f"What is {i} + {i + 3}?", str(2 * i + 3)) for i in range(12)]
    write_jsonl(tmp_path / "problems.jsonl", problems)
    loose = {**SETTINGS["watchdogs"], "entropy_rise": 100.0}
    easy = {**settings, "batches": 1, "updates": 1, "samples": 6, "max_tokens": 200, "watchdogs": loose}
    body = {"model": str(BASE), "problems": str(tmp_path / "problems.jsonl"), **easy}
    commands.by_hand("grpo", None, tmp_path / "run", [], body)
    load_model(tmp_path / "run/model")
    assert (tmp_path / "run/artifacts/grpo/batches.jsonl").is_file()


# ------------------------------------------------------------------------------ wrong input


def test_too_few_problems_are_refused(inputs, tmp_path):
    with pytest.raises(InputError, match=r"problems.jsonl: 14 problems, and a batch needs 12 beside 4 held out"):
        grpo(inputs, tmp_path, groups=12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"updates": 5}, "updates: 5 steps cannot share 4 groups"),
        ({"engine": {"kind": "transformers", "replicas": 2}}, "engine.replicas"),
        ({"optimizer": {"master": "split"}}, "is for precision bfloat16"),
        ({"reward": {"weight": 1.0}}, "less than 1"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        GrpoConfig(**{**SETTINGS, **settings})
