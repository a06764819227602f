"""The head and a loss that is a sum over tokens, forward and backward in one pass over chunks of logits.

Where each token's part of the loss depends on its own log-probability alone, the gradient of a chunk of logits is known as
soon as the chunk is, so they are computed once and never held as a whole. `losses.token_logprobs` is the same for
losses that aren't such a sum, and computes the logits twice.

Shapes: N predicted tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from fathom.train.kernels import chosen_logprobs, cross_entropy_

CHUNK_BYTES = 1_250_000_000
"""Of logits held at once."""
TILE = 256
"""Rows of a chunk are a multiple of this where there are so many: the matrix products' tiles then fit."""


TokenLoss = Callable[[torch.Tensor, slice], torch.Tensor]
"""Of the log-probabilities (float32) of the tokens in a slice of all N: the sum of their losses, a scalar with autograd."""


def nll(
    hidden_N_D: torch.Tensor, head_V_D: torch.Tensor, targets_N: torch.Tensor, weights_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(-sum(weight * log p(target)), its gradient by the hidden states); adds its gradient by the head to `.grad`.

    weights_N: float32. The sum is a float32 scalar on the device.
    """

    def slope_(logits_R_V: torch.Tensor, part: slice) -> torch.Tensor:
        logprobs_R = cross_entropy_(logits_R_V, targets_N[part], weights_N[part])
        return -(logprobs_R * weights_N[part]).sum()

    return _in_chunks(hidden_N_D, head_V_D, slope_)


def token_loss(
    hidden_N_D: torch.Tensor, head_V_D: torch.Tensor, targets_N: torch.Tensor, loss: TokenLoss
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `nll`, for any sum over tokens."""

    def slope_(logits_R_V: torch.Tensor, part: slice) -> torch.Tensor:
        with torch.enable_grad():
            logprobs_R = chosen_logprobs(logits_R_V, targets_N[part]).requires_grad_()
            value = loss(logprobs_R, part)
            (slope_R,) = torch.autograd.grad(value, logprobs_R)
        cross_entropy_(logits_R_V, targets_N[part], -slope_R)
        return value.detach()

    return _in_chunks(hidden_N_D, head_V_D, slope_)


@torch.no_grad()
def logprobs(hidden_N_D: torch.Tensor, head_V_D: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """log p(target) of every row of hidden states: float32, shape N, without autograd."""
    parts = [chosen_logprobs(logits, targets_N[part]) for part, logits in _chunks(hidden_N_D, head_V_D)]
    return torch.cat(parts) if parts else hidden_N_D.new_empty(0, dtype=torch.float32)


def _in_chunks(
    hidden_N_D: torch.Tensor, head_V_D: torch.Tensor, slope_: Callable[[torch.Tensor, slice], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(the loss, its gradient by the hidden states). slope_: overwrites logits with the loss's gradient and returns their loss."""
    head = head_V_D.detach()
    new = head_V_D.grad is None
    if new:
        head_V_D.grad = torch.empty_like(head)
    total = torch.zeros((), dtype=torch.float32, device=hidden_N_D.device)
    grad_N_D = torch.empty_like(hidden_N_D)
    for part, chunk in _chunks(hidden_N_D, head):
        total += slope_(chunk, part)
        torch.mm(chunk, head, out=grad_N_D[part])
        if new and part.start == 0:
            torch.mm(chunk.T, hidden_N_D[part], out=head_V_D.grad)
        else:
            head_V_D.grad.addmm_(chunk.T, hidden_N_D[part])
    return total, grad_N_D


def _chunks(hidden_N_D: torch.Tensor, head_V_D: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """(which rows, their logits), in the same memory each time."""
    rows = max(1, CHUNK_BYTES // (head_V_D.shape[0] * head_V_D.element_size()))
    rows -= rows % TILE if rows > TILE else 0
    rows = max(1, rows // 128 * 128) if rows >= 128 else rows
    logits = hidden_N_D.new_empty(min(rows, len(hidden_N_D)), head_V_D.shape[0])
    for start in range(0, len(hidden_N_D), rows):
        part = slice(start, start + rows)
        hidden = hidden_N_D[part]
        yield part, torch.mm(hidden, head_V_D.T, out=logits[: len(hidden)])
