"""`fathom why ROW`, the data card and the published export, on one small run that has every kind of fate in it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from models import write_model

from fathom import commands, report
from fathom.errors import InputError
from fathom.records import Rollout, read_jsonl, write_jsonl
from fathom.report import why_text
from fathom.report.why import _step, mention, why
from fathom.store import hash_file, hash_path, read_manifest, write_json

LEAK = "How many apples does Ann have when she buys 4 apples and then 9 apples more at the market in the town?"
RECIPE = """
recipe: fruit
models: {{base: "{folder}/base"}}
stages:
  problems:
    op: sources
    sources:
      - {{name: local, path: "{folder}/apples.jsonl", licence: MIT, columns: {{id: id}}, chains: {{text: chains}}}}
      - {{name: local, path: "{folder}/pears.jsonl", columns: {{id: id}}, chains: {{text: chains}}}}
  unique: {{op: dedup, problems: problems}}
  clean: {{op: decontaminate, problems: unique, benchmarks: [{{name: market, path: "{folder}/market.jsonl"}}]}}
  rated: {{op: annotate, problems: clean, engine: {{kind: scripted, script: surface-difficulty}}}}
  verified: {{op: grade, problems: rated, chains: problems}}
  measured: {{op: solve_rate, problems: rated, chains: verified}}
  middle: {{op: select, problems: measured, chains: verified, solve_rate: {{above: 0, below: 1}}, chain: shortest}}
  easy: {{op: select, problems: measured, chains: verified, solve_rate: {{min: 1}}}}
  mixed: {{op: mix, parts: {{middle: middle, easy: easy}}, rows: {{middle: 2}}}}
  part: {{op: sft, model: base, examples: mixed, batch_size: 2, max_length: 260}}
  files: {{op: export, rows: mixed, formats: [messages, verl], name: fruit}}
  eval_base: {{op: evaluate, model: base, benchmarks: [{{name: market, path: "{folder}/market.jsonl"}}], samples: 2, samplings: [{{max_tokens: 64}}], engine: {{kind: recorded, path: "{folder}/base.jsonl"}}}}
"""


def chains(right: int, gold: int, long: bool = False) -> list[str]:
    """Four chains, the first ones right and of falling length."""
    words = "and so on " * (40 if long else 1)
    return [f"<think>\n{words * (4 - k)}\n</think>\n\\boxed{{{gold if k < right else -1}}}" for k in range(4)]


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fruit")
    write_model(folder / "base")
    apples = [
        {"id": "all", "problem": "What is 2 apples and 3 apples?", "answer": "5", "chains": chains(4, 5)},
        {"id": "again", "problem": "What is 2 apples and 3 apples", "answer": "5", "chains": chains(1, 5)},
        {"id": "leak", "problem": LEAK.replace("Ann", "Eve"), "answer": "13", "chains": chains(2, 13)},
        {"id": "none", "problem": "Halve the 18 apples.", "answer": "9", "chains": chains(0, 9)},
        {
            "id": "long",
            "problem": "Sort out 12 of 20 apples: how many stay?",
            "answer": "8",
            "chains": chains(4, 8, True),
        },
    ]
    pears = [
        {"id": f"pear{i}", "problem": f"Share {6 * i} pears among {i} of us, each gets?", "answer": "6", "chains": chains(i % 4, 6)}
        for i in range(5, 9)
    ]  # fmt: skip
    write_rows(folder / "apples.jsonl", apples)
    write_rows(folder / "pears.jsonl", pears)
    write_rows(folder / "market.jsonl", [{"id": "1", "problem": LEAK, "answer": "13"}])
    write_rows(folder / "base.jsonl", [{"problem_id": "market/1", "text": f"\\boxed{{{n}}}"} for n in (13, 12)])
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder), encoding="utf-8")
    commands.run(folder / "recipe.yaml", folder / "run", [], None, None)
    return folder / "run"


def steps(run, row):
    """The steps of a row by the stage's name."""
    return {step["stage"]: step for step in why(row, run)["steps"]}


# ------------------------------------------------------------------------------ why


