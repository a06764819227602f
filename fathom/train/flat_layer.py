"""A decoder layer's parameters as views of one flat buffer, and their gradients as views of another.

Names and shapes stay Hugging Face's (`self_attn.q_proj.weight`, ...), while matrices that multiply
the same input lie together and are one GEMM. One buffer per layer is also one message when layers
are sharded. It computes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

ALIGNMENT = 128
"""Every group of parameters starts at a multiple of this many elements (TMA needs 16 bytes)."""


@dataclass(frozen=True)
class LayerTensors:
    """Weights of one layer, or their gradients. D hidden, Q all query heads, W queries + keys + values, I intermediate.

    norm1, norm2: (D). qkv: (W, D). qkv_bias: (W) or None. o: (D, Q). gate_up: (2 I, D). down: (D, I).
    """

    norm1: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    o: torch.Tensor
    norm2: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


class FlatLayer:
    """Moves a layer's parameters into one buffer; the module works as before.

    Moving the module to another device or dtype afterwards takes the parameters out of the buffer.
    """

    def __init__(self, layer: nn.Module) -> None:
        groups = parameter_groups(layer)
        self._parameters = list(groups.values())
        self._names = list(groups)
        self._starts: list[int] = []
        end = 0
        for group in self._parameters:
            self._starts.append(end)
            end += -(-sum(p.numel() for p in group) // ALIGNMENT) * ALIGNMENT
        self.flat = groups["norm1"][0].new_zeros(end)
        for p, view in self._views(self.flat):
            view.copy_(p.detach())
            p.data = view
        self.weights = self._tensors(self.flat)

    def gradients(self) -> tuple[LayerTensors, bool]:
        """The gradients, and whether they are new: then their values are undefined and must be overwritten.

        They are new when the optimizer has dropped them (`grad = None`), which releases their memory.
        """
        first = self._parameters[0][0]
        new = first.grad is None
        if new:
            flat = torch.empty_like(self.flat)
            self._clear_padding(flat)
            for p, view in self._views(flat):
                p.grad = view
        else:
            flat = first.grad._base
        return self._tensors(flat), new

    def flat_gradient(self) -> torch.Tensor | None:
        """The buffer behind the gradients; None when they were dropped. Padding is zero."""
        first = self._parameters[0][0]
        return None if first.grad is None else first.grad._base

    def _views(self, flat: torch.Tensor) -> list[tuple[nn.Parameter, torch.Tensor]]:
        views = []
        for start, group in zip(self._starts, self._parameters, strict=True):
            for p in group:
                views.append((p, flat[start : start + p.numel()].view(p.shape)))
                start += p.numel()
        return views

    def _tensors(self, flat: torch.Tensor) -> LayerTensors:
        tensors: dict[str, torch.Tensor | None] = {"qkv_bias": None}
        for name, start, group in zip(self._names, self._starts, self._parameters, strict=True):
            length = sum(p.numel() for p in group)
            tensors[name] = flat[start : start + length].view(-1, *group[0].shape[1:])
        return LayerTensors(**tensors)

    def _clear_padding(self, flat: torch.Tensor) -> None:
        for start, end, group in zip(self._starts, [*self._starts[1:], len(flat)], self._parameters, strict=True):
            flat[start + sum(p.numel() for p in group) : end] = 0


def parameter_groups(layer: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters of a Llama-like decoder layer, by the name of the tensor of `LayerTensors` they make up."""
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    groups = {
        "norm1": [layer.input_layernorm.weight],
        "qkv": [p.weight for p in projections],
        "qkv_bias": [p.bias for p in projections],
        "o": [attention.o_proj.weight],
        "norm2": [layer.post_attention_layernorm.weight],
        "gate_up": [mlp.gate_proj.weight, mlp.up_proj.weight],
        "down": [mlp.down_proj.weight],
    }
    return {name: group for name, group in groups.items() if group[0] is not None}
