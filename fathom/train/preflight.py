"""Before the first step: is this data, under this model and these kernels, what will be trained?

Three gates, each of which stops the run: the rows begin with the very prompt ids that generation
would begin with; documents of one pack don't see each other; and packed equals unpacked. And a look
at one pack for the eye, in which what is trained stands out. It trains nothing and changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from fathom.engines import Request
from fathom.engines.text import ModelText
from fathom.errors import WorkError
from fathom.records import Example
from fathom.tokens import EncodedExample, template_hash
from fathom.train.batch import Pack, pack
from fathom.train.parallel import Forward

PROMPTS_COMPARED = 16
DOCUMENTS = 3
"""Documents of the pack on which packed is compared with unpacked."""
SHOWN_TOKENS = 48
"""Tokens of each end of a document that are shown; the middle is left out."""
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 0.02}
"""Largest mean difference of a token's log-probability, packed against alone, in nats: matrix products of
another shape add up in another order. (A leak moves it by whole nats.)"""

Segments = list[tuple[str, str]]
"""(text, style) pairs in reading order; style is "trained", "prompt" or "note"."""


@dataclass(frozen=True)
class Preflight:
    """What was found. masked: tokens without a loss. isolation: largest change of a log-probability when the other
    documents of its pack change; packed_gap: mean difference of packed against alone; both in nats."""

    rows: int
    set_aside: int
    tokens: int
    masked: int
    prompts_compared: int
    template: str
    isolation: float
    packed_gap: float
    segments: Segments

    def row(self) -> dict[str, Any]:
        """What the artifact keeps: nothing that depends on the machine's rounding."""
        return {
            "rows": self.rows,
            "set_aside_too_long": self.set_aside,
            "tokens": self.tokens,
            "masked_tokens": self.masked,
            "rows_without_trained_tokens": 0,
            "template_sha256": self.template,
            "prompts_equal_to_generation": self.prompts_compared,
            "documents_isolated": True,
            "packed_equals_unpacked": True,
        }


def check(
    forward: Forward,
    precision: torch.dtype,
    tokenizer: PreTrainedTokenizerBase,
    model_dir: Path,
    examples: Sequence[Example],
    rows: Sequence[EncodedExample],
    pack_tokens: int,
    set_aside: int = 0,
) -> Preflight:
    """Run every gate on `rows` (the encoded `examples`, in their order). Raises WorkError at the first that fails.

    forward: how the loop will run a pack. precision: of that pass.
    """
    compared = same_prompts(model_dir, examples, rows)
    chosen = choose(rows, pack_tokens)
    isolation, gap = certify(forward, precision, chosen)
    tokens = sum(len(row.ids) for row in rows)
    return Preflight(
        rows=len(rows),
        set_aside=set_aside,
        tokens=tokens,
        masked=tokens - sum(row.trained_tokens for row in rows),
        prompts_compared=compared,
        template=template_hash(tokenizer),
        isolation=isolation,
        packed_gap=gap,
        segments=look(tokenizer, chosen),
    )


def same_prompts(model_dir: Path, examples: Sequence[Example], rows: Sequence[EncodedExample]) -> int:
    """Compare rows spread over the data with the prompts that the engines make for `model_dir`; returns how many."""
    engine = ModelText(model_dir, "preflight")
    step = max(1, len(rows) // PROMPTS_COMPARED)
    picked = range(0, len(rows), step)[:PROMPTS_COMPARED]
    requests = [Request(examples[i].id, tuple(examples[i].messages[:-1])) for i in picked]
    for i, prompt in zip(picked, engine.prompts(requests, 0, None), strict=True):
        if rows[i].ids[: rows[i].prompt_tokens] != prompt:
            raise WorkError(
                f"preflight: example {rows[i].id!r} begins with other tokens than generation would prompt with:"
                " training and sampling apply the chat template differently"
            )
    return len(picked)


def choose(rows: Sequence[EncodedExample], pack_tokens: int) -> list[EncodedExample]:
    """A short, a middling and a long row that fit into one pack together; fewer where they don't."""
    by_length = sorted(rows, key=lambda row: (len(row.ids), row.id))
    chosen = [by_length[0]]
    for row in (by_length[len(by_length) // 2], by_length[-1], *by_length[1:2]):
        room = pack_tokens - sum(len(other.ids) for other in chosen)
        if len(chosen) < DOCUMENTS and row not in chosen and len(row.ids) <= room:
            chosen.append(row)
    return chosen


def certify(forward: Forward, precision: torch.dtype, rows: Sequence[EncodedExample]) -> tuple[float, float]:
    """(isolation, packed_gap) of these rows as one pack, see `Preflight`. Raises WorkError when either is too large.

    The isolation test compares two passes of one shape, so rounding is the same and any leak shows.
    """
    together = pack(rows)
    packed = logprobs(forward, together)
    noise = float((logprobs(forward, together) - packed).abs().max())
    places = _places(rows)
    isolation = 0.0
    for place in range(len(rows)) if len(rows) > 1 else ():
        changed = logprobs(forward, pack([*rows[:place], _scrambled(rows[place]), *rows[place + 1 :]]))
        others = torch.ones(len(packed), dtype=torch.bool)
        others[places[place]] = False
        isolation = max(isolation, float((changed - packed)[others].abs().max()))
    if isolation > noise + 1e-5:
        raise WorkError(f"preflight: documents of one pack see each other (a log-probability moved by {isolation:.2g})")
    alone = torch.cat([logprobs(forward, pack([row])) for row in rows])
    gap = float((packed - alone).abs().mean())
    limit = TOLERANCE.get(precision, TOLERANCE[torch.bfloat16])
    if not gap <= limit:
        raise WorkError(
            f"preflight: packed and unpacked differ by {gap:.2g} nats per token on average, more than {limit:g}:"
            " attention or positions are wrong for this model"
        )
    return isolation, gap


@torch.no_grad()
def logprobs(forward: Forward, packed: Pack) -> torch.Tensor:
    """float32 log-probabilities of the pack's predicted tokens, on the CPU."""
    return forward(packed).float().cpu()


def _scrambled(row: EncodedExample) -> EncodedExample:
    """The row with its tokens in another order, and its loss where it was."""
    return EncodedExample(row.id, row.ids[::-1], row.weights, row.prompt_tokens)


def _places(rows: Sequence[EncodedExample]) -> list[slice]:
    """Where each row's predicted tokens stand among those of the pack."""
    places, start = [], 0
    for row in rows:
        count = sum(weight != 0 for weight in row.weights[1:])
        places.append(slice(start, start + count))
        start += count
    return places


def look(tokenizer: PreTrainedTokenizerBase, rows: Sequence[EncodedExample]) -> Segments:
    """The documents of a pack as text, the trained part apart from the prompt, the middle of long ones left out."""
    segments: Segments = []
    for number, row in enumerate(rows, 1):
        segments.append((f"document {number} of {len(rows)}: {row.id}, {len(row.ids)} tokens\n", "note"))
        prompt, trained = row.ids[: row.prompt_tokens], row.ids[row.prompt_tokens :]
        for style, ids in (("prompt", prompt), ("trained", trained)):
            left_out = len(ids) - 2 * SHOWN_TOKENS
            if left_out <= 0:
                segments.append((tokenizer.decode(ids), style))
                continue
            segments.append((tokenizer.decode(ids[:SHOWN_TOKENS]), style))
            segments.append((f" … {left_out} tokens … ", "note"))
            segments.append((tokenizer.decode(ids[-SHOWN_TOKENS:]), style))
        segments.append(("\n", "note"))
    return segments
