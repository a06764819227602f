"""How a training stage runs its packs: the fused step where it can, with a memory plan for this machine.

It decides and builds; `trunk.py` computes. The plain path (`model.pack_logprobs`) is for models and
devices that the fused step doesn't know, and is what it is tested against.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from fathom.errors import InputError
from fathom.train.config import GrpoConfig, OptimizerConfig, StepsConfig
from fathom.train.float8 import Float8Gemms
from fathom.train.gemms import TunedGemms
from fathom.train.memory import MemoryPlan, Room, plan_memory
from fathom.train.trunk import FusedStep, why_not
from fathom.train.watch import shape_of

HOST_SHARE = 0.8
"""Of the host memory that is available, what offloaded activations may pin."""
FLOAT8_CAPABILITY = (8, 9)
"""CUDA compute capability from which GPUs multiply eight-bit floats."""
FLOAT8_MULTIPLE = 16
"""What the sizes of such products are multiples of."""


@dataclass(frozen=True)
class Work:
    """tokens: of the largest pack. packs: of an optimizer step, on one device. devices: that share the model.

    beside: bytes of the device that this process holds for something else.
    """

    tokens: int
    packs: int
    devices: int = 1
    beside: int = 0


def open_step(
    model: PreTrainedModel, config: StepsConfig | GrpoConfig, work: Work, dtype: torch.dtype
) -> FusedStep | None:
    """The fused step over `model`, which is on its device and perhaps sharded; None where the plain path runs it.

    dtype: to compute in. Raises InputError when the recipe asks for what can't be, and with advice
    when the work doesn't fit into this machine's GPUs.
    """
    on_gpu = model.device.type == "cuda"
    reason = why_not(model) or (f"precision {config.precision}" if on_gpu and dtype == torch.float32 else None)
    if config.step == "fused" and reason:
        raise InputError(f"step: fused doesn't run this model ({reason}); set step: plain")
    if config.step == "plain" or (config.step == "auto" and (reason or not on_gpu)):
        if config.float8:
            why = reason or ("step: plain is set" if config.step == "plain" else f"device {model.device.type}")
            raise InputError(f"float8: true needs the fused step, which doesn't run here ({why})")
        return None
    if config.float8 and on_gpu and torch.cuda.get_device_capability(model.device) < FLOAT8_CAPABILITY:
        raise InputError(f"float8: true, but {torch.cuda.get_device_name(model.device)} multiplies no eight-bit floats")
    if config.float8 and (name := _indivisible(model)):
        raise InputError(
            f"float8: true needs layers whose sizes are multiples of {FLOAT8_MULTIPLE}; {name} has another"
        )
    plan = plan_here(model, config.optimizer, work) if on_gpu else None
    gemms = Float8Gemms() if config.float8 else TunedGemms()
    return FusedStep(model, plan.per_layer if plan else None, gemms, dtype, work.tokens)


def _indivisible(model: PreTrainedModel) -> str | None:
    """A matrix of the layers that products in eight bits can't take."""
    matrices = ((name, p) for name, p in model.model.layers.named_parameters() if p.ndim == 2)
    return next((name for name, p in matrices if any(size % FLOAT8_MULTIPLE for size in p.shape)), None)


def plan_here(model: PreTrainedModel, optimizer: OptimizerConfig, work: Work) -> MemoryPlan:
    """Where activations stay on this machine's GPUs. Raises InputError with advice where nothing fits."""
    shape = shape_of(model.config)
    assert shape is not None, "why_not lets plain decoders pass only"
    free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - work.beside
    beside = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    room = Room(free, HOST_SHARE * available_host_bytes() / beside)
    bytes_each = next(model.parameters()).element_size()
    return plan_memory(shape, work.tokens, optimizer, room, work.devices, work.packs, bytes_each)


def available_host_bytes() -> int:
    """Memory that programs can still get without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
