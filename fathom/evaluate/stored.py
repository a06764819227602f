"""Anyone's stored generations as problems and rollouts: our JSONL, lighteval, lm-eval, plain rows.

Only formats; grading is `regrade.py`'s. The format is recognised by the keys of the first row.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fathom import graders
from fathom.errors import InputError, first_line
from fathom.graders.files import read_problem
from fathom.records import Problem, Rollout, from_dict, read_jsonl
from fathom.sources.files import read_rows

Row = dict[str, Any]


@dataclass(frozen=True)
class Stored:
    """One stored chain. recorded: the verdict in the file, where it holds one. problem: None when unknown."""

    problem: Problem | None
    rollout: Rollout
    recorded: bool | None


def read_stored(path: Path, problems: Path | None = None) -> tuple[str, list[Stored]]:
    """(format, chains) of a stored file, a directory of them, or an artifact with rollouts.jsonl.

    problems: a problems.jsonl for rollouts of ours; the one beside the file by default. Raises
    InputError for a missing or empty file, an unknown format, or a row that does not fit it.
    """
    path = Path(path)
    path = path / "rollouts.jsonl" if (path / "rollouts.jsonl").is_file() else path
    rows = list(read_rows(path))
    if not rows:
        raise InputError(f"{path}: no rows")
    for where, row in rows:
        if not isinstance(row, dict):
            raise InputError(f"{where}: expected an object, got {type(row).__name__}")
    where, first = rows[0]
    for name, (recognise, read) in _FORMATS.items():
        if recognise(first):
            return name, _read(name, rows, lambda seen, read=read: read(seen, path, problems))
    raise InputError(
        f"{where}: not a stored generation that is known here; its keys: {', '.join(map(str, first))}; expected "
        "a rollout (problem_id, index, text), a row with gold and prediction, lm-eval samples, or lighteval details"
    )


Rows = Iterable[tuple[str, Row]]


def _read(name: str, rows: Rows, read: Callable[[Rows], Iterator[Stored]]) -> list[Stored]:
    """All chains; a row of others' making whose values are of other kinds than theirs is named."""
    where = ""

    def seen() -> Iterator[tuple[str, Row]]:
        nonlocal where
        for place, row in rows:
            where = place
            yield place, row

    try:
        return list(read(seen()))
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{where}: not a row as {name} writes it ({type(error).__name__}: {first_line(error)})"
        ) from error


def _ours(rows: Rows, path: Path, problems: Path | None) -> Iterator[Stored]:
    beside = path.with_name("problems.jsonl")
    file = problems or (beside if beside.is_file() else None)
    known = {p.id: p for p in read_jsonl(file, Problem)} if file else {}
    for where, row in rows:
        rollout = from_dict(Rollout, row, where)
        if file and rollout.problem_id not in known:
            raise InputError(f"{where}: problem {rollout.problem_id!r} is not in {file}")
        if not file and rollout.verdict is None:
            raise InputError(f"{where}: neither a verdict nor a problems.jsonl to grade by")
        recorded = rollout.verdict.correct if rollout.verdict else None
        yield Stored(known.get(rollout.problem_id), rollout, recorded)


def _plain(rows: Rows, path: Path, problems: Path | None) -> Iterator[Stored]:
    """gold and prediction; optional id (the same id = samples of one problem), kind, tests, model, tokens, ..."""
    seen: Counter[str] = Counter()
    for number, (where, row) in enumerate(rows, 1):
        if "gold" not in row or "prediction" not in row:
            raise InputError(f"{where}: needs 'gold' and 'prediction'; its keys: {', '.join(row)}")
        named = {"id": str(row.get("id", number)), "question": str(row.get("problem", ""))}
        problem = replace(read_problem(row, row["gold"], where), **named)
        texts = row["prediction"] if isinstance(row["prediction"], list) else [row["prediction"]]
        for text in texts:
            index = seen[problem.id]
            seen[problem.id] += 1
            yield _stored(problem, index, text, row, where, path, recorded=_bool(row.get("correct")))


def _lm_eval(rows: Rows, path: Path, problems: Path | None) -> Iterator[Stored]:
    """`samples_<task>_<time>.jsonl`: one row per document and filter, of which the first filter is read."""
    task = re.sub(r"^samples_|_\d{4}-\d\d-\d\dT.*$", "", path.name.removesuffix(".jsonl"))
    only = None
    for number, (where, row) in enumerate(rows):
        only = only if number else row.get("filter")
        if row.get("filter") != only:
            continue
        problem = _problem(
            task, row.get("doc_id"), row["doc"].get("problem") or row["doc"].get("question"), row.get("target"), where
        )
        texts = [text for answers in row.get("resps", []) for text in answers]
        known = next((row[key] for key in ("math_verify", "exact_match", "acc") if key in row), None)
        for index, text in enumerate(texts):
            yield _stored(problem, index, text, row, where, path, task, _bool(known) if len(texts) == 1 else None)


