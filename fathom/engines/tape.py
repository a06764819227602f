"""Answers on tape: written while calls are paid, played back where none shall be made.

One JSON line per answer: `call` (hash of all that determines it but the address), `request` (the
body that was sent) and `answer`. What was paid is the ledger's business.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from fathom.engines import Completion
from fathom.errors import InputError
from fathom.records import from_dict, to_dict

BEGINNING = b'{"call": '
"""Of every line of a tape, also of one that a crash tore."""


class Recorder:
    """Appends answers to a file that may hold some already; a last line torn by a crash is cut off.

    Safe to call from several threads. Raises InputError for a file that can't be written or is no tape.
    """

    def __init__(self, path: Path):
        self._lock = threading.Lock()
        self._there: set[str] = set()
        whole = 0
        for _, end, call in _answers(path) if path.exists() else ():
            self._there.add(call)
            whole = end
        self._stream = _open(path, "ab")
        self._stream.truncate(whole)

    def add(self, call: str, request: dict[str, Any], answer: Completion) -> None:
        """Write an answer, unless it is there."""
        row = {"call": call, "request": request, "answer": to_dict(answer)}
        with self._lock:
            if call not in self._there:
                self._there.add(call)
                self._stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                self._stream.flush()

    def close(self) -> None:
        self._stream.close()


class Player:
    """Finds answers in a recorded file, of which it keeps in memory only where they stand.

    Raises InputError for a file that can't be read or is no tape. A last line without its end is not read.
    """

    def __init__(self, path: Path):
        self.path = path
        self._places = {call: start for start, _, call in _answers(path)}
        self._stream = _open(path, "rb")

    def play(self, call: str, asked: str) -> Completion:
        """The answer to a call. asked: what it is called in the message when it isn't there (InputError)."""
        if call not in self._places:
            raise InputError(
                f"{self.path}: no recorded answer for {asked}: it was recorded with another prompt, model, sampling"
                " or seed, or not at all"
            )
        self._stream.seek(self._places[call])
        row = json.loads(self._stream.readline())
        return from_dict(Completion, row["answer"], f"{self.path}: answer of {asked}")

    def close(self) -> None:
        self._stream.close()


def _open(path: Path, mode: str) -> BinaryIO:
    try:
        return open(path, mode)
    except OSError as error:
        raise InputError(f"{path}: can't be opened ({error.strerror})") from None


def _answers(path: Path) -> Iterator[tuple[int, int, str]]:
    """(start, end, call) of every whole line; places in bytes."""
    start = 0
    with _open(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            torn = not line.endswith(b"\n")
            if torn and (line.startswith(BEGINNING) or BEGINNING.startswith(line)):
                return
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if torn or not isinstance(row, dict) or not isinstance(row.get("call"), str) or "answer" not in row:
                raise InputError(f"{path}:{number}: not a recorded answer (an object with call, request and answer)")
            yield start, start + len(line), row["call"]
            start += len(line)
