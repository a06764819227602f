"""What one training pass keeps in device memory, moves to the host or computes twice: the plan before the run.

A model is known by its shape alone, so a 32B run is planned on a laptop. For every layer and every
tensor that its backward pass needs, the plan says keep, offload (to pinned host memory, on a stream
of its own) or recompute. The training block carries it out; nothing is allocated or measured here,
and a model, sequence and machine that can't work are refused with what would.

The tensors of a layer (norm outputs and the SwiGLU product are always recomputed, attention never):

    x1 -> norm -> qkv -> attn -> projection -> + x1 = x2 -> norm -> gate_up -> product -> down -> + x2

Recomputing a projection of width w from hidden size H costs 2*H*w operations a token and saves 2*w
bytes: H operations a byte for each of them, so their order does not matter. Offloading costs no
time as long as the link keeps up with the arithmetic, so that comes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise, product
from math import inf

from fathom.errors import InputError
from fathom.physics import GIB, ModelShape
from fathom.train.config import OptimizerConfig
from fathom.train.layer_plan import LayerPlan, Placement

OFFLOADED_FIRST = ("gate_up", "qkv", "attn", "x2", "x1")
RECOMPUTED_FIRST = ("gate_up", "qkv", "x2")

LINK_BYTES = 54e9
"""Bytes per second between pinned host memory and one H200, each way (48e9 when both ways are busy; measured)."""

LINK_SHARE = 0.9
"""Of the link, what a plan counts on. 48e9 bytes a second were measured to cost a forward pass nothing."""

FLOPS = 6.2e14
"""Operations per second of an H200 in the layers' forward pass: 14.8B, 16,384 tokens in 0.904 s (benchmarks/block_gpu.py)."""

CONTEXT_BYTES = 0.7e9
"""CUDA context and library workspaces, outside the allocator."""

MARGIN = 0.05
"""Share of the memory that a plan leaves: fragmentation, and what it can't foresee. Offloading that much costs nothing."""

LOGITS_BYTES = 1.25 * GIB
"""Logits of one chunk of the loss, with their gradient."""

IN_FLIGHT_LAYERS = 2
"""Layers whose offloaded tensors lie on the device beside the layer that computes: leaving forwards, arriving backwards."""


@dataclass(frozen=True)
class Room:
    """What one process finds: device_bytes free before the model is loaded, host_bytes it may pin.

    flops: bf16 operations per second that a forward pass reaches. link: bytes per second to the host, each way.
    """

    device_bytes: float
    host_bytes: float
    flops: float = FLOPS
    link: float = LINK_BYTES


