"""The bill: what every attempt at every stage consumed and what that cost, in one SQLite file.

Wall-clock is metered per attempt and multiplied by a dated price; a paid call is reserved at its
worst case before it leaves and settled with its answer. Killed and failed attempts stay on the
bill, and what of them was not saved is shown as wasted. A missing price makes a line "unpriced",
never $0. `Meter` is what a stage sees of it. It measures and adds; it never decides what to run.
"""

from __future__ import annotations

import errno
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fathom.bill import BillLine, read_bill
from fathom.errors import BudgetStop, InputError
from fathom.prices import Prices
from fathom.records import Usage
from fathom.store import disk_error_line

HEARTBEAT = 1.0
"""Seconds between two writes of a running attempt's time; a killed attempt is billed one more of them."""

_SCHEMA = """
create table if not exists attempts (
  id integer primary key, stage text not null, key text not null, state text not null,
  device text not null, count integer not null, usd_per_hour real, basis text not null,
  started text not null, seconds real not null default 0, saved_seconds real not null default 0);
create table if not exists tokens (
  attempt integer not null, model text not null, device text not null,
  prompt integer not null, completion integer not null, cached integer not null, calls integer not null,
  saved_prompt integer not null default 0, saved_completion integer not null default 0,
  saved_cached integer not null default 0, saved_calls integer not null default 0,
  usd real, primary key (attempt, model, device));
create table if not exists calls (
  key text primary key, stage text not null, attempt integer not null, model text not null,
  state text not null, tries integer not null default 1, reserved_usd real not null,
  unknown_usd real not null default 0, cost_usd real not null default 0,
  prompt integer not null default 0, completion integer not null default 0, cached integer not null default 0,
  response text, error text, at text not null);
"""

_SPENT = """
select coalesce((select sum(seconds * count * usd_per_hour / 3600) from attempts where id <> :but), 0)
     + coalesce((select sum(usd) from tokens where attempt <> :but), 0)
     + coalesce((select sum(cost_usd + unknown_usd + reserved_usd) from calls), 0)
"""


_SQLITE_NEEDS = 64 << 10
"""Bytes without which SQLite can't open a ledger; it then speaks of an I/O error."""


def _cannot_write(path: Path, error: sqlite3.OperationalError) -> InputError:
    if path.parent.is_dir() and shutil.disk_usage(path.parent).free < _SQLITE_NEEDS:
        return InputError(str(disk_error_line(OSError(errno.ENOSPC, "full"), path)))
    return InputError(f"{path}: cannot write the ledger ({error}); finished artifacts are untouched")


