"""Reads a run directory into memory, strictly what lies there. It judges nothing, computes nothing and writes nothing.

Stages that have not run, a missing ledger, plan or budget curve simply leave their part empty: a
run stopped by its budget still gets a report.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from fathom.bill import BillLine, read_bill
from fathom.document import load_document
from fathom.errors import InputError
from fathom.records import Rollout, json_lines, read_jsonl
from fathom.store import read_json, read_manifest


@dataclass(frozen=True, eq=False)
class Stage:
    """A finished stage: its name in the recipe, its artifact and what the manifest says of it."""

    name: str
    directory: Path
    manifest: Mapping[str, Any]

    @property
    def op(self) -> str:
        return self.manifest["op"]

    @property
    def config(self) -> Mapping[str, Any]:
        return self.manifest.get("config", {})

    @property
    def metrics(self) -> Mapping[str, Any]:
        return self.manifest.get("metrics") or {}

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The objects of one of its JSON Lines files; none where it wrote no such file."""
        path = self.directory / name
        return [value for _, value in json_lines(path)] if path.is_file() else []


@dataclass(frozen=True, eq=False)
class Run:
    """A run directory.

    stages: the finished ones, in the recipe's order; waiting: names of the others. plan, rows,
    comparisons: contents of plan.json and of all rows.json and comparisons.json. published: tables of `fathom/evaluate/published.yaml`.
    """

    directory: Path
    recipe: Mapping[str, Any]
    stages: tuple[Stage, ...]
    waiting: tuple[str, ...] = ()
    bill: tuple[BillLine, ...] = ()
    plan: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[Mapping[str, Any], ...] = ()
    comparisons: tuple[Mapping[str, Any], ...] = ()
    published: tuple[Mapping[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return str(self.recipe["recipe"])

    @property
    def seed(self) -> int:
        return int(self.recipe.get("seed", 0))

    @property
    def final(self) -> str | None:
        return self.recipe.get("final")

    def stage(self, name: str | None) -> Stage | None:
        """The finished stage of that name, or None."""
        return next((stage for stage in self.stages if stage.name == name), None)

    def of(self, *ops: str) -> list[Stage]:
        """The finished stages of these ops."""
        return [stage for stage in self.stages if stage.op in ops]


def read_run(directory: Path) -> Run:
    """Read everything but the large files. Raises InputError when it is not a run directory."""
    recipe_file = directory / "recipe.yaml"
    if not recipe_file.is_file():
        raise InputError(f"{directory}: not a run directory (it has no {recipe_file.name})")
    recipe = load_document(recipe_file).values
    _check_form({"seed": 0} | recipe, RECIPE_FORM, recipe_file)
    stages, waiting = [], []
    for name in recipe["stages"]:
        artifact = directory / "artifacts" / name
        manifest = read_manifest(artifact)
        if manifest is None or "op" not in manifest:
            waiting.append(name)
        else:
            stages.append(Stage(name, artifact, manifest))
    return Run(
        directory=directory,
        recipe=recipe,
        stages=tuple(stages),
        waiting=tuple(waiting),
        bill=_bill(directory / "ledger.sqlite"),
        plan=_plan(directory / "plan.json"),
        rows=tuple(_evaluated(stages, "rows.json")),
        comparisons=tuple(_evaluated(stages, "comparisons.json")),
        published=_published(),
    )


def _objects(values: Iterable[Any]) -> bool:
    return all(isinstance(value, dict) for value in values)


Form = Mapping[str, Callable[[Any], bool]]
"""By key, whether a value is one that a run writes there."""

RECIPE_FORM: Form = {
    "recipe": lambda name: isinstance(name, str),
    "stages": lambda stages: isinstance(stages, dict) and _objects(stages.values()),
    "seed": lambda seed: isinstance(seed, int),
}
PLAN_FORM: Form = {"stages": lambda stages: isinstance(stages, list) and _objects(stages)}


def _check_form(values: Any, form: Form, file: Path) -> None:
    """Raises InputError where a run's own file was edited into something else."""
    for key, fits in form.items():
        value = values.get(key) if isinstance(values, dict) else None
        if not fits(value):
            raise InputError(f"{file}: not as a run writes it ({key}: {str(value)[:40]!r})")


def _plan(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    plan = read_json(path)
    _check_form(plan, PLAN_FORM, path)
    return plan


def rollouts(stage: Stage) -> Iterator[Rollout]:
    """The graded chains of a stage, one at a time; none where it wrote none."""
    path = stage.directory / "rollouts.jsonl"
    if path.is_file():
        yield from read_jsonl(path, Rollout)


def _evaluated(stages: list[Stage], name: str) -> Iterator[Mapping[str, Any]]:
    for stage in stages:
        path = stage.directory / name
        if stage.op == "evaluate" and path.is_file():
            yield from read_json(path)


def _bill(path: Path) -> tuple[BillLine, ...]:
    if not path.is_file():
        return ()
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            db.row_factory = sqlite3.Row
            return tuple(read_bill(db))
    except sqlite3.DatabaseError as error:
        raise InputError(f"{path}: not a ledger ({error})") from None


def _published() -> tuple[Mapping[str, Any], ...]:
    """The tables of published figures that ship with the package; none where the file is absent."""
    file = resources.files("fathom") / "evaluate" / "published.yaml"
    return tuple(yaml.safe_load(file.read_text(encoding="utf-8"))) if file.is_file() else ()
