"""The paid calls of a run: each reserved at its worst case before it leaves, settled with its answer.

    reserved   set aside, and perhaps sent; after a crash nobody knows
    settled    the answer and its cost are here: it is never sent again
    failed     came back as an error that costs nothing; it may be sent again

A call that is sent again while it is `reserved` may be paid twice: its worst case stays on the bill
as unknown, and it is marked. One table of the ledger's file; what to send, and when, is the engine's
business.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime

from fathom.bill import dollars
from fathom.errors import BudgetStop
from fathom.records import Usage

_SCHEMA = """
create table if not exists calls (
  key text primary key, stage text not null, attempt integer not null, model text not null,
  state text not null, tries integer not null default 1, reserved_usd real not null,
  unknown_usd real not null default 0, cost_usd real not null default 0,
  prompt integer not null default 0, completion integer not null default 0, cached integer not null default 0,
  response text, error text, at text not null, maybe_double integer not null default 0, batch text);
create index if not exists calls_usd on calls (cost_usd, unknown_usd, reserved_usd);
"""

_ADDED = {"maybe_double": "integer not null default 0", "batch": "text"}
"""Columns that the file of an older run may lack."""


@dataclass(frozen=True)
class PaidCall:
    """key: hash of everything that determines the answer. batch: the batch in which it is sent, and priced, if any."""

    key: str
    model: str
    batch: str | None = None


class Calls:
    """The table. transaction: opens one, or joins the one that is open; what is written inside is durable as a whole."""

    def __init__(self, db: sqlite3.Connection, transaction: Callable[[], AbstractContextManager[None]]):
        self._db = db
        self._transaction = transaction
        db.executescript(_SCHEMA)
        there = {row["name"] for row in db.execute("pragma table_info(calls)")}
        for column in _ADDED.keys() - there:
            db.execute(f"alter table calls add column {column} {_ADDED[column]}")

    def stored(self, key: str) -> str | None:
        """The answer of a call that was settled."""
        rows = self._read("select response from calls where key = ? and state = 'settled'", key)
        return rows[0]["response"] if rows else None

    def reserve(self, call: PaidCall, stage: str, attempt: int, worst_usd: float, room_usd: float | None) -> str | None:
        """Set a call's worst case aside before it leaves; returns the stored answer if it was paid before.

        room_usd: what the budget still allows beside all calls (None is no limit). Raises BudgetStop
        when it does not fit.
        """
        with self._transaction():
            if (answer := self.stored(call.key)) is not None:
                return answer
            if room_usd is not None and self.usd() + worst_usd > room_usd:
                cost = dollars(worst_usd)
                raise BudgetStop(
                    f"{stage}: the next call to {call.model} could cost {cost}, which the budget does not allow"
                )
            self._db.execute(
                "insert into calls (key, stage, attempt, model, state, reserved_usd, at, batch)"
                " values (:key, :stage, :attempt, :model, 'reserved', :usd, :now, :batch)"
                " on conflict (key) do update set"
                " tries = tries + 1, maybe_double = maybe_double + (state = 'reserved'), state = 'reserved',"
                " unknown_usd = unknown_usd + reserved_usd, reserved_usd = :usd,"
                " attempt = :attempt, at = :now, batch = :batch",
                {
                    "key": call.key,
                    "stage": stage,
                    "attempt": attempt,
                    "model": call.model,
                    "usd": worst_usd,
                    "now": _now(),
                    "batch": call.batch,
                },
            )
            return None

    def settle(self, key: str, usage: Usage, cost_usd: float, response: str) -> None:
        """Store a call's answer and its true cost in place of its reservation."""
        with self._transaction():
            self._db.execute(
                "update calls set state = 'settled', reserved_usd = 0, cost_usd = cost_usd + :usd, response = :response,"
                " prompt = :p, completion = :c, cached = :h, at = :now where key = :key",
                {
                    "key": key,
                    "usd": cost_usd,
                    "response": response,
                    "p": usage.prompt_tokens,
                    "c": usage.completion_tokens,
                    "h": usage.cached_tokens,
                    "now": _now(),
                },
            )

    def release(self, key: str, error: str) -> None:
        """A call came back as an error that costs nothing, or never left."""
        with self._transaction():
            self._db.execute(
                "update calls set state = 'failed', reserved_usd = 0, batch = null, error = :error where key = :key",
                {"key": key, "error": error},
            )

    def batched(self) -> dict[str, str]:
        """Key -> batch of the calls that were sent in one and have neither answer nor error."""
        rows = self._read("select key, batch from calls where state = 'reserved' and batch is not null")
        return {row["key"]: row["batch"] for row in rows}

    def usd(self) -> float:
        """Dollars of all calls, those without an answer at their worst case."""
        return self._read("select coalesce(sum(cost_usd + unknown_usd + reserved_usd), 0) as usd from calls")[0]["usd"]

    def _read(self, sql: str, *values: str) -> list[sqlite3.Row]:
        with self._transaction():  # what another thread has not committed yet is not there
            return self._db.execute(sql, values).fetchall()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
