"""The model that a server answers for: its name, what its prompts look like, and how much room they leave.

Tokens and templates are `fathom/tokens.py`'s, weights and sampling the engine's; nothing here generates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fathom import weights
from fathom.engines import Request, TransformersConfig, VllmConfig
from fathom.records import Message
from fathom.serve.errors import Refused
from fathom.serve.split import END_THINK, THINK

ThinkingMode = Literal["auto", "open", "tagged"]


@dataclass(frozen=True)
class Served:
    """name: as requests name it. opened: whether a chain begins inside its thinking (see `split.Thinking`).

    positions: prompt and answer together, in tokens; None where that isn't known. prompt_tokens: of a request, likewise.
    control: texts that the model reads as tokens of control, such as the end of a turn.
    """

    name: str
    opened: bool = False
    positions: int | None = None
    prompt_tokens: Callable[[Request], int] | None = None
    control: tuple[str, ...] = ()
    created: int = field(default_factory=lambda: int(time.time()))

    def check_name(self, name: str) -> None:
        """Raises Refused (404) for another model's name."""
        if name != self.name:
            told = f"this server has the model {self.name!r}, not {name!r}"
            raise Refused(404, f"model: {told}", param="model", code="model_not_found")

    def check_messages(self, messages: Sequence[Message]) -> None:
        """Raises Refused (400) for text that would forge the turns of the conversation."""
        for number, message in enumerate(messages):
            for part, text in (("content", message.content), ("reasoning", message.reasoning or "")):
                if token := next((token for token in self.control if token in text), None):
                    where = f"messages.{number}.{part}"
                    raise Refused(400, f"{where}: holds the control token {token!r}", where, "control_token")

    def room(self, request: Request) -> int | None:
        """Tokens that an answer may have; None where that isn't known. Raises Refused (400) where there are none."""
        if self.positions is None or self.prompt_tokens is None:
            return None
        tokens = self.prompt_tokens(request)
        if tokens >= self.positions:
            told = f"the prompt has {tokens} tokens, and the model's {self.positions} positions hold prompt and answer"
            raise Refused(400, told, "prompt" if request.raw else "messages", "context_length_exceeded")
        return self.positions - tokens


def served_model(model: Path, name: str, positions: int | None, thinking: ThinkingMode = "auto") -> Served:
    """The model of a directory. thinking: "open" and "tagged" overrule what its chat template says."""
    from fathom.engines.text import ModelText
    from fathom.tokens import prompt_text

    text = ModelText(model, name)
    asked = prompt_text(text.tokenizer, [Message("user", "?")]).rstrip()
    special = [str(token) for token in text.tokenizer.added_tokens_decoder.values() if token.special]
    return Served(
        name,
        opened=asked.endswith(THINK) if thinking == "auto" else thinking == "open",
        positions=positions,
        prompt_tokens=lambda request: len(text.prompt(request)),
        control=tuple(token for token in special if token not in (THINK, END_THINK)),
    )


def positions(engine: TransformersConfig | VllmConfig, model: Path) -> int | None:
    """Tokens that a prompt and its answer may have together; None where the model doesn't say."""
    if isinstance(engine, VllmConfig) and engine.max_model_len:
        return engine.max_model_len
    return weights.positions(model)
