"""The head's Triton kernel under Triton's interpreter, which needs no GPU, equals plain PyTorch."""

import importlib.util
import os
import subprocess
import sys

import pytest

PROGRAM = """
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


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_log_probabilities_and_their_gradient():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "equal\n", done.stderr[-2000:]
