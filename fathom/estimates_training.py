"""What training and merging are expected to take: hours and dollars from the measured speed, memory from the planner.

The `sft`, `prefer`, `grpo`, `merge` and `gguf` functions of the table of ops, and that of the `pairs`, beside `estimates.py`. Hours follow from tokens, and
tokens from rows, their length and the passes over them: the note of a stage says which were assumed and
what others would cost. Nothing is measured here; the speed's source is `physics.TRAINING_SHARE`.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from fathom import physics
from fathom.errors import InputError
from fathom.estimates import ROWS_PER_SECOND, Estimate, Inputs, Setting, shape_of
from fathom.estimates_generation import CORPUS_CHAIN, PROMPT_TOKENS, START_SECONDS, generate
from fathom.physics import NONE, ModelShape, Range
from fathom.train.layout import split_packs, waited
from fathom.train.memory import FLOPS, Room, plan_memory

ROW_SHARE = Range(0.20, 0.35, 0.60)
"""Mean length of a training row as a share of max_length, where nothing is known of its chains (`estimates.ROW_TOKENS`). Assumption."""

LENGTHS_VARIATION = 0.5
"""Coefficient of variation of the lengths of a step's rows, or pairs. Assumption."""

DRAWN_ROWS = 10000
"""As many are drawn, at least, to see how long devices wait for one another."""

ROWS_OF_A_DEVICE = 100
"""In a step: with more, packs come out no less even."""

LONGER = 1.5
"""How much longer rows are in the note's first variant."""

PAIRED_SHARE = Range(0.3, 0.65, 0.95)
"""Problems with two correct chains of different lengths among eight or so. Sky-T1-32B-Flash's 10K pairs came of 12K questions
and some TACO problems, its 1K of a correct over a shorter wrong chain included; the range is an assumption."""

CAREFUL_SHARE = Range(0.05, 0.15, 0.4)
"""Problems with a wrong chain and a longer correct one. Assumption."""

LOOK_SHARE = 1 / 3
"""Of a training pass, what a pass without gradients takes."""

REFILLED = 0.4
"""Groups without signal of those that GRPO asks for, in each round. Assumption."""

FREE_SHARE = 0.99
"""Of a GPU's memory, what a program finds free. 139.8 of 141 GiB on an H200."""

HOST_GIB = 96
"""Host memory that a training process may pin for its GPU. Assumption: rented machines have 128 GiB or more for each."""

GGUF_WEIGHTS_PER_SECOND = Range(2e7, 3.5e7, 1e8)
"""Read as bfloat16 and packed as q8_0 by numpy on one core."""
COPY_BYTES_PER_SECOND = Range(2e8, 8e8, 2e9)
"""Reading and writing safetensors on local disks. Assumption."""


@dataclass(frozen=True)
class Workload:
    """What a run on fixed rows trains. length: tokens of a row, prompt included. passes: over all rows.

    looks: passes over them without gradients. together: rows of a unit, which can't be parted among packs.
    delay: seconds that a device loses per token where activations are computed again, or moved in plain sight.
    """

    config: Any
    shape: ModelShape
    rows: Range
    length: Range
    passes: int
    float8: bool
    looks: int = 0
    together: int = 1
    delay: float = 0

    @property
    def tokens(self) -> Range:
        return self.rows * self.length * self.passes

    @property
    def unit(self) -> float:
        """Tokens of a unit, in the mean."""
        return self.together * self.length.mid

    @property
    def longest(self) -> int:
        """Tokens of a unit, at most."""
        return self.together * self.config.max_length

    @property
    def batch(self) -> float:
        """Units of an optimizer step."""
        return self.config.batch_size or self.config.batch_tokens / self.unit

    def speed(self, setting: Setting) -> Range:
        """Tokens per second of all devices together, when none waits."""
        return physics.training_speed(self.shape, self.length.mid, setting.device, setting.count, self.float8)

    def waiting(self, setting: Setting) -> float:
        """Of the devices' time, the share in which they wait for one another."""
        places = setting.count // getattr(self.config, "context", 1)
        return waiting(round(self.batch), self.unit, self.longest, self.config.pack_tokens, places)

    def seconds(self, setting: Setting) -> Range:
        delay = self.delay / setting.count
        tokens = self.tokens * (1 + LOOK_SHARE * self.looks / self.passes)
        busy = tokens.over(self.speed(setting)) + self.tokens * delay
        return START_SECONDS[setting.kind] + busy * (1 / (1 - self.waiting(setting)))


