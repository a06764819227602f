"""Rows of any corpus to problems and recorded chains: a mapping of columns, read strictly.

Shared by local files and the hub. Every row ends as one of three things: `Found`, `SetAside` with a
reason, or passed over because the recipe's filter doesn't want it. No single row is fatal, whatever it
holds: real corpora have proofs for answers, null bytes and columns of mixed types. Nothing is kept here;
rows go by one at a time.
"""

from __future__ import annotations

import contextlib
import math
import string
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from pydantic import Field

from fathom.boxed import last_box
from fathom.config import StageConfig
from fathom.errors import InputError
from fathom.records import Kind, Problem, Rollout
from fathom.sources import code_rows
from fathom.sources.files import Row
from fathom.sources.unusable import Unusable, check_plain

MAX_QUESTION = 100_000
"""Characters; a longer question (some 25,000 tokens) leaves no room for an answer in the context of any recipe."""

MAX_GOLD = 10_000
"""Characters; the graders compare answers up to 2,000 and no reference answer comes near it."""

UNKNOWN_LICENCES = {"", "unknown", "none", "n/a", "unlicensed", "unspecified", "not specified", "?"}
"""What a licence column holds where nobody knows."""

_SECTIONS = {
    "<|begin_of_thought|>": "<think>",
    "<|end_of_thought|>": "</think>",
    "<|begin_of_solution|>": "",
    "<|end_of_solution|>": "",
}


class Columns(StageConfig):
    """Column names of a problem; null where there is none.

    A dotted name reaches into nested objects. options: a list, or an object from letter to text.
    tests: a list of test objects, an `{"inputs", "outputs"}` object as in APPS, or JSON text of one of them.
    solutions: programs known to be right (a list, or JSON text of one), kept to check the tests with.
    meta: columns kept as they are where they aren't null.
    """

    id: str | None = None
    question: str = "problem"
    gold: str | None = "answer"
    options: str | None = None
    tests: str | None = None
    solutions: str | None = None
    difficulty: str | None = None
    source: str | None = None
    licence: str | None = None
    meta: list[str] = Field([])


class ChainColumns(StageConfig):
    """Column names of recorded chains.

    text: one chain, or a list of chains. The other columns hold one value for the row or a list with
    one value per chain. complete, truncated: bools, of opposite sense. written_by: the model's name
    where no column holds it. sections: the text marks thought and solution by `<|begin_of_thought|>` and
    its like (STILL-2, Sky-T1); they become `<think>...</think>` and the answer.
    """

    text: str
    model: str | None = None
    written_by: str = "unknown"
    tokens: str | None = None
    complete: str | None = None
    truncated: str | None = None
    sections: bool = False
    meta: list[str] = Field([])

    def optional(self) -> set[str]:
        """The columns that a row may lack."""
        return {*filter(None, (self.model, self.tokens, self.complete, self.truncated)), *self.meta}


class RowFilter(StageConfig):
    """Which rows of a source are wanted.

    where: keep rows whose column holds one of these values. numeric_gold: set aside problems whose
    answer is not a number. limit: stop after so many problems.
    """

    where: dict[str, list[str | int | float | bool | None]] = Field({})
    numeric_gold: bool = False
    limit: int | None = Field(None, ge=1)


class RowSpec(RowFilter):
    r"""How a row is read.

    answer_in: the gold stands inside the text of its column, in its last `\boxed{}` or after its last `####`.
    reject_golds: texts that stand in place of an answer ("proof"). licence: of rows that state none of
    their own. allow_unknown_licence: take rows whose licence column is empty or says that nobody knows.
    """

    kind: Kind = "math"
    licence: str = ""
    columns: Columns = Columns()
    answer_in: Literal["boxed", "####"] | None = None
    reject_golds: list[str] = Field([])
    allow_unknown_licence: bool = False


@dataclass(frozen=True)
class Found:
    """A usable row: its problem and the chains recorded with it. where: its place, for messages."""

    where: str
    problem: Problem
    chains: Sequence[Rollout] = ()


@dataclass(frozen=True)
class SetAside:
    """A row of no use. reason: one of few, for counting; detail: what was found."""

    where: str
    id: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason} ({self.detail})" if self.detail else self.reason

    def row(self) -> dict[str, str]:
        """As a row of removed.jsonl."""
        told = {"id": self.id, "reason": self.reason, "text": self.detail, "where": self.where}
        return {key: value for key, value in told.items() if value}


