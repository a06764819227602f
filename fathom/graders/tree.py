"""The nodes of a parsed answer: immutable values, compared by `==`.

An expression is a `Num`, a `Sym` or an `Op` over expressions; the other nodes are the structures
that answers come in (lists, matrices, relations, words). Nothing here computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Num:
    """An exact number. digits: significant digits when it was written as a decimal, else 0."""

    value: Fraction
    digits: int = 0


@dataclass(frozen=True, slots=True)
class Sym:
    r"""A letter with its subscript and primes; "oo" is infinity, "RR" the real line."""

    name: str


@dataclass(frozen=True, slots=True)
class Op:
    """An operator or function applied to expressions, e.g. add, mul, pow, sqrt, sin, abs, pm."""

    name: str
    args: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Numeral:
    """Digits in a written base, as in 52_8."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Seq:
    """Several values.

    kind: "list" (bare commas, or), "and" (inequalities joined by and), "set" (braces), "::" (a ratio of
    several parts), or the two brackets, as in "(]".
    """

    kind: str
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of expressions, all of one length."""

    rows: tuple[tuple[Node, ...], ...]


@dataclass(frozen=True, slots=True)
class Rel:
    """A chain of relations: sides[0] ops[0] sides[1] ops[1] ... with ops = < > <= >= != ~ in to."""

    ops: tuple[str, ...]
    sides: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Labelled:
    """A value with what it counts: a unit, a currency or any words."""

    value: Node
    label: str


@dataclass(frozen=True, slots=True)
class Words:
    """An answer in words, or a side of a relation that is only a name."""

    text: str


Node = Num | Sym | Op | Numeral | Seq | Matrix | Rel | Labelled | Words


class NotMath(Exception):
    """The text is not an expression that the parser knows."""


def depth(node: Node) -> int:
    """Levels of the tree; without recursion, so for any."""
    level, levels = [node], 0
    while level:
        levels += 1
        level = [child for parent in level for child in _children(parent)]
    return levels


def _children(node: Node) -> tuple[Node, ...]:
    match node:
        case Op():
            return node.args
        case Seq():
            return node.items
        case Rel():
            return node.sides
        case Labelled():
            return (node.value,)
        case Matrix():
            return tuple(entry for row in node.rows for entry in row)
        case _:
            return ()


def symbols(node: Node) -> frozenset[str]:
    """Names of the free symbols of an expression (constants pi, e, i and infinity are not symbols)."""
    if isinstance(node, Sym):
        return frozenset() if node.name in CONSTANTS else frozenset([node.name])
    children = node.args if isinstance(node, Op) else ()
    return frozenset().union(*(symbols(child) for child in children))


CONSTANTS = frozenset({"pi", "e", "i", "oo", "RR", "ZZ"})


def rename(node: Node, names: dict[str, str]) -> Node:
    """The same tree with symbols renamed."""
    if isinstance(node, Sym):
        return Sym(names.get(node.name, node.name))
    if isinstance(node, Op):
        return Op(node.name, tuple(rename(arg, names) for arg in node.args))
    if isinstance(node, Seq):
        return Seq(node.kind, tuple(rename(item, names) for item in node.items))
    if isinstance(node, Rel):
        return Rel(node.ops, tuple(rename(side, names) for side in node.sides))
    return node


def contains(node: Node, names: frozenset[str]) -> bool:
    """Does the expression use one of these operators?"""
    return isinstance(node, Op) and (node.name in names or any(contains(arg, names) for arg in node.args))
