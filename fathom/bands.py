"""Bands of solve rates: which selections would take a problem, and when its chains are enough to tell.

A problem's band is, window by window, whether the window holds its solve rate. Pure functions from
counts to decisions: nothing here samples, grades or reads files.

Two sets of 64 chains of the same problem often disagree where its rate is near a window's edge, so
"the same band as 64 chains give" means: a band that those 64 chains don't rule out. They rule out what
another 64 would give with a chance below `PLAUSIBLE`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import comb, exp, lgamma, log
from typing import Any

from pydantic import Field, field_validator, model_validator

from fathom.config import StageConfig
from fathom.records import Rollout, within

REFERENCE = 64
"""Chains per problem that count as measuring its rate well."""

PLAUSIBLE = 0.05
"""What another `REFERENCE` chains would give with a smaller chance than this, the first ones rule out."""

SHAPES = [2.0 ** (step / 4) for step in range(-18, 17)]
"""Parameters that a fitted prior may have: from nearly all-or-nothing to a narrow hump."""


class Window(StageConfig):
    """Bounds of a number: min and max include their value, above and below exclude it."""

    min: float | None = None
    max: float | None = None
    above: float | None = None
    below: float | None = None

    @model_validator(mode="after")
    def _holds_something(self) -> Window:
        low = max((edge for edge in (self.min, self.above) if edge is not None), default=-math.inf)
        high = min((edge for edge in (self.max, self.below) if edge is not None), default=math.inf)
        if low > high or (low == high and not self.holds(low)):
            raise ValueError(f"no number is {self}")
        return self

    def holds(self, value: float) -> bool:
        return (
            (self.min is None or value >= self.min)
            and (self.max is None or value <= self.max)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        signs = {"min": ">=", "above": ">", "max": "<=", "below": "<"}
        return " and ".join(f"{s} {getattr(self, k):.4g}" for k, s in signs.items() if getattr(self, k) is not None)


class Until(StageConfig):
    """When a problem has chains enough: after any wave in which its band is certain.

    windows: of the selections that will read the solve rate. agreement: expected share of problems
    whose band `REFERENCE` chains would not rule out. wave: chains per problem between two
    decisions. max_tokens: a longer chain counts as unsolved, as in `op: solve_rate`.
    """

    windows: list[Window] = Field(min_length=1)
    agreement: float = Field(0.975, ge=0.5, lt=1)
    wave: int = Field(2, ge=1)
    max_tokens: int | None = Field(None, ge=1)

    @field_validator("windows")
    @classmethod
    def _has_an_edge(cls, windows: list[Window]) -> list[Window]:
        for window in windows:
            if len({window.holds(correct / REFERENCE) for correct in range(REFERENCE + 1)}) == 1:
                raise ValueError(f"the window {window} has no edge between the rates 0 and 1")
        return windows


@dataclass(frozen=True)
class Count:
    """correct of `chains` usable chains of one problem."""

    correct: int = 0
    chains: int = 0

    @property
    def rate(self) -> float:
        """The plain fraction that selections read; `chains` must not be 0."""
        return self.correct / self.chains


@dataclass(frozen=True)
class Prior:
    """Beta(solved, failed): how the solve rates of a corpus are spread."""

    solved: float = 1.0
    failed: float = 1.0

    @property
    def mean(self) -> float:
        return self.solved / (self.solved + self.failed)


def count_solved(rollouts: Iterable[Rollout], max_tokens: int | None = None) -> dict[str, Count]:
    """Counts by problem id. A chain without a usable verdict (bad gold) does not count at all.

    max_tokens: a longer chain counts as unsolved, as if it had been cut there; truncated chains are
    unsolved by their own verdict.
    """
    counts: dict[str, Count] = {}
    for r in rollouts:
        if r.verdict is None or r.verdict.correct is None:
            continue
        solved = r.verdict.correct and within(r, max_tokens)
        old = counts.get(r.problem_id, Count())
        counts[r.problem_id] = Count(old.correct + solved, old.chains + 1)
    return counts


def open_counts(times: Mapping[Count, float], until: Until, cap: int, prior: Prior) -> set[Count]:
    """Which counts ask for another wave; `times` says how many problems stand at each.

    The least certain ones are raised to a common level, the one at which the mean certainty of all
    problems would be `until.agreement`. Counts of `cap` chains stay as they are. Nobody is left once
    the mean is there.
    """
    sure = {count: certainty(count, prior, until.windows) for count in times}
    lacking = sum(n * (until.agreement - sure[count]) for count, n in times.items())
    going: set[Count] = set()
    problems = certain = 0.0  # of `going`: how many, and the sum of their certainty
    for count in sorted((c for c in times if c.chains < cap), key=lambda c: (sure[c], c.chains, c.correct)):
        if problems * sure[count] - certain >= lacking:  # what raising all of them to this one's would add
            break
        going.add(count)
        problems += times[count]
        certain += times[count] * sure[count]
    return going


def certainty(count: Count, prior: Prior, windows: Sequence[Window]) -> float:
    """The chance that going on to `REFERENCE` chains would not rule out this count's band; the least over windows."""
    more = _beta_binomial(
        REFERENCE - count.chains, prior.solved + count.correct, prior.failed + count.chains - count.correct
    )
    return min(
        sum(p for hits, p in enumerate(more) if w.holds(count.rate) in _left_open(w)[count.correct + hits])
        for w in windows
    )


