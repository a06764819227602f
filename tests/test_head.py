"""The head's losses in chunks of logits, beside autograd over all of them."""

import pytest
import torch
from test_fused_step import PACKS, VOCAB, assert_same_gradients, tiny

from fathom.train import head
from fathom.train.attention_kernels import difference
from fathom.train.losses import token_logprobs, weighted_nll
from fathom.train.model import pack_logprobs
from fathom.train.trunk import FusedStep


@pytest.mark.parametrize("chunk_bytes", [1, 5 * VOCAB * 8, 10**9], ids=["row by row", "uneven chunks", "one chunk"])
def test_head_in_chunks_equals_logprobs_of_all(chunk_bytes, monkeypatch):
    monkeypatch.setattr(head, "CHUNK_BYTES", chunk_bytes)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    matrix, other = (torch.nn.Parameter(torch.ones(VOCAB, 8, dtype=torch.float64)) for _ in range(2))
    with torch.no_grad():
        matrix.copy_(torch.randn(VOCAB, 8, dtype=torch.float64, generator=generator))
        other.copy_(matrix)
    targets, weights = torch.randint(VOCAB, (23,), generator=generator), torch.rand(23, generator=generator)
    loss = weighted_nll(token_logprobs(hidden, matrix, targets), weights)
    loss.backward()
    for times in (1, 2):
        total, grad = head.nll(hidden.detach(), other, targets, weights)
        assert total.item() == pytest.approx(loss.item(), rel=1e-6)
        assert difference(grad, hidden.grad) < 1e-6
        assert difference(other.grad, times * matrix.grad) < 1e-6
    assert difference(head.logprobs(hidden.detach(), other, targets), token_logprobs(hidden, matrix, targets)) < 1e-6


def curved(logprobs, weights):
    """A sum over tokens that is no weighted likelihood."""
    return (weights * (logprobs.exp() - 0.3 * logprobs)).clamp(max=2.0).sum()


@pytest.mark.parametrize("chunk_bytes", [1, 5 * VOCAB * 8, 10**9], ids=["row by row", "uneven chunks", "one chunk"])
def test_any_sum_over_tokens_equals_autograd(chunk_bytes, monkeypatch):
    monkeypatch.setattr(head, "CHUNK_BYTES", chunk_bytes)
    plain, fused = tiny("qwen2", torch.float64), FusedStep(tiny("qwen2", torch.float64))
    for pack in PACKS:
        loss = curved(pack_logprobs(plain, pack), pack.weights_N)
        loss.backward()
        found = fused.accumulate_loss(pack, lambda logprobs, some: curved(logprobs, some.weights_N))
        assert found.item() == pytest.approx(loss.item(), rel=1e-6)
    assert_same_gradients(fused.model, plain, 2e-6)
