"""Batches that are drawn while the one before is trained on, and groups that are over-sampled: what is recorded, caught and resumed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from grpo_stage import Killed, LyingStale, Stale, grpo, hashes, kill_at, lines, parity, write_inputs

import fathom.engines.hf
import fathom.train.grpo
import fathom.train.loop
from fathom.engines import Request, TransformersConfig
from fathom.engines.hf import TransformersEngine
from fathom.errors import WorkError
from fathom.records import Message, Sampling
from fathom.train.chains import Batch, Chain, OpenChain, OpenGroup, read_batch, write_batch
from fathom.train.config import GrpoConfig
from fathom.train.watchdogs import Facts

LAG = {"lag": 1}
MORE = {"oversample": 0.75, "max_tokens": 20, "engine": {"kind": "transformers", "slots": 18}}
"""28 chains want to run and 18 can, so some groups are whole while others are under way."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("ahead"))


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    """By name: the work directory of a run that nothing stopped."""
    found = {}
    for name, settings in (("lag", LAG), ("more", MORE), ("both", {**LAG, **MORE})):
        found[name] = tmp_path_factory.mktemp(name)
        grpo(inputs, found[name], **settings)
    return found


# ------------------------------------------------------------------------------ one step ahead


def test_a_batch_is_drawn_with_the_weights_of_the_one_before(undisturbed):
    facts = lines(undisturbed["lag"] / "out/batches.jsonl")
    assert [row["staleness"] for row in facts] == [0, 1, 1]
    assert max(row["gap"] for row in facts) < 1e-4  # the same weights on both sides
    assert facts[2]["drift"] > 10 * facts[2]["gap"]  # the trainer has moved on since


def test_what_was_drawn_ahead_is_corrected_for(undisturbed):
    batch = read_batch(undisturbed["lag"] / "scratch/batches/000002.safetensors")
    ratios = [o - s for chain in batch.chains for o, s in zip(chain.old, chain.sampled, strict=True)]
    assert max(map(abs, ratios)) > 1e-3  # both are kept, and the loss weighs a token by their ratio


@pytest.mark.parametrize(
    ("engine", "reason"), [(Stale, "weights that are 2 batches old, allowed are 1"), (LyingStale, "nats per token")]
)
def test_older_weights_than_the_lag_are_caught(inputs, tmp_path, monkeypatch, engine, reason):
    monkeypatch.setattr(fathom.engines.hf, "TransformersEngine", engine)
    with pytest.raises(WorkError, match=f"batch 3: .*{reason}.*stopped before training on it"):
        grpo(inputs, tmp_path, **LAG, learning_rate=2e-2)


def test_a_failure_ahead_is_told(inputs, tmp_path):
    def grade(problem, text, truncated=False):
        if (tmp_path / "scratch/batches/000000.safetensors").exists():
            raise WorkError("the grader broke")
        return parity(problem, text)

    with pytest.raises(WorkError, match="the grader broke"):
        grpo(inputs, tmp_path, grade, **LAG)


# ------------------------------------------------------------------------------ over-sampling


def test_the_slowest_chains_go_on_in_the_next_batch(undisturbed):
    work = undisturbed["more"]
    facts = lines(work / "out/batches.jsonl")
    assert all(row["groups"] == 4 for row in facts)
    assert facts[0]["waiting"] > 0 and facts[0]["oldest"] == 0
    assert any(row["oldest"] > 0 for row in facts[1:])
    assert max(row["gap"] for row in facts) < 1e-4
    batches = [read_batch(path) for path in sorted((work / "scratch/batches").iterdir())]
    several = [chain for batch in batches for chain in batch.chains if len(chain.versions) > 1]
    assert several
    for chain in several:
        assert sum(tokens for _, tokens in chain.versions) == chain.tokens == len(chain.sampled)
        versions = [version for version, _ in chain.versions]
        assert versions == sorted(set(versions))


def test_put_aside_is_what_goes_on(undisturbed):
    """The tokens and log-probabilities that a chain had when it was put aside begin the chain that is trained on."""
    work = undisturbed["more"]
    before, after = (read_batch(work / f"scratch/batches/00000{number}.safetensors") for number in (0, 1))
    found = 0
    for group in before.waiting:
        trained = [chain for chain in after.chains if chain.problem_id == group.problem_id]
        for begun, chain in zip(group.chains, trained, strict=False):
            completion = chain.ids[chain.prompt_tokens :]
            assert completion[: len(begun.ids)] == begun.ids
            assert chain.sampled[: len(begun.ids)] == pytest.approx(begun.sampled)
            found += not begun.finish
    assert found


