"""Generation on one GPU: vLLM by itself and through Fathom's engine, in one run; 16-bit against 8-bit keys and values.

    python benchmarks/rollout_gpu.py [--only engine,fp8,int8,runner1] [--sizes 32x2048,64x4096,128x2048] [--kv 64x8192]
                                     [--window 1024] [--scale 1.0] [--model 14b|tiny]
    python benchmarks/rollout_gpu.py --smoke

A 14.8B Qwen2 shape in bf16 with dummy weights, prompts of about 256 tokens, temperature 0.6, top_p 0.95, every chain to its
full length. `engine`: for each size the same engine is asked by vLLM's own `LLM.generate` (no seeds, no text) and by
`VllmEngine.generate` (a seed per chain, text), in turn; then the size of --kv, with 16-bit keys and values; then the first
size again in the other order. `fp8` and `int8`: that size with keys and values of 8 bits, in processes of their own; and the
log-probabilities of what such an engine samples, from random weights that are pushed to it from memory, against
transformers' on the same tokens. Of the --kv size the --window tokens in the middle are timed (a step's cost is linear in
the length, so they cost what the whole does in the mean, but for the cached prompts coming in); 0 times all. `runner1`: the first size on vLLM's first model
runner, which it gives Qwen2 by itself. The bound of a step is reading all weights and keys once at 4.3 TB/s. --scale
shortens the lengths of --sizes. What was measured is written to benchmarks/results/rollout_gpu.json after every measurement. --smoke
checks correctness on a small model in a minute (see rollout_checks.py).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from provenance import command

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
RESULT = HERE / "results" / "rollout_gpu.json"
TOKENIZER = HERE.parent / "fathom" / "data" / "fathom-tiny-base"
BANDWIDTH = 4.3e12
"""Bytes a second that an H200 was seen to read."""
PROMPT = 256
TURNS = itertools.count(1)
"""Seeds of prompts and draws."""
LIMITS = {"engine": 700, "runner1": 150, "fp8": 340, "int8": 340, "smoke": 240}
"""Seconds that a part may take."""
SHAPES = {
    "14b": {
        "vocab_size": 152064, "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48,
        "num_attention_heads": 40, "num_key_value_heads": 8, "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    },
    "tiny": {
        "vocab_size": 1024, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    },
}  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="engine,fp8,int8")
    parser.add_argument("--sizes", default="32x2048,64x4096,128x2048", help="chains x new tokens")
    parser.add_argument("--kv", default="64x8192")
    parser.add_argument("--window", type=int, default=1024, help="tokens in the middle of --kv that are timed; 0: all")
    parser.add_argument("--scale", type=float, default=1.0, help="of the lengths in --sizes")
    parser.add_argument("--model", choices=SHAPES, default="14b")
    parser.add_argument("--memory", type=float, default=0.94, help="share of the GPU's that the engine takes")
    parser.add_argument("--options", type=json.loads, default={}, help="further arguments of vLLM's engine")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument(
        "--gpu", type=int, default=0, help="on which the smoke test's engine runs; its trainer runs on 0"
    )
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    return parser.parse_args()


# ------------------------------------------------------------------------------ what is measured


def write_shape(path: Path, name: str) -> Path:
    """A model directory without weights: a configuration, and the tokenizer of Fathom's tiny model."""
    from transformers import Qwen2Config

    from fathom.tokens import load_tokenizer

    load_tokenizer(TOKENIZER).save_pretrained(path)
    config = Qwen2Config(**SHAPES[name], architectures=["Qwen2ForCausalLM"], dtype="bfloat16")
    config.save_pretrained(path)
    (path / "generation_config.json").write_text((TOKENIZER / "generation_config.json").read_text())
    return path


def open_engine(
    options: argparse.Namespace, directory: str, kv: str = "auto", memory: float | None = None, **extra: Any
):
    """A VllmEngine of the shape with dummy weights, whose chains never stop by themselves."""
    from fathom.engines import VllmConfig
    from fathom.engines.vllm import VllmEngine

    config = VllmConfig(
        tensor_parallel=1, gpu_memory_utilization=memory or options.memory, max_model_len=16384, kv_cache_dtype=kv,
        options={"load_format": "dummy", "enable_prefix_caching": True, **options.options},
    )  # fmt: skip
    started = time.time()
    engine = VllmEngine(write_shape(Path(directory), options.model), config, **extra)
    engine.text.stops = []
    return engine, round(time.time() - started, 1)


