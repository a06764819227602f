"""The plan as text for a terminal: one line per stage, what its figures assume below, and the sum of what is still to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from shutil import get_terminal_size
from textwrap import wrap
from typing import Any

from fathom.recipe.plan import Step
from fathom.recipe.schema import Recipe

_TRAINERS = ("sft", "grpo", "prefer")
_HEAD = ("stage", "op", "state", "tokens", "time", "GiB", "dollars", "")


def plan_table(recipe: Recipe, steps: Sequence[Step], forecast: Mapping[str, Mapping[str, Any]]) -> str:
    """States with their reasons, expectations with [low-high]; a total that says what has no price."""
    rows = [_HEAD, *(_row(step, forecast.get(step.stage.name)) for step in steps)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD) - 1)]
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]).rstrip() for row in rows
    ]
    hardware = recipe.file.hardware
    head = f"{recipe.file.recipe} (seed {recipe.file.seed}) on {hardware.count} x {hardware.device}"
    return "\n".join([head, "", *lines, "", *_notes(steps, forecast), _total(recipe, steps, forecast)])


def _notes(steps: Sequence[Step], forecast: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What stands behind the figures of the stages to run, as wide as the terminal, with an empty line after each."""
    told = {
        step.stage.name: forecast[step.stage.name]["note"]
        for step in steps
        if step.state != "cached" and forecast.get(step.stage.name, {}).get("note")
    }
    width = max(60, get_terminal_size((120, 24)).columns)
    lines = []
    for name, note in told.items():
        for number, part in enumerate(note.split("; ")):
            start = "  " if number else f"{name}: "
            lines += wrap(part, width, initial_indent=start, subsequent_indent="    ", break_on_hyphens=False)
    return [*lines, ""] if lines else []


def _row(step: Step, expected: Mapping[str, Any] | None) -> tuple[str, ...]:
    if step.state == "cached" or expected is None:
        numbers = ("", "", "", "")
    else:
        usd = expected["usd"]
        numbers = (
            _range(expected["tokens"], _count),
            _range(expected["hours"], _time) or "unknown",
            "" if expected["peak_gib"] is None else f"{expected['peak_gib']:.4g}",
            "unpriced" if usd is None else _range(usd, _dollars),
        )
    return (step.stage.name, step.stage.op_name, step.state, *numbers, step.reason)


def _total(recipe: Recipe, steps: Sequence[Step], forecast: Mapping[str, Mapping[str, Any]]) -> str:
    todo = [step for step in steps if step.state != "cached"]
    if not todo:
        return f"nothing to do: all {len(steps)} stages are finished"
    known = [forecast[step.stage.name] for step in todo if step.stage.name in forecast]
    hours = [sum(e["hours"][i] for e in known if e["hours"]) for i in range(3)]
    priced = [e["usd"] for e in known if e["usd"] is not None]
    usd = [sum(prices[i] for prices in priced) for i in range(3)]
    text = f"{len(todo)} of {len(steps)} stages to run: {_range(hours, _time)}, {_range(usd, _dollars)}"
    unpriced = len(todo) - len(priced)
    if unpriced:
        text += f", {unpriced} stage{'s' if unpriced > 1 else ''} unpriced"
    budget = recipe.file.budget.usd
    if budget is not None:
        fits = "within" if usd[2] <= budget else "may exceed" if usd[0] <= budget else "exceeds"
        if unpriced and fits == "within":
            fits = "what has a price is within"
        text += f"; {fits} the budget of ${budget:.2f}"
    return "\n".join([text, *_training(todo, forecast)])


def _training(todo: Sequence[Step], forecast: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What published bills are about: the sum of the training alone, where it is not all."""
    trained = [s.stage for s in todo if s.stage.op_name in _TRAINERS and s.stage.name in forecast]
    told = [forecast[stage.name] for stage in trained]
    if not told or len(told) == len(todo) or any(e["usd"] is None for e in told):
        return []
    hours, usd = ([sum(e[unit][i] for e in told) for i in range(3)] for unit in ("hours", "usd"))
    ops = " and ".join(dict.fromkeys(stage.op_name for stage in trained))
    return [f"of it {ops}: {_range(hours, _time)}, {_range(usd, _dollars)}"]


def _range(values: Sequence[float] | None, show: Callable[[float], str]) -> str:
    if values is None:
        return ""
    low, mid, high = map(show, values)
    return mid if low == high else f"{mid} [{low} - {high}]"


def _count(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def _time(hours: float) -> str:
    for size, unit in ((1, "h"), (1 / 60, "min")):
        if hours >= size:
            return f"{hours / size:.2g} {unit}" if hours < 10 * size else f"{hours / size:.0f} {unit}"
    return f"{hours * 3600:.0f} s"


def _dollars(value: float) -> str:
    if value < 0.01:
        return "<$0.01"
    return f"${value:.2f}" if value < 10 else f"${value:.0f}"
