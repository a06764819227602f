"""`op: mix`: several selections put together into one training set, by row counts or by proportion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from fathom.chunks import write_rows
from fathom.config import Input, StageConfig, suggest
from fathom.curate import select
from fathom.curate.funnel import Funnel, finish
from fathom.errors import InputError
from fathom.records import Example, Problem, read_jsonl, read_problems, write_jsonl

if TYPE_CHECKING:
    from fathom.ledger import Meter


class MixConfig(StageConfig):
    """`op: mix`. parts: selections by the name that their rows carry in `lineage.part`.

    rows: most rows of a part (all of a part that isn't named). weights: instead, the proportions of
    all parts: the largest mixture that keeps them. limit: most rows in all, with weights. order: as in
    `op: select`; `none` puts the parts one after another.
    """

    parts: dict[str, Input] = Field(min_length=1)
    rows: dict[str, Annotated[int, Field(ge=0)]] = Field({})
    weights: dict[str, Annotated[float, Field(gt=0)]] = Field({})
    limit: int | None = Field(None, ge=1)
    order: select.Order = "none"

    @model_validator(mode="after")
    def _consistent(self) -> MixConfig:
        for name in (*self.rows, *self.weights):
            if name not in self.parts:
                raise ValueError(f"{name!r} is none of the parts{suggest(name, self.parts)}")
        if self.rows and self.weights:
            raise ValueError("rows and weights can't be had together")
        if self.limit and not self.weights:
            raise ValueError("limit needs weights (rows bounds each part)")
        if missing := [name for name in self.parts if self.weights and name not in self.weights]:
            raise ValueError(f"weights: the part {missing[0]!r} has none")
        return self


def run_mix(inputs: dict[str, Any], config: MixConfig, out: Path, meter: Meter) -> dict[str, Any]:
    """Stage: problems.jsonl and examples.jsonl of the parts together; removed.jsonl what was over or there twice.

    A problem of several parts counts for the first. Which rows of a part stay is a seeded choice. Raises InputError for a
    part in which a problem has no row, or several.
    """
    part_of: dict[str, str] = {}
    problems: list[Problem] = []
    examples: dict[str, Example] = {}
    again = []
    for part, directory in inputs["parts"].items():
        examples = _examples(part, directory / "examples.jsonl") | examples
        for problem in read_problems(directory / "problems.jsonl"):
            if problem.id in part_of:
                reason = f"in part {part} and already in part {part_of[problem.id]}"
                again.append({"id": problem.id, "reason": reason})
            elif problem.id not in examples:
                raise InputError(f"mix: part {part}: problem {problem.id!r} has no row in examples.jsonl")
            else:
                part_of[problem.id] = part
                problems.append(problem)
    funnel = Funnel(problems, steps=[["rows of all parts", len(problems) + len(again)]], removed=again)
    available = Counter(part_of.values())
    counts = _counts(config, available)
    for part, count in counts.items():
        funnel.keep(f"{count} of {part}", _over(part, count, problems, part_of, meter.seed))
    kept = select.ordered(funnel.problems, config.order)
    mixed = [_with_part(examples[p.id], part_of[p.id]) for p in kept]
    write_jsonl(out / "examples.jsonl", mixed)
    write_rows(out / "removed.jsonl", funnel.removed)
    short = {part: rows - available[part] for part, rows in config.rows.items() if rows > available[part]}
    return finish("mix", out, kept, funnel.steps, {"examples": len(mixed), "parts": counts, "short": short})


def _examples(part: str, path: Path) -> dict[str, Example]:
    """By problem. Raises InputError where one has several: which of them it counts for nothing says."""
    found: dict[str, Example] = {}
    for example in read_jsonl(path, Example):
        if example.problem_id in found:
            raise InputError(f"mix: part {part}: problem {example.problem_id!r} has several rows in {path.name}")
        found[example.problem_id] = example
    return found


def _counts(config: MixConfig, available: Mapping[str, int]) -> dict[str, int]:
    if config.weights:
        return select.proportions(available, config.weights, config.limit)
    return {part: min(available[part], config.rows.get(part, available[part])) for part in config.parts}


def _over(
    part: str, count: int, problems: Sequence[Problem], part_of: Mapping[str, str], seed: int
) -> Callable[[Problem], str | None]:
    """A cut to `count` problems of one part."""
    over = select.over_limit([p for p in problems if part_of[p.id] == part], count, seed)
    return lambda p: f"over the {count} rows of part {part}" if part_of[p.id] == part and over(p) else None


def _with_part(example: Example, part: str) -> Example:
    return replace(example, lineage={**example.lineage, "part": part})
