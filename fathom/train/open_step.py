"""How a training stage runs its packs: the fused step where it can, with a memory plan for this machine.

It decides and builds; `trunk.py` computes. The plain path (`model.pack_logprobs`) is for models and
devices that the fused step doesn't know, and is what it is tested against.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from fathom.errors import InputError
from fathom.physics import ModelShape
from fathom.train.config import OptimizerConfig
from fathom.train.float8 import Float8Gemms
from fathom.train.gemms import PlainGemms
from fathom.train.memory import MemoryPlan, Room, plan_memory
from fathom.train.trunk import FusedStep, why_not

HOST_SHARE = 0.8
"""Of the host memory that is available, what offloaded activations may pin."""


def open_step(
    model: PreTrainedModel,
    step: Literal["auto", "plain", "fused"],
    float8: bool,
    plan: MemoryPlan | None,
    dtype: torch.dtype | None = None,
) -> FusedStep | None:
    """The fused step over `model`, which is on its device and perhaps sharded; None where the plain path runs it.

    auto: fused on CUDA devices for models that it knows. plan: where activations stay, None for all
    on the device. dtype: see `FusedStep`. Raises InputError when the recipe asks for what can't be.
    """
    reason = why_not(model)
    if step == "fused" and reason:
        raise InputError(f"step: fused doesn't run this model ({reason}); set step: plain")
    if step == "plain" or (step == "auto" and (reason or model.device.type != "cuda")):
        if float8:
            why = reason or ("step: plain is set" if step == "plain" else f"device {model.device.type}")
            raise InputError(f"float8: true needs the fused step, which doesn't run here ({why})")
        return None
    gemms = Float8Gemms() if float8 else PlainGemms()
    return FusedStep(model, plan.per_layer if plan else None, gemms, dtype)


def plan_here(
    shape: ModelShape, tokens: int, packs: int, optimizer: OptimizerConfig, weight_bytes: int, devices: int = 1
) -> MemoryPlan | None:
    """Where activations stay on this machine's GPUs, before the model is on them; None without a GPU.

    tokens: of the largest pack. packs: of an optimizer step, on one device. Raises InputError with
    advice where nothing fits.
    """
    if not torch.cuda.is_available():
        return None
    here = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    room = Room(torch.cuda.mem_get_info()[0], HOST_SHARE * available_host_bytes() / here)
    return plan_memory(shape, tokens, optimizer, room, devices, packs, weight_bytes)


def available_host_bytes() -> int:
    """Memory that programs can still get without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
