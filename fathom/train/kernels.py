"""The memory-bound functions between the GEMMs of a decoder layer, forward and backward.

On a CUDA device each is one Triton kernel (`triton_kernels.py`); elsewhere plain PyTorch with the
same contract, so that the same layer code runs, and is tested, on a CPU. A trailing underscore
says that an argument's memory is overwritten. No GEMMs and no attention here.

Shapes: T tokens, D hidden size, I intermediate size, H heads, d head size, V vocabulary.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import torch
from torch.nn.functional import silu


@cache
def triton_kernels() -> ModuleType:
    """The Triton kernels: not importable where there is no Triton."""
    return importlib.import_module("fathom.train.triton_kernels")


def add_rmsnorm(
    x_T_D: torch.Tensor, delta_T_D: torch.Tensor | None, weight_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x + delta, its RMSNorm times weight, 1 / root mean square of each row in float32); x itself without delta."""
    if x_T_D.is_cuda:
        return triton_kernels().add_rmsnorm(x_T_D, delta_T_D, weight_D, eps)
    total = x_T_D if delta_T_D is None else x_T_D + delta_T_D
    wide = total.to(_wide(total))
    rstd = torch.rsqrt(wide.square().mean(-1) + eps)
    return total, weight_D * (wide * rstd[:, None]).to(total.dtype), rstd


def rmsnorm_backward_(
    x_T_D: torch.Tensor,
    rstd_T: torch.Tensor,
    weight_D: torch.Tensor,
    grad_T_D: torch.Tensor,
    residual_T_D: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of `add_rmsnorm`'s normed output: (d x plus the residual's gradient, d weight in float32).

    `grad_T_D` is overwritten with the normed output itself, which the weight gradient of the next
    GEMM needs.
    """
    if x_T_D.is_cuda:
        return triton_kernels().rmsnorm_backward_(x_T_D, rstd_T, weight_D, grad_T_D, residual_T_D)
    wide = _wide(x_T_D)
    unit = x_T_D.to(wide) * rstd_T[:, None]
    grad = grad_T_D.to(wide)
    scaled = grad * weight_D.to(wide)
    dx = rstd_T[:, None] * (scaled - unit * (scaled * unit).mean(-1, keepdim=True))
    rounded = unit.to(x_T_D.dtype)
    weight_grad = (grad * rounded.to(wide)).sum(0)
    grad_T_D.copy_(rounded * weight_D)
    if residual_T_D is not None:
        dx = dx + residual_T_D.to(wide)
    return dx.to(x_T_D.dtype), weight_grad


def rope_(
    qkv_T_W: torch.Tensor,
    bias_W: torch.Tensor | None,
    cos_T_d: torch.Tensor,
    sin_T_d: torch.Tensor,
    rotated_heads: int,
) -> None:
    """Add the bias and rotate the first `rotated_heads` heads of every row (queries and keys) by its position, in place."""
    if qkv_T_W.is_cuda:
        triton_kernels().rope_(qkv_T_W, bias_W, cos_T_d, sin_T_d, rotated_heads)
        return
    if bias_W is not None:
        qkv_T_W.add_(bias_W)
    size = cos_T_d.shape[1]
    heads = qkv_T_W[:, : rotated_heads * size].unflatten(1, (rotated_heads, size))
    heads.copy_(_rotated(heads, cos_T_d, sin_T_d))


def rope_backward_(
    grads_T_H_d: Sequence[torch.Tensor], cos_T_d: torch.Tensor, sin_T_d: torch.Tensor, out_T_W: torch.Tensor
) -> None:
    """Write the gradients of queries, keys and values side by side into `out_T_W`, the first two rotated back."""
    if out_T_W.is_cuda:
        triton_kernels().rope_backward_(grads_T_H_d, cos_T_d, sin_T_d, out_T_W)
        return
    query, key, value = grads_T_H_d
    back = [_rotated(grad, cos_T_d, -sin_T_d) for grad in (query, key)]
    torch.cat([grad.flatten(1) for grad in (*back, value)], dim=1, out=out_T_W)


def swiglu(gate_up_T_2I: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, of the two halves of every row: (T, I)."""
    if gate_up_T_2I.is_cuda:
        return triton_kernels().swiglu(gate_up_T_2I)
    gate, up = gate_up_T_2I.chunk(2, dim=1)
    return silu(gate) * up


def swiglu_backward_(gate_up_T_2I: torch.Tensor, grad_T_I: torch.Tensor) -> None:
    """Gradients of `swiglu`: overwrites `gate_up_T_2I` with its gradient and `grad_T_I` with the forward output."""
    if gate_up_T_2I.is_cuda:
        triton_kernels().swiglu_backward_(gate_up_T_2I, grad_T_I)
        return
    gate, up = gate_up_T_2I.chunk(2, dim=1)
    sigmoid = torch.sigmoid(gate)
    active = silu(gate)
    gate_grad = grad_T_I * up * sigmoid * (1 + gate * (1 - sigmoid))
    up_grad = grad_T_I * active
    grad_T_I.copy_(active * up)
    gate.copy_(gate_grad)
    up.copy_(up_grad)


def cross_entropy_(logits_R_V: torch.Tensor, targets_R: torch.Tensor, weights_R: torch.Tensor) -> torch.Tensor:
    """log p(target) of every row, float32; `logits_R_V` is overwritten with the gradient of -sum(weight * log p)."""
    if logits_R_V.is_cuda:
        return triton_kernels().cross_entropy_(logits_R_V, targets_R, weights_R)
    logprobs = torch.log_softmax(logits_R_V.to(_wide(logits_R_V)), dim=-1)
    chosen = logprobs.gather(1, targets_R[:, None]).squeeze(1)
    slope = logprobs.exp_().mul_(weights_R[:, None])
    slope.scatter_add_(1, targets_R[:, None], -weights_R[:, None].to(slope.dtype))
    logits_R_V.copy_(slope)
    return chosen.float()


def chosen_logprobs(logits_R_V: torch.Tensor, targets_R: torch.Tensor) -> torch.Tensor:
    """log p(target) of every row, float32; the logits stay as they are."""
    if logits_R_V.is_cuda:
        return triton_kernels().chosen_logprobs(logits_R_V, targets_R)
    logprobs = torch.log_softmax(logits_R_V.to(_wide(logits_R_V)), dim=-1)
    return logprobs.gather(1, targets_R[:, None]).squeeze(1).float()


def _rotated(x_T_H_d: torch.Tensor, cos_T_d: torch.Tensor, sin_T_d: torch.Tensor) -> torch.Tensor:
    low, high = x_T_H_d.chunk(2, dim=-1)
    return x_T_H_d * cos_T_d[:, None] + torch.cat((-high, low), dim=-1) * sin_T_d[:, None]


def _wide(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
