"""What an installation gets: extras, pins, the console script, package data, and a README that lists what is there."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fathom import doctor

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
YARDSTICKS = {"trl", "accelerate"}
"""Packages that tests and benchmarks compare with; the package itself must not need them."""


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    named = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in named}


def shipped() -> list[Path]:
    """Everything under fathom/ that an installed package must hold."""
    return [p for p in (ROOT / "fathom").rglob("*") if p.is_file() and "__pycache__" not in p.parts]


def test_the_extras_are_those_that_the_documents_name() -> None:
    assert sorted(EXTRAS) == ["attention", "dev", "gguf", "gpu", "ray", "track", "ui", "vllm"]


@pytest.mark.parametrize("line", [*PROJECT["dependencies"], *EXTRAS["dev"]])
def test_every_development_dependency_is_pinned_to_a_version_that_the_project_allows(line: str) -> None:
    requirement = Requirement(line)
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_the_doctor_knows_every_extra() -> None:
    declared = {name: {Requirement(line).name for line in lines} for name, lines in EXTRAS.items() if name != "dev"}
    assert {name: set(packages) for name, packages in doctor.EXTRAS.items()} == declared


def test_heavy_packages_are_extras_only() -> None:
    core = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    heavy = {canonicalize_name(Requirement(line).name) for name in EXTRAS for line in EXTRAS[name]}
    assert not core & heavy


def imported(path: Path) -> set[str]:
    """Top-level names of the packages that a module imports anywhere."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {
        node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module and not node.level
    }
    return {name.split(".")[0] for name in names}


def test_every_import_of_the_package_is_declared() -> None:
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    optional = {canonicalize_name(Requirement(line).name) for name in EXTRAS if name != "dev" for line in EXTRAS[name]}
    known = {name.replace("-", "_") for name in declared | optional} | {
        "yaml",
        "markupsafe",
        "flash_attn",
        "cuda",
        "fathom",
    }
    for module in (path for path in shipped() if path.suffix == ".py"):
        foreign = {name for name in imported(module) if name not in sys.stdlib_module_names}
        assert foreign <= known, f"{module.relative_to(ROOT)} imports {foreign - known}"
        assert not foreign & YARDSTICKS


def test_the_console_script_names_a_function() -> None:
    module, _, function = PROJECT["scripts"]["fathom"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_a_built_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(build, check=True, capture_output=True, text=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {p.relative_to(ROOT).as_posix() for p in shipped()} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_demo_of_the_makefile_runs_a_recipe_that_exists() -> None:
    planned = subprocess.run(["make", "-n", "demo"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    (recipe,) = re.findall(r"fathom run (\S+)", planned)
    assert (ROOT / recipe).is_file()


def test_continuous_integration_runs_the_tests() -> None:
    entry = ROOT / ".ci/run"
    assert os.access(entry, os.X_OK)
    assert "make test" in entry.read_text(encoding="utf-8")
