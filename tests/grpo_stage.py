"""The GRPO stage on a tiny random model, and how a run of it is killed. Not a test; the tests of the stage import it.

python tests/grpo_stage.py WORK PLACE COUNT SETTINGS    a run in a process of its own that kills itself at a place
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from models import write_model

import fathom.train.grpo
import fathom.train.loop
from fathom.engines import TransformersConfig
from fathom.engines.hf import TransformersEngine
from fathom.ledger import Meter
from fathom.records import Problem, Verdict, write_jsonl
from fathom.train.config import GrpoConfig
from fathom.train.groups import Drawing
from fathom.train.grpo import Grpo, run_grpo

SETTINGS = {
    "model": "base",
    "problems": "problems",
    "batches": 3,
    "groups": 4,
    "samples": 4,
    "updates": 2,
    "max_tokens": 12,
    "learning_rate": 1e-3,
    "pack_tokens": 250,
    "chunk": 2,
    "checkpoint_every": 3,
    "watchdogs": {"held_out": 4, "held_out_samples": 2, "held_out_every": 2, "fooled": 1.0},
}


def parity(problem: Problem, text: str, truncated: bool = False) -> Verdict:
    """A grader that a random model satisfies half of the time (and that other problems' answers satisfy as often)."""
    value = hashlib.sha256(f"{problem.gold}/{text}".encode()).digest()[0]
    return Verdict(answer=text, correct=value % 2 == 0, grader="parity/1")


def write_inputs(root: Path) -> dict[str, Path]:
    root.mkdir(parents=True, exist_ok=True)
    write_jsonl(root / "problems.jsonl", [Problem(f"p{i}", f"{i}+{i}?", str(2 * i)) for i in range(14)])
    return {"model": write_model(root / "model"), "problems": root}


def grpo(
    inputs: dict[str, Path], work: Path, grade: Callable = parity, meter: type[Meter] = Meter, **settings: Any
) -> dict[str, Any]:
    (work / "out").mkdir(parents=True, exist_ok=True)
    config = GrpoConfig(**{**SETTINGS, **settings})
    return run_grpo(inputs, config, work / "out", meter.null(work / "scratch", 3), grade)


def open_method(inputs: dict[str, Path], scratch: Path, grade: Callable = parity, **settings: Any) -> Grpo:
    config = GrpoConfig(**{**SETTINGS, **settings})
    problems, held_out = fathom.train.grpo.read_course(inputs["problems"] / "problems.jsonl", config, 3)
    engine = TransformersEngine(inputs["model"], TransformersConfig(device="cpu"), logprobs=True)
    drawing = Drawing(config, problems, held_out, engine, grade, Meter.null(scratch, 3))
    return fathom.train.grpo.open_method(inputs["model"], drawing, torch.device("cpu"))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


class Stale(TransformersEngine):
    """Takes over no weights after the first. honest: and says so."""

    honest = True

    def push(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        if version == 0:
            super().push(weights, version)
        elif not self.honest:
            self.version = version


class LyingStale(Stale):
    honest = False


class Killed(BaseException):
    """As a kill would, nothing catches it."""


def bomb(function: Callable, count: int, blow: Callable[[], None] | None = None) -> Callable:
    """The function, whose `count`-th call kills."""
    calls = []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == count:
            if blow:
                blow()
            raise Killed
        return function(*args, **kwargs)

    return wrapped


def kill_at(
    place: str, count: int, blow: Callable[[], None] | None = None, put: Callable[..., None] = setattr
) -> Callable:
    """Lay a bomb: the count-th call of "grade", "write" (of a batch) or (optimizer) "step" kills. Returns the grader to run with."""
    if place == "grade":
        return bomb(parity, count, blow)
    places = {"write": (fathom.train.grpo, "write_batch"), "step": (fathom.train.loop, "optimizer_step")}
    module, name = places[place]
    put(module, name, bomb(getattr(module, name), count, blow))
    return parity


def main(work: Path, place: str, count: int, settings: dict[str, Any]) -> None:
    """Run the stage in `work` (problems.jsonl, model); at the count-th call of the place this process sends itself SIGKILL."""
    torch.set_num_threads(1)

    def blow() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    grade = kill_at(place, count, blow)
    grpo({"model": work / "model", "problems": work}, work, grade, **settings)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4]))
