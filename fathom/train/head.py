"""The head and the weighted negative log-likelihood, forward and backward in one pass over chunks of logits.

Where the loss is a weighted sum of log-probabilities its gradient is known as soon as the logits
are, so they are computed once and never held as a whole. `losses.token_logprobs` is the same for
losses that aren't such a sum, and computes the logits twice.

Shapes: N predicted tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import torch

from fathom.train.kernels import cross_entropy_

CHUNK_BYTES = 1_250_000_000
"""Of logits held at once."""
TILE = 256
"""Rows of a chunk are a multiple of this where there are so many: the matrix products' tiles then fit."""


def nll(
    hidden_N_D: torch.Tensor, head_V_D: torch.Tensor, targets_N: torch.Tensor, weights_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(-sum(weight * log p(target)), its gradient by the hidden states); adds its gradient by the head to `.grad`.

    weights_N: float32. The sum is a float32 scalar on the device.
    """
    rows = max(1, CHUNK_BYTES // (head_V_D.shape[0] * head_V_D.element_size()))
    rows -= rows % TILE if rows > TILE else 0
    rows = max(1, rows // 128 * 128) if rows >= 128 else rows
    head = head_V_D.detach()
    new = head_V_D.grad is None
    if new:
        head_V_D.grad = torch.empty_like(head)
    total = torch.zeros((), dtype=torch.float32, device=hidden_N_D.device)
    grad_N_D = torch.empty_like(hidden_N_D)
    logits = hidden_N_D.new_empty(min(rows, len(hidden_N_D)), head.shape[0])
    for start in range(0, len(hidden_N_D), rows):
        part = slice(start, start + rows)
        hidden = hidden_N_D[part]
        chunk = logits[: len(hidden)]
        torch.mm(hidden, head.T, out=chunk)
        logprobs = cross_entropy_(chunk, targets_N[part], weights_N[part])
        total -= (logprobs * weights_N[part]).sum()
        torch.mm(chunk, head, out=grad_N_D[part])
        if new and start == 0:
            torch.mm(chunk.T, hidden, out=head_V_D.grad)
        else:
            head_V_D.grad.addmm_(chunk.T, hidden)
    return total, grad_N_D
