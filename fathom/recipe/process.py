"""The runner's end of its worker: start it, hand it a job, hear of progress, see how it ended.

One worker serves a whole run (see `fathom/recipe/worker.py`). This module knows nothing of
artifacts or money.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fathom.errors import BudgetStop, FathomError, InputError, WorkError

_ERRORS: dict[str, type[FathomError]] = {"InputError": InputError, "WorkError": WorkError, "BudgetStop": BudgetStop}

_QUIET_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "TOKENIZERS_PARALLELISM": "false"}
"""Idle OpenMP threads sleep instead of spinning (on 2 cores spinning costs about a third); what the user set stays."""


class StageCrash(Exception):
    """A bug in a stage: carries the traceback of its process."""


@dataclass(frozen=True)
class Ended:
    """What a stage's process returned and used. cpu_seconds: its own and its children's."""

    metrics: dict[str, Any]
    cpu_seconds: float
    peak_bytes: int


class Worker:
    """A worker process that is started when the first job comes."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._events = -1
        self._buffer = b""

    def run(
        self,
        job: dict[str, Any],
        on_progress: Callable[[int, int, str], None],
        on_show: Callable[[list[list[str]]], None],
        on_tick: Callable[[], None],
        interval: float,
    ) -> Ended:
        """Run one job to its end; calls on_tick about every `interval` seconds.

        Raises what the stage raised (InputError, WorkError, BudgetStop), StageCrash for a bug, and
        WorkError when the process died.
        """
        self._start()
        self._process.stdin.write((json.dumps(job) + "\n").encode())
        self._process.stdin.flush()
        metrics, failure = None, None
        for event in self._hear(on_tick, interval):
            if "progress" in event:
                on_progress(*event["progress"])
            elif "show" in event:
                on_show(event["show"])
            elif "metrics" in event:
                metrics = event["metrics"]
            elif "error" in event:
                failure = event["error"]
            elif failure:
                raise _raised(failure)
            elif metrics is None:
                raise WorkError(_death(job["stage"], event["ended"]))
            else:
                return Ended(metrics, event["cpu_seconds"], event["peak_bytes"])
        code = self._process.wait()
        raise WorkError(_death(job["stage"], code))

    def close(self) -> None:
        """End the worker and whatever runs in it."""
        if self._process is None:
            return
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdin.close()
        os.close(self._events)
        self._process = None

    def _start(self) -> None:
        if self._process is not None:
            return
        self._events, theirs = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fathom.recipe.worker", str(theirs), str(os.getpid())],
            stdin=subprocess.PIPE,
            pass_fds=[theirs],
            env={**_QUIET_THREADS, **os.environ, "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)},
            start_new_session=True,
        )
        os.close(theirs)

    def _hear(self, on_tick: Callable[[], None], interval: float) -> Iterator[dict[str, Any]]:
        """Yield events until the pipe is closed."""
        ticked = time.monotonic()
        while True:
            ready, _, _ = select.select([self._events], [], [], interval)
            if time.monotonic() - ticked >= interval:
                ticked = time.monotonic()
                on_tick()
            if not ready:
                continue
            piece = os.read(self._events, 1 << 16)
            if not piece:
                return
            *lines, self._buffer = (self._buffer + piece).split(b"\n")
            for line in lines:
                yield json.loads(line)


def _raised(failure: dict[str, str]) -> Exception:
    kind = _ERRORS.get(failure["kind"])
    return kind(failure["message"]) if kind else StageCrash(failure["message"])


def _death(stage: str, code: int) -> str:
    if code == -signal.SIGKILL:
        return f"{stage}: its process was killed (signal 9; the usual cause is that memory ran out)"
    if code < 0:
        return f"{stage}: its process died of signal {-code} ({signal.Signals(-code).name})"
    return f"{stage}: its process ended with status {code} and no result"
