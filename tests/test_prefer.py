"""The preference stage: its loss by hand, what it learns and writes, exact resume, and which pairs it refuses."""

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import write_model
from pair_rows import random_rows
from safetensors.torch import load_file

import fathom.train.loop
import fathom.train.prefer
from fathom import commands, estimates, estimates_training, physics
from fathom.errors import InputError
from fathom.ledger import Meter
from fathom.physics import Range
from fathom.prices import load_prices
from fathom.recipe.schema import load_recipe
from fathom.records import Message, Pair, Problem, Rollout, Verdict, write_jsonl
from fathom.report.why import why
from fathom.stages import OPS
from fathom.train.attention import Documents
from fathom.train.config import AdapterConfig, DpoConfig, PreferConfig, SimpoConfig
from fathom.train.loop import backward
from fathom.train.losses import chain_sums, preference_losses
from fathom.train.model import load_model
from fathom.train.parallel import World, shard
from fathom.train.prefer import plan_prefer, run_prefer

ROOT = Path(fathom.__file__).parents[1]
BASE = ROOT / "fathom/data/fathom-tiny-base"
SETTINGS = {"model": "base", "pairs": "pairs", "batch_size": 4, "epochs": 2, "learning_rate": 3e-3, "pack_tokens": 150}
RESUMED = {"loss": {"kind": "dpo"}, "checkpoint_every": 2}
ROWS = random_rows()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("prefer")
    write_jsonl(
        root / "pairs.jsonl",
        [
            Pair(
                f"p{i}#0>1",
                f"p{i}",
                [Message("user", f"{i}+{i}?")],
                Message("assistant", f"\\boxed{{{2 * i}}}", reasoning="so"),
                Message("assistant", f"\\boxed{{{2 * i}}}", reasoning="so wait " * (1 + i % 4)),
            )
            for i in range(10)
        ],
    )
    return {"model": write_model(root / "model"), "pairs": root}


def prefer(inputs, work: Path, **settings):
    (work / "out").mkdir(parents=True, exist_ok=True)
    return run_prefer(inputs, PreferConfig(**{**SETTINGS, **settings}), work / "out", Meter.null(work / "scratch", 3))


def log_of(work: Path) -> list[dict]:
    return [json.loads(line) for line in (work / "out/train_log.jsonl").read_text().splitlines()]


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


# ------------------------------------------------------------------------------ the loss


def test_loss_and_gradient_by_hand():
    chosen, rejected = torch.tensor([1.0, 0.0], requires_grad=True), torch.tensor([0.5, 2.0], requires_grad=True)
    losses = preference_losses(chosen, rejected, 0.5)
    assert losses.tolist() == pytest.approx([math.log(2), math.log(1 + math.exp(2.5))])
    losses.sum().backward()
    slopes = [0.5, 1 / (1 + math.exp(-2.5))]  # sigmoid of minus the margin that is reached
    assert chosen.grad.tolist() == pytest.approx([-s for s in slopes])
    assert rejected.grad.tolist() == pytest.approx(slopes)


def test_sums_of_chains():
    assert chain_sums(torch.tensor([1.0, 2.0, 3.0, 4.0]), (1, 3)).tolist() == [1.0, 9.0]


