"""Resumable work in chunks: each chunk's records are one file that is either whole or absent.

What runs per chunk is the caller's, on which machine the crew's (`fanout.py`). Not a cache: the folder belongs to one
stage and one content key, and is deleted when the stage finishes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fathom.fanout import Crew, Here
from fathom.records import read_jsonl, to_json

if TYPE_CHECKING:
    from fathom.ledger import Meter

Item = TypeVar("Item")
Record = TypeVar("Record")


def digest(*parts: Any) -> str:
    """16 hex digits that name a piece of work: equal parts, equal name."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()[:16]


def draw(*parts: Any) -> float:
    """A uniform number in [0, 1) that depends on the parts alone: a seeded choice without a generator's state."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:7], "big") / 2**56


def run_chunks(
    items: Sequence[Item],
    size: int,
    folder: Path,
    work: Callable[[Sequence[Item]], list[Record]],
    record: type[Record],
    meter: Meter,
    note: str = "",
    *,
    crew: Crew | None = None,
    bill: Callable[[list[Record]], None] = lambda records: None,
) -> list[Record]:
    """Map `work` over fixed slices of `items`; each result is saved before its worker's next slice starts.

    A slice whose file exists is read back instead of being worked again, so a killed process
    repeats at most the slices that were at work, one per worker. `folder` must name the work (see `digest`): it is trusted.
    crew: who works (default: this process). bill: called, here, with what a slice brought.
    Raises BudgetStop, through `meter.check()`, before a slice that can't be paid; others that are at work then end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {start: folder / f"{start:08d}.jsonl" for start in range(0, len(items), size)}
    results = {start: list(read_jsonl(path, record)) for start, path in paths.items() if path.exists()}
    left = [start for start in paths if start not in results]

    def parts() -> Iterator[Sequence[Item]]:
        for start in left:
            meter.check()
            yield items[start : start + size]

    done = len(items) - sum(min(size, len(items) - start) for start in left)
    if done:
        meter.progress(done, len(items), note)
    for position, records in (crew or Here()).map(work, parts()):
        start = left[position]
        bill(records)
        write_whole(paths[start], "".join(to_json(r) + "\n" for r in records))
        meter.saved()
        results[start] = records
        done += min(size, len(items) - start)
        meter.progress(done, len(items), note)
    return [r for start in paths for r in results[start]]


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is complete and on disk, or absent, whatever happens."""
    partial = path.with_suffix(".part")
    with open(partial, "w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.rename(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write plain rows as JSON Lines, keys in their own order; returns how many."""
    count = 0
    with open(path, "w", encoding="utf-8", newline="\n") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
            count += 1
    return count
