"""Every declared corpus read from a snapshot in its own layout, and planned without touching the network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import httpx
import hub_snapshots as hub
import pytest
from huggingface_hub import HfFileSystem
from test_sources import run

from fathom.errors import InputError, WorkError
from fathom.records import Problem
from fathom.sources.corpora import CORPORA
from fathom.sources.rows import MAX_GOLD, MAX_QUESTION
from fathom.sources.stage import HOPELESS


def snapshot(name, tmp_path):
    """A snapshot with one row of the corpus (two of APPS), or one row per subset."""
    path = tmp_path / name
    if name in ("gsm8k", "math"):
        rows = {"gsm8k": {"main": [hub.GSM8K]}, "math": {subset: [hub.MATH] for subset in hub.MATH_SUBSETS}}[name]
        return hub.in_subsets(path, rows)
    if name == "apps":
        return hub.apps(path, [hub.APPS_STDIN, hub.APPS_CALL], "train")
    if name == "taco":
        return hub.taco(path, [hub.TACO])
    rows = {
        "openr1-math-220k": hub.OPENR1,
        "numinamath-1.5": hub.NUMINA,
        "numinamath-cot": hub.NUMINA_COT,
        "still-2": hub.STILL2,
    }
    return hub.in_data(path, [rows[name]])


STDIN_TESTS = [
    {"kind": "stdin", "input": "1 2\n", "expected": "3\n"},
    {"kind": "stdin", "input": "3 4", "expected": "7"},
]
SOLUTIONS = json.loads(hub.APPS_STDIN["solutions"])

FIRST = {
    "openr1-math-220k": Problem(
        "f1e2", "Compute $1+1$.", "2", source="olympiads", licence="Apache-2.0",
        meta={"problem_type": "Algebra", "question_type": "math-word-problem"},
    ),
    "numinamath-1.5": Problem(
        "numinamath-1.5-000001", "Find $x$.", "3", source="aops_forum", licence="Apache-2.0",
        meta={"problem_type": "Algebra", "question_type": "math-word-problem", "problem_is_valid": "Yes",
              "solution_is_valid": "Yes", "synthetic": False},
    ),
    "numinamath-cot": Problem(
        "numinamath-cot-000001", "Which is it?", r"\textbf{(B)}\ 12", source="amc_aime", licence="Apache-2.0"
    ),
    "apps": Problem(
        "apps-000001", "Print the sum of two numbers.", None, "code", "apps", "MIT", tests=STDIN_TESTS,
        meta={"starter_code": "", "difficulty": "interview", "url": "https://example.org/0", "solutions": SOLUTIONS},
    ),
    "taco": Problem(
        "taco-000001", "Print the sum of two numbers.", None, "code", "taco", "Apache-2.0", tests=STDIN_TESTS,
        meta={"starter_code": "", "difficulty": "MEDIUM", "url": "https://example.org/0", "source": "codeforces",
              "time_limit": "2.0 seconds", "solutions": SOLUTIONS},
    ),
    "still-2": Problem(
        "still-2-000001", hub.STILL2["question"], "B", source="still-2", licence="Apache-2.0", meta={"domain": "biology"}
    ),
    "gsm8k": Problem("gsm8k-000001", hub.GSM8K["question"], "1,003", source="gsm8k", licence="MIT"),
    "math": Problem(
        "math-000001", "What is $\\frac24$?", r"\frac12", source="math", licence="MIT",
        meta={"level": "Level 1", "type": "Algebra"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_in_its_own_layout(name, tmp_path):
    metrics, problems, _, removed = run(tmp_path, {"name": name, "path": snapshot(name, tmp_path)})
    assert problems[0] == FIRST[name]
    assert removed == []
    assert len(problems) == {"apps": 2, "math": 7}.get(name, 1)
    assert metrics["by_source"] == {name: len(problems)}
    assert metrics["licences"] == {CORPORA[name].spec.licence: len(problems)}


def test_functional_tests_keep_both_forms_of_their_outputs(tmp_path):
    source = {"name": "apps", "path": snapshot("apps", tmp_path), "where": {"difficulty": ["introductory"]}}
    _, (problem,), _, _ = run(tmp_path, source)
    assert problem.id == "apps-000002"
    assert problem.tests == [
        {"kind": "functional", "args": [2], "any_of": [[4], 4]},
        {"kind": "functional", "args": [3], "expected": 6},
    ]
    assert problem.meta["fn_name"] == "double"
    assert problem.meta["starter_code"].startswith("class Solution")


def test_still_2_is_its_science_and_puzzles_with_think_tags(tmp_path):
    rows = [{**hub.STILL2, "domain": domain} for domain in ("math", "puzzle", "code", "physics")]
    unboxed = {**hub.STILL2, "combined_text": "<|begin_of_thought|>?<|end_of_thought|>B"}
    path = hub.in_data(tmp_path / "still", [*rows, unboxed])
    metrics, problems, chains, removed = run(tmp_path, {"name": "still-2", "path": path})
    assert [p.meta["domain"] for p in problems] == ["puzzle", "physics"]
    assert chains[0].text == "<think>\n\nNot oxygen.\n\n</think>\n\n\n\nIt is \\boxed{B}."
    assert metrics["funnel"][:2] == [["rows read", 5], ["wanted by the sources' filters", 3]]
    assert [r["reason"] for r in removed] == ["no usable gold"]
    _, problems, _, _ = run(tmp_path, {"name": "still-2", "path": path, "where": {"domain": ["math"]}})
    assert [p.meta["domain"] for p in problems] == ["math"]


def test_one_corpus_named_twice_with_other_filters(tmp_path):
    """As Sky-T1 takes NuminaMath-CoT: rows have the same id by whatever filter they come."""
    kinds = ["amc_aime", "olympiads", "olympiads", "olympiads", "math"]
    rows = [{**hub.NUMINA_COT, "source": kind, "problem": f"q{i}"} for i, kind in enumerate(kinds)]
    corpus = {"name": "numinamath-cot", "path": hub.in_data(tmp_path / "cot", rows[:2], rows[2:])}
    metrics, problems, _, removed = run(
        tmp_path,
        {**corpus, "where": {"source": ["amc_aime", "math"]}},
        {**corpus, "where": {"source": ["olympiads"]}, "limit": 2},
        {**corpus, "where": {"source": ["olympiads"]}},
    )
    assert [p.question for p in problems] == ["q0", "q4", "q1", "q2", "q3"]
    assert metrics["by_source"] == {"numinamath-cot": 5}
    assert [(r["id"], r["reason"]) for r in removed] == [
        ("numinamath-cot-000002", "its id occurs twice"),
        ("numinamath-cot-000003", "its id occurs twice"),
    ]


def test_another_split_has_ids_of_its_own(tmp_path):
    path = tmp_path / "apps"
    hub.apps(path, [hub.APPS_STDIN], "train")
    hub.apps(path, [hub.APPS_CALL], "test")
    metrics, problems, _, _ = run(
        tmp_path, {"name": "apps", "path": str(path)}, {"name": "apps", "path": str(path), "split": "test"}
    )
    assert [p.id for p in problems] == ["apps-000001", "apps-test-000001"]
    assert metrics["by_source"] == {"apps": 1, "apps-test": 1}
    with pytest.raises(InputError, match=r"openr1-math-220k: has no split 'test'; there are: train"):
        run(tmp_path, {"name": "openr1-math-220k", "split": "test"})


def test_rows_of_a_json_lines_corpus_may_mix_types(tmp_path):
    """One column holds text, numbers, lists and nothing; only the rows that can't be read go."""
    odd = [{**hub.APPS_STDIN, "solutions": s} for s in ("", None, [], ["print(1)"], 7)]
    odd += [{**hub.APPS_STDIN, "input_output": i} for i in ("", "{", 7, {"inputs": ["1"], "outputs": []})]
    odd += [{**hub.APPS_STDIN, "url": 5}, ["not", "an", "object"]]
    metrics, problems, _, _ = run(tmp_path, {"name": "apps", "split": "test", "path": hub.apps(tmp_path / "apps", odd)})
    assert [p.meta.get("solutions") for p in problems] == [None, None, None, ["print(1)"], SOLUTIONS]
    assert metrics["set_aside"] == {
        "tests can't be read": 3,
        "solutions are not a list of programs": 1,
        "no tests": 1,
        "expected an object, got list": 1,
    }


