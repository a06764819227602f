"""One engine for many clients at once: a session in a thread of its own, and the pieces of each chain to whom they belong.

Whoever has the fewest chains at work is next, in turns; what one owner (an API key, say) asks for starts in the order in
which it was asked. A stream that is closed frees its slots in the next round, what waits is bounded (`Busy`), and an engine
that fails tells everyone whom it worked for. Not a server: HTTP, keys and limits per key are elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from fathom.engines import Completion, Engine, Request
from fathom.engines.session import Gathering, Piece, open_session
from fathom.errors import FathomError, WorkError
from fathom.records import Sampling

QUEUE = 1024
"""Requests that may wait for a slot where nothing else is said."""

News = Piece | FathomError | None
"""What a stream is told of one of its requests; all but a piece is the end of it, None the good one."""


class Busy(WorkError):
    """As much waits as may wait, or nothing is taken any more."""


@dataclass
class _Job:
    """A request that waits or runs. left: its chains that have not ended."""

    ticket: int
    request: Request
    sampling: Sampling
    thinking: int | None
    owner: str
    stream: ThreadStream | LoopStream
    left: int


class Live:
    """An engine whose one batch serves everyone who asks; itself an Engine. Safe to use from any thread.

    queue: how many requests may wait for a slot. Takes the engine over: `close` closes it.
    """

    def __init__(self, engine: Engine, queue: int = QUEUE):
        self.engine, self.name, self.device = engine, engine.name, engine.device
        self._limit = queue
        self._session = open_session(engine)
        self._changed = threading.Condition()
        """Held for what follows."""
        self._tickets = itertools.count()
        self._jobs: dict[int, _Job] = {}
        self._waiting: dict[str, deque[_Job]] = {}
        """By owner; whose turn was longest ago comes first."""
        self._at_work: Counter[str] = Counter()
        """Chains that were given to the session, by owner."""
        self._cancelled: list[int] = []
        self._refusal: str | None = None
        """Why nothing is taken any more."""
        self._thread = threading.Thread(target=self._run, name=f"live {engine.name}", daemon=True)
        self._thread.start()

    def stream(
        self, request: Request, sampling: Sampling, thinking: int | None = None, owner: str = ""
    ) -> ThreadStream:
        """The pieces of a request's chains as they come. Closing the iterator, or leaving its `with`, cancels.

        thinking: tokens after which a chain that still thinks is brought to its answer. Raises Busy, at once, where as
        much waits as may; the iteration raises InputError for a request that can't be served, WorkError for a failure.
        """
        stream = ThreadStream(self)
        self._submit(stream, [request], sampling, thinking, owner)
        return stream

    def astream(self, request: Request, sampling: Sampling, thinking: int | None = None, owner: str = "") -> LoopStream:
        """`stream` for the event loop that it is called in; `aclose`, or leaving its `async with`, cancels."""
        stream = LoopStream(self)
        self._submit(stream, [request], sampling, thinking, owner)
        return stream

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Completion]:
        """As any engine's: chains as they end. Leaving the iteration cancels what still runs. Raises as `stream` does."""
        with ThreadStream(self) as pieces:
            tickets = self._submit(pieces, requests, sampling, thinking=None, owner="")
            gathering = {t: Gathering(request) for t, request in zip(tickets, requests, strict=True)}
            for piece in pieces:
                if done := gathering[piece.ticket].take(piece):
                    yield done

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        with self._changed:
            return self._queued()

    @property
    def running(self) -> int:
        """Requests that the engine works on."""
        with self._changed:
            return len(self._jobs) - self._queued()

    @property
    def refusal(self) -> str | None:
        """Why no more requests are taken; None while they are."""
        with self._changed:
            return self._refusal

    def refuse(self) -> None:
        """Take no more requests; those that wait and run go on."""
        with self._changed:
            self._refusal = self._refusal or "is shutting down"
            self._changed.notify()

    def close(self, seconds: float | None = None) -> None:
        """Take no more, let what was taken end, for at most `seconds` where given, cut the rest and close the engine."""
        self.refuse()
        self._thread.join(seconds)
        with self._changed:
            left = list(self._jobs)
        self._cancel(left, WorkError(f"{self.name}: stopped before this chain ended"))
        self._thread.join()
        self.engine.close()

    def _submit(
        self,
        stream: ThreadStream | LoopStream,
        requests: Sequence[Request],
        sampling: Sampling,
        thinking: int | None,
        owner: str,
    ) -> list[int]:
        """Let the requests wait, all or none of them; returns their tickets."""
        with self._changed:
            if self._refusal:
                raise Busy(f"{self.name} {self._refusal}")
            if self._queued() + len(requests) > self._limit:
                raise Busy(f"{self.name} is busy: {self._queued()} requests wait, of at most {self._limit}")
            tickets = [next(self._tickets) for _ in requests]
            for ticket, request in zip(tickets, requests, strict=True):
                job = _Job(ticket, request, sampling, thinking, owner, stream, request.samples)
                self._jobs[ticket] = job
                self._waiting.setdefault(owner, deque()).append(job)
            stream.tickets += tickets
            self._changed.notify()
        return tickets

    def _cancel(self, tickets: Iterable[int], why: FathomError | None = None) -> None:
        """Drop the requests that have not ended, and end their streams."""
        with self._changed:
            jobs = [self._jobs[ticket] for ticket in tickets if ticket in self._jobs]
            for job in jobs:
                queued = self._waiting.get(job.owner, ())
                if job in queued:
                    queued.remove(job)
                    self._drop_empty(job.owner)
                else:
                    self._cancelled.append(job.ticket)
                    self._at_work[job.owner] -= job.left
                del self._jobs[job.ticket]
            self._changed.notify()
        _tell([(job.stream, why and type(why)(*why.args)) for job in jobs])

    def _queued(self) -> int:
        return sum(map(len, self._waiting.values()))

    def _drop_empty(self, owner: str) -> None:
        if not self._waiting[owner]:
            del self._waiting[owner]

    # what runs in the engine's thread

    def _run(self) -> None:
        while self._prepare():
            try:
                pieces = [] if self._session.idle else self._session.step()
            except Exception as error:
                if not self._recover(self._failure(error)):
                    return
            else:
                self._hand_out(pieces)

    def _prepare(self) -> bool:
        """Wait for work, then cancel and admit; False when there will be none."""
        with self._changed:
            while self._session.idle and not self._waiting:
                self._cancelled.clear()
                if self._refusal:
                    return False
                self._changed.wait()
            for ticket in self._cancelled:
                self._session.cancel(ticket)
            self._cancelled.clear()
            jobs = self._next(self._session.room)
        for job in jobs:
            try:
                self._session.add(job.ticket, job.request, job.sampling, job.thinking)
            except FathomError as error:
                self._cancel([job.ticket], error)
            except Exception as error:
                self._cancel([job.ticket], self._failure(error))
                if not getattr(self.engine, "alive", True):
                    return self._recover(self._failure(error))
        return True

    def _next(self, room: int) -> list[_Job]:
        """Take as many chains from the queues as there is room for."""
        jobs = []
        while room > 0 and self._waiting:
            owner = min(self._waiting, key=self._at_work.__getitem__)
            queued = self._waiting.pop(owner)
            jobs.append(queued.popleft())
            if queued:
                self._waiting[owner] = queued
            self._at_work[owner] += jobs[-1].left
            room -= jobs[-1].left
        return jobs

    def _hand_out(self, pieces: list[Piece]) -> None:
        news: list[tuple[ThreadStream | LoopStream, News]] = []
        with self._changed:
            for piece in pieces:
                job = self._jobs.get(piece.ticket)
                if job is None:
                    continue
                news.append((job.stream, piece))
                if piece.finish is None:
                    continue
                job.left -= 1
                self._at_work[job.owner] -= 1
                if not job.left:
                    del self._jobs[job.ticket]
                    news.append((job.stream, None))
            for owner in [owner for owner, count in self._at_work.items() if not count]:
                del self._at_work[owner]
        _tell(news)

    def _recover(self, why: WorkError) -> bool:
        """End what the session worked on and go on with a new one; False, and nothing waits any more, where there is none."""
        with self._changed:
            queued = {job.ticket for jobs in self._waiting.values() for job in jobs}
            lost = [ticket for ticket in self._jobs if ticket not in queued]
        self._cancel(lost, why)
        try:
            self._session.close()
            self._session = open_session(self.engine)
        except Exception:
            with self._changed:
                self._refusal = f"takes no more: {why}"
                lost = list(self._jobs)
            self._cancel(lost, why)
            return False
        return True

    def _failure(self, error: Exception) -> WorkError:
        """What its clients are told of an engine's error."""
        told = (str(error).strip().splitlines() or [""])[0]
        return WorkError(f"{self.name}: the engine failed ({type(error).__name__}: {told})")


