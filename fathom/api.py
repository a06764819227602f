"""The Python API: `fathom.load` and `fathom.solve`. A model, one line; an answer, another.

Nothing is built here: it opens an engine and asks `serve/consensus.py` or `serve/chat.py`. `import fathom` alone loads
none of this.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType

from fathom.engines import open_engine
from fathom.errors import InputError
from fathom.prices import load_prices
from fathom.prompts.ask import ask
from fathom.recipe.models import locate
from fathom.records import Problem
from fathom.serve.chat import Conversation, Settings, Turn, configure, usd_per_hour
from fathom.serve.consensus import Consensus
from fathom.serve.consensus import solve as settle
from fathom.serve.live import Live
from fathom.serve.served import positions, served_model

EMBEDDED = "embedded:fathom-tiny-base"


class Model:
    """An open model. Close it, or use it in a `with`, to free its memory.

    model: a directory, a hub name (org/name[@revision]), or `embedded:NAME`. sets: as for `fathom chat --set`, such as
    "engine.kind=vllm" or "sampling.temperature=1". Raises InputError for a model or a setting that can't be used.
    """

    def __init__(self, model: str | Path = EMBEDDED, *sets: str):
        directory = locate(str(model), "model")
        self._config = configure(directory, sets)
        engine = open_engine(self._config.engine, directory)
        room = positions(self._config.engine, directory)
        self._settings = Settings.of(self._config, room)
        self._price = usd_per_hour(load_prices(), engine.device, self._config.billed_as)
        self._served = served_model(directory, str(model), room)
        self._live = Live(engine)

    def solve(self, question: str, samples: int = 64, error: float = 0.0, max_tokens: int | None = None) -> Consensus:
        """The answer on which up to `samples` chains agree; drawing stops when the rest can't change it.

        error: 0 for the majority's answer itself, else the chance of missing it that may be taken. Raises InputError
        for fewer than one sample, no chance, and a question without text.
        """
        _check_question(question)
        if type(samples) is not int or samples < 1:
            raise InputError(f"samples: expected a whole number from 1 up, got {samples!r}")
        if not 0 <= error < 1:
            raise InputError(f"error: expected a chance from 0 to below 1, got {error!r}")
        sampling = self._settings.sampling
        if max_tokens is not None:
            sampling = replace(sampling, max_tokens=max_tokens)
        asked = partial(ask, template=self._settings.prompt, system=self._settings.system)
        problem = Problem("question", question, None)
        (result,) = settle([problem], self._live, sampling, samples, error, asked=asked)
        return result

    def stream(self, question: str) -> Iterator[Turn]:
        """One answer while it grows: the same `Turn` again and again, with more in it. Raises InputError for a question without text."""
        _check_question(question)
        return self.conversation().ask(question)

    def ask(self, question: str) -> Turn:
        """One whole answer: thinking, answer, tokens, seconds, dollars."""
        *_, turn = self.stream(question)
        return turn

    def conversation(self) -> Conversation:
        """A new one, whose answers may refer to what was said before."""
        return Conversation(self._live, self._served, replace(self._settings), self._price)

    def close(self) -> None:
        self._live.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_question(question: str) -> None:
    if not isinstance(question, str) or not question.strip():
        raise InputError("the question is empty" if isinstance(question, str) else f"{question!r} is no question")


def load(model: str | Path = EMBEDDED, *sets: str) -> Model:
    """Open a model; see `Model`."""
    return Model(model, *sets)


def solve(question: str, model: str | Path = EMBEDDED, samples: int = 64, error: float = 0.0) -> Consensus:
    """`Model.solve` of a model that is opened for this question alone."""
    with load(model) as opened:
        return opened.solve(question, samples, error)
