"""Consensus that stops early: the majority answer of up to k chains, without drawing those that can't matter.

Chains are drawn in waves and their answers clustered as the evaluation clusters them (`fathom.votes`). Each
wave is the fewest chains that could settle the vote, so waves draw no chain that one at a time would not.

*Exact* (`error` 0): stop when the leader is further ahead than chains are left. The leader then wins all k
chains alone, so the answer is that of cons@k, always. A tie is settled by the last chain only; as the
evaluation shares a tie's credit, `Consensus.winners` names every tied answer.

*Fast* (`error` e > 0): stop, too, when the leader is `least_lead(k, e)` votes ahead of every other answer. The
answer is then one that does not win (or tie for) the majority of all k chains with a chance of at most e,
whatever the model's answers are: see `error_bound` for the proof.

Not a grader: nothing here sees a gold answer, and a settled vote may be settled on a wrong answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from math import perm

from fathom import graders
from fathom.bands import Count
from fathom.curate.solve_rate import posterior_interval
from fathom.engines import Completion, Engine, Request
from fathom.errors import InputError, WorkError
from fathom.graders.choice import chosen
from fathom.prompts.ask import ask
from fathom.records import Message, Problem, Sampling
from fathom.votes import Ballot

TOGETHER = 64
"""Problems whose waves share one call of the engine."""


@dataclass(frozen=True)
class Consensus:
    """What the chains of one problem agree on.

    samples: k, how many would have been drawn without stopping. chains: the drawn ones, by index. answers:
    what each of them announces, None where it announces nothing. winners: the answers with most votes,
    several in a tie, none without any vote; in the words of the first chain that gave each. votes: of
    every answer. error: bound of the chance that all k chains would have another answer; 0 is certainty.
    """

    key: str
    samples: int
    chains: tuple[Completion, ...]
    answers: tuple[str | None, ...]
    votes: Mapping[str, int]
    error: float

    @property
    def winners(self) -> tuple[str, ...]:
        most = max(self.votes.values(), default=0)
        return tuple(answer for answer, count in self.votes.items() if count == most)

    @property
    def answer(self) -> str | None:
        """The winner; in a tie the one that came first."""
        return next(iter(self.winners), None)

    @property
    def agreement(self) -> float:
        """Share of the drawn chains that give the answer; a chain without one agrees with nothing."""
        return max(self.votes.values(), default=0) / len(self.chains)

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the chance that one more chain gives the answer, under a uniform prior.

        A posterior, so it holds whatever rule ended the drawing.
        """
        return posterior_interval(Count(max(self.votes.values(), default=0), len(self.chains)))

    @property
    def tokens(self) -> int:
        """Completion tokens of the drawn chains."""
        return sum(chain.tokens for chain in self.chains)

    @property
    def saved(self) -> int:
        """Tokens that the chains not drawn would have taken, each as long as the mean of the drawn ones (an estimate)."""
        return round(self.tokens / len(self.chains) * (self.samples - len(self.chains)))


def further(counts: Sequence[int], drawn: int, samples: int, lead: int | None = None) -> int:
    """The fewest more chains that could settle the vote; 0 when it is settled.

    counts: votes of each answer; drawn: chains so far, voting or not, of at most `samples`. lead: stop, too, when the
    leader is so many votes ahead. After m more chains the leader is at most `ahead + m` ahead of any
    other, with `left - m` still to come, so nothing is settled before ahead + m > left - m.
    """
    first, second = sorted([0, 0, *counts])[:-3:-1]
    ahead, left = first - second, samples - drawn
    if left == 0 or ahead > left or (lead is not None and ahead >= lead):
        return 0
    certain = (left - ahead) // 2 + 1
    return certain if lead is None else min(certain, lead - ahead)


@cache
def error_bound(samples: int, lead: int) -> float:
    """Most chance, over every model and problem, that stopping at this lead misses what wins all `samples` chains.

    Chains of one problem are independent draws, so given how often each answer occurs among all k of
    them, every order is equally likely. Let W win with w votes and a rival A have a < w. To be stopped
    for, A must lead W by `lead` = d at some time. Of the orders of the a + w votes, C(a + w, w + d) do so: by the
    reflection principle (mirror what follows the first such moment) they match the orders with w + d votes of
    A's kind. Divided by C(a + w, w), the chance is

        a (a-1) ... (a-d+1) / (w+1) (w+2) ... (w+d).

    Summing over rivals bounds the chance that any of them is. The numerator is convex in a and 0 at a = 0, so with
    the rivals' votes adding up to at most k - w, each at most w - 1, the sum is largest with as many rivals as
    possible at w - 1 and one with the rest. The bound is the maximum over w. Chains that don't vote only lessen it.
    """

    def missed(most: int) -> float:
        rivals, rest = divmod(samples - most, most - 1)
        return (rivals * perm(most - 1, lead) + perm(rest, lead)) / perm(most + lead, lead)

    return max((missed(most) for most in range(2, samples + 1)), default=0.0)


