"""Problems that stay on disk: a problems.jsonl read by chunks, by row, and copied by row.

A corpus of a million problems is a few gigabytes as Python objects; as a file with one offset per row
it is eight bytes a problem. `map_chunks` runs a function over the chunks, in other processes where
there are enough of them; results come back in order, so they don't depend on how many.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fathom.errors import InputError
from fathom.records import Problem, from_dict, parse_line

CHUNK = 5_000
"""Problems per chunk: some megabytes of Python objects at a time."""
WORTH_A_PROCESS = 20_000
"""Fewer problems are done before a process has started."""

Result = TypeVar("Result")
Progress = Callable[[int, int], None]
"""Called with (done, total)."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a file: cheap to send to another process, read where it is used."""

    path: Path
    start: int
    stop: int

    def problems(self) -> list[Problem]:
        with open(self.path, "rb") as stream:
            stream.seek(self.start)
            lines = stream.read(self.stop - self.start).split(b"\n")
        return [from_dict(Problem, json.loads(line)) for line in lines if line.strip()]


class Corpus(Sequence[Problem]):
    """The problems of one file; `corpus[row]` reads that row. ids: of all rows, in order.

    Opening reads the file once, strictly. Raises InputError naming the line of a row that is no
    problem, or whose id occurred before.
    """

    def __init__(self, path: Path):
        self.path = path
        self.ids: list[str] = []
        self._starts = array("q")
        self._ends = array("q")
        self._read()
        self._stream = open(path, "rb")

    def _read(self) -> None:
        seen: set[str] = set()
        end = 0
        try:
            stream = open(self.path, "rb")
        except FileNotFoundError:
            raise InputError(f"{self.path}: no such file") from None
        with stream:
            for number, line in enumerate(stream, 1):
                start, end = end, end + len(line)
                if not line.strip():
                    continue
                where = f"{self.path}:{number}"
                problem = from_dict(Problem, parse_line(line, where), where)
                if problem.id in seen:
                    raise InputError(f"{where}: problem id {problem.id!r} occurs a second time")
                seen.add(problem.id)
                self.ids.append(problem.id)
                self._starts.append(start)
                self._ends.append(end)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> Problem:  # type: ignore[override]
        return from_dict(Problem, json.loads(self._line(row)))

    def __enter__(self) -> Corpus:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def chunks(self, size: int) -> Iterator[Chunk]:
        for first in range(0, len(self), size):
            last = min(first + size, len(self)) - 1
            yield Chunk(self.path, self._starts[first], self._ends[last])

    def copy_without(self, removed: set[int], to: Path) -> None:
        """Write the other rows, byte for byte."""
        with open(to, "wb") as stream:
            for row in range(len(self)):
                if row not in removed:
                    stream.write(self._line(row).rstrip(b"\r\n") + b"\n")

    def _line(self, row: int) -> bytes:
        self._stream.seek(self._starts[row])
        return self._stream.read(self._ends[row] - self._starts[row])


def row_ids(problems: Sequence[Problem]) -> list[str]:
    """The ids of all rows, in order."""
    return problems.ids if isinstance(problems, Corpus) else [problem.id for problem in problems]


def map_chunks(
    work: Callable[[list[Problem]], Result],
    problems: Sequence[Problem],
    workers: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Result]:
    """`work` of every chunk of `CHUNK` problems, in order.

    workers: processes (None: one per processor); fewer than `WORTH_A_PROCESS` problems, or problems
    that are in memory already, are worked here. `work` must be picklable and depend on its chunk alone.
    progress: called with the problems done and all problems.
    """
    workers = workers or len(os.sched_getaffinity(0))
    if not isinstance(problems, Corpus):
        results = (work(list(problems[first : first + CHUNK])) for first in range(0, len(problems), CHUNK))
    elif workers == 1 or len(problems) < WORTH_A_PROCESS:
        results = (work(chunk.problems()) for chunk in problems.chunks(CHUNK))
    else:
        results = _in_processes(work, problems, workers)
    for number, result in enumerate(results, 1):
        if progress:
            progress(min(number * CHUNK, len(problems)), len(problems))
        yield result


def _in_processes(work: Callable[[list[Problem]], Result], problems: Corpus, workers: int) -> Iterator[Result]:
    """Started afresh rather than forked: this process may have threads. Few results wait at a time."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _set_work, (work,)) as pool:
        waiting: deque[Future[Result]] = deque()
        for chunk in problems.chunks(CHUNK):
            waiting.append(pool.submit(_run, chunk))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


_work: Callable[[list[Problem]], Any]
"""What this worker process does; handed over once, because it may hold an index of all benchmarks."""


def _set_work(work: Callable[[list[Problem]], Any]) -> None:
    global _work
    _work = work


def _run(chunk: Chunk) -> Any:
    return _work(chunk.problems())
