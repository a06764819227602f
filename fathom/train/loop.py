"""The one optimizer loop: AdamW steps over whatever packs a method yields, with exact resume.

A `Method` (SFT, GRPO, preferences) says which packs make step i and what their loss is;
the loop owns everything else: gradients, clipping, the rate, the log, checkpoints and stopping.
Step i is a function of (state after step i-1, i) alone: the sampler is stateless and every step
seeds torch's generators itself, so a checkpoint is weights, moments and one integer.
It does not read data, build models or decide what is trained.
"""

from __future__ import annotations

import math
import signal
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from fathom.errors import BudgetStop, WorkError
from fathom.ledger import Meter
from fathom.train.batch import Pack
from fathom.train.checkpoint import Checkpoints
from fathom.train.config import OptimizerConfig
from fathom.train.optimizer import Optimizer, open_optimizer
from fathom.train.parallel import Forward, World, shard, whole
from fathom.train.state import Saver, require_space, resume
from fathom.train.trunk import FusedStep
from fathom.train.watch import Watch

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

    def step(self, index: int, places: int = 1) -> Step:
        """places: to how many processes its packs are dealt."""
        ...

    def loss(self, logprobs_N: torch.Tensor, pack: Pack) -> torch.Tensor:
        """Sum over the pack's predicted tokens, before normalization; a scalar."""
        ...

    def cycle(self, index: int) -> tuple[int, int]:
        """(place of the step in its cycle, steps of that cycle): each cycle has its own warm-up, decay and moments."""
        ...


@runtime_checkable
class WeightedLikelihood(Protocol):
    """A method whose loss is -sum(weight * log p): the gradient needs no second look at the logits."""

    def likelihood_weights(self, pack: Pack) -> torch.Tensor:
        """float32, shape N."""
        ...


@runtime_checkable
class Tokenwise(Protocol):
    """A method whose `loss` is a sum over tokens, each a function of its own log-probability: so it may be asked for some of
    a pack's tokens at a time, and the gradient needs no second look at the logits."""

    tokenwise: Literal[True]


@runtime_checkable
class Measuring(Protocol):
    """A method that has more to say of a step than its loss."""

    def measured(self) -> dict[str, float]:
        """Sums over the packs that `loss` was called with since this was asked last. The log gets them, over all
        processes and divided by the step's normalizer."""
        ...


@dataclass(frozen=True)
class LoopConfig:
    """How steps are taken.

    warmup: fraction of a cycle. clip: largest gradient norm, None for no clipping. weight_decay:
    on matrices, not on norms and biases. optimizer: how its state is stored. spike: stop when the
    loss exceeds this many times the median of the last 32, plus one nat; None for a loss that is no likelihood.
    checkpoint_every: steps.
    """

    learning_rate: float
    warmup: float = 0.03
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = 0.0
    clip: float | None = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    spike: float | None = 4.0
    checkpoint_every: int = 100
    seed: int = 0


@runtime_checkable
class WorksAhead(Protocol):
    """A method that prepares later steps meanwhile: a checkpoint waits until what they need is on disk."""

    def settle(self) -> None: ...


LogRow = dict[str, Any]
"""{step, epoch, loss (nats per token, or per pair), lr, grad_norm (before clipping), tokens (trained)}, and what a
`Measuring` method adds; steps count from 1."""


