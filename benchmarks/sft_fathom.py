"""Fathom's side of `sft_gpu.py`: the fused step, the memory plan and the fused AdamW that a recipe gets.

On one GPU, or under torchrun on several: then weights, gradients and moments are shared by rows,
and the packs of a step are dealt out.
"""

from __future__ import annotations

import gc
import os
import time
from dataclasses import replace

import torch
import torch.distributed as dist
from sft_workload import BETAS, CLIP, LEARNING_RATE, Clock, Workload, random_model
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from fathom.physics import GIB, ModelShape
from fathom.tokens import EncodedExample
from fathom.train.batch import Pack, pack
from fathom.train.config import OptimizerConfig
from fathom.train.float8 import Float8Gemms
from fathom.train.layout import split_packs
from fathom.train.memory import Room, plan_memory
from fathom.train.optimizer import open_optimizer
from fathom.train.parallel import World
from fathom.train.trunk import FusedStep

STORAGE = OptimizerConfig(states="int8", master="stochastic")


class Stopwatch:
    """Device seconds of the block that it is entered for, the last time."""

    def __init__(self, device: str) -> None:
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device == "cuda" else None
        self._times = [0.0, 0.0]

    def __enter__(self) -> None:
        self._mark(0)

    def __exit__(self, *error: object) -> None:
        self._mark(1)

    def _mark(self, end: int) -> None:
        if self._events:
            self._events[end].record()
        self._times[end] = time.perf_counter()

    def lap(self) -> float:
        """Seconds of the last block; waits for the device."""
        if self._events is None:
            return round(self._times[1] - self._times[0], 5)
        torch.cuda.synchronize()
        return round(self._events[0].elapsed_time(self._events[1]) / 1000, 5)


class Side:
    """One model, its step and its optimizer, for one workload after the other."""

    def __init__(self, shape: ModelShape, device: str, seed: int, float8: bool, host_gib: float) -> None:
        self.shape, self.device, self.seed = shape, device, seed
        self.rank, self.gpus, mesh = join(device)
        free = torch.cuda.mem_get_info()[0] if device == "cuda" else 64 * GIB
        self.room = Room(free, host_gib * GIB)
        self.step = FusedStep(random_model(shape, device, seed, mesh), gemms=Float8Gemms() if float8 else None)
        self.optimizer = open_optimizer(self.step.model, STORAGE, BETAS, 0.0, seed)
        self.stopwatch = Stopwatch(device)

    def run(self, workload: Workload, clock: Clock, pack_tokens: int) -> None:
        """Train on a workload, after the ones before; figures go to the clock.

        Where the plan was too hopeful it is made again with less memory, and that is told.
        """
        steps = [packs_of(rows, pack_tokens, self.gpus) for rows in workload.rows(self.seed)]
        longest = max((some for packs in steps for some in packs), key=lambda some: len(some.ids_T))
        several = [some for packs in steps for some in packs if len(some.lengths) > 1]
        several.sort(key=lambda some: -len(some.ids_T))
        passes = -(-max(map(len, steps)) // self.gpus)
        for attempt in range(3):
            plan = plan_memory(self.shape, len(longest.ids_T), STORAGE, self.room, self.gpus, passes)
            self.step.plans = list(plan.per_layer)
            clock.extra = {"plan": plan.notes, "plan_peak_gib": round(plan.peak_bytes / GIB, 2)}
            clock.extra["packs"] = [len(packs) for packs in steps]
            clock.extra |= {"plans_that_ran_out": attempt} if attempt else {}
            try:
                self.warm_up([longest, *several[:1]])
                clock.start()
                for packs in steps:
                    clock.tick(self.take_step(packs))
                clock.extra["optimizer_seconds"] = self.stopwatch.lap()
                clock.save()
                return
            except torch.OutOfMemoryError:
                clock.seconds, clock.losses = [], []
                self.forget_pass()
                self.room = replace(self.room, device_bytes=self.room.device_bytes - 7 * GIB)
        raise MemoryError(f"{workload.name}: three plans ran out of memory")

    def warm_up(self, packs: list[Pack]) -> None:
        """Compiles all kernels, measures choices and pins host memory; weights stay as they are, moments start anew."""
        for some in packs:
            self.step.accumulate(some, torch.zeros_like(some.weights_N))
        self.optimizer.clip(CLIP)
        self.optimizer.step(0.0)
        self.optimizer.drop_gradients()
        self.optimizer.forget_moments()

    def forget_pass(self) -> None:
        self.optimizer.drop_gradients()
        gc.collect()
        torch.cuda.empty_cache()

    def take_step(self, packs: list[Pack]) -> float:
        """One optimizer step; its mean loss in nats per token."""
        normalizer = sum(len(some.targets_N) for some in packs)
        mine = World(self.rank, self.gpus).mine(packs)
        losses = [self.step.accumulate(some, some.weights_N / normalizer) for some in mine]
        with self.stopwatch:
            self.optimizer.clip(CLIP)
            self.optimizer.step(LEARNING_RATE)
        self.optimizer.drop_gradients()
        total = torch.stack(losses).sum()
        if self.gpus > 1:
            dist.all_reduce(total)
        return total.item()


def join(device: str) -> tuple[int, int, DeviceMesh | None]:
    """(rank, processes, their mesh) under torchrun; (0, 1, None) alone."""
    gpus = int(os.environ.get("WORLD_SIZE", "1"))
    if gpus == 1:
        return 0, 1, None
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    return dist.get_rank(), gpus, init_device_mesh(device, (gpus,))


def packs_of(rows: list[list[int]], pack_tokens: int, gpus: int) -> list[Pack]:
    """The rows of a step as packs, laid out as the `sft` op lays them out; every token counts."""
    examples = [EncodedExample(str(i), row, [1.0] * len(row), 0) for i, row in enumerate(rows)]
    layout = split_packs(range(len(rows)), [len(row) for row in rows], pack_tokens, gpus)
    return [pack([examples[i] for i in part]) for part in layout]
