"""Supervised fine-tuning as a method of the loop: which rows make which step, and the loss on completions.

Curriculum order presents the rows by rising difficulty in every epoch; `iterations` repeats the
whole course (all epochs, with its own warm-up, decay and optimizer moments) on the weights so far.
The optimizer, checkpoints and the log are the loop's; this module reads rows and writes the model.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fathom.errors import InputError
from fathom.ledger import Meter
from fathom.records import Example, read_jsonl
from fathom.tokens import EncodedExample, encode_example, load_tokenizer, template_hash
from fathom.train import preflight
from fathom.train.adapter import load_adapted, merged
from fathom.train.batch import Pack, epoch_order, pack, split_packs, split_steps
from fathom.train.checkpoint import Checkpoints
from fathom.train.config import GrpoConfig, SftConfig
from fathom.train.loop import LogRow, LoopConfig, Step, train
from fathom.train.losses import weighted_nll
from fathom.train.model import load_model, save_model
from fathom.train.open_step import Work, open_step
from fathom.train.parallel import World, joined, shard
from fathom.train.trunk import FusedStep
from fathom.train.watch import Watch, open_tracker, shape_of
from fathom.weights import tensor_entries


@dataclass(frozen=True)
class Sft:
    """The method: a fixed plan of steps over encoded rows.

    plan: for every step, (epoch, row numbers). cycles: for every step, (place, length) within its
    iteration.
    """

    rows: Sequence[EncodedExample]
    plan: Sequence[tuple[int, list[int]]]
    cycles: Sequence[tuple[int, int]]
    pack_tokens: int

    @property
    def steps(self) -> int:
        return len(self.plan)

    def step(self, index: int) -> Step:
        epoch, numbers = self.plan[index]
        lengths = [len(row.ids) for row in self.rows]
        packs = [pack([self.rows[i] for i in part]) for part in split_packs(numbers, lengths, self.pack_tokens)]
        return Step(packs, sum(pack.weights_N.sum().item() for pack in packs), epoch)

    def loss(self, logprobs_N: torch.Tensor, pack: Pack) -> torch.Tensor:
        return weighted_nll(logprobs_N, self.likelihood_weights(pack).to(logprobs_N.device))

    def likelihood_weights(self, pack: Pack) -> torch.Tensor:
        return pack.weights_N

    def work(self, devices: int) -> Work:
        """The most that one pass and one step ask for."""
        lengths = [len(row.ids) for row in self.rows]
        packs = [split_packs(numbers, lengths, self.pack_tokens) for _, numbers in self.plan]
        tokens = max(sum(lengths[i] for i in part) for step in packs for part in step)
        return Work(tokens, max(-(-len(step) // devices) for step in packs), devices)

    def cycle(self, index: int) -> tuple[int, int]:
        return self.cycles[index]


def run_sft(inputs: dict[str, Any], config: SftConfig, out: Path, meter: Meter) -> dict[str, Any]:
    """Train a model on examples; writes a Hugging Face directory and train_log.jsonl into `out`.

    Runs in each process of a world at once; the first writes. Raises InputError for no examples, a
    repeated id, an example with nothing to learn, a row without difficulty in curriculum order,
    damaged weights or a directory that is not a model; WorkError when a gate of the preflight fails.
    """
    base = Path(inputs["model"])
    entries = tensor_entries(base)
    tokenizer = load_tokenizer(base)
    data = read_data(Path(inputs["examples"]), tokenizer, config)
    method = plan_sft(data.examples, data.rows, config, meter.seed)
    identity = {
        "config": config.model_dump(exclude={"step", "context", "pack_tokens", "checkpoint_every", "tracking"}),
        "seed": meter.seed,
        "data": rows_hash(method.rows),
        "model": [[e.name, e.dtype, list(e.shape)] for e in entries.values()],
        "template": template_hash(tokenizer),
    }
    with joined(config.context) as world:
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
        tracker = open_tracker(config.tracking, identity["config"]) if world.first else None
        watch = Watch(
            shape_of(model.config), meter, tracker, say=print if world.first else _nothing, devices=world.size
        )
        checkpoints = Checkpoints(meter.scratch / "ckpt")
        loop = loop_config(config, meter.seed)
        trained = train(model, method, loop, checkpoints, meter, identity, watch, world, forward)
        if world.first:
            write_model(model, trained.weights, config, base, out)
            _write_rows(out / "train_log.jsonl", trained.log)
            _write_rows(out / "removed.jsonl", data.aside)
            (out / "preflight.json").write_text(json.dumps(found.row(), indent=1) + "\n", encoding="utf-8")
        world.barrier()
    return summary(len(data.rows) + len(data.aside), method, trained.log)


def load_for(base: Path, config: SftConfig, world: World, seed: int) -> PreTrainedModel:
    """The model to train, on its device; in several processes float32 weights are their own masters."""
    compute = getattr(torch, config.precision)
    if config.adapter and world.size > 1:
        raise InputError(f"adapter: trains on one device, and hardware.count is {world.size}")
    if config.adapter:
        return load_adapted(base, config.adapter, world.device, compute, seed)
    own_masters = world.size > 1 and config.optimizer.master == "float32"
    return load_model(base, world.device, torch.float32 if own_masters else compute)


def write_model(
    model: PreTrainedModel, weights: Mapping[str, torch.Tensor], config: SftConfig, base: Path, out: Path
) -> None:
    """What was trained, as a plain model directory."""
    if config.adapter:
        model = merged(base, config.adapter, weights)
        weights = dict(model.named_parameters())
    save_model(model, weights, base, out)


@dataclass(frozen=True)
class Data:
    """examples and their encoded rows, in one order; aside: rows that are too long, as removed.jsonl has them."""

    examples: list[Example]
    rows: list[EncodedExample]
    aside: list[dict[str, Any]]


def read_data(examples: Path, tokenizer: PreTrainedTokenizerBase, config: SftConfig) -> Data:
    """The rows to train on. Raises InputError, see `run_sft`, and when none fits `max_length`."""
    source = examples_file(examples)
    pairs = [(e, encode_row(tokenizer, e, source)) for e in read_examples(source, config.order)]
    fits = [(e, row) for e, row in pairs if len(row.ids) <= config.max_length]
    if not fits:
        raise InputError(f"{source}: none of {len(pairs)} examples fits max_length {config.max_length}")
    reason = f"longer than max_length {config.max_length}"
    aside = [
        {"id": row.id, "reason": reason, "tokens": len(row.ids)} for _, row in pairs if len(row.ids) > config.max_length
    ]
    return Data([e for e, _ in fits], [row for _, row in fits], aside)


def _nothing(line: str) -> None:
    """What processes beside the first say."""


def rows_hash(rows: Sequence[EncodedExample]) -> str:
    """sha256 of the ids, tokens and weights of all rows in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.id}\0{len(row.ids)}\0".encode())
        digest.update(array("q", row.ids).tobytes() + array("d", row.weights).tobytes())
    return digest.hexdigest()


