"""A whole recipe with paid stages: planned in dollars, recorded, and run again for nothing."""

from __future__ import annotations

import pytest
import yaml
from http_server import CACHED_TOKENS, COMPLETION_TOKENS, PROMPT_TOKENS, serving
from paid_stages import PRICES, Truth, calls_of

from fathom.estimates import forecast
from fathom.recipe.plan import make_plan
from fathom.recipe.progress import PlainListener
from fathom.recipe.run import run_recipe
from fathom.recipe.schema import load_recipe
from fathom.records import Problem, Usage, write_jsonl
from fathom.stages import OPS

PAID = PRICES.tokens_usd("m", Usage(PROMPT_TOKENS, COMPLETION_TOKENS, CACHED_TOKENS))
STAGES = ("rated", "taught", "rewritten")


@pytest.fixture
def recipe(tmp_path):
    write_jsonl(tmp_path / "problems.jsonl", [Problem(f"p{i}", f"What is {i} + {i}?", str(2 * i)) for i in range(12)])
    (tmp_path / "prices.yaml").write_text(yaml.safe_dump(PRICES.model_dump()))
    engine = {"kind": "http", "model": "m", "base_url": "http://127.0.0.1:9/v1", "key_env": "PAID_KEY"}
    stages = {
        "problems": {"op": "given", "path": str(tmp_path / "problems.jsonl")},
        "rated": {"op": "annotate", "problems": "problems", "engine": engine},
        "taught": {"op": "rollout", "problems": "rated", "engine": engine, "samples": 2},
        "rewritten": {"op": "rewrite", "problems": "rated", "chains": "taught", "engine": engine},
    }
    path = tmp_path / "paid.yaml"
    whole = {"recipe": "paid", "prices": str(tmp_path / "prices.yaml"), "hardware": {"device": "cpu"}, "stages": stages}
    path.write_text(yaml.safe_dump(whole))
    return path


def each(key, value):
    return [f"{stage}.engine.{key}={value}" for stage in STAGES]


def test_recorded_then_run_again_without_key_network_or_bill(recipe, tmp_path, monkeypatch):
    tape, truth = tmp_path / "answers.jsonl", Truth()
    monkeypatch.setenv("PAID_KEY", "sk-secret")
    with serving(rest=truth.answering()) as server:
        sets = [*each("base_url", server.url), *each("record", tape)]
        run_recipe(load_recipe(recipe, OPS, sets), tmp_path / "first", PlainListener())
    monkeypatch.delenv("PAID_KEY")
    run_recipe(load_recipe(recipe, OPS, each("replay", tape)), tmp_path / "again", PlainListener())
    for name in ("rated/problems.jsonl", "taught/rollouts.jsonl", "rewritten/rollouts.jsonl"):
        first, again = (tmp_path / run / "artifacts" / name for run in ("first", "again"))
        assert first.read_bytes() == again.read_bytes()
    assert sum(row["cost_usd"] for row in calls_of(tmp_path / "first")) == pytest.approx(len(truth.arrived) * PAID)
    assert calls_of(tmp_path / "again") == []


def test_the_plan_knows_what_calls_batches_and_recorded_answers_cost(recipe, tmp_path):
    (tmp_path / "tape.jsonl").write_text("")

    def planned(*sets):
        loaded = load_recipe(recipe, OPS, sets)
        return forecast(loaded, make_plan(loaded, tmp_path / "run"))

    calls, batches = planned(), planned(*each("batch", "true"))
    for name in STAGES:
        low, expected, high = calls[name]["usd"]
        assert 0 < low < expected < high
        assert batches[name]["usd"][1] == pytest.approx(expected / 2, rel=0.01)
        assert batches[name]["note"].startswith("batches to m: ")
        assert planned(*each("replay", tmp_path / "tape.jsonl"))[name]["usd"] == [0, 0, 0]
    assert calls["rewritten"]["tokens"][1] > 24 * 2 * 0.2 * 16384, "the chain is read and written"