def test_a_chain_that_was_begun_ends_as_one_that_was_not(inputs):
    engine = TransformersEngine(inputs["model"], TransformersConfig(device="cpu"), logprobs=True)
    messages, sampling = (Message("user", "2+2?"),), Sampling(1.0, 1.0, 24, 5)

    def run(begun):
        session = engine.session()
        session.add(0, Request("p", messages, begun=begun), sampling)
        pieces = []
        while not session.idle:
            pieces += session.step()
        ids = [token for piece in pieces for token in piece.token_ids]
        return ids, "".join(piece.text for piece in pieces), [p for piece in pieces for p in piece.logprobs]

    ids, text, logprobs = run(())
    for at in (1, len(ids) // 2, len(ids) - 1):
        rest = run(tuple(ids[:at]))
        assert rest[0] == ids[at:] and text.endswith(rest[1])
        torch.testing.assert_close(rest[2], logprobs[at:], atol=1e-4, rtol=0)


# ------------------------------------------------------------------------------ resume


@pytest.mark.parametrize(
    ("name", "place", "count"),
    [
        ("lag", "grade", 30),  # a batch is being drawn ahead
        ("lag", "step", 4),  # a checkpoint in the middle of a batch; the next one was drawn with weights that are gone
        ("lag", "write", 3),
        ("more", "grade", 20),
        ("more", "write", 2),
        ("both", "step", 5),
    ],
)
def test_killed_it_ends_in_the_same_bytes(undisturbed, inputs, tmp_path, monkeypatch, name, place, count):
    settings = {"lag": LAG, "more": MORE, "both": {**LAG, **MORE}}[name]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        grade = kill_at(place, count, put=patch.setattr)
        grpo(inputs, tmp_path, grade, **settings)
    grpo(inputs, tmp_path, **settings)
    assert hashes(tmp_path / "out") == hashes(undisturbed[name] / "out")


@pytest.mark.proof
@pytest.mark.parametrize("settings", [{}, LAG], ids=["in turn", "one ahead"])
def test_sigkill_in_generation_update_and_between(inputs, tmp_path, settings):
    """A process of its own, killed again and again: within a generation, between batch and update, within the updates."""
    grpo(inputs, tmp_path / "calm", **settings)
    work = tmp_path / "killed"
    write_inputs(work)
    script = str(Path(__file__).with_name("grpo_stage.py"))
    ended = []
    for place, count in (("grade", 9), ("write", 1), ("step", 2), ("grade", 12), ("step", 3), ("step", 99)):
        command = [sys.executable, script, str(work), place, str(count), json.dumps(settings)]
        ended.append(subprocess.run(command, capture_output=True, timeout=300).returncode)
    assert ended == [-9] * 5 + [0]
    assert hashes(work / "out") == hashes(tmp_path / "calm" / "out")


# ------------------------------------------------------------------------------ on disk


def test_a_batch_reads_back_as_it_was_written(tmp_path):
    facts = Facts(1, 2, 2, 2, 0, 0.5, 0.5, 3.0, 0.0, 1.0, 0.0, 0.1, oldest=1, waiting=1)
    chain = Chain("p", [1, 2, 3], 1, -0.25, [-0.5, -1.5], [-0.5, -1.25], [(0, 1), (1, 1)])
    other = Chain("q", [7, 8], 1, 0.75, [-2.0])
    waiting = [OpenGroup("r", "train/0/0", [OpenChain([4], [-1.0], [(1, 1)], "stop"), OpenChain()])]
    batch = Batch(facts, [[chain], [other]], waiting)
    path = tmp_path / "000000.safetensors"
    write_batch(path, batch)
    assert read_batch(path) == batch
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(WorkError, match=r"000000.safetensors: damaged .*; remove it"):
        read_batch(path)


def test_an_engine_that_sleeps_cannot_work_ahead():
    settings = {"model": "m", "problems": "p", "batches": 1, "lag": 1, "engine": {"kind": "vllm", "sleep": True}}
    with pytest.raises(ValueError, match=r"engine\.sleep must be false"):
        GrpoConfig(**settings)
