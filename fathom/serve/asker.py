"""The shared engine as one asker's Engine: every piece is counted as it comes, and the asker can break off from any thread.

Votes are drawn over it (`consensus.py`), in a chat as over HTTP. What it asks goes into the one batch with everyone else's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from fathom.engines import Completion, Request
from fathom.engines.session import Gathering, Piece
from fathom.records import Sampling
from fathom.serve.live import Live, ThreadStream


class Asker:
    """counted: called with every piece. thinking, owner: as for `Live.stream`. broken_off: whether `break_off` was called."""

    def __init__(self, live: Live, counted: Callable[[Piece], None], thinking: int | None = None, owner: str = ""):
        self.name, self.device = live.name, live.device
        self.broken_off = False
        self._live, self._counted, self._thinking, self._owner = live, counted, thinking, owner
        self._open: ThreadStream | None = None

    def pieces(self, request: Request, sampling: Sampling) -> Iterator[Piece]:
        """As they come; none after `break_off`. Raises as `Live.stream` does."""
        with self._live.stream(request, sampling, self._thinking, self._owner) as pieces:
            self._open = pieces
            if self.broken_off:
                return
            for piece in pieces:
                self._counted(piece)
                yield piece

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Completion]:
        """Chains as they end, one request after the other; those that are broken off never come."""
        for request in requests:
            gathering = Gathering(request)
            for piece in self.pieces(request, sampling):
                if done := gathering.take(piece):
                    yield done

    def break_off(self) -> None:
        """Free the engine at once. A vote over what is asked here ends with a WorkError."""
        self.broken_off = True
        if self._open:
            self._open.close()

    def close(self) -> None:
        """Nothing: the engine is shared."""
