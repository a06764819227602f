"""What both sides of `sft_gpu.py` train: one random model, the same rows of tokens, and how a step is timed and counted.

Imported by the benchmark's processes; prints and writes nothing by itself but a report after every step.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from transformers import Qwen2Config, Qwen2ForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fathom.physics import DEVICES, ModelShape  # noqa: E402

LEARNING_RATE, BETAS, CLIP = 1e-5, (0.9, 0.95), 1.0
CAP, MEAN, VARIATION = 16384, 8192, 0.5
"""Packed mix: log-normal lengths with this mean and coefficient of variation, cut at the cap."""
WORDS = 2000
"""Distinct tokens of the rows; token t of rank r follows with a probability of about 1/r, and half depend on the last."""

SHAPES = {
    "14b": ModelShape(48, 5120, 40, 8, 13824, 152064),
    "32b": ModelShape(64, 5120, 40, 8, 27648, 152064),
    "tiny": ModelShape(2, 64, 4, 2, 160, 2304),
}


@dataclass(frozen=True)
class Workload:
    """steps: row lengths of every optimizer step. skip: first steps that no figure counts."""

    name: str
    steps: list[list[int]]
    skip: int

    def rows(self, seed: int) -> list[list[list[int]]]:
        """Token ids of every row of every step; the same for whoever asks."""
        generator = np.random.default_rng(seed)
        return [[tokens(generator, length) for length in lengths] for lengths in self.steps]


def lognormal_lengths(
    generator: np.random.Generator, mean: int, shape: tuple[int, int], full: int = CAP
) -> list[list[int]]:
    """Row lengths of every step, cut at `full`, to which they are scaled."""
    spread = math.sqrt(math.log(1 + VARIATION**2))
    draw = generator.lognormal(math.log(mean) - spread**2 / 2, spread, shape)
    return np.clip(draw * full / CAP, 16, full).astype(int).tolist()


def workloads(
    full: int, counts: tuple[int, int, int], seed: int, gpus: int = 1, rows: int = 16, mean: int = MEAN
) -> dict[str, Workload]:
    """one: a full-length row a step for every GPU. sixteen: that many. mix: `rows` of mixed lengths a step. packed: all of those in one.

    counts: steps of `one`, of `sixteen`, and of the mix.
    """
    steps, many_steps, mix_steps = counts
    mixed = lognormal_lengths(np.random.default_rng(seed), mean, (mix_steps, rows), full)
    return {
        "one": Workload("one", [[full] * gpus] * steps, min(2, steps - 1)),
        "sixteen": Workload("sixteen", [[full] * 16] * many_steps, min(1, many_steps - 1)),
        "mix": Workload("mix", mixed, min(1, mix_steps - 1)),
        "packed": Workload("packed", [[length for lengths in mixed for length in lengths]], 0),
    }


def tokens(generator: np.random.Generator, length: int) -> list[int]:
    """A row that can be learned in part: every other token follows from the one before."""
    drawn = np.minimum(generator.zipf(1.3, length), WORDS)
    drawn[1::2] = (drawn[0::2][: length // 2] * 7 + 1) % WORDS
    return (drawn + 100).tolist()


def random_model(shape: ModelShape, device: str, seed: int, mesh: DeviceMesh | None = None) -> Qwen2ForCausalLM:
    """Made on the device: normal weights of standard deviation 0.02, norms 1, biases 0; bfloat16.

    mesh: over which every parameter is shared by rows; each process makes its own.
    """
    config = Qwen2Config(
        num_hidden_layers=shape.layers, hidden_size=shape.hidden, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, intermediate_size=shape.intermediate, vocab_size=shape.vocabulary,
        max_position_embeddings=CAP, tie_word_embeddings=shape.tied, rope_theta=1e6, attn_implementation="sdpa",
    )  # fmt: skip
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)  # its buffers are computed, not loaded
    generator = torch.Generator(device).manual_seed(seed + (mesh.get_local_rank() if mesh else 0))
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            rows = p.shape[0] // (mesh.size() if mesh else 1)
            made = torch.empty(rows, *p.shape[1:], dtype=p.dtype, device=device)
            if made.ndim >= 2:
                made.normal_(0, 0.02, generator=generator)
            else:
                made.fill_(0.0 if name == "bias" else 1.0)
            whole = made if mesh is None else DTensor.from_local(made, mesh, [Shard(0)], run_check=False)
            setattr(module, name, torch.nn.Parameter(whole))
    return model.train()


def model_flops(shape: ModelShape, lengths: Sequence[int]) -> float:
    """Of training on rows of these lengths: forward and backward, causal attention, nothing computed twice."""
    return sum(length * shape.training_flops(length) for length in lengths)


@dataclass
class Clock:
    """Times the optimizer steps of one workload and writes what is known after each to `file` (None: somebody else does)."""

    workload: Workload
    shape: ModelShape
    device: str
    file: Path | None
    report: dict[str, Any]
    gpus: int = 1
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def start(self) -> None:
        self.wait()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._last = time.perf_counter()

    def tick(self, loss: float | None = None) -> None:
        """The end of one optimizer step."""
        self.wait()
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now
        if loss is not None:
            self.losses.append(loss)
        self.save()

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def save(self) -> None:
        self.report[self.workload.name] = self.figures()
        if self.file is not None:
            self.file.write_text(json.dumps(self.report))

    def figures(self) -> dict[str, Any]:
        """Rates over the median of the steps that count."""
        counted = list(zip(self.seconds, self.workload.steps, strict=False))[self.workload.skip :]
        found: dict[str, Any] = {
            "steps": len(self.seconds),
            "seconds": rounded(self.seconds),
            "losses": rounded(self.losses),
        }
        if counted:
            rates = [sum(lengths) / seconds for seconds, lengths in counted]
            flops = [model_flops(self.shape, lengths) / seconds for seconds, lengths in counted]
            found |= {
                "useful_tokens_per_s": round(statistics.median(rates), 1),
                "useful_tokens_per_s_and_gpu": round(statistics.median(rates) / self.gpus, 1),
                "model_tflops": round(statistics.median(flops) / 1e12 / self.gpus, 1),
                "mfu": round(statistics.median(flops) / 1e12 / self.gpus / DEVICES["h200"].tflops, 4),
            }
        if self.device == "cuda":
            found["peak_allocated_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
            found["peak_reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
        return found | self.extra


def rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 5) for value in values]
