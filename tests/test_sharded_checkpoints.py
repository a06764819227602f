"""Checkpoints of two processes: when they are whole, what uneven shards need, and a disk that is full."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
from models import write_model
from safetensors.torch import load_file
from sft_child import write_work
from torch.distributed.checkpoint import CheckpointException
from two_processes import together

import fathom.train.loop
from fathom.errors import InputError, WorkError
from fathom.ledger import Meter
from fathom.train.checkpoint import Checkpoints
from fathom.train.config import SftConfig
from fathom.train.sft import run_sft
from fathom.train.state import raise_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gloo over loopback is tried on Linux only")

SETTINGS = {"order": "curriculum", "epochs": 3, "learning_rate": 3e-3, "batch_size": 4, "pack_tokens": 100}


def train(rank: int, work: str, **more: object) -> None:
    out = Path(work) / "out"
    out.mkdir(exist_ok=True)
    config = SftConfig.model_validate({"model": "base", "examples": "rows", **SETTINGS, **more})
    inputs = {"model": Path(work) / "model", "examples": Path(work) / "examples.jsonl"}
    run_sft(inputs, config, out, Meter.null(Path(work) / "scratch"))


def stopped_by_a_loss(rank: int, work: str) -> None:
    """The seventh loss is not a number, two steps after the last checkpoint was begun."""
    real = fathom.train.loop.optimizer_step

    def step(forward, method, taken, optimizer, config, index, world=None):
        row = real(forward, method, taken, optimizer, config, index, world)
        return {**row, "loss": math.nan} if index == 6 else row

    fathom.train.loop.optimizer_step = step
    with pytest.raises(WorkError, match=r"step 7: loss nan.*the last good checkpoint is step-4"):
        train(rank, work, checkpoint_every=4)


def test_a_checkpoint_is_whole_before_the_next_one_is_begun(tmp_path):
    write_work(work := tmp_path / "work", rows=20)
    together(stopped_by_a_loss, str(work))
    assert Checkpoints(work / "scratch/ckpt").newest().name == "step-4"


def trained_in_eight_bits(rank: int, work: str) -> None:
    train(rank, work, checkpoint_every=4, precision="bfloat16", optimizer={"states": "int8", "master": "split"})


def test_shards_of_unequal_size_are_written_and_read_back(tmp_path):
    """A vocabulary of an odd number of rows, in blocks of 256 values: each process has other scales."""
    write_work(work := tmp_path / "work", rows=20)
    shutil.rmtree(work / "model")
    write_model(work / "model", hidden_size=128)
    rows = load_file(work / "model/model.safetensors")["model.embed_tokens.weight"].shape[0]
    assert rows % 2, "or nothing is uneven"
    together(trained_in_eight_bits, str(work))
    once = (work / "out/model.safetensors").read_bytes(), losses(work)
    newest = Checkpoints(work / "scratch/ckpt").newest()
    shutil.rmtree(newest)
    shutil.rmtree(work / "out")
    together(trained_in_eight_bits, str(work))
    assert (work / "out/model.safetensors").read_bytes() == once[0] and losses(work) == once[1]


def losses(work: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (work / "out/train_log.jsonl").read_text().splitlines()]


def test_what_kept_shards_from_being_written_is_one_line(tmp_path):
    full = OSError(28, "No space left on device")
    with pytest.raises(InputError, match="step-4: disk full"):
        raise_for(CheckpointException("save", {1: (full, None)}), tmp_path / "step-4")
    with pytest.raises(WorkError, match=r"step-4: the checkpoint was not written \(odd\)"):
        raise_for(CheckpointException("save", {0: (ValueError("odd\nand long"), None)}), tmp_path / "step-4")
