"""Graded rollouts as arrays: what the metrics need of one model, benchmark and sampling.

Reads rollouts and groups them; computes no metric itself (`metrics.py`, `intervals.py`) except
to fill the row of `results.json`, whose keys are promised in docs/.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from fathom import graders
from fathom.errors import InputError
from fathom.evaluate import intervals, metrics
from fathom.records import Rollout, Sampling
from fathom.votes import Equivalent, cluster_votes


@cache
def same_answer(a: str, b: str) -> bool:
    """`graders.equivalent`, remembered: the same two answers meet at every temperature and in every run."""
    return graders.equivalent(a, b)


class Setting(NamedTuple):
    """Two runs are comparable when these are equal."""

    benchmark: str
    temperature: float | None
    top_p: float | None
    max_tokens: int | None

    def __str__(self) -> str:
        drawn = "unknown sampling" if self.temperature is None else f"T={self.temperature:g} top_p={self.top_p:g}"
        return f"{self.benchmark} ({drawn}, {self.max_tokens} tokens)"


@dataclass(frozen=True)
class Scores:
    """One model on one benchmark under one sampling; the tuples run over problems, their arrays over samples.

    correct: bool. votes: cluster labels (`votes.cluster_votes`). tokens: completion lengths.
    truncated: bool. unusable: ids of problems whose gold the grader can't read; they are left out.
    """

    model: str
    setting: Setting
    problem_ids: tuple[str, ...]
    correct: tuple[np.ndarray, ...]
    votes: tuple[np.ndarray, ...]
    tokens: tuple[np.ndarray, ...]
    truncated: tuple[np.ndarray, ...]
    unusable: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        """Samples per problem; the smallest number where problems differ."""
        return min(len(correct) for correct in self.correct)

    @property
    def solve_rates(self) -> np.ndarray:
        return metrics.solve_rates(self.correct)

    @property
    def consensus(self) -> np.ndarray:
        return metrics.consensus(self.votes, self.correct)

    @property
    def counted(self) -> bool:
        """Whether token counts are known (stored generations of others often lack them)."""
        return any(tokens.any() for tokens in self.tokens)

    @property
    def mean_tokens(self) -> np.ndarray:
        """Mean completion tokens of each problem; shape (problems,)."""
        return np.array([tokens.mean() for tokens in self.tokens])

    @property
    def pass_at(self) -> dict[str, float]:
        """Unbiased pass@k for k = 1, 2, 4, ... up to the samples that every problem has."""
        drawn = np.array([len(correct) for correct in self.correct])
        right = np.array([correct.sum() for correct in self.correct])
        ks = [2**power for power in range(self.samples.bit_length())]
        return {str(k): float(metrics.pass_at_k(drawn, right, k).mean()) for k in ks}

    def restricted(self, problem_ids: Sequence[str]) -> Scores:
        """The same for some of the problems, in the order given."""
        place = {problem_id: i for i, problem_id in enumerate(self.problem_ids)}
        at = [place[problem_id] for problem_id in problem_ids]
        columns = (self.correct, self.votes, self.tokens, self.truncated)
        picked = (tuple(column[i] for i in at) for column in columns)
        return Scores(self.model, self.setting, tuple(problem_ids), *picked)


def collect(rollouts: Iterable[Rollout], equivalent: Equivalent | None = same_answer) -> list[Scores]:
    """Group graded rollouts by model, benchmark (`meta["benchmark"]`) and sampling, in order of appearance.

    equivalent: decides which answers are one vote; with None, equal strings are.
    Raises InputError for a rollout without a verdict, one that occurs twice, or a group in which no
    gold answer is usable.
    """
    groups: dict[tuple[str, Setting], dict[str, dict[int, Rollout]]] = {}
    for rollout in rollouts:
        if rollout.verdict is None:
            raise InputError(
                f"rollout {rollout.index} of problem {rollout.problem_id!r} has no verdict; grade it first"
            )
        group = groups.setdefault((rollout.model, _setting(rollout)), {})
        chains = group.setdefault(rollout.problem_id, {})
        if rollout.index in chains:
            raise InputError(
                f"rollout {rollout.index} of problem {rollout.problem_id!r} by {rollout.model} occurs twice"
            )
        chains[rollout.index] = rollout
    return [_scores(model, setting, group, equivalent) for (model, setting), group in groups.items()]


def _setting(rollout: Rollout) -> Setting:
    sampling: Sampling | None = rollout.sampling
    benchmark = rollout.meta.get("benchmark", "unnamed")
    if sampling is None:
        return Setting(benchmark, None, None, None)
    return Setting(benchmark, sampling.temperature, sampling.top_p, sampling.max_tokens)


def _scores(
    model: str, setting: Setting, group: dict[str, dict[int, Rollout]], equivalent: Equivalent | None
) -> Scores:
    usable, unusable = {}, []
    for problem_id, by_index in group.items():
        chains = [by_index[index] for index in sorted(by_index)]
        if any(chain.verdict.correct is None for chain in chains):
            unusable.append(problem_id)
        else:
            usable[problem_id] = chains
    if not usable:
        raise InputError(f"{setting}: no problem has a gold answer that the grader can use")
    chains_by_problem = list(usable.values())
    return Scores(
        model,
        setting,
        tuple(usable),
        correct=tuple(np.array([c.verdict.correct for c in chains]) for chains in chains_by_problem),
        votes=tuple(_votes(chains, equivalent) for chains in chains_by_problem),
        tokens=tuple(np.array([c.tokens for c in chains]) for chains in chains_by_problem),
        truncated=tuple(np.array([c.finish == "length" for c in chains]) for chains in chains_by_problem),
        unusable=tuple(unusable),
    )


def _votes(chains: Sequence[Rollout], equivalent: Equivalent | None) -> np.ndarray:
    """Only mathematical answers have equivalent forms; letters and programs vote as they are written."""
    mathematical = all(chain.verdict.grader.startswith("math") for chain in chains)
    return cluster_votes([chain.verdict.answer for chain in chains], equivalent if mathematical else None)


def result_row(scores: Scores, base: Scores | None = None) -> dict[str, Any]:
    """One row of `results.json`: rates are fractions of 1, `cons` is cons@k with k = `samples`.

    base: the base model's scores under the same setting, for `vs_base`, paired by problem.
    Intervals need two problems; with one they are null.
    """
    rates, credits = scores.solve_rates, scores.consensus
    several = len(rates) > 1
    return {
        "model": scores.model,
        "benchmark": scores.setting.benchmark,
        "temperature": scores.setting.temperature,
        "top_p": scores.setting.top_p,
        "problems": len(rates),
        "samples": scores.samples,
        "max_tokens": scores.setting.max_tokens,
        "pass1": float(rates.mean()),
        "pass1_ci": list(intervals.rate_interval(rates, scores.samples)) if several else None,
        "cons": float(credits.mean()),
        "cons_ci": list(intervals.rate_interval(credits, samples=1)) if several else None,
        "tokens_mean": float(scores.mean_tokens.mean()) if scores.counted else None,
        "truncated": metrics.truncation_rate(scores.truncated),
        "vs_base": versus(scores, base) if base is not None else None,
    }


def versus(scores: Scores, base: Scores) -> dict[str, Any]:
    """`scores` minus `base` over the problems both have: pass@1 difference, its interval, ratio of mean tokens.

    The two may have different numbers of samples. Raises InputError for fewer than two shared problems.
    """
    ours, theirs = shared(scores, base)
    counted = ours.counted and theirs.counted
    difference = intervals.paired_difference(ours.solve_rates, theirs.solve_rates, min(ours.samples, theirs.samples))
    return {
        "pass1_diff": difference.mean,
        "ci": list(difference.ci),
        "tokens_ratio": float(ours.mean_tokens.mean() / theirs.mean_tokens.mean()) if counted else None,
    }


def shared(a: Scores, b: Scores) -> tuple[Scores, Scores]:
    """Both restricted to the problems that both have, in a's order."""
    known = set(b.problem_ids)
    both = [problem_id for problem_id in a.problem_ids if problem_id in known]
    if len(both) < 2:
        raise InputError(
            f"{a.setting}: {a.model} and {b.model} share {len(both)} problems; a paired difference needs 2"
        )
    return a.restricted(both), b.restricted(both)
