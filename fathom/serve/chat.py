"""A conversation with a model: a question goes in, an answer grows, and what it took is counted while it does.

Neither screen nor HTTP: `terminal.py` and `page.py` show what is said here. The voting is `consensus.py`'s.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import Field

from fathom import graders
from fathom.config import StageConfig
from fathom.document import with_sets
from fathom.engines import Completion, Request, TransformersConfig, VllmConfig
from fathom.engines.session import Piece
from fathom.errors import InputError, WorkError
from fathom.prices import Prices
from fathom.prompts import Prompt, template
from fathom.prompts.ask import ask
from fathom.records import Finish, Message, Problem, Sampling
from fathom.rollout import SamplingConfig
from fathom.serve.asker import Asker
from fathom.serve.consensus import Consensus, Vote, announced, draw
from fathom.serve.errors import Refused
from fathom.serve.live import Live
from fathom.serve.served import Served
from fathom.serve.solving import default_max_tokens
from fathom.serve.split import Thinking
from fathom.votes import Ballot

FEW_POSITIONS = 4096
"""A model with no more than these is asked every question alone, unless told otherwise: it was trained on single ones."""

MOST_VOTES = 1024


class ChatConfig(StageConfig):
    """What `--set` may set.

    votes: chains that vote on an answer, at most; 1 is a plain answer. budget: tokens after which the model is brought from
    thinking to its answer. error: of the vote, as in `fathom solve`. prompt: template of a question, such as `solve`, or
    `plain`, which sends it as it is. memory: whether a question comes after what was said before; when absent, where the
    model has more than `FEW_POSITIONS`. billed_as: the device whose price per hour the time costs.
    """

    engine: TransformersConfig | VllmConfig = Field(TransformersConfig(), discriminator="kind")
    sampling: SamplingConfig = SamplingConfig()
    seed: int = 0
    votes: int = Field(1, ge=1, le=MOST_VOTES)
    budget: int | None = Field(None, ge=1)
    error: float = Field(0.0, ge=0, lt=1)
    prompt: Prompt = "solve"
    system: str | None = None
    memory: bool | None = None
    billed_as: str | None = None


def configure(model: Path, sets: Sequence[str]) -> ChatConfig:
    """The configuration that `--set` asks for. Raises InputError for an unknown key or a wrong value."""
    values = {"engine": {"kind": "transformers"}, "sampling": {"max_tokens": default_max_tokens(model)}}
    config = with_sets(ChatConfig, "fathom chat", values, sets)
    template(config.prompt)  # told here, not with the first question
    return config


@dataclass
class Settings:
    """What may change between two questions; the fields are those of `ChatConfig`."""

    sampling: Sampling
    votes: int = 1
    budget: int | None = None
    error: float = 0.0
    prompt: Prompt = "solve"
    system: str | None = None
    memory: bool = True

    @classmethod
    def of(cls, config: ChatConfig, positions: int | None) -> Settings:
        memory = (positions is None or positions > FEW_POSITIONS) if config.memory is None else config.memory
        sampling = config.sampling.sampling(config.seed)
        return cls(sampling, config.votes, config.budget, config.error, config.prompt, config.system, memory)


@dataclass
class Turn:
    """A question and its answer, which grows.

    thinking, answer: of the one chain; of a vote, of the first chain that gave the leading answer. tokens: of all chains,
    those that were broken off included. seconds: wall-clock. usd: what they cost, None where no price is known. finish: None
    while the answer grows and where it was interrupted. votes: so far, by answer; chains: that ended; consensus: of a
    vote that came to its end.
    """

    question: str
    thinking: str = ""
    answer: str = ""
    prompt_tokens: int = 0
    tokens: int = 0
    thinking_tokens: int = 0
    seconds: float = 0.0
    usd: float | None = None
    finish: Finish | None = None
    votes: dict[str, int] = field(default_factory=dict)
    chains: int = 0
    consensus: Consensus | None = None

    def count(self, piece: Piece) -> None:
        self.prompt_tokens = piece.prompt_tokens
        self.tokens += piece.tokens


class Conversation:
    """With one model, for one person. usd_per_hour: of the device that the model runs on, None where it isn't known.

    settings may be changed between questions. turns: so far, those without a word of an answer included.
    """

    def __init__(
        self, live: Live, served: Served, settings: Settings, usd_per_hour: float | None = None, owner: str = "chat"
    ):
        self.settings, self.served, self.usd_per_hour = settings, served, usd_per_hour
        self.turns: list[Turn] = []
        self._live, self._owner = live, owner
        self._asker: Asker | None = None
        self._growing = False

    def ask(self, question: str) -> Iterator[Turn]:
        """The turn, again and again while it grows; closing the iterator frees the engine, and what came stays.

        Raises InputError for a question that can't be put (the turn is dropped), WorkError for an engine that fails.
        """
        if self._growing:
            raise InputError("the last answer still grows; stop it first")
        turn = Turn(question)
        self._asker = asker = Asker(self._live, turn.count, self.settings.budget, self._owner)
        request, sampling = self._request(question)
        self.turns.append(turn)
        self._growing, began = True, time.perf_counter()
        grow = self._vote if self.settings.votes > 1 else self._stream
        try:
            for _ in grow(turn, asker, request, sampling):
                self._time(turn, began)
                yield turn
        except InputError:
            self.turns.remove(turn)
            raise
        except WorkError:
            if not asker.broken_off:
                raise
        finally:
            self._growing = False
            self._time(turn, began)

    def stop(self) -> None:
        """Interrupt the answer that grows, from another thread."""
        if self._asker:
            self._asker.break_off()

    def forget(self) -> None:
        """Begin anew."""
        self.turns.clear()

    def _time(self, turn: Turn, began: float) -> None:
        turn.seconds = time.perf_counter() - began
        turn.usd = None if self.usd_per_hour is None else turn.seconds / 3600 * self.usd_per_hour

    def _request(self, question: str) -> tuple[Request, Sampling]:
        """With as many of the last turns as leave room for a whole answer."""
        past = [turn for turn in self.turns if turn.answer] if self.settings.memory else []
        most = self.settings.sampling.max_tokens
        while True:
            request = Request(f"{len(self.turns)}/{question}", self._messages(past, question))
            try:
                self.served.check_messages(request.messages)
                room = self.served.room(request)
            except Refused as refused:
                if not past:
                    raise InputError(refused.message) from None
                room = 0
            if room is None or room >= most or not past:
                limit = most if room is None else min(most, room)
                return request, replace(self.settings.sampling, max_tokens=limit)
            past = past[1:]

    def _messages(self, past: Sequence[Turn], question: str) -> tuple[Message, ...]:
        system = (Message("system", self.settings.system),) if self.settings.system else ()
        said = (m for turn in past for m in (self._asked(turn.question), Message("assistant", turn.answer)))
        return (*system, *said, self._asked(question))

    def _asked(self, question: str) -> Message:
        return ask(Problem("question", question, None), self.settings.prompt)[0]

    def _stream(self, turn: Turn, asker: Asker, request: Request, sampling: Sampling) -> Iterator[None]:
        split = Thinking(self.served.opened)
        for piece in asker.pieces(request, sampling):
            turn.thinking_tokens += piece.tokens if split.inside else 0
            thinking, answer = split.last(piece.text) if piece.finish else split.feed(piece.text)
            turn.thinking += thinking
            turn.answer += answer
            turn.finish = piece.finish
            yield
        turn.chains = 1

    def _vote(self, turn: Turn, asker: Asker, request: Request, sampling: Sampling) -> Iterator[None]:
        problem = Problem(request.key, turn.question, None)
        vote = Vote(problem, request.messages, self.settings.votes, self.settings.error)
        ballot = Ballot(graders.equivalent)
        first: dict[int, Completion] = {}
        for chain in draw([vote], asker, sampling):
            first.setdefault(ballot.cast(announced(problem, chain)), chain)
            turn.chains += 1
            turn.votes = dict(zip(ballot.founders, ballot.counts, strict=True))
            leader = max(range(len(ballot.counts)), key=ballot.counts.__getitem__, default=-1)
            self._show(turn, first.get(leader, chain))
            yield
        turn.consensus = result = vote.result()
        turn.votes, turn.finish = dict(result.votes), "stop"
        if result.answer is not None:
            self._show(turn, result.chains[result.answers.index(result.answer)])
        yield

    def _show(self, turn: Turn, chain: Completion) -> None:
        turn.thinking, turn.answer = Thinking(self.served.opened).last(chain.text)


def usd_per_hour(prices: Prices, engine_device: str, billed_as: str | None = None) -> float | None:
    """The price of the device that an engine runs on; None where there is none, or the GPU isn't in the price file.

    engine_device: "cpu" or "cuda". billed_as: an entry of the price file. Raises InputError where there is no such entry.
    """
    if billed_as is not None and billed_as not in prices.devices:
        raise InputError(f"billed_as: the price file has no device {billed_as!r}; known: {', '.join(prices.devices)}")
    device = billed_as or ("cpu" if engine_device == "cpu" else _gpu(prices))
    return prices.devices[device].usd_per_hour if device in prices.devices else None


def _gpu(prices: Prices) -> str | None:
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        name = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.lower()
    except (OSError, subprocess.SubprocessError):
        return None
    return next((device for device in prices.devices if device in name), None)
