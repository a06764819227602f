"""What survives `kill -9` and Ctrl-C of a run: every finished stage and chunk, the bill, and no process."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import hashes

from fathom import store

KILL_GRAPH = """
recipe: kill
stages:
  numbers: {op: count, rows: 400}
  one:     {op: slow, rows: numbers, seconds: 0.6, chunks: 12, big_bytes: 3000000}
  two:     {op: slow, rows: numbers, seconds: 0.6, chunks: 12, threshold: 7}
  three:   {op: slow, rows: one, seconds: 0.6, chunks: 12}
  all:     {op: join, parts: [one, two, three]}
"""


def start(recipe: Path, out: Path) -> subprocess.Popen:
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    return subprocess.Popen(
        [sys.executable, str(here / "toy_stages.py"), str(recipe), str(out)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job of a shell without a terminal ignores it
    )  # fmt: skip


def children(pid: int) -> list[int]:
    """Processes that have `pid` as an ancestor."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
            parents[int(status.parent.name)] = int(fields[1])
        except OSError:
            continue
    found = [pid]
    for parent in found:
        found += [child for child, its in parents.items() if its == parent]
    return found[1:]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ten_kills_change_no_byte_and_bill_nothing_twice(tmp_path):
    recipe = tmp_path / "kill.yaml"
    recipe.write_text(KILL_GRAPH)
    calm = start(recipe, tmp_path / "calm")
    output, _ = calm.communicate()
    assert calm.returncode == 0, output
    moments = random.Random(20261122)
    finished: dict[str, int] = {}
    out = tmp_path / "killed"
    for _ in range(10):
        process = start(recipe, out)
        process.stdout.readline()  # the plan: from here on every moment is one of work
        time.sleep(moments.uniform(0.0, 0.8))
        descendants = children(process.pid)
        process.send_signal(signal.SIGKILL)
        process.communicate()  # closes the pipe
        deadline = time.monotonic() + 10
        while any(map(alive, descendants)):
            assert time.monotonic() < deadline, "a stage outlived the run that started it"
            time.sleep(0.01)
        for manifest in (out / "artifacts").glob("[!.]*/manifest.json"):
            attempt = store.read_json(manifest)["attempt"]
            assert finished.setdefault(manifest.parent.name, attempt) == attempt, "a finished stage was run again"
    last = start(recipe, out)
    output, _ = last.communicate()
    assert last.returncode == 0, output
    assert hashes(out) == hashes(tmp_path / "calm")
    assert not any((out / "scratch").iterdir())

    with contextlib.closing(sqlite3.connect(out / "ledger.sqlite")) as db:
        states = db.execute("select stage, state, count(*) from attempts group by stage, state").fetchall()
        chunks = db.execute(
            "select stage, sum(saved_calls), sum(calls) from tokens join attempts on id = attempt group by stage"
        )
        assert {stage: n for stage, state, n in states if state == "done"} == dict.fromkeys(
            ("numbers", "one", "two", "three", "all"), 1
        )
        assert {state for _, state, _ in states} <= {"done", "killed"}
        assert sum(n for _, state, n in states if state == "killed") >= 3, "the kills hit nothing"
        for stage, saved, counted in chunks:
            # A kill may fall between a chunk's file and the ledger's entry of it.
            assert 11 <= saved <= 13, f"{stage}: 12 chunks were needed, {saved} are billed as useful"
            assert counted <= 12 + 10


def test_ctrl_c_ends_the_stage_and_is_no_failure(tmp_path):
    recipe = tmp_path / "kill.yaml"
    recipe.write_text(KILL_GRAPH)
    process = start(recipe, tmp_path / "run")
    while "> one" not in process.stdout.readline():
        pass
    time.sleep(0.2)
    descendants = children(process.pid)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=10)
    assert "WorkError: one: interrupted; the same command resumes; not run: one, two, three, all" in output
    assert descendants
    assert not any(map(alive, descendants))
    with contextlib.closing(sqlite3.connect(tmp_path / "run/ledger.sqlite")) as db:
        assert db.execute("select stage, state from attempts order by id").fetchall() == [
            ("numbers", "done"),
            ("one", "stopped"),
        ]
