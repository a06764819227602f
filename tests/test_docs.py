"""The worked examples of docs/ are what the commands print today, and its stages are such as recipes have."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fathom.cli import main
from fathom.stages import OPS

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(name: str) -> list[str]:
    return BLOCK.findall((DOCS / name).read_text(encoding="utf-8"))


EXAMPLES = [
    block for name in ("statistics.md", "grading.md") for block in blocks(name) if block.startswith("$ fathom ")
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.partition("\n")[0])
def test_a_worked_example(example, tmp_path, monkeypatch, capsys):
    command, _, expected = example.partition("\n")
    (tmp_path / "answers.jsonl").write_text(next(b for b in blocks("grading.md") if b.startswith('{"gold"')))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", shlex.split(command.removeprefix("$ ")))
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 0
    assert capsys.readouterr().out == expected


def test_there_are_worked_examples():
    assert len(EXAMPLES) == 4


def test_the_table_of_detectable_differences_is_what_its_command_prints():
    (command,) = (block for block in blocks("statistics.md") if block.startswith("python -c "))
    _, _, program = shlex.split(command)
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    text = (DOCS / "statistics.md").read_text(encoding="utf-8").partition(command)[2]
    table = re.findall(r"^\| (\d+) \| ([\d. |]+) \|$", text, re.MULTILINE)[:3]
    assert [[n, *row.split(" | ")] for n, row in table] == [
        re.findall(r"[\d.]+", line) for line in printed.splitlines()
    ]


def stages_shown() -> Iterator[Any]:
    """The stages in the documents' YAML, but for those that leave something out (`...`)."""
    for page in (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))):
        for block in re.findall(r"^```yaml\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            stages = {} if "..." in block else yaml.safe_load(block)
            for name, stage in stages.items():
                if "op" in stage:
                    yield pytest.param(stage, id=f"{page.name}:{name}")


@pytest.mark.parametrize("stage", list(stages_shown()))
def test_a_stage_in_the_docs_is_one_that_a_recipe_may_have(stage):
    body = {key: value for key, value in stage.items() if key != "op"}
    OPS[stage["op"]].config_class().model_validate(body)


def test_scripts_that_the_docs_name_are_there():
    named = {
        s
        for page in DOCS.glob("*.md")
        for s in re.findall(r"python ((?:benchmarks|scripts)/\w+\.py)", page.read_text())
    }
    assert "benchmarks/coverage.py" in named
    assert [script for script in named if not (DOCS.parent / script).is_file()] == []
