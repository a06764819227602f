"""One decoder layer of the Llama family (Llama, Qwen2), forward and backward written out.

Written out, because then we own what is kept between the two: `LayerPlan` says for each tensor
whether it stays on the device, goes to the host, or is computed again. Norm outputs and
silu(gate) * up are always computed again, inside the backward kernels that read their inputs
anyway. Weight gradients accumulate in place; autograd sees none of this (`trunk.py` wraps all
layers as one function).

Shapes: T tokens, D hidden size, W queries + keys + values, C all query heads, I intermediate size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fathom.train.attention_kernels import Attended, AttentionKernel, Heads, Spans
from fathom.train.flat_layer import LayerTensors
from fathom.train.gemms import Gemms, add_small
from fathom.train.kernels import add_rmsnorm, rmsnorm_backward_, rope_, rope_backward_, swiglu, swiglu_backward_
from fathom.train.offload import Keeper

Kept = dict[str, Any]
"""The fields of `LayerPlan` that were kept, and rstd1, rstd2 and stats (the attention kernel's own tensors)."""


@dataclass(frozen=True)
class Stream:
    """What all layers share for one pack: its documents, the rotation of every token, and how to compute."""

    spans: Spans
    cos_T_d: torch.Tensor
    sin_T_d: torch.Tensor
    heads: Heads
    eps: float
    attention: AttentionKernel
    gemms: Gemms


def forward(
    x_T_D: torch.Tensor,
    delta_T_D: torch.Tensor | None,
    weights: LayerTensors,
    stream: Stream,
    keeper: Keeper | None,
    layer: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The layer on the residual stream x + delta: returns the stream after attention and what the MLP adds to it.

    Both stay apart so that the next norm adds them on its way. keeper: None where no backward follows.
    """

    def keep(name: str, tensor: torch.Tensor) -> None:
        if keeper is not None:
            keeper.put(layer, name, tensor)

    x1, normed, rstd1 = add_rmsnorm(x_T_D, delta_T_D, weights.norm1, stream.eps)
    keep("x1", x1)
    qkv = queries_keys_values(normed, weights, stream)
    keep("qkv", qkv)
    attended = stream.attention.forward(qkv, stream.heads, stream.spans)
    keep("attn", attended.out)
    x2, normed, rstd2 = add_rmsnorm(x1, stream.gemms.forward(attended.out, weights.o), weights.norm2, stream.eps)
    keep("x2", x2)
    gate_up = stream.gemms.forward(normed, weights.gate_up)
    keep("gate_up", gate_up)
    if keeper is not None:
        keeper.hold(layer, rstd1=rstd1, rstd2=rstd2, stats=attended.stats)
    return x2, stream.gemms.forward(swiglu(gate_up), weights.down)


def queries_keys_values(normed_T_D: torch.Tensor, weights: LayerTensors, stream: Stream) -> torch.Tensor:
    """(T, W), queries and keys rotated."""
    qkv = stream.gemms.forward(normed_T_D, weights.qkv)
    rope_(qkv, weights.qkv_bias, stream.cos_T_d, stream.sin_T_d, stream.heads.queries + stream.heads.keys)
    return qkv


def rebuild(kept: Kept, weights: LayerTensors, stream: Stream) -> None:
    """Compute again, in the order of the forward pass, what the plan did not keep."""
    if "qkv" not in kept:
        normed = add_rmsnorm(kept["x1"], None, weights.norm1, stream.eps)[1]
        kept["qkv"] = queries_keys_values(normed, weights, stream)
    if "attn" not in kept:
        attended = stream.attention.forward(kept["qkv"], stream.heads, stream.spans)
        kept["attn"], kept["stats"] = attended
    if "x2" not in kept:
        kept["x2"] = add_rmsnorm(kept["x1"], stream.gemms.forward(kept["attn"], weights.o), weights.norm2, stream.eps)[
            0
        ]
    if "gate_up" not in kept:
        normed = add_rmsnorm(kept["x2"], None, weights.norm2, stream.eps)[1]
        kept["gate_up"] = stream.gemms.forward(normed, weights.gate_up)


def backward(
    kept: Kept, grad_T_D: torch.Tensor, weights: LayerTensors, gradients: LayerTensors, new: bool, stream: Stream
) -> torch.Tensor:
    """Gradient of the layer's input from that of its output; adds to (or, where new, writes) the weights' gradients.

    Empties `kept` on its way, so that memory is free as soon as it can be.
    """
    rebuild(kept, weights, stream)
    grad_T_D = mlp_backward(kept, grad_T_D, weights, gradients, new, stream)
    return attention_backward(kept, grad_T_D, weights, gradients, new, stream)


def mlp_backward(
    kept: Kept, grad_T_D: torch.Tensor, weights: LayerTensors, gradients: LayerTensors, new: bool, stream: Stream
) -> torch.Tensor:
    """Gradient of the stream between attention and MLP."""
    gemms = stream.gemms
    gate_up = kept.pop("gate_up")
    ready = gemms.gradient(grad_T_D)
    hidden = gemms.grad_input(ready, weights.down)
    swiglu_backward_(gate_up, hidden)
    gemms.grad_weight(ready, hidden, gradients.down, new)
    del hidden
    ready = gemms.gradient(gate_up)
    normed = gemms.grad_input(ready, weights.gate_up)
    grad_T_D, norm_grad = rmsnorm_backward_(kept.pop("x2"), kept.pop("rstd2"), weights.norm2, normed, grad_T_D)
    add_small(gradients.norm2, norm_grad, new)
    gemms.grad_weight(ready, normed, gradients.gate_up, new)
    return grad_T_D


def attention_backward(
    kept: Kept, grad_T_D: torch.Tensor, weights: LayerTensors, gradients: LayerTensors, new: bool, stream: Stream
) -> torch.Tensor:
    """Gradient of the layer's input from that of the stream after attention."""
    gemms, heads = stream.gemms, stream.heads
    qkv, attended = kept.pop("qkv"), Attended(kept.pop("attn"), kept.pop("stats"))
    ready = gemms.gradient(grad_T_D)
    mixed_grad = gemms.grad_input(ready, weights.o)
    gemms.grad_weight(ready, attended.out, gradients.o, new)
    grads = stream.attention.backward(mixed_grad, qkv, attended, heads, stream.spans)
    del attended, mixed_grad
    rope_backward_(grads, stream.cos_T_d, stream.sin_T_d, out_T_W=qkv)
    del grads
    if gradients.qkv_bias is not None:
        add_small(gradients.qkv_bias, qkv.sum(0), new)
    ready = gemms.gradient(qkv)
    normed = gemms.grad_input(ready, weights.qkv)
    grad_T_D, norm_grad = rmsnorm_backward_(kept.pop("x1"), kept.pop("rstd1"), weights.norm1, normed, grad_T_D)
    add_small(gradients.norm1, norm_grad, new)
    gemms.grad_weight(ready, normed, gradients.qkv, new)
    return grad_T_D
