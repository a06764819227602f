"""The one optimizer loop: AdamW steps over whatever packs a method yields, with exact resume.

A `Method` (SFT, and later GRPO or preferences) says which packs make step i and what their loss is;
the loop owns everything else: gradients, clipping, the rate, the log, checkpoints and stopping.
Step i is a function of (state after step i-1, i) alone: the sampler is stateless and every step
seeds torch's generators itself, so a checkpoint is weights, moments and one integer.
It does not read data, build models or decide what is trained.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors.torch import load_file, save_file

from fathom.errors import BudgetStop, InputError, WorkError
from fathom.ledger import Meter
from fathom.train.batch import Pack
from fathom.train.checkpoint import Checkpoints
from fathom.train.model import pack_logprobs
from fathom.train.optimizer import MasterAdamW
from fathom.train.watch import Watch
from fathom.weights import os_errors

EXIT_STOPPED = 75
"""Exit code after a checkpoint on SIGTERM or SIGUSR1 (EX_TEMPFAIL: run the same command again)."""

SPIKE_WINDOW = 32


@dataclass(frozen=True)
class Step:
    """The packs of one optimizer step. Their summed loss is divided by `normalizer` (for SFT, the summed weights)."""

    packs: Sequence[Pack]
    normalizer: float
    epoch: int


class Method(Protocol):
    """What is trained. Everything is a function of the step number."""

    steps: int
    """Optimizer steps in all."""

    def step(self, index: int) -> Step: ...

    def loss(self, logprobs_N: torch.Tensor, pack: Pack) -> torch.Tensor:
        """Sum over the pack's predicted tokens, before normalization; a scalar."""
        ...

    def cycle(self, index: int) -> tuple[int, int]:
        """(place of the step in its cycle, steps of that cycle): each cycle has its own warm-up, decay and moments."""
        ...


@dataclass(frozen=True)
class LoopConfig:
    """How steps are taken.

    warmup: fraction of a cycle. clip: largest gradient norm, None for no clipping. weight_decay:
    on matrices, not on norms and biases. spike: stop when the loss exceeds this many times the
    median of the last 32, plus one nat. checkpoint_every: steps.
    """

    learning_rate: float
    warmup: float = 0.03
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = 0.0
    clip: float | None = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    spike: float = 4.0
    checkpoint_every: int = 100
    seed: int = 0


LogRow = dict[str, Any]
"""{step, epoch, loss (nats per token), lr, grad_norm (before clipping), tokens (trained)}; steps count from 1."""


@dataclass(frozen=True)
class Trained:
    """weights: the float32 master weights by parameter name. log: one row per step."""

    weights: dict[str, torch.Tensor]
    log: list[LogRow]


def train(
    model: torch.nn.Module,
    method: Method,
    config: LoopConfig,
    checkpoints: Checkpoints,
    meter: Meter,
    identity: Mapping[str, Any],
    watch: Watch | None = None,
) -> Trained:
    """Train `model` in place to the last step of `method`.

    Resumes from the newest checkpoint that verifies. identity: what the run is made of (settings,
    data, base model); a checkpoint with another identity is refused with the difference. watch: who
    measures it, by default a plain one.
    Checkpoints and raises SystemExit(75) on SIGTERM, re-raises BudgetStop after a checkpoint, and
    raises WorkError on a loss that is not finite or spikes (the last checkpoint stays).
    """
    optimizer = MasterAdamW(model, config.betas, config.weight_decay)
    log = resume(optimizer, checkpoints, identity)
    require_space(optimizer, checkpoints)
    save = _saver(optimizer, checkpoints, meter, identity, log)
    watch = watch or Watch(None, meter)
    with stop_requests() as stopping:
        for index in range(len(log), method.steps):
            try:
                meter.check()
            except BudgetStop:
                save()
                raise
            torch.manual_seed(config.seed * 1_000_003 + index)
            step = method.step(index)
            log.append(optimizer_step(model, method, step, optimizer, config, index))
            refuse_spike(log, config, checkpoints)
            lengths = [length for pack in step.packs for length in pack.lengths]
            meter.progress(index + 1, method.steps, watch.step(log[-1], lengths, method.steps))
            stopped = bool(stopping)
            if stopped or (index + 1) % config.checkpoint_every == 0 or index + 1 == method.steps:
                save()
            if stopped and index + 1 < method.steps:
                raise SystemExit(EXIT_STOPPED)
    watch.close()
    return Trained(optimizer.weights(), log)


