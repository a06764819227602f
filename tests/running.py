"""`fathom run` in a process of its own, and what it left. Not a test; the tests of whole recipes import it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REPO = Path(__file__).parents[1]
QUIET = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


def start(recipe: Path, out: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "fathom", "run", str(recipe), "--out", str(out), *more]
    environment = {**os.environ, **QUIET, "PYTHONPATH": str(REPO)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True)


def run(recipe: Path, out: Path, *more: str) -> str:
    process = start(recipe, out, *more)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return said


def hashes(out: Path, stages: Sequence[str] = ("*",)) -> dict[str, str]:
    """Of every file of the stages' artifacts (all of them by default) but the manifests, which tell times."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for stage in stages
        for path in sorted((out / "artifacts").glob(f"{stage}/**/*"))
        if path.is_file() and path.name != "manifest.json"
    }
