"""Generated programming problems: a generated maths problem with one number left open, to be read as `n`.

"Ana has 50 dollars and buys ..." becomes "Ana has n dollars and buys ...", and a program is asked for
that answers it for every n. The tests' answers come from the family's own solver, a value of n at a
time; the teacher's program comes from the same steps taken with a symbol (`Formula`). Problems whose
identity hashes into the held-out eighth belong to splits named `eval...` alone, as in `generated.py`:
a fresh problem has other numbers than any training problem, and a family that training has met.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal

from pydantic import Field, model_validator

from fathom.config import StageConfig
from fathom.errors import InputError
from fathom.records import Problem
from fathom.sources.chains import CAREFUL, Style, Writer
from fathom.sources.families import FAMILIES, Family, Numbers, question
from fathom.sources.generated import held_out, identity, stream
from fathom.sources.reading import read as read_question
from fathom.sources.rows import Found

TESTS = 3
OPEN = 777_000_777
"""Stands for the open number while a question is read; no generated number is as large."""
VALUES = 400
"""Values of n in tests are whole numbers from 1 to this."""
EASY_VALUES = 40
"""The same where n counts the terms of a sequence or the things in a wardrobe."""

OPEN_FAMILIES = (
    "arithmetic",
    "average",
    "counting",
    "gcd",
    "linear",
    "modular",
    "pair",
    "percent",
    "sequence",
    "shop",
    "trip",
)
INTRO = "Read a number n."


@dataclass(frozen=True)
class Term:
    """An expression of n in Python. rank: 0 an atom, 1 a product, 2 a sum."""

    text: str
    rank: int

    def __str__(self) -> str:
        return self.text


Value = int | Term


@dataclass
class Formula(Writer):
    """A writer to whom n is a symbol: what depends on n becomes an expression, all else is worked out step by step.

    flip: the number of the operation on n that is taken for its opposite, as a hasty reader does.
    """

    flip: int | None = None
    operations: int = 0

    def add(self, a: Value, b: Value) -> Value:
        return self._join(a, "+", b) if self._open(a, b) else super().add(a, b)

    def sub(self, a: Value, b: Value) -> Value:
        return self._join(a, "-", b) if self._open(a, b) else super().sub(a, b)

    def mul(self, a: Value, b: Value) -> Value:
        return self._join(a, "*", b) if self._open(a, b) else super().mul(a, b)

    def div(self, a: Value, b: Value) -> Value:
        return self._join(a, "//", b) if self._open(a, b) else super().div(a, b)

    def mod(self, a: Value, m: Value) -> Value:
        return self._join(a, "%", m) if self._open(a, m) else super().mod(a, m)

    def greatest_divisor(self, a: Value, b: Value) -> Value:
        return Term(f"gcd({a}, {b})", 0) if self._open(a, b) else super().greatest_divisor(a, b)

    def _open(self, a: Value, b: Value) -> bool:
        return isinstance(a, Term) or isinstance(b, Term)

    def _join(self, a: Value, sign: str, b: Value) -> Term:
        if self.operations == self.flip:
            sign = {"+": "-", "-": "+", "*": "+", "//": "*", "%": "//"}[sign]
        self.operations += 1
        rank = 2 if sign in "+-" else 1
        left = f"({a})" if isinstance(a, Term) and a.rank > rank else str(a)
        bound = isinstance(b, Term) and (b.rank > rank or (b.rank == rank and sign not in "+*"))
        return Term(f"{left} {sign} {f'({b})' if bound else b}", rank)


class _Exact(Writer):
    """A careful writer who refuses a division that leaves a rest: there the question would have no whole answer."""

    def div(self, a: int, b: int) -> int:
        if a % b:
            raise ArithmeticError(f"{a}/{b}")
        return super().div(a, b)


@dataclass(frozen=True)
class Open:
    """A maths problem with n in it. numbers: as the family's solver takes them, `OPEN` where n stands."""

    family: Family
    numbers: Numbers

    def identity(self) -> str:
        return f"program {identity(self.family, self.numbers)}"

    def formula(self, style: Style, rng: Random, flip: int | None = None) -> tuple[Formula, str]:
        """The steps, and the expression of n that answers the question."""
        writer = Formula(style, rng, flip=flip)
        return writer, self.family.solve(writer, _with(self.numbers, Term("n", 0)))

    def answer(self, n: int) -> str | None:
        """By the family's own solver; None where the answer is not a whole number or below zero."""
        try:
            found = self.family.solve(_Exact(CAREFUL, Random(0)), _with(self.numbers, n))
        except ArithmeticError:
            return None
        return None if found.startswith("-") else found


def _with(numbers: Numbers, n: Any) -> dict[str, Any]:
    """The numbers with a value (or a symbol) in place of the open one."""

    def put(value: Any) -> Any:
        if isinstance(value, list):
            return [put(item) for item in value]
        return n if value == OPEN and not isinstance(value, bool) else value

    return {name: put(value) for name, value in numbers.items()}


