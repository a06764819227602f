"""When the next call may leave: rates per minute, the server's own word, and how many at once.

Requests and tokens per minute are token buckets; the number of calls at once falls by half when the
server says "too many" and grows by one per round of successes (AIMD); a wait that the server asks
for holds everybody. Retrying is the engine's business.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds: the wait before try n + 1 is uniform between 0 and FIRST_WAIT * 2**(n - 1), at most LONGEST_WAIT (full jitter)."""

BURST_SECONDS = 1.0
"""A bucket holds what so many seconds bring, so that neither a pause nor a jump of the clock lets a burst through."""

LOOK_AGAIN = 0.2
"""Seconds after which a waiting call looks whether it should give up."""


def pause(number: int, asked: float | None = None) -> float:
    """Seconds before the next try, after `number` of them. asked: by the server, at least."""
    jitter = random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2 ** (number - 1)))
    return jitter if asked is None else asked + jitter


class Bucket:
    """What a rate allows. A call of any size may leave while the level isn't negative, and takes all it needs."""

    def __init__(self, per_minute: float | None, now: float):
        self._rate = math.inf if per_minute is None else per_minute / 60
        self._level = 0.0
        self._seen = now

    def wait(self, now: float) -> float:
        """Seconds until a call may leave."""
        if self._rate == math.inf:
            return 0.0
        self._add((now - self._seen) * self._rate)
        self._seen = now
        return max(0.0, -self._level / self._rate)

    def take(self, amount: float) -> None:
        """Negative: what a call had taken and didn't need."""
        if self._rate < math.inf:
            self._add(-amount)

    def _add(self, amount: float) -> None:
        self._level = min(BURST_SECONDS * self._rate, self._level + amount)


class Pace:
    """Shared by all calls of an engine. most: calls at once. clock: seconds that only grow."""

    def __init__(
        self,
        most: int,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._clock = clock
        self._most = most
        self._window = float(most)
        self._inside = 0
        self._requests = Bucket(requests_per_minute, clock())
        self._tokens = Bucket(tokens_per_minute, clock())
        self._held_until = self._cut_at = -math.inf
        self._changed = threading.Condition()

    @property
    def window(self) -> int:
        """How many calls may be under way now."""
        return int(self._window)

    def enter(self, tokens: int, stop: threading.Event) -> float | None:
        """Wait until a call of at most so many tokens may leave; returns the time, or None when `stop` is set first."""
        with self._changed:
            while not stop.is_set():
                now = self._clock()
                wait = max(self._held_until - now, self._requests.wait(now), self._tokens.wait(now))
                if self._inside >= self.window:
                    wait = max(wait, LOOK_AGAIN)
                if wait <= 0:
                    self._inside += 1
                    self._requests.take(1)
                    self._tokens.take(tokens)
                    return now
                self._changed.wait(min(wait, LOOK_AGAIN))
        return None

    def leave(self, left_at: float, *, unused: int = 0, limited: bool = False, hold: float | None = None) -> None:
        """A call that left at a time is over.

        unused: tokens that it didn't need. limited: the server said "too many requests". hold: seconds
        for which it wants no call.
        """
        with self._changed:
            self._inside -= 1
            self._tokens.take(-unused)
            if hold is not None:
                self._held_until = max(self._held_until, self._clock() + hold)
            if not limited:
                self._window = min(self._most, self._window + 1 / self._window)
            elif left_at > self._cut_at:  # those that left before the last cut tell nothing new
                self._window = max(1.0, self._window / 2)
                self._cut_at = self._clock()
            self._changed.notify_all()
