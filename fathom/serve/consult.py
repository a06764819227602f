"""A consensus over HTTP: the vote of `consensus.py` on a conversation, over the shared engine, until its client leaves.

The voting runs in a thread, for grading may take a while; what it rests on is drawn in the one batch with everyone else's.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from concurrent.futures import Executor

from fathom.engines.session import Piece
from fathom.records import Problem
from fathom.serve.answers import Choice, Order
from fathom.serve.asker import Asker
from fathom.serve.consensus import Consensus, solve
from fathom.serve.live import Live
from fathom.serve.split import Thinking
from fathom.serve.visits import Visit


async def consult(
    live: Live, order: Order, samples: int, error: float, visit: Visit, threads: Executor
) -> tuple[Consensus, Choice]:
    """The vote, and the first chain that gave its answer (the first of all where none gave any) as the one choice.

    Cancelling frees the engine at once. Raises as `consensus.solve` and `Live.stream` do.
    """
    request = order.request
    problem = Problem(request.key, request.messages[-1].content, None)

    thoughts: defaultdict[tuple[int, int], Thinking] = defaultdict(lambda: Thinking(bool(order.opened)))

    def count(piece: Piece) -> None:
        thought = thoughts[piece.ticket, piece.index]
        visit.prompt_tokens = piece.prompt_tokens
        visit.grew(piece.tokens, thought.inside)
        thought.feed(piece.text)

    asker = Asker(live, count, order.thinking, order.owner)

    def vote() -> Consensus:
        return next(solve([problem], asker, order.sampling, samples, error, asked=lambda problem: request.messages))

    try:
        result = await asyncio.get_running_loop().run_in_executor(threads, vote)
    finally:
        asker.break_off()
    first = result.answers.index(result.answer) if result.answer is not None else 0
    chain = result.chains[first]
    return result, Choice(0, *Thinking(bool(order.opened)).last(chain.text), chain.finish)
