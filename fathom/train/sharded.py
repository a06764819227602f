"""The weights of a model whose parameters several processes share (FSDP2's DTensors, split by rows).

Each layer is gathered into a flat buffer one layer ahead of its use, and its gradient is summed over
the processes and split again while the next layer computes. The parameters and their gradients
stay the DTensors that optimizer and checkpoints know; sums are in the parameters' dtype. It starts no processes and shards no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Shard

from fathom.train.flat_layer import LayerTensors, Layout

BUFFERS = 2
"""One for the layer that computes, one for its neighbour on the way."""


class ShardedWeights:
    """`flat_layer.LocalWeights` for shared parameters. dtype: to compute in; weights are rounded to it when gathered.

    Raises ValueError for parameters that are not split evenly by rows over one group of processes.
    """

    def __init__(self, layers: Sequence[nn.Module], dtype: torch.dtype) -> None:
        self._layouts = [Layout(layer) for layer in layers]
        for layer in layers:
            if reason := why_not_rows(layer.named_parameters()):
                raise ValueError(reason)
        first = self._layouts[0].first
        self._group, self._dtype = first.device_mesh.get_group(), dtype
        device = first.to_local().device
        self._weights = [torch.zeros(self._layouts[0].size, dtype=dtype, device=device) for _ in range(BUFFERS)]
        self._gradients = [torch.zeros_like(self._weights[0]) for _ in range(BUFFERS)]
        self._held: list[int | None] = [None] * BUFFERS
        self._coming: dict[int, Any] = {}
        self._leaving: dict[int, tuple[list[nn.Parameter], list[torch.Tensor], Any]] = {}

    def fetch(self, number: int) -> None:
        """Start gathering a layer, unless it is there or the number is outside the model."""
        if not 0 <= number < len(self._layouts) or number in self._held:
            return
        buffer = self._weights[number % BUFFERS]
        self._held[number % BUFFERS] = number
        parameters, views = zip(*self._layouts[number].views(buffer), strict=True)
        # At once, as one kernel: a kernel waits for room on a GPU that computes, and a dozen of them would wait in turn.
        self._coming[number] = self._group.allgather_into_tensor_coalesced(
            list(views), [self._local(p) for p in parameters]
        )

    def weights(self, number: int) -> LayerTensors:
        self.fetch(number)
        if number in self._coming:
            self._coming.pop(number).wait()
        return self._layouts[number].tensors(self._weights[number % BUFFERS])

    def gradients(self, number: int) -> tuple[LayerTensors, bool]:
        """A buffer to write this pass's gradients to."""
        self._add_shards(number + BUFFERS)
        return self._layouts[number].tensors(self._gradients[number % BUFFERS]), True

    def finish(self, number: int) -> None:
        """Start to sum a layer's gradients over the processes; each gets its rows."""
        pairs = list(self._layouts[number].views(self._gradients[number % BUFFERS]))
        grads = [view.to(p.dtype).contiguous() for p, view in pairs]
        rows = [new_rows(p) for p, _ in pairs]
        work = self._group.reduce_scatter_tensor_coalesced(rows, grads)
        self._leaving[number] = ([p for p, _ in pairs], rows, work)

    def settle(self) -> None:
        """Wait for all sums. What was gathered counts as stale: the optimizer may step, or have stepped."""
        for number in list(self._leaving):
            self._add_shards(number)
        self._held = [None] * BUFFERS

    def whole(self, parameter: nn.Parameter) -> torch.Tensor:
        """A gathered copy. Once autograd has its gradient, that is summed and split."""
        local = self._local(parameter)
        leaf = torch.empty(parameter.shape, dtype=self._dtype, device=local.device)
        dist.all_gather_into_tensor(leaf, local, self._group)
        leaf.requires_grad_(parameter.requires_grad)
        leaf.register_post_accumulate_grad_hook(lambda leaf: self.give(parameter, leaf))
        return leaf

    def give(self, parameter: nn.Parameter, leaf: torch.Tensor) -> None:
        """Sum and split the gradient of a gathered copy, and forget it."""
        grad, leaf.grad = leaf.grad.to(parameter.dtype).contiguous(), None
        rows = new_rows(parameter)
        dist.reduce_scatter_tensor(rows, grad, group=self._group)
        add_shard(parameter, rows)

    def _local(self, parameter: nn.Parameter) -> torch.Tensor:
        return parameter.to_local().detach().to(self._dtype).contiguous()

    def _add_shards(self, number: int) -> None:
        if number in self._leaving:
            parameters, shards, work = self._leaving.pop(number)
            work.wait()
            for parameter, rows in zip(parameters, shards, strict=True):
                add_shard(parameter, rows)


def new_rows(parameter: nn.Parameter) -> torch.Tensor:
    """Memory for this process's rows of a gradient."""
    return torch.empty_like(parameter.to_local())


def add_shard(parameter: nn.Parameter, rows: torch.Tensor) -> None:
    """Add this process's rows of a gradient to those of the parameter."""
    if parameter.grad is None:
        parameter.grad = DTensor.from_local(
            rows, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
        )
    else:
        parameter.grad.to_local().add_(rows)


def why_not_rows(parameters: Iterable[tuple[str, nn.Parameter]]) -> str | None:
    """Why these are not split evenly by rows over one group of processes; None where they are."""
    for name, p in parameters:
        if not isinstance(p, DTensor) or p.placements != (Shard(0),):
            return f"{name} is not sharded by rows"
        if p.shape[0] % p.device_mesh.size():
            return f"the {p.shape[0]} rows of {name} can't be shared evenly by {p.device_mesh.size()} processes"
    return None


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(p, DTensor) for p in model.parameters())
