"""`fathom solve` without its command line: the configuration, the questions that are read, the answers as text and JSON.

The voting is `consensus.py`; where a model lies and how one is opened are the command's business.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from fathom.config import StageConfig
from fathom.document import with_sets
from fathom.engines import TransformersConfig, VllmConfig
from fathom.errors import InputError
from fathom.prompts import Prompt
from fathom.records import Problem, from_dict, json_lines
from fathom.rollout import SamplingConfig
from fathom.serve.consensus import Consensus
from fathom.weights import positions

FILES = (".jsonl", ".jsonl.gz")


class SolveConfig(StageConfig):
    """What `--set` may set. samples: k. error: 0 answers as cons@k would; above it, see `consensus.error_bound`."""

    samples: int = Field(64, ge=1)
    error: float = Field(0.0, ge=0, lt=1)
    sampling: SamplingConfig = SamplingConfig()
    seed: int = 0
    engine: TransformersConfig | VllmConfig = Field(TransformersConfig(), discriminator="kind")
    prompt: Prompt | None = None
    system: str | None = None


def configure(model: Path, samples: int, max_tokens: int | None, sets: Sequence[str]) -> SolveConfig:
    """The configuration that flags and `--set` ask for. Raises InputError for an unknown key or a wrong value."""
    flags = {
        "samples": samples,
        "sampling": {"max_tokens": max_tokens or default_max_tokens(model)},
        "engine": {"kind": "transformers"},
    }
    return with_sets(SolveConfig, "fathom solve", flags, sets)


def read_questions(given: str) -> list[Problem]:
    """One question as it was typed, or the rows of a JSON Lines file: `question`, and any other key of a Problem.

    A row without an `id` is known by its number from 1; a gold answer is not needed and never used. Raises
    InputError for an empty question, an empty file, an unknown key and an id that occurs twice.
    """
    if not given.endswith(FILES):
        if os.path.exists(given):
            raise InputError(
                f"{given}: expected a question in words, or a file of them that ends in {' or '.join(FILES)}"
            )
        return [_asked(Problem("question", given, None), "solve")]
    found: dict[str, Problem] = {}
    for number, (where, row) in enumerate(json_lines(given), 1):
        defaults = {"id": str(number), "gold": None}
        problem = _asked(from_dict(Problem, {**defaults, **row} if isinstance(row, dict) else row, where), where)
        if problem.id in found:
            raise InputError(f"{where}: problem id {problem.id!r} occurs a second time")
        found[problem.id] = problem
    if not found:
        raise InputError(f"{given}: holds no question")
    return list(found.values())


def _asked(problem: Problem, where: str) -> Problem:
    if not problem.question.strip():
        raise InputError(f"{where}: the question is empty")
    try:
        problem.question.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: the question is not text in UTF-8") from None
    return problem


def default_max_tokens(model: Path) -> int:
    """The usual budget of a chain, or half of the model's positions where those are fewer (the rest is for the prompt)."""
    usual = SamplingConfig().max_tokens
    return max(1, min(usual, (positions(model) or 2 * usual) // 2))


def to_json(result: Consensus) -> dict[str, Any]:
    """Plain JSON values: the answer, how sure it is, what it took, and each chain."""
    chains = zip(result.chains, result.answers, strict=True)
    return {
        "id": result.key,
        "answer": result.answer,
        "winners": list(result.winners),
        "agreement": round(result.agreement, 4),
        "interval": [round(bound, 4) for bound in result.interval],
        "error": result.error,
        "samples": result.samples,
        "drawn": len(result.chains),
        "tokens": result.tokens,
        "tokens_saved": result.saved,
        "votes": dict(result.votes),
        "chains": [
            {"index": c.index, "answer": answer, "tokens": c.tokens, "finish": c.finish, "text": c.text}
            for c, answer in chains
        ],
    }


def describe(result: Consensus) -> str:
    """The answer for a person: on the first line alone, then what it rests on."""
    votes = [f"{count:5}  {answer}" for answer, count in ballot(result.votes, len(result.chains))]
    return "\n".join([result.answer or "no answer", "", *votes, "", agreement(result), _tokens(result)])


def ballot(votes: Mapping[str, int], chains: int) -> list[tuple[str, int]]:
    """Answers with their votes, the most frequent first; last "(no answer)", with the chains that gave none, where there are any."""
    counted = sorted(votes.items(), key=lambda vote: -vote[1])
    silent = chains - sum(votes.values())
    return [*counted, ("(no answer)", silent)] if silent else counted


def agreement(result: Consensus) -> str:
    """How many chains agree, and how many of all would."""
    low, high = result.interval
    agreeing = max(result.votes.values(), default=0)
    tie = f"; a tie of {len(result.winners)}: the first stands above" if len(result.winners) > 1 else ""
    return f"{agreeing} of {len(result.chains)} chains agree ({low:.0%} to {high:.0%} of all would){tie}"


def _tokens(result: Consensus) -> str:
    spent = f"{result.tokens:,} tokens"
    undrawn = result.samples - len(result.chains)
    if not undrawn:
        return spent
    more = "1 more chain" if undrawn == 1 else f"{undrawn} more chains"
    could = f"could change the answer with a chance of {result.error:.1%} at most"
    return f"{spent}; about {result.saved:,} saved: {more} {could if result.error else 'could not change the answer'}"


def describe_row(result: Consensus) -> str:
    """One line of many."""
    return f"{result.key}: {result.answer or 'no answer'}  ({result.agreement:.0%} of {len(result.chains)} chains)"


def describe_total(results: list[Consensus]) -> str:
    """What all of them took."""
    drawn, most = sum(len(r.chains) for r in results), sum(r.samples for r in results)
    tokens, saved = sum(r.tokens for r in results), sum(r.saved for r in results)
    return f"{len(results)} problems: {drawn:,} of at most {most:,} chains, {tokens:,} tokens, about {saved:,} saved"
