"""Several processes train as one: same losses, same weights, kills and resumes, another number of processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sft_child import write_work
from two_processes import together

from fathom.errors import InputError
from fathom.ledger import Meter
from fathom.recipe.ranks import _held, _RankEvents
from fathom.train.checkpoint import Checkpoints
from fathom.train.config import SftConfig
from fathom.train.parallel import joined
from fathom.train.sft import run_sft

ROOT = Path(__file__).parents[1]
SETTINGS = {"order": "curriculum", "epochs": 3, "learning_rate": 3e-3, "batch_size": 4, "pack_tokens": 100}
RECIPE = """
recipe: pair
models: {{base: {model}}}
hardware: {{device: cpu, count: {count}}}
stages:
  rows: {{op: given, path: {rows}}}
  tuned: {{op: sft, model: base, examples: rows, {settings}, checkpoint_every: {every}}}
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    write_work(work := tmp_path_factory.mktemp("pair") / "work", rows=20)
    (work / "rows").mkdir()
    shutil.move(work / "examples.jsonl", work / "rows" / "examples.jsonl")
    return work


def recipe(work: Path, count: int, every: int = 4) -> Path:
    path = work / f"pair-{count}-{every}.yaml"
    settings = ", ".join(f"{key}: {value}" for key, value in SETTINGS.items())
    paths = {"model": work / "model", "rows": work / "rows"}
    path.write_text(RECIPE.format(**paths, settings=settings, count=count, every=every))
    return path


def start(path: Path, out: Path) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fathom", "run", str(path), "--out", str(out)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(path: Path, out: Path) -> str:
    process = start(path, out)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    return text


def losses(out: Path) -> list[float]:
    log = out / "artifacts/tuned/train_log.jsonl"
    return [json.loads(line)["loss"] for line in log.read_text().splitlines()]


@pytest.fixture(scope="module")
def pair(work, tmp_path_factory):
    """Two processes, undisturbed."""
    out = tmp_path_factory.mktemp("two")
    finish(recipe(work, 2), out)
    return out


def train(rank: int, work: Path, run: Path, **more: int) -> None:
    """The stage by hand, in this process, which may be one of a world."""
    out = run / "artifacts/tuned"
    out.mkdir(parents=True, exist_ok=True)
    config = SftConfig(model="base", examples="rows", **SETTINGS, **more)
    inputs = {"model": work / "model", "examples": work / "rows/examples.jsonl"}
    run_sft(inputs, config, out, Meter.null(run / "scratch"))


@pytest.fixture(scope="module")
def alone(work, tmp_path_factory):
    """One process: this one."""
    run = tmp_path_factory.mktemp("one")
    train(0, work, run)
    return run


def test_two_processes_train_as_one(pair, alone):
    assert losses(pair) == pytest.approx(losses(alone), abs=2e-5)
    assert weights(alone).keys() == weights(pair).keys()
    for name, weight in weights(alone).items():
        torch.testing.assert_close(weights(pair)[name].float(), weight.float(), atol=2e-2, rtol=2e-2)


def shared(rank: int, work: Path, run: Path) -> None:
    train(rank, work, run, context=2)


def test_two_processes_that_share_every_pack_train_as_one(work, alone, tmp_path):
    """Context parallelism: each process holds half of the tokens of a pack, across the borders of its documents."""
    together(shared, work, tmp_path)
    assert losses(tmp_path) == pytest.approx(losses(alone), abs=2e-5)
    for name, weight in weights(alone).items():
        torch.testing.assert_close(weights(tmp_path)[name].float(), weight.float(), atol=2e-2, rtol=2e-2)


def test_processes_must_divide_among_the_packs_that_they_share(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = "context: 3 processes to a pack, and hardware.count is 2"
    with pytest.raises(InputError, match=told), joined(sharing=3):
        pass


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "artifacts/tuned/model.safetensors")


def checkpoints(out: Path) -> Path | None:
    return next(iter(out.glob("scratch/tuned/*/ckpt")), None)