@pytest.mark.parametrize(("row", "outcome"), [
    ("all", "trained on by part; exported by files"),
    ("all#0", "trained on by part; exported by files"),
    ("again", "removed by unique"),
    ("leak", "removed by clean"),
    ("none", "removed by middle and easy"),
    ("long", "exported by files; left out by part"),
    ("pear6", "chosen by middle, removed by mixed"),
    ("market/1", "a problem of an evaluation"),
])  # fmt: skip
def test_every_fate_has_its_line(run, row, outcome):
    way = why(row, run)
    assert way["outcome"] == outcome
    assert why_text.describe(way).split("\n")[0].endswith(f" in {run}: {outcome}")
    assert json.loads(json.dumps(way)) == way


def test_the_steps_follow_the_row_from_its_source_to_its_use(run):
    way = steps(run, "pear7")
    assert list(way) == "problems unique clean rated verified measured middle easy mixed part files".split()
    assert (way["problems"]["source"], way["problems"]["gold"], len(way["problems"]["chains"])) == ("pears", "6", 4)
    assert "licence" not in way["problems"]
    assert way["rated"]["set"].keys() == {"difficulty"}
    assert [c["verdict"].get("correct") for c in way["verified"]["chains"]] == [True, True, True, False]
    assert way["measured"]["set"]["solve_rate"] == 0.75
    assert way["measured"]["set"]["meta.solve_rate"]["chains"] == 4
    assert (way["middle"]["training_row"], way["middle"]["lineage"]["solve_rate"]) == ("pear7#2", 0.75)
    assert way["easy"]["reason"] == "solve_rate 0.75 is not >= 1"
    assert (way["mixed"]["part"], way["mixed"]["from"], way["part"]["from"]) == ("middle", ["middle"], ["mixed"])


def test_a_removed_row_is_told_with_both_texts_and_named_at_the_row_it_went_for(run):
    removed = steps(run, "leak")["clean"]
    assert removed["text"] == LEAK.replace("Ann", "Eve") and removed["other_text"] == LEAK
    text = why_text.describe(why("leak", run))
    assert f"this: {LEAK.replace('Ann', 'Eve')}" in text and f"that: {LEAK}" in text
    assert steps(run, "all")["unique"]["instead"] == [{"row": "again", "reason": "same text: repeats all"}]
    assert steps(run, "market/1")["clean"]["instead"][0]["row"] == "leak"
    assert steps(run, "long")["part"]["aside"] == [{"row": "long#0", "reason": "longer than max_length 260"}]


def test_the_cost_of_a_row_is_its_chains_and_their_rewriting_once(run, tmp_path):
    artifact = run / "artifacts" / "verified"
    told = {name: (artifact / name).read_text() for name in ("rollouts.jsonl",)}
    paid = [replace(r, meta={"usd": 0.01, "rewrite": {"by": "labeller", "kept": 0.9, "usd": 0.002}})
            for r in read_jsonl(artifact / "rollouts.jsonl", Rollout)]  # fmt: skip
    try:
        write_jsonl(artifact / "rollouts.jsonl", paid)
        assert why("all", run)["usd"] == pytest.approx(4 * 0.012)
        assert "; its chains cost $0.0480" in why_text.describe(why("all", run))
        assert "rewritten: by labeller, kept 0.9, usd 0.002" in why_text.describe(why("all", run))
    finally:
        (artifact / "rollouts.jsonl").write_text(told["rollouts.jsonl"])
    assert why("all", run)["usd"] is None


BRANCHES = """
recipe: branches
stages:
  tok: {{op: tokenize, model: base, examples: easy, max_length: 250}}
  easy: {{op: select, problems: measured, chains: z, solve_rate: {{min: 0.5}}}}
  unique: {{op: dedup, problems: z}}
  measured: {{op: solve_rate, problems: z, chains: z}}
  z: {{op: given, path: "{z}"}}
models: {{base: "{base}"}}
"""