class Ledger:
    """The ledger of one run directory. Safe to open from several processes and threads."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.RLock()
        try:
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = full")
            self._db.executescript(_SCHEMA)
        except sqlite3.OperationalError as error:
            raise _cannot_write(path, error) from None
        except sqlite3.DatabaseError as error:
            raise InputError(f"{path}: not a ledger ({error})") from None

    def close(self) -> None:
        self._db.close()

    def _write(self, sql: str, values: Mapping[str, Any]) -> int:
        """Run one durable statement; returns the row id of an insert."""
        try:
            with self._lock:
                return self._db.execute(sql, values).lastrowid or 0
        except sqlite3.OperationalError as error:
            raise _cannot_write(self.path, error) from None

    # -------------------------------------------------------------------- attempts

    def begin(self, stage: str, key: str, device: str, count: int, prices: Prices) -> int:
        """Open an attempt; returns its id."""
        price = prices.devices.get(device)
        return self._write(
            "insert into attempts (stage, key, state, device, count, usd_per_hour, basis, started)"
            " values (:stage, :key, 'running', :device, :count, :usd, :basis, :now)",
            {
                "stage": stage,
                "key": key,
                "device": device,
                "count": count,
                "usd": price.usd_per_hour if price else None,
                "basis": price.basis if price else "unpriced",
                "now": _now(),
            },
        )

    def beat(self, attempt: int, seconds: float) -> None:
        """Note that an attempt has been running for so long."""
        self._write(
            "update attempts set seconds = max(seconds, :seconds) where id = :id", {"id": attempt, "seconds": seconds}
        )

    def end(self, attempt: int, state: str, seconds: float) -> None:
        """Close an attempt: "done" (all of it useful), "failed", "stopped" or "killed" (what was saved is)."""
        with self._lock:
            self._write("begin immediate", {})
            self._write(
                "update attempts set state = :state, seconds = max(seconds, :seconds),"
                " saved_seconds = case when :state = 'done' then max(seconds, :seconds) else saved_seconds end"
                " where id = :id",
                {"id": attempt, "state": state, "seconds": seconds},
            )
            if state == "done":
                self._write(
                    "update tokens set saved_prompt = prompt, saved_completion = completion,"
                    " saved_cached = cached, saved_calls = calls where attempt = :id",
                    {"id": attempt},
                )
            self._write("commit", {})

    def recover(self, finished: Mapping[tuple[int, str], float]) -> list[str]:
        """Close attempts of a process that died. finished: seconds by (attempt, key) whose artifact exists.

        A killed attempt is billed up to its last heartbeat and one interval more, so the bill
        never falls below the truth. Returns the names of the stages that had been killed.
        """
        killed = []
        for row in self._db.execute("select id, stage, key, seconds from attempts where state = 'running'").fetchall():
            if (row["id"], row["key"]) in finished:
                self.end(row["id"], "done", finished[row["id"], row["key"]])
            else:
                self.end(row["id"], "killed", row["seconds"] + HEARTBEAT)
                killed.append(row["stage"])
        return killed

    def save(self, attempt: int, seconds: float) -> None:
        """Everything that the attempt did up to now survives a crash."""
        self._write(
            "update attempts set seconds = max(seconds, :s), saved_seconds = :s where id = :id",
            {"id": attempt, "s": seconds},
        )

    def tokens(self, attempt: int, rows: Mapping[tuple[str, str], TokenCount], saved: bool) -> None:
        """Write an attempt's token totals by (model, device)."""
        for (model, device), row in rows.items():
            values = {"attempt": attempt, "model": model, "device": device, "calls": row.calls, "usd": row.usd}
            values |= {"p": row.usage.prompt_tokens, "c": row.usage.completion_tokens, "h": row.usage.cached_tokens}
            saves = (
                ", saved_prompt = :p, saved_completion = :c, saved_cached = :h, saved_calls = :calls" if saved else ""
            )
            self._write(
                "insert into tokens (attempt, model, device, prompt, completion, cached, calls, usd)"
                " values (:attempt, :model, :device, :p, :c, :h, :calls, :usd)"
                " on conflict (attempt, model, device) do update set"
                f" prompt = :p, completion = :c, cached = :h, calls = :calls, usd = :usd{saves}",
                values,
            )

    # -------------------------------------------------------------------- paid calls

    def reserve(
        self, key: str, stage: str, attempt: int, model: str, worst_usd: float, room_usd: float | None
    ) -> str | None:
        """Set a call's worst case aside before it leaves; returns the stored answer if it was paid before.

        key: hash of everything that determines the answer. room_usd: what the budget still allows
        beside all calls (None is no limit). A call whose fate a crash left unknown stays counted
        at its worst case and is sent again. Raises BudgetStop when it does not fit.
        """
        with self._lock:
            self._write("begin immediate", {})
            try:
                row = self._db.execute("select * from calls where key = ?", (key,)).fetchone()
                if row is not None and row["state"] == "settled":
                    return row["response"]
                (open_usd,) = self._db.execute(
                    "select coalesce(sum(cost_usd + unknown_usd + reserved_usd), 0) from calls"
                ).fetchone()
                if room_usd is not None and open_usd + worst_usd > room_usd:
                    raise BudgetStop(
                        f"{stage}: the next call to {model} could cost {dollars(worst_usd)}, which the budget does not allow"
                    )
                self._write(
                    "insert into calls (key, stage, attempt, model, state, reserved_usd, at)"
                    " values (:key, :stage, :attempt, :model, 'reserved', :usd, :now)"
                    " on conflict (key) do update set state = 'reserved', tries = tries + 1, attempt = :attempt, at = :now,"
                    " unknown_usd = unknown_usd + reserved_usd, reserved_usd = :usd",
                    {"key": key, "stage": stage, "attempt": attempt, "model": model, "usd": worst_usd, "now": _now()},
                )
                return None
            finally:
                self._write("commit", {})

    def settle(self, key: str, usage: Usage, cost_usd: float, response: str) -> None:
        """Store a call's answer and its true cost in place of its reservation."""
        self._write(
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

    def release(self, key: str, error: str, cost_usd: float = 0.0) -> None:
        """A call came back as an error that cost so much (usually nothing)."""
        self._write(
            "update calls set state = 'failed', reserved_usd = 0, cost_usd = cost_usd + :usd, error = :error where key = :key",
            {"key": key, "usd": cost_usd, "error": error},
        )

    # -------------------------------------------------------------------- totals

    def spent(self, but: int = -1) -> float:
        """Dollars on the bill, reservations at their worst case; without the time and tokens of attempt `but`."""
        with self._lock:
            return self._db.execute(_SPENT, {"but": but}).fetchone()[0]

    def calls_usd(self) -> float:
        """Dollars of paid calls, reservations at their worst case."""
        with self._lock:
            return self._db.execute(
                "select coalesce(sum(cost_usd + unknown_usd + reserved_usd), 0) from calls"
            ).fetchone()[0]

    def bill(self) -> list[BillLine]:
        """One line per stage and key, in the order of their first attempts."""
        with self._lock:
            return read_bill(self._db)


def dollars(value: float) -> str:
    """As a person reads it: cents, and smaller parts where cents would say nothing."""
    return f"${value:,.2f}" if value >= 1 or value == 0 else f"${value:.4f}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass
class TokenCount:
    """Running totals of one model on one device within one attempt. usd: None where no price is known."""

    usage: Usage = field(default_factory=Usage)
    calls: int = 0
    usd: float | None = 0.0


class Meter:
    """What a stage sees of the run: scratch space, progress, usage and the budget.

    scratch: directory that survives `kill -9` and belongs to this stage and key; deleted when the
    stage finishes. seed: the recipe's seed. Safe to call from several threads.
    """

    def __init__(
        self,
        scratch: Path,
        seed: int,
        *,
        stage: str = "",
        ledger: Ledger | None = None,
        attempt: int = -1,
        began: float | None = None,
        usd_per_second: float | None = None,
        budget_usd: float | None = None,
        prices: Prices | None = None,
        on_progress: Callable[[int, int, str], None] = lambda done, total, note: None,
        on_show: Callable[[Sequence[tuple[str, str]]], None] = lambda segments: None,
    ):
        """began: time.monotonic() when the attempt was opened (the same clock in all processes of a machine)."""
        self.scratch = scratch
        self.seed = seed
        self._stage = stage
        self._ledger = ledger
        self._attempt = attempt
        self._began = time.monotonic() if began is None else began
        self._usd_per_second = usd_per_second
        self._budget = budget_usd
        self._prices = prices or Prices()
        self._on_progress = on_progress
        self._on_show = on_show
        self._counts: dict[tuple[str, str], TokenCount] = {}
        self._lock = threading.RLock()
        self._last_flush = 0.0
        self._last_checked: float | None = None
        self._spent_before = ledger.spent(but=attempt) - ledger.calls_usd() if ledger else 0.0

    @classmethod
    def null(cls, scratch: Path, seed: int = 0) -> Meter:
        """One that records nothing and has no budget: for tests and work by hand."""
        return cls(scratch, seed)

    def seconds(self) -> float:
        """Since the attempt was opened."""
        return time.monotonic() - self._began

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Tell the user; cheap enough to call at every step."""
        self._on_progress(done, total, note)

    def show(self, segments: Sequence[tuple[str, str]]) -> None:
        """Show the user a text of (piece, style) pairs; a terminal colours the styles "trained", "prompt" and "note"."""
        self._on_show(segments)

    def usage(self, model: str, usage: Usage, device: str) -> None:
        """Record what a call consumed. device "api" is billed by token, all others by time alone."""
        with self._lock:
            count = self._counts.setdefault((model, device), TokenCount())
            count.usage += usage
            count.calls += 1
            if device == "api":
                cost = self._prices.tokens_usd(model, usage)
                count.usd = None if cost is None or count.usd is None else count.usd + cost
            if device == "api" or time.monotonic() - self._last_flush >= HEARTBEAT:
                self.flush()

    def saved(self) -> None:
        """Everything done up to now survives a crash; work before it is never shown as wasted."""
        with self._lock:
            self.flush(saved=True)
            if self._ledger:
                self._ledger.save(self._attempt, self.seconds())

    def flush(self, saved: bool = False) -> None:
        """Write the token totals to the ledger."""
        with self._lock:
            self._last_flush = time.monotonic()
            if self._ledger:
                self._ledger.tokens(self._attempt, self._counts, saved)

    def spent(self) -> float:
        """Dollars on the run's bill, this attempt up to now included; unpriced work counts nothing."""
        now = self._spent_before + (self._usd_per_second or 0.0) * self.seconds()
        now += sum(count.usd or 0.0 for count in self._counts.values())
        return now + (self._ledger.calls_usd() if self._ledger else 0.0)

    def check(self) -> None:
        """Call it between chunks: raises BudgetStop when another chunk like the last would exceed the budget."""
        if self._budget is None:
            return
        with self._lock:
            spent = self.spent()
            chunk = 0.0 if self._last_checked is None else spent - self._last_checked
            self._last_checked = spent
        if spent + chunk > self._budget or spent >= self._budget:
            raise BudgetStop(
                f"{self._stage}: stopped by the budget of {dollars(self._budget)}: {dollars(spent)} is spent"
                f" and the next piece of work would cost about {dollars(chunk)}"
            )

    def reserve(self, key: str, model: str, worst: Usage) -> str | None:
        """Reserve a paid call at its worst case before it is sent; returns its answer if it is stored.

        Raises InputError for a model without a price, BudgetStop when it does not fit.
        """
        if self._ledger is None:
            return None
        worst_usd = self._prices.tokens_usd(model, worst)
        if worst_usd is None:
            raise InputError(
                f"{self._stage}: no price is known for {model!r}: add it to the price file before paying for it"
            )
        with self._lock:
            room = None
            if self._budget is not None:
                room = self._budget - (self.spent() - self._ledger.calls_usd())
            return self._ledger.reserve(key, self._stage, self._attempt, model, worst_usd, room)

    def settle(self, key: str, model: str, usage: Usage, response: str) -> None:
        """Settle a reserved call with its answer."""
        if self._ledger:
            self._ledger.settle(key, usage, self._prices.tokens_usd(model, usage) or 0.0, response)

    def release(self, key: str, error: str) -> None:
        """A reserved call failed and was not charged."""
        if self._ledger:
            self._ledger.release(key, error)
