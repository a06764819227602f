"""A scripted engine: a named function of the request answers, instantly and reproducibly.

The stand-in for a model in tests and for a labeller on a laptop. No script sees a gold answer,
and none of them is a measurement: a rating by a script says what the script's docstring says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from fathom.chunks import draw
from fathom.engines import Completion, Request
from fathom.errors import InputError
from fathom.records import Sampling

Script = Callable[[Request, int, int], str]
"""(request, sample index, seed) -> the text of the completion."""


class ScriptedEngine:
    """Answers with its script; one white-space separated word counts as one token."""

    device = "cpu"

    def __init__(self, name: str, script: Script):
        self.name = name
        self._script = script

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Completion]:
        for request in requests:
            prompt_tokens = sum(len(m.content.split()) for m in request.messages)
            for index in range(request.first, request.first + request.samples):
                words = re.findall(r"\s*\S+", self._script(request, index, sampling.seed))
                text = "".join(words[: sampling.max_tokens])
                finish = "length" if len(words) > sampling.max_tokens else "stop"
                yield Completion(request.key, index, text, min(len(words), sampling.max_tokens), finish, prompt_tokens)

    def close(self) -> None:
        """Nothing to release."""


def generated_difficulty(request: Request, index: int, seed: int) -> str:
    """Rates a generated problem by the level in its id (`gen-linear-d07-000123`), off by at most one.

    The stand-in for a labeller such as o3-mini: near the truth, not equal to it.
    """
    level = re.search(r"-d(\d+)-", request.key)
    if level is None:
        raise InputError(f"script generated-difficulty: id {request.key!r} carries no level like -d07-")
    jitter = int(3 * draw(seed, request.key, index)) - 1
    return f"Difficulty: {min(10, max(1, int(level[1]) + jitter))}"


def surface_difficulty(request: Request, index: int, seed: int) -> str:
    """Rates any problem by the look of its text: length, density of LaTeX, words of olympiad prose.

    A cheap order for real problems where no labeller is at hand; it reads nothing and solves nothing.
    """
    text = request.messages[-1].content
    words = len(text.split())
    latex = len(re.findall(r"\\[a-zA-Z]+|\$|\^|_", text))
    prose = len(
        re.findall(r"\b(?:prove|determine all|let|such that|integers?|polynomial|triangle|function)\b", text, re.I)
    )
    score = 1 + min(3.0, words / 50) + min(3.0, latex / 8) + min(3.0, prose / 1.5)
    return f"Difficulty: {min(10, round(score))}"


def echo(request: Request, index: int, seed: int) -> str:
    """Repeats the last message: the prompt as the model would see it."""
    return request.messages[-1].content


SCRIPTS: dict[str, Script] = {
    "generated-difficulty": generated_difficulty,
    "surface-difficulty": surface_difficulty,
    "echo": echo,
}
