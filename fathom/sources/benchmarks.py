"""Benchmarks by name, from local files, or generated: each becomes a list of `Problem`s.

`benchmarks.yaml` is the table; this module reads rows by it. It neither samples nor grades.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from fathom.config import FileInput, StageConfig
from fathom.errors import InputError, first_line
from fathom.records import Kind, Problem
from fathom.sources import livecodebench
from fathom.sources.files import Row, read_rows
from fathom.sources.generated import GeneratedConfig, generate
from fathom.sources.programs import ProgramCorpus, generate_programs
from fathom.sources.rows import Columns, RowSpec, to_problem, wanted
from fathom.sources.unusable import Unusable

LOCAL_COLUMNS = {"id": ("id", "question_id"), "question": ("problem", "question"), "gold": ("answer", "gold")}
"""Names that a local file may use, in order of preference, where the table's own are absent."""


class Hub(StageConfig):
    """A data set on the Hugging Face hub; revision null is the newest commit."""

    name: str
    split: str
    config: str | None = None
    data_files: list[str] | None = None
    revision: str | None = None


class Entry(StageConfig):
    """One entry of `benchmarks.yaml`; its head says what each key means."""

    title: str
    hub: Hub | None = None
    columns: Columns = Columns(id="id")
    wrong_options: list[str] = Field([])
    answer_after: str | None = None
    where: dict[str, list[str]] = Field({})
    kind: Kind = "math"
    prompt: str | None = None
    licence: str = ""
    task: str | None = None
    problems: int | None = None


class BenchmarkChoice(StageConfig):
    """One benchmark of an evaluation: a known `name`, with `path` a local file, `generated` problems or `programs`.

    revision: overrides the table's. limit: only the first problems. kind: of a local file with a new name.
    """

    name: str
    path: FileInput | None = None
    generated: GeneratedConfig | None = None
    programs: ProgramCorpus | None = None
    revision: str | None = None
    limit: int | None = Field(None, ge=1)
    kind: Kind = "math"

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        for made in ("generated", "programs"):
            if isinstance(value, dict) and made in value:
                return {"name": made, **value}
        return value

    @model_validator(mode="after")
    def _can_be_found(self) -> BenchmarkChoice:
        """Told with the recipe, not once an evaluation is due."""
        if not (self.path or self.generated or self.programs or self.name in table()):
            raise ValueError(f"benchmark {self.name!r} is unknown and has no path; known: {', '.join(table())}")
        return self


@dataclass(frozen=True)
class Benchmark:
    """Problems under one name; ids start with the name, so that benchmarks can share a file."""

    name: str
    problems: list[Problem]
    prompt: str | None


@cache
def table() -> dict[str, Entry]:
    """The entries of `benchmarks.yaml` by name."""
    text = (resources.files(__package__) / "benchmarks.yaml").read_text(encoding="utf-8")
    return {name: Entry.model_validate(entry) for name, entry in yaml.safe_load(text).items()}


def names(choices: Sequence[BenchmarkChoice]) -> list[str]:
    """In order. Raises InputError where two are called alike: what is counted by name would be counted twice."""
    found = [choice.name for choice in choices]
    for name in found:
        if found.count(name) > 1:
            raise InputError(f"benchmark {name!r} occurs twice; give one of them another name")
    return found


def load(choice: BenchmarkChoice, seed: int = 0) -> Benchmark:
    """The problems of a benchmark.

    seed: of generated problems and of the order of options. Raises InputError for a missing file or column, a duplicate id, no problems, or another number of rows than the table says.
    """
    entry = table().get(choice.name) or Entry(title=choice.name, kind=choice.kind)
    if choice.generated is not None:
        problems, _ = generate(choice.generated, seed)
    elif choice.programs is not None:
        problems = generate_programs(choice.programs, seed)
    else:
        rows = read_rows(Path(choice.path)) if choice.path else _hub_rows(choice.name, entry, choice.revision)
        problems = list(_problems(choice.name, entry, rows, seed))
        _check_count(choice, entry, len(problems))
    if not problems:
        raise InputError(f"benchmark {choice.name!r}: no problems")
    named = [_named(problem, choice.name) for problem in problems[: choice.limit]]
    _check_unique(choice.name, named)
    return Benchmark(choice.name, named, entry.prompt)


