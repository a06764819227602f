"""What `op: export` takes; apart from `ops/export.py`, which needs a Parquet library as a recipe's reader does not."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fathom.config import Input, StageConfig
from fathom.prompts import Prompt
from fathom.records import Kind

Format = Literal["messages", "sharegpt", "verl", "trl"]


class ExportConfig(StageConfig):
    """`op: export`. rows: a selection or mixture; for verl and trl any stage that hands on problems.

    name: of the data set in LLaMA-Factory's dataset_info.json. data_source: by problem kind, what verl
    chooses its reward function by. prompt, system: as in `op: rollout`, for verl and trl.
    """

    rows: Input
    formats: list[Format] = Field(min_length=1)
    name: str = Field("fathom", min_length=1)
    data_source: dict[Kind, str] = Field({})
    prompt: Prompt | None = None
    system: str | None = None
