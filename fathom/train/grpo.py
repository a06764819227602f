"""Group-relative policy optimization as a method of the loop: push the weights, draw groups, measure, and the loss on them.

A batch is drawn once (`groups.py`): with the weights of the moment, or, with `lag: 1`, with those of the batch before
while that one is trained on. What was drawn and measured is one file under the stage's scratch space before the first
update, so a killed run draws nothing twice and ends in the same bytes.
No critic, no reference model, no KL term. One process trains; the engine is any that takes weights from memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Literal

import torch
from transformers import PreTrainedModel

from fathom import graders
from fathom.chunks import digest, write_rows
from fathom.config import key_values
from fathom.engines import open_engine
from fathom.errors import InputError, WorkError
from fathom.ledger import Meter
from fathom.records import Problem, read_problems, to_dict, to_json
from fathom.rollout import Grade
from fathom.tokens import template_hash
from fathom.train.ahead import Ahead
from fathom.train.batch import Pack, pack
from fathom.train.chains import Batch, Chain, PolicyPack, encoded, policy_pack, read_batch, read_facts, write_batch
from fathom.train.checkpoint import Checkpoints
from fathom.train.config import GrpoConfig
from fathom.train.draw import draw_batch
from fathom.train.groups import Drawing
from fathom.train.layout import epoch_order, split_packs
from fathom.train.loop import Step, train
from fathom.train.losses import clipped_policy_loss, truncated_importance
from fathom.train.model import load_model, save_model
from fathom.train.open_step import Work, open_step
from fathom.train.parallel import Forward, World, joined, shard
from fathom.train.split import Split
from fathom.train.stage import loop_config
from fathom.train.trunk import FusedStep
from fathom.train.watch import Watch, open_tracker, shape_of
from fathom.train.watchdogs import Facts, alarm
from fathom.weights import positions, tensor_entries

PROBE_PROBLEMS, PROBE_TOKENS = 4, 32
"""Chains, and their longest, on which engine and trainer are compared before a batch is drawn ahead."""


@dataclass
class Grpo:
    """The method. forward: the trainer's log-probabilities of a pack.

    model: the policy, which the loop updates in place and the engine is given before every batch.
    """

    config: GrpoConfig
    drawing: Drawing
    model: PreTrainedModel
    forward: Forward
    ahead: Ahead = field(default_factory=Ahead)
    tokenwise: ClassVar[Literal[True]] = True
    _newest: tuple[int, Batch] | None = None

    @property
    def steps(self) -> int:
        return self.config.batches * self.config.updates

    def cycle(self, index: int) -> tuple[int, int]:
        return index, self.steps

    def step(self, index: int, places: int = 1) -> Step:
        """The packs of step `index`: every `updates`-th group of its batch. places: one process trains. Raises WorkError as `batch` does."""
        number, part = divmod(index, self.config.updates)
        batch = self.batch(number)
        if self.config.lag and part == 0 and number + 1 < self.config.batches:
            self._draw_ahead(number + 1, batch)
        chains = [chain for group in batch.groups[part :: self.config.updates] for chain in group]
        packs = [policy_pack(part) for part in self.packs(chains)]
        self.drawing.split.updating()
        return Step(packs, sum(chain.tokens for chain in chains), self._epoch(batch.facts))

    def settle(self) -> None:
        """Wait until what is drawn ahead is on disk: with a checkpoint of the weights that come next, nothing could draw it."""
        self.ahead.wait()

    def loss(self, logprobs_N: torch.Tensor, pack: Pack) -> torch.Tensor:
        """Token by token, over all of the step's tokens alike. Where a batch has one update, that is where the ratio is 1."""
        assert isinstance(pack, PolicyPack)
        device = logprobs_N.device
        old_N = logprobs_N.detach() if pack.old_N is None else pack.old_N.to(device)
        corrections_N = truncated_importance(old_N, pack.sampled_N.to(device), self.config.importance_cap)
        return clipped_policy_loss(
            logprobs_N,
            old_N,
            pack.advantages_N.to(device),
            corrections_N * pack.weights_N.to(device),
            self.config.clip_low,
            self.config.clip_high,
        )

    # ---------------------------------------------------------------- a batch

    def batch(self, number: int) -> Batch:
        """Batch `number`: read back where it was drawn before, else drawn and measured with the policy as it is now.

        Raises WorkError, with the reason, when a watchdog stops the run or no group has signal.
        """
        if self._newest is None or self._newest[0] != number:
            path = self._path(number)
            self._newest = (number, read_batch(path) if path.exists() else self._new_batch(number, path))
        return self._newest[1]

    def _new_batch(self, number: int, path: Path) -> Batch:
        drawn = self._drawn(number)
        with self.drawing.split.part("measure"):
            batch = self._measured(drawn)
        limits = self.config.watchdogs
        limits = limits.model_copy(update={"staleness": limits.staleness + self.config.lag})
        if reason := alarm([*self.history(number), batch.facts], limits):
            raise WorkError(f"batch {number + 1}: {reason}; stopped before training on it")
        write_batch(path, batch)
        self._ahead_path(number).unlink(missing_ok=True)
        self.drawing.meter.saved()
        return batch

    def history(self, number: int) -> list[Facts]:
        """Facts of the batches before `number`."""
        return [read_facts(self._path(earlier)) for earlier in range(number)]

    def _path(self, number: int) -> Path:
        folder = self.drawing.meter.scratch / "batches"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{number:06d}.safetensors"

    def _ahead_path(self, number: int) -> Path:
        return self._path(number).with_suffix(".drawn")

    def _drawn(self, number: int) -> Batch:
        """The chains of batch `number`, drawn ahead or now."""
        if self.config.lag and number:
            with self.drawing.split.part("waiting"):
                self.ahead.wait()
            return read_batch(self._ahead_path(number))
        self._push(number)
        before = self.batch(number - 1) if number else None
        place, waiting = (before.facts.next_place, before.waiting) if before else (0, [])
        drawn = draw_batch(self.drawing, number, place, waiting)
        if self.config.sleeps:
            with self.drawing.split.part("sync"):
                self.drawing.engine.sleep()
        return drawn

    def _push(self, version: int) -> None:
        """Give the engine the policy's weights of the moment, those before batch `version`."""
        engine = self.drawing.engine
        with self.drawing.split.part("sync"):
            if self.config.sleeps:
                torch.cuda.empty_cache()  # what the update used is the engine's now
                engine.wake()
            engine.push(dict(self.model.named_parameters()), version)

    def _draw_ahead(self, number: int, before: Batch) -> None:
        """Have batch `number` drawn, with the weights of the moment, while the batch before it is trained on."""
        if self._path(number).exists() or self._ahead_path(number).exists():
            return
        self._push(number - 1)
        gap = self._probe(number)

        def draw() -> None:
            batch = draw_batch(self.drawing, number, before.facts.next_place, before.waiting)
            write_batch(self._ahead_path(number), replace(batch, facts=replace(batch.facts, gap=gap)))
            self.drawing.meter.saved()

        self.ahead.start(draw)

    def _probe(self, number: int) -> float:
        """Mean difference of engine's and trainer's log-probabilities on a few short chains, both with the same weights."""
        problems = [*self.drawing.held_out, *self.drawing.problems][:PROBE_PROBLEMS]
        longest = min(PROBE_TOKENS, self.config.max_tokens)
        drawn = self.drawing.roll_out(
            problems, 1, f"probe/{number}", keep_tokens=True, part="probe", max_tokens=longest
        )
        pairs = zip(problems, drawn, strict=True)
        chains = [
            chain for problem, one in pairs for chain in self.drawing.chains(self.drawing.rewarded(problem, [one]))
        ]
        return mean_gap(chains, self.logprobs(chains))

    def _measured(self, batch: Batch) -> Batch:
        """The batch with the trainer's log-probabilities under the weights of the moment, and how far the engine's are off.

        Where each batch has one update its own pass gives them, and the gap is measured on one pack.
        """
        chains = batch.chains
        if self.config.updates == 1:
            chains = self.packs(chains)[0]
        old = self.logprobs(chains)
        if self.config.lag:
            facts = replace(batch.facts, drift=mean_gap(chains, old))
        else:
            facts = replace(batch.facts, gap=mean_gap(chains, old, self.drawing.engine.version))
        return replace(batch, facts=facts) if self.config.updates == 1 else batch.with_old(old, facts)

    @torch.no_grad()
    def logprobs(self, chains: Sequence[Chain]) -> list[list[float]]:
        """Of every completion token, by the trainer; in the order of the chains."""
        found: dict[int, list[float]] = {}
        find = self.forward.logprobs if isinstance(self.forward, FusedStep) else self.forward
        for part in self.packs(chains):
            values = find(pack([encoded(chain) for chain in part])).tolist()
            for chain in part:
                found[id(chain)], values = values[: chain.tokens], values[chain.tokens :]
        return [found[id(chain)] for chain in chains]

    def packs(self, chains: Sequence[Chain]) -> list[list[Chain]]:
        """The chains by the packs that they are trained in."""
        lengths = [len(chain.ids) for chain in chains]
        return [[chains[i] for i in part] for part in split_packs(range(len(chains)), lengths, self.config.pack_tokens)]

    def _epoch(self, facts: Facts) -> int:
        return (facts.next_place - 1) // len(self.drawing.problems)

    def work(self, longest: int) -> Work:
        """The most that one pass and one step ask for. longest: tokens of a prompt and its completion."""
        config = self.config
        packs = -(-config.groups * config.samples * longest // config.pack_tokens)
        return Work(max(config.pack_tokens, longest), -(-packs // config.updates))


def mean_gap(chains: Sequence[Chain], old: Sequence[list[float]], version: int | None = None) -> float:
    """Mean difference, per token in nats, of the engine's log-probabilities and these; where given, of one version's tokens."""
    gaps = []
    for chain, values in zip(chains, old, strict=True):
        start = 0 if version is None else chain.tokens - chain.written_by(version)
        gaps += [abs(s - o) for s, o in zip(chain.sampled[start:], values[start:], strict=True)]
    return fmean(gaps) if gaps else 0.0


def run_grpo(
    inputs: dict[str, Any], config: GrpoConfig, out: Path, meter: Meter, grade: Grade = graders.grade
) -> dict[str, Any]:
    """Stage: problems.jsonl and a model -> a Hugging Face directory, train_log.jsonl, batches.jsonl (see `Facts`), and
    removed.jsonl with the problems that were not trained on.

    Raises InputError for too few problems or what is no model; WorkError when a watchdog stops the run.
    """
    base = Path(inputs["model"])
    entries = tensor_entries(base)
    problems, held_out = read_course(Path(inputs["problems"]) / "problems.jsonl", config, meter.seed)
    split = Split()
    with closing(open_engine(config.engine, base, meter, logprobs=True)) as engine, joined() as world:
        if config.sleeps:
            engine.sleep()
        drawing = Drawing(config, problems, held_out, engine, grade, meter, split)
        method = open_method(base, drawing, world.device)
        identity = {
            "config": key_values(config, str),
            "seed": meter.seed,
            "data": digest(*map(to_json, problems), *map(to_json, held_out)),
            "model": [[e.name, e.dtype, list(e.shape)] for e in entries.values()],
            "template": template_hash(engine.text.tokenizer),
        }
        tracker = open_tracker(config.tracking, identity["config"])
        watch = Watch(shape_of(method.model.config), meter, tracker, say=print, more=split.take)
        checkpoints = Checkpoints(meter.scratch / "ckpt")
        loop = replace(loop_config(config, meter.seed), spike=None)  # the loss centres on 0; watchdogs look after it
        with closing(method.ahead):
            trained = train(
                method.model,
                method,
                loop,
                checkpoints,
                meter,
                identity,
                watch,
                world,
                method.forward,
            )
        save_model(method.model, trained.weights, base, out)
    history = method.history(config.batches)
    write_rows(out / "train_log.jsonl", trained.log)
    write_rows(out / "batches.jsonl", map(to_dict, history))
    asked = drawing.next_problems(0, history[-1].next_place)
    unasked = {problem.id for problem in problems} - {problem.id for problem in asked}
    aside = [(p.id, "held out, to measure pass@1") for p in held_out] + [
        (p.id, "the last batch came before it") for p in problems if p.id in unasked
    ]
    write_rows(out / "removed.jsonl", ({"id": id, "reason": reason} for id, reason in aside))
    return summary(history, len(problems), len(held_out))


def open_method(base: Path, drawing: Drawing, device: torch.device) -> Grpo:
    """The method with its policy on the device, and the fused step where that runs it.

    Raises InputError for a prompt that exceeds the model's positions together with a completion.
    """
    config = drawing.config
    compute = getattr(torch, config.precision)
    beside = torch.cuda.memory_allocated() if device.type == "cuda" else 0  # an engine's of this process
    model = load_model(base, device, compute)
    method = Grpo(config, drawing, model, shard(model, World(device=device), compute))
    longest = max(map(len, drawing.prompts(positions(base)))) + config.max_tokens
    work = replace(method.work(longest), beside=beside)
    method.forward = open_step(model, config, work, compute) or method.forward
    return method


def read_course(path: Path, config: GrpoConfig, seed: int) -> tuple[list[Problem], list[Problem]]:
    """(problems to train on, held-out ones), chosen by the seed. Raises InputError when a batch has too few of them."""
    problems = read_problems(path)
    apart = config.watchdogs.held_out
    order = epoch_order([problem.id for problem in problems], seed, -1)
    if len(problems) < apart + config.groups:
        raise InputError(
            f"{path}: {len(problems)} problems, and a batch needs {config.groups} beside {apart} held out"
            " (watchdogs.held_out)"
        )
    shuffled = [problems[row] for row in order]
    return shuffled[apart:], shuffled[:apart]


def summary(history: Sequence[Facts], problems: int, held_out: int) -> dict[str, Any]:
    """The stage's metrics: what the first and last tenth of the batches measured."""
    tenth = max(1, len(history) // 10)
    ends = {
        f"{name}_{end}": fmean(getattr(facts, name) for facts in part)
        for name in ("reward", "pass1", "tokens", "truncated", "entropy")
        for end, part in (("first", history[:tenth]), ("last", history[-tenth:]))
    }
    drawn, kept = sum(f.drawn for f in history), sum(f.groups for f in history)
    return {
        "problems": problems,
        "held_out": held_out,
        "funnel": [["groups drawn", drawn], ["groups with signal", kept]],
        "gap_largest": max(f.gap for f in history),
        **ends,
    }
