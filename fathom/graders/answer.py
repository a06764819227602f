r"""A whole answer as a tree: items between commas, "and" and "or", each with its label or its words.

"The sum is $3$ units", `x = 1 \text{ or } x = 2`, `(3, 4] \cup \{7\}` and `12^{\text{th}} grade` are
read here; what stands inside one formula is the parser's. A sentence that is not understood stays
`Words` and is compared as text, so a misread answer is never called right by accident.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from fathom.graders import realsets, words
from fathom.graders.lexer import Token, tokens
from fathom.graders.normalize import MAX_ANSWER
from fathom.graders.parser import parse_expression
from fathom.graders.tree import Labelled, Node, NotMath, Num, Numeral, Op, Rel, Seq, Words, depth

MAX_ITEMS = 1_000
MAX_LEVELS = 120
"""Of a tree: `AAAA...` and `2*2*2*...` have one per factor, and comparing takes some frames for each."""

_SEPARATORS = frozenset({",", ";"})
_CONJUNCTIONS = frozenset({"and", "or"})
_EQUALS = frozenset({"is", "are", "equals", "equal", "was", "be"})
_CONDITION = frozenset({"for", "where", "with", "forall", "respectively", "as"})
_HEDGES = frozenset(
    "or and more less least most not than except if to any other between from greater smaller fewer over under up down unless no never".split()
)
_ROUGHLY = frozenset(
    "approximately about roughly exactly only just definitely indeed simply precisely therefore thus".split()
)
_SPACED_LIST = re.compile(r"-?\d+(?: -?\d+)+")  # 5 3 -2
_LETTER_NUMERAL = re.compile(r"\(?(?P<digits>[0-9A-Fa-f]+)\)?\s*_\s*\{?\s*(?P<base>\d\d)\s*\}?")  # 2A_16
_COUNT = re.compile(r"(?<!\^)(?<!\^\{)(?<!\^\{-)\d")
_OPENERS = frozenset({"(", "[", "{", "\\{", "<("})
_CLOSERS = frozenset({")", "]", "}", "\\}", ")>"})


@lru_cache(maxsize=4096)
def read(text: str, thousands: bool = True) -> Node | None:
    """The tree of a normalized answer, or None when it is mathematics that the parser doesn't know.

    thousands: read `1,234` outside brackets as one number (otherwise as two).
    """
    if len(text) > MAX_ANSWER:
        return None
    if _SPACED_LIST.fullmatch(text):
        text = "(" + text.replace(" ", ", ") + ")"
    if (match := _LETTER_NUMERAL.fullmatch(text)) and int(match["base"]) > 10:
        return Numeral(match["digits"].upper(), int(match["base"]))
    try:
        tree = _answer(tokens(text, thousands))
    except (NotMath, RecursionError):
        return None
    return tree if depth(tree) <= MAX_LEVELS else None


def _answer(stream: list[Token]) -> Node:
    stream = _without_condition([_equals(token) for token in stream])
    parts = [part for part in _split(stream) if part]
    if not parts or len(parts) > MAX_ITEMS:
        raise NotMath("no items" if not parts else "too many items")
    items = tuple(_item(part) for part in parts)
    if len(items) == 1:
        return items[0]
    conjunction = not any(token.value == "or" or token == ("op", ",") for token in stream) and all(
        map(realsets.is_set, items)
    )
    return Seq("and" if conjunction else "list", items)


def _equals(token: Token) -> Token:
    return Token("op", "=") if token.kind == "text" and token.value.lower() in _EQUALS else token


def _without_condition(stream: list[Token]) -> list[Token]:
    """`2n for all n` is `2n`: a clause that only names its letters is not compared.

    A clause with an inequality ("for t > 0") claims the answer for a part of the line; it stays, and
    such an answer equals only a gold with the same words.
    """
    depth = 0
    for index, token in enumerate(stream):
        depth += _turn(token)
        if index and not depth and token.kind == "text" and token.value.lower().strip("(") in _CONDITION:
            following = stream[index + 1].value.lower() if index + 1 < len(stream) else ""
            if following == "which":
                continue
            universal = following in ("all", "any", "every", "each", "some")
            narrows = any(rest.kind == "op" and rest.value in ("<", ">", "<=", ">=") for rest in stream[index:])
            return stream if narrows and not universal else stream[:index]
    return stream


def _turn(token: Token) -> int:
    return (token.value in _OPENERS) - (token.value in _CLOSERS) if token.kind == "op" else 0


def _split(stream: list[Token]) -> list[list[Token]]:
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in stream:
        depth += _turn(token)
        separates = (token.kind == "op" and token.value in _SEPARATORS) or token.value.lower() in _CONJUNCTIONS
        if separates and depth <= 0:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _item(stream: list[Token]) -> Node:
    if not any(token.kind == "text" for token in stream):
        return parse_expression(stream)
    name, value = _named(stream)
    if name is not None:
        try:
            side = parse_expression(name)
        except NotMath:
            side = Words(_spell(name))
        return Rel(("=",), (side, _value(value)))
    return _value(stream)


def _named(stream: list[Token]) -> tuple[list[Token] | None, list[Token]]:
    """What stands before and after the last equals sign outside brackets."""
    depth, last = 0, None
    for index, token in enumerate(stream):
        depth += _turn(token)
        if not depth and token == ("op", "=") and index + 1 < len(stream):
            last = index
    return (None, stream) if last is None else (stream[:last], stream[last + 1 :])


def _value(stream: list[Token]) -> Node:
    """A formula with its label before or after it, or words."""
    kinds = [token.kind == "text" for token in stream]
    if not any(kinds):
        return parse_expression(stream)
    if all(kinds) or not any(token.kind in ("num", "sym", "fn", "env") for token in stream):
        return _words(stream)
    start = kinds.index(False) if kinds[0] else 0
    lead = [token.value.lower().strip(" :.") for token in stream[:start]]
    if any(word not in _ROUGHLY and not _is_currency(word) for word in lead):
        return Words(_spell(stream))
    end = kinds.index(True, start) if True in kinds[start:] else len(stream)
    body, label = stream[start:end], stream[end:]
    if label and body and body[-1] == ("op", "/"):
        body, label = body[:-1], [body[-1], *label]
    if label and body and body[-1] == ("op", "("):
        body, label = body[:-1], [body[-1], *label]
    if not body or not _is_label(label):
        return Words(_spell(stream))
    text = " ".join([word for word in lead if word not in _ROUGHLY] + [token.value for token in label])
    node = parse_expression(body)
    if label and (scale := words.SCALES.get(label[0].value.lower())):
        node, text = Op("mul", (node, Num(Fraction(scale)))), text.partition(label[0].value)[2].strip()
    return Labelled(node, text) if text else node


def _is_currency(word: str) -> bool:
    return word in ("$", "usd", "rs", "rs.", "€", "£", "eur", "inr", "dollars", "us")


def _is_label(label: list[Token]) -> bool:
    """Unit words with exponents: no further numbers, nothing that makes the value uncertain."""
    for index, token in enumerate(label):
        before = label[index - 1] if index else Token("end", "")
        if (token.kind == "num" and before.value not in ("^", "{", "-")) or token.kind in ("fn", "env"):
            return False
        if token.kind == "op" and token.value not in "^/*{}-().'_ ":
            return False
        if token.kind == "text" and (_COUNT.search(token.value) or token.value.lower().strip("().,:") in _HEDGES):
            return False
    return True


def _words(stream: list[Token]) -> Node:
    text = _spell(stream)
    value = words.number_word(text)
    return Words(text) if value is None else Num(value)


def _spell(stream: list[Token]) -> str:
    return " ".join(token.value for token in stream if token.value not in "{}")
