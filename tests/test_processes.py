"""Processes of this machine that work for a stage: none outlives its runner, and a killed one is one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_recipe_kills import alive

from fathom.errors import WorkError
from fathom.fanout import Processes

RUNNER = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_processes import wait_long
from fathom.fanout import Processes
if __name__ == "__main__":
    list(Processes(2).map(wait_long, range(8)))
"""


def told(number: int) -> int:
    print(os.getpid(), flush=True)
    return number


def wait_long(number: int) -> int:
    told(number)
    time.sleep(600)
    return number


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_killed_process_is_one_line():
    with pytest.raises(WorkError, match="one of 2 processes ended; if it was killed, memory may have run out"):
        list(Processes(2).map(die, range(8)))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_processes_end_with_their_runner(tmp_path, number):
    (tmp_path / "runner.py").write_text(RUNNER)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    runner = subprocess.Popen(
        [sys.executable, str(tmp_path / "runner.py")], stdout=subprocess.PIPE, text=True, env=environment
    )
    pids = {int(runner.stdout.readline()) for _ in range(2)}
    assert len(pids) == 2 and all(map(alive, pids))
    runner.send_signal(number)
    runner.wait(60)
    deadline = time.monotonic() + 60
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, "they work on for nobody"
        time.sleep(0.05)
    runner.stdout.close()
