r"""The last `\boxed{...}` of a text: what grading and the corpora that hide their gold in a solution both read.

It finds and unwraps boxes; what an announced answer is beside them is `graders/extract.py`'s business.
"""

from __future__ import annotations

import re

MAX_BOXES = 50
"""Only so many boxes, from the end, are looked at."""

MAX_JOINT = 60
"""Boxes with more text than this between them are not one list."""

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*")
_TOKEN = re.compile(r"-?[\w.]+|\\[a-zA-Z]+")
_JOINT = re.compile(
    r"[\s$]*(?:\\[()\[\]])?[\s$]*"
    r"(?:[,;&]|\\quad|\\\\|\\text\s*\{[\s,]*(?:and|or)[\s,]*\}|\band\b|\bor\b|\\(?=[,;\s]))"
    r"(?:[\s$,;]|\\[,;()\[\]]|\\quad|\\text\s*\{[\s,]*(?:and|or)[\s,]*\}|\band\b|\bor\b)*"
    r"(?:[A-Za-z](?:_\{?\w\}?)?\s*=)?[\s$]*"
)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def last_box(text: str) -> str | None:
    """Content of the last balanced box; several joined boxes come back separated by commas."""
    chosen: list[tuple[int, int, str]] = []
    for match in reversed(list(_BOX.finditer(text))[-MAX_BOXES:]):
        box = _box(text, match)
        if box is None:
            continue
        if chosen and box[1] >= chosen[0][1]:
            chosen[0] = box  # the box around the one found before
        elif not chosen or (chosen[0][0] - box[1] < MAX_JOINT and _JOINT.fullmatch(text, box[1], chosen[0][0])):
            chosen.insert(0, box)
        else:
            break
    return ", ".join(dict.fromkeys(content.strip() for _, _, content in chosen)) or None if chosen else None


def _box(text: str, match: re.Match[str]) -> tuple[int, int, str] | None:
    r"""(start, end, content) of a box whose argument is balanced, or one token (`\boxed5`)."""
    start = match.end()
    if text[start : start + 1] == "{":
        end = closing_brace(text, start)
        return None if end is None else (match.start(), end + 1, _unwrapped(text[start + 1 : end]))
    token = _TOKEN.match(text, start)
    return None if token is None else (match.start(), token.end(), token.group())


def _unwrapped(content: str) -> str:
    """The content without further boxes inside it."""
    while (inner := _BOX.search(content)) and content[inner.end() : inner.end() + 1] == "{":
        end = closing_brace(content, inner.end())
        if end is None:
            break
        content = content[: inner.start()] + content[inner.end() + 1 : end] + content[end + 1 :]
    return content


def closing_brace(text: str, start: int) -> int | None:
    r"""Index of the brace that closes the one at `start`; `\{` and `\}` are not braces."""
    depth = 0
    for match in _BRACE.finditer(text, start):
        if match[0] == "{":
            depth += 1
        elif match[0] == "}":
            depth -= 1
            if depth == 0:
                return match.start()
    return None
