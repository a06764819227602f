"""Who works on independent parts: this process (`Here`), others of this machine (`Processes`), or a Ray cluster (`RayCrew`).

A part is worked by a pure function of that part, so what comes back is the same bytes wherever it ran. Files,
money and order stay with the caller. Not a scheduler and not a cache: parts are dealt to whoever is
free. On Ray a part whose worker died is dealt again; a process of this machine that is killed ends the work.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import re
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Protocol, TypeVar

from pydantic import Field, field_validator

import fathom
from fathom.config import StageConfig
from fathom.errors import FathomError, InputError, WorkError

Part = TypeVar("Part")
Result = TypeVar("Result")

TRIES = 3
"""Workers that one part may take with it, or that may fail to start in a row."""
WORTH_PROCESSES = 4
"""Fewer parts are done before a process has started."""
OBJECT_STORE = 512 << 20
"""Bytes of shared memory of a cluster that is started here; parts and results on their way, larger ones go to disk."""
CONNECT_SECONDS = 5.0
LONGEST_REASON = 300
"""Characters of what Ray says of a death, which it says at length."""
SAME_ENVIRONMENT = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "TOKENIZERS_PARALLELISM")
"""Variables that workers have as this process has them: another number of threads may round sums otherwise."""

_log = logging.getLogger(__name__)


class Crew(Protocol):
    """Works on parts."""

    def map(self, work: Callable[[Part], Result], parts: Iterable[Part]) -> Iterator[tuple[int, Result]]:
        """(position, `work` of the part there), as they finish; parts are taken when there is someone to work on them."""
        ...


class Here:
    """This process, one part after the other."""

    def map(self, work: Callable[[Part], Result], parts: Iterable[Part]) -> Iterator[tuple[int, Result]]:
        for position, part in enumerate(parts):
            yield position, work(part)


def in_order(results: Iterable[tuple[int, Result]]) -> Iterator[Result]:
    """Results by position; one that comes early waits."""
    early: dict[int, Result] = {}
    due = 0
    for position, result in results:
        early[position] = result
        while due in early:
            yield early.pop(due)
            due += 1


class Processes:
    """So many processes of this machine. Started afresh rather than forked: this one may have threads."""

    def __init__(self, count: int):
        self._count = count

    def map(self, work: Callable[[Part], Result], parts: Iterable[Part]) -> Iterator[tuple[int, Result]]:
        """See `Crew`. A few parts are worked here; results come in order, and few wait at a time."""
        parts = iter(parts)
        first = list(islice(parts, WORTH_PROCESSES))
        if len(first) < WORTH_PROCESSES:
            yield from Here().map(work, first)
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self._count, context, _set_work, (work,)) as pool:
            waiting: deque[tuple[int, Future[Result]]] = deque()
            try:
                for position, part in enumerate(chain(first, parts)):
                    waiting.append((position, pool.submit(_do_work, part)))
                    if len(waiting) > 2 * self._count:
                        position, oldest = waiting.popleft()
                        yield position, oldest.result()
                for position, left in waiting:
                    yield position, left.result()
            except BrokenProcessPool:
                raise WorkError(
                    f"one of {self._count} processes ended; if it was killed, memory may have run out: fewer `workers` need less"
                ) from None


_work: Callable[[Any], Any]
"""What this process of `Processes` does; handed over once, because it may hold an index of all benchmarks."""


def _set_work(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Nobody else ends these processes when theirs is killed."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _do_work(part: Any) -> Any:
    return _work(part)


class RayConfig(StageConfig):
    """`ray: {address: auto}`: work on a Ray cluster.

    address: "local" starts one on this machine for as long as the stage runs; "auto" is the one that this
    machine belongs to; "host:port" names one that it belongs to. workers: at most so many at once (default: one per
    processor of the cluster); an engine that runs a model has `replicas` instead.
    """

    address: str = "local"
    workers: int | None = Field(None, ge=1)

    @field_validator("address")
    @classmethod
    def _known_form(cls, value: str) -> str:
        if value not in ("auto", "local") and not re.fullmatch(r"[^:/\s]+:\d{1,5}", value):
            raise ValueError(
                'expected "auto", "local" or host:port (a driver outside the cluster, ray://, is not supported)'
            )
        return value


@contextlib.contextmanager
def open_crew(config: RayConfig | None, processes: int | None = 1) -> Iterator[Crew]:
    """The workers that a stage asks for. processes: of this machine, without a cluster (None: one per processor)."""
    if config is not None:
        with RayCrew(config, config.workers) as crew:
            yield crew
        return
    processes = processes or len(os.sched_getaffinity(0))
    yield Processes(processes) if processes > 1 else Here()


@dataclass
class _Task:
    position: int
    part: Any
    deaths: int = 0


class RayCrew:
    """Workers of a Ray cluster; they stay, with what they loaded, until the crew is closed.

    size: workers at most (None: one per processor). gpus: of each worker, where the cluster has any.
    Raises InputError where Ray isn't installed, its cluster can't be reached or no worker fits into it.
    """

    def __init__(self, config: RayConfig, size: int | None, gpus: int = 0):
        self._ray = ray = _import_ray()
        _connect(ray, config, size)
        total = ray.cluster_resources()
        cpus, there = int(total.get("CPU", 0)), int(total.get("GPU", 0))
        self.gpus = gpus if there else 0
        self._size = size or cpus
        if cpus < 1 or there < self.gpus:
            self.close()
            raise InputError(
                f"ray.address {config.address!r}: the cluster has {cpus} processors and {there} GPUs;"
                f" one worker needs 1 and {self.gpus}"
            )
        actor = ray.remote(_Hand).options(num_cpus=1, num_gpus=self.gpus, scheduling_strategy="SPREAD")
        same = {name: os.environ.get(name) for name in SAME_ENVIRONMENT}
        self._hire = lambda: actor.remote(os.getcwd(), same)
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}
        self._failed_starts = 0

    def __enter__(self) -> RayCrew:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, and the cluster if it was started here."""
        self._ray.shutdown()

    def map(self, work: Callable[[Part], Result], parts: Iterable[Part]) -> Iterator[tuple[int, Result]]:
        """See `Crew`. Raises what `work` raises, and WorkError for a part whose worker died `TRIES` times."""
        ray = self._ray
        reference = [ray.put(work)]
        tasks = (_Task(position, part) for position, part in enumerate(parts))
        queue: deque[_Task] = deque()
        busy: dict[Any, tuple[Any, _Task]] = {}
        try:
            while True:
                while len(queue) + len(busy) < self._size and (task := next(tasks, None)):
                    queue.append(task)
                if not queue and not busy:
                    return
                self._staff(len(queue), len(busy))
                while queue and self._idle:
                    hand, task = self._idle.pop(), queue.popleft()
                    busy[hand.work.remote(reference, task.part)] = hand, task
                (ended,), _ = ray.wait([*busy, *(self._starting if queue else ())], num_returns=1)
                if ended in self._starting:
                    self._welcome(ended)
                    continue
                hand, task = busy.pop(ended)
                try:
                    result = ray.get(ended)
                except ray.exceptions.RayTaskError as error:  # the worker is well, `work` raised
                    raise error.cause if isinstance(error.cause, FathomError) else error from None
                except ray.exceptions.RayError as error:
                    self._mourn(hand, task, error)
                    queue.appendleft(task)
                    continue
                self._idle.append(hand)
                yield task.position, result
        finally:
            for hand, _ in busy.values():
                ray.kill(hand)

    def _staff(self, waiting: int, busy: int) -> None:
        """Start workers for the parts that wait. One that finds no room in the cluster gets no part, and holds up none."""
        missing = min(waiting, self._size - busy) - len(self._idle) - len(self._starting)
        for _ in range(missing):
            hand = self._hire()
            self._starting[hand.version.remote()] = hand

    def _welcome(self, started: Any) -> None:
        """A worker has started, or could not."""
        hand = self._starting.pop(started)
        try:
            version = self._ray.get(started)
        except self._ray.exceptions.RayError as error:
            self._failed_starts += 1
            if self._failed_starts == TRIES:
                raise WorkError(f"ray: no worker starts ({_last_line(error)})") from None
            _log.warning("a worker did not start (%s); another one is asked for", _last_line(error))
            return
        if version != fathom.__version__:
            raise InputError(f"ray: a machine of the cluster has fathom {version}, this one {fathom.__version__}")
        self._failed_starts = 0
        self._idle.append(hand)

    def _mourn(self, hand: Any, task: _Task, error: Exception) -> None:
        """Count a part's dead workers; one whose result alone was lost is ended, so that none is left over."""
        task.deaths += 1
        self._ray.kill(hand)
        if task.deaths == TRIES:
            raise WorkError(f"ray: part {task.position} lost {TRIES} workers ({_last_line(error)})") from None
        _log.warning("a worker died (%s); part %d starts again", _last_line(error), task.position)


