"""When two problems are the same one: what is compared of them, and how near they are.

Numbers, gold and words are compared apart: "What is 37 + 48?" and "What is 37 + 49?" differ in one
token and are different problems, and the same problem in other words keeps its numbers and its answer.
Works on words; a translation or a full retelling is not recognised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from fathom.curate import text
from fathom.records import Problem

UNKNOWN_GOLD_SIMILARITY = 0.8
"""Where no gold confirms that two problems are one, the words must agree this much, whatever the recipe asks."""
CONTAINED, CONTAINED_CONFIRMED = 0.75, 0.6
"""Least share of the shorter text's words that the longer one must hold; the second at equal numbers, 3 or more."""
ADDED_NUMBERS = 2
"""Most numbers that a label or a line in front may add: "Problem 12 (5 points)"."""
TELLING = 6
"""Least words and numbers in common, together, where the longer text has numbers of its own."""


class Content(NamedTuple):
    """What is compared of one problem when the texts differ.

    words: distinct content words and commands. symbols: distinct variables and operators. numbers: all
    of them, sorted. gold: the answer in its plainest form, or None. The elements are texts, or hashes of them.
    """

    words: frozenset[Any]
    symbols: frozenset[Any]
    numbers: tuple[Any, ...]
    gold: Any

    @property
    def size(self) -> int:
        return len(self.words) + len(self.symbols)


class Near(NamedTuple):
    """Why two problems are one. rule: "similar" or "contained"; score: 0-1."""

    rule: str
    score: float


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """One problem prepared for comparison."""

    asked: str
    tokens: list[str]
    content: Content

    @classmethod
    def of(cls, problem: Problem) -> Fingerprint:
        asked = text.full_text(problem)
        found = text.tokens(asked)
        gold = text.same_gold(problem.gold)
        return cls(asked, found, Content(text.words(found), text.symbols(found), text.numbers(found), gold))

    @property
    def plain(self) -> str:
        """The normalised text: equal for equal problems."""
        return " ".join(self.tokens)

    @property
    def template(self) -> list[str]:
        """The tokens with numbers, names and variables masked: equal for a problem and its twin."""
        return text.masked(self.tokens, text.names(self.asked))


def near(a: Content, b: Content, similarity: float, same_gold: bool = True) -> Near | None:
    """Whether two problems with different texts are the same one, by the plainest rule that says so.

    - similar: equal numbers and gold, and Jaccard similarity of words of at least `similarity`;
    - contained: equal known gold, and one text holds the other with something added: most of its
      words (`CONTAINED`), all its numbers and at most `ADDED_NUMBERS` more.

    similarity: 0-1; at 0 words play no part: equal numbers and gold are enough and nothing else is.
    same_gold: whether different golds make different problems; where not (a leak stays one when its
    answer is written otherwise, or wrong), equal numbers ask for `UNKNOWN_GOLD_SIMILARITY`.
    """
    shared_words = len(a.words & b.words)
    shared = shared_words + len(a.symbols & b.symbols)
    if a.numbers == b.numbers and (a.gold == b.gold or (similarity and not same_gold)):
        jaccard = shared / (a.size + b.size - shared) if a.size or b.size else 1.0
        confirmed = a.gold == b.gold is not None
        if jaccard >= (similarity if confirmed else max(similarity, UNKNOWN_GOLD_SIMILARITY)):
            return Near("similar", jaccard)
    if not similarity or a.gold is None or a.gold != b.gold:
        return None
    held = shared / max(1, min(a.size, b.size))
    fewer, more = sorted((set(a.numbers), set(b.numbers)), key=len)
    if a.numbers == b.numbers:
        confirmed = held >= (CONTAINED_CONFIRMED if len(fewer) >= 3 else CONTAINED) and bool(fewer)
    else:
        added = len(more - fewer) if fewer <= more else ADDED_NUMBERS + 1
        confirmed = held >= CONTAINED and added <= ADDED_NUMBERS and shared_words + len(fewer) >= TELLING
    return Near("contained", held) if confirmed else None