def savings(rollouts: Sequence[Rollout], until: Until, fixed: Sequence[int] = (8, 16)) -> dict[str, Any]:
    """What sequential sampling took, as plain JSON, beside `fixed` chains of every problem.

    saved: share of the chains and tokens that a fixed number would have taken, each further chain as long
    as the mean of its problem's; tokens are None where an engine doesn't count them.
    """
    counts = count_solved(rollouts, until.max_tokens)
    times = Counter(counts.values())
    prior = fit_prior(times)
    drawn = Counter(r.problem_id for r in rollouts)
    tokens: Counter[str] = Counter()
    for r in rollouts:
        tokens[r.problem_id] += r.tokens
    total, per_chain = sum(tokens.values()), sum(tokens[key] / n for key, n in drawn.items())
    sure = sum(n * certainty(count, prior, until.windows) for count, n in times.items())
    return {
        "chains_mean": round(len(rollouts) / len(drawn), 3),
        "problems_by_chains": {str(n): problems for n, problems in sorted(Counter(drawn.values()).items())},
        "expected_agreement": round(sure / len(counts), 4) if counts else None,
        "prior": {"solved": round(prior.solved, 3), "failed": round(prior.failed, 3)},
        "saved": {
            str(k): {
                "chains": round(1 - len(rollouts) / (k * len(drawn)), 4),
                "tokens": round(1 - total / (k * per_chain), 4) if all(tokens[key] for key in drawn) else None,
            }
            for k in fixed
        },
    }


def same_band(count: Count, reference: Count, windows: Sequence[Window]) -> bool:
    """Whether a count's band is one that `REFERENCE` chains of the same problem don't rule out."""
    return all(w.holds(count.rate) in _left_open(w)[reference.correct] for w in windows)


@cache
def _left_open(window: Window) -> list[frozenset[bool]]:
    """By the number of correct ones among `REFERENCE` chains: which answers of the window they don't rule out."""
    held = [window.holds(correct / REFERENCE) for correct in range(REFERENCE + 1)]
    answers = []
    for correct in range(REFERENCE + 1):
        again = _beta_binomial(REFERENCE, 1 + correct, 1 + REFERENCE - correct)
        inside = sum(p for p, inside in zip(again, held, strict=True) if inside)
        likely = {answer for answer, p in ((True, inside), (False, 1 - inside)) if p >= PLAUSIBLE}
        answers.append(frozenset(likely | {held[correct]}))
    return answers


@cache
def _beta_binomial(trials: int, solved: float, failed: float) -> list[float]:
    """Chances of 0 .. `trials` correct chains when the rate is drawn from Beta(solved, failed)."""
    whole = _log_beta(solved, failed)
    return [
        comb(trials, hits) * exp(_log_beta(solved + hits, failed + trials - hits) - whole) for hits in range(trials + 1)
    ]


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)


def fit_prior(times: Mapping[Count, float]) -> Prior:
    """The Beta distribution, both parameters out of `SHAPES`, under which `times` problems have each count.

    Empirical Bayes. That sampling stopped early at some counts doesn't bias it: a likelihood doesn't
    depend on the rule that ended the counting. A corpus of a few problems says little: each parameter's
    logarithm is held near 0 (a uniform prior) by a standard normal distribution.
    """

    def likelihood(prior: Prior) -> float:
        whole = _log_beta(prior.solved, prior.failed)
        seen = sum(
            n * (_log_beta(prior.solved + c.correct, prior.failed + c.chains - c.correct) - whole)
            for c, n in times.items()
        )
        return seen - (log(prior.solved) ** 2 + log(prior.failed) ** 2) / 2

    return max((Prior(a, b) for a in SHAPES for b in SHAPES), key=likelihood)


def expected_chains(until: Until, cap: int, prior: Prior) -> float:
    """Mean chains per problem when rates are spread like `prior` and at most `cap` are drawn of each."""
    times: Counter[Count] = Counter({Count(): 1.0})
    going = {Count()}
    while going:
        for count in going:
            share = times.pop(count)
            more = min(until.wave, cap - count.chains)
            chances = _beta_binomial(more, prior.solved + count.correct, prior.failed + count.chains - count.correct)
            for hits, p in enumerate(chances):
                times[Count(count.correct + hits, count.chains + more)] += share * p
        going = open_counts(times, until, cap, prior)
    return sum(count.chains * share for count, share in times.items())
