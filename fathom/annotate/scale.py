"""A number on a scale for every problem, by a template and an engine: a difficulty from 1 to 10.

A problem that never gets a valid answer is set aside with the reason. No chain is made here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from fathom.annotate.asking import ASKS, Unfit, ask_until_valid
from fathom.chunks import digest, run_chunks, write_rows
from fathom.config import Input, ModelInput, Operational, StageConfig
from fathom.engines import Completion, Engine, EngineConfig, open_engine
from fathom.errors import InputError
from fathom.prompts import Prompt, template
from fathom.prompts.ask import ask
from fathom.records import Problem, Sampling, read_problems, to_json, write_jsonl

if TYPE_CHECKING:
    from fathom.ledger import Meter

FAILED = "annotation_failed"
"""Key of `meta` under which a problem without a valid answer carries [reason, detail] until it is set aside."""


class AnnotateConfig(StageConfig):
    """`op: annotate`. scale: lowest and highest value. field: `difficulty`, or the name of a new key in `meta`. template: a shipped one's name or `{file: mine.txt}`.

    keep_known: leave problems alone that already have the field. chunk: problems per saved piece.
    """

    problems: Input
    field: str = "difficulty"
    template: Prompt = "difficulty"
    engine: EngineConfig
    model: ModelInput | None = None
    scale: tuple[int, int] = (1, 10)
    keep_known: bool = False
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(2048, ge=1)
    chunk: Annotated[int, Operational] = Field(256, ge=1)

    @field_validator("scale")
    @classmethod
    def _rising(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value[0] >= value[1]:
            raise ValueError(f"{list(value)} must be two numbers, the lower first")
        return value


def run_annotate(inputs: dict[str, Any], config: AnnotateConfig, out: Path, meter: Meter) -> dict[str, Any]:
    """Stage: problems.jsonl -> problems.jsonl with the field; removed.jsonl has those without an answer.

    Resumes after a crash: every chunk of problems is saved when done.
    """
    problems = read_problems(inputs["problems"] / "problems.jsonl")
    kept_known = [p for p in problems if config.keep_known and known(p, config.field) is not None]
    for problem in kept_known:
        if type(value := known(problem, config.field)) not in (int, float):
            raise InputError(
                f"annotate: problem {problem.id}: {config.field} is {value!r}, which keep_known can't keep: no number"
            )
    left_alone = {p.id for p in kept_known}
    asked = [p for p in problems if p.id not in left_alone]
    engine = open_engine(config.engine, inputs.get("model"), meter)
    sampling = Sampling(config.temperature, 1.0, config.max_tokens, meter.seed)
    name = digest(
        engine.name,
        to_json(sampling),
        template(config.template),
        config.field,
        config.scale,
        config.chunk,
        *map(to_json, asked),
    )
    try:
        done = run_chunks(
            asked,
            config.chunk,
            meter.scratch / f"annotations-{name}",
            lambda part: annotate(part, engine, sampling, config, meter),
            Problem,
            meter,
            note="problems",
        )
    finally:
        engine.close()
    answered = {p.id: p for p in done}
    rows = [answered.get(p.id, p) for p in problems]
    kept = [p for p in rows if FAILED not in p.meta]
    if not kept:
        raise InputError(f"annotate: none of the {len(problems)} problems got a valid {config.field}")
    write_jsonl(out / "problems.jsonl", kept)
    failed = ((p.id, *p.meta[FAILED]) for p in rows if FAILED in p.meta)
    write_rows(out / "removed.jsonl", ({"id": id, "reason": why, "detail": detail} for id, why, detail in failed))
    values = [known(p, config.field) for p in kept]
    return {
        "problems": len(kept),
        "asked": len(asked),
        "annotator": engine.name,
        "histogram": {f"{v:g}": values.count(v) for v in sorted(set(values))},
        "funnel": [["problems", len(problems)], [f"with a valid {config.field}", len(kept)]],
    }


def annotate(
    problems: Sequence[Problem], engine: Engine, sampling: Sampling, config: AnnotateConfig, meter: Meter
) -> list[Problem]:
    """The problems with the field set, in order; one that never got a valid answer carries the reason in its meta."""
    low, high = config.scale

    def read(completion: Completion) -> int:
        number = read_scale(completion.text, low, high)
        if number is None or completion.finish != "stop":
            shown = " ".join(completion.text.split())[-60:]
            raise Unfit(f"no whole number from {low} to {high} in {ASKS} answers", f"the last was {shown!r}")
        return number

    asked = ask_until_valid({p.id: ask(p, config.template) for p in problems}, read, engine, sampling, meter)
    return [
        _set(p, config.field, asked[p.id].value)
        if (unfit := asked[p.id].unfit) is None
        else replace(p, meta={**p.meta, FAILED: [unfit.reason, unfit.detail]})
        for p in problems
    ]


def read_scale(text: str, low: int, high: int) -> int | None:
    """The last whole number of an answer, after any thinking, if it lies on the scale; "7/10" is 7."""
    answer = re.sub(rf"\s*(?:/|out of)\s*{high}\b", "", text.rpartition("</think>")[2])
    numbers = re.findall(r"(?<![\d.])-?\d+(?!\.?\d)", answer)
    return int(numbers[-1]) if numbers and len(numbers[-1]) < 10 and low <= int(numbers[-1]) <= high else None


def known(problem: Problem, field: str) -> Any:
    """The field's value, or None."""
    return problem.difficulty if field == "difficulty" else problem.meta.get(field)


def _set(problem: Problem, field: str, number: int) -> Problem:
    if field == "difficulty":
        return replace(problem, difficulty=float(number))
    return replace(problem, meta={**problem.meta, field: number})
