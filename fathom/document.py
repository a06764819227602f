"""Strict YAML with places: every value knows the file and line it came from.

`extends` (deep merge; null deletes a key), `--set a.b=c`, duplicate keys refused, and numbers
as everyone writes them (`1e-5` is a number, `no` is a word). It knows nothing of what the keys mean.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fathom.config import Model, suggest, validate
from fathom.errors import InputError, first_line

Place = tuple  # path of keys and list indices from the root

LONGEST = 60
"""Characters of a wrong value that a message repeats."""


@dataclass
class Document:
    """A tree of plain values. places: "file:line" by key path, for messages."""

    name: str
    values: dict[str, Any]
    places: dict[Place, str] = field(default_factory=dict)

    def where(self, path: Place) -> str:
        """The nearest known "file:line" at or above a key path."""
        for end in range(len(path), 0, -1):
            if tuple(path[:end]) in self.places:
                return self.places[tuple(path[:end])]
        return self.name


class _Loader(yaml.SafeLoader):
    """SafeLoader with the numbers and booleans of YAML 1.2's core schema."""


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9][0-9_]*$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


def _number(loader: _Loader, node: yaml.ScalarNode) -> int | float:
    text = loader.construct_scalar(node).replace("_", "")
    return float(text) if any(c in text for c in ".eE") else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _number)
_Loader.add_constructor("tag:yaml.org,2002:float", _number)


class _Dumper(yaml.SafeDumper):
    """Quotes exactly what `_Loader` would take for something else than text."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def dump(values: Mapping[str, Any]) -> str:
    """YAML text that `load_document` reads back as the same values."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def parse_value(text: str) -> Any:
    """One YAML value, as in `--set key=VALUE`."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _build(loader, node, (), {}, "--set")
    except (yaml.YAMLError, ValueError, RecursionError):
        told = text if len(text) <= LONGEST else text[:LONGEST] + "..."
        raise InputError(f"--set: not a YAML value: {told!r}") from None


def load_document(path: Path) -> Document:
    """Read a YAML mapping, following `extends` (a path relative to the file that states it).

    Raises InputError for a missing file, broken YAML, a duplicate key or a circle of `extends`.
    """
    return _load(Path(path), ())


def _load(path: Path, seen: tuple[Path, ...]) -> Document:
    if path.resolve() in seen:
        raise InputError(f"{path}: extends itself, by way of {seen[-1].name}")
    document = _read(path)
    parent = document.values.pop("extends", None)
    if parent is None:
        return document
    if not isinstance(parent, str):
        raise InputError(f"{document.where(('extends',))}: extends: expected a path, got {parent!r}")
    base_path = path.parent / parent
    if not base_path.is_file():
        raise InputError(f"{document.where(('extends',))}: extends: {base_path}: no such file")
    base = _load(base_path, (*seen, path.resolve()))
    values = _merge(base.values, document.values)
    return Document(document.name, values, {**base.places, **document.places})


def _read(path: Path) -> Document:
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a directory, expected a YAML file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start + 1})") from None
    loader = _Loader(text)
    places: dict[Place, str] = {}
    try:
        node = loader.get_single_node()
        values = None if node is None else _build(loader, node, (), places, path)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{path}{line}: not YAML ({error.problem or error.context})") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}: not YAML ({first_line(error)})") from None
    except RecursionError:
        raise InputError(
            f"{path}: not YAML that can be read (nested too deep, or an alias of what it stands in)"
        ) from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping at the top level")
    return Document(str(path), values, places)


def _build(loader: _Loader, node: yaml.Node, at: Place, places: dict[Place, str], file: Path | str) -> Any:
    if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
        raise InputError(f"{file}:{node.start_mark.line + 1}: not YAML (the tag {node.tag} is not allowed)")
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, item, (*at, i), places, file) for i, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    loader.flatten_mapping(node)
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        place = f"{file}:{key_node.start_mark.line + 1}"
        key = loader.construct_object(key_node)
        if not isinstance(key, str):
            raise InputError(f"{place}: expected a word as key, got {key!r}")
        if key in values:
            raise InputError(f"{place}: the key {key!r} is written twice")
        places[(*at, key)] = place
        values[key] = _build(loader, value_node, (*at, key), places, file)
    return values


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        if value is None and key in base:
            del merged[key]
        elif isinstance(value, dict) and isinstance(base.get(key), dict):
            merged[key] = _merge(base[key], value)
        else:
            merged[key] = value
    return merged


def with_sets(cls: type[Model], name: str, values: dict[str, Any], sets: Sequence[str]) -> Model:
    """A command's configuration: these values, with `--set` assignments over them.

    name: of the command, for messages. Raises InputError for an unknown key or a wrong value.
    """
    document = Document(name, values)
    for assignment in sets:
        apply_set(document, assignment)
    return validate(cls, document.values, document.where)


def apply_set(
    document: Document, assignment: str, root: Place = (), known: Collection[str] = (), closed: bool = False
) -> None:
    """Apply one `--set a.b=c` in place; a number steps into a list.

    The path starts at the top where its first key is one of `known`, else at `root`, which takes no
    new keys when it is closed. Raises InputError when the path does not lead anywhere.
    """
    dotted, equals, text = assignment.partition("=")
    if not equals or not dotted.strip():
        raise InputError(f"--set {assignment}: expected key=value")
    parts = dotted.strip().split(".")
    target: Any = document.values
    at: Place = ()
    if parts[0] not in known:
        for key in root:
            target, at = target.get(key), (*at, key)
            if not isinstance(target, dict):
                raise InputError(f"{document.name}: expected a mapping {'.'.join(map(str, at))!r}")
        if closed and parts[0] not in target:
            raise InputError(
                f"--set {assignment}: nothing is called {parts[0]!r}{suggest(parts[0], [*target, *known])}"
            )
    for part in parts[:-1]:
        key = _index(target, part, assignment) if isinstance(target, list) else part
        target = target[key] if isinstance(target, list) else target.setdefault(key, {})
        at = (*at, key)
        if not isinstance(target, dict | list):
            raise InputError(f"--set {assignment}: {'.'.join(map(str, at))} is {target!r}, not a mapping")
    last = _index(target, parts[-1], assignment) if isinstance(target, list) else parts[-1]
    target[last] = parse_value(text)
    document.places[(*at, last)] = f"--set {assignment}"


def _index(target: list, part: str, assignment: str) -> int:
    if not part.isdigit() or int(part) >= len(target):
        raise InputError(f"--set {assignment}: expected a list index below {len(target)}, got {part!r}")
    return int(part)


def expand_vars(document: Document) -> None:
    """Put the values of the top-level mapping `vars` in place of `${name}` in every other text, in place.

    Raises InputError for a name that `vars` does not have.
    """
    variables = document.values.get("vars") or {}

    def expand(value: Any, at: Place) -> Any:
        if isinstance(value, dict):
            return {key: expand(item, (*at, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [expand(item, (*at, i)) for i, item in enumerate(value)]
        if not isinstance(value, str):
            return value

        def fill(match: re.Match[str]) -> str:
            if not isinstance(variables, dict) or match[1] not in variables:
                raise InputError(f"{document.where(at)}: unknown variable {match[0]!r}{suggest(match[1], variables)}")
            return str(variables[match[1]])

        return re.sub(r"\$\{(\w+)\}", fill, value)

    document.values = {key: value if key == "vars" else expand(value, (key,)) for key, value in document.values.items()}
