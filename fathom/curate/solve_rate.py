"""Solve rates: the fraction of a model's chains that reach the gold, with its uncertainty.

The rate itself is the plain fraction that the published recipes select on; the interval is the
posterior of that probability under a uniform prior, and says how little eight chains tell. It holds
whatever rule ended the sampling; the fraction itself lies a little further from the nearest edge of a
window where the sampling stopped for being clear of that edge.
"""

from __future__ import annotations

from dataclasses import replace
from math import exp, lgamma, log, log1p

from fathom.bands import Count
from fathom.records import Problem


def posterior_interval(count: Count, level: float = 0.95) -> tuple[float, float]:
    """Equal-tailed interval of Beta(correct + 1, wrong + 1), the posterior under a uniform prior."""
    tail = (1 - level) / 2
    return _quantile(count, tail), _quantile(count, 1 - tail)


def _quantile(count: Count, p: float) -> float:
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _beta_cdf(count, middle) < p else (low, middle)
    return round((low + high) / 2, 6)


def _beta_cdf(count: Count, x: float) -> float:
    """P(rate <= x): for whole counts the Beta integral is the binomial tail over chains + 1 trials."""
    trials = count.chains + 1
    whole, yes, no = lgamma(trials + 1), log(x), log1p(-x)
    return sum(
        exp(whole - lgamma(j + 1) - lgamma(trials - j + 1) + j * yes + (trials - j) * no)
        for j in range(count.correct + 1, trials + 1)
    )


def with_solve_rate(problem: Problem, count: Count, level: float = 0.95) -> Problem:
    """The problem with its solve rate; counts and interval stand in `meta.solve_rate`."""
    low, high = posterior_interval(count, level)
    about = {"correct": count.correct, "chains": count.chains, "low": low, "high": high}
    return replace(problem, solve_rate=count.rate, meta={**problem.meta, "solve_rate": about})
