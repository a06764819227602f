"""Groups of chains: which problems are asked, their chains by the engine, verdicts and rewards.

Problems come from a seeded course; those whose group has no signal (rewards all alike) are followed by others. Chains
come from the one generate-then-grade loop (`fathom.rollout`), whole. Not a batch yet: that is `draw.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from fathom.chunks import draw
from fathom.engines import Engine, Request
from fathom.engines.text import ModelText
from fathom.errors import WorkError
from fathom.ledger import Meter
from fathom.prompts.ask import ask
from fathom.records import Problem, Rollout, Sampling
from fathom.rollout import Grade, roll_out
from fathom.tokens import render_prompt
from fathom.train.chains import Chain, OpenGroup
from fathom.train.config import GrpoConfig
from fathom.train.layout import epoch_order
from fathom.train.rewards import REWARDS, Outcome, group_advantages, has_signal
from fathom.train.split import Split, TimedRollout


class PolicyEngine(Engine, Protocol):
    """An engine that serves the weights it is given from memory.

    text: its prompts and tokenizer. version: the batch whose weights it serves.
    """

    text: ModelText
    version: int

    def push(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """Take over a policy's weights, by parameter name."""
        ...

    def sleep(self) -> None:
        """Give the device's memory back."""
        ...

    def wake(self) -> None:
        """Take it again; `push` before generating."""
        ...


@dataclass(frozen=True)
class Group:
    """A problem's chains. chains: of those drawn, the ones that count; rewards: theirs."""

    problem: Problem
    drawn: list[Rollout]
    chains: list[Rollout]
    rewards: list[float]


@dataclass(frozen=True)
class Collected:
    """groups: all that were drawn for a batch. next_place: where the next begins in the course. waiting: put aside for it."""

    groups: list[Group]
    next_place: int
    waiting: list[OpenGroup] = field(default_factory=list)


@dataclass
class Drawing:
    """What the groups of a batch are drawn with. problems: the course; held_out: those that only measure."""

    config: GrpoConfig
    problems: Sequence[Problem]
    held_out: Sequence[Problem]
    engine: PolicyEngine
    grade: Grade
    meter: Meter
    split: Split = field(default_factory=Split)

    def collect(self, number: int, place: int) -> Collected:
        """Groups of batch `number`, drawn in rounds: whole ones, until enough have signal or the refills are used up."""
        groups: list[Group] = []
        missing, rounds, left = self.config.groups, 0, 1 + self.config.refills
        while missing and left:
            asked = self.next_problems(place, missing)
            left -= len(asked) == missing  # a round that an epoch's end cuts short goes on in the next epoch
            place += len(asked)
            groups += self._groups(asked, number, rounds)
            rounds += 1
            missing = self.config.groups - sum(has_signal(group.rewards) for group in groups)
        self.require_signal(number, self.config.groups - missing, len(groups))
        return Collected(groups, place)

    def require_signal(self, number: int, found: int, drawn: int) -> None:
        """Raises WorkError where fewer groups than updates have signal."""
        if found < self.config.updates:
            raise WorkError(
                f"batch {number + 1}: {found} of {drawn} problems gave a group with signal"
                " (chains worth more and less), too few to train on: choose problems that are solved sometimes,"
                " or more samples"
            )

    def next_problems(self, place: int, count: int) -> list[Problem]:
        """The next `count` problems of the course from `place` on; fewer where an epoch ends, so none is asked twice at once."""
        epoch, start = divmod(place, len(self.problems))
        order = epoch_order([problem.id for problem in self.problems], self.meter.seed, epoch)
        return [self.problems[row] for row in order[start : start + count]]

    def _groups(self, asked: Sequence[Problem], number: int, round_: int) -> list[Group]:
        """A group for each problem, with rewards. The draws' seed is of this batch and round alone."""
        samples = self.config.samples
        chains = self.roll_out(asked, samples, f"train/{number}/{round_}", keep_tokens=True)
        return [
            self.rewarded(problem, chains[first * samples : (first + 1) * samples])
            for first, problem in enumerate(asked)
        ]

    def rewarded(self, problem: Problem, drawn: list[Rollout]) -> Group:
        config = self.config
        counted = [c for c in drawn if not (config.overlong_filter and c.finish == "length")]
        outcomes = [Outcome(is_correct(c), c.tokens) for c in counted]
        rewards = REWARDS[config.reward.kind](outcomes, config.max_tokens, config.reward.weight)
        return Group(problem, drawn, counted, rewards)

    def roll_out(
        self,
        problems: Sequence[Problem],
        samples: int,
        purpose: str,
        keep_tokens: bool,
        part: str = "rollout",
        max_tokens: int | None = None,
    ) -> list[Rollout]:
        """Chains at temperature 1 from the whole distribution. purpose: what seeds them; part: what their time counts as."""
        config, meter = self.config, self.meter
        timed = TimedRollout(self.engine, self.grade, self.split, part)
        return roll_out(
            problems,
            timed,
            self.sampling(purpose, max_tokens),
            samples,
            timed.grade,
            meter,
            chunk=config.chunk,
            prompt=config.prompt,
            system=config.system,
            keep_tokens=keep_tokens,
        )

    def sampling(self, purpose: str, max_tokens: int | None = None) -> Sampling:
        seed = int(draw(self.meter.seed, purpose) * 2**31)
        return Sampling(temperature=1.0, top_p=1.0, max_tokens=max_tokens or self.config.max_tokens, seed=seed)

    def prompts(self, positions: int | None) -> list[list[int]]:
        """What the engine generates from, for every problem. Raises InputError where one exceeds `positions` with its completion."""
        config = self.config
        asked = [
            Request(problem.id, ask(problem, config.prompt, config.system))
            for problem in (*self.problems, *self.held_out)
        ]
        return self.engine.text.prompts(asked, config.max_tokens, positions)

    def prompt(self, problem: Problem) -> list[int]:
        """The tokens that the engine generates from."""
        return render_prompt(self.engine.text.tokenizer, ask(problem, self.config.prompt, self.config.system))

    def chains(self, group: Group) -> list[Chain]:
        """What is trained on of a group."""
        prompt = self.prompt(group.problem)
        advantages = group_advantages(group.rewards, self.config.scale_rewards)
        return [
            Chain(
                c.problem_id,
                prompt + c.meta["token_ids"],
                len(prompt),
                advantage,
                c.meta["logprobs"],
                versions=c.meta.get("versions", []),
            )
            for c, advantage in zip(group.chains, advantages, strict=True)
        ]


def is_correct(chain: Rollout) -> bool:
    return chain.verdict is not None and chain.verdict.correct is True
