"""Supervised fine-tuning as a method of the loop: which rows make which step, and the loss on completions.

Curriculum order presents the rows by rising difficulty in every epoch; `iterations` repeats the
whole course (all epochs, with its own warm-up, decay and optimizer moments) on the weights so far.
The optimizer, checkpoints and the log are the loop's; the stage around it is `stage.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from fathom.errors import InputError
from fathom.ledger import Meter
from fathom.records import Example
from fathom.tokens import EncodedExample, load_tokenizer
from fathom.train.batch import Pack, pack
from fathom.train.config import SftConfig
from fathom.train.layout import epoch_order, split_packs, split_steps
from fathom.train.loop import LogRow, Step
from fathom.train.losses import weighted_nll
from fathom.train.open_step import Work
from fathom.train.stage import Data, encode_row, read_rows, train_stage
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

    def step(self, index: int, places: int = 1) -> Step:
        epoch, numbers = self.plan[index]
        packs = [pack([self.rows[i] for i in part]) for part in self._packs(numbers, places)]
        return Step(packs, sum(pack.weights_N.sum().item() for pack in packs), epoch)

    def _packs(self, numbers: Sequence[int], places: int) -> list[list[int]]:
        return split_packs(numbers, self._lengths, self.pack_tokens, places)

    @cached_property
    def _lengths(self) -> list[int]:
        return [len(row.ids) for row in self.rows]

    def loss(self, logprobs_N: torch.Tensor, pack: Pack) -> torch.Tensor:
        return weighted_nll(logprobs_N, self.likelihood_weights(pack).to(logprobs_N.device))

    def likelihood_weights(self, pack: Pack) -> torch.Tensor:
        return pack.weights_N

    def work(self, devices: int) -> Work:
        """The most that one pass and one step ask for."""
        packs = [self._packs(numbers, devices) for _, numbers in self.plan]
        tokens = max(sum(self._lengths[i] for i in part) for step in packs for part in step)
        return Work(tokens, max(-(-len(step) // devices) for step in packs), devices)

    def cycle(self, index: int) -> tuple[int, int]:
        return self.cycles[index]


def run_sft(inputs: dict[str, Any], config: SftConfig, out: Path, meter: Meter) -> dict[str, Any]:
    """Train a model on examples; writes a Hugging Face directory and train_log.jsonl into `out`.

    Raises InputError for no examples, a repeated id, an example with nothing to learn, a row without
    difficulty in curriculum order, and what `train_stage` refuses.
    """
    base = Path(inputs["model"])
    tensor_entries(base)  # what is no model is told before the rows are read
    tokenizer = load_tokenizer(base)
    data = read_data(Path(inputs["examples"]), tokenizer, config)
    method = plan_sft(data.examples, data.rows, config, meter.seed)
    log = train_stage(base, tokenizer, data, method, config, out, meter)
    return summary(len(data.rows) + len(data.aside), method, log)


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


def examples_file(source: Path) -> Path:
    """Where the rows are: in an artifact directory, or the file itself."""
    return source / "examples.jsonl" if source.is_dir() else source


def read_examples(path: Path, order: str) -> list[Example]:
    """The rows, checked: there are some, no id repeats, and each has a difficulty in curriculum order."""
    examples = read_rows(path, Example)
    if order == "curriculum":
        for example in examples:
            if example.difficulty is None:
                raise InputError(f"{path}: example {example.id!r} has no difficulty; set order: shuffled")
    return examples


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
