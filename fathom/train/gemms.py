"""The three matrix products of a linear layer, called explicitly: forward, gradient of the input, of the weight.

Weight gradients go straight into the buffer that the optimizer reads. `float8.py` has the same
three in eight bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.nn.functional import linear

from fathom.train.timing import gpu_seconds

WORTHWHILE = 0.98
"""Halves are taken when they need less than this share of the whole's time."""


class Gemms(Protocol):
    """x: (T, K). weight: (N, K). grad: (T, N), made ready once by `gradient` for both products that it enters."""

    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """x @ weight^T."""
        ...

    def gradient(self, grad: torch.Tensor) -> Any:
        """The form in which the two functions below take a gradient. It may share the gradient's memory."""
        ...

    def grad_input(self, grad: Any, weight: torch.Tensor) -> torch.Tensor:
        """grad @ weight."""
        ...

    def grad_weight(self, grad: Any, x: torch.Tensor, target: torch.Tensor, new: bool) -> None:
        """target += grad^T @ x; without reading the target where it is new."""
        ...


class PlainGemms:
    """In the precision of the tensors."""

    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return linear(x, weight)

    def gradient(self, grad: torch.Tensor) -> torch.Tensor:
        return grad

    def grad_input(self, grad: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return grad @ weight

    def grad_weight(self, grad: torch.Tensor, x: torch.Tensor, target: torch.Tensor, new: bool) -> None:
        if new:
            torch.mm(grad.T, x, out=target)
        else:
            target.addmm_(grad.T, x)


class TunedGemms(PlainGemms):
    """The gradients' products as a whole or in two halves: whichever was faster when a weight's shape first came.

    Large matrices that don't fit the cache gain from halves. On a device without CUDA always whole.
    """

    def __init__(self) -> None:
        self._chosen: dict[tuple[str, int, int], int] = {}

    def grad_input(self, grad: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ways = (super().grad_input, input_by_tokens, input_by_sums)
        chosen = self._choose("input", weight, [lambda way=way: way(grad, weight) for way in ways])
        return ways[chosen](grad, weight)

    def grad_weight(self, grad: torch.Tensor, x: torch.Tensor, target: torch.Tensor, new: bool) -> None:
        def halves(target: torch.Tensor, new: bool) -> None:
            middle = half(len(target))
            for part in (slice(middle), slice(middle, None)):
                whole(grad[:, part], x, target[part], new)

        whole = super().grad_weight
        trial = torch.empty_like(target) if self._unknown("weight", target) else target
        chosen = self._choose("weight", target, [lambda: whole(grad, x, trial, True), lambda: halves(trial, True)])
        halves(target, new) if chosen else whole(grad, x, target, new)

    def _unknown(self, kind: str, weight: torch.Tensor) -> bool:
        return weight.is_cuda and (kind, *weight.shape) not in self._chosen

    def _choose(self, kind: str, weight: torch.Tensor, runs: list[Callable[[], object]]) -> int:
        if self._unknown(kind, weight):
            times = [gpu_seconds(run) for run in runs]
            best = min(range(len(times)), key=times.__getitem__)
            self._chosen[kind, *weight.shape] = best if times[best] < WORTHWHILE * times[0] else 0
        return self._chosen.get((kind, *weight.shape), 0)


def input_by_tokens(grad: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """grad @ weight, half of the tokens after the other."""
    out = grad.new_empty(len(grad), weight.shape[1])
    middle = half(len(grad))
    for part in (slice(middle), slice(middle, None)):
        torch.mm(grad[part], weight, out=out[part])
    return out


def input_by_sums(grad: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """grad @ weight as the sum over two halves of the weight's rows; rounded once more than the whole."""
    middle = half(len(weight))
    return (grad[:, :middle] @ weight[:middle]).addmm_(grad[:, middle:], weight[middle:])


def half(size: int) -> int:
    """About the middle, at a multiple of 128 where there is one."""
    return size // 2 // 128 * 128 or size // 2


def add_small(target: torch.Tensor, value: torch.Tensor, new: bool) -> None:
    """target += value for the gradient of a norm or a bias."""
    if new:
        target.copy_(value)
    else:
        target.add_(value)
