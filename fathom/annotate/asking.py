"""Asking until an answer validates: once, and twice again.

What a valid answer is, and what becomes of an item that never got one, is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from fathom.engines import Completion, Engine, Request
from fathom.errors import WorkError
from fathom.records import Message, Sampling, Usage

if TYPE_CHECKING:
    from fathom.ledger import Meter

ASKS = 3
"""How often an item is asked for in all."""

Value = TypeVar("Value")


@dataclass
class Unfit(Exception):
    """An answer does not validate. reason: the same words for every such item; detail: what was wrong with this one."""

    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Asked(Generic[Value]):
    """What came of one item: the value of its first valid answer, or why the last answer had none.

    asks: answers it took. usd: what they cost together; None when one of them has no price.
    """

    value: Value | None
    unfit: Unfit | None
    asks: int
    usd: float | None


def ask_until_valid(
    prompts: Mapping[str, tuple[Message, ...]],
    read: Callable[[Completion], Value],
    engine: Engine,
    sampling: Sampling,
    meter: Meter,
) -> dict[str, Asked[Value]]:
    """One outcome per key of `prompts`. read: the value of an answer; raises Unfit where it has none.

    Ask n draws chain n of its key, so a repeated run asks the same and gets the same. Raises
    WorkError when the engine leaves a key unanswered.
    """
    asked: dict[str, Asked[Value]] = {}
    for ask in range(ASKS):
        open_keys = [key for key in prompts if key not in asked or asked[key].unfit]
        requests = [Request(key, prompts[key], first=ask) for key in open_keys]
        usage = Usage()
        for completion in engine.generate(requests, sampling) if requests else ():
            usage += Usage(completion.prompt_tokens, completion.tokens)
            asked[completion.key] = _outcome(completion, read, asked.get(completion.key))
        if engine.device != "api":  # whose engine bills every call itself
            meter.usage(engine.name, usage, engine.device)
        for key in open_keys:
            if key not in asked or asked[key].asks != ask + 1:
                raise WorkError(f"{engine.name}: never answered {key!r}")
    return asked


def _outcome(completion: Completion, read: Callable[[Completion], Value], before: Asked[Value] | None) -> Asked[Value]:
    asks = before.asks + 1 if before else 1
    spent = before.usd if before else 0.0
    usd = None if spent is None or completion.usd is None else spent + completion.usd
    try:
        return Asked(read(completion), None, asks, usd)
    except Unfit as unfit:
        return Asked(None, unfit, asks, usd)
