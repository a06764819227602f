"""A recipe: what the YAML says, checked, with the graph that follows from it.

`load_recipe` reads and validates everything that needs no work: keys, types, ops, edges,
cycles, files. It knows nothing of what an op does; the table of ops is given to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from fathom.config import Op, StageConfig, file_inputs, stage_inputs, suggest, validate
from fathom.document import Document, apply_set, expand_vars, load_document
from fathom.errors import InputError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Budget(_Strict):
    """usd: hard stop for the run directory, everything ever spent in it included; None is no limit."""

    usd: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class Hardware(_Strict):
    """What local work is billed as: a device of the price file, and how many of them."""

    device: str = "cpu"
    count: int = Field(default=1, ge=1)


class RecipeFile(_Strict):
    """The top level of a recipe file. vars: texts that stand for `${name}` elsewhere in it."""

    recipe: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    seed: int = Field(default=0, ge=0, lt=2**32)
    vars: dict[str, str] = {}
    models: dict[str, str] = {}
    budget: Budget = Budget()
    hardware: Hardware = Hardware()
    prices: str | None = None
    strict: bool = False
    final: str | None = None
    stages: dict[str, dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True)
class Stage:
    """One node of the graph. config: validated. inputs: names of the stages it reads; models: of the models table."""

    name: str
    op_name: str
    op: Op
    config: StageConfig
    inputs: tuple[str, ...]
    models: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """A checked recipe.

    path, sets: the file and the `--set` assignments it was read from; values: the tree they resolve
    to. stages: in an order in which they can run.
    """

    path: str
    sets: tuple[str, ...]
    values: Mapping[str, Any]
    file: RecipeFile
    stages: tuple[Stage, ...]

    def stage(self, name: str) -> Stage:
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise InputError(f"{self.path}: no stage is called {name!r}{suggest(name, [s.name for s in self.stages])}")

    def upstream(self, name: str) -> set[str]:
        """The stage and everything that it depends on."""
        found: set[str] = set()
        waiting = [self.stage(name).name]
        while waiting:
            current = waiting.pop()
            if current not in found:
                found.add(current)
                waiting += self.stage(current).inputs
        return found


def load_recipe(path: Path | str, ops: Mapping[str, Op], sets: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply `--set` assignments and check the whole graph.

    Raises InputError (one line: file, line, key, what was expected).
    """
    document = load_document(Path(path))
    for assignment in sets:
        apply_set(document, assignment, root=("stages",), known=tuple(RecipeFile.model_fields), closed=True)
    expand_vars(document)
    return check_recipe(document, ops, sets)


def check_recipe(document: Document, ops: Mapping[str, Op], sets: Sequence[str] = ()) -> Recipe:
    """Validate a document that is already in memory (see `load_recipe`)."""
    file = validate(RecipeFile, document.values, document.where)
    names = list(file.stages)
    clash = next((name for name in names if name in file.models), None)
    if clash:
        raise InputError(f"{document.where(('stages', clash))}: {clash!r} is both a stage and an entry of models")
    stages = [_stage(name, values, file, ops, document) for name, values in file.stages.items()]
    ordered = _order(stages, document)
    if file.final is not None and file.final not in names:
        raise InputError(
            f"{document.where(('final',))}: final: no stage is called {file.final!r}{suggest(file.final, names)}"
        )
    return Recipe(document.name, tuple(sets), document.values, file, ordered)


def _stage(name: str, values: dict[str, Any], file: RecipeFile, ops: Mapping[str, Op], document: Document) -> Stage:
    here = ("stages", name)
    place = document.where(here)
    if not all(part.isalnum() for part in name.replace("-", "_").split("_")):
        raise InputError(f"{place}: a stage's name is a directory's name: letters, digits, - and _, got {name!r}")
    if "op" not in values:
        raise InputError(f"{place}: stage {name!r} needs the key 'op'; ops: {', '.join(ops)}")
    op_name = values["op"]
    if not isinstance(op_name, str) or op_name not in ops:
        raise InputError(
            f"{document.where((*here, 'op'))}: stages.{name}.op: unknown op {op_name!r}{suggest(op_name, ops)}"
        )
    op = ops[op_name]
    try:
        cls = op.config_class()
    except ModuleNotFoundError as error:
        if error.name is None or not op.config.startswith(error.name.split(".")[0]):
            raise InputError(
                f"{place}: op {op_name!r} needs the package {error.name!r}, which is not installed"
            ) from None
        raise
    body = {key: value for key, value in values.items() if key != "op"}
    config = validate(cls, body, lambda path: f"{document.where((*here, *path))}: stage {name!r}")
    inputs, models = _edges(name, config, file, document)
    for path in file_inputs(config):
        if not Path(path).exists():
            raise InputError(f"{place}: stage {name!r}: {path}: no such file")
    return Stage(name, op_name, op, config, inputs, models)


def _edges(
    name: str, config: StageConfig, file: RecipeFile, document: Document
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    inputs: dict[str, None] = {}
    models: dict[str, None] = {}
    for field, kind, other in stage_inputs(config):
        place = document.where(("stages", name, field))
        if other in file.stages:
            inputs[other] = None
        elif kind == "model" and other in file.models:
            models[other] = None
        else:
            known = [*file.stages, *(file.models if kind == "model" else ())]
            what = "stage or model" if kind == "model" else "stage"
            raise InputError(f"{place}: stages.{name}.{field}: no {what} is called {other!r}{suggest(other, known)}")
    return tuple(inputs), tuple(models)


def _order(stages: list[Stage], document: Document) -> tuple[Stage, ...]:
    """Topological, and as written where the graph leaves a choice."""
    by_name = {stage.name: stage for stage in stages}
    sorter = TopologicalSorter({stage.name: stage.inputs for stage in stages})
    try:
        sorter.prepare()
    except CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        raise InputError(f"{document.name}: the stages form a cycle: {circle}") from None
    position = {stage.name: i for i, stage in enumerate(stages)}
    ordered: list[Stage] = []
    ready = set(sorter.get_ready())
    while ready:
        name = min(ready, key=position.__getitem__)
        ready.remove(name)
        ordered.append(by_name[name])
        sorter.done(name)
        ready |= set(sorter.get_ready())
    return tuple(ordered)
