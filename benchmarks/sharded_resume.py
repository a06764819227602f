"""Does a sharded run go on from its checkpoint? Killed in the middle of a later one, started again, next losses compared.

    python benchmarks/sharded_resume.py [--model 32b|14b|tiny] [--layers 2] [--vocabulary N] [--quick] [--gpus 2] [--limit 300]

The training loop itself with the fused step and 8-bit AdamW, weights and state shared over the
processes, on a random model of few layers: four steps with a checkpoint at the second, a hard exit
while the one of the fourth is being written, and the same command again. `--quick`: 14b with a vocabulary of 16,384, whose
checkpoints are 3 GB. Prints and writes benchmarks/results/sharded_resume.json. `--model tiny` runs
on a CPU.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import command
from sft_workload import LEARNING_RATE, ROOT, SHAPES, random_model, tokens

from fathom.ledger import Meter
from fathom.tokens import EncodedExample
from fathom.train.batch import Pack, pack
from fathom.train.checkpoint import Checkpoints
from fathom.train.config import OptimizerConfig
from fathom.train.loop import LoopConfig, Step, train
from fathom.train.losses import weighted_nll
from fathom.train.parallel import joined, shard
from fathom.train.trunk import FusedStep

RESULT = ROOT / "benchmarks" / "results" / "sharded_resume.json"
STEPS, SAVED = 4, 2
DIED = 9
SILENCE = 45
"""Seconds after which every process of a life shows on stderr where it stands, and again after each as many."""


class Rows:
    """A method of the loop: in every step one pack of random words for each process. The run dies after STEPS steps."""

    steps = 1000

    def __init__(self, length: int, processes: int) -> None:
        self._length, self._processes = length, processes

    def step(self, index: int, places: int = 1) -> Step:
        if index == STEPS:
            os._exit(DIED)
        generator = np.random.default_rng(index)
        rows = [tokens(generator, self._length) for _ in range(self._processes)]
        packs = [pack([EncodedExample(str(i), row, [1.0] * len(row), 0)]) for i, row in enumerate(rows)]
        return Step(packs, sum(len(some.targets_N) for some in packs), 0)

    def loss(self, logprobs_N: torch.Tensor, some: Pack) -> torch.Tensor:
        return weighted_nll(logprobs_N, some.weights_N.to(logprobs_N.device))

    def likelihood_weights(self, some: Pack) -> torch.Tensor:
        return some.weights_N

    def cycle(self, index: int) -> tuple[int, int]:
        return index, self.steps


class Recorder:
    """Stands in for the loop's watch: writes the losses of this process's life after every step."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._losses: dict[int, float] = {}

    def step(self, row: dict[str, Any], lengths: list[int], steps: int) -> str:
        self._losses[row["step"]] = row["loss"]
        self._file.write_text(json.dumps(self._losses))
        return ""

    def close(self) -> None:
        pass


def live(options: argparse.Namespace) -> None:
    """One life of the run, in each process."""
    faulthandler.dump_traceback_later(SILENCE, repeat=True)
    with joined() as world:
        shape = SHAPES[options.model]
        shape = replace(shape, layers=options.layers, vocabulary=options.vocabulary or shape.vocabulary)
        model = random_model(shape, world.device.type, 0)
        shard(model, world, torch.bfloat16)
        config = LoopConfig(
            LEARNING_RATE,
            warmup=0,
            optimizer=OptimizerConfig(states="int8", master="stochastic"),
            checkpoint_every=SAVED,
        )
        length = 4096 if world.device.type == "cuda" else 64
        checkpoints = Checkpoints(options.scratch / "checkpoints")
        recorder = Recorder(options.scratch / f"{options.life}-{world.rank}.json")
        meter = Meter.null(options.scratch)
        method = Rows(length, world.size)
        train(model, method, config, checkpoints, meter, {}, recorder, world, FusedStep(model))


def start(life: str, options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """A life under torchrun; its losses by step."""
    started = time.time()
    log = scratch / f"{life}.log"
    run = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.gpus}", __file__]
    shape = ["--model", options.model, "--layers", str(options.layers), "--vocabulary", str(options.vocabulary)]
    told = [*shape, "--life", life, "--scratch", str(scratch)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with log.open("w") as stream:
        process = subprocess.Popen([sys.executable, *run, *told], env=os.environ | {"PYTHONPATH": path}, stderr=stream)
        try:
            process.wait(options.limit)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun ends its workers then
            process.wait()
    file = scratch / f"{life}-0.json"
    losses = json.loads(file.read_text()) if file.exists() else {}
    report: dict[str, Any] = {"losses": losses, "seconds": round(time.time() - started, 1)}
    if str(STEPS) not in losses:
        report["log"] = log.read_text()[-6000:]
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(SHAPES), default="32b")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=0, help="of the shape; fewer for smaller checkpoints")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--limit", type=float, default=300, help="seconds for each of the two lives")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--life", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.model, options.vocabulary = "14b", 16384
    if options.life:
        live(options)
        return
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        report: dict[str, Any] = {"command": command()}
        report["first"] = start("first", options, scratch)
        report["left_behind"] = sorted(path.name for path in (scratch / "checkpoints").glob("step-*"))
        report["resumed"] = start("resumed", options, scratch)
    first, resumed = report["first"]["losses"], report["resumed"]["losses"]
    common = sorted(set(first) & set(resumed), key=int)
    report["largest_difference"] = max((abs(first[step] - resumed[step]) for step in common), default=None)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
