"""`fathom why ROW`, the data card and the published export, on one small run that has every kind of fate in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from models import write_model

from fathom import commands, report
from fathom.errors import InputError
from fathom.records import Rollout, read_jsonl
from fathom.report import why_text
from fathom.report.why import why
from fathom.store import hash_file, read_manifest

LEAK = "How many apples does Ann have when she buys 4 apples and then 9 apples more at the market in the town?"
RECIPE = """
recipe: fruit
models: {{base: "{folder}/base"}}
stages:
  problems:
    op: sources
    sources:
      - {{name: local, path: "{folder}/apples.jsonl", licence: MIT, chains: {{text: chains}}}}
      - {{name: local, path: "{folder}/pears.jsonl", chains: {{text: chains}}}}
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
        {"id": "long", "problem": "Sort out 12 of 20 apples: how many stay?", "answer": "8", "chains": chains(4, 8, True)},
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


def test_x(run):
    for row in ["all", "again", "leak", "none", "long", "pear5", "pear6", "pear7", "pear8", "market/1", "apples/all"]:
        try:
            print(why_text.describe(why(row, run)))
        except InputError as e:
            print("ERR", e)
    print((run / "data_card.md").read_text())
    print(sorted(p.name for p in (run / "data/files").iterdir()))
    print((run / "data/files/data_card.md").read_text()[:600])
    assert 0