def _tell(news: Iterable[tuple[ThreadStream | LoopStream, News]]) -> None:
    """Hand news over: each event loop is woken once."""
    loops: defaultdict[asyncio.AbstractEventLoop, list[tuple[LoopStream, News]]] = defaultdict(list)
    for stream, item in news:
        if isinstance(stream, ThreadStream):
            stream.news.put(item)
        else:
            loops[stream.loop].append((stream, item))
    for loop, items in loops.items():
        with contextlib.suppress(RuntimeError):  # a loop that is closed has nobody who waits
            loop.call_soon_threadsafe(_take_all, items)


def _take_all(items: list[tuple[LoopStream, News]]) -> None:
    for stream, item in items:
        stream.take(item)


class ThreadStream:
    """An iterator over pieces, for any thread."""

    def __init__(self, live: Live):
        self._live = live
        self.tickets: list[int] = []
        self.news: SimpleQueue[News] = SimpleQueue()
        self._ended = 0

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        while self._ended < len(self.tickets):
            news = self.news.get()
            if isinstance(news, Piece):
                return news
            self._ended += 1
            if news is not None:
                self.close()
                raise news
        raise StopIteration

    def close(self) -> None:
        """Cancel what has not ended; the iteration ends."""
        self._live._cancel(self.tickets)

    def __enter__(self) -> ThreadStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class LoopStream:
    """An asynchronous iterator for the event loop in which it was made: the pieces of one chain that came since the last."""

    def __init__(self, live: Live):
        self._live = live
        self.tickets: list[int] = []
        self.loop = asyncio.get_running_loop()
        self._news: deque[list[Piece] | FathomError | None] = deque()
        self._arrival = asyncio.Event()
        self._over = False

    def take(self, news: News) -> None:
        """Called in the event loop. What nobody has fetched yet is fetched at once, so whoever is late has less to do."""
        last = self._news[-1] if self._news else None
        if not isinstance(news, Piece):
            self._news.append(news)
        elif isinstance(last, list) and (last[-1].ticket, last[-1].index) == (news.ticket, news.index):
            last.append(news)
        else:
            self._news.append([news])
        self._arrival.set()

    def __aiter__(self) -> LoopStream:
        return self

    async def __anext__(self) -> list[Piece]:
        while not self._over:
            if not self._news:
                self._arrival.clear()
                await self._arrival.wait()
                continue
            news = self._news.popleft()
            if isinstance(news, list):
                return news
            self._over = True
            if news is not None:
                raise news
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Cancel what has not ended; the iteration ends."""
        self._live._cancel(self.tickets)

    async def __aenter__(self) -> LoopStream:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()