def test_shards_of_one_corpus_may_differ_in_types_and_columns(tmp_path):
    shards = [[{**hub.NUMINA, "answer": 3}], [{**hub.NUMINA, "answer": "x=3"}], [{**hub.NUMINA, "answer": ["3"]}]]
    without = {key: value for key, value in hub.NUMINA.items() if key != "synthetic"}
    path = hub.in_data(tmp_path / "numina", *shards, [without], [hub.NUMINA])
    metrics, problems, _, removed = run(tmp_path, {"name": "numinamath-1.5", "path": path})
    assert [p.gold for p in problems] == ["3", "x=3", "3"]
    assert metrics["set_aside"] == {"gold is not text or a number": 1, "no column 'synthetic'": 1}
    assert removed[0]["where"] == f"{path}/data/train-00002-of-00005.parquet: row 1"


def test_a_snapshot_that_is_broken(tmp_path):
    path = tmp_path / "apps"
    hub.apps(path, [hub.APPS_STDIN], "test")
    with open(path / "test.jsonl", "a") as stream:
        stream.write('{"question": \n')
    with pytest.raises(InputError, match=r"apps/test\.jsonl:2: not JSON"):
        run(tmp_path, {"name": "apps", "split": "test", "path": str(path)})
    with pytest.raises(InputError, match="apps: "):
        run(tmp_path, {"name": "apps", "path": str(path)})
    parquet = tmp_path / "gsm8k" / "main" / "train-00000-of-00001.parquet"
    source = {"name": "gsm8k", "path": hub.in_subsets(tmp_path / "gsm8k", {"main": [hub.GSM8K] * 50})}
    parquet.write_bytes(parquet.read_bytes()[:-50])
    with pytest.raises(InputError, match="gsm8k: ") as caught:
        run(tmp_path, source)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------ the hub itself


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """A hub of one repository on this disk; returns what was asked of it."""
    asked = []
    hub.jsonl(tmp_path / "remote.jsonl", [hub.APPS_STDIN])
    hub.parquet(tmp_path / "remote.parquet", [hub.GSM8K])

    def build(place, subset=None, revision=None, data_files=None):
        url = data_files or f"hf://datasets/{place}@{revision}/{subset}/train.parquet"
        asked.append(url)
        return SimpleNamespace(config=SimpleNamespace(data_files={"train": [url]}))

    monkeypatch.setattr(datasets, "load_dataset_builder", build)
    monkeypatch.setattr(
        HfFileSystem, "open", lambda self, url, mode: open(tmp_path / f"remote.{url.split('.')[-1]}", mode)
    )
    return asked


