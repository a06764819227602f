"""Does AdamW in compact storage, or do products in float8, learn what float32 masters learn? Loss curves, three seeds each.

    python benchmarks/equal_learning.py [--size gpu|cpu|smoke] [--steps 300] [--seeds 3]

A Qwen2 model from scratch in bfloat16 on generated chains of reasoning; the runs of a seed share
their first weights and every batch. `float32 master` is the reference: its spread over seeds is
the yardstick. `bfloat16 nearest` is PyTorch's AdamW on bfloat16 weights, which drops small updates. `float8 products` is
Fathom's fused step with `float8: true` over the compact optimizer of the large recipes; all are evaluated in bfloat16.
Prints a table and writes benchmarks/results/equal_learning.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from provenance import command  # noqa: E402

from fathom.sources.generated import GeneratedConfig, generate  # noqa: E402
from fathom.tokens import EncodedExample  # noqa: E402
from fathom.train.batch import pack  # noqa: E402
from fathom.train.config import OptimizerConfig  # noqa: E402
from fathom.train.float8 import Float8Gemms  # noqa: E402
from fathom.train.loop import LoopConfig, learning_rate  # noqa: E402
from fathom.train.optimizer import open_optimizer  # noqa: E402
from fathom.train.trunk import FusedStep  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "equal_learning.json"
STORAGES = {
    "float32 master": OptimizerConfig(),
    "int8, stochastic": OptimizerConfig(states="int8", master="stochastic"),
    "int8, split": OptimizerConfig(states="int8", master="split"),
    "bfloat16 nearest": None,
    "float8 products": OptimizerConfig(states="int8", master="stochastic"),
}
"""How weights and moments are kept; the last multiplies in float8 besides."""
BETAS = (0.9, 0.95)
HELD_OUT_ROWS = 128


@dataclass(frozen=True)
class Size:
    """Of the model and of a step. problems: of the corpus, four chains each. smoke tests only that it runs."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    rows: int
    width: int
    problems: int
    rate: float


SIZES = {
    "gpu": Size(8, 768, 12, 2048, 32, 256, 8000, 6e-4),
    "cpu": Size(3, 128, 4, 384, 16, 128, 2000, 1e-3),
    "smoke": Size(2, 32, 2, 64, 4, 64, 200, 1e-3),
}


@cache
def corpus(size: Size) -> torch.Tensor:
    """Chains end to end, cut into rows of `width` tokens, (rows, width) int64; rows in a fixed random order."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(ROOT / "fathom/data/fathom-tiny-base")
    problems, chains = generate(GeneratedConfig(count=size.problems, chains=4))
    questions = {problem.id: problem.question for problem in problems}
    texts = [f"{questions[chain.problem_id]}\n{chain.text}<|im_end|>" for chain in chains]
    ids = [token for encoded in tokenizer(texts)["input_ids"] for token in encoded]
    rows = torch.tensor(ids[: len(ids) // size.width * size.width]).view(-1, size.width)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


def open_model(size: Size, device: str, seed: int) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        num_hidden_layers=size.layers, hidden_size=size.hidden, num_attention_heads=size.heads,
        num_key_value_heads=size.heads // 2, intermediate_size=size.intermediate, vocab_size=1024,
        max_position_embeddings=size.width, tie_word_embeddings=False, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(config).to(device, torch.bfloat16).train()


class NearestAdamW:
    """PyTorch's AdamW on the bfloat16 weights themselves, with the interface of Fathom's optimizers."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._parameters = list(model.parameters())
        self._adamw = torch.optim.AdamW(self._parameters, betas=BETAS, weight_decay=0.0, foreach=True)

    def accumulate(self) -> None:
        pass

    def clip(self, limit: float) -> torch.Tensor:
        return torch.nn.utils.clip_grad_norm_(self._parameters, limit)

    def step(self, rate: float) -> None:
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()

    def drop_gradients(self) -> None:
        self._adamw.zero_grad(set_to_none=True)


