"""Intervals against tables, hand arithmetic and simulated coverage."""

import math
import time

import numpy as np
import pytest

from fathom.evaluate.intervals import (
    holm,
    mean_interval,
    paired_difference,
    rate_interval,
    sampling_interval,
    t_cdf,
    t_quantile,
)

DRAWS = 2000


@pytest.mark.parametrize(
    ("probability", "df", "expected"),
    # Percentage points of Student's t: Abramowitz & Stegun, table 26.10.
    [
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 3, 3.182),
        (0.975, 10, 2.228),
        (0.975, 29, 2.045),
        (0.95, 5, 2.015),
    ],
)
def test_t_quantile_matches_the_table(probability, df, expected):
    assert t_quantile(probability, df) == pytest.approx(expected, abs=5e-4)
    assert t_cdf(t_quantile(probability, df), df) == pytest.approx(probability)
    assert t_cdf(-t_quantile(probability, df), df) == pytest.approx(1 - probability)


def coverage(problems, samples, mean, precision, seed=0):
    """Share of 2,000 draws of problems ~ Beta, samples ~ Binomial whose interval holds the true mean."""
    random = np.random.default_rng(seed)
    rates = random.beta(mean * precision, (1 - mean) * precision, size=(DRAWS, problems))
    values = random.binomial(samples, rates) / samples
    intervals = np.array([rate_interval(row, samples) for row in values])
    return np.mean((intervals[:, 0] <= mean) & (mean <= intervals[:, 1]))


@pytest.mark.parametrize("mean", [0.15, 0.35, 0.6, 0.85])
@pytest.mark.parametrize(
    ("problems", "samples", "precision"),
    [(30, 64, 0.8), (30, 8, 2.0), (100, 8, 1.0), (100, 16, 5.0), (500, 4, 0.5), (500, 1, 1.0)],
)
def test_rate_interval_covers_93_to_97_percent(problems, samples, precision, mean):
    assert 0.93 <= coverage(problems, samples, mean, precision) <= 0.97


@pytest.mark.parametrize("mean", [0.03, 0.97])
@pytest.mark.parametrize(("problems", "samples"), [(30, 64), (100, 8), (200, 64)])
def test_with_one_to_six_problems_worth_of_events_it_stays_near(problems, samples, mean):
    assert 0.92 <= coverage(problems, samples, mean, precision=2.0) <= 0.99


def test_the_normal_interval_over_all_samples_would_be_far_too_narrow():
    random = np.random.default_rng(1)
    rates = random.beta(0.4, 0.4, size=(DRAWS, 30))
    means = (random.binomial(64, rates) / 64).mean(axis=1)
    half = 1.96 * np.sqrt(means * (1 - means) / (30 * 64))
    assert np.mean(np.abs(means - 0.5) <= half) < 0.5


@pytest.mark.parametrize(
    ("problems", "samples_a", "samples_b", "shift"),
    [(30, 64, 64, 0.0), (30, 16, 4, 0.1), (100, 8, 8, 0.05), (100, 64, 1, 0.05), (500, 1, 1, 0.03), (500, 16, 16, 0.0)],
)
def test_paired_interval_covers_93_to_97_percent(problems, samples_a, samples_b, shift):
    random = np.random.default_rng(2)
    shape, mean = (DRAWS, problems), 0.45
    base = random.beta(2 * mean, 2 * (1 - mean), size=shape)
    own = random.random(shape) < 0.3
    a = np.where(own, random.beta(2 * mean, 2 * (1 - mean), size=shape), base)
    a = a * (1 - shift) + shift
    truth = shift * (1 - mean)
    drawn_a = random.binomial(samples_a, a) / samples_a
    drawn_b = random.binomial(samples_b, base) / samples_b
    least = min(samples_a, samples_b)
    intervals = np.array([paired_difference(x, y, least).ci for x, y in zip(drawn_a, drawn_b, strict=True)])
    assert 0.93 <= np.mean((intervals[:, 0] <= truth) & (truth <= intervals[:, 1])) <= 0.97


def test_sampling_interval_covers_on_fixed_problems():
    random = np.random.default_rng(3)
    rates = random.beta(0.5, 0.5, size=30)
    hits = 0
    for _ in range(DRAWS):
        low, high = sampling_interval(random.random((30, 16)) < rates[:, None])
        hits += low <= rates.mean() <= high
    assert 0.93 <= hits / DRAWS <= 0.97


def test_mean_interval_by_hand():
    # mean 20, standard deviation 10, n = 3: 20 ± 4.303 * 10 / sqrt(3)
    low, high = mean_interval([10, 20, 30])
    assert (low, high) == pytest.approx((20 - 4.30265 * 10 / math.sqrt(3), 20 + 4.30265 * 10 / math.sqrt(3)), abs=1e-3)


def test_all_wrong_and_all_right_still_have_a_width():
    low, high = rate_interval([0.0] * 30, samples=64)
    # With nothing ever solved each problem counts once: the score interval t^2 / (n + t^2).
    assert low == 0.0
    assert high == pytest.approx(2.0452**2 / (30 + 2.0452**2), abs=1e-4)
    assert rate_interval([1.0] * 30, samples=64) == pytest.approx((1 - high, 1.0))


def test_no_difference_seen_is_not_certainty():
    difference = paired_difference([1.0, 0.0] * 15, [1.0, 0.0] * 15, samples=1)
    assert difference.mean == 0 and difference.p == 1
    assert difference.ci[0] < -0.05 and difference.ci[1] > 0.05


def test_an_interval_of_few_problems_stays_within_what_rates_can_differ_by():
    assert paired_difference([1.0, 0.0, 1.0], [1.0, 0.0, 1.0], samples=1).ci == (-1.0, 1.0)
    low, high = paired_difference([1.0, 0.0, 1.0], [0.0, 0.0, 0.0], samples=4).ci
    assert -1 <= low < 0.67 < high == 1.0


def test_swapping_the_runs_negates_the_difference():
    random = np.random.default_rng(4)
    a, b = random.random(40), random.random(40)
    forward, back = paired_difference(a, b, 8), paired_difference(b, a, 8)
    assert forward.mean == -back.mean and forward.p == pytest.approx(back.p)
    assert forward.ci == pytest.approx((-back.ci[1], -back.ci[0]))


def test_interval_and_p_value_agree():
    random = np.random.default_rng(5)
    for shift in np.linspace(0, 0.3, 40):
        difference = paired_difference(random.random(30) + shift, random.random(30), 8)
        assert (difference.p < 0.05) == (not difference.ci[0] <= 0 <= difference.ci[1])


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # 0.005*4, 0.01*3, 0.03*2, max(0.06, 0.04)
        ([0.5], [0.5]),
        ([0.9, 0.9], [1.0, 1.0]),
        ([], []),
    ],
)
def test_holm_by_hand(p_values, adjusted):
    assert holm(p_values) == pytest.approx(adjusted)


def test_one_problem_has_no_interval():
    with pytest.raises(ValueError, match="at least 2 problems"):
        rate_interval([0.5], samples=8)


def test_100_problems_x_8_samples_take_milliseconds():
    values = np.random.default_rng(6).integers(0, 9, size=100) / 8

    def seconds() -> float:
        started = time.perf_counter()
        rate_interval(values, 8)
        paired_difference(values, values[::-1], 8)
        return time.perf_counter() - started

    assert min(seconds() for _ in range(5)) < 0.5
