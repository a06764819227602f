"""One chain as a paid call: the body that is sent, who it is, what it may cost, and its entries in the books."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from fathom.calls import PaidCall
from fathom.chunks import digest
from fathom.engines import TOKEN_LIMITS, Completion, HttpConfig, Request, chain_seed
from fathom.ledger import Meter
from fathom.records import Sampling, Usage, from_dict, to_json

TEMPLATE_TOKENS = 64
"""Room for what a chat template adds to a message, where a prompt's tokens are bounded (one token has a byte at least)."""


@dataclass(frozen=True)
class Call:
    """Chain `index` of the request `key`.

    paid: as the ledger knows it. tape: hash of all that determines the answer but the address. worst:
    what it may use at most.
    """

    key: str
    index: int
    body: dict[str, Any]
    paid: PaidCall
    tape: str
    worst: Usage

    def in_batch(self, tag: str) -> Call:
        """The same call, sent and priced in a batch."""
        return replace(self, paid=replace(self.paid, batch=tag))


def make_call(config: HttpConfig, provider: str, request: Request, index: int, sampling: Sampling) -> Call:
    """The call of one chain: equal arguments, the same call. provider: who answers, by the address or a name."""
    body = {
        "model": config.model,
        "messages": [{"role": m.role, "content": m.content} for m in request.messages],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_completion_tokens": sampling.max_tokens,
        "seed": chain_seed(sampling.seed, request.key, index) & 0x7FFFFFFF,
        **config.body,
    }
    body = {name: value for name, value in body.items() if value is not None}
    identity = (json.dumps(body, sort_keys=True), request.key, index, sampling.seed)
    prompt = sum(len(m.content.encode()) + TEMPLATE_TOKENS for m in request.messages)
    return Call(
        key=request.key,
        index=index,
        body=body,
        paid=PaidCall(digest(provider, *identity), config.model),
        tape=digest(*identity),
        worst=Usage(prompt, max(body[limit] for limit in TOKEN_LIMITS if limit in body)),
    )


def stored(call: Call, meter: Meter) -> Completion | None:
    """The answer that was paid before."""
    return _read(meter.stored(call.paid), call)


def reserve(call: Call, meter: Meter) -> Completion | None:
    """Reserve the worst case; returns the answer where another process paid for it meanwhile.

    Raises InputError for a model without a price, BudgetStop when it does not fit.
    """
    return _read(meter.reserve(call.paid, call.worst), call)


def settle(call: Call, completion: Completion, usage: Usage, meter: Meter) -> Completion:
    """Put the answer and what it cost into the books; returns it with its cost."""
    completion = replace(completion, usd=meter.price(call.paid, usage))
    meter.settle(call.paid, usage, to_json(completion))
    return completion


def _read(text: str | None, call: Call) -> Completion | None:
    return None if text is None else from_dict(Completion, json.loads(text), f"stored answer of {call.key!r}")
