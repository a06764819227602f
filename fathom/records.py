"""The nouns: what crosses a folder boundary, and how it is written as JSON Lines.

Frozen dataclasses of plain values. Reading is strict: an unknown key, a missing key or a
wrong type is an `InputError` that names the file and the line. This module knows nothing of
models, graders or stages, and imports only the standard library.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import types
import typing
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from fathom.errors import InputError

Kind = Literal["math", "choice", "code"]
Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Problem:
    """One question with a way to check an answer.

    id: unique in its artifact. gold: the reference answer (math), the option letter (choice),
    None for code. tests: code only; each a dict `{"kind": "stdin", "input", "expected"}` or
    `{"kind": "functional", "args", "expected"}`. options: choice only. difficulty: 1-10.
    solve_rate: fraction of the base model's chains that reach the gold, 0-1.
    meta: whatever the source knows beside it (family, url, original row id); plain JSON.
    """

    id: str
    question: str
    gold: str | None
    kind: Kind = "math"
    source: str = ""
    licence: str = ""
    options: list[str] | None = None
    tests: list[dict[str, Any]] | None = None
    difficulty: float | None = None
    solve_rate: float | None = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sampling:
    """How a chain is drawn. max_tokens bounds the new tokens; temperature 0 is greedy.

    A draw depends on (seed, request key, sample index, position) alone, never on what else
    is in the batch.
    """

    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int = 16384
    seed: int = 0


@dataclass(frozen=True)
class Verdict:
    """What a grader said. correct is None when the gold itself can't be used (an error of the data).

    answer: the extracted final answer or None. grader: name and version, as in "math/1".
    rung: which rule decided. why: one short sentence.
    """

    answer: str | None
    correct: bool | None
    grader: str
    rung: str = ""
    why: str = ""


@dataclass(frozen=True)
class Rollout:
    """One sampled (or recorded) chain for a problem.

    text: the completion after the prompt, `<think>` tags included as the model wrote them.
    tokens: completion tokens; prompt_tokens: of its prompt (0 when unknown).
    finish: "length" means that it hit the token budget (truncated).
    model: who wrote it. sampling: None for recorded chains whose sampling is unknown.
    """

    problem_id: str
    index: int
    text: str
    tokens: int
    finish: Finish
    model: str
    prompt_tokens: int = 0
    sampling: Sampling | None = None
    verdict: Verdict | None = None
    meta: dict[str, Any] = field(default_factory=dict)


def within(chain: Rollout, max_tokens: int | None) -> bool:
    """Whether a chain is of at most so many tokens; any is where there is no limit. Raises InputError where nobody counted them."""
    if max_tokens is None:
        return True
    if not chain.tokens and chain.text:
        raise InputError(f"max_tokens: chain {chain.problem_id}#{chain.index} has no count of its tokens")
    return chain.tokens <= max_tokens


@dataclass(frozen=True)
class Message:
    """One turn. reasoning: the thinking of an assistant turn, kept apart from its content."""

    role: Literal["system", "user", "assistant"]
    content: str
    reasoning: str | None = None


@dataclass(frozen=True)
class Example:
    """What training sees: messages ending in an assistant turn. Loss falls on that turn alone.

    lineage: where the row came from (source, licence, model, rollout index, solve rate, ...).
    """

    id: str
    problem_id: str
    messages: list[Message]
    difficulty: float | None = None
    lineage: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """What preference training sees: two answers to one conversation, of which it makes the first the likelier.

    messages: the conversation before the answer. chosen, rejected: assistant turns. lineage: as of an
    Example, of the chosen chain, with the `rule` that paired them and what is known of the `rejected` one.
    """

    id: str
    problem_id: str
    messages: list[Message]
    chosen: Message
    rejected: Message
    lineage: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Usage:
    """What a call consumed; tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


Record = TypeVar("Record")


_SCALARS = (str, int, float, dict, type(None))


def to_dict(record: Any) -> dict[str, Any]:
    """Plain JSON values; fields that hold their default are left out."""
    out = {}
    for f in fields(record):
        value = getattr(record, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if (value == default and f.default is not dataclasses.MISSING) or value == default == {}:
            continue
        out[f.name] = _plain(value)
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, _SCALARS):  # nearly all of them
        return value
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


@cache
def _schema(cls: type) -> tuple[dict[str, Any], frozenset[str]]:
    hints = typing.get_type_hints(cls)
    required = frozenset(
        f.name for f in fields(cls) if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    )
    return hints, required


