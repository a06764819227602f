"""A row's way through a run as plain lines; what is told is `why.py`'s business."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

SHOWN = 240
"""Characters of a text."""
TEXTS = {"text": "this", "other_text": "that", "detail": "detail", "where": "at"}
"""What a removed row may carry beside its reason, and how it is called."""
CHAINS = 16
"""Chains of a stage that are told one by one; `--json` has all."""


def describe(way: Mapping[str, Any]) -> str:
    """`why`'s result: the outcome, then a paragraph per stage."""
    cost = "" if way["usd"] is None else f"; its chains cost ${way['usd']:.4f}"
    of = "" if way["row"] == way["problem"] else f", a training row of {way['problem']},"
    lines = [f"{way['row']}{of} in {way['run']}: {way['outcome']}{cost}"]
    names = [f"{step['stage']} ({step['op']})" for step in way["steps"]]
    width = max(map(len, names))
    for name, step in zip(names, way["steps"], strict=True):
        first, *more = _told(step)
        lines += [f"  {name:{width}}  {first}", *(f"  {'':{width}}  {line}" for line in more)]
    return "\n".join(lines)


def _told(step: Mapping[str, Any]) -> Iterator[str]:
    """The lines of one stage."""
    did = step["did"]
    if did == "read":
        yield from _read(step)
    elif did == "removed":
        yield f"removed: {step['reason']}"
        yield from (f"{label}: {_short(str(step[key]))}" for key, label in TEXTS.items() if step.get(key))
    elif did == "kept":
        yield "kept" + "".join(f"; {name} {_nested(value)}" for name, value in step.get("set", {}).items())
    elif did == "chosen":
        of = f" of {step['rows']}" if step["rows"] else ""
        yield f"chosen: training row {step['training_row']}, number {step['number']}{of}"
        yield from (f"{name}: {_plain(step[name])}" for name in ("lineage", "part") if step.get(name))
        yield from (f"and {more['training_row']}, number {more['number']}" for more in step.get("more", ()))
    elif did in ("trained on", "exported", "left out"):
        yield f"{did}, from {' and '.join(step['from'])}"
    if "chains" in step:
        yield _score(step["chains"])
        yield from _chains([chain for chain in step["chains"] if "verdict" in chain or "usd" in chain])
    yield from (f"{row['row']} removed: {row['reason']}" for row in step.get("aside", ()))
    yield from (f"went because of it: {row['row']} ({row['reason']})" for row in step.get("instead", ()))


def _read(step: Mapping[str, Any]) -> Iterator[str]:
    source, licence = step.get("source") or "an unnamed source", step.get("licence") or "no licence stated"
    answer = f"; gold {step['gold']}" if "gold" in step else ""
    yield f"read from {source}, {licence}; {step.get('kind', 'math')}{answer}"
    yield _short(step["question"])
    known = {name: step[name] for name in ("difficulty", "solve_rate", "meta") if step.get(name)}
    if known:
        yield ", ".join(f"{name} {_plain(value)}" for name, value in known.items())


def _score(chains: list[Mapping[str, Any]]) -> str:
    verdicts = [chain["verdict"].get("correct") for chain in chains if "verdict" in chain]
    if not verdicts:
        return f"{len(chains)} chains, without verdicts"
    return f"{sum(v is True for v in verdicts)} of {len(chains)} chains correct"


def _chains(chains: list[Mapping[str, Any]]) -> Iterator[str]:
    yield from map(_chain, chains[:CHAINS])
    if len(chains) > CHAINS:
        yield f"and {len(chains) - CHAINS} more"


def _chain(chain: Mapping[str, Any]) -> str:
    tokens = f", {chain['tokens']} tokens" if chain["tokens"] else ""
    cut = ", cut at the token budget" if chain["finish"] == "length" else ""
    cost = f", ${chain['usd']:.4f}" if "usd" in chain else ""
    rewrite = f", rewritten: {_plain(chain['rewrite'])}" if "rewrite" in chain else ""
    return f"#{chain['index']} by {chain['model']}{tokens}{cut}{_verdict(chain.get('verdict'))}{rewrite}{cost}"


def _verdict(verdict: Mapping[str, Any] | None) -> str:
    if verdict is None:
        return ""
    said = {True: "correct", False: "wrong", None: "no verdict"}[verdict.get("correct")]
    why = f": {verdict['why']}" if verdict.get("why") and verdict.get("correct") is not True else ""
    answer = f", answer {_short(str(verdict['answer']))}" if verdict.get("answer") is not None else ""
    return f": {said}{answer} ({verdict['grader']} {verdict.get('rung', '')}{why})".replace(" )", ")")


def _plain(value: Any) -> str:
    """Values as a person writes them: key value, key value."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_nested(part)}" for name, part in value.items())
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _nested(value: Any) -> str:
    return f"({_plain(value)})" if isinstance(value, Mapping) else _plain(value)


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= SHOWN else f"{flat[: SHOWN - 1]}…"
