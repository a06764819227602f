"""Tests of code problems: reading their formats, and comparing an output with what is expected.

Formats: this project's own rows, APPS and TACO (`{"inputs", "outputs", "fn_name"}`),
LiveCodeBench (`[{"input", "output", "testtype"}]`) and Python text with assertions (HumanEval, MBPP).
It runs nothing; the comparison sees plain values and text, and never raises on hostile ones.

Rules of comparison, the same for every problem:
- printed output: line by line after stripping the ends of both the text and each line; the tokens
  of a line are equal as text, or as numbers. A whole number must be met exactly (`3` and `3.0` are the same); a
  number with a fraction or an exponent within 1e-6, absolute or relative, as LiveCodeBench's statements ask.
- returned values: the same numbers rule when either side is a float; `True` is 1 as in Python; a tuple is a list;
  text and keys exactly; an object that isn't a plain value is never equal.
- `checker` in a test loosens this where the data says so: "tokens" (line breaks don't matter),
  "any_order" (lines, or items of a list, in any order), "ignore_case", or `{"code": ...}`, a program that reads
  JSON `{"input", "expected", "output"}` and prints 1 or true. `any_of` lists several right answers.
"""

from __future__ import annotations

import ast
import builtins
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from fathom.errors import InputError
from fathom.graders.sandbox.inside.values import encode

TOLERANCE = 1e-6
LONG_OUTPUT = 1 << 16  # characters beyond any formatting; more is refused before it is split into a million lines
CHECKERS = ("lines", "tokens", "any_order", "ignore_case")
# Plain ASCII numbers: no underscores, no other alphabets' digits, no exponent that could exhaust memory.
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_WHOLE = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True)
class Test:
    """One test. kind: "stdin" (input, accepted texts), "functional" (args, accepted values) or "asserts" (code).

    entry: the function to call; None lets the sandbox find it. checker: see the module. names: the functions
    that the assertions call and don't define. seconds: the time limit, where the data states one.
    """

    __test__ = False  # not a test class, whatever pytest thinks of its name

    kind: str
    input: str = ""
    args: tuple[Any, ...] = ()
    accepted: tuple[Any, ...] = ()
    entry: str | None = None
    checker: str | dict[str, str] = "lines"
    code: str = ""
    names: tuple[str, ...] = ()
    seconds: float | None = None


def read_tests(raw: Any, entry: str | None = None, where: str = "tests") -> list[Test]:
    """Tests from any of the formats. Raises InputError naming `where` for anything else.

    raw: parsed JSON, or its text, or Python text with assertions. entry: the function under test
    where the problem names it beside the tests.
    """
    rows = test_rows(raw, where)
    tests = [test for number, row in enumerate(rows) for test in _read_row(row, entry, f"{where}[{number}]")]
    if not tests:
        raise InputError(f"{where}: expected at least one test, got none")
    return tests


def test_rows(raw: Any, where: str = "tests") -> list[Any]:
    """The same tests as a list of rows, the shape of `Problem.tests`; the rows themselves aren't looked at.

    Raises InputError for text that starts like JSON and isn't.
    """
    if isinstance(raw, str):
        if raw.strip()[:1] not in ("[", "{"):
            return [{"kind": "asserts", "code": raw}]
        try:
            raw = json.loads(raw)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: not JSON ({error.msg})") from None
    if isinstance(raw, dict):
        return [raw]
    if not isinstance(raw, list):
        raise InputError(f"{where}: expected tests, got {type(raw).__name__}")
    return raw


test_rows.__test__ = False  # not a test, whatever pytest thinks of its name


