"""Imports point down only, torch stays where it belongs, and the command line answers at once."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fathom"

LEVELS: list[set[str]] = [
    {"errors"},
    {"records"},
    {"config", "bill", "physics", "boxed", "votes"},
    {"document"},
    {"store", "prices", "tokens", "weights", "prompts", "calls"},
    {"ledger", "fanout", "loading"},
    {"chunks", "merge_config", "bands"},
    {"sources", "engines", "graders"},
    {"rollout", "annotate", "curate", "check_tests"},
    {"train", "evaluate", "serve", "report", "merge", "gguf"},
    {"recipe"},
    {"stages", "estimates", "plan_table", "publish"},
    {"estimates_generation"},
    {"estimates_training"},
    {"api"},
    {"commands", "doctor"},
    {"cli"},
    {"__main__"},
]
"""A unit (module or folder of fathom/) imports units of earlier lines only; units of one line are strangers."""

RECIPE_MAY_IMPORT = {"errors", "records", "config", "document", "store", "prices", "ledger", "recipe"}
"""The runner knows nothing of models or data."""

TORCH_MAY_BE_IN = ("train/", "engines/", "merge.py", "merge/", "tokens.py", "loading.py")

LEVEL = {unit: number for number, units in enumerate(LEVELS) for unit in units}
MODULES = sorted(PACKAGE.rglob("*.py"))


def unit(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imports(path: Path, top_level: bool = False) -> set[str]:
    """Dotted names that a module imports anywhere, lazily or for types only; relative ones resolved."""
    package = ".".join(path.relative_to(ROOT).with_suffix("").parts[:-1])
    found = set()
    tree = ast.parse(path.read_bytes())
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], *base.split(".")])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def fathom_units(path: Path) -> set[str]:
    names = {name.split(".")[1] for name in imports(path) if name.startswith("fathom.")}
    return {name for name in names if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    if path.parent == PACKAGE and path.name == "__init__.py":
        assert fathom_units(path) == set()
        return
    own = unit(path)
    assert own in LEVEL, f"{own} has no line in LEVELS: say where it belongs"
    for other in fathom_units(path) - {own}:
        assert LEVEL[other] < LEVEL[own], f"{own} imports {other}"
        assert own != "recipe" or other in RECIPE_MAY_IMPORT, f"recipe imports {other}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_torch_stays_where_it_belongs(path):
    heavy = {name for name in imports(path) if name.split(".")[0] in ("torch", "transformers")}
    if not str(path.relative_to(PACKAGE)).startswith(TORCH_MAY_BE_IN):
        assert heavy == set()


def test_no_circles():
    """Modules import each other without a circle (imports inside functions aside, which exist to load late)."""
    edges = {}
    for path in MODULES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        edges[name] = {other for other in _modules(imports(path, top_level=True)) if other != name}
    visiting: list[str] = []
    done: set[str] = set()

    def visit(name):
        assert name not in visiting, f"import cycle: {' -> '.join([*visiting[visiting.index(name) :], name])}"
        if name in done:
            return
        visiting.append(name)
        for other in sorted(edges.get(name, ())):
            visit(other)
        visiting.pop()
        done.add(name)

    for name in sorted(edges):
        visit(name)


def _modules(names: set[str]) -> set[str]:
    """The modules that dotted import names stand for (`fathom.store.finish` -> `fathom.store`)."""
    found = set()
    for name in names:
        while name.startswith("fathom."):
            path = ROOT.joinpath(*name.split("."))
            if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
                found.add(name)
                break
            name = name.rpartition(".")[0]
    return found


def run(code: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


REPORT_HEAVY = (
    "import sys; print([m for m in ('torch', 'transformers', 'datasets', 'sympy', 'numpy') if m in sys.modules])"
)


def test_help_imports_nothing_heavy():
    finished = run(
        f"import sys; sys.argv = ['fathom', '--help']\nfrom fathom.cli import app\napp(standalone_mode=False)\n{REPORT_HEAVY}"
    )
    assert finished.stdout.splitlines()[-1] == "[]", finished.stderr


def test_reading_a_recipe_needs_no_torch():
    """A finished recipe must say so within 3 s, so every configuration loads without torch."""
    load = "from fathom.stages import OPS\nimport sys\nfor name, op in OPS.items():\n    op.config_class()\n"
    finished = run(load + "    assert not {'torch', 'transformers'} & set(sys.modules), name")
    assert finished.returncode == 0, finished.stderr


def test_help_is_fast():
    """Under 0.3 s; CPU time, which is the wall-clock of an idle machine and does not lie on a busy one."""
    before = os.times()
    assert run("import sys; sys.argv = ['fathom', '--help']; from fathom.cli import main; main()").returncode == 0
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 0.3


PRIVATE = re.compile(r"(?<![\w.])/(work|opt/dev|home/\w+)/\w")


def test_no_path_of_a_developers_machine():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split(
        "\n"
    )
    for name in filter(None, listed):
        path = ROOT / name
        if path.is_file() and path.suffix in (".py", ".md", ".yaml", ".toml", ".txt", ".sh", ".ipynb", ""):
            found = PRIVATE.search(path.read_text(encoding="utf-8", errors="replace"))
            assert found is None, f"{name}: {found.group()}"
