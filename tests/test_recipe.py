"""The runner over toy stages, in real processes: what runs, what is reused, and what survives `kill -9`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest
import toy_stages

from fathom import store
from fathom.errors import BudgetStop, InputError, WorkError
from fathom.ledger import Ledger
from fathom.recipe import worker
from fathom.recipe.process import StageCrash
from fathom.recipe.progress import PlainListener
from fathom.recipe.run import run_recipe
from fathom.recipe.schema import load_recipe
from fathom.stages import OPS

GRAPH = """
recipe: toy
seed: 3
stages:
  low:     {op: slow, rows: numbers, threshold: 2}
  numbers: {op: count, rows: 20}
  high:    {op: slow, rows: numbers, threshold: 9}
  all:     {op: join, parts: [low, high], named: {source: numbers}}
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(GRAPH)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The directory of one undisturbed run, for tests that copy it (a moved run stays finished: tested below)."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy.yaml").write_text(GRAPH)
    run(folder / "toy.yaml", folder / "run")
    return folder / "run"


def run(path: Path, out: Path, *sets: str, **options):
    return run_recipe(load_recipe(path, toy_stages.OPS, sets), out, PlainListener(), **options)


def hashes(run_dir: Path) -> dict[str, str]:
    """Every artifact file but the manifests, which hold wall-clock times."""
    return {
        str(path.relative_to(run_dir)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((run_dir / "artifacts").rglob("*"))
        if path.is_file() and path.name != store.MANIFEST
    }


# ------------------------------------------------------------------------------ what runs


def test_order_follows_from_the_inputs_and_the_run_is_written_down(recipe_file, tmp_path):
    outcome = run(recipe_file, tmp_path / "run")
    assert outcome.ran == ("numbers", "low", "high", "all")
    assert (tmp_path / "run/artifacts/all/rows.txt").read_text().splitlines()[:2] == ["250.0", "217.0"]
    assert [s["state"] for s in store.read_json(tmp_path / "run/plan.json")["stages"]] == ["to run"] * 4
    assert not any((tmp_path / "run/scratch").iterdir())
    assert (
        load_recipe(tmp_path / "run/recipe.yaml", toy_stages.OPS).stages
        == load_recipe(recipe_file, toy_stages.OPS).stages
    )


def test_a_second_run_does_nothing_and_changes_nothing(recipe_file, tmp_path, capsys):
    run(recipe_file, tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file() and "sqlite" not in p.name}
    outcome = run(recipe_file, tmp_path / "run")
    assert (outcome.ran, len(outcome.reused)) == ((), 4)
    after = {p: p.stat().st_mtime_ns for p in before}
    del before[tmp_path / "run/.lock"], after[tmp_path / "run/.lock"]
    assert after == before
    assert capsys.readouterr().out.count("finished already") == 4


CHANGES = [
    (["low.threshold=4"], ("low", "all")),
    (["numbers.rows=21"], ("numbers", "low", "high", "all")),
    (["seed=4"], ("numbers", "low", "high", "all")),
    (["all.parts=[high, low]"], ("all",)),
    (["numbers.workers=5", "low.device=gpu"], ()),
    (["budget.usd=5"], ()),
    (["high.threshold=9.0"], ()),
]


@pytest.mark.parametrize(("sets", "expected"), CHANGES, ids=[" ".join(sets) for sets, _ in CHANGES])
def test_a_change_reruns_exactly_what_depends_on_it(recipe_file, finished, tmp_path, sets, expected):
    shutil.copytree(finished, tmp_path / "run")
    assert run(recipe_file, tmp_path / "run", *sets).ran == expected


def test_an_input_file_counts_by_content_not_by_name_or_time(recipe_file, tmp_path):
    data, copy = tmp_path / "a.txt", tmp_path / "b.txt"
    data.write_text("0")
    copy.write_text("0")
    assert run(recipe_file, tmp_path / "run", f"numbers.file={data}").ran[0] == "numbers"
    os.utime(data, (1, 1))
    assert run(recipe_file, tmp_path / "run", f"numbers.file={data}").ran == ()
    assert run(recipe_file, tmp_path / "run", f"numbers.file={copy}").ran == ()
    copy.write_text("1")
    store.hash_path.cache_clear()  # what a new process starts with
    assert run(recipe_file, tmp_path / "run", f"numbers.file={copy}").ran == ("numbers", "low", "high", "all")


@pytest.mark.parametrize("harm", ["truncate", "flip", "delete", "manifest"])
def test_a_damaged_artifact_is_made_again_and_equal_bytes_spare_the_rest(recipe_file, finished, tmp_path, harm):
    shutil.copytree(finished, tmp_path / "run")
    before = hashes(tmp_path / "run")
    target = tmp_path / "run/artifacts/numbers" / (store.MANIFEST if harm == "manifest" else "rows.txt")
    content = target.read_bytes()
    if harm == "truncate":
        target.write_bytes(content[:-3])
    elif harm == "delete":
        target.unlink()
    else:
        target.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    outcome = run(recipe_file, tmp_path / "run")
    assert outcome.ran == ("numbers",)
    assert hashes(tmp_path / "run") == before


def test_a_moved_run_stays_finished(recipe_file, tmp_path):
    run(recipe_file, tmp_path / "run")
    os.rename(tmp_path / "run", tmp_path / "elsewhere")
    assert run(recipe_file, tmp_path / "elsewhere").ran == ()


def test_a_resumed_plan_keeps_what_was_expected_of_finished_stages(recipe_file, tmp_path):
    for price, until in ((1.0, "low"), (2.0, None)):
        expected = {"usd": [0.0, price, price]}
        run(
            recipe_file,
            tmp_path / "run",
            until=until,
            forecast=lambda steps, e=expected: {s.stage.name: e for s in steps},
        )
    plan = store.read_json(tmp_path / "run/plan.json")
    assert [stage["expected"]["usd"][1] for stage in plan["stages"]] == [1.0, 1.0, 2.0, 2.0]


def test_until_runs_a_stage_and_what_it_needs(recipe_file, tmp_path):
    assert run(recipe_file, tmp_path / "run", until="high").ran == ("numbers", "high")
    assert run(recipe_file, tmp_path / "run").ran == ("low", "all")
    with pytest.raises(InputError, match="no stage is called 'hihg'; did you mean 'high'"):
        run(recipe_file, tmp_path / "run", until="hihg")


def test_what_was_made_elsewhere_is_taken_in(tmp_path):
    model = tmp_path / "base"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_text("weights")
    path = tmp_path / "r.yaml"
    path.write_text(
        f"recipe: m\nstages:\n  copy: {{op: given, path: {model}}}\n  use: {{op: join, parts: [], model: copy}}\n"
    )
    recipe = load_recipe(path, {**toy_stages.OPS, "given": OPS["given"]})
    run_recipe(recipe, tmp_path / "run", PlainListener())
    assert (tmp_path / "run/artifacts/use/model.txt").read_text() == "config.json\nmanifest.json\nmodel.safetensors"
    assert run_recipe(recipe, tmp_path / "run", PlainListener()).ran == ()


def test_a_stage_that_is_no_model_is_refused_as_one(recipe_file, tmp_path):
    with pytest.raises(InputError, match=r"stage 'all'.*not a model directory"):
        run(recipe_file, tmp_path / "run", "all.model=numbers")


# ------------------------------------------------------------------------------ wrong recipes

WRONG = [
    ("numbers.op=coutn", "unknown op 'coutn'; did you mean 'count'?"),
    ("low.treshold=1", "stage 'low': unknown key 'treshold'; did you mean 'threshold'?"),
    ("low.threshold=high", "stage 'low': threshold: expected a valid number"),
    ("low.rows=nubmers", "no stage is called 'nubmers'; did you mean 'numbers'?"),
    ("low.rows=all", "the stages form a cycle: "),
    ("final=al", "final: no stage is called 'al'; did you mean 'all'?"),
    ("all.model=bas", "no stage or model is called 'bas'"),
    ("numbers.file=nowhere.txt", "stage 'numbers': nowhere.txt: no such file"),
    ("sed=1", "nothing is called 'sed'; did you mean 'seed'?"),
    ("budget.usd=-1", "budget.usd: expected greater than 0"),
    ("models.low=x/y", "'low' is both a stage and an entry of models"),
    ("stages.a/b.op=count", "a stage's name is a directory's name"),
]


@pytest.mark.parametrize(("assignment", "expected"), WRONG, ids=[a for a, _ in WRONG])
def test_a_wrong_recipe_is_one_line_and_starts_nothing(recipe_file, tmp_path, assignment, expected):
    with pytest.raises(InputError) as caught:
        run(recipe_file, tmp_path / "run", assignment)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


NO_MODEL = [
    ("{here}/nothing", "no such directory, and not a hub name"),
    ("toy-runs/nothing", "toy-runs/nothing: no such directory"),
    ("embedded:unheard-of", "no model 'embedded:unheard-of' is shipped with Fathom"),
    ("{here}/toy.yaml", "not a model directory (it is a file)"),
    ("{here}", "not a model directory (no config.json)"),
]


@pytest.mark.parametrize(("spec", "expected"), NO_MODEL)
def test_a_model_that_is_none_is_refused_before_anything_runs(recipe_file, tmp_path, monkeypatch, spec, expected):
    (tmp_path / "toy-runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        run(recipe_file, tmp_path / "run", f"models.base={spec.format(here=tmp_path)}", "all.model=base")
    assert expected in str(caught.value)
    assert not (tmp_path / "run/artifacts").exists()


# ------------------------------------------------------------------------------ stages that fail


def with_failure(recipe_file, how: str) -> Path:
    path = recipe_file.with_name("fail.yaml")
    path.write_text(
        f"extends: {recipe_file.name}\nstages:\n  bad: {{op: fail, how: {how}}}\n  all: {{parts: [low, bad]}}\n"
    )
    return path


FAILURES = [
    ("input", InputError, "bad: no problem is left after filtering"),
    ("killed", WorkError, "bad: its process was killed (signal 9"),
    ("metrics", WorkError, "bad: the stage returned NoneType, expected a dict of metrics"),
    ("bug", StageCrash, "ZeroDivisionError: a bug"),
]


@pytest.mark.parametrize(("how", "kind", "expected"), FAILURES, ids=[how for how, _, _ in FAILURES])
def test_a_failure_is_told_billed_and_leaves_what_is_finished(recipe_file, tmp_path, how, kind, expected):
    with pytest.raises(kind) as caught:
        run(with_failure(recipe_file, how), tmp_path / "run")
    assert expected in str(caught.value)
    assert {p.name for p in (tmp_path / "run/artifacts").iterdir() if not p.name.startswith(".")} == {
        "numbers",
        "low",
        "high",
    }
    ledger = Ledger(tmp_path / "run/ledger.sqlite")
    assert {line.stage: line.state for line in ledger.bill()}["bad"] == "failed"
    ledger.close()
    assert run(recipe_file, tmp_path / "run").ran == ("all",)


def test_what_a_stage_prints_goes_to_its_log(recipe_file, tmp_path, capfd):
    run(with_failure(recipe_file, "noise"), tmp_path / "run", until="bad")
    assert "printed by a stage" not in capfd.readouterr().out
    assert (tmp_path / "run/logs/bad.log").read_text() == "printed by a stage\n"


# ------------------------------------------------------------------------------ budget


def test_the_budget_stops_between_chunks_and_resuming_keeps_them(recipe_file, tmp_path):
    slow = ["low.seconds=4", "low.chunks=20", "hardware.device=h100"]  # 0.2 s and $0.00016 a chunk
    with pytest.raises(BudgetStop, match=r"low: stopped by the budget of \$0\.00.*not run: low, high, all"):
        run(recipe_file, tmp_path / "run", *slow, budget_usd=0.0015)
    assert 0 < chunks_of_low(tmp_path / "run") < 20
    assert (tmp_path / "run/artifacts/numbers/rows.txt").exists()
    assert run(recipe_file, tmp_path / "run", *slow, budget_usd=1.0).ran == ("low", "high", "all")
    assert chunks_of_low(tmp_path / "run") == 20, "a chunk that was kept was made again"


def chunks_of_low(out: Path) -> int:
    """How many chunks all attempts of the stage `low` made."""
    with contextlib.closing(sqlite3.connect(out / "ledger.sqlite")) as db:
        return db.execute("select sum(calls) from tokens join attempts on id = attempt where stage = 'low'").fetchone()[
            0
        ]


def test_a_stage_that_cannot_fit_is_not_started(recipe_file, tmp_path):
    def forecast(steps):
        return {
            step.stage.name: {"usd": [2.0, 3.0, 4.0] if step.stage.name == "high" else [0.0, 0.0, 0.0]}
            for step in steps
        }

    with pytest.raises(BudgetStop, match=r"high: not started.*at least \$2\.00; not run: high, all"):
        run(recipe_file, tmp_path / "run", budget_usd=1.0, forecast=forecast)
    assert run(recipe_file, tmp_path / "run").reused == ("numbers", "low")


@pytest.mark.parametrize("stages", ["", "stages:\n"])
def test_a_setting_for_a_recipe_without_stages(tmp_path, stages):
    (tmp_path / "r.yaml").write_text(f"recipe: r\n{stages}")
    with pytest.raises(InputError, match=r"r\.yaml: expected a mapping 'stages'"):
        load_recipe(tmp_path / "r.yaml", OPS, ["foo=1"])


def test_a_budget_needs_a_price(recipe_file, tmp_path):
    with pytest.raises(InputError, match="a budget needs a price for the device 'abacus'"):
        run(recipe_file, tmp_path / "run", "hardware.device=abacus", budget_usd=1.0)


def test_two_runs_at_once(recipe_file, tmp_path):
    with store.locked(tmp_path / "run"), pytest.raises(InputError, match="another run is at work here"):
        run(recipe_file, tmp_path / "run")
    assert run(recipe_file, tmp_path / "run").ran == ("numbers", "low", "high", "all")


# ------------------------------------------------------------------------------ disk full


@pytest.fixture
def small_disk(tmp_path):
    """A 4 MiB tmpfs."""
    disk = tmp_path / "small"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_disk_full_is_one_line_and_costs_no_finished_work(recipe_file, small_disk):
    run(recipe_file, small_disk / "run", until="low")
    before = hashes(small_disk / "run")
    with pytest.raises(InputError) as caught:
        run(recipe_file, small_disk / "run", "high.big_bytes=9000000")
    assert "disk full" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert hashes(small_disk / "run").items() >= before.items()
    assert run(recipe_file, small_disk / "run").ran == ("high", "all")


def test_nothing_is_imported_before_the_fork_where_there_is_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(worker, "GPU_NODES", (str(tmp_path / "absent"),))
    assert worker.preloaded({"preload": ["torch"]}) == ["torch"]
    monkeypatch.setattr(worker, "GPU_NODES", (str(tmp_path),))
    assert worker.preloaded({"preload": ["torch"]}) == []
