"""A chain's text while it grows: cut before a stop string, split into thinking and answer.

Pure and incremental: what comes out in sum depends on the text alone, never on the pieces in which it
came. So a streamed answer, put together, is the whole answer byte for byte. Nothing that may still
turn out to be a stop string or a tag is let out before it is certain. Not a parser of answers: what a
chain announces is the graders' business.
"""

from __future__ import annotations

from collections.abc import Sequence

THINK, END_THINK = "<think>", "</think>"


def _begun(text: str, marks: Sequence[str]) -> int:
    """Length of the longest end of `text` with which a mark may begin; 0 where none does."""
    longest = max(map(len, marks), default=0)
    sizes = range(min(len(text), longest - 1), 0, -1)
    return next((size for size in sizes if any(mark.startswith(text[-size:]) for mark in marks)), 0)


class Stops:
    """Ends a text before the stop string that is complete first; of two that end together, before the longer.

    met: whether one came. stops: none of them empty.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = stops
        self._held = ""
        self.met = False

    def feed(self, text: str) -> str:
        """What is certain to stand before any stop string, of this piece and of what was held back."""
        if self.met or not self._stops:
            return "" if self.met else text
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.met, self._held = True, ""
            return text[: min(found)[1]]
        cut = len(text) - _begun(text, self._stops)
        self._held = text[cut:]
        return text[:cut]

    def end(self) -> str:
        """What was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held


class Thinking:
    """Splits a text at `</think>` into thinking and answer, both verbatim and without the tags.

    opened: whether the prompt opened the thinking, so that the text begins inside it; a tag that the model
    writes all the same is dropped. Otherwise only a text that begins with `<think>` has thinking. Without an
    end tag all of it is thinking; what follows the first end tag is the answer, further tags included.
    """

    def __init__(self, opened: bool):
        self._opened = opened
        self._held = ""
        self._began = False
        self.inside = opened
        """Whether what comes next is thinking, as far as is known."""

    def feed(self, text: str) -> tuple[str, str]:
        """(thinking, answer) that this piece, with what was held back, made certain."""
        text = self._held + text
        self._held = ""
        if not self._began:
            start = text.lstrip()
            if not start.startswith(THINK) and THINK.startswith(start):
                self._held = text
                return "", ""
            self._began = True
            self.inside = self._opened or start.startswith(THINK)
            text = start.removeprefix(THINK) if self.inside and start.startswith(THINK) else text
        return self._inside(text) if self.inside else ("", text)

    def _inside(self, text: str) -> tuple[str, str]:
        thinking, tag, answer = text.partition(END_THINK)
        if tag:
            self.inside = False
            return thinking, answer
        cut = len(text) - _begun(text, (END_THINK,))
        self._held = text[cut:]
        return text[:cut], ""

    def last(self, text: str) -> tuple[str, str]:
        """(thinking, answer) of the last piece, or of a whole text; what was held back turned out to be no tag."""
        thinking, answer = self.feed(text)
        held, self._held = self._held, ""
        return (thinking + held, answer) if self.inside else (thinking, answer + held)
