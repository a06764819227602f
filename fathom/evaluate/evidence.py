"""What stands behind one figure of a claim: stored rollouts, a published row, or the claim's own words.

Each becomes a `Side` with its value and its noise. Which verdict follows is `claims.py`'s business;
docs/statistics.md states the model of a published figure's noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fathom.errors import InputError
from fathom.evaluate import intervals, metrics, power, published
from fathom.evaluate.claim_text import Claim
from fathom.evaluate.published import Figure
from fathom.evaluate.scores import Scores
from fathom.sources import benchmarks

Z95 = intervals.normal_quantile(0.975)


@dataclass(frozen=True)
class Side:
    """One rate with its noise.

    within: variance of one sample's value, averaged over problems: estimated from rollouts, else the
    bound P(1 - P). chains: sampled per problem; samples: the same for pass@1, and 1 for a majority vote,
    where one sample is the whole vote. ci: 95% over problems. misquoted: how the claim misstates
    its source, or "". scores: the rollouts, where there are any.
    """

    model: str
    value: float
    problems: int
    samples: int
    chains: int
    within: float
    ci: intervals.Interval
    source: str
    scores: Scores | None = None
    notes: tuple[str, ...] = ()
    misquoted: str = ""

    @property
    def variance(self) -> float:
        """Of the rate over reruns on the same problems."""
        return self.within / self.samples / self.problems

    def shown(self) -> dict[str, Any]:
        """What a reader needs of it."""
        return {
            "model": self.model,
            "value": self.value,
            "problems": self.problems,
            "samples": self.chains,
            "source": self.source,
            "rerun_half_width": Z95 * math.sqrt(self.variance),
            "ci_over_problems": list(self.ci),
        }


def from_rollouts(score: Scores, claim: Claim) -> Side:
    """A rate measured by stored rollouts, its noise estimated from them. Raises InputError for a single problem."""
    if len(score.problem_ids) < 2:
        raise InputError(
            f"claim {claim.text!r}: the run has one problem of {claim.benchmark}, and an interval needs two"
        )
    if claim.metric == "cons":
        values, samples = score.consensus, 1
        pairs = zip(score.votes, score.correct, strict=True)
        within = float(np.mean([_vote_variance(votes, correct) for votes, correct in pairs]))
    else:
        values, samples = score.solve_rates, score.samples
        within = power.within_variance(score.correct) if samples > 1 else float(values.mean() * (1 - values.mean()))
        within = max(within, _least_variance(len(values) * samples))
    ci = intervals.rate_interval(values, samples)
    source = f"rollouts, {score.setting}"
    return Side(score.model, float(values.mean()), len(values), samples, score.samples, within, ci, source, score)


def _least_variance(chains: int) -> float:
    """Of one sample's value: chains that all agree show a rate near 0 or 1, and not one that is certain.

    The rate is Agresti and Coull's, two right and two wrong ones added.
    """
    rate = 2 / (chains + 4)
    return rate * (1 - rate)


def _vote_variance(votes: np.ndarray, correct: np.ndarray, draws: int = 200) -> float:
    """Variance of one problem's vote credit over reruns, by resampling its chains (seeded)."""
    picks = np.random.default_rng(0).integers(0, len(votes), size=(draws, len(votes)))
    return float(np.var(metrics.majority_credits(votes[picks], correct[picks])))


def from_figure(figure: Figure) -> Side:
    """A published rate, its noise bounded."""
    notes = () if figure.on_grid else (_off_grid(figure),)
    side = _bounded(figure.model, figure.value, figure.problems, figure.samples, figure.metric, figure.source)
    return replace(side, notes=notes)


def stated(claim: Claim, model: str, value: float, problems: int | None = None) -> Side:
    """A figure in the claim's own words: as published where it is, else with the stated k, else one run.

    problems: how many the benchmark has, where a run says so. Raises InputError where nothing does.
    """
    same = [f for f in published.find(model, claim.benchmark, claim.metric) if agrees(value, f)]
    if same and claim.samples in (None, same[0].samples):
        return from_figure(same[0])
    entry = benchmarks.table().get(claim.benchmark)
    problems = problems or (entry.problems if entry else None)
    if problems is None:
        raise InputError(f"claim {claim.text!r}: nothing says how many problems {claim.benchmark!r} has")
    return _bounded(model, value, problems, claim.samples or 1, claim.metric, "the claim")


def _bounded(model: str, value: float, problems: int, chains: int, metric: str, source: str) -> Side:
    samples = chains if metric == "pass1" else 1
    ci = intervals.score_interval(value, problems)
    within = max(value * (1 - value), _least_variance(problems * samples))
    return Side(model, value, problems, samples, chains, within, ci, source)


def best(claim: Claim, model: str, value: float | None, runs: list[Scores]) -> Side:
    """The best evidence for one side of a comparison: the run's, else the published, else the stated figure."""
    score = pick(claim, model, runs, alone=False)
    there = next((len(s.problem_ids) for s in runs if s.setting.benchmark == claim.benchmark), None)
    if score is not None:
        return from_rollouts(score, claim)
    listed = published.find(model, claim.benchmark, claim.metric)
    own = [figure for figure in listed if not figure.reproduction]
    if value is None:
        if own:
            return from_figure(own[0])
        raise InputError(
            f"claim {claim.text!r}: {model} on {claim.benchmark} is neither in the run nor published; state its figure"
        )
    side = stated(claim, model, value, there)
    if own and not any(agrees(value, figure) for figure in listed):
        return replace(side, misquoted=f"the published figure is {own[0].value:.2%}, not {value:.2%}")
    return side


def pick(claim: Claim, model: str, runs: list[Scores], alone: bool = True) -> Scores | None:
    """The run's scores of a model on the claim's benchmark; None when it has none and `alone` is false.

    alone: a run of a single model need not share the claim's name for it. Raises InputError when the
    model can't be told.
    """
    there = [score for score in runs if score.setting.benchmark == claim.benchmark]
    if claim.temperature is not None:
        there = [score for score in there if score.setting.temperature == claim.temperature]
    named = [score for score in there if published.same_name(score.model, model)]
    if not named and alone and len({score.model for score in there}) == 1:
        named = there
    if not named and alone:
        models = ", ".join(sorted({score.model for score in there})) or "no model"
        raise InputError(f"claim {claim.text!r}: the run has {models} on {claim.benchmark}, not {model!r}")
    if len(settings := {score.setting: score for score in named}) > 1:
        told = ", ".join(map(str, settings))
        how = "with T=" if len({setting.temperature for setting in settings}) > 1 else "by a run that has one of them"
        raise InputError(f"claim {claim.text!r}: the run has {named[0].model} as {told}; say which, {how}")
    return named[0] if named else None


def agrees(value: float, figure: Figure) -> bool:
    """Equal as far as both are printed: to half a unit of the last decimal, or to 0.05 points."""
    return abs(value - figure.value) * 100 <= max(0.05, 0.5 / 10**figure.decimals) + 1e-9


def _off_grid(figure: Figure) -> str:
    return (
        f"{figure.model} {figure.benchmark} {figure.value:.2%} can't come from {figure.problems} problems x "
        f"{figure.samples} samples: no whole number of right answers gives it"
    )