def summary(read: int, method: Sft, log: Sequence[LogRow]) -> dict[str, Any]:
    """The stage's metrics: rows and tokens trained on, and the mean loss of the first and last tenth of the steps."""
    tenth = max(1, len(log) // 10)
    return {
        "funnel": [["examples", read], ["within max_length", len(method.rows)]],
        "steps": len(log),
        "row_tokens": sum(len(row.ids) for row in method.rows),
        "trained_tokens": sum(row["tokens"] for row in log),
        "loss_first": sum(row["loss"] for row in log[:tenth]) / tenth,
        "loss_last": sum(row["loss"] for row in log[-tenth:]) / tenth,
    }


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def examples_file(source: Path) -> Path:
    """Where the rows are: in an artifact directory, or the file itself."""
    return source / "examples.jsonl" if source.is_dir() else source


def read_examples(path: Path, order: str) -> list[Example]:
    """The rows, checked: there are some, no id repeats, and each has a difficulty in curriculum order."""
    examples = list(read_jsonl(path, Example))
    if not examples:
        raise InputError(f"{path}: no examples to train on")
    repeated, count = Counter(example.id for example in examples).most_common(1)[0]
    if count > 1:
        raise InputError(f"{path}: example id {repeated!r} occurs {count} times")
    if order == "curriculum":
        for example in examples:
            if example.difficulty is None:
                raise InputError(f"{path}: example {example.id!r} has no difficulty; set order: shuffled")
    return examples


def encode_row(tokenizer: PreTrainedTokenizerBase, example: Example, path: Path) -> EncodedExample:
    """`encode_example`, whose errors name the file too."""
    try:
        return encode_example(tokenizer, example)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def plan_sft(examples: Sequence[Example], rows: Sequence[EncodedExample], config: SftConfig, seed: int) -> Sft:
    """Lay out every step of every epoch of every iteration; a pure function of its arguments."""
    ids = [row.id for row in rows]
    lengths = [len(row.ids) for row in rows]
    difficulties = [example.difficulty for example in examples] if config.order == "curriculum" else None
    plan, cycles = [], []
    for iteration in range(config.iterations):
        course = []
        for epoch in range(iteration * config.epochs, (iteration + 1) * config.epochs):
            order = epoch_order(ids, seed, epoch, difficulties)
            course += [(epoch, step) for step in split_steps(order, lengths, config.batch_size, config.batch_tokens)]
        cycles += [(place, len(course)) for place in range(len(course))]
        plan += course
    return Sft(rows, plan, cycles, config.pack_tokens)


def loop_config(config: SftConfig | GrpoConfig, seed: int) -> LoopConfig:
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
