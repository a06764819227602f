"""A decoder layer's parameters as views of one flat buffer, and their gradients as views of another.

Names and shapes stay Hugging Face's (`self_attn.q_proj.weight`, ...), while matrices that multiply
the same input lie together and are one GEMM. `sharded.py` has the same for parameters that several
processes share. It computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


class Layout:
    """Where the parameters of a Llama-like decoder layer lie in a flat buffer of `size` elements."""

    def __init__(self, layer: nn.Module) -> None:
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
        self._groups = {name: group for name, group in groups.items() if group[0] is not None}
        self._starts: dict[str, int] = {}
        self.size = 0
        for name, group in self._groups.items():
            self._starts[name] = self.size
            self.size += -(-_elements(group) // ALIGNMENT) * ALIGNMENT

    @property
    def first(self) -> nn.Parameter:
        return self._groups["norm1"][0]

    def views(self, flat: torch.Tensor) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        """Every parameter with its place in `flat`, in the parameter's shape."""
        for name, group in self._groups.items():
            start = self._starts[name]
            for p in group:
                yield p, flat[start : start + p.numel()].view(p.shape)
                start += p.numel()

    def tensors(self, flat: torch.Tensor) -> LayerTensors:
        """The whole groups as views of `flat`."""
        found: dict[str, torch.Tensor | None] = {"qkv_bias": None}
        for name, group in self._groups.items():
            start = self._starts[name]
            found[name] = flat[start : start + _elements(group)].view(-1, *group[0].shape[1:])
        return LayerTensors(**found)

    def clear_padding(self, flat: torch.Tensor) -> None:
        """Zeros between the groups."""
        ends = [*list(self._starts.values())[1:], self.size]
        for (name, group), end in zip(self._groups.items(), ends, strict=True):
            flat[self._starts[name] + _elements(group) : end] = 0


class FlatLayer:
    """Moves a layer's parameters into one buffer; the module works as before.

    Moving the module to another device or dtype afterwards takes the parameters out of the buffer.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._layout = Layout(layer)
        self.flat = self._layout.first.new_zeros(self._layout.size).detach()
        for p, view in self._layout.views(self.flat):
            view.copy_(p.detach())
            p.data = view
        self.weights = self._layout.tensors(self.flat)

    def gradients(self) -> tuple[LayerTensors, bool]:
        """The gradients, and whether they are new: then their values are undefined and must be overwritten.

        They are new when the optimizer has dropped them (`grad = None`), which releases their memory.
        """
        flat = self.flat_gradient()
        if flat is not None:
            return self._layout.tensors(flat), False
        flat = torch.empty_like(self.flat)
        self._layout.clear_padding(flat)
        for p, view in self._layout.views(flat):
            p.grad = view
        return self._layout.tensors(flat), True

    def flat_gradient(self) -> torch.Tensor | None:
        """The buffer behind the gradients; None when they were dropped. Padding is zero."""
        grad = self._layout.first.grad
        return None if grad is None else grad._base


class LocalWeights:
    """All layers of a model that this process holds as a whole. `sharded.ShardedWeights` is the other way."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = [FlatLayer(layer) for layer in layers]

    def fetch(self, number: int) -> None:
        """Say that a layer's weights are needed soon. Numbers outside the model are ignored."""

    def weights(self, number: int) -> LayerTensors:
        return self.layers[number].weights

    def gradients(self, number: int) -> tuple[LayerTensors, bool]:
        """As `FlatLayer.gradients`; to be called once a pass, before the layer's backward pass."""
        return self.layers[number].gradients()

    def finish(self, number: int) -> None:
        """Say that a layer's gradients of this pass are complete."""

    def settle(self) -> None:
        """Say that a pass begins or is over: weights may have changed, and all gradients are where the optimizer looks."""

    def whole(self, parameter: nn.Parameter) -> torch.Tensor:
        """A parameter outside the layers as a leaf to compute with; `give` takes its gradient."""
        return parameter

    def give(self, parameter: nn.Parameter, leaf: torch.Tensor) -> None:
        """Hand over the gradient that was written to `leaf.grad`, where autograd did not do it."""


def _elements(group: Sequence[nn.Parameter]) -> int:
    return sum(p.numel() for p in group)
