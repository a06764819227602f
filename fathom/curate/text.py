"""What two questions have in common: normalised text, numbers, content words, n-grams.

Pure functions on strings. Numbers are kept apart from words on purpose: "What is 37 + 48?" and
"What is 37 + 49?" differ in one token and are different problems. Nothing here parses mathematics;
two notations of one formula are equal only where the normalisation says so.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from fathom.records import Problem

_NOTATIONS = [
    (r"(?<=[a-zA-Z\d$])-(?=[a-zA-Z]{2})", " ", "-"),
    (r"\\(?:left|right|displaystyle|bigl|bigr|big|limits|quad|qquad|phantom)(?![a-zA-Z])", " ", "\\"),
    (r"\\[,;:!> ]|\\\\|~|\$|\\[()\[\]]", " ", "\\~$"),
    (r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|operatorname|mbox)\s*\{([^{}]*)\}", r" \1 ", "\\"),
    (r"\\[dt]frac(?![a-zA-Z])", r"\\frac", "\\"),
    (r"\\frac\s*(?:\{\s*)?(\w+)\s*(?:\}\s*)?(?:\{\s*)?(\w+)(?:\s*\})?", r" \1 / \2 ", "\\"),
    (r"\\(?:cdot|times)(?![a-zA-Z])|[×·⋅]", " * ", "\\×·⋅"),
    (r"\\div(?![a-zA-Z])|÷", " / ", "\\÷"),
    (r"\\(?:leq?|leqslant)(?![a-zA-Z])|≤", " <= ", "\\≤"),
    (r"\\(?:geq?|geqslant)(?![a-zA-Z])|≥", " >= ", "\\≥"),
    (r"\^\s*(?:\{\s*)?\\circ(?:\s*\})?|°", " degrees ", "\\°"),
    (r"\\%", "%", "\\"),
    (r"(?<=\d)(?:,|\{,\}|\\,)(?=\d{3}(?!\d))", "", ","),
    (r"\{\s*(\w+)\s*\}", r" \1 ", "{"),
]
_NOTATIONS = [(re.compile(pattern), by, frozenset(signs)) for pattern, by, signs in _NOTATIONS]
"""(pattern, what stands in its place, signs): a text without any of the signs can't hold the pattern."""
_SIGNS = sorted(frozenset().union(*(signs for _, _, signs in _NOTATIONS)))
_TOKEN = re.compile(r"\d+(?:\.\d+)?|\\[a-z]+|[^\W\d_]+|[<>]=|[-+*/^=<>%!|()\[\]{}]")
_THOUSANDS = re.compile(r"[\s$\\-]*\d{1,3}(?:,\d{3})+(?:\.\d+)?[^\d)]*")
_CAPITALS = re.compile(r"[A-Z][A-Za-z]+")
_BRACKETS = frozenset("()[]{}")
_NO_SYMBOLS = _BRACKETS | {"a"}
_MASKS = dict.fromkeys("abcdefghijklmnopqrstuvwxyz", "@")
_MASKS |= dict.fromkeys("he she".split(), "they") | dict.fromkeys("his her him hers".split(), "their")

_UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety hundred"
SPOKEN = {word: str(value) for value, word in enumerate(_UNITS.split())}
SPOKEN |= {word: str(10 * value) for value, word in enumerate(_TENS.split(), 2)}
SYNONYMS = {
    **SPOKEN,
    "plus": "+", "minus": "-", "times": "*", "percent": "%",
    "average": "mean", "largest": "greatest", "smallest": "least", "gcf": "gcd", "hcf": "gcd",
}  # fmt: skip
"""Words that say the same thing as another token."""

_FRAME = frozenset(
    """
    a an the of is are was be been it its that this these those to in on at by for from and or as with if then so
    let what which who how many much find compute calculate determine evaluate solve give state show tell there do
    does did has have had would will can could should you your we our please answer value result number numbers
    each any all such given suppose following express
    """.split()
)
"""What questions are put in; says nothing of their content."""


def tokens(text: str) -> list[str]:
    """Lower-case words, numbers, LaTeX commands, operators and brackets; punctuation is dropped."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).replace("−", "-").replace("–", "-")
    present = {sign for sign in _SIGNS if sign in text}
    for pattern, by, signs in _NOTATIONS:
        if not signs.isdisjoint(present):
            text = pattern.sub(by, text)
    return [SYNONYMS.get(t, t) for t in _TOKEN.findall(text.lower())]


def full_text(problem: Problem) -> str:
    """Everything that is asked: the question and, where there are any, its options."""
    return "\n".join([problem.question, *(problem.options or ())])


def numbers(text_tokens: list[str]) -> tuple[str, ...]:
    """The numbers of a text in sorted order: other words may put them in another order."""
    return tuple(sorted(t for t in text_tokens if t[0].isdigit()))


def words(text_tokens: list[str]) -> frozenset[str]:
    """What says what a problem is about: words and LaTeX commands, no question frame ("what is the ...")."""
    return frozenset(t for t in text_tokens if len(t) > 1 and (t[0].isalpha() or t[0] == "\\") and t not in _FRAME)


def symbols(text_tokens: list[str]) -> frozenset[str]:
    """Variables and operators: any two formulas share some."""
    return frozenset(
        t for t in text_tokens if t not in _NO_SYMBOLS and (len(t) == 1 or t in ("<=", ">=")) and not t.isdigit()
    )


def names(text: str) -> frozenset[str]:
    """Names of people, days and figures, in lower case: words with a capital inside a sentence, owners, Janet's, ABC."""
    found = []
    for match in _CAPITALS.finditer(text):
        word, start = match[0], match.start()
        inside = text[start - 1 : start] == " " and (text[start - 2].islower() or text[start - 2] in ",;")
        if inside or word.isupper() or text.startswith(("'s", "’s"), match.end()):
            found.append(word.lower())
    return frozenset(found)


def masked(text_tokens: list[str], names: frozenset[str] = frozenset()) -> list[str]:
    """The template that a text was made from: every number, name, variable and personal pronoun replaced.

    Brackets are left out. An article "a" looks like a variable, in both texts alike.
    """
    other = (_MASKS | dict.fromkeys(names, "@")).get
    return ["#" if t[0].isdigit() else other(t, t) for t in text_tokens if t not in _BRACKETS]


def grams(plain_tokens: list[str], n: int) -> list[str]:
    """All runs of n tokens."""
    return [" ".join(plain_tokens[i : i + n]) for i in range(len(plain_tokens) - n + 1)]


def without_brackets(text_tokens: list[str]) -> list[str]:
    """Brackets come and go with the notation, so runs of tokens leave them out."""
    return [t for t in text_tokens if t not in _BRACKETS]


def wordy(gram: str) -> bool:
    """Whether more than half of an n-gram is words: a drawing's coordinates are shared by many problems."""
    parts = gram.split(" ")
    return 2 * sum(len(t) > 1 and t.isalpha() for t in parts) > len(parts)


def same_gold(gold: str | None) -> str | None:
    """A form in which equal short answers are equal strings: 27, 27.0 and $27$ are one; 1,3 and 13 are two."""
    if gold is None:
        return None
    parts = [gold] if _THOUSANDS.fullmatch(gold) else gold.split(",")
    return ",".join(_value("".join(tokens(part))) for part in parts)


def _value(flat: str) -> str:
    try:
        return str(Fraction(flat))
    except (ValueError, ZeroDivisionError):
        return flat