def requests(engine: Any, count: int, seed: int, tokens: int = PROMPT) -> list[Any]:
    """Requests of one chain each whose prompts, all different, have about so many tokens."""
    from fathom.engines import Request
    from fathom.records import Message

    def request(number: int, words: int) -> Request:
        draw = random.Random(f"{seed}/{number}")
        text = " ".join(str(draw.randrange(10**6)) for _ in range(words))
        return Request(f"{seed}/{number}", (Message("user", text),))

    short, longer = (len(prompt) for prompt in engine.text.prompts([request(0, 1), request(0, 101)], 1, None))
    words = int(1 + 100 * (tokens - short) / (longer - short))
    return [request(number, words) for number in range(count)]


def sides(engine: Any, chains: int, length: int, order: str) -> list[dict[str, Any]]:
    """Run `order`, a string of p (plain vLLM) and f (Fathom); prompts differ each time."""
    from vllm import SamplingParams

    from fathom.records import Sampling

    found = []
    for side in order:
        turn = next(TURNS)
        asked = requests(engine, chains, seed=turn)
        prompts = engine.text.prompts(asked, length, None)
        started = time.time()
        if side == "p":
            params = SamplingParams(
                temperature=0.6, top_p=0.95, max_tokens=length, ignore_eos=True, detokenize=False
            )  # fmt: skip
            outputs = engine._llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
            tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        else:
            tokens = sum(c.tokens for c in engine.generate(asked, Sampling(0.6, 0.95, length, seed=turn)))
        seconds = time.time() - started
        assert tokens == chains * length, (tokens, chains, length)
        found.append({"side": {"p": "vllm", "f": "fathom"}[side], "seconds": round(seconds, 3),
                      "tokens_per_second": round(tokens / seconds, 1)})  # fmt: skip
        print(f"{chains}x{length} {found[-1]}", flush=True)
    return found