def test_the_hub_is_asked_for_the_declared_revision_or_the_recipes(asked, tmp_path):
    _, problems, _, _ = run(tmp_path, {"name": "gsm8k"}, {"name": "apps"})
    assert [p.id for p in problems] == ["gsm8k-000001", "apps-000001"]
    run(tmp_path, {"name": "apps", "split": "test", "revision": "abc"})
    assert asked == [
        "hf://datasets/openai/gsm8k@740312add88f781978c0658806c59bc2815b9866/main/train.parquet",
        "hf://datasets/codeparrot/apps@21e74ddf8de1a21436da12e3e653065c5213e9d1/train.jsonl",
        "hf://datasets/codeparrot/apps@abc/test.jsonl",
    ]


def test_a_hub_out_of_reach_is_failed_work(asked, tmp_path, monkeypatch):
    def refuse(self, url, mode):
        raise httpx.ConnectError("no route to host")

    monkeypatch.setattr(HfFileSystem, "open", refuse)
    with pytest.raises(WorkError, match="openai/gsm8k: no route to host"):
        run(tmp_path, {"name": "gsm8k"})


# ------------------------------------------------------------------------------ plans and documents


def test_the_documents_table_is_the_declarations():
    text = (Path(__file__).parents[1] / "docs" / "sources.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")][1:5] for line in text.splitlines() if line.startswith("| `")]
    told = {name.strip("`"): (repo.split(",")[0], count.split(" ")[0], licence) for name, repo, count, licence in rows}
    assert told == {name: (c.repo, f"{c.rows['train']:,}", c.spec.licence) for name, c in CORPORA.items()}
    for limit in (MAX_QUESTION, MAX_GOLD, HOPELESS):
        assert f"{limit:,}" in text


PLAN = """
import json, socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("a plan asked the network")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from fathom.stages import OPS
from fathom.recipe.plan import make_plan
from fathom.recipe.schema import load_recipe
from fathom.estimates import forecast
from pathlib import Path
recipe = load_recipe(Path(sys.argv[1]), OPS, ())
told = forecast(recipe, make_plan(recipe, Path(sys.argv[2])))
assert "datasets" not in sys.modules, "a plan loaded datasets"
print(json.dumps({name: estimate["rows"] for name, estimate in told.items()}))
"""


def test_planning_all_corpora_asks_nobody(tmp_path):
    stages = {name.replace(".", "-"): {"op": "sources", "sources": [{"name": name}]} for name in CORPORA}
    stages["taco-medium"] = {"op": "sources", "sources": [{"name": "taco", "where": {"difficulty": ["MEDIUM"]}}]}
    stages["taco-test"] = {"op": "sources", "sources": [{"name": "taco", "split": "test"}]}
    cot = [
        {"name": "numinamath-cot", "where": {"source": [s]}, "limit": n}
        for s, n in (("amc_aime", 9999), ("olympiads", 20000))
    ]
    stages["cot"] = {"op": "sources", "sources": cot}
    stages["checked"] = {"op": "check_tests", "problems": "taco-medium"}
    (tmp_path / "all.yaml").write_text(json.dumps({"recipe": "all", "stages": stages}))
    done = subprocess.run(
        [sys.executable, "-c", PLAN, str(tmp_path / "all.yaml"), str(tmp_path / "run")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert rows["gsm8k"] == [7473, 7473, 7473]
    assert rows["cot"] == [24070, 24070, 24070]  # 4,072 + 20,000, to four digits
    assert rows["taco-medium"][2] == 3244
    assert rows["taco-test"][2] == 1000
    assert rows["still-2"][2] == 815
    assert 0 < rows["checked"][1] < rows["taco-medium"][1]
