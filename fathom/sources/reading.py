"""Reads a generated question back into its family and numbers, as a solver must who sees the text alone.

The inverse of `families.question`, for every family and wording. It knows nothing of gold answers,
and nothing of questions that were not generated.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from fathom.sources.families import FAMILIES, Family, Numbers


def read(text: str) -> tuple[Family, Numbers] | None:
    """The family and what its `solve` needs, or None where the text is none of the generated questions."""
    for name, (mark, numbers) in _READERS.items():
        if re.search(mark, text):
            return FAMILIES[name], numbers(text)
    return None


def _all(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _one(pattern: str, text: str, absent: int = 0) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else absent


def _arithmetic(text: str) -> Numbers:
    signed = re.findall(r"(- )?(\d+)", text)
    return {"terms": [-int(number) if minus else int(number) for minus, number in signed]}


def _linear(text: str) -> Numbers:
    left, _, right = text.partition("=")
    a, *extra = _all(left)
    c = _one(r"(\d+)x", right)
    return {"a": a, "c": c, "extra": extra, "right": _all(right)[1 if c else 0]}


def _modular(text: str) -> Numbers:
    *sum_of, m = _all(text)
    return {"factors": sum_of[:2], "extra": sum_of[2:], "m": m}


def _gcd(text: str) -> Numbers:
    a, b = _all(text)
    return {"a": a, "b": b}


def _shop(text: str) -> Numbers:
    bought = re.findall(r"(\d+) [a-z]+ at (\d+) dollars each", text)
    return {
        "start": _all(text)[0],
        "counts": [int(count) for count, _ in bought],
        "prices": [int(price) for _, price in bought],
        "earned": _one(r"gives back (\d+)", text),
    }


def _trip(text: str) -> Numbers:
    days = [int(km) for km in re.findall(r"(\d+) km on day", text)]
    return {"days": days, "goal": _one(r"trip (?:of|is) (\d+) km", text)}


def _sequence(text: str) -> Numbers:
    *shown, n = _all(text)
    return {"first": shown[0], "second": shown[1], "n": n, "sum": "the sum of" in text}


def _counting(text: str) -> Numbers:
    kinds = [int(k) for k in re.findall(r"(\d+) (?:shirts|hats|shoes|coats|bags|ties)", text)]
    return {"kinds": kinds, "without": _one(r"but (\d+) of", text), "days": _one(r"on (\d+) days", text, absent=1)}


def _fractions(text: str) -> Numbers:
    a, b, c, d = _all(text)
    return {"a": a, "b": b, "c": c, "d": d}


def _percent(text: str) -> Numbers:
    rates = [int(rate) for rate in re.findall(r"(\d+)%", text)]
    return {"price": _all(text)[0], "rates": rates, "fee": _one(r"fee of (\d+)", text)}


def _average(text: str) -> Numbers:
    return {"numbers": _all(text)}


def _pair(text: str) -> Numbers:
    total, gap = _all(text)[:2]
    return {"sum": total, "gap": gap, "times": _one(r"(\d+) times the larger", text, absent=1)}


_READERS: dict[str, tuple[str, Callable[[str], Numbers]]] = {
    "linear": (r"\dx .*=", _linear),
    "modular": (r"remainder|\bmod\b", _modular),
    "gcd": (r"gcd|greatest common divisor|divides both", _gcd),
    "shop": (r"dollars each", _shop),
    "trip": (r"km on day", _trip),
    "sequence": (r"[Ss]equence", _sequence),
    "counting": (r"outfit", _counting),
    "fractions": (r"\d/\d", _fractions),
    "percent": (r"\d%", _percent),
    "average": (r"average|mean", _average),
    "pair": (r"[Tt]wo numbers", _pair),
    "arithmetic": (r"\d [+-] \d", _arithmetic),
}
"""Family -> what its questions alone hold, tried in this order, and how their numbers are read."""
