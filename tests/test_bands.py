"""Bands of solve rates: what 64 chains leave open, certainty, the fitted prior, and how waves decide."""

import random
from collections import Counter
from math import comb

import pytest

from fathom import estimates, estimates_generation
from fathom.bands import (
    REFERENCE,
    Count,
    Prior,
    Until,
    Window,
    certainty,
    expected_chains,
    fit_prior,
    open_counts,
    same_band,
    savings,
)
from fathom.config import validate
from fathom.errors import InputError
from fathom.physics import Range
from fathom.prices import Prices
from fathom.records import Rollout, Verdict
from fathom.rollout import RolloutConfig

BAND = Window(min=0.2, max=0.7)
HARD = Window(above=0, max=0.4)
UNIFORM = Prior()


@pytest.mark.parametrize(("window", "inside", "outside", "open_to_both"), [
    (Window(max=0.5), Count(0, 1), Count(1, 1), range(24, 42)),
    (Window(above=0), Count(1, 1), Count(0, 1), range(4)),
])  # fmt: skip
def test_64_chains_rule_out_what_another_64_would_hardly_give(window, inside, outside, open_to_both):
    """Which numbers of correct ones among 64 contradict neither a band inside the window nor one outside."""
    wholes = [Count(correct, REFERENCE) for correct in range(REFERENCE + 1)]
    yes = {w.correct for w in wholes if same_band(inside, w, [window])}
    no = {w.correct for w in wholes if same_band(outside, w, [window])}
    assert yes | no == set(range(65)) and yes & no == set(open_to_both)
    assert {w.correct for w in wholes if window.holds(w.rate)} <= yes


def test_the_band_that_64_chains_gave_is_always_the_same_band():
    for window in (BAND, HARD, Window(above=0), Window(below=1)):
        assert all(same_band(Count(c, REFERENCE), Count(c, REFERENCE), [window]) for c in range(65))


def test_certainty_by_hand():
    """After one wrong chain: the beta-binomial chances of the other 63, over the outcomes that keep the band."""
    window, first = Window(max=0.5), Count(0, 1)
    more = [comb(63, hits) * _beta(1 + hits, 2 + 63 - hits) / _beta(1, 2) for hits in range(64)]
    kept = sum(p for hits, p in enumerate(more) if same_band(first, Count(hits, REFERENCE), [window]))
    assert certainty(first, UNIFORM, [window]) == pytest.approx(kept) and 0.8 < kept < 0.9


def _beta(a, b):
    """Of whole numbers."""
    return 1 / (comb(a + b - 2, a - 1) * (a + b - 1))


def test_certainty_is_the_least_over_windows_and_whole_at_64():
    count = Count(1, 4)
    apart = [certainty(count, UNIFORM, [w]) for w in (BAND, HARD)]
    assert certainty(count, UNIFORM, [BAND, HARD]) == min(apart) < max(apart)
    assert certainty(Count(13, REFERENCE), UNIFORM, [BAND, HARD]) == pytest.approx(1)


@pytest.mark.parametrize("shape", [(0.25, 0.25), (0.6, 0.3), (1, 1), (3, 5)])
def test_the_fitted_prior_finds_the_spread(shape):
    draws = random.Random(1)
    counts = Counter()
    for _ in range(4000):
        rate = draws.betavariate(*shape)
        chains = draws.choice((2, 4, 8))
        counts[Count(sum(draws.random() < rate for _ in range(chains)), chains)] += 1
    found = fit_prior(counts)
    assert found.solved == pytest.approx(shape[0], rel=0.2) and found.failed == pytest.approx(shape[1], rel=0.2)


def test_stopping_early_does_not_bias_the_prior():
    """Chains until two are solved, or eight: the plain mean of the fractions is off, the fitted spread is not."""
    draws = random.Random(2)
    counts = Counter()
    for _ in range(6000):
        rate, solved, chains = draws.betavariate(0.5, 0.5), 0, 0
        while solved < 2 and chains < 8:
            solved, chains = solved + (draws.random() < rate), chains + 1
        counts[Count(solved, chains)] += 1
    assert sum(n * c.rate for c, n in counts.items()) / 6000 > 0.52
    assert fit_prior(counts).mean == pytest.approx(0.5, abs=0.015)


def test_a_few_problems_leave_the_prior_near_uniform():
    assert fit_prior({}) == UNIFORM
    found = fit_prior({Count(1, 1): 2})
    assert 0.5 < found.failed < 1 < found.solved < 2


UNTIL = Until(windows=[BAND], agreement=0.9)


def test_waves_go_to_the_least_certain_and_end_at_the_agreement():
    until = Until(windows=[BAND], agreement=0.985)
    times = {Count(0, 8): 50, Count(2, 8): 10, Count(8, 8): 40}
    assert open_counts(times, until, 24, UNIFORM) == {Count(2, 8)}
    assert open_counts(times, Until(windows=[BAND], agreement=0.9), 24, UNIFORM) == set()
    assert open_counts({Count(2, 8): 10, Count(1, 4): 10}, until, 8, UNIFORM) == {Count(1, 4)}
    assert open_counts({Count(2, 8): 10}, until, 8, UNIFORM) == set()


