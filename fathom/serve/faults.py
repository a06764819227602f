"""Faults to order: which call of an endpoint goes wrong, and how. It decides and counts; it sends nothing.

A decision follows from the request and from how often it was asked before, never from a clock or
from what else is asked, so that two runs of one recipe meet the same faults.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from fathom.chunks import draw
from fathom.engines.endpoint import FaultsConfig

Fault = Literal["too_many", "error", "truncated", "dropped"]
FAULTS: tuple[Fault, ...] = ("too_many", "error", "truncated", "dropped")


@dataclass(frozen=True)
class Fate:
    """What becomes of one call: a fault or none, after a wait in seconds."""

    fault: Fault | None
    seconds: float


class Faults:
    """Decides call by call; one instance serves one endpoint."""

    def __init__(self, config: FaultsConfig | None = None):
        self.config = config or FaultsConfig()
        self._asked: Counter[str] = Counter()

    def fate(self, request: str) -> Fate:
        """Of the next call with this request. request: its content, or a digest of it."""
        attempt = self._asked[request]
        self._asked[request] += 1
        seconds = self.config.delay * draw(self.config.seed, request, attempt, "delay")
        return Fate(self._fault(request, attempt), seconds)

    def _fault(self, request: str, attempt: int) -> Fault | None:
        if attempt >= self.config.most:
            return None
        place = draw(self.config.seed, request, attempt, "fault")
        for fault in FAULTS:
            share = getattr(self.config, fault)
            if place < share:
                return fault
            place -= share
        return None
