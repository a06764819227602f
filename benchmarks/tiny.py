"""Fathom beside its peers on a CPU, on the tiny model and the tiny recipe's own kind of rows.

    python benchmarks/tiny.py [--model DIR] [--threads 1] [--only training]

Training: tokens per second of Fathom's optimizer loop and of TRL's SFTTrainer, each in several of
its own settings, on the same rows, model and optimizer. "Useful" tokens are those of the rows,
prompts included, padding not. Sampling: generated tokens per second of Fathom's engine and of plain
transformers `generate` at several batch sizes, on the same prompts, with the recipe's samples,
temperature, top_p and length cap; what comes after a chain's end doesn't count. Every contender runs
in a fresh process; rounds are interleaved and the best round counts. CPU-seconds are those of all
threads of the process, and are the figure to quote on a busy machine. Results go to
benchmarks/results/tiny.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import fathom
from fathom.engines import Request, TransformersConfig
from fathom.prompts.ask import ask
from fathom.records import Example, Message, Sampling
from fathom.sources.generated import GeneratedConfig, generate
from fathom.tokens import EncodedExample, encode_example, load_tokenizer, prompt_text, stop_ids

BASE = Path(fathom.__file__).parent / "data" / "fathom-tiny-base"
RESULTS = Path(__file__).parent / "results" / "tiny.json"
LEARNING_RATE = 1e-4

Contender = dict[str, Any]
"""Plain settings of one run: "system", and what that system needs."""

FATHOM = [
    {"system": "fathom", "precision": precision, "batch_size": size}
    for precision in ("float32", "bfloat16")
    for size in (8, 16)
]
TRL = [
    {"system": "trl", "bf16": bf16, "batch_size": size, "attention": attention, "packing": packing}
    for bf16, size, attention, packing in (
        (False, 4, "sdpa", False),
        (False, 8, "sdpa", False),
        (True, 2, "sdpa", False),
        (True, 4, "sdpa", False),
        (True, 8, "sdpa", False),
        (True, 4, "eager", False),
        (True, 4, "sdpa", True),
    )
]


SAMPLING = Sampling(temperature=0.6, top_p=0.95, max_tokens=384)
SAMPLES = 8
"""Chains per problem, as the tiny recipe draws them for its solve rates."""

SAMPLERS = [
    {"system": "fathom", "slots": 256},
    *({"system": "transformers", "batch_size": size, "dtype": "float32"} for size in (16, 32, 64, 128, 256)),
    *({"system": "transformers", "batch_size": size, "dtype": "bfloat16"} for size in (32, 64, 128)),
]


def training_rows(model: Path, count: int = 96) -> list[EncodedExample]:
    """Teacher chains of generated problems, as the tiny recipe trains on them: ragged rows."""
    problems, chains = generate(GeneratedConfig(count=count, chains=1))
    questions = {problem.id: problem.question for problem in problems}
    tokenizer = load_tokenizer(model)
    rows = []
    for chain in chains:
        reasoning, _, content = chain.text.removeprefix("<think>").partition("</think>")
        messages = [Message("user", questions[chain.problem_id]), Message("assistant", content, reasoning)]
        rows.append(encode_example(tokenizer, Example(chain.problem_id, chain.problem_id, messages)))
    return rows


def bench_training(model: Path, threads: int, rounds: int = 2) -> dict[str, Any]:
    """Every contender's best round, the best of each system, and the ratios between them."""
    rows = training_rows(model)
    runs = _best_rounds(_measure_training, [*FATHOM, *TRL], rounds, model, rows, threads)
    lengths = [len(row.ids) for row in rows]
    return {
        "rows": len(rows),
        "row_tokens": {"mean": sum(lengths) / len(lengths), "min": min(lengths), "max": max(lengths)},
        "trained_tokens": sum(row.trained_tokens for row in rows),
        "runs": runs,
        "ratio": {
            "best": _ratio(runs),
            "float32": _ratio([run for run in runs if run.get("precision") == "float32" or run.get("bf16") is False]),
        },
    }