class _Hand:
    """What runs on a worker."""

    def __init__(self, directory: str, environment: dict[str, str | None]):
        """Make the surroundings those of the caller, before `work` loads what reads them (torch)."""
        with contextlib.suppress(OSError):  # another machine may not have the directory
            os.chdir(directory)
        for name, value in environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        self._reference: list[Any] = []

    def version(self) -> str:
        return fathom.__version__

    def work(self, reference: list[Any], part: Any) -> Any:
        """reference: of the function, in a list, so that Ray doesn't fetch it again for every part."""
        import ray

        if reference != self._reference:
            self._work, self._reference = ray.get(reference[0]), reference
        return self._work(part)


def _import_ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise InputError("ray: Ray is not installed; it comes with `pip install 'fathom[ray]'`") from None
    return ray


def _connect(ray: Any, config: RayConfig, size: int | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    own: dict[str, Any] = {}
    if config.address == "local":
        cores = len(os.sched_getaffinity(0))
        own = {"num_cpus": size or cores, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    try:
        if ":" in config.address:
            host, _, port = config.address.rpartition(":")
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        ray.init(config.address, logging_level=logging.WARNING, **own)
    except Exception as error:
        told = "can't be started" if own else "can't be reached"
        raise InputError(f"ray.address {config.address!r}: the cluster {told} ({_last_line(error)})") from None


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:LONGEST_REASON]
