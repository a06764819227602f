"""Re-grading: a verdict for every line of anyone's stored generations, without a model or a GPU.

Reads JSON Lines (also .gz) row by row, so a file may be larger than memory. A row is one of

- `{"gold", "prediction"}` with optional `id`, `kind`, `options`, `tests` (in any format of `code_tests`) and
  `fn_name`, `entry_point` or `starter_code`: the prediction is a whole completion or a bare answer;
- a `Problem` with a `text`;
- a row of lm-eval's samples (`target`, `resps`) or of lighteval's details (`gold`, `predictions`, or
  `doc` and `model_response`).

It writes the same rows in the same order with `correct` (true, false, or null when the gold can't be
parsed), `answer`, `rung` and `why`; where a row holds several predictions each of these is a list.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

from fathom.errors import InputError
from fathom.graders import final_answer, grade
from fathom.records import Problem, Verdict, check_text, from_dict, json_lines
from fathom.store import disk_errors

_PROBLEM_KEYS = frozenset(f.name for f in fields(Problem))
_KINDS = ("math", "choice", "code")
_NAMES_FUNCTION = ("fn_name", "entry_point", "func_name", "starter_code")
_OPTION = re.compile(r"\s*\(?[A-J]\)?\s*")


def grade_file(path: Path | str, out: Path | str | None = None) -> dict[str, Any]:
    """Grade every row of a JSON Lines file; write the rows with verdicts to `out` when given.

    Returns {"rows", "predictions", "correct", "wrong", "ungradable", "accuracy", "rungs"}; accuracy is
    the fraction of gradable predictions that are correct (None without any). `out` is replaced only
    when the whole file was read. Raises InputError naming file and line for a row that is none of the
    known kinds, and when the disk is full.
    """
    counts: Counter[str] = Counter()
    rungs: Counter[str] = Counter()
    temporary = Path(f"{out}.part") if out is not None else Path(os.devnull)
    try:
        with disk_errors(temporary), open(temporary, "w", encoding="utf-8", newline="\n") as stream:
            for where, row in json_lines(path):
                verdicts, several = _grade_row(row, where)
                counts["rows"] += 1
                for verdict in verdicts:
                    counts["predictions"] += 1
                    counts[{True: "correct", False: "wrong", None: "ungradable"}[verdict.correct]] += 1
                    rungs[verdict.rung] += 1
                stream.write(json.dumps({**row, **_columns(verdicts, several)}, ensure_ascii=False) + "\n")
        if not counts["rows"]:
            raise InputError(f"{path}: no rows")
        if out is not None:
            os.replace(temporary, out)
    finally:
        if out is not None:
            temporary.unlink(missing_ok=True)
    gradable = counts["correct"] + counts["wrong"]
    totals = {key: counts[key] for key in ("rows", "predictions", "correct", "wrong", "ungradable")}
    return {
        **totals,
        "accuracy": counts["correct"] / gradable if gradable else None,
        "rungs": dict(sorted(rungs.items())),
    }


def describe(totals: dict[str, Any]) -> str:
    """`grade_file`'s totals for a terminal."""
    accuracy = "nothing could be graded" if totals["accuracy"] is None else f"accuracy {totals['accuracy']:.2%}"
    counts = ", ".join(f"{totals[key]:,} {key}" for key in ("correct", "wrong", "ungradable"))
    rungs = ", ".join(f"{rung} {count:,}" for rung, count in totals["rungs"].items())
    return f"{totals['rows']:,} rows, {totals['predictions']:,} predictions: {counts}; {accuracy}\ndecided by: {rungs}"


def _columns(verdicts: list[Verdict], several: bool) -> dict[str, Any]:
    columns = {name: [getattr(verdict, name) for verdict in verdicts] for name in ("correct", "answer", "rung", "why")}
    return columns if several else {name: values[0] for name, values in columns.items()}


def _grade_row(row: Any, where: str) -> tuple[list[Verdict], bool]:
    """(verdicts, whether the row holds a list of predictions)."""
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected an object, got {type(row).__name__}")
    check_text(row, where)
    problem, predictions = _read_row(row, where)
    several = isinstance(predictions, list)
    texts = predictions if several else [predictions]
    return [grade(problem, _text(text, where)) for text in texts], several