Outcome = Found | SetAside | None
"""What became of a row; None where the filter doesn't want it."""


def outcomes(
    rows: Iterable[Row],
    spec: RowSpec,
    label: str,
    chains: ChainColumns | None = None,
    prepare: Callable[[Any], Any] | None = None,
) -> Iterator[Outcome]:
    """What becomes of each row, in order, until `spec.limit` problems are found.

    label: the source's name, of which ids are made where no column holds one. prepare: what is done to a
    row first; it may raise Unusable. Raises InputError for a column of `chains` that no row has.
    """
    found = 0
    unseen = chains.optional() if chains else set()
    for number, (where, row) in enumerate(rows, 1):
        try:
            row = prepare(row) if prepare else row
            if not wanted(row, spec):
                yield None
                continue
            problem = to_problem(row, spec, label, number)
            recorded = to_chains(row, chains, problem.id, unseen) if chains else ()
        except Unusable as fault:
            yield SetAside(where, f"{label}-{number:06d}", fault.reason, fault.detail)
            continue
        yield Found(where, problem, recorded)
        found += 1
        if found == spec.limit:
            break
    if found:
        refuse_unseen(unseen, label)


def refuse_unseen(columns: Set[str], label: str) -> None:
    """Raises InputError where there are any: columns of `chains` that no row had."""
    if columns:
        raise InputError(f"{label}: chains: no row has the column {', '.join(map(repr, sorted(columns)))}")


def value(row: Any, column: str) -> Any:
    """The value of a column ("a.b" reaches into objects). Raises Unusable naming the column."""
    if not isinstance(row, dict):
        raise Unusable(f"expected an object, got {type(row).__name__}")
    found: Any = row
    for part in [column] if column in row else column.split("."):
        if not isinstance(found, dict) or part not in found:
            raise Unusable(f"no column {column!r}", f"there are: {', '.join(map(str, row))}")
        found = found[part]
    return found


def wanted(row: Any, spec: RowFilter) -> bool:
    """Whether the row passes the source's `where`. Raises Unusable for a missing column."""
    return all(value(row, column) in allowed for column, allowed in spec.where.items())


def to_problem(row: Any, spec: RowSpec, label: str, number: int) -> Problem:
    """The row's problem. number: position in the source, from 1. Raises Unusable where it can't be one."""
    c = spec.columns

    def get(column: str | None) -> Any:
        return None if column is None else value(row, column)

    question, gold = _question(get(c.question)), _gold(get(c.gold), spec)
    tests, function = code_rows.read_tests(get(c.tests)) if c.tests else (None, None)
    meta = {column: found for column in c.meta if (found := value(row, column)) is not None}
    if function:
        meta["fn_name"] = function
    if solutions := code_rows.read_solutions(get(c.solutions)):
        meta["solutions"] = solutions
    problem = Problem(
        id=_id(get(c.id)) if c.id else f"{label}-{number:06d}",
        question=question,
        gold=gold,
        kind=spec.kind,
        source=str(get(c.source) or label),
        licence=_licence(get(c.licence), spec),
        options=_options(get(c.options)),
        tests=tests,
        difficulty=_difficulty(get(c.difficulty)),
        meta=meta,
    )
    for name in ("id", "question", "gold", "source", "licence", "options", "tests", "meta"):
        check_plain(getattr(problem, name), name)
    return problem


def _question(given: Any) -> str:
    if not isinstance(given, str | None):
        raise Unusable("question is not text", type(given).__name__)
    question = (given or "").strip()
    if not question:
        raise Unusable("no question")
    if len(question) > MAX_QUESTION:
        raise Unusable(f"question longer than {MAX_QUESTION:,} characters", f"{len(question):,}")
    return question