def optimizer_step(
    model: torch.nn.Module, method: Method, step: Step, optimizer: MasterAdamW, config: LoopConfig, index: int
) -> LogRow:
    """Take step `index`: accumulate the gradients of its packs, clip, update; no update where they are not finite."""
    place, length = method.cycle(index)
    if place == 0:
        optimizer.forget_moments()
    total = 0.0
    for pack in step.packs:
        loss = method.loss(pack_logprobs(model, pack), pack) / step.normalizer
        loss.backward()
        optimizer.accumulate()
        total += loss.item()
    norm = optimizer.clip(config.clip)
    rate = learning_rate(config, place, length)
    if math.isfinite(total) and math.isfinite(norm):
        optimizer.step(rate)
    optimizer.drop_gradients()
    trained = sum(len(pack.targets_N) for pack in step.packs)
    return {"step": index + 1, "epoch": step.epoch, "loss": total, "lr": rate, "grad_norm": norm, "tokens": trained}


def learning_rate(config: LoopConfig, place: int, length: int) -> float:
    """The rate of step `place` (from 0) of a cycle of `length` steps: linear warm-up, then the schedule towards 0."""
    warm = math.ceil(config.warmup * length)
    if place < warm:
        return config.learning_rate * (place + 1) / warm
    progress = (place - warm) / max(1, length - warm)
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "linear":
        return config.learning_rate * (1 - progress)
    return config.learning_rate


def refuse_spike(log: Sequence[LogRow], config: LoopConfig, checkpoints: Checkpoints) -> None:
    """Raise WorkError when the newest loss or gradient is not finite, or the loss jumped."""
    row = log[-1]
    recent = [earlier["loss"] for earlier in log[-SPIKE_WINDOW - 1 : -1]]
    limit = config.spike * statistics.median(recent) + 1.0 if len(recent) == SPIKE_WINDOW else math.inf
    if math.isfinite(row["grad_norm"]) and row["loss"] <= limit:
        return
    saved = checkpoints.steps()
    last = f"the last good checkpoint is step-{saved[0]}" if saved else "no checkpoint was saved yet"
    raise WorkError(
        f"step {row['step']}: loss {row['loss']:.4g}, gradient norm {row['grad_norm']:.4g}; stopped, {last}"
    )


def require_space(optimizer: MasterAdamW, checkpoints: Checkpoints) -> None:
    """Raise InputError when the disk can't hold two checkpoints (weights and two moments each)."""
    checkpoints.directory.mkdir(parents=True, exist_ok=True)
    need = 2 * 3 * sum(w.numel() * w.element_size() for w in optimizer.weights().values())
    free = shutil.disk_usage(checkpoints.directory).free
    if free < need:
        raise InputError(f"{checkpoints.directory}: two checkpoints need {need:,} bytes and {free:,} are free")


def resume(optimizer: MasterAdamW, checkpoints: Checkpoints, identity: Mapping[str, Any]) -> list[LogRow]:
    """Load the newest checkpoint that verifies; return its log ([] when there never was one)."""
    found = checkpoints.newest()
    if found is None:
        return []
    state = json.loads((found / "state.json").read_text(encoding="utf-8"))
    then, now = state["identity"], json.loads(json.dumps(identity))
    if changed := sorted(key for key in {*now, *then} if now.get(key) != then.get(key)):
        what = ", ".join(f"{key} was {then.get(key)!r} and is {now.get(key)!r}" for key in changed)
        raise InputError(f"{found}: made by another run ({what}); remove {checkpoints.directory} to start over")
    optimizer.load(load_file(found / "weights.safetensors"), load_file(found / "optimizer.safetensors"))
    return state["log"]


def _saver(
    optimizer: MasterAdamW, checkpoints: Checkpoints, meter: Meter, identity: Mapping[str, Any], log: Sequence[LogRow]
) -> Callable[[], None]:
    """A function that checkpoints the present state, unless that was done already."""

    def write(directory: Path) -> None:
        with os_errors(directory):
            save_file(optimizer.weights(), directory / "weights.safetensors")
            save_file(optimizer.moments(), directory / "optimizer.safetensors")
        state = {"step": len(log), "identity": dict(identity), "log": list(log)}
        (directory / "state.json").write_text(json.dumps(state), encoding="utf-8")

    def save() -> None:
        if len(log) not in checkpoints.steps():
            checkpoints.save(len(log), write)
            meter.saved()

    return save


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that SIGTERM and SIGUSR1 append to while the block runs; the old handlers come back after it."""
    received: list[int] = []
    try:
        before = {
            number: signal.signal(number, lambda number, frame: received.append(number))
            for number in (signal.SIGTERM, signal.SIGUSR1)
        }
    except ValueError:  # not the main thread: whoever owns it handles signals
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
