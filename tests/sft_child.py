"""A training run in a process of its own that can be told where to die. Not a test; test_loop.py starts it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fathom.train.checkpoint
import fathom.train.loop
import fathom.train.state
from fathom.ledger import Meter
from fathom.train.sft import SftConfig, run_sft

PLACES = {
    "step": (fathom.train.loop, "optimizer_step"),
    "save": (fathom.train.state, "save_file"),
    "sync": (fathom.train.checkpoint, "sync"),
    "rename": (os, "rename"),
    "prune": (shutil, "rmtree"),
}
"""Functions that a run passes through, by a short name."""


def run(work: Path, settings: dict[str, Any], blow: tuple[str, int, str, int] | None = None) -> None:
    """Run the SFT stage in `work` (model, examples.jsonl, scratch); out is made anew.

    blow: (place, n, "before" or "after", signal): at the n-th call of the place this process
    sends itself the signal.
    """
    torch.set_num_threads(1)
    if blow is not None:
        place, count, when, number = blow
        owner, name = PLACES[place]
        setattr(owner, name, _blow_at(getattr(owner, name), count, when, number))
    out = work / "out"
    if out.exists():
        for path in out.iterdir():
            path.unlink()
    out.mkdir(exist_ok=True)
    config = SftConfig(model="base", examples="rows", **settings)
    run_sft(
        {"model": work / "model", "examples": work / "examples.jsonl"}, config, out, Meter.null(work / "scratch", 7)
    )


def _blow_at(function: Callable, count: int, when: str, number: int) -> Callable:
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and when == "before":
            os.kill(os.getpid(), number)
        result = function(*args, **kwargs)
        if calls == count and when == "after":
            os.kill(os.getpid(), number)
        return result

    return wrapped


def write_work(work: Path, rows: int = 24) -> None:
    """A model, some rows and an empty scratch directory."""
    from models import write_model

    from fathom.records import Example, Message, write_jsonl

    work.mkdir(parents=True)
    (work / "scratch").mkdir()
    write_model(work / "model", dtype=torch.bfloat16, tie_word_embeddings=True)
    write_jsonl(
        work / "examples.jsonl",
        [
            Example(
                id=f"e{i}",
                problem_id=f"p{i}",
                messages=[
                    Message("user", f"{i}+{i * i}?"),
                    Message("assistant", f"\n\\boxed{{{i + i * i}}}", reasoning="so " * (i % 7)),
                ],
                difficulty=float(i % 4),
            )
            for i in range(rows)
        ],
    )
