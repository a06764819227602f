"""Strict configuration: what a recipe may say, and the one line that tells what it may not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, model_validator

from fathom.config import (
    FileInput,
    Input,
    ModelInput,
    Operational,
    StageConfig,
    file_inputs,
    key_values,
    map_inputs,
    stage_inputs,
    validate,
)
from fathom.document import apply_set, dump, load_document, parse_value
from fathom.errors import InputError


class Engine(StageConfig):
    kind: Literal["a", "b"] = "a"
    slots: Annotated[int, Operational] = 4


class Source(StageConfig):
    name: str = "local"
    path: FileInput | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Near(StageConfig):
    kind: Literal["near"]
    depth: int = 1


class Far(StageConfig):
    kind: Literal["far"]
    width: int = 1


class Config(StageConfig):
    problems: Input
    parts: list[Input] = Field([])
    named: dict[str, Input] = Field({})
    extra: Input | None = None
    model: ModelInput | None = None
    rate: float = 1e-5
    epochs: int = 1
    strict_order: bool = False
    bounds: tuple[int, int] = (1, 10)
    engine: Engine = Engine()
    sources: list[Source] = Field([])
    places: list[Annotated[Near | Far, Field(discriminator="kind")]] = Field([])
    workers: Annotated[int, Operational, Field(ge=1)] = 2


WRONG = [
    ({}, "needs the key 'problems'"),
    ({"problems": "p", "epcohs": 2}, "unknown key 'epcohs'; did you mean 'epochs'?"),
    ({"problems": "p", "engine": {"slot": 2}}, "unknown key 'engine.slot'; did you mean 'slots'?"),
    ({"problems": "p", "sources": [{"pth": "x"}]}, "unknown key 'sources.0.pth'; did you mean 'path'?"),
    ({"problems": "p", "epochs": "3"}, 'epochs: expected an integer, got "3"'),
    ({"problems": "p", "epochs": 3.0}, "epochs: expected an integer, got 3.0"),
    ({"problems": "p", "epochs": 1.5}, "epochs: expected a valid integer"),
    ({"problems": "p", "epochs": True}, "epochs: expected an integer, got true"),
    ({"problems": "p", "strict_order": "yes"}, 'strict_order: expected true or false, got "yes"'),
    ({"problems": "p", "rate": "1e-5"}, 'rate: expected a number, got "1e-5"'),
    ({"problems": 3}, "problems: expected a valid string, got 3"),
    ({"problems": "p", "engine": {"kind": "c"}}, "engine.kind: expected 'a' or 'b'"),
    ({"problems": "p", "bounds": [1]}, "bounds.1"),
    ({"problems": "p", "places": [{"kind": "far", "widht": 2}]}, "unknown key 'places.0.widht'; did you mean 'width'?"),
    ({"problems": "p", "places": [{"kind": "fur"}]}, "places.0"),
    ({"problems": "p", "workers": 0, "epochs": "x"}, "(and 1 more)"),
]


@pytest.mark.parametrize(("values", "expected"), WRONG, ids=[expected for _, expected in WRONG])
def test_wrong_value_is_one_line_that_names_the_key(values, expected):
    with pytest.raises(InputError) as caught:
        validate(Config, values, "r.yaml:3")
    assert expected in str(caught.value)
    assert str(caught.value).startswith("r.yaml:3: ")
    assert "\n" not in str(caught.value)


def test_right_values_pass_without_being_bent():
    config = validate(
        Config, {"problems": "p", "rate": 1, "bounds": [2, 3], "sources": ["aime25"], "parts": ["a", "b"]}
    )
    assert (config.rate, config.bounds, config.sources[0].name, config.parts) == (1.0, (2, 3), "aime25", ["a", "b"])


def test_edges_follow_from_the_types():
    config = Config(problems="p", parts=["a", "b"], named={"x": "c"}, model="base")
    assert stage_inputs(config) == [
        ("problems", "data", "p"),
        ("parts", "data", "a"),
        ("parts", "data", "b"),
        ("named", "data", "c"),
        ("model", "model", "base"),
    ]
    mapped = map_inputs(config, lambda kind, name: Path(kind) / name)
    assert mapped == {
        "problems": Path("data/p"),
        "parts": [Path("data/a"), Path("data/b")],
        "named": {"x": Path("data/c")},
        "extra": None,
        "model": Path("model/base"),
    }


def test_key_leaves_operational_fields_out_and_takes_files_by_content():
    def values(**changes):
        return key_values(Config(problems="p", **changes), lambda path: f"hash of {path}")

    assert values(workers=7, engine={"slots": 9}) == values()
    assert values(engine={"kind": "b"}) != values()
    with_file = values(sources=[{"path": "x.jsonl"}])
    assert with_file["sources"] == [{"name": "local", "path": "hash of x.jsonl"}]
    assert file_inputs(Config(problems="p", sources=[{"path": "x.jsonl"}])) == ["x.jsonl"]


SCALARS = [
    ("1e-5", 1e-5), ("1.0e-5", 1e-5), ("3", 3), ("1_000", 1000), ("-0.5", -0.5), ("no", "no"), ("on", "on"),
    ("true", True), ("null", None), ("2025-05-13", "2025-05-13"), ("0x10", "0x10"), ("[0.5, 1]", [0.5, 1]),
    ("{min: 0.2}", {"min": 0.2}), ("1:30", "1:30"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_scalars_mean_what_everyone_thinks(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_dump_and_load_agree(tmp_path):
    values = {"a": [text for text, _ in SCALARS], "b": [value for _, value in SCALARS], "c": {"d": "two\nlines"}}
    (tmp_path / "x.yaml").write_text(dump(values))
    assert load_document(tmp_path / "x.yaml").values == values


def test_extends_merges_deeply_and_null_deletes(tmp_path):
    (tmp_path / "base.yaml").write_text("a: 1\nb: {x: 1, y: 2, z: [1, 2]}\nc: 3\n")
    (tmp_path / "child.yaml").write_text("extends: base.yaml\nb: {y: null, z: [9]}\nc: null\nd: 4\n")
    assert load_document(tmp_path / "child.yaml").values == {"a": 1, "b": {"x": 1, "z": [9]}, "d": 4}


def test_places_follow_the_file_that_states_a_value(tmp_path):
    (tmp_path / "base.yaml").write_text("a: 1\nb:\n  x: 1\n")
    (tmp_path / "child.yaml").write_text("extends: base.yaml\nb:\n  y: 2\n")
    document = load_document(tmp_path / "child.yaml")
    assert document.where(("b", "x")) == f"{tmp_path / 'base.yaml'}:3"
    assert document.where(("b", "y", "deeper")) == f"{tmp_path / 'child.yaml'}:3"


BROKEN = [
    (b"a: 1\na: 2\n", ":2: the key 'a' is written twice"),
    (b"a: [1, 2\n", "not YAML"),
    (b"a: \xff\n", "not UTF-8 (byte 4)"),
    (b"- 1\n", "expected a mapping at the top level"),
    (b"1: 2\n", ":1: expected a word as key, got 1"),
    (b"extends: none.yaml\n", "none.yaml: no such file"),
    (b"extends: x.yaml\n", "extends itself"),
    (b"extends: 3\n", "extends: expected a path, got 3"),
    (b"a: !!python/object:os.system {}\n", "not YAML"),
    (b"a: " + b"9" * 5000, "not YAML (Exceeds the limit (4300 digits)"),
    (b"a: &a [*a]\n", "not YAML that can be read"),
    (b"a: " + b"[" * 3000, "not YAML that can be read"),
]


@pytest.mark.parametrize(("content", "expected"), BROKEN)
def test_broken_file_is_one_line(tmp_path, content, expected):
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_document(tmp_path / "x.yaml")
    assert expected in str(caught.value)
    assert "x.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file():
    with pytest.raises(InputError, match=r"nowhere\.yaml: no such file"):
        load_document(Path("nowhere.yaml"))


def test_set_steps_through_mappings_and_lists(tmp_path):
    (tmp_path / "x.yaml").write_text("seed: 0\nstages:\n  s: {rows: 1, parts: [a, {b: 1}]}\n")
    document = load_document(tmp_path / "x.yaml")
    for assignment in ("seed=3", "s.rows=5", "stages.s.parts.1.b=2", "s.new.deep=[1, 2]", "s.text=a=b"):
        apply_set(document, assignment, root=("stages",), known=("seed", "stages"))
    apply_set(document, "epochs=4", root=("stages", "s"), known=("seed", "stages"))
    expected = {"rows": 5, "parts": ["a", {"b": 2}], "new": {"deep": [1, 2]}, "text": "a=b", "epochs": 4}
    assert document.values == {"seed": 3, "stages": {"s": expected}}
    assert document.where(("stages", "s", "rows")) == "--set s.rows=5"


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("rows", "expected key=value"),
        ("=1", "expected key=value"),
        ("t.rows=1", "nothing is called 't'"),
        ("s.rows.x=1", "stages.s.rows is 1, not a mapping"),
        ("s.parts.7=1", "expected a list index below 2, got '7'"),
        ("s.rows=[1", "not a YAML value"),
        ("s.rows=" + "9" * 5000, "not a YAML value: '9999"),
        ("s.rows=&a [*a]", "not a YAML value: '&a [*a]'"),
        ("s.rows={a: 1, a: 2}", "the key 'a' is written twice"),
    ],
)
def test_wrong_set_is_one_line(tmp_path, assignment, expected):
    (tmp_path / "x.yaml").write_text("stages:\n  s: {rows: 1, parts: [a, b]}\n")
    with pytest.raises(InputError) as caught:
        apply_set(load_document(tmp_path / "x.yaml"), assignment, root=("stages",), known=("stages",), closed=True)
    assert expected in str(caught.value)
    assert str(caught.value).startswith("--set")
