"""What a run tells its user: a live bar where there is a terminal, a few plain lines where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

from fathom.recipe.plan import Step

PLAIN_INTERVAL = 15.0
"""Seconds between two progress lines of a stage when there is no terminal."""

STYLES = {"trained": "green", "prompt": "dim", "note": "cyan"}


class PlainListener:
    """Lines of text; progress at most every PLAIN_INTERVAL seconds."""

    def __init__(self, stream: IO[str] | None = None):
        self._stream = stream or sys.stdout
        self._last = 0.0

    def plan(self, steps: Sequence[Step]) -> None:
        todo = sum(step.state != "cached" for step in steps)
        if todo:
            self.note(f"{len(steps)} stage{'s' if len(steps) > 1 else ''}, {len(steps) - todo} finished, {todo} to run")

    def reused(self, step: Step) -> None:
        self.note(f"  {step.stage.name}: finished already{f' ({step.reason})' if step.reason else ''}")

    def started(self, step: Step) -> None:
        self._last = time.monotonic()
        self.note(f"> {step.stage.name} ({step.stage.op_name}){f': {step.reason}' if step.reason else ''}")

    def progress(self, step: Step, done: int, total: int, note: str) -> None:
        if time.monotonic() - self._last >= PLAIN_INTERVAL:
            self._last = time.monotonic()
            self.note(f"  {step.stage.name}: {_count(done, total)} {note}".rstrip())

    def show(self, step: Step, segments: Sequence[Sequence[str]]) -> None:
        """Text in pieces with a style each; without colours the trained pieces stand between two marks."""
        self.note("".join(f"⟦{text}⟧" if style == "trained" else text for text, style in segments).rstrip())

    def finished(self, step: Step, seconds: float, metrics: Mapping[str, Any]) -> None:
        self.note(f"  {step.stage.name}: done in {seconds:.1f} s  {summary(metrics)}".rstrip())

    def note(self, line: str) -> None:
        print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing to take away."""


class RichListener(PlainListener):
    """The same lines with a live bar under them."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._console = Console(highlight=False)
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._new_bar = lambda: Progress(*columns, console=self._console, transient=True)
        self._bar: Any = None
        self._task: Any = None

    def started(self, step: Step) -> None:
        super().started(step)
        self._bar = self._new_bar()
        self._bar.start()

    def progress(self, step: Step, done: int, total: int, note: str) -> None:
        if self._task is None:
            self._task = self._bar.add_task(step.stage.name, total=total, note=note)
        self._bar.update(self._task, completed=done, total=total, note=note)

    def show(self, step: Step, segments: Sequence[Sequence[str]]) -> None:
        from rich.text import Text

        self._console.print(Text.assemble(*((text, STYLES[style]) for text, style in segments)), soft_wrap=True)

    def finished(self, step: Step, seconds: float, metrics: Mapping[str, Any]) -> None:
        self.close()
        super().finished(step, seconds, metrics)

    def note(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Take the live bar away (also after an error)."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None


def listener() -> PlainListener:
    """The listener that fits where the output goes."""
    return RichListener() if sys.stdout.isatty() else PlainListener()


def summary(metrics: Mapping[str, Any]) -> str:
    """The scalar metrics of a stage on one line, or its funnel."""
    funnel = metrics.get("funnel")
    if funnel:
        return " -> ".join(f"{label} {count}" for label, count in funnel)
    parts = []
    for name, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, int | float | str) or len(str(value)) > 40:
            continue
        parts.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    return ", ".join(parts[:6])


def _count(done: int, total: int) -> str:
    return f"{done}/{total} ({done / total:.0%})" if total else str(done)