def bench_sampling(model: Path, threads: int, rounds: int = 1) -> dict[str, Any]:
    """Every contender's best round, and the ratio of the best of each system."""
    problems, _ = generate(GeneratedConfig(count=48, chains=0))
    requests = [Request(problem.id, ask(problem), samples=SAMPLES) for problem in problems]
    runs = _best_rounds(_measure_sampling, SAMPLERS, rounds, model, requests, threads)
    return {"prompts": len(requests), "samples": SAMPLES, "runs": runs, "ratio": {"best": _ratio(runs)}}


def _best_rounds(
    measure: Callable[..., dict[str, Any]], contenders: list[Contender], rounds: int, *given: Any
) -> list[dict]:
    """measure(contender, *given) for all in turn, `rounds` times over; the best of each by tokens per CPU-second."""
    best: dict[str, dict[str, Any]] = {}
    for _ in range(rounds):
        for contender in contenders:
            measured = in_fresh_process(measure, contender, *given)
            name = json.dumps(contender)
            if name not in best or measured["tokens_per_cpu_second"] > best[name]["tokens_per_cpu_second"]:
                best[name] = {**contender, **measured}
            print(f"{measured['tokens_per_cpu_second']:8.0f} tokens per CPU-second  {name}", flush=True)
    return list(best.values())


def _ratio(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Fathom's best over the other system's best, per CPU-second and per second."""
    ratios = {}
    for unit in ("tokens_per_cpu_second", "tokens_per_second"):
        ours = max(run[unit] for run in runs if run["system"] == "fathom")
        theirs = max(run[unit] for run in runs if run["system"] != "fathom")
        ratios[unit] = round(ours / theirs, 3)
    return ratios


def in_fresh_process(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """The result of function(*arguments), run alone in a new interpreter."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _measure_training(contender: Contender, model: Path, rows: list[EncodedExample], threads: int) -> dict[str, Any]:
    """Two epochs, of which the second is timed."""
    torch.set_num_threads(threads)
    run = _train_fathom if contender["system"] == "fathom" else _train_trl
    clocks, loss = run(contender, model, rows)
    seconds, cpu_seconds = (end - start for start, end in zip(*clocks, strict=True))
    return {**_speed(sum(len(row.ids) for row in rows), seconds, cpu_seconds), "loss": round(loss, 4)}


def _measure_sampling(contender: Contender, model: Path, requests: list[Request], threads: int) -> dict[str, Any]:
    """All requests once, after a short warm-up; loading the model doesn't count."""
    torch.set_num_threads(threads)
    run = _sample_fathom if contender["system"] == "fathom" else _sample_transformers
    sample = run(contender, model)
    sample(requests[:4], 8)
    start = _clock()
    lengths = sample(requests, SAMPLING.max_tokens)
    seconds, cpu_seconds = (end - begin for begin, end in zip(start, _clock(), strict=True))
    assert len(lengths) == len(requests) * SAMPLES
    return {**_speed(sum(lengths), seconds, cpu_seconds), "mean_length": round(sum(lengths) / len(lengths), 1)}


def _speed(tokens: int, seconds: float, cpu_seconds: float) -> dict[str, Any]:
    return {
        "tokens_per_second": round(tokens / seconds, 1),
        "tokens_per_cpu_second": round(tokens / cpu_seconds, 1),
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3),
    }


def _clock() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _train_fathom(contender: Contender, model_dir: Path, rows: list[EncodedExample]) -> tuple[list, float]:
    from fathom.train.loop import LoopConfig, optimizer_step
    from fathom.train.model import load_model, pack_logprobs
    from fathom.train.optimizer import MasterAdamW
    from fathom.train.sft import SftConfig, plan_sft

    size = contender["batch_size"]
    settings = SftConfig(model="base", examples="rows", order="shuffled", epochs=2, batch_size=size)
    method = plan_sft([], rows, settings, seed=0)
    config = LoopConfig(LEARNING_RATE, schedule="constant", warmup=0)
    model = load_model(model_dir, dtype=getattr(torch, contender["precision"]))
    forward = partial(pack_logprobs, model)
    optimizer = MasterAdamW(model, config.betas, config.weight_decay)
    half = method.steps // 2
    for index in range(half):
        optimizer_step(forward, method, method.step(index), optimizer, config, index)
    start = _clock()
    log = [
        optimizer_step(forward, method, method.step(index), optimizer, config, index)
        for index in range(half, method.steps)
    ]
    end = _clock()
    return [start, end], sum(row["loss"] * row["tokens"] for row in log) / sum(row["tokens"] for row in log)


