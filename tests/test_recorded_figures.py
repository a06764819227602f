"""The tables of the documents on grading, curation, solve rates, serving, preference training and Sky-T1 are those of the recorded runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def recorded(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks/results" / f"{name}.json").read_bytes())


def rows(page: str) -> list[list[str]]:
    """The cells of every line of a document's tables."""
    lines = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
    return [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]


def percent(rate: float, digits: int = 1) -> str:
    return f"{100 * rate:.{digits}f}%"


def points(pair: dict[str, Any]) -> str:
    low, high = pair["ci"]
    return f"{100 * pair['pass1_diff']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


GRADERS = {
    "Fathom": "Fathom",
    "Math-Verify": "Math-Verify 0.9.0",
    "LIMO": "LIMO, used by Fathom-R1",
    "SkyThought": "SkyThought 0.1.0",
}
ANSWERS = {
    "pairs_math.jsonl": "bare answers",
    "completions_math.jsonl.gz": "completions",
    "all mathematics": "both",
    "completions_mcq.jsonl": "multiple choice",
}  # fmt: skip


@pytest.mark.parametrize("grader", GRADERS)
def test_graders(grader):
    table = rows("grading.md")
    for rows_of, label in ANSWERS.items():
        found = recorded("graders")["graders"][grader][rows_of]
        (row,) = (row for row in table if row[:2] == [GRADERS[grader], label])
        assert row[2] == f"{found['rows']:,}"
        assert float(row[3].strip("%")) == pytest.approx(100 * found["agreement"], abs=0.0051)
        assert row[4:6] == [f"{found[key]:,}" for key in ("false_positives", "false_negatives")]
        assert row[6] == (f"{found['rows_per_cpu_second']:,.0f}" if "rows_per_cpu_second" in found else "")


RATES = {
    "Beta(0.2, 0.2)": "polarised, Beta(0.2, 0.2)",
    "Beta(0.3, 0.3)": "polarised, Beta(0.3, 0.3)",
    "Beta(0.6, 0.25), mostly solved": "mostly solved, Beta(0.6, 0.25)",
    "Beta(0.25, 0.6), mostly unsolved": "mostly unsolved, Beta(0.25, 0.6)",
}


def test_solve_rates_in_waves():
    cases = recorded("solve_rates")["cases"]
    tables = {9: 0, 4: 0}
    for row in rows("solve-rates.md"):
        case = cases.get(RATES.get(row[0], row[0]))
        if case is None:
            continue
        window = row[1] if len(row) == 9 else "fathom-r1-14b.yaml"
        waves, eight, sixteen = (case[window][name] for name in ("sequential", "fixed_8", "fixed_16"))
        drawn, same, of_eight = (
            f"{waves['chains_mean']:.1f}",
            percent(waves["not_ruled_out"]),
            percent(eight["not_ruled_out"]),
        )
        tables[len(row)] += 1
        if len(row) == 4:
            assert row[1:] == [drawn, same, of_eight]
            continue
        of_sixteen = f"{percent(sixteen['not_ruled_out'])}, {percent(sixteen['equal'])}"
        other, saved = percent(case[window]["other_64"]["equal"]), percent(waves["saved"]["16"], 0)
        assert row[2:] == [drawn, same, percent(waves["equal"]), of_eight, of_sixteen, other, saved]
    assert tables == {9: 14, 4: 6}


KINDS = [
    "verbatim",
    "other notation",
    "reworded",
    "renumbered",
    "renamed",
    "renumbered and renamed",
    "renumbered and reworded",
]


def test_curation():
    table = {row[0]: row[1:] for row in rows("curation.md")}
    methods = recorded("curation")["accuracy"]["decontamination"]["methods"].values()
    for kind in KINDS:
        assert table[kind] == [percent(method["recall_by_kind"][kind], 2) for method in methods]
    assert table["exact and near"] == [percent(method["recall"]["exact and near"], 2) for method in methods]
    assert table["twins"] == [percent(method["recall"]["twin"], 2) for method in methods]
    assert table["precision"] == [percent(method["precision"], 2) for method in methods]
    for size in recorded("curation")["scale"]:
        seconds = [size[op]["cpu_seconds"] for op in ("dedup", "decontaminate")]
        gone = ", ".join(
            f"{p['removed']:,} of {p['planted']:,}" for p in (size["planted"][name] for name in ("repeat", "leak"))
        )
        each = f"{1000 * sum(seconds) / size['problems']:.2f}"
        expected = [*(f"{s:.1f}" for s in seconds), each, f"{size['peak_gib']:.2f} GiB", gone]
        assert table[f"{size['problems']:,}"] == expected


def test_serving_under_load():
    run = recorded("serve_load")
    table = {row[0]: row[1:] for row in rows("serving.md")}
    sides = [run["fathom"], run["transformers"]]

    def seconds(key: str, digits: tuple[int, int]) -> list[str]:
        return [
            ", ".join(f"{side[key][p]:.{d}f}" for p, d in zip(("p50", "p99"), digits, strict=True)) for side in sides
        ]

    assert table["tokens/s"] == [f"{side['tokens_per_second']:,.0f}" for side in sides]
    assert table["tokens per CPU-second of the server"] == [f"{side['tokens_per_cpu_second']:,.0f}" for side in sides]
    assert table["answers in 300 s and in 60 s"] == [f"{side['answers']:,}" for side in sides]
    assert table["seconds to the first text, median and 99th percentile"] == seconds("first_text_seconds", (2, 1))
    assert table["seconds of an answer, median and 99th percentile"] == seconds("answer_seconds", (1, 1))
    assert [side["seconds"] for side in sides] == [300, 60] and run["fathom"]["other_than_alone"] == 0


def test_preference_training():
    table = {row[0]: row[1:] for row in rows("preference.md")}
    for run in recorded("sky-t1-flash-tiny")["runs"]:
        base, flash = run["rows"]
        cells = table[str(run["seed"])]
        for place, key in ((0, "pass1"), (2, "cons")):
            for cell, row in zip(cells[place : place + 2], (base, flash), strict=True):
                assert float(cell.strip("%")) == pytest.approx(100 * row[key], abs=0.0501)
        assert cells[4:6] == [f"{row['tokens_mean']:.0f}" for row in (base, flash)]
        assert cells[6:] == [f"{flash['vs_base']['tokens_ratio']:.2f}", points(flash["vs_base"])]


def test_sky_t1():
    (run,) = recorded("sky-t1-tiny")["runs"]
    table = {row[0]: row[1:] for row in rows("sky-t1.md")}
    by = {(row["model"], row["benchmark"]): row for row in run["rows"]}
    for benchmark in ("fresh-maths", "fresh-code"):
        pair = [by[model, benchmark] for model in ("base", "student")]
        shown = [f"{percent(r['pass1'])} ({100 * r['pass1_ci'][0]:.1f} to {100 * r['pass1_ci'][1]:.1f})" for r in pair]
        assert table[benchmark] == [*shown, points(pair[1]["vs_base"]).replace(" (", " points (")]
    text = (ROOT / "docs/sky-t1.md").read_text(encoding="utf-8")
    calls = [usd for stage in ("taught", "rewritten", "rated") for usd in run["calls_usd"][stage].values()]
    assert "The bill is ${:.3f}: teacher ${:.3f}, rewriter ${:.3f}, labeller ${:.3f}".format(run["usd"], *calls) in text
    assert f"{run['seconds'] // 60:.0f} min {run['seconds'] % 60:.0f} s on two cores" in text
