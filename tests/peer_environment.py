"""An environment of verl's and LLaMA-Factory's own loaders, beside the one that the tests run in. Not a test.

Both ask for versions that this project doesn't use, so they live apart: pinned packages of theirs, with torch
(and whatever is not pinned) borrowed from the running interpreter. LLaMA-Factory imports torchaudio for audio
rows; an empty module stands in its place, since the rows of an export are text.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

ALONE = ["verl==0.9.1", "llamafactory==0.9.5"]
"""Without what they ask for: most of it is for GPUs, servers and web pages."""
NEEDS = [
    "transformers>=5.5.3,<5.6",
    "datasets==4.0.0",
    "ray==2.60.0",
    "tensordict==0.10.0",
    "peft==0.18.1",
    "codetiming",
    "hydra-core",
    "pandas",
    "pillow",
]


def build(folder: Path) -> Path:
    """Make the environment in `folder` (a minute, from the package index); returns its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (site / "torchaudio.py").write_text("")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", *ALONE], check=True)
    subprocess.run([*pip, *NEEDS], check=True)
    return python


def run(python: Path, script: str, *arguments: str | Path) -> dict[str, Any]:
    """The JSON that a script beside this file prints last, run offline in the environment."""
    settings = {"HF_HUB_OFFLINE": "1", "DISABLE_VERSION_CHECK": "1", "OMP_NUM_THREADS": "1"}
    command = [str(part) for part in (python, Path(__file__).with_name(script), *arguments)]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
