"""Which two chains of a problem make a pair: rules over graded chains. Nothing here grades, samples or reads files.

`brief` and `careful` are the two kinds of pairs that Sky-T1-32B-Flash was trained on. A chain that hit its token
budget is in none: it has no end that could be learned or unlearned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from fathom.curate.select import by_length, length_of
from fathom.records import Rollout, within

Two = tuple[Rollout, Rollout]
"""(chosen, rejected)"""


def brief(chains: Sequence[Rollout], ratio: float) -> Two | None:
    """The shortest correct chain over the longest correct one, which has `ratio` times its length or more."""
    correct = by_length(_complete(chains, correct=True))
    if not correct or not _longer(correct[-1], correct[0], ratio):
        return None
    return correct[0], correct[-1]


def careful(chains: Sequence[Rollout], ratio: float) -> Two | None:
    """Against stopping too soon: over the shortest wrong chain the shortest correct one of `ratio` times its length or more."""
    wrong = by_length(_complete(chains, correct=False))
    if not wrong:
        return None
    longer = [c for c in _complete(chains, correct=True) if _longer(c, wrong[0], ratio)]
    return (by_length(longer)[0], wrong[0]) if longer else None


RULES: dict[str, Callable[[Sequence[Rollout], float], Two | None]] = {"brief": brief, "careful": careful}


def by_problem(chains: Iterable[Rollout], max_tokens: int | None = None) -> dict[str, list[Rollout]]:
    """Chains (of at most max_tokens) by problem id."""
    found: dict[str, list[Rollout]] = {}
    for chain in chains:
        if within(chain, max_tokens):
            found.setdefault(chain.problem_id, []).append(chain)
    return found


def _complete(chains: Sequence[Rollout], correct: bool) -> list[Rollout]:
    """Those that ended by themselves and say something."""
    ended = (c for c in chains if c.finish == "stop" and c.text.replace("<think>", "").replace("</think>", "").strip())
    return [c for c in ended if c.verdict is not None and c.verdict.correct is correct]


def _longer(long: Rollout, short: Rollout, ratio: float) -> bool:
    """Strictly longer, too, at a ratio of 1; one text can be told by more tokens than it needs, and is no pair."""
    if long.text.strip() == short.text.strip():
        return False
    length = length_of((long, short))
    return length(long) > length(short) and length(long) >= ratio * length(short)
