"""How figures of a benchmark came to be: the command that was typed, and the versions of the packages that it ran.

It imports nothing heavy, so that a process that only starts others and gathers their reports stays small.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def command() -> str:
    """How this benchmark was started, without the place where its result went."""
    words = ["python", str(Path(sys.argv[0]).resolve().relative_to(ROOT)), *sys.argv[1:]]
    if "--out" in words:
        place = words.index("--out")
        del words[place : place + 2]
    return " ".join(words)


def versions(*packages: str) -> dict[str, str]:
    """By name of the package; "absent" where it is not installed."""
    return {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
