"""The report of a small real run (recorded chains, a random model) and the pure pieces it is made of."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from models import write_model

import fathom
from fathom import commands, report, store
from fathom.errors import InputError
from fathom.ledger import Ledger
from fathom.prices import DevicePrice, Prices
from fathom.report import facts
from fathom.report.evidence import token_price
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


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("recipe.yaml", "stages: {}", "recipe: 'None'"),
        ("recipe.yaml", "{recipe: [small], stages: {}}", "recipe: \"['small']\""),
        ("recipe.yaml", "{recipe: small, stages: [rows]}", "stages: \"['rows']\""),
        ("recipe.yaml", "{recipe: small, stages: {rows: sources}}", "stages: \"{'rows': 'sources'}\""),
        ("recipe.yaml", "{recipe: small, stages: {}, seed: zero}", "seed: 'zero'"),
        ("recipe.yaml", "{recipe: small, stages: {}, seed: null}", "seed: 'None'"),
        ("plan.json", "[]", "stages: 'None'"),
        ("plan.json", '{"stages": {}}', "stages: '{}'"),
        ("plan.json", '{"stages": ["a stage whose name is as long as forty characters"]}', "stages: \"['a stage whose name is as long as forty\""),
    ],
)  # fmt: skip
def test_an_edited_file_of_a_run_is_refused_in_one_line(tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / "recipe.yaml").write_text("{recipe: small, stages: {}}")
    assert read_run(tmp_path).seed == 0
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as refused:
        read_run(tmp_path)
    assert str(refused.value) == f"{tmp_path / name}: not as a run writes it ({told})"


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


def test_every_removed_row_is_counted_under_one_reason(finished: Path) -> None:
    for step in facts.funnel(read_run(finished)):
        assert sum(count for _, count in step.reasons) == step.removed
