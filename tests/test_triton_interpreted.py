"""Triton kernels under Triton's interpreter, which needs no GPU, equal their definitions in plain PyTorch."""

import importlib.util
import os
import subprocess
import sys

import pytest

HEAD = """
import torch
from fathom.train import triton_kernels
torch.manual_seed(0)
for rows, width in ((5, 1000), (3, 4097)):
    logits, weights = torch.randn(rows, width) * 3, torch.rand(rows)
    targets = torch.randint(width, (rows,))
    expected = torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]
    slope = torch.softmax(logits, -1)
    slope[torch.arange(rows), targets] -= 1
    given = logits.clone()
    torch.testing.assert_close(triton_kernels.chosen_logprobs(given, targets), expected)
    assert torch.equal(given, logits)
    torch.testing.assert_close(triton_kernels.cross_entropy_(given, targets, weights), expected)
    torch.testing.assert_close(given, slope * weights[:, None])
print("equal")
"""

ADAMW = """
import itertools, torch
from fathom.train import adamw, adamw_triton
from fathom.train.adamw import Moments, Rule
torch.manual_seed(0)
for master, states, dtype, count in itertools.product(
    ("float32", "split", "stochastic"), ("float32", "int8"), (torch.bfloat16, torch.float32), (1, 5000)
):
    weight = (torch.randn(count) * 0.02).to(torch.float32 if master == "float32" else torch.bfloat16)
    states_of = [
        [weight.clone(), torch.zeros(count, dtype=torch.int16) if master == "split" else None, Moments.zero(weight, states)]
        for _ in range(2)
    ]
    for step, factor in enumerate((0.5, 1.0, float("nan"), 0.3), 1):
        grad = (torch.randn(count) * torch.rand(count) ** 4).to(dtype)
        for update, (weight, low, moments) in zip((adamw.update_, adamw_triton.update_), states_of):
            update(weight, low, grad, moments, torch.tensor(factor), Rule(1e-3, 0.9, 0.95, 0.1, step, 7, 3, step))
    (w0, l0, m0), (w1, l1, m1) = states_of
    assert torch.equal(w0, w1) and (l0 is None or torch.equal(l0, l1)), (master, states, dtype, count)
    assert all(torch.equal(a, b) for a, b in zip(m0.named().values(), m1.named().values())), (master, states, dtype, count)
tensors = [torch.randn(70000).bfloat16(), torch.randn(3)]
torch.testing.assert_close(adamw_triton.square_sums(tensors), adamw.square_sums(tensors))
print("equal")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("program", [HEAD, ADAMW], ids=["head", "AdamW bit for bit"])
def test_a_kernel_is_its_definition(program):
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "equal\n", done.stderr[-2000:]