def _gold(given: Any, spec: RowSpec) -> str | None:
    if not isinstance(given, str | int | float | Decimal | None):
        raise Unusable("gold is not text or a number", type(given).__name__)
    missing = given is None or given != given  # a column of numbers may hold NaN where there is none
    gold = None if missing else str(given).strip()
    if spec.answer_in == "boxed":
        gold = last_box(gold or "")
    elif spec.answer_in:
        _, mark, after = (gold or "").rpartition(spec.answer_in)
        gold = after.strip() if mark else None
    if spec.columns.gold is None or spec.kind == "code":
        return gold
    if not gold or gold in spec.reject_golds:
        raise Unusable("no usable gold", repr(gold))
    if len(gold) > MAX_GOLD:
        raise Unusable(f"gold longer than {MAX_GOLD:,} characters", f"{len(gold):,}")
    if spec.numeric_gold and not _is_number(gold):
        raise Unusable("gold is not a number", repr(gold))
    return gold


def _is_number(gold: str) -> bool:
    try:
        return math.isfinite(float(gold.strip("$ ").replace(",", "")))
    except ValueError:
        return False


def _id(given: Any) -> str:
    if not isinstance(given, str | int) or not str(given).strip():
        raise Unusable("no id", repr(given))
    return str(given)


def _licence(given: Any, spec: RowSpec) -> str:
    """The row's own licence, or the source's where the row states none; a file without either is the user's to answer for."""
    licence = str(given or spec.licence).strip()
    if spec.columns.licence and licence.lower() in UNKNOWN_LICENCES and not spec.allow_unknown_licence:
        raise Unusable("licence unknown", repr(given))
    return licence


def _options(given: Any) -> list[str] | None:
    options = [given[letter] for letter in sorted(given)] if isinstance(given, dict) else given
    if isinstance(given, dict) and "".join(sorted(given)).upper() != string.ascii_uppercase[: len(given)]:
        raise Unusable("options are not called A, B, C and so on", ", ".join(given))
    if options is not None and not (isinstance(options, list) and all(isinstance(o, str) for o in options)):
        raise Unusable("options are not a list of texts", repr(given))
    return options


def _difficulty(given: Any) -> float | None:
    if given is None:
        return None
    try:
        number = float(given)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Unusable("difficulty is not a number", repr(given))
    return number


def to_chains(row: Any, c: ChainColumns, problem_id: str, unseen: set[str], first: int = 0) -> list[Rollout]:
    """The row's chains, counted from `first`. An empty text is a chain that failed; a null is none, but counts where others follow.

    unseen: loses the optional columns that the row has. Raises Unusable for a chain that is not text and for columns that don't fit each other.
    """
    for column in tuple(unseen):
        with contextlib.suppress(Unusable):
            value(row, column)
            unseen.discard(column)
    texts = value(row, c.text)
    single = isinstance(texts, str)
    texts = [texts] if single else texts or []
    if not isinstance(texts, list) or not all(isinstance(text, str | None) for text in texts):
        raise Unusable("chains are not text", repr(texts))

    def get(column: str | None, i: int) -> Any:
        if column is None:
            return None
        try:
            found = value(row, column)
        except Unusable:
            return None
        if single or not isinstance(found, list):
            return found
        if len(found) != len(texts):
            told = f"{len(found)} values in {column!r} for {len(texts)} chains in {c.text!r}"
            raise Unusable("columns of chains don't fit each other", told)
        return found[i]

    return [
        _chain(text, lambda column, i=i: get(column, i), c, problem_id, first + i)
        for i, text in enumerate(texts)
        if text is not None
    ]


def _chain(text: str, get: Callable[[str | None], Any], c: ChainColumns, problem_id: str, index: int) -> Rollout:
    tokens = get(c.tokens) or 0
    if not isinstance(tokens, int) and not (isinstance(tokens, float) and tokens.is_integer()):
        raise Unusable("token count is not a whole number", repr(tokens))
    chain = Rollout(
        problem_id=problem_id,
        index=index,
        text=_unsectioned(text) if c.sections else text,
        tokens=int(tokens),
        finish="length" if get(c.truncated) or get(c.complete) is False else "stop",
        model=str(get(c.model) or c.written_by),
        meta={column: get(column) for column in c.meta if get(column) is not None},
    )
    for name in ("text", "model", "meta"):
        check_plain(getattr(chain, name), f"chain {name}")
    return chain


def _unsectioned(text: str) -> str:
    for mark, tag in _SECTIONS.items():
        text = text.replace(mark, tag)
    return text.strip()
