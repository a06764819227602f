"""The report of a small real run (recorded chains, a random model) and the pure pieces it is made of."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import sqlite3
from contextlib import closing
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from models import write_model

import fathom
from fathom import commands, report, store
from fathom.errors import InputError
from fathom.ledger import Ledger
from fathom.prices import DevicePrice, Prices
from fathom.records import Problem, Rollout, Verdict
from fathom.report import charts, facts, graph, markdown, published, words
from fathom.report.evidence import checked_by, outcome, token_price
from fathom.report.read import read_run
from fathom.report.terminal import print_run

HOSTILE = "<script>alert(1)</script> | </pre><img src=x onerror=alert(2)> What is 2 + 2?"
ROW_KEYS = "model benchmark temperature top_p problems samples max_tokens pass1 pass1_ci cons cons_ci tokens_mean truncated vs_base"

RECIPE = """
recipe: small
description: A small run for the tests of the report.
models: {{base: "{folder}/base"}}
budget: {{usd: 5.0}}
final: merged
stages:
  problems: {{op: sources, sources: [{{name: local, path: "{folder}/problems.jsonl", licence: Apache-2.0, chains: {{text: chains, tokens: tokens}}}}]}}
  unique: {{op: dedup, problems: problems}}
  verified: {{op: grade, problems: unique, chains: problems}}
  measured: {{op: solve_rate, problems: unique, chains: verified}}
  band: {{op: select, problems: measured, chains: verified, solve_rate: {{above: 0, max: 0.5}}, chain: shortest}}
  part: {{op: sft, model: base, examples: band, order: shuffled, epochs: 2, learning_rate: 1.0e-3, batch_size: 4}}
  merged: {{op: merge, models: [part, base], weights: [0.5, 0.5]}}
  eval_base: {{op: evaluate, model: base, benchmarks: [{{name: sums, path: "{folder}/sums.jsonl"}}], samples: 4, samplings: [{{max_tokens: 64}}], budgets: [16, 32], engine: {{kind: recorded, path: "{folder}/base.jsonl", columns: {{tokens: tokens}}}}}}
  eval_merged: {{op: evaluate, model: merged, against: eval_base, beside: [eval_base], benchmarks: [{{name: sums, path: "{folder}/sums.jsonl"}}], samples: 4, samplings: [{{max_tokens: 64}}], budgets: [16, 32], engine: {{kind: recorded, path: "{folder}/merged.jsonl", columns: {{tokens: tokens}}}}}}
