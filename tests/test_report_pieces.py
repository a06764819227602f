"""The pure pieces that a report is made of: figures as words, findings, published rows, axes, the graph."""

from __future__ import annotations

import itertools
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from fathom.records import Problem, Rollout, Sampling, Verdict
from fathom.report import charts, evidence, facts, graph, markdown, published, words
from fathom.report.evidence import checked_by, outcome, solve_rates
from fathom.report.read import Run, Stage


@pytest.mark.parametrize(
    ("usd", "told"),
    [
        (None, "unpriced"),
        (0, "$0"),
        (3e-6, "<$0.0001"),
        (0.0042, "$0.0042"),
        (0.019, "$0.019"),
        (0.5, "$0.50"),
        (1.5, "$1.50"),
        (499.2, "$499"),
    ],
)
def test_dollars(usd: float | None, told: str) -> None:
    assert words.dollars(usd) == told


# ------------------------------------------------------------------------------ findings


def test_the_chains_behind_a_headline_are_those_of_its_setting(monkeypatch):
    chains = [
        Rollout("p", 0, "", 5, "stop", model="base", sampling=Sampling(0.6, 0.95, most), meta={"benchmark": "b"})
        for most in (32, 96)
    ]
    monkeypatch.setattr(evidence, "evaluation", lambda run, model: "the stage")
    monkeypatch.setattr(evidence, "rollouts", lambda stage: chains)
    for most, chain in zip((32, 96), chains, strict=True):
        assert evidence.chains_of(None, "base", facts.Setting("b", 0.6, 0.95, most, 1, 1)) == [chain]


def row(model: str, pass1: float, versus: dict | None = None, **setting: object) -> dict:
    values = {"benchmark": "b", "temperature": 0.6, "top_p": 0.95, "max_tokens": 64, "problems": 8, "samples": 4}
    return {**values, "model": model, "pass1": pass1, "vs_base": versus, **setting}


@pytest.mark.parametrize(
    ("interval", "verdict", "told"),
    [
        ([0.01, 0.2], "better", "61.0% of problems solved, up from 50.0%, with 30% fewer tokens"),
        ([-0.2, -0.01], "worse", "61.0% of problems solved, down from 50.0%, with 30% fewer tokens"),
        ([-0.01, 0.2], "undecided", "61.0% solved by m and 50.0% by base: too close to call, with 30% fewer tokens"),
        ([0.0, 0.2], "undecided", "61.0% solved by m and 50.0% by base: too close to call, with 30% fewer tokens"),
    ],
)
def test_the_headline_claims_what_the_interval_allows(interval: list[float], verdict: str, told: str) -> None:
    versus = {"pass1_diff": 0.11, "ci": interval, "tokens_ratio": 0.7}
    head = facts.headline([row("base", 0.5), row("m", 0.61, versus)], "m")
    assert head.verdict == verdict
    assert words.finding(head) == told


def test_a_finding_of_several_benchmarks_names_the_first_and_tells_the_others() -> None:
    def versus(diff: float) -> dict:
        return {"pass1_diff": diff, "ci": [diff - 0.05, diff + 0.05], "tokens_ratio": 1.0}

    rows = [row("base", 0.5, benchmark=benchmark) for benchmark in "bc"]
    rows += [row("m", 0.6, versus(0.1)), row("m", 0.6, versus(0.2), temperature=1.0)]
    rows += [row("base", 0.5, temperature=1.0), row("m", 0.7, versus(0.2), benchmark="c")]
    head = facts.headline(rows, "m")
    assert words.finding(head) == "60.0% of b problems solved, up from 50.0%, with as many tokens"
    assert words.told_with(head, []).endswith("the interval lies above zero. c: +20.0 points (+15.0 to +25.0).")


@pytest.mark.parametrize(
    ("problem", "answer", "why", "told"),
    [
        (Problem("p", "What is 6 * 7?", "42"), "42", "equal", ("Answer: 42", "answer 42")),
        (
            Problem("p", "?", None, "code", tests=[{}, {}]),
            "n = 1",
            "PASS: 2 of 2",
            ("Checked by 2 tests", "PASS: 2 of 2"),
        ),
    ],
)
def test_a_program_is_shown_with_its_tests_and_not_with_an_answer(
    problem: Problem, answer: str, why: str, told: tuple[str, str]
) -> None:
    chain = Rollout("p", 0, "text", 3, "stop", "m", verdict=Verdict(answer, True, "grader/1", why=why))
    assert (checked_by(problem), outcome(problem, chain)) == told


def test_a_run_stands_beside_the_published_rows_of_its_own_recipe() -> None:
    tables = yaml.safe_load((files("fathom.evaluate") / "published.yaml").read_text(encoding="utf-8"))
    for name, finals in {"fathom-r1": "Fathom-R1-14B", "sky-t1": "Sky-T1-32B-Preview"}.items():
        groups = published.figures(published.FAMILIES[name], tables)
        assert len(groups) >= 2
        assert {group[-1].model for group in groups.values()} == {finals}
    sky = published.figures(published.FAMILIES["sky-t1"], tables)
    assert [row.pass1 for row in sky["aime24"]] == pytest.approx([0.167, 0.5, 0.433])  # without what users measured


