"""Code columns of APPS, TACO and files of their kind: tests as `Problem.tests` has them, reference solutions.

Only the format; whether the solutions pass the tests is told by the op `check_tests`, which has the sandbox.
"""

from __future__ import annotations

import json
from typing import Any

from fathom.sources.unusable import Unusable

MAX_TESTS = 32 << 20
"""Characters of a row's tests as JSON text: no single row may fill the memory."""

REFERENCES = 3
"""Reference solutions kept of a row, the first ones; a row may hold hundreds."""

Tests = list[dict[str, Any]]


def read_tests(given: Any) -> tuple[Tests, str | None]:
    """(tests, the name of the function under test) of a column. Raises Unusable for anything that holds no test."""
    if isinstance(given, str) and given.strip():
        if len(given) > MAX_TESTS:
            raise Unusable(f"tests longer than {MAX_TESTS >> 20} million characters", f"{len(given):,}")
        given = _parsed(given)
    if not given:
        raise Unusable("no tests")
    if isinstance(given, dict) and {"inputs", "outputs"} <= given.keys():
        return _paired(given)
    if not isinstance(given, list) or not all(isinstance(test, dict) for test in given):
        raise Unusable("tests can't be read", f"expected a list of objects, got {type(given).__name__}")
    return given, None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # an integer of more than 4,300 digits is a ValueError too
        raise Unusable("tests can't be read", str(error)) from None


def _paired(given: dict[str, Any]) -> tuple[Tests, str | None]:
    inputs, outputs, function = given["inputs"], given["outputs"], given.get("fn_name")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise Unusable("tests can't be read", "inputs and outputs are not two lists of one length")
    if not isinstance(function, str | None):
        raise Unusable("tests can't be read", f"fn_name is {type(function).__name__}")
    if not inputs:
        raise Unusable("no tests")
    make = _functional if function else _stdin
    return [make(*pair) for pair in zip(inputs, outputs, strict=True)], function or None


def _stdin(given: Any, wanted: Any) -> dict[str, Any]:
    """Some rows hold lines in a list."""
    texts = ["\n".join(map(str, side)) if isinstance(side, list) else str(side) for side in (given, wanted)]
    return {"kind": "stdin", "input": texts[0], "expected": texts[1]}


def _functional(given: Any, wanted: Any) -> dict[str, Any]:
    """Outputs may or may not be wrapped in a list of one: both forms are right."""
    args = given if isinstance(given, list) else [given]
    if isinstance(wanted, list) and len(wanted) == 1:
        return {"kind": "functional", "args": args, "any_of": [wanted, wanted[0]]}
    return {"kind": "functional", "args": args, "expected": wanted}


def read_solutions(given: Any) -> list[str]:
    """The first reference solutions of a column; none where it is empty. Raises Unusable for another shape."""
    if isinstance(given, str) and given.strip():
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            given = [given]  # a program as it is
    if not given:
        return []
    if not isinstance(given, list) or not all(isinstance(program, str) for program in given):
        raise Unusable("solutions are not a list of programs", type(given).__name__)
    return [program for program in given if program.strip()][:REFERENCES]
