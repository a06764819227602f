"""What a chain is worth beside the others of its group, and from that its advantage.

Pure functions on verdicts and lengths. Every reward sees the whole group (the chains of one problem),
so a preference may compare them; none sees a text. Which reward is used is the recipe's business.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

SOFT_SHARE = 0.2
"""Of the budget, where the soft overlong penalty grows; DAPO has 4,096 of 20,480 tokens."""

Reward = Callable[[Sequence["Outcome"], int, float], list[float]]
"""(group, budget in tokens, weight of the length) -> one reward per chain."""


@dataclass(frozen=True)
class Outcome:
    """How one chain ended. tokens: of the completion, its end token included."""

    correct: bool
    tokens: int


def shorter(group: Sequence[Outcome], budget: int, weight: float) -> list[float]:
    """1 for the shortest correct chain of the group; twice its length costs half the weight, endlessly more all of it.

    Wrong chains and those over the budget get 0, less than any correct one as long as weight < 1.
    The ratio of lengths is compared, so chains that hardly differ are hardly told apart.
    """
    right = [chain.tokens for chain in group if chain.correct and chain.tokens <= budget]
    return [
        1 - weight * (1 - min(right) / chain.tokens) if chain.correct and chain.tokens <= budget else 0.0
        for chain in group
    ]


def soft_overlong(group: Sequence[Outcome], budget: int, weight: float) -> list[float]:
    """Correctness less a penalty that grows linearly to `weight` over the last fifth of the budget (DAPO, arXiv 2503.14476)."""
    room = SOFT_SHARE * budget
    return [chain.correct - weight * min(1.0, max(0.0, (chain.tokens - budget + room) / room)) for chain in group]


def cosine(group: Sequence[Outcome], budget: int, weight: float) -> list[float]:
    """Correct chains fall from 1 to 1 - weight with their length, wrong ones rise from -weight to 0, on half a cosine.

    The shape of "Demystifying Long Chain-of-Thought" (arXiv 2502.03373), whose correct chains fall from 2
    to 1 and wrong ones rise from -10 to 0. A wrong chain at the budget or over it gets -weight.
    """

    def one(chain: Outcome) -> float:
        left = 0.5 * (1 + math.cos(math.pi * min(1.0, chain.tokens / budget)))
        if chain.correct:
            return 1 - weight * (1 - left)
        return -weight * (left if chain.tokens < budget else 1.0)

    return [one(chain) for chain in group]


def pass_rate(group: Sequence[Outcome], budget: int, weight: float) -> list[float]:
    """Correctness less a length penalty in proportion to the group's pass rate: easy problems are to be answered briefly.

    The adaptive length penalty of "Just Enough Thinking" (arXiv 2506.05256), with the length as a share
    of the budget; a pass rate of 0 counts as one correct chain.
    """
    rate = max(sum(chain.correct for chain in group), 1) / max(len(group), 1)
    return [chain.correct - weight * rate * min(1.0, chain.tokens / budget) for chain in group]


REWARDS: dict[str, Reward] = {
    "shorter": shorter,
    "soft_overlong": soft_overlong,
    "cosine": cosine,
    "pass_rate": pass_rate,
}
"""By the names that a recipe uses."""


def group_advantages(rewards: Sequence[float], scale: bool = False) -> list[float]:
    """Each reward less the group's mean; with `scale`, over its standard deviation too (of the sample, plus 1e-4, as in TRL)."""
    mean = statistics.fmean(rewards)
    spread = statistics.stdev(rewards) + 1e-4 if scale and len(rewards) > 1 else 1.0
    return [(reward - mean) / spread for reward in rewards]


def has_signal(rewards: Sequence[float]) -> bool:
    """Whether anything is to be learned from the group: its rewards are not all alike."""
    return len(rewards) > 1 and max(rewards) - min(rewards) > 1e-9