def test_stages_are_told_after_those_that_they_read_whatever_the_recipes_order(run, tmp_path):
    """A second branch off the source, and rows that the last stage cuts."""
    graded = tmp_path / "z"
    graded.mkdir()
    for name in ("problems.jsonl", "rollouts.jsonl"):
        shutil.copy(run / "artifacts/verified" / name, graded) if (run / "artifacts/verified" / name).exists() else (
            shutil.copy(run / "artifacts/rated" / name, graded)
        )
    (tmp_path / "r.yaml").write_text(BRANCHES.format(z=graded, base=run.parent / "base"))
    commands.run(tmp_path / "r.yaml", tmp_path / "out", [], None, None)
    told = why("long", tmp_path / "out")
    assert [step["stage"] for step in told["steps"]] == ["z", "unique", "measured", "easy", "tok"]
    assert told["outcome"] == "chosen by easy, removed by tok"
    assert told["steps"][2]["set"].keys() == {"solve_rate", "meta.solve_rate"}
    assert why("long#0", tmp_path / "out")["problem"] == "long"


def test_both_pairs_of_a_problem_are_known(tmp_path):
    """One too long for the training, the other trained on."""
    stage, later = (
        SimpleNamespace(name=name, op=op, directory=tmp_path / name, metrics={})
        for name, op in (("pp", "pairs"), ("flash", "prefer"))
    )
    for one, file, rows in (
        (stage, "pairs.jsonl", [{"id": f"p#0>{i}", "problem_id": "p", "lineage": {}} for i in (1, 2)]),
        (later, "removed.jsonl", [{"id": "p#0>1", "reason": "too long"}]),
    ):
        one.directory.mkdir()
        write_rows(one.directory / file, rows)
    found = [mention(one, "p") for one in (stage, later)]
    assert _step(found[0], [])["more"] == [{"training_row": "p#0>2", "number": 2}]
    assert _step(found[1], found[:1])["did"] == "trained on"
    write_rows(later.directory / "removed.jsonl", [{"id": f"p#0>{i}", "reason": "too long"} for i in (1, 2)])
    assert _step(mention(later, "p"), found[:1])["did"] == "left out"


@pytest.mark.parametrize(("row", "told"), [
    ("peer7", "no stage has a row 'peer7'; the nearest are pear7, pear5, pear6"),
    ("pear7#9", "pear7 has no chain 'pear7#9'; its chains are pear7#0, pear7#1, pear7#2, pear7#3"),
    ("", "no stage has a row ''"),
])  # fmt: skip
def test_an_unknown_row_is_one_line_with_the_nearest(run, row, told):
    with pytest.raises(InputError, match=re.escape(told)) as caught:
        why(row, run)
    assert "\n" not in str(caught.value)


def test_the_run_is_found_where_there_is_only_one(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run)
    assert why("all")["run"] == "."
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="why: name the RUN to look in: there is none in runs"):
        why("all")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "one").symlink_to(run)
    assert why("all")["outcome"] == "trained on by part; exported by files"
    (tmp_path / "runs" / "two").symlink_to(run)
    with pytest.raises(InputError, match=r"one of runs/one, runs/two"):
        why("all")


# ------------------------------------------------------------------------------ data card


def test_the_card_of_a_run_is_of_what_it_trains_on(run):
    card = (run / "data_card.md").read_text()
    for told in (
        "4 rows, from mixed.",
        "| apples | MIT | 2 |",
        "By licence: MIT 2, unknown 2.",
        "By part of the mixture: easy 2, middle 2.",
        "**2 rows have no stated licence**",
        "| math/1 | text | 4 |",
        "Mean solve rate of the base model: 75.0%, over 4 rows that have one.",
        "| mixed | mix | ",
        "recipe: fruit",
    ):
        assert told in card, told
    assert re.search(r"^\| clean \| .*market.* \| 1 \|$", card, re.MULTILINE)
    assert "eval_base" not in card.partition("## How to make it again")[0], "only what the rows came through"
    before = hash_file(run / "data_card.md")
    report.write(run)
    assert hash_file(run / "data_card.md") == before


