"""A running batch that takes requests and drops them at any time, and what it says of each chain as it grows.

`open_session` gives any engine's session: its own (`engine.session()`) where it has continuous batching, else
one that asks `generate` for one request after the other, whose chains come whole. Sessions belong to one
thread; sharing one between clients is `fathom/serve/live.py`'s business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Protocol

from fathom.engines import Completion, Engine, Request
from fathom.errors import InputError
from fathom.records import Finish, Sampling

if TYPE_CHECKING:
    from fathom.engines.text import GrowingText


@dataclass(frozen=True, slots=True)
class Piece:
    """What one chain grew by.

    ticket: of its request. index: of the chain, as in a Completion. text: whole characters only, so some pieces
    have none; the pieces of a chain join to its text. tokens: how many are new. finish: None until the
    chain's last piece. token_ids, logprobs: of the new tokens, where the engine knows them.
    """

    ticket: int
    index: int
    text: str
    tokens: int
    prompt_tokens: int
    finish: Finish | None = None
    token_ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None


@dataclass(eq=False)
class RunningChain:
    """One chain that a session writes.

    ticket, request, thinking: as they were added. index: of the chain, as in a Completion. text: None where the chain comes
    whole. ids, logprobs: what it has written.
    """

    ticket: int
    request: Request
    index: int
    prompt: list[int]
    sampling: Sampling
    thinking: int | None
    text: GrowingText | None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class Session(Protocol):
    """A running batch (continuous batching). Requests start in the order in which they were added."""

    def add(self, ticket: int, request: Request, sampling: Sampling, thinking: int | None = None) -> None:
        """Take a request, to be known by `ticket`.

        thinking: tokens after which a chain that still thinks is brought to its answer. Raises InputError for a request
        that can't be served, such as one that exceeds the model's positions; the session goes on without it.
        """
        ...

    def cancel(self, ticket: int) -> None:
        """Drop the request's chains; their slots are free in the next round. Nothing happens where it has ended."""
        ...

    def step(self) -> list[Piece]:
        """One round: start what there is room for, and one token (or more) for every running chain."""
        ...

    def close(self) -> None:
        """Cancel everything."""
        ...

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        ...

    @property
    def room(self) -> int:
        """How many chains added now would start in the next round."""
        ...


def joined(pieces: Sequence[Piece]) -> Piece:
    """Successive pieces of one chain, at least one, as one piece."""
    last = pieces[-1]
    return Piece(
        ticket=last.ticket,
        index=last.index,
        text="".join(piece.text for piece in pieces),
        tokens=sum(piece.tokens for piece in pieces),
        prompt_tokens=last.prompt_tokens,
        finish=last.finish,
        token_ids=_chained(piece.token_ids for piece in pieces),
        logprobs=_chained(piece.logprobs for piece in pieces),
    )


def _chained(parts: Iterable[tuple | None]) -> tuple | None:
    known = [part for part in parts if part is not None]
    return tuple(chain.from_iterable(known)) if known else None


class Gathering:
    """The chains of one request while their pieces come."""

    def __init__(self, request: Request):
        self.request = request
        self._pieces: dict[int, list[Piece]] = {}

    def take(self, piece: Piece) -> Completion | None:
        """The chain as a whole where this piece is its last."""
        pieces = self._pieces.setdefault(piece.index, [])
        pieces.append(piece)
        if piece.finish is None:
            return None
        whole = joined(self._pieces.pop(piece.index))
        return Completion(
            key=self.request.key,
            index=whole.index,
            text=whole.text,
            tokens=whole.tokens,
            finish=piece.finish,
            prompt_tokens=whole.prompt_tokens,
            token_ids=whole.token_ids,
            logprobs=whole.logprobs,
        )


def completions(session: Session, requests: Sequence[Request], sampling: Sampling) -> Iterator[Completion]:
    """Run a fresh session over these requests to its end: what `Engine.generate` gives, chains as they end."""
    gathering = [Gathering(request) for request in requests]
    try:
        for ticket, request in enumerate(requests):
            session.add(ticket, request, sampling)
        while not session.idle:
            for piece in session.step():
                if done := gathering[piece.ticket].take(piece):
                    yield done
    finally:
        session.close()


class WholeChains:
    """A session over any engine's `generate`: one request at a time, each chain in one piece, one chain a round."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._queue: deque[tuple[int, Request, Sampling]] = deque()
        self._current: int | None = None
        self._chains: Iterator[Completion] = iter(())

    def add(self, ticket: int, request: Request, sampling: Sampling, thinking: int | None = None) -> None:
        if thinking is not None:
            raise InputError(f"{self._engine.name}: this engine has no thinking budget")
        self._queue.append((ticket, request, sampling))

    def cancel(self, ticket: int) -> None:
        self._queue = deque(waiting for waiting in self._queue if waiting[0] != ticket)
        if self._current == ticket:
            self._end()

    def step(self) -> list[Piece]:
        if self._current is None:
            self._current, request, sampling = self._queue.popleft()
            self._chains = self._engine.generate([request], sampling)
        try:
            done = next(self._chains, None)
        except BaseException:
            self._current = None
            raise
        if done is None:
            self._end()
            return []
        known = (done.prompt_tokens, done.finish, done.token_ids, done.logprobs)
        return [Piece(self._current, done.index, done.text, done.tokens, *known)]

    def _end(self) -> None:
        self._current = None
        if isinstance(self._chains, Generator):
            self._chains.close()

    def close(self) -> None:
        self._queue.clear()
        self._end()

    @property
    def idle(self) -> bool:
        return self._current is None and not self._queue

    @property
    def room(self) -> int:
        return int(self.idle)


def open_session(engine: Engine) -> Session:
    """The engine's own session, or one over its `generate`."""
    own = getattr(engine, "session", None)
    return own() if own else WholeChains(engine)
