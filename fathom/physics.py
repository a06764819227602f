"""How big a model is and how fast a device moves it: shapes, memory and speed as closed formulas.

Predictions for `fathom plan`, each with an interval and the source of its constants. Nothing is
measured, imported or downloaded here; a model is known by its configuration alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fathom.errors import InputError

GIB = 2.0**30


@dataclass(frozen=True)
class Range:
    """Low, expected and high value."""

    low: float
    mid: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> Range:
        return cls(value, value, value)

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.mid + other.mid, self.high + other.high)

    def __mul__(self, other: Range | float) -> Range:
        if not isinstance(other, Range):
            other = Range.exactly(other)
        return Range(self.low * other.low, self.mid * other.mid, self.high * other.high)

    def over(self, speed: Range) -> Range:
        """This much work at that speed: the lowest result comes from the highest speed."""
        return Range(self.low / speed.high, self.mid / speed.mid, self.high / speed.low)

    def at_most(self, limit: float) -> Range:
        return Range(min(self.low, limit), min(self.mid, limit), min(self.high, limit))

    def as_list(self) -> list[float]:
        """[low, expected, high] with 4 significant digits, for JSON."""
        return [float(f"{value:.4g}") for value in (self.low, self.mid, self.high)]


NONE = Range.exactly(0)


@dataclass(frozen=True)
class ModelShape:
    """What determines a decoder's size and speed (Qwen2 layout: gated MLP, grouped KV heads, biased QKV)."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool = False

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All weights."""
        kv = self.kv_heads * self.head_size
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * kv + self.hidden + 2 * kv
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.layers * layer + self.hidden + self.embedding_parameters * (1 if self.tied else 2)

    def training_flops(self, length: float) -> float:
        """Per token of a sequence of that length, forward and backward, causal attention, no recomputation."""
        matrix = self.parameters - (0 if self.tied else self.embedding_parameters)
        return 6 * matrix + 6 * self.layers * self.hidden * length

    def decoding_flops(self, context: float) -> float:
        """Per generated token."""
        matrix = self.parameters - (0 if self.tied else self.embedding_parameters)
        return 2 * matrix + 4 * self.layers * self.hidden * context

    def kv_bytes(self) -> float:
        """Of one token of context in 16-bit keys and values."""
        return 4.0 * self.layers * self.kv_heads * self.head_size


KNOWN_SHAPES = {
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": ModelShape(48, 5120, 40, 8, 13824, 152064),
    "Qwen/Qwen2.5-14B": ModelShape(48, 5120, 40, 8, 13824, 152064),
    "Qwen/Qwen2.5-14B-Instruct": ModelShape(48, 5120, 40, 8, 13824, 152064),
    "FractalAIResearch/Fathom-R1-14B": ModelShape(48, 5120, 40, 8, 13824, 152064),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": ModelShape(64, 5120, 40, 8, 27648, 152064),
    "Qwen/Qwen2.5-32B-Instruct": ModelShape(64, 5120, 40, 8, 27648, 152064),
    "Qwen/QwQ-32B-Preview": ModelShape(64, 5120, 40, 8, 27648, 152064),
    "NovaSky-AI/Sky-T1-32B-Preview": ModelShape(64, 5120, 40, 8, 27648, 152064),
}
"""Hub models whose shape is known without a download (their published configurations)."""


def shape_of(directory: Path) -> ModelShape:
    """From a local model's config.json. Raises InputError when it lacks a size."""
    path = directory / "config.json"
    try:
        config = json.loads(path.read_bytes())
        shape = ModelShape(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            heads=config["num_attention_heads"],
            kv_heads=config.get("num_key_value_heads", config["num_attention_heads"]),
            intermediate=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            tied=config.get("tie_word_embeddings", False),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a decoder's configuration ({error})") from None
    sizes = ("layers", "hidden", "heads", "kv_heads", "intermediate", "vocabulary")
    if wrong := [name for name in sizes if type(getattr(shape, name)) is not int or getattr(shape, name) < 1]:
        told = f"{wrong[0]}: {getattr(shape, wrong[0])!r}"
        raise InputError(f"{path}: not a decoder's configuration ({told}, expected a whole number from 1 up)")
    return shape


@dataclass(frozen=True)
class Device:
    """memory_gib: None where the machine's own memory counts. tflops: dense bf16. bandwidth: GB/s. Vendor data sheets.

    link: GB/s to pinned host memory, each way: measured on an H200, and for the A100 what PCIe 4 gives.
    float8: whether it multiplies eight-bit floats.
    """

    memory_gib: float | None
    tflops: float
    bandwidth: float
    link: float = 54
    float8: bool = False


DEVICES = {
    "h100": Device(80, 989, 3350, float8=True),
    "h200": Device(141, 989, 4800, float8=True),
    "a100": Device(80, 312, 2039, link=25),
    "cpu": Device(None, 0.3, 40),
    "laptop": Device(None, 0.3, 40),
}
"""cpu: two AVX-512 cores at about 150 GFLOP/s of float32 each; a roofline, not a measurement."""

TRAINING_SHARE = {
    "gpu": Range(0.40, 0.60, 0.64),
    "gpus": Range(0.40, 0.60, 0.63),
    "gpu, float8": Range(0.45, 0.77, 0.80),
    "gpus, float8": Range(0.50, 0.85, 0.88),
    "cpu": Range(0.15, 0.35, 0.60),
}
"""Share of the bf16 roofline that training reaches while it has a pack, apart from what is computed again.

gpu: the fused step with 14.8B parameters on one H200 was measured at 0.59 with one row of 16,384 tokens a step, 0.60 with sixteen
and 0.61 on packed rows of mixed lengths (python benchmarks/sft_gpu.py -> benchmarks/results/sft_gpu.json; TRL reaches 0.42, 0.45 and
0.34 there). gpus: shared by rows; 32.8B parameters on two H200 at 0.58 with one row each, and at 0.60 on the mix with half of the layers,
which fit as the whole does on eight (sft_gpu_32b.json, sft_gpu_32b_half.json), apart from the time in which they wait for one another.
float8: 0.77 with one row and on the mix of 14.8B; 0.85 on the mix with half of the layers of 32.8B on two, whose products are larger.
Ends: other shapes. cpu: Fathom with 2.4M parameters trained 3,400 tokens per CPU-second, which is 0.39; smaller models reach less."""

DECODING_SHARE = {"gpu": Range(0.30, 0.50, 0.80), "cpu": Range(0.03, 0.08, 0.20)}
"""Share of the roofline that batched decoding reaches, ragged ends of batches included. gpu: an assumption. cpu: Fathom
with 2.4M parameters sampled 2,400 tokens per CPU-second, prompts included, which is 9%."""

FLOAT32_ADAM_BYTES = 16.0
"""Per parameter on a CPU: float32 weights, gradients and two moments."""


def kind_of(device: str) -> str:
    return "cpu" if DEVICES[device].memory_gib is None else "gpu"


def training_speed(shape: ModelShape, length: float, device: str, count: int, float8: bool = False) -> Range:
    """Tokens per second of full training on `count` devices, documents of that length packed together."""
    flops = DEVICES[device].tflops * 1e12 * count
    kind = kind_of(device)
    if kind == "gpu":
        kind = ("gpus" if count > 1 else "gpu") + (", float8" if float8 else "")
    share = TRAINING_SHARE[kind]
    return share * (flops / shape.training_flops(length))


def cpu_training_memory(shape: ModelShape, pack_tokens: float) -> float:
    """Peak GiB of float32 training on a CPU. What a GPU needs is planned tensor by tensor (`train/memory.py`)."""
    activations = pack_tokens * (shape.layers * 14 * shape.hidden + 2 * shape.vocabulary) * 4
    return 0.6 + (FLOAT32_ADAM_BYTES * shape.parameters + activations) / GIB


def decoding_speed(shape: ModelShape, context: float, device: str, count: int, chains: float) -> Range:
    """Tokens per second over `count` devices that each hold a whole copy (or a share of one that is too large).

    chains: how many can decode together at most. Roofline of reading weights and cache against arithmetic.
    """
    sheet = DEVICES[device]
    weights = 2.0 * shape.parameters
    if kind_of(device) == "cpu":
        return DECODING_SHARE["cpu"] * (sheet.tflops * 1e12 * count / shape.decoding_flops(context))
    per_copy = copies_need(shape, device)
    memory = per_copy * sheet.memory_gib * GIB * 0.9 - weights
    copies = max(1, count // per_copy)
    batch = max(1.0, min(chains / copies, memory / (context * shape.kv_bytes())))
    bandwidth, flops = sheet.bandwidth * 1e9 * per_copy, sheet.tflops * 1e12 * per_copy
    step = max(
        (weights + batch * context * shape.kv_bytes()) / bandwidth, batch * shape.decoding_flops(context) / flops
    )
    return DECODING_SHARE["gpu"] * (copies * batch / step)


def copies_need(shape: ModelShape, device: str) -> int:
    """How many devices one copy of the 16-bit weights needs, with a quarter of the memory left for the cache."""
    room = DEVICES[device].memory_gib * GIB * 0.9 * 0.75
    needed = 1
    while needed * room < 2.0 * shape.parameters:
        needed *= 2
    return needed


def decoding_memory(shape: ModelShape, context: float, device: str, chains: float) -> float:
    """Peak GiB per device: on a GPU the engine takes 90% for its cache."""
    if kind_of(device) == "cpu":
        return 0.6 + (4.0 * shape.parameters + min(chains, 256) * context * 2 * shape.kv_bytes()) / GIB
    return DEVICES[device].memory_gib * 0.9
