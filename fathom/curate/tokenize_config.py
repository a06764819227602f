"""What `op: tokenize` takes; apart from `tokenize.py`, which needs a tokenizer library as a recipe's reader does not."""

from __future__ import annotations

from pydantic import Field

from fathom.config import Input, ModelInput, StageConfig


class TokenizeConfig(StageConfig):
    """`op: tokenize`.

    model: whose tokenizer and template. max_length: prompt and completion together, in tokens.
    """

    examples: Input
    model: ModelInput
    max_length: int = Field(16384, ge=1)