def test_the_headline_compares_within_one_setting_only() -> None:
    versus = {"pass1_diff": 0.1, "ci": [0.05, 0.15], "tokens_ratio": 1.0}
    rows = [row("base", 0.5), row("m", 0.6, versus, temperature=1.0), row("base", 0.4, temperature=1.0)]
    assert facts.headline(rows, "m").base["pass1"] == 0.4
    assert facts.headline(rows[:2], "m") is None
    assert facts.headline(rows, "other") is None


def test_reasons_that_differ_in_numbers_only_are_one() -> None:
    texts = [
        "solve_rate 0.1 is not >= 0.2",
        "solve_rate 0.9 is not >= 0.2",
        "similar: repeats p1",
        "similar: repeats p2",
        "similar: repeats p3",
        "no gold",
    ]
    groups = facts.by_reason([{"id": str(i), "reason": reason} for i, reason in enumerate(texts)])
    assert [(reason, len(rows)) for reason, rows in groups] == [
        ("similar: repeats …", 3),
        ("solve_rate … is not >= 0.2", 2),
        ("no gold", 1),
    ]


def test_published_figures_are_read_in_all_three_forms() -> None:
    figures = [45.5, [50.0, 60.0], {"pass1": 51.0, "cons": 70.0, "tokens": 900}, [52.0, 70.0], 52.71]
    family = published.FAMILIES["fathom-r1"]
    table = {"samples": 64, "rows": {model: {"b": figure} for model, figure in zip(family.roles, figures, strict=True)}}
    (group,) = published.figures(family, [table]).values()
    assert [(row.pass1, row.cons, row.tokens) for row in group] == [
        (0.455, None, None),
        (0.5, 0.6, None),
        (0.51, 0.7, 900),
        (0.52, 0.7, None),
        (0.5271, None, None),
    ]


def test_markdown_cells_are_escaped() -> None:
    assert markdown.table(("a",), [["x | <b>\n*y*"]]) == "| a |\n| --- |\n| x \\| \\<b\\> \\*y\\* |"


# ------------------------------------------------------------------------------ drawing


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.3, 0.31), (-5, 17), (0, 16384), (50, 50), (0, 0)])
def test_an_axis_covers_its_range_with_a_few_round_ticks(low: float, high: float) -> None:
    whole = charts.nice_axis(low, high)
    assert whole.low <= low and whole.high >= high and whole.low < whole.high
    assert 2 <= len(whole.ticks) <= 8
    exact = charts.nice_axis(low, high, whole=False)
    assert exact.at(low) == 0 and all(exact.low - 1e-9 <= tick <= exact.high + 1e-9 for tick in exact.ticks)


def test_calls_that_may_be_billed_twice_are_told() -> None:
    bill = facts.Total(1.5, 0.0, 0.25, 60, 1000, (), maybe_double=2)
    assert "2 paid calls were sent again with nobody knowing" in words.bill_finding(bill, None)
    assert "sent again" not in words.bill_finding(replace(bill, maybe_double=0), None)


@pytest.mark.parametrize(
    ("until", "told"),
    [
        (None, "2 problems, mean 75.0%"),
        ({"agreement": 0.9}, "2 problems, fitted mean 45.7% (chains were drawn in waves)"),
    ],
)
def test_after_waves_the_mean_solve_rate_is_the_fitted_one(tmp_path: Path, until: dict | None, told: str) -> None:
    (tmp_path / "problems.jsonl").write_text('{"solve_rate": 0.5}\n{"solve_rate": 1.0}\n')
    chains = Stage("chains", tmp_path, {"op": "rollout", "config": {"until": until}})
    metrics = {"mean": 0.75, "mean_fitted": 0.457}
    measured = Stage("measured", tmp_path, {"op": "solve_rate", "config": {"chains": "chains"}, "metrics": metrics})
    (drawn,) = solve_rates(Run(tmp_path, {"recipe": "small"}, (chains, measured)))
    assert drawn["caption"] == told


def test_a_histogram_holds_every_value_once() -> None:
    outline = charts.histogram([0, 1, 1.9, 2, 5, 6], [0, 2, 4, 6])
    tops = [(a, share) for (a, share), (b, other) in itertools.pairwise(outline) if a != b and share == other]
    assert tops == [(0, 3 / 6), (2, 1 / 6), (4, 2 / 6)]


def test_smoothing_starts_at_the_first_value_and_follows_hand_arithmetic() -> None:
    assert charts.smoothed([(1, 4.0), (2, 1.0)], keep=0.5) == [
        (1, 4.0),
        (2, pytest.approx((0.25 * 4 + 0.5 * 1) / 0.75)),
    ]


def test_the_graph_draws_no_edge_that_follows_from_others_and_no_two_boxes_on_one_place() -> None:
    reads = {"a": (), "b": ("a", "m"), "c": ("b", "a"), "d": ("m", "c"), "e": ("m",)}
    assert set(graph.essential(reads)) == {("a", "b"), ("m", "b"), ("b", "c"), ("c", "d"), ("m", "e")}
    paths, rows = graph.layout(reads)
    row_of = {node: i for i, nodes in enumerate(rows) for node in nodes}
    assert all(row_of[lower] == row_of[upper] + 1 for path in paths for upper, lower in itertools.pairwise(path))
    assert sorted(n for nodes in rows for n in nodes if isinstance(n, str)) == ["a", "b", "c", "d", "e", "m"]
