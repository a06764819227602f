"""What a claim says: one line of text to a `Claim`. Judges nothing (`claims.py` does).

Sky-T1-32B-Preview AIME24 43.3
Fathom-R1-14B AIME25 pass@1 52.71 > Light-R1-14B 51.15
merged hmmt25 cons@64 > base
merged math500 +2.5 over base
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fathom.errors import InputError
from fathom.evaluate.published import Metric
from fathom.sources import benchmarks

_RELATION = re.compile(r"\s+(>|<|over|above|beats|below|under)\s+", re.IGNORECASE)
_METRIC = re.compile(r"\b(?:(pass@1|avg@(?P<avg>\d+))|(?P<cons>(?:cons|maj)@(?P<votes>\d+)))", re.IGNORECASE)
_SAMPLES = re.compile(r"\bk\s*=\s*(\d+)", re.IGNORECASE)
_TEMPERATURE = re.compile(r"\bT\s*=\s*(\d+(?:\.\d+)?|\.\d+)")
_FILLER = re.compile(r"\s+(?:on|at|gets|scores|reaches)$", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.@-])([+-]?)(\d+(?:\.\d+)?)\s*(%?)(?![\w.-])")
_COMMA = re.compile(r"(?<![\w.-])\d+,\d+%?(?![\w.-])")

ALIASES = {
    "aime24": ("aime24", "aime2024", "aime 2024", "aime 24", "aime'24"),
    "aime25": ("aime25", "aime2025", "aime 2025", "aime 25", "aime'25"),
    "hmmt25": ("hmmt25", "hmmt2025", "hmmt feb 2025", "hmmt 2025", "hmmt 25"),
    "math500": ("math500", "math-500", "math 500"),
    "gpqa-diamond": ("gpqa-diamond", "gpqa diamond", "gpqa"),
    "amc23": ("amc23", "amc 2023", "amc2023", "amc 23"),
    **{
        f"livecodebench-{x}": (f"livecodebench-{x}", f"livecodebench {x}", f"lcb {x}")
        for x in ("easy", "medium", "hard")
    },
}


@dataclass(frozen=True)
class Claim:
    """A parsed claim; rates and differences are fractions of 1.

    relation: ">" or "<" for a comparison with `other`, else None. samples, temperature: where stated.
    """

    text: str
    model: str
    benchmark: str
    metric: Metric = "pass1"
    value: float | None = None
    relation: str | None = None
    other: str | None = None
    other_value: float | None = None
    difference: float | None = None
    samples: int | None = None
    temperature: float | None = None


def parse_claim(text: str, known: tuple[str, ...] = ()) -> Claim:
    """Read a claim. known: further benchmark names (a run's own).

    Raises InputError saying what is missing.
    """
    temperature = _TEMPERATURE.search(text)
    samples = _SAMPLES.search(text)
    body = _SAMPLES.sub(" ", _TEMPERATURE.sub(" ", text)).replace("(", " ").replace(")", " ").strip()
    if found := _COMMA.search(body):
        raise InputError(f"claim {text!r}: {found[0]}: write a figure with a point")
    left, relation, right = _split(body)
    start, end, benchmark = _benchmark(left, text, known)
    model, rest = _FILLER.sub("", left[:start].strip(" ,:")), left[end:]
    if not model:
        raise InputError(f"claim {text!r}: no model before the benchmark; write e.g. 'my-model AIME25 52.7'")
    metric, k = _metric(rest)
    sign, value = _number(_METRIC.sub(" ", rest))
    if relation is None and (value is None or sign):
        raise InputError(f"claim {text!r}: no figure after the benchmark; write e.g. '{model} {benchmark} 52.7'")
    other, other_value = _other_side(right) if right else (None, None)
    if relation and not other:
        raise InputError(f"claim {text!r}: no model after {relation!r}")
    for figure in (value, other_value):
        if figure is not None and not 0 <= figure <= 1:
            raise InputError(f"claim {text!r}: {100 * figure:g} is no percentage")
    difference = None if value is None or not sign else (-value if sign == "-" else value)
    return Claim(
        text=text,
        model=model,
        benchmark=benchmark,
        metric=metric,
        value=None if sign else value,
        relation=relation if difference is None else "><"[difference < 0],
        other=other,
        other_value=other_value,
        difference=difference,
        samples=int(samples[1]) if samples else k,
        temperature=float(temperature[1]) if temperature else None,
    )


def _split(body: str) -> tuple[str, str | None, str | None]:
    found = _RELATION.search(body)
    if not found:
        return body, None, None
    relation = "<" if found[1].lower() in ("<", "below", "under") else ">"
    return body[: found.start()], relation, body[found.end() :]


def _benchmark(left: str, text: str, known: tuple[str, ...]) -> tuple[int, int, str]:
    names = {name: (name,) for name in (*benchmarks.table(), *known)} | ALIASES
    aliases = sorted(((alias, name) for name, many in names.items() for alias in many), key=lambda a: -len(a[0]))
    for alias, name in aliases:
        found = re.search(rf"(?<![\w-]){re.escape(alias)}(?![\w-])", left, re.IGNORECASE)
        if found:
            return found.start(), found.end(), name
    raise InputError(f"claim {text!r}: names no benchmark; known: {', '.join(names)}")


def _metric(rest: str) -> tuple[Metric, int | None]:
    found = _METRIC.search(rest)
    if not found:
        return "pass1", None
    if found["cons"]:
        return "cons", int(found["votes"])
    return "pass1", int(found["avg"]) if found["avg"] else None


def _number(text: str) -> tuple[str, float | None]:
    """(sign, fraction of 1): a figure of at most 1 with a point and no percent sign is a fraction already."""
    found = _NUMBER.search(text)
    if not found:
        return "", None
    value = float(found[2])
    fraction = value <= 1 and "." in found[2] and not found[3]
    return found[1], value if fraction else value / 100


def _other_side(right: str) -> tuple[str, float | None]:
    words = _METRIC.sub(" ", right).split()
    if len(words) > 1 and _NUMBER.fullmatch(words[-1]):
        return " ".join(words[:-1]), _number(words[-1])[1]
    return " ".join(words), None
