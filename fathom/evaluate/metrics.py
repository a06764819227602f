"""Metrics of sampled answers, as pure functions over numpy arrays.

Every metric is a mean over problems of one value per problem: the solve rate (pass@1), the
chance that one of k draws is right (pass@k), the credit of the majority vote (cons@k).
Intervals are in `intervals.py`. Nothing here reads a file, knows a grader or draws a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fathom.votes import NO_VOTE

PERCENTILES = (5, 25, 50, 75, 95, 99)


def solve_rates(correct_by_problem: Sequence[Sequence[bool]]) -> np.ndarray:
    """Fraction of correct samples of each problem; shape (problems,). Its mean is pass@1 (avg@k).

    Problems may have different numbers of samples, each counts once. Raises ValueError for a
    problem without samples.
    """
    if any(len(correct) == 0 for correct in correct_by_problem):
        raise ValueError("a problem has no samples")
    return np.array([np.mean(correct) for correct in correct_by_problem], dtype=float)


def pass_at_k(samples: np.ndarray, correct: np.ndarray, k: int) -> np.ndarray:
    """Unbiased chance that at least one of k samples is right, per problem; shape (problems,).

    samples, correct: counts per problem. `1 - C(n-c, k) / C(n, k)`, from Chen et al. 2021
    (arXiv 2107.03374), as a product so that nothing overflows. Raises ValueError where a
    problem has fewer than k samples, because no unbiased estimate exists there.
    """
    samples, correct = np.asarray(samples), np.asarray(correct)
    if k < 1 or np.any(samples < k):
        raise ValueError(f"pass@{k} needs at least {max(k, 1)} samples of every problem, got {samples.min()}")
    wrong = samples - correct
    steps = np.arange(k)
    # P(all k wrong) = prod_i (wrong - i) / (samples - i), drawing without replacement.
    factors = (wrong[:, None] - steps).clip(min=0) / (samples[:, None] - steps)
    return 1.0 - factors.prod(axis=1)


def majority_credit(votes: np.ndarray, correct: np.ndarray) -> float:
    """Credit of the majority vote of one problem, in [0, 1].

    votes: labels from `votes.cluster_votes`; correct: the verdict of each sample. Ties share the credit:
    the value is the share of tied clusters that are right, which is the expected value of a random
    tie-break and does not depend on the order of samples. A cluster whose members have different
    verdicts counts with their mean. No votes at all: 0.
    """
    return float(majority_credits(np.asarray(votes)[None], np.asarray(correct)[None])[0])


def majority_credits(votes: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """`majority_credit` of many sets of samples of one problem at once; both (sets, samples) -> (sets,)."""
    cast = votes[:, :, None] == np.arange(max(votes.max(initial=NO_VOTE) + 1, 1))
    counts = cast.sum(axis=1)
    right = (cast & correct.astype(bool)[:, :, None]).sum(axis=1)
    tied = (counts == counts.max(axis=1, keepdims=True)) & (counts > 0)
    share = np.where(tied, right / np.maximum(counts, 1), 0.0)
    return share.sum(axis=1) / np.maximum(tied.sum(axis=1), 1)


def consensus(votes_by_problem: Sequence[np.ndarray], correct_by_problem: Sequence[np.ndarray]) -> np.ndarray:
    """`majority_credit` of every problem over all of its samples; shape (problems,). Its mean is cons@k."""
    pairs = zip(votes_by_problem, correct_by_problem, strict=True)
    return np.array([majority_credit(votes, correct) for votes, correct in pairs], dtype=float)


def consensus_at_k(votes: np.ndarray, correct: np.ndarray, k: int, draws: int = 500, seed: int = 0) -> float:
    """Expected majority credit of k samples out of more, for one problem.

    Mean over `draws` random subsets of size k (without replacement, seeded), so two runs with
    different numbers of samples can be compared at one k. With k equal to all samples, exact.
    """
    votes, correct = np.asarray(votes), np.asarray(correct)
    if k > len(votes):
        raise ValueError(f"cons@{k} needs {k} samples, got {len(votes)}")
    if k == len(votes):
        return majority_credit(votes, correct)
    random = np.random.default_rng(seed)
    subsets = random.permuted(np.tile(np.arange(len(votes)), (draws, 1)), axis=1)[:, :k]
    return float(majority_credits(votes[subsets], correct[subsets]).mean())


def token_summary(tokens: Sequence[int]) -> dict[str, Any]:
    """Mean, percentiles and maximum of completion lengths in tokens."""
    values = np.asarray(tokens)
    summary = {f"p{q}": float(np.percentile(values, q)) for q in PERCENTILES}
    return {"mean": float(values.mean()), **summary, "max": int(values.max())}


def truncation_rate(truncated_by_problem: Sequence[Sequence[bool]]) -> float:
    """Mean over problems of the fraction of samples that hit the token budget."""
    return float(np.mean([np.mean(truncated) for truncated in truncated_by_problem]))
