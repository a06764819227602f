"""Keeps README.md true: its tree comes from the files' own first lines, its results from recorded runs.

    python scripts/readme.py record NAME --command 'make proof' RUN...   runs -> benchmarks/results/NAME.json
    python scripts/readme.py write                                       rewrite what stands between the markers
    python scripts/readme.py check                                       exit 1 where `write` would change something

It never computes a figure: they are copied from `results.json` and the ledger of each run.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from fathom.report import facts, markdown, words
from fathom.report.read import Run, read_run

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FOLDERS = {
    "fathom": "the package",
    "recipes": "recipes, each a whole chain in one file",
    "scripts": "what makes the things that ship with the package",
    "benchmarks": "speed and agreement, each beside a peer in the same run",
    "docs": "how it works, for those who want to know",
}
"""The folders of the tree with what each is; tests mirror the package and need no line each."""

LISTED = {".py", ".yaml", ".md", ".txt"}
SKIPPED = {"__pycache__", "results"}


# ------------------------------------------------------------------------------ recording


def record(name: str, command: str, directories: Sequence[Path]) -> Path:
    """Copy what finished runs measured and cost into benchmarks/results/NAME.json; returns its path."""
    runs = [read_run(directory) for directory in directories]
    content = {
        "command": command,
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "gpu": _gpu(), "system": platform.system()},
        "versions": dict(facts.versions(runs[0])),
        "runs": [_measured(run) for run in runs],
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _measured(run: Run) -> dict[str, Any]:
    bill = facts.total(run)
    return {
        "recipe": run.name,
        "seed": run.seed,
        "final": run.final,
        "usd": bill.usd,
        "unpriced": list(bill.unpriced),
        "seconds": round(bill.seconds, 1),
        "cpu_seconds": round(sum(stage.manifest.get("cpu_seconds", 0.0) for stage in run.stages), 1),
        "calls_usd": {line.stage: line.calls_usd for line in run.bill if line.calls_usd},
        "rows": list(run.rows),
    }


def _beside_gpu(machine: dict[str, Any]) -> str:
    return f" and one {machine['gpu']}" if machine.get("gpu") else ""


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


# ------------------------------------------------------------------------------ results


def _of_runs(content: Any) -> bool:
    """Whether a result was written by `record`; others have a form of their own."""
    runs = content.get("runs") if isinstance(content, dict) else None
    return isinstance(runs, list) and bool(runs) and "rows" in runs[0]


def results_section() -> str:
    """A table per recorded recipe and setting, with the command and the cost."""
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("*.json")]
    recorded = [content for content in contents if _of_runs(content)]
    recorded.sort(key=lambda content: content["runs"][0]["recipe"])
    return "\n\n".join(block for content in recorded for block in _recorded(content))


def _recorded(content: dict[str, Any]) -> Iterator[str]:
    runs = content["runs"]
    yield f"### {runs[0]['recipe']}"
    for setting in facts.by_setting(runs[0]["rows"]):
        yield f"**{setting.benchmark}**: {words.setting(setting)}."
        header = ["model", "pass@1", *(f"minus base, seed {run['seed']}" for run in runs)]
        header += [f"cons@{setting.samples}", "tokens", "of base"]
        tables = [facts.by_setting(run["rows"]).get(setting, []) for run in runs]
        models = [row["model"] for row in tables[0]]
        yield markdown.table(header, [_model_line(model, tables) for model in models])
    machine = content["machine"]
    yield (
        f"`{content['command']}`: {len(runs)} run{'s' if len(runs) > 1 else ''}, each "
        f"{words.dollars(fmean(run['usd'] for run in runs))}, {words.duration(fmean(run['seconds'] for run in runs))} "
        f"({fmean(run['cpu_seconds'] for run in runs):,.0f} CPU-seconds) on {machine['cores']} cores of {machine['cpu']}{_beside_gpu(machine)}. "
        "pass@1, cons@k and tokens are means over the seeds; differences are points of pass@1 with paired 95% intervals."
    )


def _model_line(model: str, tables: Sequence[Sequence[facts.Row]]) -> list[str]:
    rows = [next(row for row in table if row["model"] == model) for table in tables]
    paired = [row["vs_base"] for row in rows]
    ratios = [pair["tokens_ratio"] for pair in paired if pair]
    return [
        model,
        words.percent(fmean(row["pass1"] for row in rows)),
        *(
            f"{words.points(pair['pass1_diff'])} ({words.span(pair['ci'], True)})" if pair else words.NONE
            for pair in paired
        ),
        words.percent(fmean(row["cons"] for row in rows)),
        words.whole(fmean(row["tokens_mean"] for row in rows)),
        f"× {fmean(ratios):.2f}" if ratios else words.NONE,
    ]


# ------------------------------------------------------------------------------ tree


def tree_section() -> str:
    """Every file with the first sentence that it says of itself."""
    lines = []
    for folder, about in FOLDERS.items():
        if (ROOT / folder).is_dir():
            lines += [(f"{folder}/", about), *_entries(ROOT / folder, 1)]
    lines.append(("tests/", "they mirror the package; proofs and tables"))
    width = max(len(name) for name, _ in lines) + 2
    return "```\n" + "\n".join(f"{name:{width}}{about}".rstrip() for name, about in lines) + "\n```"


def _entries(folder: Path, depth: int) -> Iterator[tuple[str, str]]:
    indent = "  " * depth
    for path in sorted(folder.iterdir(), key=lambda p: (p.is_dir(), p.name)):
        if path.is_dir() and any(p.suffix in LISTED for p in path.rglob("*")) and path.name not in SKIPPED:
            yield f"{indent}{path.name}/", _first_sentence(path / "__init__.py") or _first_sentence(path / "README.md")
            yield from _entries(path, depth + 1)
        elif path.suffix in LISTED and path.name not in ("__init__.py", "README.md"):
            yield f"{indent}{path.name}", _first_sentence(path)


def _first_sentence(path: Path) -> str:
    """What a file says of itself: the start of its docstring, its leading comment or its title; "" where it says nothing."""
    if not path.is_file():
        return ""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".txt":
        return f"the template `{path.stem}`"
    if path.suffix == ".py":
        paragraph = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
    elif path.suffix == ".md":
        paragraph = next((line.lstrip("# ") for line in text.splitlines() if line.startswith("# ")), "")
    else:
        comment = itertools.takewhile(lambda line: line.startswith("#") and line != "#", text.splitlines())
        paragraph = " ".join(line.lstrip("# ") for line in comment)
    return " ".join(paragraph.split()).split(". ")[0].rstrip(".")


# ------------------------------------------------------------------------------ the file


def rewritten(text: str) -> str:
    """README with fresh sections between `<!-- NAME -->` and `<!-- /NAME -->`."""
    for name, section in (("tree", tree_section), ("results", results_section)):
        before, _, rest = text.partition(f"<!-- {name} -->")
        _, closing, after = rest.partition(f"<!-- /{name} -->")
        if not closing:
            raise SystemExit(f"README.md: no section between <!-- {name} --> and <!-- /{name} -->")
        text = f"{before}<!-- {name} -->\n{section()}\n{closing}{after}"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    recording = actions.add_parser("record", help="copy the figures of finished runs into benchmarks/results/")
    recording.add_argument("name")
    recording.add_argument("--command", required=True, help="what a reader types to repeat the runs")
    recording.add_argument("runs", nargs="+", type=Path)
    actions.add_parser("write", help="rewrite README.md")
    actions.add_parser("check", help="fail when README.md is not what `write` would make it")
    arguments = parser.parse_args()
    if arguments.action == "record":
        print(record(arguments.name, arguments.command, arguments.runs).relative_to(ROOT))
        return 0
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = rewritten(old)
    if arguments.action == "write":
        readme.write_text(new, encoding="utf-8")
    elif new != old:
        print("README.md is out of date: python scripts/readme.py write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