def bound_seconds(shape: dict[str, Any], chains: int, prompt: int, length: int, kv_bytes: int = 2) -> float:
    """Reading all weights that a step multiplies with, and all keys and values, once per step."""
    hidden, inter, heads = shape["hidden_size"], shape["intermediate_size"], shape["num_attention_heads"]
    kv = shape["num_key_value_heads"] * (hidden // heads)
    layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inter
    weights = 2 * (shape["num_hidden_layers"] * layer + shape["vocab_size"] * hidden)
    entry = 2 * kv * shape["num_hidden_layers"] * kv_bytes
    return length * (weights + chains * entry * (prompt + length / 2)) / BANDWIDTH


def compare(engine: Any, options: argparse.Namespace, orders: dict[tuple[int, int], str], save: Any) -> None:
    """Plain and Fathom at each size, in the order given."""
    report = []
    for (chains, length), order in orders.items():
        runs = sides(engine, chains, length, order)
        speed = {run["side"]: run["tokens_per_second"] for run in runs}
        share = bound_seconds(SHAPES[options.model], chains, PROMPT, length) * speed["fathom"] / (chains * length)
        report.append({"chains": chains, "new_tokens": length, "runs": runs,
                       "fathom_over_vllm": round(speed["fathom"] / speed["vllm"], 4),
                       "bandwidth_share": round(share, 3)})  # fmt: skip
        save({"sizes": report})


def middle(engine: Any, options: argparse.Namespace, kv_bytes: int) -> dict[str, Any]:
    """Fathom at the size of --kv: all of it, or the window in its middle, after prompts that are cached already."""
    from fathom.records import Sampling

    chains, length = size(options.kv, 1.0)
    window = min(options.window, length) or length
    prompt = PROMPT + (length - window) // 2
    asked = requests(engine, chains, 0, prompt)
    list(engine.generate(asked, Sampling(0.6, 0.95, 1)))
    started = time.time()
    tokens = sum(chain.tokens for chain in engine.generate(asked, Sampling(0.6, 0.95, window)))
    seconds = time.time() - started
    assert tokens == chains * window
    share = bound_seconds(SHAPES[options.model], chains, prompt, window, kv_bytes) / seconds
    return {"chains": chains, "new_tokens": length, "timed_tokens": window, "seconds": round(seconds, 3),
            "tokens_per_second": round(tokens / seconds, 1), "bandwidth_share": round(share, 3)}  # fmt: skip


# ------------------------------------------------------------------------------ parts, each in a process of its own


def size(text: str, scale: float) -> tuple[int, int]:
    chains, length = map(int, text.split("x"))
    return chains, max(16, int(length * scale))


def part_engine(options: argparse.Namespace, save: Any, directory: str) -> None:
    engine, seconds = open_engine(options, directory)
    save({"start_seconds": seconds})
    sizes = [size(text, options.scale) for text in options.sizes.split(",")]
    sides(engine, sizes[0][0], 64, "pf")  # kernels are compiled at their first use
    compare(engine, options, dict.fromkeys(sizes, "pf"), save)
    save({"kv": middle(engine, options, 2)})
    again: dict[str, Any] = {}
    compare(engine, options, {sizes[0]: "fp"}, again.update)
    save({"again": again["sizes"]})
    engine.close()


def part_runner1(options: argparse.Namespace, save: Any, directory: str) -> None:
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    engine, seconds = open_engine(options, directory)
    save({"start_seconds": seconds})
    first = size(options.sizes.split(",")[0], options.scale)
    sides(engine, first[0], 64, "pf")
    compare(engine, options, {first: "pf"}, save)
    engine.close()


def part_fp8(options: argparse.Namespace, save: Any, directory: str) -> None:
    eight_bits(options, save, directory, "fp8")


def part_int8(options: argparse.Namespace, save: Any, directory: str) -> None:
    eight_bits(options, save, directory, "int8_per_token_head")


def eight_bits(options: argparse.Namespace, save: Any, directory: str, kv: str) -> None:
    """The size of --kv, and what samples' log-probabilities are worth; leaves room for the same model under transformers."""
    engine, seconds = open_engine(options, directory, kv, memory=0.7)
    save({"start_seconds": seconds, "kv_cache_dtype": kv})
    sides(engine, 8, 64, "f")
    save({"kv": middle(engine, options, 1)})
    save({"against_transformers": pushed_gap(engine, options)})
    engine.close()


def pushed_gap(engine: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Push random weights from a transformers model, sample, and compare log-probabilities.

    Their deviation keeps a layer from amplifying what goes through it, as training does: at the usual 0.02 a model of
    this width is chaotic, and any two bf16 computations of it disagree.
    """
    import torch
    from rollout_checks import gap
    from transformers import AutoConfig, AutoModelForCausalLM

    from fathom.records import Sampling

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    with torch.device(device):
        config = AutoConfig.from_pretrained(engine._llm.llm_engine.model_config.model)
        config.initializer_range = 0.45 / config.hidden_size**0.5
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    started = time.time()
    engine.push(dict(model.named_parameters()), 1)
    seconds = time.time() - started
    engine.logprobs = True
    asked = requests(engine, 8, seed=99)
    chains = list(engine.generate(asked, Sampling(1.0, 1.0, max(64, int(512 * options.scale)), seed=1)))
    size_gb = sum(p.numel() for p in model.parameters()) * 2 / 1e9
    return {"push_seconds": round(seconds, 3), "push_gb": round(size_gb, 2), **gap(model, engine, asked, chains)}


def parent(options: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    """Run the parts; each writes what it measured itself, so that one which is cut loses nothing."""
    for name in names:
        update(options.out, name, None)
        started = time.time()
        try:
            code = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--part", name], timeout=LIMITS[name]
            ).returncode
        except subprocess.TimeoutExpired:
            code = "time limit"
        update(options.out, name, {"exit": code, "wall_seconds": round(time.time() - started, 1)})
    return json.loads(options.out.read_text())


def update(file: Path, part: str, more: dict[str, Any] | None) -> None:
    """Add to a part of the report; None begins it anew."""
    report = json.loads(file.read_text()) if file.exists() else {}
    report[part] = {**report.get(part, {}), **more} if more is not None else {"command": command()}
    for eight in {"fp8", "int8"} & report.keys():
        speeds = [report.get(name, {}).get("kv", {}).get("tokens_per_second") for name in (eight, "engine")]
        if all(speeds):
            report[f"{eight}_over_16_bits"] = round(speeds[0] / speeds[1], 3)
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(report, indent=1) + "\n")


def child(options: argparse.Namespace) -> None:
    """One part: everything that it saves is written at once."""
    failed = False

    def save(more: dict[str, Any]) -> None:
        print(json.dumps(more), flush=True)
        update(options.out, options.part, more)

    try:
        import vllm
        from vllm.platforms import current_platform

        versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
        save({"versions": {"vllm": vllm.__version__, **versions}, "device": current_platform.get_device_name()})
        with tempfile.TemporaryDirectory() as directory:
            if options.part == "smoke":
                from rollout_checks import run

                run(options, save, Path(directory))
            else:
                globals()[f"part_{options.part}"](options, save, directory)
    except Exception as error:
        traceback.print_exc()
        save({"error": f"{type(error).__name__}: {str(error)[:400]}"})
        failed = True
    os._exit(int(failed))  # vLLM's process ends with this one


def main() -> None:
    options = arguments()
    if options.part:
        return child(options)
    names = ["smoke"] if options.smoke else options.only.split(",")
    print(json.dumps(parent(options, names), indent=1))


if __name__ == "__main__":
    main()
