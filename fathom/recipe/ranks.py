"""A stage in several processes, one per device: torchrun starts them and ends them together.

    python -m torch.distributed.run ... -m fathom.recipe.ranks JOB_FILE EVENTS_FIFO

Each runs the same job and finds its place in the environment (RANK, WORLD_SIZE). The first reports
progress, money and the result; the others only their errors. What they do together is the stage's
own business: nothing here knows of models.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fathom.recipe.worker import Events, attempt_job, die_with_parent

LONGEST_ERROR = 3000
"""Characters of an error message; a write to a pipe that others write to as well is whole up to 4,096 bytes."""
SIBLING_SECONDS = 3.0
"""How long a bug waits to be told; torchrun looks every 0.1 s whether a process died."""


def run_ranks(job: dict[str, Any], events: Events) -> int:
    """Run the job in `job["processes"]` processes and pass their events on; returns the exit status."""
    scratch = Path(job["scratch"])
    job_file, fifo = scratch / "job.json", scratch / "events"
    job_file.write_text(json.dumps(job), encoding="utf-8")
    fifo.unlink(missing_ok=True)
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

    A sibling's death looks like a bug of the exchange here, so a bug is told a little later: torchrun
    ends this process before that if a sibling died.
    """

    def send(self, **event: Any) -> None:
        if event.get("error", {}).get("kind") == "bug":
            time.sleep(SIBLING_SECONDS)
        if "error" in event or os.environ["RANK"] == "0":
            super().send(**event)


def main(job_file: str, fifo: str) -> int:
    die_with_parent(os.getppid())
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    events = _RankEvents(os.open(fifo, os.O_WRONLY), LONGEST_ERROR)
    return attempt_job(job, events, billed=os.environ["RANK"] == "0")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
