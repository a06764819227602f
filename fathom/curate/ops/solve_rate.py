"""`op: solve_rate`: problems with the share of a model's chains that reach the gold."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from fathom.bands import Count, count_solved, fit_prior
from fathom.chunks import write_rows
from fathom.config import Input, StageConfig
from fathom.curate.funnel import Funnel, finish
from fathom.curate.solve_rate import with_solve_rate
from fathom.records import Problem, Rollout, read_jsonl, read_problems

if TYPE_CHECKING:
    from fathom.ledger import Meter


class SolveRateConfig(StageConfig):
    """`op: solve_rate`. max_tokens: a longer chain counts as unsolved. min_chains: problems with fewer go.

    level: of the posterior interval.
    """

    problems: Input
    chains: Input
    max_tokens: int | None = Field(None, ge=1)
    min_chains: int = Field(1, ge=1)
    level: float = Field(0.95, gt=0, lt=1)


def run_solve_rate(inputs: dict[str, Any], config: SolveRateConfig, out: Path, meter: Meter) -> dict[str, Any]:
    """Stage: problems.jsonl with `solve_rate` and its interval in `meta.solve_rate`.

    Among the metrics, `mean` is that of the fractions; after waves (`until` of `op: rollout`) it is biased,
    as a problem's fraction may be two of two, and `mean_fitted`, that of the fitted spread, is not.
    """
    counts = count_solved(read_jsonl(inputs["chains"] / "rollouts.jsonl", Rollout), config.max_tokens)
    funnel = Funnel(read_problems(inputs["problems"] / "problems.jsonl"))

    def too_few(problem: Problem) -> str | None:
        have = counts.get(problem.id, Count()).chains
        return f"{have} usable chains, {config.min_chains} needed" if have < config.min_chains else None

    funnel.keep(f"with {config.min_chains} or more usable chains", too_few)
    measured = [with_solve_rate(p, counts[p.id], config.level) for p in funnel.problems]
    write_rows(out / "removed.jsonl", funnel.removed)
    rates = [p.solve_rate for p in measured]
    histogram = Counter(min(9, int(10 * r)) for r in rates)
    found = {
        "chains_mean": round(sum(counts[p.id].chains for p in measured) / max(1, len(measured)), 3),
        "mean": round(sum(rates) / len(rates), 6) if rates else None,
        "mean_fitted": round(fit_prior(Counter(counts[p.id] for p in measured)).mean, 6),
        "histogram": {f"{i / 10:.1f}": histogram[i] for i in range(10)},
    }
    return finish("solve_rate", out, measured, funnel.steps, found)
