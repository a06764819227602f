"""What an expression is worth: exactly when it is rational, else to as many digits as are needed.

`exact` is arithmetic on fractions. `identical` decides whether two expressions are the same
function by evaluating both at fixed points with 50 digits and confirming equality with 120
(mpmath). Everything is bounded by construction (sizes are checked before they are computed), so
nothing here needs a time limit: an expression beyond the bounds raises `TooBig`.
"""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from typing import Any

from fathom.graders.tree import CONSTANTS, Node, NotMath, Num, Op, Sym, contains, symbols

MAX_BITS = 60_000
"""Largest integer that is computed exactly."""
MAX_TERMS = 2_000
"""Longest sum or product that is written out, times those that it stands in."""
_TERMS = "terms of the sums around"
"""Stands among the symbols' values, and is no symbol's name."""
DIGITS, CONFIRMING_DIGITS = 50, 120
POINTS, INTEGER_POINTS = 3, 14

_LOCK = threading.Lock()  # mpmath changes its precision while it computes, and is not thread-safe
_INTEGER_OPS = frozenset({"floor", "ceil", "factorial", "binom", "gcd", "lcm", "mod"})


class Inexact(Exception):
    """The value is not rational, or depends on a symbol."""


class Undefined(Exception):
    """Division by zero and the like: the expression has no value."""


class TooBig(Exception):
    """The value is too large to compute."""


def exact(node: Node) -> Fraction:
    """The rational value of a constant expression.

    Raises Inexact, Undefined or TooBig.
    """
    if isinstance(node, Num):
        return node.value
    if not isinstance(node, Op):
        raise Inexact
    rule = _EXACT.get(node.name)
    if rule is None:
        raise Inexact
    return rule(*map(exact, node.args))


def _divide(a: Fraction, b: Fraction) -> Fraction:
    if not b:
        raise Undefined
    return a / b


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _multiply(a: Fraction, b: Fraction) -> Fraction:
    if _bits(a) + _bits(b) > MAX_BITS:
        raise TooBig
    return a * b


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        return _power(_root(base, Fraction(exponent.denominator)), Fraction(exponent.numerator))
    if not base and exponent <= 0:
        raise Undefined
    if abs(base) not in (0, 1) and _bits(base) * abs(exponent) > MAX_BITS:
        raise TooBig
    return base ** int(exponent) if abs(base) != 1 else base ** (int(exponent) % 2)


def _root(value: Fraction, index: Fraction) -> Fraction:
    if index.denominator != 1 or not 0 < index < 100:
        raise Inexact
    n = int(index)
    if value < 0:
        if n % 2 == 0:
            raise Inexact
        return -_root(-value, index)
    return Fraction(_integer_root(value.numerator, n), _integer_root(value.denominator, n))