def drawn_steps(rows: int, mean: float, longest: int) -> list[list[int]]:
    """Tokens of the rows of some optimizer steps: log-normal, cut at `longest`, and the same for whoever asks."""
    spread = math.sqrt(math.log(1 + LENGTHS_VARIATION**2))
    centre, draw = math.log(mean) - spread**2 / 2, random.Random(0).lognormvariate
    steps = math.ceil(DRAWN_ROWS / rows)
    return [[min(max(1, round(draw(centre, spread))), longest) for _ in range(rows)] for _ in range(steps)]


@functools.cache
def waiting(rows: int, mean: float, longest: int, pack_tokens: int, places: int) -> float:
    """The mean of `waited` over drawn steps of so many rows, dealt to `places` as training deals them."""
    if places <= 1:
        return 0
    rows = min(max(1, rows), ROWS_OF_A_DEVICE * places)
    return fmean(
        waited(split_packs(range(rows), step, pack_tokens, places), step, places)
        for step in drawn_steps(rows, mean, longest)
    )


def sft(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    examples = inputs[config.examples]
    return _on_rows(config, examples.rows, examples.row_tokens, config.epochs * config.iterations, inputs, setting)


def pairs(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    """rows: pairs. A problem gives one of each kind at most."""
    problems, chains = inputs[config.problems], inputs[config.chains]
    made = NONE
    for rule, share in ((config.brief, PAIRED_SHARE), (config.careful, CAREFUL_SHARE)):
        if rule:
            made += (problems.rows * share).at_most(rule.limit or float("inf"))
    seconds = Range(0.5, 1, 3) + (problems.rows * (chains.chains or 1)).over(ROWS_PER_SECOND)
    return Estimate(seconds, made, 2, row_tokens=chains.row_tokens)


def prefer(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    """As training on each of the two chains of a pair, which lie in one pack; DPO looks at all of them once before."""
    given = inputs[config.pairs]
    looks = int(config.loss.kind == "dpo")
    return _on_rows(config, given.rows * 2, given.row_tokens, config.epochs, inputs, setting, looks, together=2)


def _on_rows(
    config: Any,
    rows: Range,
    row_tokens: Range | None,
    passes: int,
    inputs: Inputs,
    setting: Setting,
    looks: int = 0,
    together: int = 1,
) -> Estimate:
    """Training on rows that are there. together: how many of them can't be parted among packs."""
    shape = shape_of(config.model, inputs, setting)
    length = (row_tokens or ROW_SHARE * config.max_length).at_most(config.max_length)
    if shape is None:
        tokens = rows * length * passes
        return Estimate(None, tokens=tokens, note="size of the model unknown before it is downloaded")
    work = Workload(config, shape, rows, length, passes, config.float8, looks, together)
    if setting.kind == "cpu":
        peak = physics.cpu_training_memory(shape, max(config.pack_tokens, work.unit))
        return Estimate(work.seconds(setting), tokens=work.tokens, peak_gib=peak, shape=shape)
    if work.float8 and not physics.DEVICES[setting.device].float8:
        raise InputError(f"float8: true, but {setting.device} multiplies no eight-bit floats; set it to false")
    peak, delay, placement = _placement(config, shape, work.longest, work.batch * work.unit, setting)
    work = replace(work, delay=delay)
    notes = [_assumed(work, setting), _sensitivity(work, setting), *placement]
    return Estimate(work.seconds(setting), tokens=work.tokens, peak_gib=peak, shape=shape, note="; ".join(notes))


def _assumed(work: Workload, setting: Setting) -> str:
    """Everything that the hours were multiplied from."""
    length, speed = work.length, work.speed(setting).mid / setting.count
    reached = speed * work.shape.training_flops(length.mid) / (physics.DEVICES[setting.device].tflops * 1e12)
    run = "14.8B on one H200" if setting.count == 1 else "32.8B on two H200"
    share = f"{work.waiting(setting):.0%}"
    waits = "" if share == "0%" else f", which waits for the others {share} of the time"
    return (
        f"assumed {work.passes} pass{'es' if work.passes > 1 else ''} over {work.rows.mid:,.0f} rows of {length.mid:,.0f} "
        f"[{length.low:,.0f} - {length.high:,.0f}] tokens, {speed:,.0f} tokens/s on each {setting.device} "
        f"({reached:.2f} of its bf16 arithmetic, from the run of {run}){waits}"
    )


def _sensitivity(work: Workload, setting: Setting) -> str:
    return "instead, " + ", ".join(
        f"{what}: {_cost(changed.seconds(setting), setting)}" for what, changed in _variants(work, setting)
    )


def _variants(work: Workload, setting: Setting) -> Iterator[tuple[str, Workload]]:
    yield f"rows x{LONGER:g}", replace(work, length=(work.length * LONGER).at_most(work.config.max_length))
    if work.passes > 1:
        yield "one pass less", replace(work, passes=work.passes - 1)
    yield "one pass more", replace(work, passes=work.passes + 1)
    if physics.DEVICES[setting.device].float8:
        yield "bfloat16" if work.float8 else "float8", replace(work, float8=not work.float8)


def _cost(seconds: Range, setting: Setting) -> str:
    """The expected dollars; hours where the device has no price."""
    usd = setting.usd(seconds)
    return f"{seconds.mid / 3600:.1f} h" if usd is None else f"${usd.mid:.3g}"


def _placement(
    config: Any, shape: ModelShape, longest: float, step_tokens: float, setting: Setting
) -> tuple[float | None, float, list[str]]:
    """Where activations go: (peak GiB of each device, its delay per token, notes); no peak where they fit nowhere.

    longest: tokens of a row at most. step_tokens: of an optimizer step, all devices together.
    """
    sheet = physics.DEVICES[setting.device]
    room = Room(
        sheet.memory_gib * physics.GIB * FREE_SHARE,
        HOST_GIB * physics.GIB,
        FLOPS * sheet.tflops / physics.DEVICES["h200"].tflops,
        sheet.link * 1e9,
    )
    pack = max(config.pack_tokens, round(longest))
    packs = max(1, round(step_tokens / pack / setting.count))
    width = 4 if config.precision == "float32" else 2
    try:
        plan = plan_memory(shape, pack, config.optimizer, room, setting.count, packs, width)
    except InputError as refusal:
        return None, 0, [str(refusal)]
    kept = plan.notes or ("all activations kept",)
    return plan.peak_bytes / physics.GIB, plan.seconds / pack, [f"{config.optimizer}: {kept[0]}", *kept[1:]]


@dataclass(frozen=True)
class Draws:
    """What GRPO generates and trains on. drawn, trained: chains. length: tokens of a chain, its prompt not included."""

    drawn: Range
    trained: float
    length: Range

    @classmethod
    def of(cls, config: Any, inputs: Inputs) -> Draws:
        """A chain is as long as the corpus's where they are known, and no longer than the budget."""
        trained = config.batches * config.groups * config.samples
        limits = config.watchdogs
        held_out = -(-config.batches // limits.held_out_every) * limits.held_out * limits.held_out_samples
        drawn = Range(1, 1 + REFILLED * config.refills, 1 + config.refills) * trained + Range.exactly(held_out)
        course = inputs.get(config.problems)
        known = course.row_tokens if course else None
        return cls(drawn, trained, (known or CORPUS_CHAIN * config.max_tokens).at_most(config.max_tokens))


def grpo(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    """Batches are drawn and trained on in turn; with a `lag` at once, and the slower of the two sets the pace.

    One process trains, on one device. A chain is trained on once, if its group has signal.
    """
    draws, shape = Draws.of(config, inputs), shape_of(config.model, inputs, setting)
    trainer, engine = replace(setting, count=1), replace(setting, count=_engine_devices(config))
    made = generate(config, inputs, engine, draws.drawn, draws.length, config.max_tokens)
    if shape is None:
        return made
    rows = draws.length + PROMPT_TOKENS
    passes = 1 if config.updates == 1 else 4 / 3  # a third more: the forward pass for the old log-probabilities
    speed = physics.training_speed(shape, rows.mid, setting.device, 1)
    update = (rows * draws.trained * passes).over(speed)
    seconds = _longer(made.seconds, update) if config.lag else made.seconds + update
    whole = Estimate(seconds, tokens=draws.drawn * rows, shape=shape)
    if setting.kind == "cpu":
        peak = (made.peak_gib or 0) + physics.cpu_training_memory(shape, max(config.pack_tokens, rows.mid))
        return replace(whole, peak_gib=peak)
    step_tokens = draws.trained / config.batches / config.updates * rows.mid
    longest = config.max_tokens + PROMPT_TOKENS.high
    peak, _, placement = _placement(config, shape, longest, step_tokens, trainer)
    notes = [_drawn(draws, made.seconds, update, setting), *_shared(config, engine.count, setting), *placement]
    return replace(whole, peak_gib=peak, note="; ".join(notes))


def _engine_devices(config: Any) -> int:
    """How many devices generate."""
    engine = config.engine
    return 1 if engine.kind == "transformers" else len(engine.gpus or ()) or engine.replica_gpus


def _longer(one: Range, other: Range) -> Range:
    return Range(max(one.low, other.low), max(one.mid, other.mid), max(one.high, other.high))


def _drawn(draws: Draws, generation: Range, update: Range, setting: Setting) -> str:
    """Everything that the hours were multiplied from."""
    made, taken = draws.drawn.mid * draws.length.mid, draws.trained * draws.length.mid
    return (
        f"assumed {draws.drawn.mid:,.0f} chains of {draws.length.mid:,.0f} [{draws.length.low:,.0f} - "
        f"{draws.length.high:,.0f}] tokens, {draws.trained:,.0f} of them trained on: generation {made / generation.mid:,.0f} tokens/s in "
        f"{generation.mid / 3600:.1f} h, update {taken / update.mid:,.0f} tokens/s in {update.mid / 3600:.1f} h on one {setting.device}"
    )


def _shared(config: Any, generating: int, setting: Setting) -> Iterator[str]:
    """Which devices work, where that is not all of them all the time."""
    used = 1 + generating if config.lag else max(1, generating)
    if used < setting.count:
        yield f"{used} of {setting.count} {setting.device} work, all are billed"
    if not config.lag and not config.sleeps:
        yield "memory of the engine beside the update is not planned"


def merge(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    shape = shape_of(config.models[0], inputs, setting)
    if shape is None:
        return Estimate(None, note="size of the models unknown before they are downloaded")
    moved = Range.exactly(2.0 * shape.parameters * (len(config.models) + 1))
    largest = min(5e9, 2.0 * shape.parameters)
    return Estimate(
        Range(1, 2, 5) + moved.over(COPY_BYTES_PER_SECOND), peak_gib=0.5 + 2 * largest / physics.GIB, shape=shape
    )


def gguf(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    """One tensor at a time, in numpy; the largest is the embedding, held in its own type and as float32."""
    shape = shape_of(config.model, inputs, setting)
    if shape is None:
        return Estimate(None, note="size of the model unknown before it is downloaded")
    work = Range.exactly(1.0 * shape.parameters * len(config.types))
    largest = 4.0 * shape.vocabulary * shape.hidden
    return Estimate(
        Range(1, 2, 5) + work.over(GGUF_WEIGHTS_PER_SECOND), peak_gib=0.5 + 3 * largest / physics.GIB, shape=shape
    )
