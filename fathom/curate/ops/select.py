"""`op: select`: which problems are trained on, with which chain of each, in which order."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from fathom.bands import Window
from fathom.chunks import write_rows
from fathom.config import Input, StageConfig, suggest
from fathom.curate import select
from fathom.curate.examples import make_example
from fathom.curate.funnel import Funnel, finish
from fathom.errors import InputError
from fathom.prompts import Prompt
from fathom.records import Problem, Rollout, read_jsonl, read_problems, write_jsonl

if TYPE_CHECKING:
    from fathom.ledger import Meter


class SelectConfig(StageConfig):
    """`op: select`. Cuts in this order: where, solve rate, difficulty, a usable chain, quotas, weights, limit.

    where: wanted values of `kind`, `source` or `licence`. difficulty: a window, or `above_average` of
    the wanted problems. chain: which of the verified-correct, untruncated chains (of at most
    max_tokens) becomes the training row. quotas: most problems per source. weights: proportions of
    sources; the largest mixture within the limit that keeps them. prompt, system: as in `op: rollout`.
    """

    problems: Input
    chains: Input
    where: dict[Literal["kind", "source", "licence"], list[str]] = Field({})
    solve_rate: Window | None = None
    difficulty: Literal["above_average"] | Window | None = None
    chain: select.ChainChoice = "first"
    max_tokens: int | None = Field(None, ge=1)
    quotas: dict[str, Annotated[int, Field(ge=0)]] = Field({})
    weights: dict[str, Annotated[float, Field(gt=0)]] = Field({})
    limit: int | None = Field(None, ge=1)
    order: select.Order = "none"
    prompt: Prompt | None = None
    system: str | None = None


def run_select(inputs: dict[str, Any], config: SelectConfig, out: Path, meter: Meter) -> dict[str, Any]:
    """Stage: problems.jsonl and examples.jsonl of the chosen problems, in training order; removed.jsonl the rest.

    Raises InputError where `where`, `quotas` or `weights` name what no problem has.
    """
    funnel = Funnel(read_problems(inputs["problems"] / "problems.jsonl"))
    _check_names(config, funnel.problems)
    chains = select.usable_chains(read_jsonl(inputs["chains"] / "rollouts.jsonl", Rollout), config.max_tokens)
    difficulty = _cut(funnel, config, chains, meter.seed)
    problems = select.ordered(funnel.problems, config.order)
    chosen = [select.choose_chain(chains[p.id], config.chain, meter.seed) for p in problems]
    examples = [make_example(p, c, config.prompt, config.system) for p, c in zip(problems, chosen, strict=True)]
    write_jsonl(out / "examples.jsonl", examples)
    write_rows(out / "removed.jsonl", funnel.removed)
    found = {
        "examples": len(examples),
        "characters_mean": round(sum(len(c.text) for c in chosen) / max(1, len(chosen)), 1),
        "tokens_mean": _known_mean([c.tokens for c in chosen]),
        "difficulty_window": str(difficulty) if difficulty else None,
    }
    return finish("select", out, problems, funnel.steps, found)


def _cut(funnel: Funnel, config: SelectConfig, chains: Container[str], seed: int) -> Window | None:
    """Every cut that the configuration asks for; returns the window of difficulty that was used."""
    if config.where:
        wanted = ", ".join(f"{name} {' or '.join(values)}" for name, values in config.where.items())
        funnel.keep(wanted, select.outside(config.where))
    difficulty = select.above_average(funnel.problems) if config.difficulty == "above_average" else config.difficulty
    if config.solve_rate:
        funnel.keep(f"solve rate {config.solve_rate}", select.in_window("solve_rate", config.solve_rate))
    if difficulty:
        funnel.keep(f"difficulty {difficulty}", select.in_window("difficulty", difficulty))
    funnel.keep("with a correct chain", lambda p: None if p.id in chains else "no correct, complete chain")
    if config.quotas:
        funnel.keep("within the quotas", select.over_quota(funnel.problems, config.quotas, seed))
    if config.weights:
        funnel.keep("in proportion", select.over_share(funnel.problems, config.weights, config.limit, seed))
    if config.limit:
        funnel.keep(f"limit {config.limit}", select.over_limit(funnel.problems, config.limit, seed))
    return difficulty


def _check_names(config: SelectConfig, problems: Sequence[Problem]) -> None:
    named = {"where": config.where, "quotas": {"source": config.quotas}, "weights": {"source": config.weights}}
    for key, by_field in named.items():
        for field, names in by_field.items():
            known = sorted({getattr(p, field) for p in problems})
            for name in names:
                if name not in known:
                    raise InputError(f"select: {key}: no problem has the {field} {name!r}{suggest(name, known)}")


def _known_mean(tokens: list[int]) -> float | None:
    return round(sum(tokens) / len(tokens), 2) if tokens and all(tokens) else None