def _read_row(row: dict[str, Any], where: str) -> tuple[Problem, Any]:
    if "prediction" in row:
        return read_problem(row, row.get("gold"), where), row["prediction"]
    if "text" in row and ("gold" in row or "tests" in row):
        given = {key: value for key, value in row.items() if key in _PROBLEM_KEYS}
        stated = given.get("meta") or {}
        if not isinstance(stated, dict):
            raise InputError(f"{where}: meta: expected an object, got {type(stated).__name__}")
        meta = {**_function_names(row), **stated}
        values = {"question": "", "id": where, **given, "tests": _tests(row, where), "meta": meta}
        return from_dict(Problem, values, where), row["text"]
    if "resps" in row and "target" in row:  # lm-eval --log_samples: a list of responses per request
        return read_problem({}, row["target"], where), _flat(row["resps"])
    if "predictions" in row and "gold" in row:  # lighteval details, one column per field
        return read_problem({}, row["gold"], where), _flat(row["predictions"])
    if isinstance(row.get("doc"), dict) and isinstance(row.get("model_response"), dict):
        return read_problem({}, _lighteval_gold(row["doc"], where), where), _flat(row["model_response"].get("text"))
    raise InputError(
        f"{where}: expected the keys 'gold' and 'prediction' (or a known log format), got {', '.join(row) or 'none'}"
    )


def read_problem(row: dict[str, Any], gold: Any, where: str) -> Problem:
    """What a plain row says of its problem; the kind follows from tests, options and gold unless stated.

    Raises InputError naming `where` and the key.
    """
    while isinstance(gold, list) and len(gold) == 1:
        gold = gold[0]
    if isinstance(gold, bool | list | dict):
        raise InputError(f"{where}: gold: expected a text or a number, got {type(gold).__name__}")
    gold = None if gold is None else str(gold)
    if gold and ("####" in gold or "\\boxed" in gold):
        gold = final_answer(gold) or gold  # the gold of GSM8K and MATH is a whole solution
    kind = row.get("kind") or _kind(row, gold)
    if kind not in _KINDS:
        raise InputError(f"{where}: kind: expected one of {', '.join(_KINDS)}, got {kind!r}")
    if kind != "code" and "gold" not in row and gold is None:
        raise InputError(f"{where}: expected the key 'gold'")
    values = {
        "id": str(row.get("id") or where),
        "question": "",
        "gold": gold,
        "kind": kind,
        "options": row.get("options"),
        "tests": _tests(row, where),
        "meta": _function_names(row),
    }
    return from_dict(Problem, values, where)


def _tests(row: dict[str, Any], where: str) -> list[Any] | None:
    if not row.get("tests"):
        return None
    from fathom.graders.code_tests import test_rows  # loads the sandbox, which only code needs

    return test_rows(row["tests"], f"{where}: tests")


def _function_names(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in _NAMES_FUNCTION if row.get(key)}


def _kind(row: dict[str, Any], gold: str | None) -> str:
    if row.get("tests"):
        return "code"
    return "choice" if row.get("options") or (gold is not None and _OPTION.fullmatch(gold)) else "math"


def _lighteval_gold(doc: dict[str, Any], where: str) -> Any:
    choices, index = doc.get("choices"), doc.get("gold_index")
    index = index[0] if isinstance(index, list) and index else index
    if not isinstance(choices, list) or not isinstance(index, int) or not 0 <= index < len(choices):
        raise InputError(f"{where}: doc: expected 'choices' and a 'gold_index' into them")
    return choices[index]


def _flat(values: Any) -> Any:
    while isinstance(values, list) and len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    if isinstance(values, list) and any(isinstance(value, list) for value in values):
        return [text for value in values for text in (value if isinstance(value, list) else [value])]
    return values


def _text(text: Any, where: str) -> str:
    if text is None:
        return ""
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise InputError(f"{where}: prediction: expected a text, got {type(text).__name__}")
    return str(text)
