"""Metrics against hand arithmetic, brute force and (where one is right) a peer's formula."""

from collections import Counter
from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest

from fathom.evaluate.metrics import (
    consensus,
    consensus_at_k,
    majority_credit,
    pass_at_k,
    solve_rates,
    token_summary,
    truncation_rate,
)
from fathom.votes import NO_VOTE, cluster_votes


def test_pass_at_1_is_the_mean_of_problem_means():
    # 3/4, 0/2 and 1/1 -> each problem counts once: (0.75 + 0 + 1) / 3
    rates = solve_rates([[True, True, True, False], [False, False], [True]])
    assert rates.tolist() == [0.75, 0.0, 1.0]
    assert rates.mean() == pytest.approx(1.75 / 3)


def test_a_problem_without_samples_is_refused():
    with pytest.raises(ValueError, match="no samples"):
        solve_rates([[True], []])


@pytest.mark.parametrize(
    ("samples", "correct", "k", "expected"),
    [
        (10, 3, 1, Fraction(3, 10)),
        (10, 3, 5, 1 - Fraction(comb(7, 5), comb(10, 5))),  # 1 - 21/252 = 11/12
        (64, 1, 64, 1),
        (64, 0, 8, 0),
        (4, 3, 2, 1),  # only one is wrong, so two draws always hold a right one
        (1000, 7, 100, 1 - Fraction(comb(993, 100), comb(1000, 100))),
    ],
)
def test_pass_at_k_matches_the_formula(samples, correct, k, expected):
    assert pass_at_k(np.array([samples]), np.array([correct]), k)[0] == pytest.approx(float(expected))


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one():
    verdicts = [True, False, False, True, False, False, False]
    for k in range(1, 8):
        subsets = list(combinations(verdicts, k))
        expected = sum(any(subset) for subset in subsets) / len(subsets)
        assert pass_at_k(np.array([7]), np.array([2]), k)[0] == pytest.approx(expected)


def test_pass_at_k_matches_the_published_implementation():
    def human_eval(n, c, k):  # the product form of Chen et al. 2021, figure 3
        return 1.0 if n - c < k else 1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1))

    samples, correct = np.repeat(20, 21), np.arange(21)
    for k in (1, 2, 10, 20):
        assert pass_at_k(samples, correct, k) == pytest.approx([human_eval(20, c, k) for c in correct])


def test_pass_at_k_refuses_more_draws_than_samples():
    with pytest.raises(ValueError, match="at least 8 samples"):
        pass_at_k(np.array([8, 7]), np.array([1, 1]), 8)


def test_votes_cluster_by_equivalence_not_by_text():
    same = {frozenset(pair) for pair in [("1/2", "0.5"), ("1/2", "\\frac12"), ("0.5", "\\frac12")]}
    answers = ["1/2", "0.5", "3", None, "\\frac12", " ", "3"]
    labels = cluster_votes(answers, lambda a, b: frozenset((a, b)) in same)
    assert labels.tolist() == [0, 0, 1, NO_VOTE, 0, NO_VOTE, 1]
    assert cluster_votes(answers).tolist() == [0, 1, 2, NO_VOTE, 3, NO_VOTE, 2]


def test_each_pair_of_strings_is_compared_at_most_once():
    asked = []
    cluster_votes(["a", "b", "a", "c", "b", "c"], lambda a, b: asked.append((a, b)) or False)
    assert sorted(asked) == [("a", "b"), ("a", "c"), ("b", "c")]


@pytest.mark.parametrize(
    ("answers", "right", "credit"),
    [
        ("aaab", "a", 1.0),
        ("abbb", "a", 0.0),
        ("aabb", "a", 0.5),  # tie of two clusters, one right
        ("abc", "a", 1 / 3),  # tie of three
        ("abc", "x", 0.0),
        ("....", "a", 0.0),  # nobody answers
        ("...a", "a", 1.0),  # silent samples don't vote
        ("..ab", "a", 0.5),
    ],
)
def test_majority_credit(answers, right, credit):
    votes = cluster_votes([None if a == "." else a for a in answers])
    correct = np.array([a == right for a in answers])
    assert majority_credit(votes, correct) == pytest.approx(credit)


def test_credit_does_not_depend_on_the_order_of_samples():
    random = np.random.default_rng(0)
    answers = list("aabbccd...")
    credits = set()
    for _ in range(50):
        random.shuffle(answers)
        votes = cluster_votes([None if a == "." else a for a in answers])
        credits.add(majority_credit(votes, np.array([a == "a" for a in answers])))
    assert credits == {1 / 3}


def test_shared_credit_is_the_expected_value_of_a_random_tie_break():
    random = np.random.default_rng(1)
    tied_clusters_right = [True, False, False]
    broken = random.choice(tied_clusters_right, size=20_000).mean()
    votes = cluster_votes(list("aabbcc"))
    credit = majority_credit(votes, np.array([True, True, False, False, False, False]))
    assert credit == pytest.approx(broken, abs=0.01)


def test_majority_credit_matches_a_peer_that_averages_over_ties():
    """NeMo-Skills' rule: count (answer, verdict) pairs, drop None, mean of the verdicts of the most frequent."""
    random = np.random.default_rng(2)
    for _ in range(300):
        answers = [random.choice(["a", "b", "c", None]) for _ in range(random.integers(1, 9))]
        pairs = Counter((answer, answer == "a") for answer in answers if answer is not None)
        best = [right for (_, right), count in pairs.items() if count == max(pairs.values())]
        expected = sum(best) / len(best) if best else 0.0
        credit = majority_credit(cluster_votes(answers), np.array([answer == "a" for answer in answers]))
        assert credit == pytest.approx(expected)


def test_consensus_is_one_value_per_problem():
    votes = [cluster_votes(list("aab")), cluster_votes(list("ab"))]
    correct = [np.array([True, True, False]), np.array([False, False])]
    assert consensus(votes, correct).tolist() == [1.0, 0.0]


def test_consensus_at_k_is_the_mean_over_subsets():
    answers = list("aaabbc")
    votes, correct = cluster_votes(answers), np.array([a == "a" for a in answers])
    for k in (1, 2, 3, 5):
        picks = [list(pick) for pick in combinations(range(6), k)]
        exact = np.mean([majority_credit(votes[pick], correct[pick]) for pick in picks])
        assert consensus_at_k(votes, correct, k, draws=4000) == pytest.approx(exact, abs=0.03)
    assert consensus_at_k(votes, correct, 6) == majority_credit(votes, correct) == 1.0
    with pytest.raises(ValueError, match="needs 7 samples"):
        consensus_at_k(votes, correct, 7)


def test_token_summary_and_truncation():
    summary = token_summary(range(1, 102))
    assert (summary["mean"], summary["p5"], summary["p50"], summary["p95"], summary["max"]) == (51, 6, 51, 96, 101)
    assert truncation_rate([[True, False], [False, False, False]]) == pytest.approx(0.25)
