"""`op: decontaminate`: problems without what a benchmark would recognise, and the certificate that says so."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from fathom.chunks import write_rows
from fathom.config import Input, Operational, StageConfig
from fathom.curate import certificate, decontaminate
from fathom.curate.corpus import Corpus
from fathom.curate.decontaminate import HeldOut, Rules
from fathom.curate.funnel import metrics
from fathom.errors import InputError
from fathom.fanout import RayConfig, open_crew
from fathom.sources import benchmarks
from fathom.sources.benchmarks import BenchmarkChoice

if TYPE_CHECKING:
    from fathom.ledger import Meter


class DecontaminateConfig(StageConfig):
    """`op: decontaminate`. benchmarks: the evaluation problems, named as in `op: evaluate`.

    rules: what counts as contamination; rules_for: other rules for the benchmark of that name.
    workers: processes of this machine;
    null is one per processor. ray: a cluster in their place.
    """

    problems: Input
    benchmarks: list[BenchmarkChoice] = Field(min_length=1)
    rules: Rules = Rules()
    rules_for: dict[str, Rules] = Field({})
    workers: Annotated[int | None, Operational] = Field(None, ge=1)
    ray: Annotated[RayConfig | None, Operational] = None


def run_decontaminate(inputs: dict[str, Any], config: DecontaminateConfig, out: Path, meter: Meter) -> dict[str, Any]:
    """Stage: problems.jsonl without what a benchmark would recognise; certificate.json and .md; removed.jsonl."""
    held_out = _held_out(config, meter.seed)
    with Corpus(inputs["problems"] / "problems.jsonl") as problems:
        with open_crew(config.ray, config.workers) as crew:
            leaks = decontaminate.find_leaks(problems, held_out, crew, meter.progress)
        by_benchmark = Counter(leak.best.benchmark for leak in leaks)
        left = len(problems)
        funnel: list[list[object]] = [["problems", left]]
        for benchmark in held_out:
            left -= by_benchmark[benchmark.name]
            funnel.append([f"not in {benchmark.name}", left])
        found = {
            "by_rule": dict(sorted(Counter(leak.best.rule for leak in leaks).items())),
            "by_benchmark": {b.name: by_benchmark[b.name] for b in held_out},
            "benchmark_problems": {b.name: len(b.problems) for b in held_out},
        }
        found = metrics("decontaminate", left, funnel, found)
        problems.copy_without({leak.row for leak in leaks}, out / "problems.jsonl")
        write_rows(out / "removed.jsonl", (leak.removed(problems[leak.row]) for leak in leaks))
        certificate.write(out, certificate.certify(problems, leaks, held_out, out / "problems.jsonl"))
    return found


def _held_out(config: DecontaminateConfig, seed: int) -> list[HeldOut]:
    names = benchmarks.names(config.benchmarks)
    for name in config.rules_for:
        if name not in names:
            raise InputError(f"decontaminate: rules_for names {name!r}; the benchmarks are {', '.join(names)}")
    return [
        HeldOut(choice.name, benchmarks.load(choice, seed).problems, config.rules_for.get(choice.name, config.rules))
        for choice in config.benchmarks
    ]