def _hub_rows(name: str, entry: Entry, revision: str | None) -> Iterator[Row]:
    import datasets

    hub = entry.hub
    pinned = revision or hub.revision
    try:
        if hub.data_files:
            root = f"hf://datasets/{hub.name}" + (f"@{pinned}" if pinned else "")
            rows = datasets.load_dataset("json", data_files=[f"{root}/{f}" for f in hub.data_files], split=hub.split)
        else:
            rows = datasets.load_dataset(hub.name, hub.config, split=hub.split, revision=pinned)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"benchmark {name!r}: can't read {hub.name} from the hub ({first_line(error)}); "
            f"a local file will do: {{name: {name}, path: FILE.jsonl}}"
        ) from None
    for number, row in enumerate(rows, 1):
        yield f"{hub.name}: row {number}", row


def _problems(name: str, entry: Entry, rows: Iterable[Row], seed: int) -> Iterator[Problem]:
    """A benchmark is whole or it is none: a row that can't be used is an InputError."""
    for number, (where, row) in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputError(f"{where}: expected an object, got {type(row).__name__}")
        columns = _columns(entry, row)
        spec = RowSpec(kind=entry.kind, licence=entry.licence, columns=columns, where=entry.where)
        try:
            if not wanted(row, spec):
                continue
            problem = to_problem(_prepared(row, entry, columns, seed, where), spec, name, number)
        except Unusable as fault:
            raise InputError(f"{where}: {fault}") from None
        yield replace(problem, meta=_meta(row, entry, seed, where))


def _columns(entry: Entry, row: dict[str, Any]) -> Columns:
    """The table's column names where the row has them, else those of a local file."""

    def pick(field: str) -> str | None:
        declared = getattr(entry.columns, field)
        return next((c for c in (declared, *LOCAL_COLUMNS[field]) if c in row), declared)

    code, choice = entry.kind == "code", entry.kind == "choice"
    row_id = pick("id")
    return Columns(
        id=row_id if row_id in row else None,
        question=pick("question"),
        gold=None if code else pick("gold"),
        options="options" if choice else None,
        tests="tests" if code else None,
    )


def _prepared(row: dict[str, Any], entry: Entry, columns: Columns, seed: int, where: str) -> dict[str, Any]:
    """The row with its gold as one text, its options in order, its tests decoded."""
    if entry.kind == "code":
        return {**row, "tests": livecodebench.tests(row, where)}
    gold = row.get(columns.gold)
    if isinstance(gold, list):
        gold = ", ".join(map(str, gold))
    if entry.answer_after and isinstance(gold, str):
        gold = gold.rsplit(entry.answer_after, 1)[-1]
    if entry.kind == "choice" and "options" not in row and all(key in row for key in entry.wrong_options):
        given = [gold, *(row[key] for key in entry.wrong_options)]
        if not all(isinstance(option, str) for option in given):
            raise InputError(f"{where}: options: expected texts, got {given!r}")
        options = shuffled(given, str(row.get(columns.id)), seed)
        return {**row, "options": options, columns.gold: chr(ord("A") + options.index(gold.strip()))}
    return {**row, columns.gold: gold} if columns.gold in row else row


def _meta(row: dict[str, Any], entry: Entry, seed: int, where: str) -> dict[str, Any]:
    if entry.kind == "code":
        return livecodebench.meta(row, where)
    return {"shuffle_seed": seed} if entry.kind == "choice" and "options" not in row else {}


def shuffled(options: Iterable[str], row_id: str, seed: int) -> list[str]:
    """Options in an order that depends on the seed and the row alone, so the right one is anywhere."""
    stripped = [option.strip() for option in options]
    return sorted(stripped, key=lambda option: hashlib.sha256(f"{seed}\x1f{row_id}\x1f{option}".encode()).digest())


def _named(problem: Problem, name: str) -> Problem:
    prefix = f"{name}/"
    return problem if problem.id.startswith(prefix) else replace(problem, id=prefix + problem.id)


def _check_count(choice: BenchmarkChoice, entry: Entry, count: int) -> None:
    if choice.path is None and entry.problems is not None and count != entry.problems:
        raise InputError(
            f"benchmark {choice.name!r}: {entry.hub.name} has {count} problems where {entry.problems} were "
            "expected; it has changed: pin a revision"
        )


def _check_unique(name: str, problems: list[Problem]) -> None:
    seen: set[str] = set()
    for problem in problems:
        if problem.id in seen:
            raise InputError(f"benchmark {name!r}: id {problem.id!r} occurs twice")
        seen.add(problem.id)
