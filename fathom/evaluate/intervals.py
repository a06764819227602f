"""95% intervals over problems and samples, paired differences, and Holm's correction.

The unit is the problem. A benchmark's problems are taken as draws from a population of such
problems and each problem's samples as draws from the model; the spread of the per-problem
values contains both, so no separate term for the samples is needed and runs with different
numbers of samples are handled alike. Treating all n x k samples as independent would give
intervals several times too narrow. `sampling_interval` answers the other question: what
another run of the same model on the *same* problems would give.

Coverage is checked by simulation in tests/test_intervals.py; docs/statistics.md has the table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import NormalDist

import numpy as np

Interval = tuple[float, float]


def t_cdf(t: float, df: int) -> float:
    """Student's t distribution function for whole degrees of freedom (Abramowitz & Stegun 26.7.3-4)."""
    theta = math.atan(abs(t) / math.sqrt(df))
    cos2 = math.cos(theta) ** 2
    steps = np.arange(2, df - 1, 2) if df % 2 else np.arange(1, df - 2, 2)
    series = np.cumprod(np.concatenate(([1.0], steps / (steps + 1) * cos2))).sum()
    if df % 2:
        tail = math.sin(theta) * math.cos(theta) * series if df > 1 else 0.0
        central = 2 / math.pi * (theta + tail)
    else:
        central = math.sin(theta) * series
    return 0.5 + math.copysign(central, t) / 2


@cache
def t_quantile(probability: float, df: int) -> float:
    """Inverse of `t_cdf` for a probability in [0.5, 1)."""
    low, high = 0.0, 1.0
    while t_cdf(high, df) < probability:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, df) < probability else (low, middle)
    return high


def rate_interval(values: Sequence[float], samples: float, level: float = 0.95) -> Interval:
    """Interval for the mean of per-problem rates (solve rates, vote credits), within [0, 1].

    values: one rate per problem. samples: how many samples stand behind one value (the mean
    number where problems differ; 1 for a majority vote, which is one outcome per problem).

    Wilson's score interval with the effective number of problems `n / design`, where `design` is
    the spread of the values relative to the spread of all-or-nothing problems with the same mean
    (Korn & Graubard 1998 use it for clustered surveys), and Student's t with n - 1 degrees of
    freedom. Where few problems are ever solved (or missed), the spread can't be measured; there
    `design` is pulled towards its widest value, 1. Raises ValueError for fewer than two problems.
    """
    values = np.asarray(values, dtype=float)
    n = len(values)
    if n < 2:
        raise ValueError(f"an interval over problems needs at least 2 problems, got {n}")
    mean = float(values.mean())
    return score_interval(mean, n / _design(values, mean, samples), t_quantile(0.5 + level / 2, n - 1))


def score_interval(rate: float, trials: float, quantile: float | None = None) -> Interval:
    """Wilson's score interval for a rate seen in (an effective number of) independent trials.

    quantile: of the reference distribution; the normal's 97.5% point by default.
    """
    z2 = (normal_quantile(0.975) if quantile is None else quantile) ** 2
    centre = rate + z2 / (2 * trials)
    half = math.sqrt(z2 * (rate * (1 - rate) / trials + z2 / (4 * trials**2)))
    scale = 1 + z2 / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def _design(values: np.ndarray, mean: float, samples: float) -> float:
    n = len(values)
    events = n * min(mean, 1 - mean)
    prior = 8 / (1 + events) ** 2
    mean_kept_inside = (n * mean + 1) / (n + 2)
    all_or_nothing = mean_kept_inside * (1 - mean_kept_inside)
    spread = ((values - mean) ** 2).sum() + prior * all_or_nothing
    widest = n * mean * (1 - mean) + prior * all_or_nothing
    return float(np.clip(spread / widest * n / (n - 1), 1 / samples, 1.0))


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's t interval for the mean of unbounded per-problem values (mean tokens)."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        raise ValueError(f"an interval over problems needs at least 2 problems, got {len(values)}")
    half = t_quantile(0.5 + level / 2, len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()) - half, float(values.mean()) + half


def sampling_interval(correct_by_problem: Sequence[Sequence[bool]], level: float = 0.95) -> Interval:
    """Interval for pass@1 on exactly these problems: only the sampling is uncertain.

    Needs at least two samples of every problem; normal approximation over all samples.
    """
    counts = np.array([len(correct) for correct in correct_by_problem])
    if len(counts) == 0 or counts.min() < 2:
        raise ValueError("the sampling noise can't be estimated from fewer than 2 samples per problem")
    rates = np.array([np.mean(correct) for correct in correct_by_problem])
    half = normal_quantile(0.5 + level / 2) * math.sqrt((rates * (1 - rates) / (counts - 1)).sum()) / len(counts)
    mean = float(rates.mean())
    return max(0.0, mean - half), min(1.0, mean + half)


def normal_quantile(probability: float) -> float:
    """Inverse of the standard normal distribution function."""
    return NormalDist().inv_cdf(probability)


@dataclass(frozen=True)
class Difference:
    """Mean of a - b over the same problems. p: two-sided; n: problems."""

    mean: float
    ci: Interval
    p: float
    n: int


def paired_difference(a: Sequence[float], b: Sequence[float], samples: float = 1, level: float = 0.95) -> Difference:
    """Difference of two runs over the same problems, in the same order; a - b.

    a, b: one rate per problem; the runs may have different numbers of samples. samples: the
    smaller number of samples behind one value.

    Student's t on the per-problem differences, which takes out how hard each problem is. When
    only a few problems differ at all, their spread is not to be trusted: as if one further
    sample had gone either way, `2 / samples^2` is added to the sum of squares with a weight that
    fades as differing samples accumulate (so no difference at all in n problems is not "0 ± 0").
    The interval stays within [-1, 1], where every difference of rates lies.
    """
    differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    n = len(differences)
    if n < 2:
        raise ValueError(f"a paired difference needs at least 2 shared problems, got {n}")
    mean = float(differences.mean())
    events = float((differences**2).sum()) * samples**2
    prior = 4 / (1 + events / 2) ** 2 * 2 / samples**2
    variance = (float(((differences - mean) ** 2).sum()) + prior) / (n - 1) / n
    found = difference_from(mean, math.sqrt(variance), n, level)
    return replace(found, ci=(max(-1.0, found.ci[0]), min(1.0, found.ci[1])))


def paired_mean_difference(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Difference:
    """Plain paired t for unbounded values (tokens)."""
    differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    n = len(differences)
    if n < 2:
        raise ValueError(f"a paired difference needs at least 2 shared problems, got {n}")
    return difference_from(float(differences.mean()), float(differences.std(ddof=1)) / math.sqrt(n), n, level)


def difference_from(mean: float, standard_error: float, n: int, level: float = 0.95) -> Difference:
    """A `Difference` from its mean and standard error, with Student's t on n - 1 degrees of freedom."""
    half = t_quantile(0.5 + level / 2, n - 1) * standard_error
    if standard_error > 0:
        p = 2 * (1 - t_cdf(abs(mean) / standard_error, n - 1))
    else:
        p = 1.0 if mean == 0 else 0.0
    return Difference(mean, (mean - half, mean + half), p, n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: reject where the result is at most the level for the whole table.

    Order is kept. Holm 1979; valid whatever the dependence between the tests.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in adjusted]