@cache
def least_lead(samples: int, error: float) -> int:
    """The smallest lead at which stopping errs with a chance of at most `error`. Raises ValueError unless 0 < error < 1."""
    if not 0 < error < 1:
        raise ValueError(f"expected a chance between 0 and 1, got {error}")
    return next(lead for lead in range(1, samples + 1) if error_bound(samples, lead) <= error)


class Vote:
    """One problem while its chains are drawn.

    messages: what the model is asked. samples, error: as for `solve`. Raises InputError for a problem whose answer is a
    program (programs are tested, not voted on).
    """

    def __init__(self, problem: Problem, messages: Sequence[Message], samples: int, error: float = 0.0):
        if problem.kind == "code":
            raise InputError(f"problem {problem.id!r}: its answer is a program, and programs are not voted on")
        self.problem, self.messages, self.samples, self.error = problem, tuple(messages), samples, error
        self.ballot = Ballot(graders.equivalent if problem.kind == "math" else None)
        self._lead = least_lead(samples, error) if error else None
        self._chains: list[Completion] = []
        self._answers: list[str | None] = []

    def wave(self) -> Request | None:
        """The fewest more chains that could settle the vote; None when it is settled."""
        more = further(self.ballot.counts, len(self._chains), self.samples, self._lead)
        return Request(self.problem.id, self.messages, more, len(self._chains)) if more else None

    def cast(self, chain: Completion) -> None:
        self._chains.append(chain)
        self._answers.append(announced(self.problem, chain))
        self.ballot.cast(self._answers[-1])

    def result(self) -> Consensus:
        """Of a settled vote."""
        votes = dict(zip(self.ballot.founders, self.ballot.counts, strict=True))
        certain = further(self.ballot.counts, len(self._chains), self.samples) == 0
        done = tuple(self._chains), tuple(self._answers)
        return Consensus(self.problem.id, self.samples, *done, votes, 0.0 if certain else self.error)


def announced(problem: Problem, chain: Completion) -> str | None:
    """The answer that a chain announces, as the evaluation reads it; a truncated one announces none."""
    truncated = chain.finish == "length"
    if problem.kind == "choice":
        return None if truncated else chosen(chain.text, problem.options or ())[0]
    return graders.final_answer(chain.text, problem.kind, truncated)


def solve(
    problems: Sequence[Problem],
    engine: Engine,
    sampling: Sampling,
    samples: int = 64,
    error: float = 0.0,
    *,
    asked: Callable[[Problem], Sequence[Message]] = ask,
    told: Callable[[int], None] = lambda chains: None,
) -> Iterator[Consensus]:
    """The consensus of each problem, in order, as soon as it and those before it are settled; `TOGETHER` are asked at a time.

    samples: k, at least 1. error: 0 for the answer of cons@k itself, else the chance of missing it that may be
    taken. asked: the messages that put a problem to the model. told: called with the number of chains so far, after
    each. Raises InputError for a problem whose answer is a program, WorkError for an engine that skips or repeats a chain.
    """
    voted = [Vote(problem, asked(problem), samples, error) for problem in problems]
    counted = count(1)
    for start in range(0, len(voted), TOGETHER):
        votes = voted[start : start + TOGETHER]
        due = 0
        for _ in draw(votes, engine, sampling):
            told(next(counted))
            while due < len(votes) and votes[due].wave() is None:
                yield votes[due].result()
                due += 1
        yield from (vote.result() for vote in votes[due:])


def draw(votes: Sequence[Vote], engine: Engine, sampling: Sampling) -> Iterator[Completion]:
    """Draw wave after wave until every vote is settled, and yield each chain as it ends.

    The votes have different problems. A wave is cast when all of it has come. Raises WorkError as `solve` does.
    """
    by_key = {vote.problem.id: vote for vote in votes}
    while requests := [request for vote in votes if (request := vote.wave())]:
        came: list[Completion] = []
        for chain in engine.generate(requests, sampling):
            came.append(chain)
            yield chain
        for chain in _in_order(came, requests, engine.name):
            by_key[chain.key].cast(chain)


def _in_order(came: Sequence[Completion], requests: Sequence[Request], name: str) -> list[Completion]:
    """By key and index, which fixes the clusters whatever ended first. Raises WorkError where they aren't those asked for."""
    asked = {(r.key, r.first + i) for r in requests for i in range(r.samples)}
    if len(came) != len(asked) or {(chain.key, chain.index) for chain in came} != asked:
        raise WorkError(f"{name}: {len(asked)} chains were asked for, others came ({len(came)})")
    return sorted(came, key=lambda chain: (chain.key, chain.index))