def _lighteval(rows: Rows, path: Path, problems: Path | None) -> Iterator[Stored]:
    """Details with `doc`, `model_response`, `metric` (with or without underscores around them)."""
    for number, (where, row) in enumerate(rows):
        doc, response, metric = (row.get(key) or row.get(f"__{key}__") for key in ("doc", "model_response", "metric"))
        if not isinstance(doc, dict) or not isinstance(response, dict):
            raise InputError(f"{where}: 'doc' and 'model_response' must be objects")
        index = doc.get("gold_index")
        index = index[0] if isinstance(index, list) else index
        task = str(doc.get("task_name") or path.stem)
        problem = _problem(task, doc.get("id") or number, doc.get("query"), doc["choices"][index], where)
        texts = response.get("text") or []
        scores = [value for value in (metric or {}).values() if value in (0, 1)]
        recorded = _bool(scores[0]) if len(texts) == 1 and len(scores) == 1 else None
        lengths = [len(ids) for ids in response.get("output_tokens") or []]
        for i, text in enumerate(texts):
            tokens = lengths[i] if i < len(lengths) else 0
            yield _stored(problem, i, text, {"tokens": tokens}, where, path, task, recorded)


def _old_lighteval(rows: Rows, path: Path, problems: Path | None) -> Iterator[Stored]:
    """Details before version 0.10: flat columns `predictions`, `gold`, `example`, `metrics`."""
    for number, (where, row) in enumerate(rows):
        gold = _listed(row["gold"])
        problem = _problem(path.stem, number, row.get("example"), gold[0] if gold else None, where)
        for index, text in enumerate(_listed(row["predictions"])):
            yield _stored(problem, index, text, {}, where, path)


_FORMATS: dict[str, tuple[Callable[[Row], bool], Callable[[Rows, Path, Path | None], Iterator[Stored]]]] = {
    "rollouts": (lambda row: {"problem_id", "index", "text"} <= row.keys(), _ours),
    "lm-eval": (lambda row: {"doc", "doc_id", "resps"} <= row.keys(), _lm_eval),
    "lighteval": (
        lambda row: any({f"{u}doc{u}", f"{u}model_response{u}"} <= row.keys() for u in ("", "__")),
        _lighteval,
    ),
    "lighteval (before 0.10)": (lambda row: {"predictions", "gold"} <= row.keys(), _old_lighteval),
    "plain": (lambda row: "gold" in row or "prediction" in row, _plain),
}


def _problem(task: str, row_id: Any, question: Any, gold: Any, where: str) -> Problem:
    """A foreign maths problem; a gold that is a whole solution is reduced to its final answer."""
    if gold is None:
        raise InputError(f"{where}: no gold answer")
    gold = str(gold)
    if "\\boxed" in gold or "####" in gold:
        gold = graders.final_answer(gold, "math") or gold
    return Problem(id=f"{task}/{row_id}", question=str(question or ""), gold=gold.strip(), source=task)


def _stored(
    problem: Problem,
    index: int,
    text: Any,
    row: Row,
    where: str,
    path: Path,
    benchmark: str | None = None,
    recorded: bool | None = None,
) -> Stored:
    if not isinstance(text, str):
        raise InputError(f"{where}: expected the generated text, got {type(text).__name__}")
    rollout = Rollout(
        problem_id=problem.id,
        index=index,
        text=text,
        tokens=int(row.get("tokens") or 0),
        finish="length" if row.get("truncated") else "stop",
        model=str(row.get("model") or "unknown"),
        meta={"benchmark": str(row.get("benchmark") or benchmark or path.name.split(".")[0])},
    )
    return Stored(problem, rollout, recorded)


def _bool(value: Any) -> bool | None:
    return bool(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def _listed(value: Any) -> list[Any]:
    """A list, or the text of one (older details were written through str())."""
    if isinstance(value, str) and value.startswith("["):
        try:
            return list(ast.literal_eval(value))
        except (ValueError, SyntaxError):
            return [value]
    return value if isinstance(value, list) else [value]