@dataclass(frozen=True)
class MemoryPlan:
    """peak_bytes: most that is allocated on the device at once. offload_bytes: moved to the host in each forward pass.

    host_bytes: pinned host memory of this process. seconds: what recomputation and copies that
    nothing hides add to each forward and backward pass. notes: for a person.
    """

    per_layer: tuple[LayerPlan, ...]
    peak_bytes: float
    offload_bytes: float
    host_bytes: float
    seconds: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Work:
    """One pass to plan. tokens: of the pass, on one device. packs: passes of an optimizer step.

    devices: over which weights, gradients and optimizer state are sharded. weight_bytes: 2 for
    bfloat16. state_bytes: per parameter, gradient apart; gradient_bytes: of that. Gradients of a
    single pass appear as its activations go; with several they stay.
    """

    shape: ModelShape
    tokens: int
    packs: int
    devices: int
    state_bytes: float
    gradient_bytes: float

    def tensor_bytes(self) -> dict[str, int]:
        """Of one layer, by name; attn with its log-sum-exp in float32."""
        shape, heads = self.shape, self.shape.heads * self.shape.head_size
        per_token = {
            "x1": 2 * shape.hidden,
            "qkv": 2 * (heads + 2 * shape.kv_heads * shape.head_size),
            "attn": 2 * heads + 4 * shape.heads,
            "x2": 2 * shape.hidden,
            "gate_up": 4 * shape.intermediate,
        }
        return {name: size * self.tokens for name, size in per_token.items()}

    def fixed_bytes(self) -> float:
        """Weights and optimizer state, gradients where they stay, and what sharding gathers.

        That is two layers and their gradients with shards under way, embedding, head and the head's gradient.
        """
        stays = self.state_bytes + (self.gradient_bytes if self.packs > 1 else 0)
        gathered = 0 if self.devices == 1 else 6 * self.shape.embedding_parameters + 9 * self.layer_parameters()
        return stays * self.shape.parameters / self.devices + gathered

    def loss_bytes(self) -> float:
        """Working set of the loss: a chunk of logits, the hidden states and their gradient, the head's new gradient."""
        head = 2 * self.shape.embedding_parameters / self.devices if self.packs == 1 else 0
        return LOGITS_BYTES + 4 * self.tokens * self.shape.hidden + head

    def layer_working_bytes(self) -> float:
        """Of one layer's backward pass: the product, residual gradients, qkv and its gradient, attention's workspace."""
        shape = self.shape
        heads = shape.heads * shape.head_size
        qkv = heads + 2 * shape.kv_heads * shape.head_size
        return 2 * self.tokens * (shape.intermediate + 3 * shape.hidden + 2 * qkv) + 10 * self.tokens * heads

    def layer_parameters(self) -> int:
        outside = self.shape.embedding_parameters * (1 if self.shape.tied else 2) + self.shape.hidden
        return (self.shape.parameters - outside) // self.shape.layers

    def layer_seconds(self, flops: float) -> float:
        """Forward, with causal attention over one document."""
        return (2 * self.layer_parameters() * self.tokens + 2 * self.shape.hidden * self.tokens**2) / flops


def plan_memory(
    shape: ModelShape,
    tokens: int,
    optimizer: OptimizerConfig,
    room: Room,
    devices: int = 1,
    packs: int = 1,
    weight_bytes: int = 2,
) -> MemoryPlan:
    """The fastest plan that fits: keep all; offload what the link hides; recompute; offload the rest.

    tokens, packs, devices, weight_bytes: as in `Work`. Raises InputError that says what would fit instead.
    """
    work = Work(shape, tokens, packs, devices, *stored_bytes(optimizer, weight_bytes))
    plan = solve(work, room)
    if plan is None:
        bare = work.fixed_bytes() + max(work.loss_bytes(), work.layer_working_bytes())
        raise InputError(
            f"{shape.parameters / 1e9:.1f}B parameters and {tokens:,} tokens a pass do not fit on {devices} "
            f"device{'s' if devices > 1 else ''} of {room.device_bytes / GIB:.0f} GiB with {room.host_bytes / GIB:.0f} GiB "
            f"of host memory ({bare / GIB:.0f} GiB each beside the activations); what would: "
            + (", ".join(_advice(work, room)) or "a smaller model")
        )
    return plan


def stored_bytes(optimizer: OptimizerConfig, weight_bytes: int = 2) -> tuple[float, float]:
    """Per parameter: (weight, master and both moments; gradient). 8-bit moments have a float32 scale for every 256."""
    moments = 8.0 if optimizer.states == "float32" else 2 * (1 + 4 / 256)
    if weight_bytes == 4:
        return 4 + moments, 4.0
    if optimizer.master == "float32":
        return 2 + 4 + moments, 4.0
    return (4 if optimizer.master == "split" else 2) + moments, 2.0


