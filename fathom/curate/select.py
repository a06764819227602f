"""Which problems and which chain of each: filters, windows, curriculum order, quotas, proportions, limits.

Pure functions over records; a cut gives each problem that goes its reason (see `funnel`). Nothing
here grades, samples or reads files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean
from typing import Literal

from fathom.bands import Window
from fathom.chunks import draw
from fathom.records import Problem, Rollout, within

ChainChoice = Literal["first", "shortest", "random"]
Order = Literal["difficulty", "source", "none"]


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
    return Window(above=mean(known) if known else 0.0)  # exact, so that equal ones are not above their own mean


def usable_chains(chains: Iterable[Rollout], max_tokens: int | None = None) -> dict[str, list[Rollout]]:
    """Verified-correct, untruncated chains (of at most max_tokens) by problem id, in index order."""
    usable: dict[str, list[Rollout]] = {}
    for chain in chains:
        correct = chain.verdict is not None and chain.verdict.correct is True
        if correct and chain.finish == "stop" and within(chain, max_tokens):
            usable.setdefault(chain.problem_id, []).append(chain)
    return {key: sorted(group, key=lambda c: c.index) for key, group in usable.items()}


def choose_chain(chains: Sequence[Rollout], choice: ChainChoice, seed: int) -> Rollout:
    """One of a problem's usable chains."""
    if choice == "first":
        return chains[0]
    if choice == "random":
        return min(chains, key=lambda c: draw(seed, c.problem_id, c.index))
    return by_length(chains)[0]


def by_length(chains: Sequence[Rollout]) -> list[Rollout]:
    """Shortest first, and of equal ones the first drawn; in tokens, in characters where any count is unknown."""
    length = length_of(chains)
    return sorted(chains, key=lambda c: (length(c), c.index))


def length_of(chains: Iterable[Rollout]) -> Callable[[Rollout], int]:
    """How the lengths of these chains compare: their tokens, their characters where any count is unknown."""
    if all(c.tokens for c in chains):
        return lambda c: c.tokens
    return lambda c: len(c.text)


def outside(where: Mapping[str, Sequence[str]]) -> Callable[[Problem], str | None]:
    """A cut to the problems whose kind, source and licence are among those named."""

    def reason(problem: Problem) -> str | None:
        other = next((name for name, wanted in where.items() if getattr(problem, name) not in wanted), None)
        return f"{other} {getattr(problem, other)!r} is not wanted" if other else None

    return reason


def over_quota(problems: Sequence[Problem], quotas: Mapping[str, int], seed: int) -> Callable[[Problem], str | None]:
    """A cut to at most `quotas[source]` problems of each named source, by seeded choice."""
    taken: Counter[str] = Counter()
    cut: dict[str, str] = {}
    for problem in sorted(problems, key=lambda p: draw(seed, "quota", p.id)):
        taken[problem.source] += 1
        if taken[problem.source] > quotas.get(problem.source, len(problems)):
            cut[problem.id] = f"over the quota of {quotas[problem.source]} for source {problem.source}"
    return lambda problem: cut.get(problem.id)


def proportions(available: Mapping[str, int], weights: Mapping[str, float], limit: int | None = None) -> dict[str, int]:
    """Rows of each group in the largest mixture that keeps the weights: {"a": 10}, {"b": 30} at 1:2 -> 10 and 20.

    available: rows there are, by group; groups without a weight count as 0. limit: most rows in all.
    The group that runs out first bounds the total. Whole numbers by the largest remainder, never
    more than are available.
    """
    whole = sum(weights.values())
    shares = {name: weight / whole for name, weight in weights.items()}
    total = min(available.get(name, 0) / share for name, share in shares.items())
    total = int(min(total + 1e-9, sum(available.values()) if limit is None else limit))
    counts = {name: int(total * share + 1e-9) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: counts[name] - total * shares[name])
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += counts[name] < available.get(name, 0)
    return counts


def over_share(
    problems: Sequence[Problem], weights: Mapping[str, float], limit: int | None, seed: int
) -> Callable[[Problem], str | None]:
    """A cut to the largest mixture of sources with these weights, by seeded choice; other sources go."""
    counts = proportions(Counter(p.source for p in problems), weights, limit)
    quota = over_quota(problems, {p.source: counts.get(p.source, 0) for p in problems}, seed)

    def reason(problem: Problem) -> str | None:
        if problem.source not in weights:
            return f"source {problem.source!r} has no weight"
        return f"over the share of {counts[problem.source]} for source {problem.source}" if quota(problem) else None

    return reason


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
