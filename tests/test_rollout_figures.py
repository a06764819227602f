"""The figures of docs/engines.md and docs/grpo.md that come from GPUs are those of the recorded runs, and what they hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_recorded_figures import recorded

ROOT = Path(__file__).parents[1]
GRPO, ENGINES = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("grpo.md", "engines.md"))
PARTS = ("step", "rollout", "measure", "update", "sync", "grading_exposed")


def cells(text: str, first: str, count: int) -> list[str]:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    return next(row[1:] for row in rows if row[0] == first and len(row) == count)


@pytest.mark.parametrize(("label", "side"), [("TRL", "trl"), ("Fathom", "fathom")])
def test_a_step_of_grpo_beside_trls(label, side):
    seconds = recorded("grpo_gpu")[side]["seconds"]
    assert cells(GRPO, label, 7) == [f"{seconds[part]:.2f}" for part in PARTS]


def test_grpo_is_faster_than_trl_and_agrees_with_its_engine():
    run = recorded("grpo_gpu")
    assert f"{run['ratio']:.3f} times as fast" in GRPO
    assert run["ratio"] == pytest.approx(run["trl"]["seconds"]["step"] / run["fathom"]["seconds"]["step"], abs=2e-3)
    assert run["ratio"] > 1.5
    assert max(run["fathom"]["gap"]) < 1e-2
    assert run["fathom"]["tokens"] == run["trl"]["tokens"]


@pytest.mark.parametrize("size", recorded("rollout_gpu")["engine"]["sizes"], ids=lambda size: str(size["chains"]))
def test_generation_beside_vllm_alone(size):
    alone, through = (f"{run['tokens_per_second']:,.0f}" for run in size["runs"])
    label = f"{size['chains']} x {size['new_tokens']:,}"
    assert cells(ENGINES, label, 4) == [alone, through, f"{size['fathom_over_vllm']:.3f}"]
    assert size["fathom_over_vllm"] >= 0.98


@pytest.mark.parametrize(
    ("label", "file", "part"),
    [
        ("16 bits", "rollout_int8", "engine"),
        ("`int8_per_token_head`", "rollout_int8", "int8"),
        ("`fp8`", "rollout_kv", "fp8"),
    ],
)
def test_eight_bits_beside_sixteen(label, file, part):
    run = recorded(file)
    found = run[part]["kv"]
    rate, beside, share, gap = cells(ENGINES, label, 5)
    assert (rate, share) == (f"{found['tokens_per_second']:,.0f}", f"{found['bandwidth_share']:.3f}")
    if part != "engine":
        assert beside == f"{run[f'{part}_over_16_bits']:.3f}"
        assert f"{run[part]['against_transformers']['mean']:.3f} nats (random" in gap


def test_int8_is_the_finer_and_the_faster_form():
    run = recorded("rollout_int8")
    assert run["int8"]["against_transformers"]["mean"] < 1e-2
    assert run["int8_over_16_bits"] >= 1.25
    assert f"generated {run['int8_over_16_bits']:.3f}x" in (ROOT / "README.md").read_text(encoding="utf-8")
    for side in ("engine", "int8"):
        assert run[side]["kv"]["timed_tokens"] == run[side]["kv"]["new_tokens"] == 8192
    window = recorded("rollout_int8_window")["int8_over_16_bits"]
    assert window > recorded("rollout_kv")["fp8_over_16_bits"] and f"it is {window:.3f} (without" in ENGINES


def test_what_the_smoke_test_saw():
    seen = recorded("rollout_checks")["smoke"]
    assert f"{seen['agreement']['mean']:.4f} nats" in GRPO and seen["agreement"]["mean"] < 1e-2
    freed = seen["sleep"]["free asleep"] - seen["sleep"]["free awake"]
    assert f"gives {freed:.0f} GB back in {seen['sleep']['sleep seconds']:.2f} s" in GRPO
    assert f"{seen['sleep']['wake and push seconds']:.2f} s after it is woken" in GRPO
    assert seen["prefix shared"]["cached"][1:] == [16, 16, 16]
    for part in ("fp8", "int8_per_token_head"):
        assert f"{seen[part]['mean']:.3f} on the trained tiny model" in cells(ENGINES, f"`{part}`", 5)[3]