def ranks(out: Path) -> list[int]:
    """Pids of the training processes of this run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if (
            b"fathom.recipe.ranks" in line
            and b"torch.distributed.run" not in line
            and str(out).encode() in b" ".join(line)
        ):
            found.append(int(path.parent.name))
    return found


def wait_for(condition, process: subprocess.Popen, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.005)


def being_written(out: Path) -> bool:
    """Whether a checkpoint is half written beside a whole one."""
    place = checkpoints(out)
    names = [path.name for path in place.iterdir()] if place and place.is_dir() else []
    return any(name.endswith(".tmp") for name in names) and any(not name.endswith(".tmp") for name in names)


@pytest.fixture(scope="module")
def killed(work, tmp_path_factory):
    """A run of two processes, killed whole in the middle of a checkpoint, then by the death of one of the two."""
    path, out = recipe(work, 2, every=1), tmp_path_factory.mktemp("killed") / "run"
    process = start(path, out)
    wait_for(lambda: being_written(out), process)
    process.kill()
    process.communicate()
    end = time.monotonic() + 20
    while ranks(out):
        assert time.monotonic() < end, "training processes outlive their run"
        time.sleep(0.05)

    process = start(path, out)
    wait_for(lambda: ranks(out) and checkpoints(out) and len(Checkpoints(checkpoints(out)).steps()) == 2, process)
    os.kill(ranks(out)[-1], signal.SIGKILL)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "one of its 2 processes died; the same command resumes" in text
    return out


def copied(run: Path, to: Path) -> Path:
    """Another run in the same state, but for the pipe on which its processes spoke."""
    return Path(shutil.copytree(run, to, ignore=shutil.ignore_patterns("events")))


def test_kills_anywhere_and_the_same_command_end_in_the_same_bytes(work, pair, killed, tmp_path):
    out = copied(killed, tmp_path / "run")
    assert "the last attempt was killed" not in finish(recipe(work, 2, every=1), out)
    assert losses(out) == losses(pair)
    for name, weight in weights(pair).items():
        assert torch.equal(weights(out)[name], weight), name


def test_a_damaged_shard_is_named_and_one_process_goes_on_from_the_one_before(work, pair, killed, tmp_path):
    """Two processes began, one ends it: what it reads are the shards of both."""
    out = copied(killed, tmp_path / "run")
    newest, before = Checkpoints(checkpoints(out)).steps()[:2]
    shard = max((checkpoints(out) / f"step-{newest}").glob("*.safetensors"))
    body = bytearray(shard.read_bytes())
    body[-1] ^= 1
    shard.write_bytes(body)

    finish(recipe(work, 1, every=1), out)
    said = (out / "logs/tuned.log").read_text()
    assert f"{shard}: damaged, so checkpoint step-{newest} is not used" in said
    assert losses(out) == pytest.approx(losses(pair), abs=2e-5)
    resumed = [json.loads(line)["step"] for line in said[said.index("damaged") :].splitlines() if line.startswith("{")]
    assert resumed[0] == before + 1


HOLDS = """
import pathlib, sys
from fathom.recipe.ranks import _held
with _held(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "ended"])
def test_a_bug_is_told_unless_a_sibling_died(killed, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    mine, other = tmp_path / "alive-0", tmp_path / "alive-1"
    read, write = os.pipe()

    def told() -> list[str]:
        """What is told of a bug now."""
        _RankEvents(write, mine).send(error={"kind": "bug", "message": "reset by peer"})
        _RankEvents(write, mine).send(progress=[1, 2, ""])
        return [next(iter(json.loads(line))) for line in os.read(read, 1 << 16).splitlines()]

    with _held(mine):
        assert told() == ["error", "progress"]
        sibling = subprocess.Popen(
            [sys.executable, "-c", HOLDS, str(other)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
        )
        assert sibling.stdout.readline() == b"held\n"
        assert told() == ["error", "progress"]
        if killed:
            sibling.kill()
        sibling.communicate()
        assert told() == (["progress"] if killed else ["error", "progress"])
    assert not mine.exists() and other.exists() == killed


def test_too_many_processes_for_the_gpus_is_one_clear_line(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=r"hardware.count: 4 processes, but this machine has 2 GPUs"), joined():
        pass
