"""The price file: dollars per hour of a device and per token of a model, each with a date and a source.

A user edits it or names another in the recipe (`prices: my-prices.yaml`). What is not in it has
no price: it is never taken as free.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from fathom.config import validate
from fathom.document import load_document
from fathom.records import Usage


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DevicePrice(_Strict):
    """usd_per_hour: of one device. basis "estimated": nobody sends a bill for it (a laptop's electricity)."""

    usd_per_hour: float = Field(ge=0, allow_inf_nan=False)
    basis: str = Field(default="metered", pattern="^(metered|estimated)$")
    as_of: str
    source: str


class TokenPrice(_Strict):
    """Dollars per million tokens. cached: prompt tokens read from the provider's cache (as fresh ones when absent).

    batch_*: of calls sent through the Batch API; without batch_input and batch_output there is no batch price.
    """

    input: float = Field(ge=0, allow_inf_nan=False)
    output: float = Field(ge=0, allow_inf_nan=False)
    cached: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    batch_input: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    batch_cached: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    batch_output: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    as_of: str
    source: str


class Prices(_Strict):
    """A whole price file."""

    devices: dict[str, DevicePrice] = {}
    models: dict[str, TokenPrice] = {}

    def tokens_usd(self, model: str, usage: Usage, batch: bool = False) -> float | None:
        """What a call costs; None when the model has no price. Dated names ("o3-mini-2025-01-31") fall back on the plain one."""
        price = self.models.get(model) or self.models.get(_undated(model))
        if price is None:
            return None
        rates = (price.input, price.cached, price.output)
        if batch:
            rates = (price.batch_input, price.batch_cached, price.batch_output)
        fresh, cached, output = rates
        if fresh is None or output is None:
            return None
        cached = fresh if cached is None else cached
        new_tokens = usage.prompt_tokens - usage.cached_tokens
        return (new_tokens * fresh + usage.cached_tokens * cached + usage.completion_tokens * output) / 1e6


def _undated(model: str) -> str:
    return re.sub(r"(?<=.)-20\d\d-?\d\d-?\d\d$", "", model)


def load_prices(path: Path | None = None) -> Prices:
    """Read a price file; the one shipped with Fathom when no path is given. Raises InputError."""
    if path is None:
        with resources.as_file(resources.files("fathom") / "data" / "prices.yaml") as shipped:
            return load_prices(shipped)
    document = load_document(path)
    return validate(Prices, document.values, document.where)