def read_open(text: str) -> Open | None:
    """The problem that a question's words put, by the text alone; None where it is none of these questions."""
    intro, _, asked = text.partition(INTRO)
    closed = re.sub(r"\bn\b", str(OPEN), asked)
    found = read_question(closed) if not intro.strip() and closed != asked else None
    return Open(*found) if found else None


def program(expression: str) -> str:
    """The source that reads n and prints an expression of it."""
    head = "from math import gcd\n" if "gcd(" in expression else ""
    return f"{head}n = int(input())\nprint({expression})"


class ProgramCorpus(StageConfig):
    """Which problems: how many, from which families and levels, under which seed; split as in a generated corpus."""

    name: Literal["programs"] = "programs"
    split: str = "train"
    count: int = Field(gt=0)
    seed: int = 0
    families: list[Literal[OPEN_FAMILIES]] = Field(list(OPEN_FAMILIES), min_length=1)
    levels: tuple[int, int] = (1, 4)

    @model_validator(mode="after")
    def _possible_levels(self) -> ProgramCorpus:
        low, high = self.levels
        if not 1 <= low <= high <= 10:
            raise ValueError(f"levels {[low, high]} must be two numbers from 1 to 10, the lower first")
        return self


class ProgramsConfig(ProgramCorpus):
    """A corpus with planted rows beside clean ones: `duplicates` repeat an earlier problem, `leaks` one of `leak_from`."""

    duplicates: int = Field(0, ge=0)
    leaks: int = Field(0, ge=0)
    leak_from: ProgramCorpus | None = None


def read(config: ProgramCorpus, seed: int) -> Iterator[Found]:
    """The same as rows of a source."""
    for number, problem in enumerate(generate_programs(config, seed), 1):
        yield Found(f"programs {config.split}: problem {number}", problem)


def generate_programs(config: ProgramCorpus, seed: int = 0) -> list[Problem]:
    """The corpus's problems, each with its tests. seed: the recipe's, added to the corpus's own.

    Raises InputError when fewer different problems exist than are asked for.
    """
    rows = list(_draw(config, stream(config.split, config.seed + seed, "programs")))
    if isinstance(config, ProgramsConfig):
        rng = stream(config.split, config.seed + seed, "planted")
        rows += _planted(config, seed, rows, rng)
        rng.shuffle(rows)
    return rows


def _draw(config: ProgramCorpus, rng: Random) -> Iterator[Problem]:
    seen: set[str] = set()
    for _ in range(100 * config.count):
        if len(seen) == config.count:
            return
        family, level = FAMILIES[rng.choice(config.families)], rng.randint(*config.levels)
        text = _opened(family, question(family, family.draw(rng, level), rng.randrange(len(family.wordings))))
        opened = read_open(text)
        key = opened.identity()
        tests = _tests(opened, rng)
        if tests and key not in seen and held_out(key) == config.split.startswith("eval"):
            yield Problem(
                id=f"prog-{config.split}-{family.name}-d{level:02d}-{len(seen):06d}",
                question=text,
                gold=None,
                kind="code",
                source=f"programs/{family.name}",
                licence="Apache-2.0",
                tests=tests,
                meta={"family": family.name, "level": level, "identity": key},
            )
            seen.add(key)
    if len(seen) < config.count:
        raise InputError(f"programs: only {len(seen)} different problems were found; asked for {config.count}")


def _opened(family: Family, text: str) -> str:
    """The question with n for its first number; for its last where the first one says what is repeated."""
    numbers = list(re.finditer(r"\d+", text))
    place = numbers[-1] if family.name in ("linear", "sequence") else numbers[0]
    return f"{INTRO} {text[: place.start()]}n{text[place.end() :]}"


def _tests(opened: Open, rng: Random) -> list[dict[str, str]]:
    """Some values of n and their answers; none where too few values have a whole answer."""
    most = EASY_VALUES if opened.family.name in ("sequence", "counting") else VALUES
    values = rng.sample(range(2, most + 1), most - 1)
    answers = ((n, found) for n in values if (found := opened.answer(n)) is not None)
    tests = [{"kind": "stdin", "input": f"{n}\n", "expected": found} for n, found in _first(answers, TESTS)]
    return tests if len(tests) == TESTS else []


def _first(items: Iterator[Any], count: int) -> list[Any]:
    return [item for _, item in zip(range(count), items, strict=False)]


def _planted(config: ProgramsConfig, seed: int, rows: list[Problem], rng: Random) -> list[Problem]:
    victims = generate_programs(config.leak_from, seed) if config.leak_from else []
    if config.leaks > len(victims):
        raise InputError(f"programs: {config.leaks} leaks asked for, but leak_from holds {len(victims)} problems")
    repeated = [(rng.choice(rows), f"dup{n:05d}", "duplicate") for n in range(config.duplicates)]
    leaked = [(p, f"leak{n:05d}", "leak") for n, p in enumerate(rng.sample(victims, config.leaks))]
    return [
        replace(of, id=f"{of.id}-{tag}", meta={**of.meta, "planted": f"{what} of {of.id}"})
        for of, tag, what in repeated + leaked
    ]