@pytest.mark.parametrize(
    ("loss", "likelihood"),
    [
        (SimpoConfig(beta=2.0, gamma=0.7), 0.0),
        (SimpoConfig(beta=2.0, gamma=0.7), 0.3),
        (DpoConfig(beta=0.4), 0.0),
        (DpoConfig(beta=4.0, per_token=True), 0.1),
    ],
)
def test_a_step_equals_chains_run_alone(inputs, loss, likelihood):
    """Packed, with documents that don't see each other, against whole logits of each chain and the sum written out."""
    config = PreferConfig(**{**SETTINGS, "batch_size": 6, "pack_tokens": 60}, loss=loss, likelihood=likelihood)
    method = plan_prefer(ROWS, config, 0)
    method.reference = [(-30.0 - i, -41.5 + 2 * i) for i in range(len(ROWS))]
    model = load_model(inputs["model"])
    forward = shard(model, World(), torch.float32)
    step = method.step(0)
    assert len(step.packs) > 1
    total = sum(backward(forward, method, pack, step.normalizer).item() for pack in step.packs)

    peer = load_model(inputs["model"])

    def logp(chain) -> torch.Tensor:
        ids = torch.tensor(chain.ids)
        hidden = peer.base_model(
            input_ids=ids[None],
            position_ids=torch.arange(len(ids))[None],
            documents=Documents.of((len(ids),), torch.device("cpu")),
            use_cache=False,
        ).last_hidden_state[0]
        each = torch.log_softmax(peer.lm_head(hidden), dim=-1)[:-1].gather(1, ids[1:, None])[:, 0]
        return each[chain.prompt_tokens - 1 :].sum()

    expected = torch.zeros(())
    for row, reference in zip(ROWS, method.reference, strict=True):
        logps = [logp(row.chosen), logp(row.rejected)]
        counts = [row.chosen.trained_tokens, row.rejected.trained_tokens]
        if isinstance(loss, SimpoConfig):
            first, second = (loss.beta * p / n for p, n in zip(logps, counts, strict=True))
            difference = first - second - loss.gamma
        else:
            gained = [p - r for p, r in zip(logps, reference, strict=True)]
            first, second = (g / n if loss.per_token else g for g, n in zip(gained, counts, strict=True))
            difference = loss.beta * (first - second)
        expected = expected + (torch.log1p(torch.exp(-difference)) - likelihood * logps[0] / counts[0]) / len(ROWS)
    expected.backward()
    assert total == pytest.approx(expected.item(), rel=1e-5)
    mine = dict(model.named_parameters())
    for name, p in peer.named_parameters():
        torch.testing.assert_close(mine[name].grad, p.grad, rtol=1e-3, atol=1e-6, msg=name)


# ------------------------------------------------------------------------------ the stage


@pytest.mark.parametrize("loss", [{"kind": "simpo"}, {"kind": "dpo", "beta": 0.5}])
def test_it_learns_to_prefer(inputs, tmp_path, loss):
    metrics = prefer(inputs, tmp_path, epochs=6, loss=loss)
    log = log_of(tmp_path)
    assert list(log[0])[6:] == ["margin", "accuracy", "chosen_logp", "rejected_logp"]
    assert metrics["steps"] == len(log) == 18 and metrics["funnel"] == [["pairs", 10], ["within max_length", 10]]
    assert metrics["accuracy_last"] > 0.9 and metrics["margin_last"] > metrics["margin_first"] + 0.3
    assert metrics["loss_last"] < metrics["loss_first"]
    if loss["kind"] == "dpo":  # it begins at its own reference
        assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-6) and log[0]["margin"] == pytest.approx(0, abs=1e-5)
    load_model(tmp_path / "out")


def test_neither_pack_size_nor_the_fused_step_changes_a_step(inputs, tmp_path):
    ways = {"wide": {"pack_tokens": 2000}, "narrow": {"pack_tokens": 60}, "fused": {"step": "fused"}}
    for name, way in ways.items():
        prefer(inputs, tmp_path / name, loss={"kind": "dpo"}, **way)
    for other in ("narrow", "fused"):
        for ours, theirs in zip(log_of(tmp_path / "wide"), log_of(tmp_path / other), strict=True):
            assert ours.keys() == theirs.keys()
            for key, value in ours.items():
                assert theirs[key] == pytest.approx(value, rel=2e-3, abs=1e-4), (other, key)


