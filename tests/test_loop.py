"""The loop resumes exactly: killed anywhere, by real signals in real processes, it ends in the same bytes."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sft_child import run, write_work

import fathom.train.loop
from fathom.errors import BudgetStop, InputError, WorkError
from fathom.ledger import Meter
from fathom.train.checkpoint import Checkpoints, find_damage
from fathom.train.loop import LoopConfig, learning_rate, refuse_spike
from fathom.train.sft import SftConfig, run_sft
from fathom.train.state import require_space

# 2 iterations x 2 epochs x 4 steps, each of several packs; checkpoints at 3, 6, 9, 12, 15 and 16
SETTINGS = {
    "batch_size": 6,
    "epochs": 2,
    "iterations": 2,
    "learning_rate": 3e-3,
    "weight_decay": 0.1,
    "checkpoint_every": 3,
    "pack_tokens": 200,
}
STEPS = 16
processes = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module", autouse=True)
def preloaded():
    """Children are forked from a server that has imported torch once (it finds modules by PYTHONPATH)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        processes.set_forkserver_preload(["sft_child"])
        forkserver.ensure_running()
    yield


def run_process(work: Path, settings=SETTINGS, blow=None) -> int:
    """Exit code of a training process; minus the signal where one killed it."""
    child = processes.Process(target=run, args=(work, settings, blow))
    child.start()
    child.join(60)
    assert child.exitcode is not None
    return child.exitcode


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A finished run to compare with, and the untouched inputs to start others from."""
    fresh = tmp_path_factory.mktemp("loop") / "fresh"
    write_work(fresh)
    done = fresh.with_name("done")
    shutil.copytree(fresh, done)
    assert run_process(done) == 0
    return fresh, hashes(done / "out")


@pytest.fixture
def work(undisturbed, tmp_path):
    shutil.copytree(undisturbed[0], tmp_path / "work")
    return tmp_path / "work"


def log_steps(work: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (work / "out/train_log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("place", "count", "when"),
    [
        ("step", 1, "before"),
        ("step", 2, "after"),
        ("step", 9, "after"),  # the first step of the second iteration is next but one
        ("save", 3, "before"),  # the second checkpoint: nothing written
        ("save", 3, "after"),  # weights written, moments not
        ("sync", 8, "before"),  # files written, not all synced
        ("rename", 2, "before"),  # sealed, not yet in place
        ("rename", 2, "after"),
        ("prune", 1, "before"),  # new one verified, old one still there
        ("prune", 1, "after"),
        ("step", 16, "after"),  # last step done, last checkpoint not
    ],
)
def test_kill_and_resume_ends_in_the_same_bytes(undisturbed, work, place, count, when):
    assert run_process(work, blow=(place, count, when, signal.SIGKILL)) == -signal.SIGKILL
    assert run_process(work) == 0
    assert hashes(work / "out") == undisturbed[1]
    assert log_steps(work) == list(range(1, STEPS + 1))


def test_many_kills_in_one_run(undisturbed, work):
    for count in (2, 5, 4, 1, 6):
        assert run_process(work, blow=("step", count, "after", signal.SIGKILL)) == -signal.SIGKILL
    assert run_process(work) == 0
    assert hashes(work / "out") == undisturbed[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_polite_stop_checkpoints_at_once(undisturbed, work, number):
    assert run_process(work, blow=("step", 5, "before", number)) == 75
    assert Checkpoints(work / "scratch/ckpt").steps() == [5, 3]
    assert run_process(work) == 0
    assert hashes(work / "out") == undisturbed[1]


def test_bfloat16_resumes_from_its_float32_masters(work, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(work, other)
    settings = {**SETTINGS, "precision": "bfloat16"}
    assert run_process(work, settings, blow=("step", 8, "after", signal.SIGKILL)) == -signal.SIGKILL
    assert run_process(work, settings) == run_process(other, settings) == 0
    assert hashes(work / "out") == hashes(other / "out")


@pytest.mark.parametrize(("states", "master"), [("int8", "split"), ("int8", "stochastic"), ("float32", "split")])
def test_compact_storage_resumes_in_the_same_bytes(work, tmp_path, states, master):
    """Killed in the second iteration, after its moments were forgotten once."""
    other = tmp_path / "other"
    shutil.copytree(work, other)
    settings = {**SETTINGS, "precision": "bfloat16", "optimizer": {"states": states, "master": master}}
    assert run_process(work, settings, blow=("step", 11, "after", signal.SIGKILL)) == -signal.SIGKILL
    assert run_process(work, settings) == run_process(other, settings) == 0
    assert hashes(work / "out") == hashes(other / "out")
    losses = [json.loads(line)["loss"] for line in (work / "out/train_log.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.5


def test_a_finished_run_trains_no_step_again(undisturbed, work, monkeypatch):
    run(work, SETTINGS)
    monkeypatch.setattr(fathom.train.loop, "optimizer_step", lambda *args: pytest.fail("trained again"))
    run(work, SETTINGS)
    assert hashes(work / "out") == undisturbed[1]


def damage_flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "flip": damage_flip,
    "truncate": lambda path: path.write_bytes(path.read_bytes()[:-10]),
    "empty": lambda path: path.write_bytes(b""),
    "delete": lambda path: path.unlink(),
}


@pytest.fixture
def stopped(work):
    """A run that was stopped with the checkpoints step-6 and step-7."""
    assert run_process(work, blow=("step", 7, "before", signal.SIGTERM)) == 75
    assert Checkpoints(work / "scratch/ckpt").steps() == [7, 6]
    return work


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("weights.safetensors", "flip"),
        ("optimizer.safetensors", "truncate"),
        ("state.json", "empty"),
        ("weights.safetensors", "delete"),
        ("manifest.json", "truncate"),
        ("manifest.json", "delete"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(undisturbed, stopped, capsys, name, damage):
    path = stopped / "scratch/ckpt/step-7" / name
    DAMAGES[damage](path)
    run(stopped, SETTINGS)
    assert f"{path}: damaged" in capsys.readouterr().out
    assert hashes(stopped / "out") == undisturbed[1]
    assert Checkpoints(stopped / "scratch/ckpt").steps() == [16, 15]


def test_a_damaged_checkpoint_is_written_anew_where_the_run_passes_it(stopped):
    checkpoints = Checkpoints(stopped / "scratch/ckpt", say=lambda line: None)
    damage_flip(checkpoints.directory / "step-7/weights.safetensors")
    with pytest.raises(BudgetStop):
        run_sft(*trained_in(stopped), BudgetOf.null(stopped / "scratch", 7, left=1))
    assert checkpoints.steps() == [7, 6] and checkpoints.newest().name == "step-7"


def test_what_a_killed_run_began_to_write_goes(stopped):
    begun = Checkpoints(stopped / "scratch/ckpt").begin(11)
    with pytest.raises(BudgetStop):
        run_sft(*trained_in(stopped), BudgetOf.null(stopped / "scratch", 7, left=0))
    assert not begun.exists()


def test_when_no_checkpoint_verifies_training_stops(stopped):
    for step in (6, 7):
        damage_flip(stopped / f"scratch/ckpt/step-{step}/weights.safetensors")
    with pytest.raises(WorkError, match="no checkpoint verifies"):
        run(stopped, SETTINGS)


def test_a_checkpoint_of_another_run_is_refused_with_the_difference(stopped):
    with pytest.raises(InputError, match=r"config was .*0\.003.* and is .*0\.004"):
        run(stopped, {**SETTINGS, "learning_rate": 4e-3})
    run(stopped, {**SETTINGS, "pack_tokens": 300, "checkpoint_every": 50})


def test_a_full_disk_leaves_the_last_checkpoint_usable(undisturbed, stopped, monkeypatch):
    real, calls = fathom.train.state.save_file, []

    def full_at_second_checkpoint(tensors, path):
        calls.append(path)
        if len(calls) == 4:
            Path(path).write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(fathom.train.state, "save_file", full_at_second_checkpoint)
    with pytest.raises(InputError, match=r"step-12.*disk full"):
        run(stopped, SETTINGS)
    checkpoints = Checkpoints(stopped / "scratch/ckpt")
    assert checkpoints.steps() == [9, 7]
    assert [path.name for path in checkpoints.directory.iterdir() if path.suffix == ".tmp"] == []
    monkeypatch.setattr(fathom.train.state, "save_file", real)
    run(stopped, SETTINGS)
    assert hashes(stopped / "out") == undisturbed[1]


def test_no_room_for_checkpoints_is_said_before_the_first_step(work, monkeypatch):
    usage = shutil.disk_usage(work)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    monkeypatch.setattr(fathom.train.loop, "optimizer_step", lambda *args: pytest.fail("started anyway"))
    with pytest.raises(InputError, match=r"room for 3 more checkpoints is needed, .* bytes, and 1,000 are free"):
        run(work, SETTINGS)


class BudgetOf(Meter):
    """Allows so many checks, then stops."""

    left = 5

    @classmethod
    def null(cls, scratch: Path, seed: int, left: int = 5) -> BudgetOf:
        meter = super().null(scratch, seed)
        meter.left = left
        return meter

    def check(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise BudgetStop("the budget is spent")


def trained_in(work: Path) -> tuple[dict[str, Path], SftConfig, Path]:
    inputs = {"model": work / "model", "examples": work / "examples.jsonl"}
    return inputs, SftConfig(model="base", examples="rows", **SETTINGS), work


def test_a_budget_stop_checkpoints_first(undisturbed, work):
    with pytest.raises(BudgetStop):
        run_sft(*trained_in(work), BudgetOf.null(work / "scratch", 7))
    assert Checkpoints(work / "scratch/ckpt").steps() == [5, 3]
    run(work, SETTINGS)
    assert hashes(work / "out") == undisturbed[1]


def test_a_loss_that_is_not_finite_stops_without_touching_the_weights(work, monkeypatch):
    from fathom.train.sft import Sft

    real = Sft.loss
    steps = []

    def poisoned(self, logprobs, pack):
        steps.append(pack)
        return real(self, logprobs, pack) * (float("nan") if len(steps) > 12 else 1.0)

    monkeypatch.setattr(Sft, "loss", poisoned)
    with pytest.raises(WorkError, match=r"step \d+: loss nan.*last good checkpoint is step-\d+"):
        run(work, SETTINGS)
    checkpoints = Checkpoints(work / "scratch/ckpt")
    assert find_damage(checkpoints.newest()) is None


CONFIG = LoopConfig(learning_rate=1.0, warmup=0.2)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("cosine", [0.5, 1.0, 1.0, 0.9619, 0.8536, 0.6913, 0.5, 0.3087, 0.1464, 0.0381]),
    ],
)
def test_schedules_by_hand(schedule, expected):
    config = LoopConfig(learning_rate=1.0, warmup=0.2, schedule=schedule)
    assert [learning_rate(config, place, 10) for place in range(10)] == pytest.approx(expected, abs=1e-4)


def test_a_spike_stops_and_ordinary_noise_does_not(tmp_path):
    def log(last: float, history: int = 32) -> list[dict]:
        return [{"step": i, "loss": loss, "grad_norm": 1.0} for i, loss in enumerate([0.5] * history + [last])]

    refuse_spike(log(2.9), CONFIG, Checkpoints(tmp_path))
    refuse_spike(log(9.0, history=31), CONFIG, Checkpoints(tmp_path))
    with pytest.raises(WorkError, match="no checkpoint was saved"):
        refuse_spike(log(3.1), CONFIG, Checkpoints(tmp_path))
    refuse_spike(log(3.1), replace(CONFIG, spike=None), Checkpoints(tmp_path))


def test_room_is_asked_for_what_will_lie_there_at_once(work, monkeypatch):
    run(work, SETTINGS)
    optimizer = SimpleNamespace(saved_bytes=lambda: 100)
    checkpoints = Checkpoints(work / "scratch/ckpt")
    assert len(checkpoints.steps()) == 2
    usage = shutil.disk_usage(work)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=150))
    require_space(optimizer, checkpoints, to_come=5)
    shutil.rmtree(checkpoints.directory)
    require_space(optimizer, checkpoints, to_come=1)
    with pytest.raises(InputError, match="room for 2 more"):
        require_space(optimizer, checkpoints, to_come=2)


def test_each_iteration_starts_its_own_warm_up_and_moments(work):
    run(work, SETTINGS)
    rows = [json.loads(line) for line in (work / "out/train_log.jsonl").read_text().splitlines()]
    rates = [row["lr"] for row in rows]
    assert rates[:8] == rates[8:] and rates[0] > rates[7] > 0
    assert [row["epoch"] for row in rows] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    from safetensors.torch import load_file

    moments = load_file(work / "scratch/ckpt/step-16/optimizer.safetensors")
    assert {value.item() for key, value in moments.items() if key.endswith("/step")} == {8.0}
    assert torch.isfinite(moments["model.norm.weight/exp_avg"]).all()
