"""Problems that stay on disk: a problems.jsonl read by chunks, by row, and copied by row.

A corpus of a million problems is a few gigabytes as Python objects; as a file with one offset per row
it is eight bytes a problem. `map_chunks` runs a function over the chunks, wherever the crew works
(`fathom/fanout.py`); results come back in order, so they don't depend on who did what.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from fathom.errors import InputError
from fathom.fanout import Crew, Here, in_order
from fathom.records import Problem, from_dict, parse_line

CHUNK = 5_000
"""Problems per chunk: some megabytes of Python objects at a time."""

Result = TypeVar("Result")
Progress = Callable[[int, int], None]
"""Called with (done, total)."""


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

    def chunks(self, size: int) -> Iterator[bytes]:
        """Lines of `size` rows at a time: cheap to send to another process or machine, parsed where they are used."""
        for first in range(0, len(self), size):
            last = min(first + size, len(self)) - 1
            self._stream.seek(self._starts[first])
            yield self._stream.read(self._ends[last] - self._starts[first])

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
    crew: Crew | None = None,
    progress: Progress | None = None,
) -> Iterator[Result]:
    """`work` of every chunk of `CHUNK` problems, in order.

    crew: who works (default: this process); problems that are in memory already are worked here.
    `work` must be picklable and depend on its chunk alone. progress: called with the problems done and
    all problems.
    """
    if isinstance(problems, Corpus):
        results = (crew or Here()).map(partial(_on_lines, work), problems.chunks(CHUNK))
    else:
        results = Here().map(work, (list(problems[first : first + CHUNK]) for first in range(0, len(problems), CHUNK)))
    for number, result in enumerate(in_order(results), 1):
        if progress:
            progress(min(number * CHUNK, len(problems)), len(problems))
        yield result


def _on_lines(work: Callable[[list[Problem]], Result], lines: bytes) -> Result:
    return work([from_dict(Problem, json.loads(line)) for line in lines.split(b"\n") if line.strip()])
