"""Budget curves from one run: stored chains read again as if they had been cut earlier.

A chain depends only on its own prefix, so a run with a smaller `max_tokens` under the same draws
gives exactly the same chains, cut: one that needs more tokens than the budget is truncated, hence
wrong and without a vote. Valid for budgets up to the one sampled with, not beyond.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fathom.evaluate import intervals, metrics
from fathom.evaluate.scores import Scores
from fathom.votes import NO_VOTE

SHARES = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
"""Of the sampled budget, where none are given: of 16K tokens 1K, 2K, 4K, 6K, 8K, 12K, 16K."""


def at_budget(scores: Scores, budget: int) -> Scores:
    """The scores that `max_tokens = budget` would have given; budget in completion tokens."""
    over = [truncated | (tokens > budget) for truncated, tokens in zip(scores.truncated, scores.tokens, strict=True)]
    return replace(
        scores,
        setting=scores.setting._replace(max_tokens=budget),
        correct=tuple(correct & ~cut for correct, cut in zip(scores.correct, over, strict=True)),
        votes=tuple(np.where(cut, NO_VOTE, votes) for votes, cut in zip(scores.votes, over, strict=True)),
        tokens=tuple(np.minimum(tokens, budget) for tokens in scores.tokens),
        truncated=tuple(over),
    )


def budget_curve(
    scores: Scores, budgets: Sequence[int] | None = None, usd_per_million_tokens: float | None = None
) -> dict[str, Any]:
    """pass@1, cons@k, truncation and cost at each budget up to the one sampled with, and the knee.

    budgets: completion tokens; `SHARES` of the sampled budget by default; the sampled budget itself is
    always the last point. usd_per_million_tokens: price of a generated token; `usd_per_correct` is
    null without it, and null where nothing is correct. No points when token counts are unknown.
    """
    if not scores.counted:
        return {"points": [], "knee": None}
    top = scores.setting.max_tokens or int(max(tokens.max() for tokens in scores.tokens))
    wanted = [round(share * top) for share in SHARES] if budgets is None else budgets
    kept = sorted({budget for budget in wanted if 0 < budget < top} | {top})
    points = [_point(at_budget(scores, budget), usd_per_million_tokens) for budget in kept]
    return {"points": points, "knee": knee(kept, [point["pass1"] for point in points])}


def _point(scores: Scores, usd_per_million_tokens: float | None) -> dict[str, Any]:
    rates, credits = scores.solve_rates, scores.consensus
    several = len(rates) > 1
    tokens = int(sum(t.sum() for t in scores.tokens))
    right = int(sum(c.sum() for c in scores.correct))
    per_correct = tokens / right if right else None
    priced = per_correct is not None and usd_per_million_tokens is not None
    return {
        "max_tokens": scores.setting.max_tokens,
        "pass1": float(rates.mean()),
        "pass1_ci": list(intervals.rate_interval(rates, scores.samples)) if several else None,
        "cons": float(credits.mean()),
        "truncated": metrics.truncation_rate(scores.truncated),
        "tokens_mean": float(scores.mean_tokens.mean()),
        "tokens_per_correct": per_correct,
        "usd_per_correct": per_correct * usd_per_million_tokens / 1e6 if priced else None,
    }


def knee(budgets: Sequence[int], rates: Sequence[float]) -> int | None:
    """The budget beyond which more tokens buy the least: the point farthest above the chord.

    The chord runs from (0 tokens, 0 solved) to the largest budget (Kneedle, Satopaa et al. 2011,
    without its smoothing). None when nothing is solved, or no budget lies above the chord.
    """
    if not budgets or rates[-1] <= 0:
        return None
    above = np.asarray(rates) / rates[-1] - np.asarray(budgets) / budgets[-1]
    best = int(np.argmax(above))
    return int(budgets[best]) if above[best] > 1e-12 else None
