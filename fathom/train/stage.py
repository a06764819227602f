"""A training stage on fixed rows, from a model directory to a model directory: what SFT and preference training share.

It opens the model, passes the gates, runs the loop in this process's world and writes what was trained. Which rows
there are, which of them make a step and what the loss is are the method's.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fathom.chunks import write_rows
from fathom.config import key_values
from fathom.errors import InputError
from fathom.ledger import Meter
from fathom.records import Example, Pair, read_jsonl
from fathom.tokens import EncodedExample, encode_example, template_hash
from fathom.train import preflight
from fathom.train.adapter import load_adapted, merged
from fathom.train.checkpoint import Checkpoints
from fathom.train.config import GrpoConfig, PreferConfig, SftConfig, StepsConfig
from fathom.train.loop import LogRow, LoopConfig, Method, train
from fathom.train.model import load_model, save_model
from fathom.train.open_step import Work, open_step
from fathom.train.parallel import Forward, World, joined, shard
from fathom.train.trunk import FusedStep
from fathom.train.watch import Watch, open_tracker, shape_of
from fathom.weights import tensor_entries


@dataclass(frozen=True)
class Data:
    """examples and their encoded rows, in one order; aside: what is too long, as removed.jsonl has it."""

    examples: list[Example]
    rows: list[EncodedExample]
    aside: list[dict[str, Any]]


class Planned(Method, Protocol):
    """A method whose steps are all laid out before the first."""

    def work(self, devices: int) -> Work:
        """The most that one pass and one step ask for."""
        ...


def train_stage(
    base: Path,
    tokenizer: PreTrainedTokenizerBase,
    data: Data,
    method: Planned,
    config: SftConfig | PreferConfig,
    out: Path,
    meter: Meter,
    before: Callable[[Forward, World], None] = lambda forward, world: None,
) -> list[LogRow]:
    """Train `base` by `method`; writes the model, train_log.jsonl, removed.jsonl and preflight.json. Returns the log.

    Runs in each process of a world at once; the first writes. before: called with the model as it is before the first
    step, after a resume too. Raises InputError for damaged weights or what is no model; WorkError when a gate of the
    preflight fails.
    """
    context = config.context if isinstance(config, SftConfig) else 1
    identity = {
        "config": key_values(config, str),
        "seed": meter.seed,
        "data": rows_hash(data.rows),
        "model": [[e.name, e.dtype, list(e.shape)] for e in tensor_entries(base).values()],
        "template": template_hash(tokenizer),
    }
    with joined(context) as world:
        compute = getattr(torch, config.precision)
        model = load_for(base, config, world, meter.seed)
        plain = shard(model, world, compute)
        own = config.adapter or world.context  # the plain path alone does these
        forward = plain if own else open_step(model, config, method.work(world.size), compute) or plain
        checked = forward.exact() if isinstance(forward, FusedStep) else forward
        found = preflight.check(
            checked, compute, tokenizer, base, data.examples, data.rows, config.pack_tokens, len(data.aside)
        )
        meter.show(found.segments)
        before(forward, world)
        tracker = open_tracker(config.tracking, identity["config"]) if world.first else None
        watch = Watch(
            shape_of(model.config), meter, tracker, say=print if world.first else _nothing, devices=world.size
        )
        checkpoints = Checkpoints(meter.scratch / "ckpt")
        loop = loop_config(config, meter.seed)
        trained = train(model, method, loop, checkpoints, meter, identity, watch, world, forward)
        if world.first:
            write_model(model, trained.weights, config, base, out)
            write_rows(out / "train_log.jsonl", trained.log)
            write_rows(out / "removed.jsonl", data.aside)
            (out / "preflight.json").write_text(json.dumps(found.row(), indent=1) + "\n", encoding="utf-8")
        world.barrier()
    return trained.log


def _nothing(line: str) -> None:
    """What processes beside the first say."""


def load_for(base: Path, config: StepsConfig, world: World, seed: int) -> PreTrainedModel:
    """The model to train, on its device; in several processes float32 weights are their own masters."""
    compute = getattr(torch, config.precision)
    if config.adapter and world.size > 1:
        raise InputError(f"adapter: trains on one device, and hardware.count is {world.size}")
    if config.adapter:
        return load_adapted(base, config.adapter, world.device, compute, seed)
    own_masters = world.size > 1 and config.optimizer.master == "float32"
    return load_model(base, world.device, torch.float32 if own_masters else compute)


def write_model(
    model: PreTrainedModel, weights: Mapping[str, torch.Tensor], config: StepsConfig, base: Path, out: Path
) -> None:
    """What was trained, as a plain model directory."""
    if config.adapter:
        model = merged(base, config.adapter, weights)
        weights = dict(model.named_parameters())
    save_model(model, weights, base, out)


def loop_config(config: StepsConfig | GrpoConfig, seed: int) -> LoopConfig:
    return LoopConfig(
        learning_rate=config.learning_rate,
        warmup=config.warmup,
        schedule=config.schedule,
        weight_decay=config.weight_decay,
        clip=config.clip,
        optimizer=config.optimizer,
        checkpoint_every=config.checkpoint_every,
        seed=seed,
    )


def rows_hash(rows: Sequence[EncodedExample]) -> str:
    """sha256 of the ids, tokens and weights of all rows in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.id}\0{len(row.ids)}\0".encode())
        digest.update(array("q", row.ids).tobytes() + array("d", row.weights).tobytes())
    return digest.hexdigest()


Kept = TypeVar("Kept", Example, Pair)


def read_rows(path: Path, kind: type[Kept]) -> list[Kept]:
    """The rows of a file to train on. Raises InputError where there are none, or an id repeats."""
    noun = kind.__name__.lower()
    rows = list(read_jsonl(path, kind))
    if not rows:
        raise InputError(f"{path}: no {noun}s to train on")
    repeated, count = Counter(row.id for row in rows).most_common(1)[0]
    if count > 1:
        raise InputError(f"{path}: {noun} id {repeated!r} occurs {count} times")
    return rows


def encode_row(tokenizer: PreTrainedTokenizerBase, example: Example, path: Path) -> EncodedExample:
    """`encode_example`, whose errors name the file too."""
    try:
        return encode_example(tokenizer, example)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
