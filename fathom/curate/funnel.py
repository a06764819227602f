"""Rows on their way through named cuts, and how a curation op ends.

Every cut says whom it removed and why, so rows in = rows kept + rows removed, and the report can draw
the funnel. An op that is left with nothing stops with one line instead of handing on an empty artifact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fathom.errors import InputError
from fathom.records import Problem, write_jsonl


@dataclass
class Funnel:
    """Problems on their way through the cuts. steps: [label, rows left]; removed: rows with id and reason."""

    problems: list[Problem]
    steps: list[list[object]] = field(default_factory=list)
    removed: list[dict[str, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.steps.append(["problems", len(self.problems)])

    def keep(self, label: str, reason: Callable[[Problem], str | None]) -> None:
        """Cut the problems that `reason` gives a reason for."""
        kept = []
        for problem in self.problems:
            why = reason(problem)
            if why is None:
                kept.append(problem)
            else:
                self.removed.append({"id": problem.id, "reason": why})
        self.problems = kept
        self.steps.append([label, len(kept)])


def finish(
    op: str, out: Path, kept: list[Problem], funnel: list[list[object]], found: dict[str, Any]
) -> dict[str, Any]:
    """Write the problems and return the metrics. Raises InputError, with the funnel, when none is left."""
    told = metrics(op, len(kept), funnel, found)
    write_jsonl(out / "problems.jsonl", kept)
    return told


def metrics(op: str, kept: int, funnel: list[list[object]], found: dict[str, Any]) -> dict[str, Any]:
    """The metrics of an op that kept so many problems. Raises InputError, with the funnel, when none is left."""
    if not kept:
        raise InputError(f"{op}: no problem left: " + ", ".join(f"{label} {count}" for label, count in funnel))
    return {"problems": kept, **found, "funnel": funnel}