def test_an_export_is_published_with_its_card(run):
    folder, artifact = run / "data" / "files", run / "artifacts" / "files"
    assert {"messages.parquet", "verl.parquet", "lineage.jsonl", "data_card.md"} <= {p.name for p in folder.iterdir()}
    assert (folder / "messages.parquet").samefile(artifact / "messages.parquet")
    card = (folder / "data_card.md").read_text()
    assert (
        "Files: `lineage.jsonl`, `messages.parquet` (4 rows), `verl.parquet` (4 rows)." in card
        and "4 rows, from mixed." in card
    )
    assert "data_card.md" not in read_manifest(artifact)["files"]


def test_an_export_of_rows_that_are_gone_is_left_as_it_was_published(run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    before = hash_path(copy / "data")
    shutil.rmtree(copy / "artifacts" / "mixed")
    report.write(copy)
    assert hash_path(copy / "data") == before


def test_the_certificate_is_bound_into_the_card_and_lies_beside_the_data(run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    certificate = {
        "version": 1,
        "problems": {"read": 8, "removed": 1, "kept": 7},
        "kept_sha256": "ab" * 32,
        "benchmarks": [
            {"name": "market", "problems": 1, "sha256": "cd" * 32, "removed": 1, "by_rule": {"similar": 1}, "rows": []}
        ],
    }
    (copy / "artifacts/clean/certificate.json").write_text(json.dumps(certificate))
    manifest = read_manifest(copy / "artifacts/clean")
    manifest["files"]["certificate.json"] = {"size": 1, "sha256": "ef" * 32}
    write_json(copy / "artifacts/clean/manifest.json", manifest)
    report.write(copy)
    for card in (copy / "data_card.md", copy / "data/files/data_card.md"):
        text = card.read_text()
        assert f"kept 7 (SHA-256 of what it kept: `{'ab' * 32}`)" in text
        assert f"| market | 1 | 1 | similar 1 | {'cd' * 8} |" in text and "ef" * 32 in text
    assert json.loads((copy / "data/files/clean.certificate.json").read_text()) == certificate


def test_rows_exported_by_hand_keep_the_story_of_their_run(run, tmp_path):
    rows = run / "artifacts" / "mixed"
    commands.by_hand("export", None, tmp_path / "out", [f"rows={rows}", "formats=[sharegpt]"])
    card = (tmp_path / "out/data/export/data_card.md").read_text()
    assert "# fruit: mixed as sharegpt" in card and "4 rows, from mixed." in card and "| clean | " in card
    assert json.loads((tmp_path / "out/data/export/sharegpt.json").read_text())[0]["conversations"]


def test_what_no_format_has_a_place_for_is_not_told_of(run, tmp_path):
    rows = tmp_path / "rows"
    rows.mkdir()
    for name in ("problems.jsonl", "examples.jsonl"):
        shutil.copy(run / "artifacts/mixed" / name, rows)
    problems = [json.loads(line) for line in (rows / "problems.jsonl").read_text().splitlines()]
    write_rows(rows / "problems.jsonl", [{**problems[0], "gold": None}, *problems[1:]])
    lost = problems[0]["id"]
    commands.by_hand("export", None, tmp_path / "one", [f"rows={rows}", "formats=[verl]"])
    card = (tmp_path / "one/data/export/data_card.md").read_text()
    assert "3 rows, from " in card and "`verl.parquet` (3 rows)" in card
    assert (
        why(lost, tmp_path / "one")["outcome"].startswith("chosen by")
        and "removed by" in why(lost, tmp_path / "one")["outcome"]
    )
    commands.by_hand("export", None, tmp_path / "two", [f"rows={rows}", "formats=[messages,verl]"])
    assert "4 rows, from " in (tmp_path / "two/data/export/data_card.md").read_text()
    assert why(lost, tmp_path / "two")["outcome"] == "exported by export"
    assert steps(tmp_path / "two", lost)["export"]["aside"] == [{"row": lost, "reason": "verl: no gold answer"}]


def test_a_run_that_chose_nothing_has_no_card(run, tmp_path):
    commands.run(run.parent / "recipe.yaml", tmp_path / "run", [], None, "rated")
    assert not (tmp_path / "run/data_card.md").exists()
    commands.run(run.parent / "recipe.yaml", tmp_path / "run", [], None, "mixed")
    card = (tmp_path / "run/data_card.md").read_text()
    assert "4 rows, from mixed." in card
