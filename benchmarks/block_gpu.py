"""The fused step's parts on one GPU: correctness, then speed of every piece, then whole passes of a 14.8B shape.

`python benchmarks/block_gpu.py [--layers 48] [--tokens 16384] [--only small,full,float8]`
prints one JSON line and writes benchmarks/results/block_gpu.json. Each group runs in a process of
its own and each measurement catches its own failure, so that one never costs the others.
Weights are random; no optimizer runs, but its memory (one byte for each of two moments) is taken.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fathom.train import kernels  # noqa: E402
from fathom.train.attention import NAME  # noqa: E402
from fathom.train.attention_kernels import CUDA_KERNELS, Heads, Spans, difference, measure  # noqa: E402
from fathom.train.batch import Pack  # noqa: E402
from fathom.train.float8 import BACKWARD, FORWARD, Float8Gemms, float8  # noqa: E402
from fathom.train.gemms import Gemms, PlainGemms, TunedGemms  # noqa: E402
from fathom.train.head import nll  # noqa: E402
from fathom.train.kernels import triton_kernels  # noqa: E402
from fathom.train.layer_plan import LayerPlan  # noqa: E402
from fathom.train.losses import weighted_nll  # noqa: E402
from fathom.train.model import pack_logprobs  # noqa: E402
from fathom.train.trunk import FusedStep  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "block_gpu.json"
DEVICE = torch.device("cuda")
HIDDEN, INTER, QUERIES, KEYS, SIZE, VOCAB = 5120, 13824, 40, 8, 128, 152064
HEADS = Heads(QUERIES, KEYS, SIZE, SIZE**-0.5)
CHILD_SECONDS = 150
PACKS = ((16384,), (8192, 8192), (9001, 7383), (5003, 4700, 3900, 2781), (512,) * 32)


def build(layers: int, vocab: int = VOCAB, dtype: torch.dtype = torch.bfloat16) -> Qwen2ForCausalLM:
    """A Qwen2.5-14B shape with fewer layers and random weights, on the GPU, in training mode."""
    config = Qwen2Config(
        vocab_size=vocab, hidden_size=HIDDEN, intermediate_size=INTER, num_hidden_layers=layers,
        num_attention_heads=QUERIES, num_key_value_heads=KEYS, max_position_embeddings=32768,
        rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=False, use_cache=False,
    )  # fmt: skip
    config._attn_implementation = NAME
    torch.manual_seed(0)
    with DEVICE:
        model = Qwen2ForCausalLM._from_config(config, dtype=dtype)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(p, 0, 0.02)
    return model.to(DEVICE).train()


def random_pack(lengths: Sequence[int], vocab: int = VOCAB) -> Pack:
    tokens = sum(lengths)
    ids = torch.randint(0, vocab, (tokens,), generator=torch.Generator().manual_seed(1))
    weights = torch.ones(tokens)
    weights[[0, *torch.tensor(lengths[:-1]).cumsum(0).tolist()]] = 0
    predicted = weights.nonzero().squeeze(1)
    positions = torch.cat([torch.arange(length) for length in lengths])
    return Pack(ids, positions, tuple(lengths), predicted - 1, ids[predicted], weights[predicted])


def seconds(run: Callable[[], Any], repeats: int = 5) -> float:
    """Median GPU time of a call."""
    run()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return statistics.median(times)


def numerics() -> dict[str, Any]:
    """Two layers, three documents: loss and gradients of the plain and the fused bf16 path against float32."""
    vocab = 8192
    model = build(2, vocab)
    pack = random_pack((1500, 1001, 499), vocab)
    weights = pack.weights_N.to(DEVICE) / len(pack.weights_N)
    paths: dict[str, Any] = {}

    def plain(model: Any) -> float:
        loss = weighted_nll(pack_logprobs(model, pack), weights)
        loss.backward()
        return loss.item()

    def fused(model: Any, gemms: Gemms | None = None, plans: Any = None) -> float:
        return FusedStep(model, plans, gemms).accumulate(pack, weights).item()

    mixed = [LayerPlan("offload", "offload", "offload", "offload", "offload"), LayerPlan("keep", *["recompute"] * 4)]
    wide = copy.deepcopy(model).float()
    paths["float32"] = plain(wide)
    truth = dict(wide.named_parameters())
    result: dict[str, Any] = {"float32": {"loss": paths["float32"]}}
    runs: dict[str, Callable[[Any], float]] = {
        "plain": plain,
        "fused": fused,
        "fused_moved": lambda m: fused(m, plans=mixed),
        "float8": lambda m: fused(m, Float8Gemms()),
    }
    for name, run in runs.items():
        try:
            other = copy.deepcopy(model)
            loss = run(other)
            errors = {n: difference(p.grad, truth[n].grad) for n, p in other.named_parameters()}
            worst = sorted(errors.items(), key=lambda item: -item[1])[:3]
            result[name] = {"loss": loss, "median": statistics.median(errors.values()), "worst": worst}
        except Exception:
            result[name] = failure()
        cleanup()
    return result


def attention() -> dict[str, Any]:
    """Milliseconds (forward, forward + backward) and TFLOP/s of every kernel on every pack."""
    table: dict[str, Any] = {}
    for lengths in PACKS:
        start = time.time()
        timings = measure(CUDA_KERNELS, HEADS, Spans.of(lengths, DEVICE), torch.bfloat16, DEVICE)
        flops = sum(2 * length**2 * QUERIES * SIZE for length in lengths)
        table[str(lengths[:4])] = {
            name: [round(t.forward_seconds * 1e3, 2), round(t.seconds * 1e3, 2), round(3.5 * flops / t.seconds / 1e12), t.why]
            for name, t in timings.items()
        } | {"setup_s": round(time.time() - start, 2)}  # fmt: skip
        cleanup()
    return table


def gemms(tokens: int) -> dict[str, Any]:
    """TFLOP/s of the three products of every linear, in bf16 and float8; float8 includes its casts."""
    shapes = {
        "qkv": (HEADS.width, HIDDEN),
        "o": (HIDDEN, HIDDEN),
        "gate_up": (2 * INTER, HIDDEN),
        "down": (HIDDEN, INTER),
    }
    table: dict[str, Any] = {}
    for name, (out, into) in shapes.items():
        for kind, products in (("bf16", PlainGemms()), ("bf16_tuned", TunedGemms()), ("float8", Float8Gemms())):
            try:
                table[f"{name} {kind}"] = products_rates(products, tokens, out, into)
            except Exception:
                table[f"{name} {kind}"] = failure()
            cleanup()
    return table


def products_rates(products: Gemms, tokens: int, out: int, into: int) -> dict[str, int]:
    x, weight, grad = (
        torch.randn(shape, device=DEVICE, dtype=torch.bfloat16)
        for shape in ((tokens, into), (out, into), (tokens, out))
    )
    target = torch.empty_like(weight)
    ready = products.gradient(grad)
    runs = {
        "forward": lambda: products.forward(x, weight),
        "gradient": lambda: products.gradient(grad),
        "grad_input": lambda: products.grad_input(ready, weight),
        "grad_weight_new": lambda: products.grad_weight(ready, x, target, True),
        "grad_weight_add": lambda: products.grad_weight(ready, x, target, False),
    }
    if ready is grad:
        del runs["gradient"]
    return {what: round(2 * tokens * out * into / seconds(run) / 1e12) for what, run in runs.items()}


def glue(tokens: int) -> dict[str, Any]:
    """GB/s of the memory-bound kernels, counting every input and output once."""

    def new(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16)

    x, delta, weight, grad = new(tokens, HIDDEN), new(tokens, HIDDEN), new(HIDDEN), new(tokens, HIDDEN)
    rstd = torch.ones(tokens, device=DEVICE)
    gate_up, hidden, qkv = new(tokens, 2 * INTER), new(tokens, INTER), new(tokens, HEADS.width)
    cos, qkv_bias = new(tokens, SIZE), new(HEADS.width)
    grads = [torch.randn(tokens, n, SIZE, device=DEVICE, dtype=torch.bfloat16) for n in (QUERIES, KEYS, KEYS)]
    logits = new(4096, VOCAB)
    targets, weights = torch.randint(0, VOCAB, (4096,), device=DEVICE), torch.ones(4096, device=DEVICE)
    width = tokens * HIDDEN * 2
    table = {
        "add_rmsnorm": (4 * width, lambda: kernels.add_rmsnorm(x, delta, weight, 1e-6)),
        "rmsnorm_backward": (5 * width, lambda: kernels.rmsnorm_backward_(x, rstd, weight, grad, delta)),
        "rope": (2 * qkv.nbytes, lambda: kernels.rope_(qkv, qkv_bias, cos, cos, QUERIES + KEYS)),
        "rope_backward": (2 * qkv.nbytes, lambda: kernels.rope_backward_(grads, cos, cos, qkv)),
        "bias_sum": (qkv.nbytes, lambda: qkv.sum(0)),
        "swiglu": (3 * hidden.nbytes, lambda: kernels.swiglu(gate_up)),
        "swiglu_backward": (6 * hidden.nbytes, lambda: kernels.swiglu_backward_(gate_up, hidden)),
        "cross_entropy": (2 * logits.nbytes, lambda: kernels.cross_entropy_(logits, targets, weights)),
        "float8_plain": (int(2.5 * x.nbytes), lambda: float8(x, FORWARD, plain=True)),
        "float8_both": (3 * x.nbytes, lambda: float8(x, BACKWARD, plain=True, transposed=True)),
    }
    result: dict[str, Any] = {}
    for name, (size, run) in table.items():
        try:
            result[name] = round(size / seconds(run) / 1e9)
        except Exception:
            result[name] = failure()
    usual = triton_kernels().NORM_PROGRAMS
    for programs in (132, 264, 1056):
        triton_kernels().NORM_PROGRAMS = programs
        size, run = table["rmsnorm_backward"]
        result[f"rmsnorm_backward {programs} programs"] = round(size / seconds(run) / 1e9)
    triton_kernels().NORM_PROGRAMS = usual
    return result


def passes(step: FusedStep, pack: Pack, repeats: int, fresh: bool) -> dict[str, Any]:
    """Median seconds of forward, head and backward. fresh: gradients are dropped before each pass."""
    weights = pack.weights_N.to(DEVICE) / len(pack.weights_N)
    head = step.model.get_output_embeddings().weight
    rows = []
    torch.cuda.reset_peak_memory_stats()
    gauge = Gauge()
    for turn in range(repeats + 1):
        if turn == 1:
            gauge.start()
        if fresh:
            for p in step.model.parameters():
                p.grad = None
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
        marks[0].record()
        hidden = step.hidden(pack)
        marks[1].record()
        predicting = hidden.detach()[pack.sources_N.to(DEVICE)]
        loss, grad = nll(predicting, head, pack.targets_N.to(DEVICE), weights)
        marks[2].record()
        hidden.backward(torch.zeros_like(hidden).index_copy_(0, pack.sources_N.to(DEVICE), grad))
        marks[3].record()
        del hidden, predicting, grad
        torch.cuda.synchronize()
        rows.append([marks[i].elapsed_time(marks[i + 1]) / 1000 for i in range(3)])
    medians = [statistics.median(column) for column in zip(*rows[1:], strict=True)]
    return {
        "forward_s": medians[0], "head_s": medians[1], "backward_s": medians[2], "sum_s": sum(medians),
        "MHz_W": gauge.medians(), "first_s": sum(rows[0]), "each": [round(sum(row), 4) for row in rows], "loss": loss.item(),
        "peak_allocated_GiB": torch.cuda.max_memory_allocated() / 2**30,
        "peak_reserved_GiB": torch.cuda.max_memory_reserved() / 2**30, "host_GiB": step.pool.bytes / 2**30,
    }  # fmt: skip


class Gauge(threading.Thread):
    """Reads the GPU's clock and power ten times a second while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.readings: list[tuple[int, int]] = []
        self._over = threading.Event()

    def run(self) -> None:
        try:
            while not self._over.wait(0.1):
                self.readings.append((torch.cuda.clock_rate(), torch.cuda.power_draw() // 1000))
        except Exception:
            self.readings = []

    def medians(self) -> list[float] | None:
        """[MHz, watts]; None where they can't be read."""
        self._over.set()
        self.join()
        return [statistics.median(column) for column in zip(*self.readings, strict=True)] or None


def few_layers(tokens: int) -> dict[str, Any]:
    """Four layers, everything kept: the cost of a layer by itself, and a table of its kernels."""
    step = FusedStep(build(4))
    pack = random_pack((tokens,))
    result: dict[str, Any] = {"passes": passes(step, pack, 5, False)}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        passes(step, pack, 1, False)
    events = sorted(profile.key_averages(), key=lambda e: -e.device_time_total)[:30]
    result["kernels_ms_per_pass"] = [[e.key[:70], e.count // 2, round(e.device_time_total / 2000, 3)] for e in events]
    return result


def whole(layers: int, tokens: int, gemms: Gemms | None = None) -> dict[str, Any]:
    """All layers with the optimizer's memory taken: one pack a step, and further packs of a step."""
    model = build(layers)
    moments = torch.zeros(2 * sum(p.numel() for p in model.parameters()), dtype=torch.uint8, device=DEVICE)
    pack = random_pack((tokens,))
    result: dict[str, Any] = {"moments_GiB": len(moments) / 2**30, "before_GiB": torch.cuda.memory_allocated() / 2**30}
    plans = {"one_pack": round(layers * 6 / 48), "more_packs": round(layers * 24 / 48)}
    step = FusedStep(model, None, gemms)
    result["flat_GiB"] = torch.cuda.memory_allocated() / 2**30
    for name, away in plans.items():
        try:
            step.plans = [LayerPlan(gate_up="offload")] * away + [LayerPlan()] * (layers - away)
            result[name] = {"offloaded_layers": away} | passes(step, pack, 2, name == "one_pack")
        except Exception:
            result[name] = failure()
        cleanup()
    documents = random_pack((9001, 7383))
    try:
        result["two_documents"] = passes(step, documents, 1, False)
    except Exception:
        result["two_documents"] = failure()
    return result


def failure() -> str:
    return "failed: " + traceback.format_exc()[-900:]


def cleanup() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def groups(layers: int, tokens: int) -> dict[str, list[tuple[str, Callable[[], Any]]]]:
    return {
        "small": [
            ("numerics", numerics),
            ("attention", attention),
            ("gemms", lambda: gemms(tokens)),
            ("glue", lambda: glue(tokens)),
            ("few_layers", lambda: few_layers(tokens)),
        ],
        "full": [("whole", lambda: whole(layers, tokens))],
        "float8": [("whole_float8", lambda: whole(layers, tokens, Float8Gemms()))],
    }


def run_group(name: str, layers: int, tokens: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for what, run in groups(layers, tokens)[name]:
        start = time.time()
        try:
            results[what] = run()
        except Exception:
            results[what] = failure()
        cleanup()
        print(f"[{time.time() - start:6.1f} s] {what}: {json.dumps(results[what])}", file=sys.stderr, flush=True)
    return results


def child(group: str, layers: int, tokens: int) -> dict[str, Any]:
    """Run a group in a process of its own."""
    command = [sys.executable, __file__, "--child", group, "--layers", str(layers), "--tokens", str(tokens)]
    environment = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"} | os.environ
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=CHILD_SECONDS, env=environment)
        return json.loads(done.stdout.strip().split("\n")[-1])
    except Exception:
        return {group: failure()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--only", default="small,full,float8")
    parser.add_argument("--child")
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(run_group(arguments.child, arguments.layers, arguments.tokens)))
        return
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(), "layers": arguments.layers, "tokens": arguments.tokens,
    }  # fmt: skip
    for name in arguments.only.split(","):
        results |= child(name, arguments.layers, arguments.tokens)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
