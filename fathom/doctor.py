"""What this machine can run, and what keeps it from the rest. It looks; it installs and changes nothing.

GPUs are asked for through nvidia-smi, so that nothing as heavy as torch is imported.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import fathom
from fathom.graders.sandbox import doctor as examine_sandbox

CORE = ("torch", "transformers", "tokenizers", "safetensors", "datasets", "pyarrow", "sympy", "math-verify", "rensa")
EXTRAS = {
    "gpu": ("bitsandbytes", "peft", "triton"),
    "attention": ("flash-attn-4",),
    "vllm": ("vllm",),
    "ray": ("ray",),
    "track": ("mlflow", "tensorboard", "trackio", "wandb"),
    "ui": ("gradio",),
    "gguf": ("gguf",),
}
"""Packages by extra, as in pyproject.toml."""
NEEDED_MEMORY_GIB = 6
NEEDED_DISK_GIB = 2


@dataclass(frozen=True)
class Finding:
    """One line. ok None: neither good nor bad, just so."""

    name: str
    ok: bool | None
    detail: str


def examine() -> dict[str, Any]:
    """All findings as plain JSON: {"findings": [{name, ok, detail}], "can": [...]}."""
    findings = [*_machine(), *_packages(), *_gpus(), *_models()]
    findings += [Finding(*row) for row in examine_sandbox()]
    return {"findings": [asdict(finding) for finding in findings], "can": _abilities(findings)}


def describe(found: dict[str, Any]) -> str:
    """The findings for a person, then what can be run."""
    marks = {True: "ok  ", False: "no  ", None: "    "}
    width = max(len(finding["name"]) for finding in found["findings"])
    table = [f"{marks[f['ok']]}{f['name'].ljust(width)}  {f['detail']}" for f in found["findings"]]
    return "\n".join([*table, "", *found["can"]])


def _machine() -> list[Finding]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    disk = shutil.disk_usage(Path.cwd()).free / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        Finding(
            "fathom",
            None,
            f"{fathom.__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        ),
        Finding("cores", None, str(cores)),
        Finding("memory", memory >= NEEDED_MEMORY_GIB, f"{memory:.1f} GiB (the tiny recipe needs {NEEDED_MEMORY_GIB})"),
        Finding("disk", disk >= NEEDED_DISK_GIB, f"{disk:.1f} GiB free here (the tiny recipe needs {NEEDED_DISK_GIB})"),
    ]


def _packages() -> list[Finding]:
    missing = [name for name in CORE if _version(name) is None]
    versions = ", ".join(f"{name} {_version(name)}" for name in CORE if name not in missing)
    found = [Finding("packages", not missing, f"missing: {', '.join(missing)}" if missing else versions)]
    for extra, packages in EXTRAS.items():
        absent = [name for name in packages if _version(name) is None]
        detail = f"not installed: pip install 'fathom[{extra}]' ({', '.join(absent)})" if absent else "installed"
        found.append(Finding(f"extra {extra}", None if absent else True, detail))
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> list[Finding]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return [Finding("gpu", None, "none (nvidia-smi finds none)")]
    built_for_cpu = "+cpu" in (_version("torch") or "")
    found = [Finding(f"gpu {number}", not built_for_cpu, line.strip()) for number, line in enumerate(told.splitlines())]
    if built_for_cpu:
        found.append(Finding("gpu", False, "this torch is built for the CPU: install one with CUDA to use them"))
    return found


def _models() -> list[Finding]:
    shipped = resources.files("fathom") / "data"
    names = sorted(entry.name for entry in shipped.iterdir() if (entry / "config.json").is_file())
    return [
        Finding("embedded models", bool(names), ", ".join(f"embedded:{name}" for name in names) or "none is shipped")
    ]


def _abilities(findings: list[Finding]) -> list[str]:
    """What follows, in sentences."""
    ok = {finding.name: finding.ok for finding in findings}
    tiny = all(ok[name] for name in ("memory", "disk", "packages", "embedded models"))
    gpu = any(name.startswith("gpu ") and good for name, good in ok.items())
    sandbox = all(good for name, good in ok.items() if name.startswith("sandbox"))
    return [
        f"tiny recipes on this CPU: {'yes' if tiny else 'no'}",
        f"models of 14B and more: {'see `fathom plan RECIPE`' if gpu else 'no, that needs a GPU'}",
        f"grading of model-written programs: {'yes, isolated' if sandbox else 'no, see sandbox above'}",
    ]
