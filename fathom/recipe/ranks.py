"""A stage in several processes, one per device: torchrun starts them and ends them together.

    python -m torch.distributed.run ... -m fathom.recipe.ranks JOB_FILE EVENTS_FIFO

Each runs the same job and finds its place in the environment (RANK, WORLD_SIZE). The first reports
progress, money and the result; the others only their errors. What they do together is the stage's
own business: nothing here knows of models.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fathom.recipe.worker import Events, attempt_job, die_with_parent

LONGEST_ERROR = 3000
"""Characters of an error message; a write to a pipe that others write to as well is whole up to 4,096 bytes."""
ALIVE = "alive-"
"""Begins the names of the files that living processes hold locked, one each."""


def run_ranks(job: dict[str, Any], events: Events) -> int:
    """Run the job in `job["processes"]` processes and pass their events on; returns the exit status."""
    scratch = Path(job["scratch"])
    job_file, fifo = scratch / "job.json", scratch / "events"
    job_file.write_text(json.dumps(job), encoding="utf-8")
    for left in (fifo, *scratch.glob(f"{ALIVE}*")):
        left.unlink(missing_ok=True)
    os.mkfifo(fifo)
    pipe = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)  # for writing too, so that it never ends
    me, processes = os.getpid(), job["processes"]
    threads = str(max(1, len(os.sched_getaffinity(0)) // processes))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    torchrun = subprocess.Popen(
        [sys.executable, *command, "-m", "fathom.recipe.ranks", str(job_file), str(fifo)],
        env={"OMP_NUM_THREADS": threads, **os.environ},
        preexec_fn=lambda: die_with_parent(me),
    )
    failed = _relay(pipe, torchrun, events)
    if torchrun.returncode and not failed:
        message = f"{job['stage']}: one of its {processes} processes died; the same command resumes (see {job['log']})"
        events.send(error={"kind": "WorkError", "message": message})
    return 1 if torchrun.returncode else 0


def _relay(pipe: int, torchrun: subprocess.Popen, events: Events) -> bool:
    """Pass events on until torchrun has ended; of several errors the first. Returns whether there was one."""
    buffer, failed = b"", False
    while True:
        running = torchrun.poll() is None
        ready, _, _ = select.select([pipe], [], [], 0.1)
        if not ready and not running:
            return failed
        if not ready:
            continue
        *lines, buffer = (buffer + os.read(pipe, 1 << 16)).split(b"\n")
        for event in map(json.loads, lines):
            if "error" not in event or not failed:
                events.send(**event)
            failed |= "error" in event


class _RankEvents(Events):
    """What one of several processes tells: the first everything, the others only their errors.

    A sibling's death looks like a bug of the exchange here, and is left to the log: `run_ranks` tells of the death.
    """

    def __init__(self, descriptor: int, alive: Path):
        super().__init__(descriptor, LONGEST_ERROR)
        self._alive = alive

    def send(self, **event: Any) -> None:
        error = event.get("error", {})
        if error.get("kind") == "bug" and _sibling_died(self._alive):
            print(error["message"], file=sys.stderr)
        elif error or os.environ["RANK"] == "0":
            super().send(**event)


@contextmanager
def _held(alive: Path) -> Iterator[None]:
    """Hold the file locked until the block is left; the kernel lets go of it where the process dies before."""
    with alive.open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            alive.unlink()


def _sibling_died(alive: Path) -> bool:
    """Whether another process is gone without a word: its file is there, and nobody holds it locked."""
    for path in set(alive.parent.glob(f"{ALIVE}*")) - {alive}:
        with suppress(OSError), path.open("r+") as file:  # held, or just removed
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


def main(job_file: str, fifo: str) -> int:
    die_with_parent(os.getppid())
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    alive = Path(job["scratch"]) / f"{ALIVE}{os.environ['RANK']}"
    with _held(alive):
        return attempt_job(job, _RankEvents(os.open(fifo, os.O_WRONLY), alive), billed=os.environ["RANK"] == "0")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
