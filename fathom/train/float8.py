"""The linear layers' products in eight bits: one scale per tensor, taken from its values at every use.

Inputs and weights become e4m3, gradients e5m2; products accumulate in float32 and come out in the
tensors' dtype. An opt-in: it is faster and its loss is not the same; since a scale spans the pack,
a document's rounding depends on its neighbours. Norms, attention, embeddings
and the head stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from fathom.train.kernels import triton_kernels

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2


@dataclass(frozen=True)
class Float8:
    """A matrix in eight bits: `plain` (R, C), `transposed` (C, R rounded up to 16, zeros), each where asked for.

    Values are `scale` (float32 scalar) times the stored ones.
    """

    plain: torch.Tensor | None
    transposed: torch.Tensor | None
    scale: torch.Tensor


def float8(x_R_C: torch.Tensor, dtype: torch.dtype, plain: bool = False, transposed: bool = False) -> Float8:
    """Scale by the largest magnitude and round."""
    if x_R_C.is_cuda:
        kernels = triton_kernels()
        return Float8(*kernels.float8(x_R_C, kernels.amax(x_R_C), dtype, plain, transposed))
    largest = torch.finfo(dtype).max
    scale = x_R_C.abs().max().float().clamp_min(1e-12) / largest
    small = (x_R_C.float() / scale).clamp(-largest, largest).to(dtype)
    grown = pad(small.float(), (0, 0, 0, -len(small) % 16)).to(dtype)
    return Float8(small if plain else None, grown.T.contiguous() if transposed else None, scale)


class Float8Gemms:
    """`gemms.Gemms` in eight bits. The sizes of all layers must be multiples of 16."""

    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        a, b = float8(x, FORWARD, plain=True), float8(weight, FORWARD, plain=True)
        return product(a.plain, b.plain, a.scale, b.scale, x.dtype, fast=True)

    def gradient(self, grad: torch.Tensor) -> Float8:
        return float8(grad, BACKWARD, plain=True, transposed=True)

    def grad_input(self, grad: Float8, weight: torch.Tensor) -> torch.Tensor:
        b = float8(weight, FORWARD, transposed=True)
        return product(grad.plain, b.transposed, grad.scale, b.scale, weight.dtype)

    def grad_weight(self, grad: Float8, x: torch.Tensor, target: torch.Tensor, new: bool) -> None:
        b = float8(x, FORWARD, transposed=True)
        out = target if new else None
        value = product(grad.transposed, b.transposed, grad.scale, b.scale, target.dtype, out=out)
        if not new:
            target.add_(value)


def product(
    a_M_K: torch.Tensor,
    b_N_K: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    dtype: torch.dtype,
    fast: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """a @ b^T, (M, N). fast: the tensor cores' own accumulation, of about 14 bits, without promotion to float32."""
    if a_M_K.is_cuda:
        return torch._scaled_mm(a_M_K, b_N_K.T, a_scale, b_scale, out_dtype=dtype, use_fast_accum=fast, out=out)
    value = ((a_M_K.float() * a_scale) @ (b_N_K.float() * b_scale).T).to(dtype)
    return value if out is None else out.copy_(value)