def solve(work: Work, room: Room) -> MemoryPlan | None:
    """None where not even everything offloaded and recomputed fits.

    The first layers move first: their tensors wait longest, and come back as those of later layers are freed.
    """
    sizes, layers = work.tensor_bytes(), work.shape.layers
    allowed = room.device_bytes * (1 - MARGIN) - CONTEXT_BYTES
    hidden = LINK_SHARE * room.link * work.layer_seconds(room.flops)
    plan = [dict.fromkeys(sizes, "keep") for _ in range(layers)]
    moved = 0
    peak = peak_bytes(work, plan)
    for place, names, hidden_rate in (
        ("offload", OFFLOADED_FIRST, hidden),
        ("recompute", RECOMPUTED_FIRST, inf),
        ("offload", OFFLOADED_FIRST, inf),
    ):
        for layer, name in product(range(layers), names):
            if peak <= allowed:
                break
            if plan[layer][name] != "keep":
                continue
            if place == "offload":
                if moved + sizes[name] > min(room.host_bytes, hidden_rate * (layer + 1)):
                    continue
                moved += sizes[name]
            plan[layer][name] = place
            peak = peak_bytes(work, plan)
    if peak > allowed:
        return None
    recomputed = sum(sizes[name] for places in plan for name, place in places.items() if place == "recompute")
    seconds = work.shape.hidden * recomputed / room.flops + max(0.0, moved - hidden * layers) / room.link
    notes = tuple(_notes(plan, sizes, seconds))
    return MemoryPlan(tuple(LayerPlan(**places) for places in plan), peak, moved, moved, seconds, notes)


def peak_bytes(work: Work, plan: list[dict[str, Placement]]) -> float:
    """Most that is allocated at once: at the loss, or in the backward pass of some layer."""
    sizes = work.tensor_bytes()
    at = {
        place: [sum(size for name, size in sizes.items() if places[name] == place) for places in plan]
        for place in ("keep", "offload", "recompute")
    }
    kept = [0, *accumulate(size + 8 * work.tokens for size in at["keep"])]
    arriving = [sum(pair) for pair in pairwise([0, *at["offload"]])]
    new = work.gradient_bytes * work.layer_parameters() / work.devices if work.packs == 1 else 0
    head = work.gradient_bytes * work.shape.embedding_parameters / work.devices if work.packs == 1 else 0
    loss = kept[-1] + sum(at["offload"][-IN_FLIGHT_LAYERS:]) + work.loss_bytes()
    backward = max(
        kept[layer + 1] + arriving[layer] + at["recompute"][layer] + new * (work.shape.layers - layer) + head
        for layer in range(work.shape.layers)
    )
    return work.fixed_bytes() + max(loss, backward + work.layer_working_bytes())


def _notes(plan: list[dict[str, Placement]], sizes: dict[str, int], seconds: float) -> Iterator[str]:
    for place, verb in (("offload", "offloads"), ("recompute", "recomputes")):
        counts = {name: sum(places[name] == place for places in plan) for name in sizes}
        total = sum(sizes[name] * count for name, count in counts.items())
        if total:
            which = ", ".join(f"{name} of {count}" for name, count in counts.items() if count)
            yield f"{verb} {total / GIB:.0f} GiB a pass ({which} of {len(plan)} layers)"
    if seconds >= 0.01:
        yield f"that adds {seconds:.2f} s a pass"


def _advice(work: Work, room: Room) -> Iterator[str]:
    """The smallest change of each kind that would fit."""
    stored, gradient = stored_bytes(OptimizerConfig(states="int8", master="stochastic"))
    small = Work(work.shape, work.tokens, work.packs, work.devices, stored, gradient)
    if stored + gradient < work.state_bytes + work.gradient_bytes and solve(small, room):
        yield "precision bfloat16 with optimizer {states: int8, master: stochastic}"
    counts = (n for n in (2, 4, 8, 16, 32, 64) if n > work.devices)
    if count := next((n for n in counts if solve(replace(small, devices=n), room)), None):
        yield f"{count} devices with sharding and 8-bit moments"
    lengths = (length for length in (work.tokens // 2, work.tokens // 4, work.tokens // 8) if length >= 1024)
    if length := next((length for length in lengths if solve(replace(work, tokens=length), room)), None):
        yield f"max_length and pack_tokens of {length}"
    for name, bytes_per_weight in (("LoRA on bfloat16 weights", 2.0), ("QLoRA on 4-bit weights", 0.56)):
        if solve(replace(work, state_bytes=bytes_per_weight, gradient_bytes=0.0), room):
            yield name
            break
