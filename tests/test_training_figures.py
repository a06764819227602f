"""The figures of docs/training.md are those of the recorded runs, rounded as they are printed."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_recorded_figures import recorded

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line.startswith("| ")]
SPEED, LOSSES, LEARNING = map(recorded, ("sft_gpu", "sft_gpu_20_steps", "equal_learning"))
LARGE, HALF = map(recorded, ("sft_gpu_32b", "sft_gpu_32b_half"))
WORKLOADS = {"one full": "one", "sixteen full": "sixteen", "sixteen of mixed lengths": "mix"}


def row(first: str, cells: int) -> list[str]:
    return next(row for row in ROWS if row[0] == first and len(row) == cells)


@pytest.mark.parametrize(("label", "name"), WORKLOADS.items())
def test_speed(label, name):
    def rate(side):
        found = SPEED.get(side, {}).get(name)
        return f"{found['useful_tokens_per_s']:,.0f} ({found['mfu']:.3f})" if found else ""

    def ratio(side):
        return f"{SPEED['ratios'][f'{side} {name}']:.3f}" if f"{side} {name}" in SPEED["ratios"] else ""

    expected = [rate("anchor"), rate("fathom"), ratio("fathom"), rate("float8"), ratio("float8")]
    assert row(label, 6)[1:] == expected


@pytest.mark.parametrize(("label", "name"), WORKLOADS.items())
def test_peaks_and_their_plans(label, name):
    found = SPEED["fathom"][name]
    peaks = [f"{found['plan_peak_gib']:.1f} GiB", f"{found['peak_allocated_gib']:.1f} GiB"]
    assert row(label, 4)[1:] == ["; ".join(found["plan"]), *peaks]
    assert found["plan_peak_gib"] == pytest.approx(found["peak_allocated_gib"], rel=0.05)


@pytest.mark.parametrize(
    ("label", "found"),
    [
        ("64, one full row on each", LARGE["fathom"]["one"]),
        ("32, 48 rows of 4.8K", HALF["fathom"]["mix"]),
        ("32, 48 rows of 4.8K, `float8`", HALF["float8"]["mix"]),
    ],
)
def test_the_large_model_on_two_gpus(label, found):
    rate = f"{found['useful_tokens_per_s_and_gpu']:,.0f}"
    peaks = [f"{found[key]:.1f} GiB" for key in ("plan_peak_gib", "peak_allocated_gib")]
    assert row(label, 6)[1:] == [rate, f"{found['mfu']:.3f}", "; ".join(found["plan"]), *peaks]
    assert found["useful_tokens_per_s_and_gpu"] >= 2300
    assert found["plan_peak_gib"] == pytest.approx(found["peak_allocated_gib"], rel=0.05)


def test_a_sharded_run_goes_on_from_its_checkpoint():
    run = recorded("sharded_resume")
    assert run["left_behind"] == ["step-2", "step-4.tmp"] and set(run["resumed"]["losses"]) == {"3", "4"}
    assert run["largest_difference"] < 1e-3
    assert f"the next losses differ by {run['largest_difference']:.1e} nats".replace("e-0", "e-") in TEXT


def test_gpus_wait_for_one_another_as_told():
    for found in recorded("even_packs")["waited"]:
        if found["gpus"] == 8:
            assert f"{found['full']:.1%} of their time" in TEXT or f"for {found['full']:.1%}, and" in TEXT
            assert f"{found['even']:.1%}" in TEXT


def test_ratios_that_were_asked_for():
    for name, least in (("fathom one", 1.3), ("fathom sixteen", 1.3), ("float8 one", 1.6)):
        assert SPEED["ratios"][name] >= least


def test_what_was_not_reached_is_told():
    told = TEXT.partition("## Not reached")[2]
    for name, aim in (("fathom mix", 1.8), ("float8 one", 1.9)):
        assert SPEED["ratios"][name] < aim and f"{SPEED['ratios'][name]:.3f}" in told
    pairs = zip(LOSSES["float8"]["one"]["losses"], LOSSES["fathom"]["one"]["losses"], strict=True)
    assert f"{max(abs(ours - other) for ours, other in pairs):.2f} nats" in told


@pytest.mark.parametrize("storage", LEARNING["comparison"])
def test_learning(storage):
    found = LEARNING["comparison"][storage]
    differences = [f"{found[key]:+.4f}" for key in ("difference_mean", "difference_largest")]
    assert row(storage, 4)[1:] == [f"{found['held_out_mean']:.4f}", *differences]


def test_compact_storage_and_float8_learn_within_the_noise_of_seeds():
    comparison = LEARNING["comparison"]
    noise = comparison["float32 master"]["seed_deviation_of_reference"]
    assert f"over seeds is {noise:.4f}" in TEXT
    for storage in ("int8, stochastic", "int8, split", "float8 products"):
        assert abs(comparison[storage]["difference_mean"]) < noise
    assert comparison["bfloat16 nearest"]["difference_mean"] > 2 * noise
    assert {run["seed"] for run in LEARNING["runs"]} == {0, 1, 2} and min(
        len(run["losses"]) for run in LEARNING["runs"]
    ) >= 300