@pytest.mark.parametrize("agreement", [0.94, 0.96, 0.98])
def test_raising_the_open_ones_to_a_common_level_gives_the_agreement(agreement):
    """The definition: with every open count as certain as the least certain of the rest, the mean is there; with
    all but the last of them, as certain as that one, it is not."""
    times = {Count(c, 6): 1 + c for c in range(7)}
    sure = {count: certainty(count, UNIFORM, [BAND]) for count in times}
    going = open_counts(times, Until(windows=[BAND], agreement=agreement), 24, UNIFORM)
    rest = min(sure[c] for c in times if c not in going)
    last = max(sure[c] for c in going)

    def mean_if_raised(level):
        return sum(n * max(sure[c], level) for c, n in times.items()) / sum(times.values())

    assert last <= rest and mean_if_raised(last) < agreement <= mean_if_raised(rest)


def simulate(until, cap, shape, problems=3000, seed=3):
    """Mean chains and agreement with the 64 chains of which they are the first."""
    draws = random.Random(seed)
    chains = []
    for _ in range(problems):
        rate = draws.betavariate(*shape)
        chains.append([draws.random() < rate for _ in range(REFERENCE)])
    drawn = [0] * problems
    going = range(problems)
    while going:
        for i in going:
            drawn[i] = min(cap, drawn[i] + until.wave)
        counts = [Count(sum(chains[i][: drawn[i]]), drawn[i]) for i in range(problems)]
        unsure = open_counts(Counter(counts), until, cap, fit_prior(Counter(counts)))
        going = [i for i in range(problems) if counts[i] in unsure]
    whole = [Count(sum(c), REFERENCE) for c in chains]
    agree = sum(same_band(a, b, until.windows) for a, b in zip(counts, whole, strict=True))
    return sum(drawn) / problems, agree / problems


@pytest.mark.parametrize("windows", [[BAND], [HARD]], ids=["band", "hard"])
@pytest.mark.parametrize("shape", [(0.2, 0.2), (0.3, 0.3), (0.6, 0.25)])
def test_97_percent_at_half_of_16_chains(shape, windows):
    until = Until(windows=windows)
    chains, agreement = simulate(until, 24, shape)
    assert agreement >= 0.97 and chains <= 8
    assert chains == pytest.approx(expected_chains(until, 24, Prior(*shape)), rel=0.1)


@pytest.mark.parametrize("agreement", [0.9, 0.95])
def test_the_agreement_asked_for_is_the_one_that_comes(agreement):
    _, got = simulate(Until(windows=[BAND, HARD], agreement=agreement), 24, (0.3, 0.3))
    assert agreement - 0.015 < got < agreement + 0.03


def chain(key, index, right, tokens=10):
    return Rollout(key, index, "", tokens, "stop", "m", verdict=Verdict("1", right, "t/1"))


def test_savings_are_against_chains_as_long_as_the_problems_own():
    """Chains of 10 tokens for one problem (2 drawn), of 30 for the other (4): 8 of each were 320 tokens, not 140."""
    drawn = [chain("a", i, True) for i in range(2)] + [chain("b", i, i % 2 == 0, 30) for i in range(4)]
    found = savings(drawn, UNTIL, fixed=(8,))
    assert found["chains_mean"] == 3 and found["problems_by_chains"] == {"2": 1, "4": 1}
    assert found["saved"] == {"8": {"chains": 0.625, "tokens": round(1 - 140 / 320, 4)}}
    assert 0.5 < found["expected_agreement"] < 1
    assert savings([chain("a", 0, True, 0)], UNTIL)["saved"]["16"] == {"chains": 0.9375, "tokens": None}


def test_problems_without_a_usable_gold_have_no_band():
    found = savings([chain("a", 0, None), chain("a", 1, None)], UNTIL)
    assert found["expected_agreement"] is None and found["chains_mean"] == 2


def test_a_window_without_an_edge_is_named():
    with pytest.raises(InputError, match="until: windows: the window >= 20 has no edge between the rates 0 and 1"):
        validate(Until, {"windows": [{"min": 20}]}, "until")


def test_a_plan_counts_the_chains_that_waves_are_expected_to_draw():
    engine = {"kind": "http", "model": "m", "base_url": "http://localhost/v1"}
    given = {"problems": "p", "engine": engine, "samples": 24}
    config = RolloutConfig.model_validate({**given, "until": UNTIL.model_dump()})
    before = {"p": estimates.Estimate(Range.exactly(1), Range.exactly(1000))}
    setting = estimates.Setting("cpu", 1, Prices(), {})
    waves = estimates_generation.rollout(config, before, setting)
    fixed = estimates_generation.rollout(RolloutConfig.model_validate(given), before, setting)
    assert fixed.chains == 24 and UNTIL.wave <= waves.chains < 8
    assert waves.tokens.mid == pytest.approx(fixed.tokens.mid * waves.chains / 24)
    assert waves.tokens.low < waves.tokens.mid < waves.tokens.high
