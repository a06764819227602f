"""LiveCodeBench rows as tests of a `Problem`: the hub's encoding and plain local rows.

Only the format; running programs is the code grader's business. The hub keeps the hidden tests as
base64(zlib(pickle(JSON text))): the pickle is read by an unpickler that can build nothing but
plain values, since a pickle from a network may otherwise run any code.
"""

from __future__ import annotations

import base64
import io
import json
import pickle
import zlib
from typing import Any

from fathom.errors import InputError


class _PlainValues(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"refused to load {module}.{name}")


def tests(row: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """The tests of one row, in the form of `Problem.tests`.

    Local rows carry them as `tests` already. Raises InputError when they can't be read.
    """
    if isinstance(row.get("tests"), list):
        return row["tests"]
    if missing := {"public_test_cases", "private_test_cases"} - row.keys():
        raise InputError(f"{where}: has neither a list 'tests' nor {', '.join(map(repr, sorted(missing)))}")
    try:
        cases = json.loads(row["public_test_cases"]) + _hidden(row["private_test_cases"])
        return [_case(case) for case in cases]
    except (KeyError, TypeError, AttributeError, ValueError, EOFError, zlib.error, pickle.UnpicklingError) as error:
        raise InputError(f"{where}: tests can't be read ({type(error).__name__}: {error})") from None


def _hidden(packed: str) -> list[dict[str, Any]]:
    if packed.lstrip().startswith("["):
        return json.loads(packed)
    return json.loads(_PlainValues(io.BytesIO(zlib.decompress(base64.b64decode(packed)))).load())


def _case(case: dict[str, Any]) -> dict[str, Any]:
    if case.get("testtype") == "functional":
        args = [json.loads(line) for line in case["input"].splitlines() if line.strip()]
        return {"kind": "functional", "args": args, "expected": json.loads(case["output"])}
    return {"kind": "stdin", "input": case["input"], "expected": case["output"]}


def meta(row: dict[str, Any], where: str) -> dict[str, Any]:
    """What the prompt and the grader need beside the tests: starter code, function name, difficulty, date.

    Raises InputError where its `metadata` is no JSON object.
    """
    known = {
        key: row[key] for key in ("starter_code", "difficulty", "contest_date", "platform", "fn_name") if row.get(key)
    }
    try:
        packed = json.loads(row.get("metadata") or "{}")
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: metadata: {error}") from None
    if not isinstance(packed, dict):
        raise InputError(f"{where}: metadata: expected a JSON object, got {type(packed).__name__}")
    return {"fn_name": packed["func_name"], **known} if packed.get("func_name") else known
