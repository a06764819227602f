"""The one extractor: from a whole completion to the text of its final answer, or None.

Only an *announced* answer counts: a box, a `####` line, "the answer is ...", an "A:" line, or a
completion that is nothing but a bare answer. A number that merely stands last is not an answer
(on recorded completions such guesses are wrong nine times out of ten). This module reads text;
it does not know what the answer means.
"""

from __future__ import annotations

import re

from fathom.boxed import last_box

MAX_TEXT = 200_000
"""Only the last characters of a completion are read."""

MAX_TAIL = 300
"""A phrase announces the final answer only when at most this much follows it."""

MAX_BARE = 400
"""A text longer than this is never taken as a bare answer."""

_BROKEN = re.compile(r"\\(?:boxed|fbox)\s*\{")
_HASH = re.compile(r"####[ \t]*(\S[^\n]*)")
_PHRASE = re.compile(
    r"(?:\b(?:final|required|desired)\s+(?:answer|result|solution)|\banswer(?:\s+to\s+th(?:e|is)\s+(?:problem|question))?)"
    r"(?:\*\*)?\s*(?:(?:is|are|should\s+be|must\s+be|would\s+be|will\s+be)\b\s*(?:therefore|thus|then|given\s+by|equal\s+to)?\s*:?|:|=)"
    r"\s*(?:\*\*)?\s*",
    re.IGNORECASE,
)
_LINE = re.compile(r"^[ \t]*(?:\*\*)?A(?:\*\*)?:(?:\*\*)?[ \t]*(\S[^\n]*)", re.MULTILINE)
_WORD = re.compile(r"(?<![\\{A-Za-z])[A-Za-z]{2,}")
_SENTENCE_END = re.compile(r"\.(?=\s|$)|\n|(?<=[!?])\s|<\|")
_MATH_SPAN = re.compile(r"(\$\$?)(.+?)\1|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)


def final_answer(text: str) -> str | None:
    """The announced final answer of a completion, as written, or None.

    What stands before the last `</think>` is not read; a chain without that tag is read whole. The
    last box wins; boxes joined by "and", "or" or a comma are one list.
    """
    text = text[-MAX_TEXT:].rpartition("</think>")[2]
    answer = last_box(text)
    if answer is None and not _BROKEN.search(text):
        for rule in (_after_phrase, _after_hash, _after_line, _bare):
            answer = rule(text)
            if answer is not None:
                break
    return answer


def _after_phrase(text: str) -> str | None:
    tail = text[-MAX_TAIL:]
    last = None
    for match in _PHRASE.finditer(tail):
        last = match
    return _first_answer(tail[last.end() :]) if last else None


def _after_hash(text: str) -> str | None:
    found = _HASH.findall(text)
    return found[-1].strip() if found else None


def _after_line(text: str) -> str | None:
    found = _LINE.findall(text)
    return found[-1].strip() if found else None


def _first_answer(rest: str) -> str | None:
    """What an announcement announces: up to the end of its sentence, or the display after it."""
    rest = rest.lstrip(" \t\n:*")
    display = re.match(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]", rest, re.DOTALL)
    if display:
        return (display[1] or display[2]).strip()
    start = 0
    for span in _MATH_SPAN.finditer(rest):  # a sentence does not end inside a formula
        if _SENTENCE_END.search(rest, start, span.start()):
            break
        start = span.end()
    end = _SENTENCE_END.search(rest, start)
    answer = rest[: end.start() if end else len(rest)].strip(" *\t")
    return answer or None


def _bare(text: str) -> str | None:
    """The whole text when it is one short line of one sentence, hence itself an answer."""
    text = text.strip()
    if not text or len(text) > MAX_BARE or "\n" in text:
        return None
    if re.search(r"\.\s+\S|[!?]\s+[A-Z]", text):
        return None
    formula = "$" in text or "\\(" in text
    if formula and len(_WORD.findall(text)) > 3 and not re.search(r"\b(?:is|are|equals)\b", text):
        return None  # a step of a derivation, not a statement of the answer
    return text
