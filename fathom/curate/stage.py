"""The curation ops: read records, call the pure functions beside this file, write what stays and what goes.

Every op writes removed.jsonl, so that rows in = rows kept + rows removed, and a funnel for the report.
An op that is left with nothing stops with one line instead of handing on an empty artifact.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from fathom.bands import Count, Window, count_solved, fit_prior
from fathom.chunks import write_rows
from fathom.config import Input, ModelInput, StageConfig
from fathom.curate import decontaminate, dedup, select
from fathom.curate.decontaminate import HeldOut, Rules
from fathom.curate.examples import make_example
from fathom.curate.select import Funnel
from fathom.curate.solve_rate import with_solve_rate
from fathom.errors import InputError
from fathom.prompts import Prompt
from fathom.records import Problem, Rollout, read_jsonl, read_problems, write_jsonl
from fathom.sources import benchmarks
from fathom.sources.benchmarks import BenchmarkChoice

if TYPE_CHECKING:
    from fathom.ledger import Meter


class DedupConfig(StageConfig):
    """`op: dedup`. similarity: least Jaccard similarity of content words at equal numbers and gold.

    chains: the artifact whose rollouts.jsonl says which row has the most chains (default: `problems`).
    """

    problems: Input
    chains: Input | None = None
    similarity: float = Field(0.5, ge=0, le=1)


def run_dedup(inputs: dict[str, Any], config: DedupConfig, out: Path, meter: Meter) -> dict[str, Any]:
    """Stage: problems.jsonl without repeats; removed.jsonl says which row each one repeats and why."""
    problems = _problems(inputs["problems"])
    recorded = (inputs.get("chains") or inputs["problems"]) / "rollouts.jsonl"
    chains = Counter(r.problem_id for r in read_jsonl(recorded, Rollout)) if recorded.exists() else Counter()
    repeats = dedup.find_repeats(problems, chains, config.similarity)
    gone = {r.row for r in repeats}
    kept = [p for i, p in enumerate(problems) if i not in gone]
    same = sum(r.rule != "similar" for r in repeats)
    write_rows(out / "removed.jsonl", dedup.removed_rows(problems, repeats))
    funnel = [
        ["problems", len(problems)],
        ["without equal texts", len(problems) - same],
        ["without near-duplicates", len(kept)],
    ]
    return _finish("dedup", out, kept, funnel, {"by_rule": dict(sorted(Counter(r.rule for r in repeats).items()))})


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
    problems = _problems(inputs["problems"])
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
    return _finish("decontaminate", out, kept, funnel, found)


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
    funnel = Funnel(_problems(inputs["problems"]))

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
    return _finish("solve_rate", out, measured, funnel.steps, found)


class SelectConfig(StageConfig):
    """`op: select`. Cuts in this order: solve rate, difficulty, a usable chain, quotas, limit.

    difficulty: a window, or `above_average` of all problems that come in. chain: which of the
    verified-correct, untruncated chains (of at most max_tokens) becomes the training row.
    quotas: most problems per source. prompt, system: as in `op: rollout`.
    """

    problems: Input
    chains: Input
    solve_rate: Window | None = None
    difficulty: Literal["above_average"] | Window | None = None
    chain: select.ChainChoice = "first"
    max_tokens: int | None = Field(None, ge=1)
    quotas: dict[str, int] = Field({})
    limit: int | None = Field(None, ge=1)
    order: select.Order = "none"
    prompt: Prompt | None = None
    system: str | None = None


def run_select(inputs: dict[str, Any], config: SelectConfig, out: Path, meter: Meter) -> dict[str, Any]:
    """Stage: problems.jsonl and examples.jsonl of the chosen problems, in training order; removed.jsonl the rest."""
    funnel = Funnel(_problems(inputs["problems"]))
    chains = select.usable_chains(read_jsonl(inputs["chains"] / "rollouts.jsonl", Rollout), config.max_tokens)
    difficulty = select.above_average(funnel.problems) if config.difficulty == "above_average" else config.difficulty
    if config.solve_rate:
        funnel.keep(f"solve rate {config.solve_rate}", select.in_window("solve_rate", config.solve_rate))
    if difficulty:
        funnel.keep(f"difficulty {difficulty}", select.in_window("difficulty", difficulty))
    funnel.keep("with a correct chain", lambda p: None if p.id in chains else "no correct, complete chain")
    if config.quotas:
        funnel.keep("within the quotas", select.over_quota(funnel.problems, config.quotas, meter.seed))
    if config.limit:
        funnel.keep(f"limit {config.limit}", select.over_limit(funnel.problems, config.limit, meter.seed))
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
    return _finish("select", out, problems, funnel.steps, found)


class TokenizeConfig(StageConfig):
    """`op: tokenize` (`curate/tokenize.py`, which needs a tokenizer library as this module does not).

    model: whose tokenizer and template. max_length: prompt and completion together, in tokens.
    """

    examples: Input
    model: ModelInput
    max_length: int = Field(16384, ge=1)


def _known_mean(tokens: list[int]) -> float | None:
    return round(sum(tokens) / len(tokens), 2) if tokens and all(tokens) else None


def _problems(directory: Path) -> list[Problem]:
    return read_problems(directory / "problems.jsonl")


def _finish(
    op: str, out: Path, kept: list[Problem], funnel: list[list[object]], found: dict[str, Any]
) -> dict[str, Any]:
    """Write the problems and return the metrics. Raises InputError, with the funnel, when none is left."""
    if not kept:
        raise InputError(f"{op}: no problem left: " + ", ".join(f"{label} {count}" for label, count in funnel))
    write_jsonl(out / "problems.jsonl", kept)
    return {"problems": len(kept), **found, "funnel": funnel}
