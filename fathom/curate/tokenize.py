"""`op: tokenize`: training rows as a given model's tokenizer and chat template write them.

Shows, without training, what training would see: ids, loss weights and lengths; rows that exceed
`max_length` are set aside, never cut. SFT encodes the same way through `fathom.tokens`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fathom.chunks import write_rows
from fathom.curate.tokenize_config import TokenizeConfig
from fathom.errors import InputError
from fathom.records import Example, read_jsonl, write_jsonl
from fathom.tokens import EncodedExample, encode_example, load_tokenizer, template_hash

if TYPE_CHECKING:
    from fathom.ledger import Meter


def run_tokenize(inputs: dict[str, Any], config: TokenizeConfig, out: Path, meter: Meter) -> dict[str, Any]:
    """Stage: examples.jsonl -> examples.jsonl (those that fit), tokens.jsonl (id, ids, prompt_tokens), removed.jsonl."""
    examples = list(read_jsonl(inputs["examples"] / "examples.jsonl", Example))
    tokenizer = load_tokenizer(inputs["model"])
    rows = [encode_example(tokenizer, example) for example in examples]
    fits = [len(row.ids) <= config.max_length for row in rows]
    kept = [row for row, fit in zip(rows, fits, strict=True) if fit]
    if not kept:
        raise InputError(f"tokenize: none of the {len(rows)} rows fits into max_length {config.max_length} tokens")
    write_jsonl(out / "examples.jsonl", (e for e, fit in zip(examples, fits, strict=True) if fit))
    write_rows(out / "tokens.jsonl", ({"id": r.id, "prompt_tokens": r.prompt_tokens, "ids": r.ids} for r in kept))
    write_rows(out / "removed.jsonl", _too_long(rows, config.max_length))
    lengths = sorted(len(row.ids) for row in kept)
    return {
        "examples": len(kept),
        "tokens": sum(lengths),
        "trained_tokens": sum(row.trained_tokens for row in kept),
        "length_mean": round(sum(lengths) / len(lengths), 2),
        "length_median": lengths[len(lengths) // 2],
        "length_max": lengths[-1],
        "template": template_hash(tokenizer),
        "funnel": [["examples", len(rows)], [f"within {config.max_length} tokens", len(kept)]],
    }


def _too_long(rows: list[EncodedExample], max_length: int) -> Iterator[dict[str, object]]:
    for row in rows:
        if len(row.ids) > max_length:
            yield {"id": row.id, "reason": f"{len(row.ids)} tokens, at most {max_length} fit"}
