"""One piece of work in a thread beside the training: at most one at a time, and its failure is the waiter's."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Ahead:
    """Who draws the next batch while this one is trained on."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin, once what was begun before has ended."""
        self.wait()
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._pending = self._thread.submit(work)

    def wait(self) -> None:
        """Until nothing is under way. Raises what the work raised, every time: what it was to make will be missing."""
        if self._pending is not None:
            self._pending.result()

    def close(self) -> None:
        """Wait for the thread, whatever came of its work."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
