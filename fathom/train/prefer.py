"""Preference training as a method of the loop: DPO and SimPO on pairs of a better and a worse answer.

Both answers of a pair lie in one pack, as documents that don't see each other. DPO's reference is the model before
the first step: its log-probabilities are computed once and kept as two numbers a pair, so no second model is held.
What is a pair, and of which chains, is `fathom/curate/pairs.py`'s business.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from fathom.chunks import write_whole
from fathom.errors import InputError
from fathom.ledger import Meter
from fathom.records import Example, Pair, json_lines
from fathom.tokens import EncodedExample, load_tokenizer
from fathom.train.batch import Pack, pack
from fathom.train.config import DpoConfig, PreferConfig, SimpoConfig
from fathom.train.layout import epoch_order, split_packs, split_steps
from fathom.train.loop import LogRow, Step
from fathom.train.losses import chain_sums, preference_losses
from fathom.train.open_step import Work
from fathom.train.parallel import Forward, World
from fathom.train.stage import Data, encode_row, read_rows, train_stage
from fathom.weights import tensor_entries

Two = tuple[float, float]
"""Of a pair: of its chosen and of its rejected chain."""


@dataclass(frozen=True)
class Row:
    """A pair as training sees it: prompt and answer, twice."""

    chosen: EncodedExample
    rejected: EncodedExample

    def __len__(self) -> int:
        return len(self.chosen.ids) + len(self.rejected.ids)


@dataclass(frozen=True)
class PairPack(Pack):
    """A pack whose documents are chosen, rejected, chosen, rejected, ...

    counts: predicted tokens of each of its C chains. reference_C: float32, their log-probabilities before training.
    """

    counts: tuple[int, ...]
    reference_C: torch.Tensor


@dataclass
class Prefer:
    """The method: a fixed plan of steps over pairs.

    plan: for every step, (epoch, numbers of its pairs). reference: of each pair; zeros where the loss has none.
    """

    rows: Sequence[Row]
    plan: Sequence[tuple[int, list[int]]]
    reference: Sequence[Two]
    loss_of: SimpoConfig | DpoConfig
    likelihood: float
    pack_tokens: int
    _sums: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        return len(self.plan)

    def cycle(self, index: int) -> tuple[int, int]:
        return index, self.steps

    def step(self, index: int, places: int = 1) -> Step:
        epoch, numbers = self.plan[index]
        return Step([self.pack(part) for part in self._packs(numbers, places)], len(numbers), epoch)

    def pack(self, numbers: Sequence[int]) -> PairPack:
        """These pairs, end to end."""
        chains = [chain for i in numbers for chain in (self.rows[i].chosen, self.rows[i].rejected)]
        reference = torch.tensor([value for i in numbers for value in self.reference[i]])
        return PairPack(
            **vars(pack(chains)), counts=tuple(chain.trained_tokens for chain in chains), reference_C=reference
        )

    def _packs(self, numbers: Sequence[int], places: int) -> list[list[int]]:
        return split_packs(numbers, self._lengths, self.pack_tokens, places)

    @cached_property
    def _lengths(self) -> list[int]:
        return [len(row) for row in self.rows]

    def loss(self, logprobs_N: torch.Tensor, pack: Pack) -> torch.Tensor:
        """Sum over the pack's pairs; a pair whose tokens weigh nothing adds nothing."""
        assert isinstance(pack, PairPack)
        device = logprobs_N.device
        counts_C = torch.tensor(pack.counts, device=device)
        logps_C = chain_sums(logprobs_N, pack.counts)
        weights_P = (chain_sums(pack.weights_N.to(device), pack.counts) / counts_C)[::2]
        rewards_C = rewards(logps_C, pack.reference_C.to(device), counts_C, self.loss_of)
        chosen_P, rejected_P = rewards_C[::2], rewards_C[1::2]
        margin = self.loss_of.gamma if isinstance(self.loss_of, SimpoConfig) else 0.0
        losses_P = preference_losses(chosen_P, rejected_P, margin)
        if self.likelihood:
            losses_P = losses_P - self.likelihood * (logps_C / counts_C)[::2]
        measures = {
            "margin": chosen_P - rejected_P,
            "accuracy": (chosen_P > rejected_P).float(),
            "chosen_logp": (logps_C / counts_C)[::2],
            "rejected_logp": (logps_C / counts_C)[1::2],
        }
        for name, values in measures.items():  # stays on the device until the step is over
            self._sums[name] = self._sums.get(name, 0) + (values.detach() * weights_P).sum()
        return (losses_P * weights_P).sum()

    def measured(self) -> dict[str, float]:
        """margin: of the rewards. accuracy: share of pairs whose chosen chain has the larger one. Log-probabilities: per token."""
        sums, self._sums = self._sums, {}
        return {name: float(value) for name, value in sums.items()}

    def work(self, devices: int) -> Work:
        """The most that one pass and one step ask for."""
        packs = [self._packs(numbers, devices) for _, numbers in self.plan]
        tokens = max(sum(self._lengths[i] for i in part) for step in packs for part in step)
        return Work(tokens, max(-(-len(step) // devices) for step in packs), devices)


def rewards(
    logps_C: torch.Tensor, reference_C: torch.Tensor, counts_C: torch.Tensor, loss: SimpoConfig | DpoConfig
) -> torch.Tensor:
    """Of chains with these log-probabilities, under the model and before training, and tokens; shape C."""
    if isinstance(loss, SimpoConfig):
        return loss.beta * logps_C / counts_C
    gained_C = loss.beta * (logps_C - reference_C)
    return gained_C / counts_C if loss.per_token else gained_C


def run_prefer(inputs: dict[str, Any], config: PreferConfig, out: Path, meter: Meter) -> dict[str, Any]:
    """Train a model on pairs; writes a Hugging Face directory and train_log.jsonl into `out`.

    Raises InputError for no pairs, a repeated id, a pair whose answers are the same or empty, and what `train_stage` refuses.
    """
    base = Path(inputs["model"])
    tensor_entries(base)  # what is no model is told before the pairs are read
    tokenizer = load_tokenizer(base)
    rows, data = read_pairs(Path(inputs["pairs"]), tokenizer, config)
    method = plan_prefer(rows, config, meter.seed)

    def measure_reference(forward: Forward, world: World) -> None:
        method.reference = reference_of(method, forward, meter.scratch / "reference.json", world)

    before = {"before": measure_reference} if isinstance(config.loss, DpoConfig) else {}
    log = train_stage(base, tokenizer, data, method, config, out, meter, **before)
    return summary(len(rows) + len(data.aside), method, log)


@torch.no_grad()
def reference_of(method: Prefer, forward: Forward, kept: Path, world: World) -> list[Two]:
    """Log-probabilities of every pair's chains under the weights of the moment; read back where they are kept already."""

    if world.told_by_first(kept.exists):
        return [tuple(two) for two in world.told_by_first(lambda: next(json_lines(kept))[1])]
    parts = method._packs(range(len(method.rows)), places=1)
    measured = world.dealt(parts, lambda part: _logps(method.pack(part), forward))
    found = {
        number: (values[2 * place], values[2 * place + 1])
        for part, values in zip(parts, measured, strict=True)
        for place, number in enumerate(part)
    }
    reference = [found[number] for number in range(len(method.rows))]
    if world.first:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, json.dumps(reference) + "\n")
    return reference


def _logps(pack: PairPack, forward: Forward) -> list[float]:
    return chain_sums(forward(pack), pack.counts).tolist()


# ------------------------------------------------------------------------------ the pairs


def read_pairs(source: Path, tokenizer: PreTrainedTokenizerBase, config: PreferConfig) -> tuple[list[Row], Data]:
    """The pairs to train on, and their chains one by one: chosen, rejected, chosen, ...

    Raises InputError, see `run_prefer`, and when none fits `max_length`.
    """
    path = source / "pairs.jsonl" if source.is_dir() else source
    pairs = read_rows(path, Pair)
    rows: list[Row] = []
    data = Data([], [], [])
    for pair in pairs:
        examples = [_example(pair, "chosen"), _example(pair, "rejected")]
        row = Row(*(encode_row(tokenizer, example, path) for example in examples))
        longest = max(len(row.chosen.ids), len(row.rejected.ids))
        if row.chosen.ids == row.rejected.ids:
            data.aside.append({"id": pair.id, "reason": "chosen and rejected are the same", "tokens": longest})
        elif longest > config.max_length:
            reason = f"a chain longer than max_length {config.max_length}"
            data.aside.append({"id": pair.id, "reason": reason, "tokens": longest})
        else:
            rows.append(row)
            data.rows.extend((row.chosen, row.rejected))
            data.examples.extend(examples)
    if not rows:
        raise InputError(
            f"{path}: none of {len(pairs)} pairs can be learned from within max_length {config.max_length}"
        )
    return rows, data


def _example(pair: Pair, side: str) -> Example:
    return Example(f"{pair.id} {side}", pair.problem_id, [*pair.messages, getattr(pair, side)])


def plan_prefer(rows: Sequence[Row], config: PreferConfig, seed: int) -> Prefer:
    """Lay out every step of every epoch; a pure function of its arguments."""
    ids = [row.chosen.id for row in rows]
    plan = [
        (epoch, numbers)
        for epoch in range(config.epochs)
        for numbers in split_steps(epoch_order(ids, seed, epoch), [len(row) for row in rows], config.batch_size)
    ]
    return Prefer(rows, plan, [(0.0, 0.0)] * len(rows), config.loss, config.likelihood, config.pack_tokens)


def summary(read: int, method: Prefer, log: Sequence[LogRow]) -> dict[str, Any]:
    """The stage's metrics: pairs and tokens trained on, and the means of the first and last tenth of the steps."""
    tenth = max(1, len(log) // 10)
    ends = {
        f"{name}_{end}": sum(row[name] for row in part) / tenth
        for name in ("loss", "margin", "accuracy", "chosen_logp", "rejected_logp")
        for end, part in (("first", log[:tenth]), ("last", log[-tenth:]))
    }
    return {
        "funnel": [["pairs", read], ["within max_length", len(method.rows)]],
        "steps": len(log),
        "row_tokens": sum(map(len, method.rows)),
        "trained_tokens": sum(row["tokens"] for row in log),
        **ends,
    }