def from_dict(cls: type[Record], row: Any, where: str = "row") -> Record:
    """Build a record from plain JSON values, strictly.

    Raises InputError naming `where` and the key.
    """
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected an object, got {type(row).__name__}")
    hints, required = _schema(cls)
    for key in row:
        if key not in hints:
            raise InputError(f"{where}: unknown key {key!r} in a {cls.__name__}; known: {', '.join(hints)}")
    for key in sorted(required - row.keys()):
        raise InputError(f"{where}: a {cls.__name__} needs the key {key!r}")
    return cls(**{key: _convert(hints[key], value, f"{where}: {key}") for key, value in row.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        (hint,) = [o for o in options if o is not type(None)]
        return _convert(hint, value, where)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise InputError(f"{where}: expected one of {', '.join(map(repr, typing.get_args(hint)))}, got {value!r}")
        return value
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    if origin is list:
        if not isinstance(value, list):
            raise InputError(f"{where}: expected a list, got {type(value).__name__}")
        (item,) = typing.get_args(hint)
        return [_convert(item, v, f"{where}[{i}]") for i, v in enumerate(value)]
    if origin is dict or hint is dict:
        if not isinstance(value, dict):
            raise InputError(f"{where}: expected an object, got {type(value).__name__}")
        check_text(value, where)
        return value
    if hint is Any:
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return _finite(value, where)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise InputError(f"{where}: expected {hint.__name__}, got {type(value).__name__}")
    check_text(value, where)
    return value


def _finite(value: int | float, where: str) -> float:
    """JSON as Python reads it has NaN, Infinity and whole numbers of any length."""
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InputError(f"{where}: expected a finite number, got {str(value)[:20]}")
    return number


def check_text(value: Any, where: str) -> None:
    """Raises InputError for half of a surrogate pair, which JSON can write and UTF-8 can't."""
    if isinstance(value, dict):
        for key, item in value.items():
            check_text(key, where)
            check_text(item, f"{where}.{key}")
    elif isinstance(value, list):
        for item in value:
            check_text(item, where)
    elif isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            where = where.encode("ascii", "backslashreplace").decode()
            raise InputError(f"{where}: half of a surrogate pair is no text") from None


def json_lines(path: Path | str) -> Iterator[tuple[str, Any]]:
    """Yield (where, value) for every non-empty line of a .jsonl or .jsonl.gz file.

    `where` is "file:line" for messages. Raises InputError for a file that is missing or can't be
    read, a line that is not UTF-8, or one that is not JSON.
    """
    yield from parsed_lines(_raw_lines(Path(path)), str(path))


def parsed_lines(lines: Iterable[tuple[int, bytes]], name: str) -> Iterator[tuple[str, Any]]:
    """The same of the numbered lines of any file; name: the file's, for messages."""
    for number, line in lines:
        if line.strip():
            where = f"{name}:{number}"
            yield where, parse_line(line, where)


def parse_line(line: bytes, where: str) -> Any:
    """The JSON value of one line. Raises InputError naming `where` when it is not UTF-8 or not JSON."""
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 (byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, lists a thousand deep
        raise InputError(f"{where}: not JSON that can be read ({str(error).split(';')[0]})") from None


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as stream:
            yield from enumerate(stream, 1)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a whole gzip file ({error})") from None
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None


def read_jsonl(path: Path | str, cls: type[Record]) -> Iterator[Record]:
    """Yield the records of a JSON Lines file, strictly (see `from_dict`)."""
    for where, value in json_lines(path):
        yield from_dict(cls, value, where)


def read_problems(path: Path | str) -> list[Problem]:
    """The problems of a JSON Lines file. Raises InputError for an id that occurs twice, too."""
    found: dict[str, Problem] = {}
    for where, row in json_lines(path):
        problem = from_dict(Problem, row, where)
        if problem.id in found:
            raise InputError(f"{where}: problem id {problem.id!r} occurs a second time")
        found[problem.id] = problem
    return list(found.values())


def to_json(record: Any) -> str:
    """One line of JSON without the newline; same record, same bytes."""
    return json.dumps(to_dict(record), ensure_ascii=False, separators=(",", ":"))


def write_jsonl(path: Path | str, records: Iterable[Any]) -> int:
    """Write records as JSON Lines (UTF-8); returns how many."""
    count = 0
    with open(path, "w", encoding="utf-8", newline="\n") as stream:
        for record in records:
            stream.write(to_json(record) + "\n")
            count += 1
    return count
