"""`op: decontaminate`: problems without what a benchmark would recognise."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from fathom.chunks import write_rows
from fathom.config import Input, StageConfig
from fathom.curate import decontaminate
from fathom.curate.decontaminate import HeldOut, Rules
from fathom.curate.funnel import finish
from fathom.errors import InputError
from fathom.records import read_problems
from fathom.sources import benchmarks
from fathom.sources.benchmarks import BenchmarkChoice

if TYPE_CHECKING:
    from fathom.ledger import Meter


class DecontaminateConfig(StageConfig):
    """`op: decontaminate`. benchmarks: the evaluation problems, named as in `op: evaluate`.

    rules: what counts as contamination; rules_for: other rules for the benchmark of that name.
    """

    problems: Input
    benchmarks: list[BenchmarkChoice] = Field(min_length=1)
    rules: Rules = Rules()
    rules_for: dict[str, Rules] = Field({})


def run_decontaminate(inputs: dict[str, Any], config: DecontaminateConfig, out: Path, meter: Meter) -> dict[str, Any]:
    """Stage: problems.jsonl without what a benchmark would recognise; removed.jsonl names rule and both texts."""
    problems = read_problems(inputs["problems"] / "problems.jsonl")
    names = [choice.name for choice in config.benchmarks]
    for name in config.rules_for:
        if name not in names:
            raise InputError(f"decontaminate: rules_for names {name!r}; the benchmarks are {', '.join(names)}")
    held_out = [
        HeldOut(
            choice.name, benchmarks.load(choice, meter.seed).problems, config.rules_for.get(choice.name, config.rules)
        )
        for choice in config.benchmarks
    ]
    matches = list(decontaminate.find_leaks(problems, held_out))
    gone = {m.problem.id for m in matches}
    kept = [p for p in problems if p.id not in gone]
    write_rows(out / "removed.jsonl", (m.row() for m in matches))
    left = len(problems)
    funnel: list[list[object]] = [["problems", left]]
    by_benchmark = Counter(m.benchmark for m in matches)
    for name in names:
        left -= by_benchmark[name]
        funnel.append([f"not in {name}", left])
    found = {
        "by_rule": dict(sorted(Counter(m.rule for m in matches).items())),
        "by_benchmark": {name: by_benchmark[name] for name in names},
        "benchmark_problems": {b.name: len(b.problems) for b in held_out},
    }
    return finish("decontaminate", out, kept, funnel, found)
