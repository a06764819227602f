"""Answers that were acknowledged, kept: a client that asks again under the same `Idempotency-Key` gets the same answer.

An answer is on disk before its client hears of its end, so neither `kill -9` nor a power cut loses one that was
acknowledged. Without the header nothing is kept. Bodies of requests are kept as hashes alone, answers as they were sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fathom.errors import InputError
from fathom.serve.errors import Refused

MOST_NAME = 255
"""Characters of an Idempotency-Key."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    owner TEXT NOT NULL, name TEXT NOT NULL, asked TEXT NOT NULL, body TEXT NOT NULL, made REAL NOT NULL,
    PRIMARY KEY (owner, name)
)
"""


class Kept:
    """A file of answers. hours: how long they are kept. Raises InputError where the file can't be one of these."""

    def __init__(self, path: Path, hours: float):
        self._hours = hours
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._base = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=FULL")
            self._base.execute(SCHEMA)
        except sqlite3.Error as error:
            raise InputError(f"store: {path}: not a file of kept answers ({error})") from None
        self._one_at_a_time = asyncio.Lock()
        self._at_work: set[tuple[str, str]] = set()

    @asynccontextmanager
    async def once(self, owner: str, name: str, request: bytes) -> AsyncIterator[Ticket]:
        """Enter the making of an answer. name: the client's key for it; request: what it asks.

        Raises Refused: 400 for a name that is none, 409 while its answer is in the making, 422 where it belongs to another request.
        """
        if not name.isprintable() or len(name) > MOST_NAME:
            raise Refused(400, f"Idempotency-Key: expected at most {MOST_NAME} printable characters")
        place = (owner, name)
        if place in self._at_work:
            told = "an answer under this Idempotency-Key is in the making"
            raise Refused(409, told, code="in_progress", headers={"Retry-After": "1"})
        self._at_work.add(place)
        try:
            asked = hashlib.sha256(request).hexdigest()
            yield Ticket(self, place, asked, await self._find(place, asked))
        finally:
            self._at_work.discard(place)

    async def _find(self, place: tuple[str, str], asked: str) -> dict[str, Any] | None:
        oldest = time.time() - self._hours * 3600
        query = "SELECT asked, body FROM answers WHERE owner = ? AND name = ? AND made > ?"
        row = await self._execute(query, (*place, oldest))
        if row is None:
            return None
        if row[0] != asked:
            raise Refused(422, "this Idempotency-Key was used with another request", code="idempotency_key_reused")
        return json.loads(row[1])

    async def keep(self, place: tuple[str, str], asked: str, body: dict[str, Any]) -> None:
        """On disk when this returns; what is older than it may be goes."""
        now = time.time()
        await self._execute("DELETE FROM answers WHERE made <= ?", (now - self._hours * 3600,))
        values = (*place, asked, json.dumps(body), now)
        await self._execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)", values)

    async def _execute(self, statement: str, values: tuple[Any, ...]) -> Any:
        async with self._one_at_a_time:
            return await asyncio.to_thread(lambda: self._base.execute(statement, values).fetchone())

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._base.close()


@dataclass(frozen=True)
class Ticket:
    """The place of one answer. found: the answer, where it was made before."""

    kept: Kept
    place: tuple[str, str]
    asked: str
    found: dict[str, Any] | None

    async def keep(self, body: dict[str, Any]) -> None:
        await self.kept.keep(self.place, self.asked, body)
