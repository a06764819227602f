"""Which problems and which chain of each: windows, curriculum order, quotas, limits.

Pure functions over records; a cut gives each problem that goes its reason (see `funnel`). Nothing
here grades, samples or reads files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from fathom.chunks import draw
from fathom.config import StageConfig
from fathom.records import Problem, Rollout

ChainChoice = Literal["first", "shortest", "random"]
Order = Literal["difficulty", "source", "none"]


class Window(StageConfig):
    """Bounds of a number: min and max include their value, above and below exclude it."""

    min: float | None = None
    max: float | None = None
    above: float | None = None
    below: float | None = None

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


def in_window(name: Literal["solve_rate", "difficulty"], window: Window) -> Callable[[Problem], str | None]:
    """A cut by a number of the problem; a problem without that number goes too."""

    def reason(problem: Problem) -> str | None:
        value = getattr(problem, name)
        if value is None:
            return f"no {name}"
        return None if window.holds(value) else f"{name} {value:.4g} is not {window}"

    return reason


def above_average(problems: Iterable[Problem]) -> Window:
    """Difficulty strictly above the mean of the problems that have one."""
    known = [p.difficulty for p in problems if p.difficulty is not None]
    return Window(above=sum(known) / len(known) if known else 0.0)


def usable_chains(chains: Iterable[Rollout], max_tokens: int | None = None) -> dict[str, list[Rollout]]:
    """Verified-correct, untruncated chains (of at most max_tokens) by problem id, in index order."""
    usable: dict[str, list[Rollout]] = {}
    for chain in chains:
        correct = chain.verdict is not None and chain.verdict.correct is True
        if correct and chain.finish == "stop" and (max_tokens is None or chain.tokens <= max_tokens):
            usable.setdefault(chain.problem_id, []).append(chain)
    return {key: sorted(group, key=lambda c: c.index) for key, group in usable.items()}


def choose_chain(chains: Sequence[Rollout], choice: ChainChoice, seed: int) -> Rollout:
    """One of a problem's usable chains. Length is in tokens, in characters where any count is unknown."""
    if choice == "first":
        return chains[0]
    if choice == "random":
        return min(chains, key=lambda c: draw(seed, c.problem_id, c.index))
    counted = all(c.tokens for c in chains)
    return min(chains, key=lambda c: (c.tokens if counted else len(c.text), c.index))


def over_quota(problems: Sequence[Problem], quotas: Mapping[str, int], seed: int) -> Callable[[Problem], str | None]:
    """A cut to at most `quotas[source]` problems of each named source, by seeded choice."""
    taken: Counter[str] = Counter()
    cut: dict[str, str] = {}
    for problem in sorted(problems, key=lambda p: draw(seed, "quota", p.id)):
        taken[problem.source] += 1
        if taken[problem.source] > quotas.get(problem.source, len(problems)):
            cut[problem.id] = f"over the quota of {quotas[problem.source]} for source {problem.source}"
    return lambda problem: cut.get(problem.id)


def over_limit(problems: Sequence[Problem], limit: int, seed: int) -> Callable[[Problem], str | None]:
    """A cut to `limit` problems by seeded choice; adding a problem elsewhere changes few choices."""
    kept = {p.id for p in sorted(problems, key=lambda p: draw(seed, "limit", p.id))[:limit]}
    return lambda problem: None if problem.id in kept else f"over the limit of {limit}"


def ordered(problems: Sequence[Problem], order: Order) -> list[Problem]:
    """`difficulty`: rising, at equal difficulty the often solved first; `source`: grouped by source; ties keep their order."""
    if order == "difficulty":
        return sorted(problems, key=lambda p: (p.difficulty or 0.0, -(p.solve_rate or 0.0)))
    if order == "source":
        return sorted(problems, key=lambda p: p.source)
    return list(problems)
