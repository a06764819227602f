"""Attention over 8-bit keys and values computes what its definition in plain PyTorch does: on a GPU, or under Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_it_is_its_definition():
    environment = os.environ | ({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"})
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "equal\n", done.stderr[-2000:]


def rounded(rows: Tensor) -> Tensor:
    """To 8 bits with a scale per token and head, and back."""
    scale = rows.abs().amax(-1, keepdim=True) / 127
    return torch.floor(rows / scale + 0.5) * scale


def attention(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """query: (tokens, heads, dim), the last of the (n, key heads, dim) that keys and values are of."""
    tokens, heads, _ = query.shape
    keys, values = (x.repeat_interleave(heads // x.shape[1], 1) for x in (keys, values))
    logits = torch.einsum("thd,nhd->htn", query.float(), keys) * scale
    hidden = torch.ones(tokens, len(keys), dtype=torch.bool).triu(len(keys) - tokens + 1)
    return torch.einsum("htn,nhd->thd", logits.masked_fill(hidden, -torch.inf).softmax(-1), values)


def check(heads: int, kv_heads: int, dim: int) -> None:
    """Chains of one new token, and of several, over pages in any order whose unused places hold anything."""
    from fathom.engines import int8_attention
    from fathom.engines.int8_attention import PAGE, page_bytes

    int8_attention.PROGRAMS, int8_attention.LONG = 0, 8  # few programs, and short chains in several parts
    torch.manual_seed(0)
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    lengths = torch.tensor([1, 200, 0, 20, 66, 64], dtype=torch.int32)
    brought = [1, 1, 1, 20, 3, 33]
    table = torch.randperm(6 * 6, dtype=torch.int32).view(6, 6)
    pages = torch.randint(-128, 128, (6 * 6, 2, kv_heads, page_bytes(dim)), dtype=torch.int8)
    chains = [
        torch.randn(2, length, kv_heads, dim) + torch.tensor([0.0, 0.3])[:, None, None, None] for length in lengths
    ]
    for chain, (keys, values) in enumerate(chains):
        at = torch.arange(len(keys))
        slots = table[chain].long()[at // PAGE] * PAGE + at % PAGE
        nobody = torch.randn(2, 3, kv_heads, dim)  # tokens that are not kept
        every = torch.cat([slots, torch.full((3,), -1)])
        int8_attention.store(torch.cat([keys, nobody[0]]), torch.cat([values, nobody[1]]), pages, every)

    query = torch.randn(sum(brought), heads, dim).half()
    starts = torch.tensor([0, *brought], dtype=torch.int32).cumsum(0).int()
    out = torch.full((len(query), heads, dim), 7.0)
    scale = dim**-0.5
    int8_attention.attend(query, pages, table, lengths, scale, out, 3)
    assert (out[3:] == 7).all()
    int8_attention.attend_prompts(query, starts, max(brought), pages, table, lengths, scale, out, 3)
    for chain, (keys, values) in enumerate(chains):
        mine = slice(starts[chain], starts[chain + 1])
        if len(keys) == 0:
            assert (out[mine] == 0).all()
        else:
            expected = attention(query[mine], rounded(keys), rounded(values), scale)
            torch.testing.assert_close(out[mine], expected, atol=2e-3, rtol=2e-3)


if __name__ == "__main__":
    for heads, kv_heads, dim in ((5, 1, 128), (1, 1, 64), (4, 2, 32)):
        check(heads, kv_heads, dim)
    print("equal")