"""


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def recorded(right_of_four: int, tokens: int, questions: int) -> list[dict]:
    """Four chains for every problem of the benchmark, the first ones right."""
    return [
        {
            "problem_id": f"sums/{i}",
            "text": f"<think>\n{HOSTILE}\n</think>\n\\boxed{{{2 * i if k < right_of_four else -1}}}",
            "tokens": tokens + k,
        }
        for i in range(questions)
        for k in range(4)
    ]


def run(folder: Path, out: Path, until: str | None = None) -> Path:
    commands.run(folder / "recipe.yaml", out, [], None, until)
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with its data, ready to run."""
    folder = tmp_path_factory.mktemp("small")
    write_model(folder / "base")
    chains = [f"<think>\nso {k}\n</think>\n\\boxed{{4}}" for k in range(2)]
    wrong = ["<think>\nhm\n</think>\n\\boxed{5}"] * 2
    questions = [HOSTILE, HOSTILE, "What is 1 + 3?", "Halve eight.", "How many legs has a sound horse?", "Find 20 / 5."]
    rows = [{"problem": q, "answer": "4", "chains": [*chains, *wrong], "tokens": [9, 8, 7, 7]} for q in questions]
    write_rows(folder / "problems.jsonl", rows)
    write_rows(
        folder / "sums.jsonl",
        [{"id": str(i), "problem": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(8)],
    )
    write_rows(folder / "base.jsonl", recorded(2, 40, 8))
    write_rows(folder / "merged.jsonl", recorded(3, 20, 8))
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def finished(folder: Path) -> Path:
    return run(folder, folder / "run")


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


# ------------------------------------------------------------------------------ files


def test_results_json_holds_every_row_with_exactly_the_promised_keys(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert list(results) == ["recipe", "seed", "rows"]
    assert [row["model"] for row in results["rows"]] == ["base", "merged"]
    assert all(sorted(row) == sorted(ROW_KEYS.split()) for row in results["rows"])
    base, merged = results["rows"]
    assert (base["pass1"], merged["pass1"]) == (0.5, 0.75)
    assert merged["vs_base"]["pass1_diff"] == 0.25
    assert merged["vs_base"]["tokens_ratio"] == pytest.approx(21.5 / 41.5)


def test_a_model_is_compared_with_the_stages_it_names(finished: Path) -> None:
    (versus,) = store.read_json(finished / "artifacts/eval_merged/comparisons.json")
    row = store.read_json(finished / "results.json")["rows"][1]
    assert (versus["model"], versus["other"], versus["benchmark"]) == ("merged", "base", "sums")
    assert {key: versus[key] for key in row["vs_base"]} == row["vs_base"]


def test_writing_again_changes_no_byte_and_touches_no_artifact(finished: Path) -> None:
    def state() -> dict[str, tuple[str, int]]:
        files = [p for p in finished.rglob("*") if p.is_file() and "ledger" not in p.name and p.name != "results.json"]
        return {str(p): (store.hash_file(p), p.stat().st_mtime_ns) for p in files}

    before = state()
    report.write(finished)
    assert state() == before


def test_the_published_model_is_the_final_stage_with_the_runs_own_card(finished: Path) -> None:
    artifact, model = finished / "artifacts/merged", finished / "model"
    weights = "model.safetensors"
    assert (model / weights).samefile(artifact / weights)
    assert not (model / "manifest.json").exists()
    card = (model / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "transformers"
    for told in ("+25.0", "| merged | merge of 0.5 part + 0.5 base |", "| Apache-2.0 |", "recipe: small"):
        assert told in body, told
    assert store.damage(artifact, store.read_manifest(artifact), thorough=True) is None


def test_a_changed_final_model_is_published_again(copy: Path) -> None:
    artifact = copy / "artifacts/merged"
    aside = store.start(copy / "artifacts", "merged", 9)
    for file in artifact.iterdir():
        if file.name != store.MANIFEST:
            shutil.copyfile(file, aside / file.name)
    (aside / "generation_config.json").write_text('{"temperature": 0.5}')
    manifest = store.read_manifest(artifact)
    store.finish(aside, artifact, {key: manifest[key] for key in manifest if key not in ("files", "format")})
    (copy / "model/left-over.bin").write_text("from an older model")
    report.write(copy)
    assert (copy / "model/generation_config.json").read_text() == '{"temperature": 0.5}'
    assert not (copy / "model/left-over.bin").exists()


def test_an_unfinished_run_gets_a_report_that_names_what_is_missing(folder: Path, tmp_path: Path) -> None:
    out = run(folder, tmp_path / "run", until="unique")
    page = (out / "report.html").read_text()
    assert "Not run: verified, measured, band, part, merged, eval_base, eval_merged" in page
    assert json.loads((out / "results.json").read_text())["rows"] == []
    assert not (out / "model").exists()
    assert "6 rows read: unique keeps 5" in (out / "report.md").read_text()


def test_a_directory_that_is_not_a_run_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a run directory \(it has no recipe.yaml\)"):
        report.write(tmp_path)


def test_a_damaged_ledger_is_refused_in_one_line(copy: Path) -> None:
    (copy / "ledger.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(InputError, match=r"ledger.sqlite: not a ledger \(file is not a database\)"):
        report.write(copy)


# ------------------------------------------------------------------------------ the page


VOID = {"meta", "br"}


class Page(HTMLParser):
    """Collects tags, the open ones at the end, and every attribute that could fetch or run something."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: set[str] = set()
        self.active: list[tuple[str, str, str | None]] = []
        self.open: list[str] = []
        self.mismatched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.active += [
            (tag, k, v) for k, v in attributes if k.startswith("on") or k in ("src", "href", "data", "action")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID and self.open.pop() != tag:
            self.mismatched.append(tag)


def test_the_page_fetches_nothing_runs_nothing_and_is_well_formed(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    page = Page(text)
    assert not page.tags & {"script", "img", "link", "iframe", "object"}
    assert all(tag == "a" and key == "href" and value.startswith("#") for tag, key, value in page.active)
    assert "url(" not in text and "@import" not in text
    assert "default-src 'none'" in text
    assert page.open == [] and page.mismatched == []


def test_what_the_user_supplied_is_shown_and_escaped(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<script" not in text and "<img" not in text


def test_a_token_of_an_evaluation_costs_its_bill_over_what_it_generated(finished: Path) -> None:
    run = read_run(finished)
    (stage,) = [s for s in run.of("evaluate") if s.name == "eval_merged"]
    line = next(ln for ln in run.bill if ln.stage == "eval_merged")
    generated = sum(row["tokens"] for row in stage.lines("rollouts.jsonl"))
    assert token_price(run, stage) == pytest.approx(line.usd / generated)


def test_the_page_says_what_was_found(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    for told in (
        "75.0% of problems solved, up from 50.0%, with 48% fewer tokens",
        "4 chains, temperature 0.6",
        "tokens of a chain",
        "token budget",
        "dollars per 1,000 correct answers",
        "solve rate &gt; 0 and &lt;= 0.5",
        "R1-Distill-Qwen-14B",
        "52.71%",
        "The first problem of the evaluation",
        "fathom run",
        store.read_manifest(finished / "artifacts/merged")["key"],
    ):
        assert told in text, told


def test_the_summary_is_plain_lines_for_a_program_and_a_table_for_a_person(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report.print_summary(finished)
    plain = capsys.readouterr().out
    assert plain.isascii() or "\x1b" not in plain
    assert [line.split()[0] for line in plain.splitlines()[3:6]] == ["model", "base", "merged"]
    assert "+25.0" in plain

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    print_run(read_run(finished), shown)
    assert "─" in shown.getvalue() and "merged" in shown.getvalue()


def test_models_compared_with_one_another_are_told_apart_only_where_the_interval_does(copy: Path) -> None:
    setting = {"benchmark": "sums", "temperature": 0.6, "top_p": 0.95, "max_tokens": 64, "tokens_ratio": 0.9}
    intervals = {"v06": [0.01, 0.05], "v04": [-0.01, 0.03], "control": [-0.05, -0.01]}
    rows = [
        {"model": "merged", "other": o, "pass1_diff": sum(ci) / 2, "ci": ci, **setting} for o, ci in intervals.items()
    ]
    store.write_json(copy / "artifacts/eval_merged/comparisons.json", [*rows, {**rows[0], "benchmark": "other"}])
    report.write(copy)
    assert [line for line in (copy / "report.md").read_text().splitlines() if line.startswith("- merged minus")] == [
        "- merged minus v06: +3.0 points (+1.0 to +5.0), better",
        "- merged minus v04: +1.0 points (−1.0 to +3.0), too close to call",
        "- merged minus control: −3.0 points (−5.0 to −1.0), worse",
    ]
    assert "merged minus control" in (copy / "report.html").read_text()
    assert "control does better than merged: by +3.0 points (+1.0 to +5.0)." in (copy / "report.md").read_text()


# ------------------------------------------------------------------------------ money


def test_killed_work_is_shown_as_wasted_and_a_missing_price_is_never_free(copy: Path) -> None:
    ledger = Ledger(copy / "ledger.sqlite")
    prices = Prices(devices={"h100": DevicePrice(usd_per_hour=3600, as_of="2026-01-01", source="test")})
    ledger.end(ledger.begin("part", "an older key", "h100", 1, prices), "killed", 2.0)
    ledger.end(ledger.begin("eval_base", "an older key", "no such device", 1, prices), "done", 50.0)
    ledger.close()
    report.write(copy)
    text = (copy / "report.md").read_text()
    assert "$2.00 of it was wasted" in text
    assert "No price is known for eval\\_base" in text or "No price is known for eval_base" in text
    assert "| eval\\_base, an earlier version | no such device | – | unpriced | unpriced | 50 s | unpriced |" in text


def test_the_day_of_a_report_is_that_of_the_ledger(copy: Path) -> None:
    with closing(sqlite3.connect(copy / "ledger.sqlite")) as db, db:
        db.execute("update attempts set started = '2025-05-17T09:00:00+00:00'")
    report.write(copy)
    assert f"Fathom {fathom.__version__}, 2025-05-17." in (copy / "report.md").read_text()
    assert "· 2025-05-17</span>" in (copy / "report.html").read_text()


def test_plan_and_bill_stand_side_by_side(finished: Path) -> None:
    steps = json.loads((finished / "plan.json").read_text())["stages"]
    expected = {step["stage"]: step["expected"] and step["expected"]["usd"] for step in steps}
    costs = facts.costs(read_run(finished))
    assert {cost.line.stage: cost.planned and list(cost.planned) for cost in costs} == expected
    assert any(expected.values())


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


def test_every_removed_row_is_counted_under_one_reason(finished: Path) -> None:
    for step in facts.funnel(read_run(finished)):
        assert sum(count for _, count in step.reasons) == step.removed


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