def _read_row(row: Any, entry: str | None, where: str) -> list[Test]:
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected an object, got {type(row).__name__}")
    if "inputs" in row and "outputs" in row:
        return _read_apps(row, entry, where)
    if "testtype" in row:
        row = _from_livecodebench(row, where)
    kind = row.get("kind")
    entry = row.get("fn_name") or row.get("entry_point") or entry
    seconds = row.get("seconds")
    if seconds is not None and not (type(seconds) in (int, float) and 0 < seconds <= 3600):
        raise InputError(f"{where}: seconds: expected a number above 0 and up to 3600, got {seconds!r}")
    if kind == "asserts":
        code = _text(row, "code", where)
        return [Test("asserts", code=code, entry=entry, names=_called_names(code, where), seconds=seconds)]
    if kind not in ("stdin", "functional"):
        raise InputError(f"{where}: kind: expected stdin, functional or asserts, got {kind!r}")
    if "any_of" not in row and "expected" not in row:
        raise InputError(f"{where}: a {kind} test needs the key 'expected' or 'any_of'")
    accepted = row["any_of"] if "any_of" in row else [row["expected"]]
    if not (isinstance(accepted, list) and accepted):
        raise InputError(f"{where}: any_of: expected a list of at least one answer, got {accepted!r}")
    accepted = tuple(accepted)
    checker = row.get("checker", "lines")
    if checker not in CHECKERS and not (isinstance(checker, dict) and checker.keys() == {"code"}):
        raise InputError(f"{where}: checker: expected one of {', '.join(CHECKERS)} or {{'code': ...}}, got {checker!r}")
    if kind == "stdin":
        texts = tuple(map(_joined, accepted))
        return [Test("stdin", input=_text(row, "input", where), accepted=texts, checker=checker, seconds=seconds)]
    if not isinstance(row.get("args"), list):
        raise InputError(f"{where}: args: expected a list")
    args = tuple(row["args"])
    return [Test("functional", args=args, accepted=accepted, entry=entry, checker=checker, seconds=seconds)]


def _read_apps(row: dict[str, Any], entry: str | None, where: str) -> list[Test]:
    """APPS and TACO. Their call-based outputs may be wrapped in a list of one; both forms count."""
    inputs, outputs = row["inputs"], row["outputs"]
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise InputError(f"{where}: inputs and outputs: expected two lists of one length")
    name = row.get("fn_name") or entry
    if not row.get("fn_name"):
        return [Test("stdin", input=_joined(i), accepted=(_joined(o),)) for i, o in zip(inputs, outputs, strict=True)]
    tests = []
    for given, wanted in zip(inputs, outputs, strict=True):
        unwrapped = tuple(wanted) if isinstance(wanted, list) and len(wanted) == 1 else ()
        args = tuple(given) if isinstance(given, list) else (given,)
        tests.append(Test("functional", args=args, accepted=(wanted, *unwrapped), entry=name))
    return tests


def _from_livecodebench(row: dict[str, Any], where: str) -> dict[str, Any]:
    if row["testtype"] == "stdin":
        return {"kind": "stdin", "input": row.get("input"), "expected": row.get("output")}
    try:
        args = [json.loads(line) for line in _text(row, "input", where).split("\n") if line.strip()]
        return {"kind": "functional", "args": args, "expected": json.loads(_text(row, "output", where)), **_name(row)}
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: input and output: expected one JSON value a line ({error.msg})") from None


def _name(row: dict[str, Any]) -> dict[str, Any]:
    return {"fn_name": row["fn_name"]} if row.get("fn_name") else {}


def _called_names(code: str, where: str) -> tuple[str, ...]:
    """Names that the text uses without defining, importing or taking a builtin: the program's functions."""
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{where}: code: not Python ({error})") from None
    modules = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    used = {node.id for node in nodes if isinstance(node, ast.Name) and id(node) not in modules}
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    stored |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    stored |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    stored |= {(alias.asname or alias.name).split(".")[0] for node in imports for alias in node.names}
    return tuple(sorted(used - stored - set(dir(builtins))))


def _text(row: dict[str, Any], key: str, where: str) -> str:
    if not isinstance(row.get(key), str):
        raise InputError(f"{where}: {key}: expected text, got {type(row.get(key)).__name__}")
    return row[key]