def _train_trl(contender: Contender, model_dir: Path, rows: list[EncodedExample]) -> tuple[list, float]:
    import datasets
    from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    clocks = []

    class Clock(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            clocks.append(_clock())

        def on_train_end(self, args, state, control, **kwargs):
            clocks.append(_clock())

    warnings.simplefilter("ignore", FutureWarning)
    datasets.disable_progress_bars()
    model = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation=contender["attention"]
    )
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model,
            args=SFTConfig(
                output_dir=scratch,
                per_device_train_batch_size=contender["batch_size"],
                num_train_epochs=2,
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="constant",
                adam_beta2=0.95,
                bf16=contender["bf16"],
                gradient_checkpointing=False,
                packing=contender["packing"],
                max_length=512 if contender["packing"] else 2048,
                train_sampling_strategy="random" if contender["packing"] else "group_by_length",
                completion_only_loss=True,
                logging_strategy="epoch",
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
            ),
            train_dataset=datasets.Dataset.from_list(
                [{"input_ids": row.ids, "completion_mask": [int(weight) for weight in row.weights]} for row in rows]
            ),
            processing_class=load_tokenizer(model_dir),
            callbacks=[Clock()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    return clocks[1:], losses[-1]


Sample = Callable[[list[Request], int], list[int]]
"""(requests, max_tokens) -> the number of tokens of every chain, the stop token included."""


def _sample_fathom(contender: Contender, model_dir: Path) -> Sample:
    from fathom.engines.hf import TransformersEngine

    engine = TransformersEngine(model_dir, TransformersConfig(slots=contender["slots"], device="cpu"))

    def sample(requests: list[Request], max_tokens: int) -> list[int]:
        return [c.tokens for c in engine.generate(requests, replace(SAMPLING, max_tokens=max_tokens))]

    return sample


def _sample_transformers(contender: Contender, model_dir: Path) -> Sample:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=getattr(torch, contender["dtype"])).eval()
    tokenizer = load_tokenizer(model_dir)
    stops = torch.tensor(stop_ids(tokenizer, model_dir))
    at_once = contender["batch_size"] // SAMPLES

    def sample(requests: list[Request], max_tokens: int) -> list[int]:
        lengths = []
        for start in range(0, len(requests), at_once):
            texts = [prompt_text(tokenizer, request.messages) for request in requests[start : start + at_once]]
            batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
            output = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                num_return_sequences=SAMPLES,
                do_sample=True,
                temperature=SAMPLING.temperature,
                top_p=SAMPLING.top_p,
                top_k=0,
                max_new_tokens=max_tokens,
                eos_token_id=stops.tolist(),
                pad_token_id=tokenizer.pad_token_id,
            )
            written = output[:, batch["input_ids"].shape[1] :]
            running = torch.isin(written, stops).int().cumsum(dim=1) == 0
            lengths += (running.sum(dim=1) + 1).clamp(max=written.shape[1]).tolist()
        return lengths

    return sample


BENCHES: dict[str, Callable[[Path, int], dict[str, Any]]] = {"training": bench_training, "sampling": bench_sampling}
"""Each is called with the model directory and the number of threads."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BASE, help="Hugging Face directory (default: the embedded base)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=sorted(BENCHES), help="one bench; the other's results stay in the file")
    arguments = parser.parse_args()
    os.environ.update(OMP_WAIT_POLICY="PASSIVE", TOKENIZERS_PARALLELISM="false")
    results = json.loads(RESULTS.read_text()) if arguments.only and RESULTS.is_file() else {}
    results |= {
        "command": f"python benchmarks/tiny.py --threads {arguments.threads}",
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "threads": arguments.threads},
        "versions": {name: version(name) for name in ("torch", "transformers", "trl")},
    }
    for name, bench in BENCHES.items():
        if arguments.only in (None, name):
            results[name] = bench(arguments.model, arguments.threads)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps({name: results[name]["ratio"] for name in BENCHES if name in results}))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
