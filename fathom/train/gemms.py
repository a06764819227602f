"""The three matrix products of a linear layer, called explicitly: forward, gradient of the input, of the weight.

Weight gradients go straight into the buffer that the optimizer reads. `float8.py` has the same
three in eight bits.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch.nn.functional import linear


class Gemms(Protocol):
    """x: (T, K). weight: (N, K). grad: (T, N), made ready once by `gradient` for both products that it enters."""

    def forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x @ weight^T + bias."""
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

    def forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return linear(x, weight, bias)

    def gradient(self, grad: torch.Tensor) -> torch.Tensor:
        return grad

    def grad_input(self, grad: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return grad @ weight

    def grad_weight(self, grad: torch.Tensor, x: torch.Tensor, target: torch.Tensor, new: bool) -> None:
        if new:
            torch.mm(grad.T, x, out=target)
        else:
            target.addmm_(grad.T, x)


def add_small(target: torch.Tensor, value: torch.Tensor, new: bool) -> None:
    """target += value for the gradient of a norm or a bias."""
    if new:
        target.copy_(value)
    else:
        target.add_(value)
