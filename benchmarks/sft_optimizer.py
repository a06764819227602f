"""The fused AdamW on one GPU: equal to its definition in PyTorch, and how long it takes over all parameters of a model."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from sft_workload import BETAS

from fathom.physics import ModelShape
from fathom.train import adamw
from fathom.train.adamw import Moments, Rule

RULE = Rule(1e-5, *BETAS, decay=0.1, step=3, seed=1, draw=3)
REPEATS = 7


def parameter_shapes(shape: ModelShape) -> list[int]:
    """Elements of every tensor, layer by layer."""
    h, kv, mlp = shape.hidden, shape.kv_heads * shape.head_size, shape.intermediate
    layer = [h * h, h, kv * h, kv, kv * h, kv, h * h, mlp * h, mlp * h, mlp * h, h, h]
    return [shape.embedding_parameters, *layer * shape.layers, h, shape.embedding_parameters]


def correctness() -> dict[str, Any]:
    """Share of elements on which the kernel and the definition differ after three updates, and by how much at most."""
    found = {}
    for states, split in (("int8", False), ("int8", True), ("float32", True)):
        generator = torch.Generator().manual_seed(0)
        size = 1_000_003
        start = (torch.randn(size, generator=generator) * 0.02).bfloat16()
        sides = []
        for device in ("cpu", "cuda"):
            weight = start.to(device)
            low = torch.zeros(size, dtype=torch.int16, device=device) if split else None
            sides.append((weight, low, Moments.zero(weight, states)))
        for step in (1, 2, 3):
            grad = (torch.randn(size, generator=generator) * torch.rand(size, generator=generator) ** 6).bfloat16()
            for weight, low, moments in sides:
                factor = torch.tensor(0.7, device=weight.device)
                adamw.update_(weight, low, grad.to(weight.device), moments, factor, replace(RULE, step=step, draw=step))
        (w0, l0, m0), (w1, l1, m1) = sides
        theirs, ours = adamw.read_weight(w0, l0), adamw.read_weight(w1.cpu(), None if l1 is None else l1.cpu())
        codes = (m0.m.float() - m1.m.cpu().float()).abs()
        found[f"{states}, {'split' if split else 'stochastic'}"] = {
            "weights_that_differ": (theirs != ours).float().mean().item(),
            "largest_difference": (theirs - ours).abs().max().item(),
            "first_moments_that_differ": (codes > 0).float().mean().item(),
            "largest_code_difference": codes.max().item(),
        }
    return found


def speed(shape: ModelShape, states: str, split: bool) -> dict[str, Any]:
    """Seconds of the norm and of the update of every parameter; the bytes that they must move."""
    sizes = parameter_shapes(shape)
    tensors = []
    for size in sizes:
        weight = torch.zeros(size, dtype=torch.bfloat16, device="cuda").normal_(0, 0.02)
        low = torch.zeros(size, dtype=torch.int16, device="cuda") if split else None
        tensors.append((weight, low, torch.empty_like(weight).normal_(0, 1e-3), Moments.zero(weight, states)))
    factor = torch.ones((), device="cuda")

    def update() -> None:
        for number, (weight, low, grad, moments) in enumerate(tensors):
            adamw.update_(weight, low, grad, moments, factor, replace(RULE, tensor=number))

    count = sum(sizes)
    per_parameter = 2 + 4 + (4 if split else 0) + (16 if states == "float32" else 4 + 16 / 256)
    result = {"parameters": count, "bytes_per_parameter": per_parameter}
    gradients = [grad for _, _, grad, _ in tensors]
    for name, run, moved in (("norm", lambda: adamw.square_sums(gradients), 2), ("update", update, per_parameter)):
        seconds = timed(run)
        result[name] = {"seconds": round(seconds, 5), "TB_per_s": round(count * moved / seconds / 1e12, 3)}
    return result


def timed(run: Callable[[], Any]) -> float:
    """Median seconds on the device, after two runs that count for nothing."""
    seconds = []
    for _ in range(REPEATS + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    return statistics.median(seconds[2:])


def tile_sizes(shape: ModelShape) -> dict[str, float]:
    """Bytes moved per second by the update with other shapes of the kernel's tile."""
    from fathom.train import adamw_triton

    before = adamw_triton.ROWS, adamw_triton.WARPS
    found = {}
    for rows, warps in ((1, 1), (1, 2), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8)):
        adamw_triton.ROWS, adamw_triton.WARPS = rows, warps
        found[f"{rows} rows, {warps} warps"] = speed(shape, "int8", False)["update"]["TB_per_s"]
    adamw_triton.ROWS, adamw_triton.WARPS = before
    return found