def test_adapters(inputs, tmp_path):
    pytest.importorskip("peft", reason="peft is not installed")
    small = AdapterConfig(rank=4, alpha=8, targets=("q_proj", "down_proj"))
    metrics = prefer(inputs, tmp_path, adapter=small, epochs=4, learning_rate=2e-2, loss={"kind": "dpo", "beta": 0.5})
    assert metrics["margin_last"] > metrics["margin_first"] + 0.3
    before, after = (load_file(place / "model.safetensors") for place in (inputs["model"], tmp_path / "out"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("q_proj.weight" in name or "down_proj.weight" in name for name in moved)


class Killed(BaseException):
    """As a kill would, nothing catches it."""


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    work = tmp_path_factory.mktemp("undisturbed")
    prefer(inputs, work, **RESUMED)
    return hashes(work / "out")


@pytest.mark.parametrize(("place", "count"), [("reference", 1), ("step", 1), ("step", 4), ("step", 6)])
def test_killed_anywhere_it_ends_in_the_same_bytes(undisturbed, inputs, tmp_path, monkeypatch, place, count):
    owner, name = (
        (fathom.train.prefer, "write_whole") if place == "reference" else (fathom.train.loop, "optimizer_step")
    )
    real, calls = getattr(owner, name), []

    def bomb(*args, **kwargs):
        calls.append(args)
        if len(calls) == count:
            raise Killed
        return real(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, name, bomb)
        prefer(inputs, tmp_path, **RESUMED)
    assert (tmp_path / "scratch/reference.json").exists() == (place == "step")
    with monkeypatch.context() as patch:
        if place == "step":  # what was measured is not measured again
            patch.setattr(fathom.train.prefer, "_logps", lambda *_: pytest.fail("measured again"))
        prefer(inputs, tmp_path, **RESUMED)
    assert hashes(tmp_path / "out") == undisturbed


@pytest.mark.proof
def test_two_processes_prefer_as_one(inputs, tmp_path):
    """DPO in one process and in two, which measure the reference together; pairs divide neither among packs nor processes."""
    for count in (1, 2):
        body = {**SETTINGS, "pack_tokens": 300, "loss": {"kind": "dpo"}, "model": "base", "pairs": "given"}
        document = {
            "recipe": "two",
            "models": {"base": str(inputs["model"])},
            "hardware": {"device": "cpu", "count": count},
            "stages": {"given": {"op": "given", "path": str(inputs["pairs"])}, "tuned": {"op": "prefer", **body}},
        }
        (tmp_path / "two.yaml").write_text(json.dumps(document))
        out = tmp_path / str(count)
        command = [sys.executable, "-m", "fathom", "run", str(tmp_path / "two.yaml"), "--out", str(out)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    alone, pair = (
        [json.loads(line) for line in (tmp_path / n / "artifacts/tuned/train_log.jsonl").read_text().splitlines()]
        for n in ("1", "2")
    )
    for ours, theirs in zip(alone, pair, strict=True):
        for key, value in ours.items():
            assert theirs[key] == pytest.approx(value, rel=2e-3, abs=1e-4), key


# ------------------------------------------------------------------------------ wrong input


def repeated(rows):
    rows[3]["id"] = rows[1]["id"]


def alike(rows):
    rows[2]["rejected"] = rows[2]["chosen"]


def empty(rows):
    rows[4]["rejected"] = {"role": "assistant", "content": " "}


def not_an_answer(rows):
    rows[5]["chosen"]["role"] = "user"


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda rows: rows.clear(), {}, r"pairs\.jsonl: no pairs to train on"),
        (repeated, {}, r"pairs\.jsonl: pair id 'p1#0>1' occurs 2 times"),
        (empty, {}, r"pairs\.jsonl: example 'p4#0>1 rejected': the assistant's turn is empty"),
        (not_an_answer, {}, r"pairs\.jsonl: example 'p5#0>1 chosen': the last message must be the assistant's"),
        (lambda rows: rows[0].pop("chosen"), {}, r"pairs\.jsonl:1: a Pair needs the key 'chosen'"),
        (
            lambda rows: None,
            {"max_length": 5},
            r"pairs\.jsonl: none of 10 pairs can be learned from within max_length 5",
        ),
    ],
)
def test_pairs_that_are_refused(inputs, tmp_path, change, settings, message):
    rows = [json.loads(line) for line in (inputs["pairs"] / "pairs.jsonl").read_text().splitlines()]
    change(rows)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=message) as caught:
        prefer({**inputs, "pairs": tmp_path}, tmp_path, **settings)
    assert "\n" not in str(caught.value)


def test_a_pair_of_one_text_is_set_aside(inputs, tmp_path):
    rows = [json.loads(line) for line in (inputs["pairs"] / "pairs.jsonl").read_text().splitlines()]
    alike(rows)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prefer({**inputs, "pairs": tmp_path}, tmp_path, epochs=1)
    (removed,) = [json.loads(line) for line in (tmp_path / "out/removed.jsonl").read_text().splitlines()]
    assert (removed["id"], removed["reason"]) == ("p2#0>1", "chosen and rejected are the same")