def _joined(value: Any) -> str:
    """Text, or the lines that some APPS rows hold in a list."""
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def output_matches(expected: str, got: str, checker: str = "lines") -> str | None:
    """None when the printed output is right, else the first difference in one line."""
    if checker == "ignore_case":
        expected, got = expected.casefold(), got.casefold()
    expected, got = expected.strip(), got.strip()
    if len(got) > 4 * len(expected) + LONG_OUTPUT:
        return f"{len(got)} characters, expected {len(expected)}"
    wanted_lines = [line.strip() for line in expected.split("\n")]
    lines = [line.strip() for line in got.split("\n")]
    if wanted_lines == lines:
        return None
    if checker == "tokens":
        wanted_lines, lines = " ".join(wanted_lines).split(), " ".join(lines).split()
    if len(wanted_lines) != len(lines):
        return f"{len(lines)} lines, expected {len(wanted_lines)}"
    if checker == "any_order":
        wanted_lines, lines = sorted(wanted_lines), sorted(lines)
    for number, (wanted, line) in enumerate(zip(wanted_lines, lines, strict=True), 1):
        if wanted != line and not _same_tokens(wanted.split(), line.split()):
            return f"line {number}: {_short(line)}, expected {_short(wanted)}"
    return None


def _same_tokens(wanted: list[str], got: list[str]) -> bool:
    return len(wanted) == len(got) and all(map(_same_token, wanted, got))


def _same_token(wanted: str, got: str) -> bool:
    if wanted == got:
        return True
    if not (_NUMBER.fullmatch(wanted) and _NUMBER.fullmatch(got)):
        return False
    if _WHOLE.fullmatch(wanted):
        return Decimal(wanted) == Decimal(got)
    return math.isclose(float(wanted), float(got), rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def value_matches(expected: Any, got: Any, checker: str = "lines") -> bool:
    """Whether a returned value is right (see the module's rules).

    got: as `encode` wrote it. It is compared in that form: hostile values never become sets or dictionaries here,
    whose building they could make quadratic. Malformed ones are wrong.
    """
    try:
        wanted, got = _normal(encode(expected)), _normal(got)
        if checker == "ignore_case" and type(wanted) is str and type(got) is str:
            return wanted.casefold() == got.casefold()
        if checker == "any_order" and type(wanted) is list:
            got = got["set"] if type(got) is dict else got
            wanted, got = sorted(wanted, key=json.dumps), sorted(got, key=json.dumps)
        return _same(wanted, got)
    except (TypeError, ValueError, KeyError, RecursionError):
        return False


def _normal(value: Any) -> Any:
    """An encoded value with tuples as lists, and with sets and dictionaries in one order as `{kind: [...]}`."""
    if type(value) is list:
        return [_normal(item) for item in value]
    if type(value) is not dict:
        return value
    kind, content = value["t"], value["v"]
    if kind == "tuple":
        return [_normal(item) for item in content]
    if kind in ("set", "frozenset", "dict"):
        return {kind.removeprefix("frozen"): sorted((_normal(item) for item in content), key=json.dumps)}
    return {kind: content}


def _same(wanted: Any, got: Any) -> bool:
    if isinstance(wanted, int) and isinstance(got, int):  # a bool is an int
        return wanted == got
    if isinstance(wanted, float | int) and isinstance(got, float | int):
        return _close(wanted, got)
    if type(wanted) is list and type(got) is list:
        return len(wanted) == len(got) and all(map(_same, wanted, got))
    if type(wanted) is dict and type(got) is dict:
        return wanted.keys() == got.keys() and "object" not in got and _same(*wanted.values(), *got.values())
    return type(wanted) is type(got) and wanted == got


def _close(a: float, b: float) -> bool:
    try:
        return a == b or math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    except OverflowError:  # a whole number beyond every float
        return False


def _short(text: str, limit: int = 60) -> str:
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


def first_difference(test: Test, compare: Callable[[Any], str | None]) -> str | None:
    """None when any accepted answer compares equal, else the difference from the first one."""
    differences = [compare(answer) for answer in test.accepted]
    return None if None in differences else differences[0]
