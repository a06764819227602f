"""vLLM itself under Fathom's engine, where it is installed (a GPU, or its CPU build); elsewhere skipped.

On a CPU set VLLM_USE_V2_MODEL_RUNNER=0 and VLLM_CPU_KVCACHE_SPACE=1.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed here")
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from rollout_checks import TINY, TOLERANCE, check


@pytest.mark.proof
def test_it_computes_what_the_trainer_computes(tmp_path):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype, tolerance = ("bfloat16", TOLERANCE) if device == "cuda" else ("float32", 1e-4)
    found = check(TINY, argparse.Namespace(options={"dtype": dtype}, gpu=0), device, lambda report: None)
    assert found["agreement"]["mean"] < tolerance
    assert found["stale"]["version"] == 0
    assert found["stale"]["mean"] > 3 * found["pushed"]["mean"]
    assert (found["pushed"]["version"], found["pushed"]["mean"] < tolerance) == (7, True)
    assert found["session"]["of the cancelled request"] == 0
    assert found["thinking"]["closed"] == 1.0


INT8 = """
import torch
from dataclasses import fields
from math import prod
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.kv_cache_interface import FullAttentionSpec, get_kv_quant_mode
from fathom.engines import vllm_int8

KV = "int8_per_token_head"
backend = AttentionBackendEnum.CUSTOM.get_class()
assert backend is vllm_int8.Int8Backend and backend.get_preferred_block_size(16) == 64
heads, kv_heads, dim = 4, 2, 32
shape = backend.get_kv_cache_shape(9, 64, kv_heads, dim, cache_dtype_str=KV)
spec = FullAttentionSpec(block_size=64, num_kv_heads=kv_heads, head_size=dim, dtype=torch.int8, kv_quant_mode=get_kv_quant_mode(KV))
assert spec.page_size_bytes == prod(shape[1:])

torch.manual_seed(0)
layer = backend.get_impl_cls()(heads, dim, dim**-0.5, kv_heads, None, None, KV)
pages, table = torch.zeros(shape, dtype=torch.int8), torch.arange(9, dtype=torch.int32).view(3, 3)
lengths, brought = [71, 4, 5], [1, 1, 5]
key, value = torch.randn(2, sum(lengths), kv_heads, dim)
slots = [int(table[chain, at // 64]) * 64 + at % 64 for chain, length in enumerate(lengths) for at in range(length)]
layer.do_kv_cache_update(None, key, value, pages, torch.tensor(slots))
told = {
    "num_actual_tokens": 7, "max_query_len": 5, "query_start_loc": torch.tensor([0, 1, 2, 7], dtype=torch.int32), "max_seq_len": 71,
    "seq_lens": torch.tensor(lengths, dtype=torch.int32), "block_table": table, "written": 2, "prompts": 1,
}
metadata = vllm_int8.Int8Metadata(**{field.name: told.get(field.name) for field in fields(vllm_int8.Int8Metadata)})
query, out = torch.randn(7, heads, dim).half(), torch.zeros(7, heads, dim)
layer.forward(None, query, key, value, pages, metadata, out)
keys, values = (x.repeat_interleave(heads // kv_heads, 1).split(lengths) for x in (key, value))
row = 0
for chain, new in enumerate(brought):
    for n in range(lengths[chain] - new + 1, lengths[chain] + 1):
        weights = (torch.einsum("hd,nhd->hn", query[row].float(), keys[chain][:n]) * dim**-0.5).softmax(-1)
        torch.testing.assert_close(out[row], torch.einsum("hn,nhd->hd", weights, values[chain][:n]), atol=0.03, rtol=0)
        row += 1
assert row == 7
try:
    backend.get_impl_cls()(heads, dim, 1.0, kv_heads, None, 128, KV)
except ValueError as error:
    print(error)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_its_attention_over_8_bits_is_ours():
    """Under Triton's interpreter, through the objects that vLLM asks; a model with a sliding window is refused."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "VLLM_LOGGING_STREAM": "ext://sys.stderr"}
    done = subprocess.run([sys.executable, "-c", INT8], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == [
        "kv_cache_dtype int8_per_token_head knows plain causal attention only; fp8 knows this model"
    ], done.stderr[-2000:]
