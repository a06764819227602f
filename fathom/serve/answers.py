"""From pieces of text to choices: each chain's stop strings and thinking, whole or as it grows.

The one way from `Live` to an answer, streamed or not; HTTP and OpenAI's forms are elsewhere.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from fathom.engines import Request
from fathom.engines.session import Piece
from fathom.records import Finish, Sampling
from fathom.serve.live import Live
from fathom.serve.split import Stops, Thinking
from fathom.serve.visits import Visit


@dataclass(frozen=True)
class Order:
    """What was asked for, ready for the engine.

    opened: whether chains begin inside their thinking; None leaves their text in one piece (`/v1/completions`).
    thinking: budget of a chain's thinking, in tokens. owner: who shares the engine fairly with others.
    """

    request: Request
    sampling: Sampling
    stops: tuple[str, ...] = ()
    opened: bool | None = None
    thinking: int | None = None
    owner: str = ""


@dataclass(frozen=True)
class Delta:
    """What one choice grew by. finish: None until the choice is whole."""

    index: int
    reasoning: str = ""
    content: str = ""
    finish: Finish | None = None


def _together(deltas: Sequence[Delta]) -> Delta:
    """Successive deltas of one choice, at least one, as one."""
    last = deltas[-1]
    return Delta(last.index, "".join(d.reasoning for d in deltas), "".join(d.content for d in deltas), last.finish)


class _Chain:
    """One chain while it grows."""

    def __init__(self, order: Order):
        self._stops = Stops(order.stops)
        self._thinking = None if order.opened is None else Thinking(order.opened)
        self.over = False

    @property
    def thinks(self) -> bool:
        return self._thinking is not None and self._thinking.inside

    def grow(self, piece: Piece) -> Delta:
        text = self._stops.feed(piece.text)
        if piece.finish:
            text += self._stops.end()
        finish = "stop" if self._stops.met else piece.finish
        self.over = finish is not None
        if self._thinking is None:
            return Delta(piece.index, "", text, finish)
        reasoning, content = self._thinking.last(text) if self.over else self._thinking.feed(text)
        return Delta(piece.index, reasoning, content, finish)


async def grow(live: Live, order: Order, visit: Visit) -> AsyncIterator[Delta]:
    """The choices of an order as they grow; the engine drops what is left as soon as this is closed, or all are whole.

    Tokens are counted on the visit; those that come after a stop string are nobody's. Raises what `Live.astream` raises.
    """
    chains = {order.request.first + i: _Chain(order) for i in range(order.request.samples)}
    async with live.astream(order.request, order.sampling, order.thinking, order.owner) as stream:
        async for pieces in stream:
            chain = chains[pieces[0].index]
            deltas = []
            for piece in pieces:  # one by one: how many came at once is chance, and must not show in the counts
                if chain.over:
                    break
                visit.prompt_tokens = piece.prompt_tokens
                visit.grew(piece.tokens, chain.thinks)
                deltas.append(chain.grow(piece))
            if not deltas:
                continue
            delta = _together(deltas)
            if delta.reasoning or delta.content or delta.finish:
                yield delta
            if delta.finish and all(chain.over for chain in chains.values()):
                return


@dataclass(frozen=True)
class Choice:
    """A whole choice."""

    index: int
    reasoning: str
    content: str
    finish: Finish


class Choices:
    """Puts the deltas of choices together that come to their end."""

    def __init__(self) -> None:
        self._parts: dict[int, list[Delta]] = {}

    def take(self, delta: Delta) -> None:
        self._parts.setdefault(delta.index, []).append(delta)

    def whole(self) -> list[Choice]:
        """In order of their index."""
        wholes = [_together(parts) for _, parts in sorted(self._parts.items())]
        return [Choice(whole.index, whole.reasoning, whole.content, whole.finish) for whole in wholes]
