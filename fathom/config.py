"""What a stage's configuration is: a strict pydantic model whose field types carry meaning.

`Input` and `ModelInput` fields name other stages, so the edges of the graph follow from the
types and are never written twice. `FileInput` fields name files whose content counts.
`Operational` fields (devices, workers, batch layout) say how work is done, not what comes out,
and stay out of the content key. An `Op` says where a stage's function and configuration live.

Reading YAML is `fathom/document.py`; this module never touches a file.
"""

from __future__ import annotations

import difflib
import importlib
import json
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from fathom.errors import InputError


@dataclass(frozen=True)
class InputMark:
    """Marks a config field that names a stage ("data"), a model ("model") or a file ("file")."""

    kind: str


@dataclass(frozen=True)
class OperationalMark:
    """Marks a config field that does not change what the stage produces."""


Input = Annotated[str, InputMark("data")]
"""Name of the stage whose artifact is read."""

ModelInput = Annotated[str, InputMark("model")]
"""Name of a stage that wrote a model, or of an entry of the recipe's `models` table."""

FileInput = Annotated[str, InputMark("file")]
"""Path of a file (or directory) that the stage reads: its content enters the key, its path does not."""

Operational = OperationalMark()
"""`workers: Annotated[int, Operational] = 2`"""


class StageConfig(BaseModel):
    """Base of every stage's configuration: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


@dataclass(frozen=True)
class Op:
    """One kind of stage, as the recipe names it.

    target: "module:function", called as `function(inputs, config, out, meter) -> metrics`.
    config: "module:ConfigClass" (a StageConfig). version: raised when the meaning of the output
    changes. preload: modules that take long to import (torch); where a stage names a model they are
    imported once for all of them.
    estimate: "module:function" predicting its cost for `fathom plan`, or None. one_per_device: runs in
    as many processes as the recipe's hardware counts devices, under torchrun.
    """

    target: str
    config: str
    version: int = 1
    preload: tuple[str, ...] = ()
    estimate: str | None = None
    one_per_device: bool = False

    def config_class(self) -> type[StageConfig]:
        return load_object(self.config)


def load_object(target: str) -> Any:
    """Import "module:name"."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


# ------------------------------------------------------------------------------ meaning of fields


def _marks(field: FieldInfo) -> Iterator[Any]:
    yield from field.metadata
    yield from _annotation_marks(field.annotation)


def _annotation_marks(annotation: Any) -> Iterator[Any]:
    yield from getattr(annotation, "__metadata__", ())
    for part in typing.get_args(annotation):
        yield from _annotation_marks(part)


def input_kind(field: FieldInfo) -> str | None:
    """ "data", "model" or "file" when the field is marked as an input, else None."""
    return next((mark.kind for mark in _marks(field) if isinstance(mark, InputMark)), None)


def is_operational(field: FieldInfo) -> bool:
    return any(isinstance(mark, OperationalMark) for mark in field.metadata)


def stage_inputs(config: BaseModel) -> list[tuple[str, str, str]]:
    """(field, "data" or "model", name) for every stage or model that the configuration names, in order."""
    found = []
    for name, field in type(config).model_fields.items():
        kind = input_kind(field)
        if kind in ("data", "model"):
            found += [(name, kind, value) for value in _leaves(getattr(config, name))]
    return found


def map_inputs(config: BaseModel, resolve: Callable[[str, str], Path]) -> dict[str, Any]:
    """The `inputs` of a stage: each input field with `resolve(kind, name)` in place of every name."""
    mapped = {}
    for name, field in type(config).model_fields.items():
        kind = input_kind(field)
        if kind in ("data", "model"):
            mapped[name] = map_values(getattr(config, name), lambda value, kind=kind: resolve(kind, value))
    return mapped


def file_inputs(config: BaseModel) -> list[str]:
    """Paths in `FileInput` fields at any depth."""
    found = []
    for value, kind in _walk(config):
        if kind == "file":
            found += _leaves(value)
    return found


def key_values(value: Any, file_hash: Callable[[str], str]) -> Any:
    """The part of a configuration that determines the output, as plain JSON values.

    Operational fields are left out; file inputs are replaced by the hash of their content.
    """
    if isinstance(value, BaseModel):
        return {
            name: map_values(getattr(value, name), file_hash)
            if input_kind(field) == "file"
            else key_values(getattr(value, name), file_hash)
            for name, field in type(value).model_fields.items()
            if not is_operational(field)
        }
    if isinstance(value, list | tuple):
        return [key_values(v, file_hash) for v in value]
    if isinstance(value, dict):
        return {str(k): key_values(v, file_hash) for k, v in value.items()}
    return str(value) if isinstance(value, Path) else value