def mean_loss(model: Qwen2ForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Nats per token of the rows, a scalar tensor."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def backward(model: Qwen2ForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """The mean loss, whose gradients are added to the parameters'."""
    loss = mean_loss(model, ids)
    loss.backward()
    return loss.detach()


def fused_backward(step: FusedStep, ids: torch.Tensor) -> torch.Tensor:
    """The same by the fused step, a row a document."""
    rows = [EncodedExample(str(i), row, [1.0] * len(row), 0) for i, row in enumerate(ids.tolist())]
    some = pack(rows)
    return step.accumulate(some, some.weights_N / len(some.targets_N))


def batches(rows: torch.Tensor, size: Size, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """Rows of every step: epochs in random orders."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat(
        [torch.randperm(len(rows), generator=generator) for _ in range(steps * size.rows // len(rows) + 1)]
    )
    for step in range(steps):
        yield rows[order[step * size.rows : (step + 1) * size.rows]]


def learn(storage: str, size: Size, steps: int, seed: int, device: str) -> dict[str, Any]:
    """One run: the loss of every step, and of held-out rows at the end."""
    started = time.perf_counter()
    rows = corpus(size).to(device)
    held_out, rows = rows[:HELD_OUT_ROWS], rows[HELD_OUT_ROWS:]
    model = open_model(size, device, seed)
    learn_from = (
        partial(fused_backward, FusedStep(model, gemms=Float8Gemms()))
        if "float8" in storage
        else partial(backward, model)
    )
    config = STORAGES[storage]
    optimizer = NearestAdamW(model) if config is None else open_optimizer(model, config, BETAS, 0.0, seed)
    schedule = LoopConfig(learning_rate=size.rate, warmup=0.1)
    losses = []
    for step, ids in enumerate(batches(rows, size, steps, seed)):
        losses.append(learn_from(ids))
        optimizer.accumulate()
        optimizer.clip(1.0)
        optimizer.step(learning_rate(schedule, step, steps))
        optimizer.drop_gradients()
    with torch.no_grad():
        final = torch.stack([mean_loss(model, part) for part in held_out.split(size.rows)]).mean()
    return {
        "storage": storage,
        "seed": seed,
        "held_out": round(final.item(), 5),
        "losses": [round(loss, 4) for loss in torch.stack(losses).tolist()],
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.perf_counter() - started, 1),
    }


def compare(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Held-out loss of every storage, and its paired differences from the reference beside that one's spread over seeds."""
    finals = {name: [run["held_out"] for run in runs if run["storage"] == name] for name in STORAGES}
    reference = finals["float32 master"]
    noise = statistics.stdev(reference) if len(reference) > 1 else 0.0
    found = {}
    for name, values in finals.items():
        differences = [value - other for value, other in zip(values, reference, strict=True)]
        found[name] = {
            "held_out_mean": round(statistics.mean(values), 5),
            "difference_mean": round(statistics.mean(differences), 5),
            "difference_largest": round(max(differences, key=abs), 5),
            "seed_deviation_of_reference": round(noise, 5),
            "within_seed_noise": abs(statistics.mean(differences)) <= noise,
        }
    return found


def run_storage(storage: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return [learn(storage, SIZES[options.size], options.steps, seed, device) for seed in range(options.seeds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    workers = len(STORAGES) if torch.cuda.is_available() else 1
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        runs = [run for some in pool.map(partial(run_storage, options=options), STORAGES) for run in some]
    report = {
        "command": command(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "size": asdict(SIZES[options.size]),
        "comparison": compare(runs),
        "runs": runs,
    }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(report) + "\n")
    for name, found in report["comparison"].items():
        print(
            f"{name:<18} held-out {found['held_out_mean']:.4f}  difference {found['difference_mean']:+.4f} "
            f"(largest {found['difference_largest']:+.4f}; seeds {found['seed_deviation_of_reference']:.4f})"
        )


if __name__ == "__main__":
    main()