@dataclass(frozen=True)
class Trained:
    """weights: of the optimizer by parameter name, float32 where it keeps them so. log: one row per step."""

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
    world: World | None = None,
    forward: Forward | None = None,
) -> Trained:
    """Train `model` in place to the last step of `method`.

    Resumes from the newest checkpoint that verifies. identity: what the run is made of (settings,
    data, base model); a checkpoint with another identity is refused with the difference. watch: who
    measures it, by default a plain one. world: who trains it together, by default this process
    alone; `forward` runs a pack through the model that `shard` has shared.
    Checkpoints and raises SystemExit(75) on SIGTERM, re-raises BudgetStop after a checkpoint, and
    raises WorkError on a loss that is not finite or spikes (the last checkpoint stays).
    """
    world = world or World()
    forward = forward or shard(model, world, model.dtype)
    optimizer = open_optimizer(model, config.optimizer, config.betas, config.weight_decay, config.seed)
    log = resume(optimizer, checkpoints, identity, world)
    require_space(optimizer, checkpoints, math.ceil((method.steps - len(log)) / config.checkpoint_every))
    saver = Saver(optimizer, checkpoints, meter, identity, log, world)
    watch = watch or Watch(None, meter)
    with stop_requests() as stopping:
        for index in range(len(log), method.steps):
            try:
                world.told_by_first(meter.check)
                torch.manual_seed(config.seed * 1_000_003 + index)
                step = method.step(index, world.places)
            except BudgetStop:
                _save(saver, method)
                saver.finish()
                raise
            log.append(optimizer_step(forward, method, step, optimizer, config, index, world))
            saver.seal_written()
            refuse_spike(log, config, checkpoints, saver.finish)
            lengths = [length for pack in step.packs for length in pack.lengths]
            meter.progress(index + 1, method.steps, watch.step(log[-1], lengths, method.steps))
            stopped = world.any(bool(stopping))
            if stopped or (index + 1) % config.checkpoint_every == 0 or index + 1 == method.steps:
                _save(saver, method)
            if stopped and index + 1 < method.steps:
                saver.finish()
                raise SystemExit(EXIT_STOPPED)
    saver.finish()
    watch.close()
    return Trained({name: whole(weight).cpu() for name, weight in optimizer.weights().items()}, log)


def _save(saver: Saver, method: Method) -> None:
    if isinstance(method, WorksAhead):
        method.settle()
    saver.save()


def optimizer_step(
    forward: Forward,
    method: Method,
    step: Step,
    optimizer: Optimizer,
    config: LoopConfig,
    index: int,
    world: World | None = None,
) -> LogRow:
    """Take step `index`: accumulate the gradients of its packs, clip, update; no update where they are not finite."""
    world = world or World()
    place, length = method.cycle(index)
    if place == 0:
        optimizer.forget_moments()
    losses = []
    for pack in world.mine(step.packs):
        losses.append(backward(forward, method, pack, step.normalizer))
        optimizer.accumulate()
    norm = optimizer.clip(config.clip)
    rate = learning_rate(config, place, length)
    optimizer.step(rate)
    optimizer.drop_gradients()
    total = sum(loss.item() for loss in losses)  # here, and not before, the host waits for the device
    return {
        "step": index + 1,
        "epoch": step.epoch,
        "loss": world.total(total) / world.shared_by,
        "lr": rate,
        "grad_norm": whole(norm).item(),
        "tokens": sum(len(pack.targets_N) for pack in step.packs),
        **_measured(method, step, world),
    }


def _measured(method: Method, step: Step, world: World) -> dict[str, float]:
    if not isinstance(method, Measuring):
        return {}
    return {name: world.total(value) / step.normalizer for name, value in method.measured().items()}


def backward(forward: Forward, method: Method, pack: Pack, normalizer: float) -> torch.Tensor:
    """Add the gradients of one pack's share of the step's loss to the parameters'; returns that share, a scalar."""
    if isinstance(forward, FusedStep) and isinstance(method, WeightedLikelihood):
        return forward.accumulate(pack, method.likelihood_weights(pack) / normalizer)
    if isinstance(forward, FusedStep) and isinstance(method, Tokenwise):
        return forward.accumulate_loss(pack, lambda logprobs_N, some: method.loss(logprobs_N, some) / normalizer)
    loss = method.loss(forward(pack), pack) / normalizer
    loss.backward()
    return loss.detach()


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


def refuse_spike(
    log: Sequence[LogRow], config: LoopConfig, checkpoints: Checkpoints, finish: Callable[[], None] = lambda: None
) -> None:
    """Raise WorkError when the newest loss or gradient is not finite, or the loss jumped. finish: seals what is being written."""
    row = log[-1]
    recent = [earlier["loss"] for earlier in log[-SPIKE_WINDOW - 1 : -1]]
    told = config.spike is not None and len(recent) == SPIKE_WINDOW
    limit = config.spike * statistics.median(recent) + 1.0 if told else math.inf
    if math.isfinite(row["grad_norm"]) and math.isfinite(row["loss"]) and row["loss"] <= limit:
        return
    finish()
    saved = checkpoints.steps()
    last = f"the last good checkpoint is step-{saved[0]}" if saved else "no checkpoint was saved yet"
    raise WorkError(
        f"step {row['step']}: loss {row['loss']:.4g}, gradient norm {row['grad_norm']:.4g}; stopped, {last}"
    )


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