def _walk(config: BaseModel) -> Iterator[tuple[Any, str | None]]:
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        yield value, input_kind(field)
        for nested in _nested_models(value):
            yield from _walk(nested)


def _nested_models(value: Any) -> Iterator[BaseModel]:
    if isinstance(value, BaseModel):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _nested_models(item)


def _leaves(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, Mapping):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


def map_values(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same lists and mappings with every leaf changed; None stays None."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {k: map_values(v, change) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [map_values(v, change) for v in value]
    return change(value)


# ------------------------------------------------------------------------------ strict validation

Model = TypeVar("Model", bound=BaseModel)


def validate(cls: type[Model], values: Mapping[str, Any], where: Callable[[tuple], str] | str = "config") -> Model:
    """Build a config from plain values; strict: no "3" for 3, no 1.5 for an int, no unknown key.

    where: prefix of the message, or a function from the key path of the first error to it.
    Raises InputError with one line that names the key, what was expected and what was given.
    """

    def fail(path: tuple, message: str) -> InputError:
        return InputError(f"{where if isinstance(where, str) else where(path)}: {message}")

    try:
        config = cls.model_validate(values)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        path = _written_path(values, problems[0]["loc"])
        raise fail(path, _explain(cls, problems[0], _dotted(path)) + more) from None
    for path, given, taken in _coerced(values, config.model_dump(), ()):
        raise fail(path, f"{_dotted(path)}: expected {_NAMES[type(taken)]}, got {json.dumps(given)}")
    return config


_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}
_MAY_BECOME = {bool: (bool,), int: (int, float), float: (float,), str: (str,)}


def _coerced(given: Any, taken: Any, path: tuple) -> Iterator[tuple[tuple, Any, Any]]:
    """Scalars that pydantic bent to the wanted type ("3" for 3, 3.0 for 3): a recipe must say what it means."""
    if isinstance(given, dict) and isinstance(taken, dict):
        for key in given.keys() & taken.keys():
            yield from _coerced(given[key], taken[key], (*path, key))
    elif isinstance(given, list) and isinstance(taken, list | tuple) and len(given) == len(taken):
        for index, (one, other) in enumerate(zip(given, taken, strict=True)):
            yield from _coerced(one, other, (*path, index))
    elif {type(given), type(taken)} <= set(_NAMES) and type(taken) not in _MAY_BECOME[type(given)]:
        yield path, given, taken


def _dotted(path: tuple) -> str:
    return ".".join(str(part) for part in path)


def suggest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" when a known word is close, else the list of known words."""
    known = list(known)
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""


def _written_path(values: Any, loc: tuple) -> tuple:
    """A path as the user wrote it: without the tags with which pydantic names the alternative of a union."""
    path = []
    for number, part in enumerate(loc, 1):
        inside = isinstance(values, dict) and part in values
        inside = inside or (isinstance(values, list) and isinstance(part, int) and part < len(values))
        if inside or number == len(loc):
            path.append(part)
        if inside:
            values = values[part]
    return tuple(path)


def _explain(cls: type[BaseModel], problem: Any, dotted: str) -> str:
    loc = problem["loc"]
    if problem["type"] == "extra_forbidden":
        return f"unknown key {dotted!r}{suggest(loc[-1], _keys_at(cls, loc[:-1]))}"
    if problem["type"] == "missing":
        return f"needs the key {dotted!r}"
    message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    if problem["type"] == "value_error":
        return f"{dotted}: {message}" if dotted else message
    given = json.dumps(problem["input"], ensure_ascii=False, default=str)
    given = given if len(given) <= 60 else given[:57] + "..."
    return f"{dotted}: {message}, got {given}" if dotted else f"{message}, got {given}"


def _keys_at(cls: type[BaseModel], loc: tuple) -> list[str]:
    """The keys that the model (or models, in a union) at a position of the tree would take."""
    models: list[type[BaseModel]] = [cls]
    for part in loc:
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        if fields:
            models = [model for field in fields for model in _models_in(field.annotation)]
        else:  # a list index, or the tag with which a union names the alternative that was tried
            models = [model for model in models if _is_alternative(model, part)] or models
    return sorted({name for model in models for name in model.model_fields})


def _is_alternative(model: type[BaseModel], tag: Any) -> bool:
    if model.__name__ == tag:
        return True
    literals = (field.annotation for field in model.model_fields.values())
    return any(typing.get_origin(a) is typing.Literal and tag in typing.get_args(a) for a in literals)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for part in typing.get_args(annotation) for model in _models_in(part)]