def test_pairs_that_are_too_long_are_set_aside(inputs, tmp_path):
    metrics = prefer(inputs, tmp_path, max_length=60, epochs=1)
    assert metrics["funnel"][0] == ["pairs", 10] and 0 < metrics["funnel"][1][1] < 10
    removed = [json.loads(line) for line in (tmp_path / "out/removed.jsonl").read_text().splitlines()]
    assert len(removed) == 10 - metrics["funnel"][1][1]
    assert all(row["tokens"] > 60 and row["reason"] == "a chain longer than max_length 60" for row in removed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": {"kind": "dpo", "gamma": 1}}, "loss.dpo.gamma"),
        ({"adapter": AdapterConfig(), "float8": True}, "adapter goes with step plain"),
        ({"optimizer": {"master": "split"}}, "is for precision bfloat16"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        PreferConfig(**{**SETTINGS, **settings})


# ------------------------------------------------------------------------------ beside training


@pytest.mark.parametrize("device", ["cpu", "h200"])
def test_the_plan_knows_what_the_stages_will_take(device):
    setting = estimates.Setting(device, 1, load_prices(None), {"base": physics.shape_of(BASE)})
    drawn = estimates.Estimate(physics.NONE, Range.exactly(1000), chains=8, row_tokens=Range.exactly(300))
    config = load_recipe(ROOT / "recipes/sky-t1-flash-32b.yaml", OPS).stage("pairs").config
    pairs = estimates_training.pairs(config, {"clean": drawn, "drawn": drawn}, setting)
    assert 300 < pairs.rows.low < pairs.rows.mid < pairs.rows.high <= 2000
    given = {"pairs": estimates.Estimate(physics.NONE, Range.exactly(100), row_tokens=Range.exactly(300))}
    simpo, dpo = (
        estimates_training.prefer(PreferConfig(**SETTINGS, loss={"kind": kind}), given, setting)
        for kind in ("simpo", "dpo")
    )
    assert simpo.tokens.mid == dpo.tokens.mid == 100 * 2 * 300 * 2
    assert dpo.seconds.mid > simpo.seconds.mid


def test_by_hand_pairs_have_a_card_and_a_way(tmp_path):
    """The command; and what the run tells of its pairs: sources, licences, and each row's way."""
    problems = [Problem(f"p{i}", f"{i}+{i}?", str(2 * i), source="sums", licence="MIT") for i in range(4)]
    texts = {5: "short \\boxed{0}", 9: "so so so so long \\boxed{0}"}
    chains = [
        Rollout(p.id, i, text, tokens, "stop", "base", verdict=Verdict("0", True, "math/1"))
        for p in problems
        for i, (tokens, text) in enumerate(texts.items())
    ]
    write_jsonl(tmp_path / "problems.jsonl", problems)
    write_jsonl(tmp_path / "rollouts.jsonl", chains)
    run = tmp_path / "paired"
    commands.by_hand("pairs", None, run, [], {"problems": str(tmp_path), "chains": str(tmp_path)})
    card = (run / "data_card.md").read_text()
    assert "4 rows" in card and "MIT" in card and "unknown" not in card.split("## Sources")[1].split("##")[0]
    (way,) = [step for step in why("p2#0>1", run)["steps"] if step["op"] == "pairs"]
    assert (way["did"], way["number"], way["rows"]) == ("chosen", 3, 4) and way["lineage"]["rejected"]["tokens"] == 9
    by_hand = commands.one_stage("prefer", "prefer", {"model": str(BASE), "pairs": str(run / "artifacts/pairs")}, [])
    assert by_hand.file.final == "prefer" and by_hand.upstream("prefer")


def test_the_tiny_recipe_is_the_large_one_stage_for_stage():
    large, tiny = (load_recipe(ROOT / f"recipes/sky-t1-flash-{size}.yaml", OPS) for size in ("32b", "tiny"))
    assert [(s.name, s.op.target) for s in large.stages] == [(s.name, s.op.target) for s in tiny.stages]
    published = large.stage("flash").config
    assert (published.batch_size, published.learning_rate, published.epochs) == (96, 5e-7, 1)
    assert tiny.stage("flash").config.loss == published.loss == SimpoConfig(beta=2.0, gamma=0.3)


def test_the_document_quotes_the_record():
    """Fewer tokens, and pass@1 not lower by its interval, in every recorded run."""
    runs = json.loads((ROOT / "benchmarks/results/sky-t1-flash-tiny.json").read_text())["runs"]
    page = (ROOT / "docs/preference.md").read_text()
    for run in runs:
        base, flash = run["rows"]
        beside = flash["vs_base"]
        assert beside["tokens_ratio"] < 0.9 and beside["ci"][0] > 0
        difference = f"{100 * beside['pass1_diff']:+.1f} ({100 * beside['ci'][0]:+.1f} to {100 * beside['ci'][1]:+.1f})"
        scores = [f"{100 * row[key]:.1f}%" for key in ("pass1", "cons") for row in (base, flash)]
        tokens = [f"{base['tokens_mean']:.0f}", f"{flash['tokens_mean']:.0f}", f"{beside['tokens_ratio']:.2f}"]
        assert f"| {' | '.join([str(run['seed']), *scores, *tokens, difference])} |" in page