def _integer_root(value: int, n: int) -> int:
    if n == 2 or value < 2:
        root = math.isqrt(value)
    else:  # Newton's steps from above, which double the right digits
        root = 1 << (value.bit_length() // n + 1)
        while (better := ((n - 1) * root + value // root ** (n - 1)) // n) < root:
            root = better
    if root**n != value:
        raise Inexact
    return root


def _whole(value: Fraction, limit: int) -> int:
    if value.denominator != 1 or value < 0:
        raise Inexact
    if value > limit:
        raise TooBig
    return int(value)


def _binomial(n: Fraction, k: Fraction) -> Fraction:
    return Fraction(math.comb(_whole(n, 5_000), _whole(k, 5_000)))


def _modulo(a: Fraction, b: Fraction) -> Fraction:
    if not b:
        raise Undefined
    return a % b


def _integers(values: tuple[Fraction, ...]) -> list[int]:
    return [_whole(abs(v), 10**6000) for v in values]


def _addition(*values: Fraction) -> Fraction:
    if sum(map(_bits, values)) > MAX_BITS:
        raise TooBig
    return sum(values, Fraction(0))


_EXACT = {
    "add": _addition,
    "neg": lambda a: -a,
    "mul": _multiply,
    "div": _divide,
    "ratio": _divide,
    "pow": _power,
    "root": _root,
    "abs": abs,
    "floor": lambda a: Fraction(math.floor(a)),
    "ceil": lambda a: Fraction(math.ceil(a)),
    "percent": lambda a: a / 100,
    "factorial": lambda a: Fraction(math.factorial(_whole(a, 3_000))),
    "binom": _binomial,
    "mod": _modulo,
    "gcd": lambda *v: Fraction(math.gcd(*_integers(v))),
    "lcm": lambda *v: Fraction(math.lcm(*_integers(v))),
    "max": lambda *v: max(v),
    "min": lambda *v: min(v),
}


def identical(a: Node, b: Node) -> bool:
    """Are two expressions the same value (or the same function of their symbols)?

    Raises TooBig, Undefined or NotMath when one of them can't be evaluated.
    """
    agreed = 0
    for values in _points(a, b):
        try:
            if not _agree(a, b, values, DIGITS):
                return False
        except Undefined:
            continue
        agreed += 1
        if agreed == 1 and not _agree(a, b, values, CONFIRMING_DIGITS):
            return False
    if not agreed:
        raise Undefined
    return True


def proportional(a: Node, b: Node) -> Fraction | None:
    """The constant ratio a / b of two expressions as a sign (1 or -1), or None when it varies."""
    ratios = []
    for values in _points(a, b):
        try:
            x, y = value(a, values, DIGITS), value(b, values, DIGITS)
        except Undefined:
            continue
        if abs(x) < 1e-30 or abs(y) < 1e-30:
            return None
        ratios.append(x / y)
    if (len(ratios) < 2 and (symbols(a) or symbols(b))) or not ratios:
        return None
    first = ratios[0]
    if any(abs(ratio - first) > 1e-35 * abs(first) for ratio in ratios) or abs(first.imag) > 1e-35 * abs(first):
        return None
    return Fraction(1) if first.real > 0 else Fraction(-1)


def _agree(a: Node, b: Node, values: dict[str, Fraction], digits: int) -> bool:
    x, y = value(a, values, digits), value(b, values, digits)
    scale = max(abs(x), abs(y), 1)
    return bool(abs(x - y) <= scale * _context(digits).mpf(10) ** (10 - digits))


def _points(a: Node, b: Node) -> Iterator[dict[str, Fraction]]:
    """Deterministic sample points: positive reals; whole numbers where only they make sense."""
    names = sorted(symbols(a) | symbols(b))
    if not names:
        yield {}
        return
    if any(contains(node, _INTEGER_OPS) or _alternating(node) for node in (a, b)):
        for k in range(INTEGER_POINTS):
            yield {name: Fraction(_draw(name, k, 2, 6 + 3 * k)) for name in names}
        return
    signed = any(contains(node, frozenset({"abs", "sign"})) for node in (a, b))
    for k in range(2 * POINTS if signed else POINTS):
        sign = -1 if signed and k % 2 else 1
        yield {name: sign * Fraction(_draw(name, k, 300_001, 2_700_000), 1_000_003) for name in names}


def _draw(name: str, k: int, low: int, high: int) -> int:
    """The k-th sample value of a symbol: scattered, and the same in every process."""
    return low + zlib.crc32(f"{k}/{name}/{k}".encode()) % (high - low + 1)


def _alternating(node: Node) -> bool:
    """Has it a power of a negative number with a symbol above, as in (-1)^n?"""
    if not isinstance(node, Op):
        return False
    if node.name == "pow" and symbols(node.args[1]) and not symbols(node.args[0]):
        base = node.args[0]
        if (isinstance(base, Op) and base.name == "neg") or (isinstance(base, Num) and base.value < 0):
            return True
    return any(map(_alternating, node.args))


@cache
def _context(digits: int) -> Any:
    from mpmath import MPContext  # imported late: most answers never need it

    context = MPContext()
    context.dps = digits
    return context


def value(node: Node, values: dict[str, Fraction], digits: int = DIGITS) -> Any:
    """The numeric value (mpmath real or complex) with symbols replaced by `values`.

    Raises TooBig, Undefined or NotMath.
    """
    mp = _context(digits)
    try:
        with _LOCK:
            result = _numeric(node, values, mp)
    except (ZeroDivisionError, ValueError):
        raise Undefined from None
    except OverflowError:
        raise TooBig from None
    if not mp.isfinite(result):
        raise Undefined
    return result


def _numeric(node: Node, values: dict[str, Fraction], mp: Any) -> Any:
    if isinstance(node, Num):
        return mp.mpf(node.value.numerator) / node.value.denominator
    if isinstance(node, Sym):
        return _symbol(node.name, values, mp)
    if not isinstance(node, Op):
        raise NotMath("not a number")
    name, args = node.name, node.args
    if name == "apply":
        return _application(node, values, mp)
    if name in ("sum", "prod"):
        return _series(node, values, mp)
    from fathom.graders.numeric import RULES

    rule = RULES.get(name)
    if rule is None:
        raise NotMath(f"{name} is not evaluated")
    return rule(mp, *[_numeric(arg, values, mp) for arg in args])


def _symbol(name: str, values: dict[str, Fraction], mp: Any) -> Any:
    if name in values:
        return mp.mpf(values[name].numerator) / values[name].denominator
    if name in ("pi", "e", "i"):
        return {"pi": mp.pi, "e": mp.e, "i": mp.j}[name] * 1
    if name in CONSTANTS or name == "...":
        raise NotMath(f"{name} is no number")
    raise NotMath(f"no value for {name}")


def _application(node: Op, values: dict[str, Fraction], mp: Any) -> Any:
    """`x(x+1)` is a product; `I(0)` and `E(2, 3)` are unknown constants of their own."""
    head, *args = node.args
    if len(args) == 1 and symbols(args[0]):
        return _numeric(head, values, mp) * _numeric(args[0], values, mp)
    inner = ",".join(mp.nstr(_numeric(arg, values, mp), 20) for arg in args)
    drawn = _draw(f"{head.name}({inner})", 0, 300_001, 2_700_000)
    return mp.mpf(drawn) / 1_000_003


def _series(node: Op, values: dict[str, Fraction], mp: Any) -> Any:
    body, index, low, high = node.args
    start, stop = (_numeric(limit, values, mp) for limit in (low, high))
    if not (mp.isint(start) and mp.isint(stop)):
        raise NotMath("a sum between limits that are not whole")
    around = values.get(_TERMS, Fraction(1)) * max(1, int(stop) - int(start) + 1)
    if around > MAX_TERMS:
        raise TooBig
    inside = {**values, _TERMS: around}
    terms = (_numeric(body, {**inside, index.name: Fraction(k)}, mp) for k in range(int(start), int(stop) + 1))
    return mp.fsum(terms) if node.name == "sum" else mp.fprod(terms)
