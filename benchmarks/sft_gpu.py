"""Full-parameter SFT on one GPU: TRL at its best and Fathom, in one run, on the same data, seed and global batch.

    python benchmarks/sft_gpu.py [--model 14b|32b|tiny] [--layers 48] [--only anchor,fathom,float8:one,optimizer]
                                 [--workloads one,sixteen,mix,packed] [--steps 6] [--many-steps 1] [--mix-steps 2]
                                 [--rows 16] [--mean 8192] [--limit 480]

Random weights of the true shape. Workloads: `one` full-length row of 16,384 tokens a step; `sixteen`
of them; `mix`, sixteen rows of log-normal lengths (mean 8K, coefficient of variation 0.5, cap 16K);
`packed`, the mix again for the anchor with TRL's own packing. `optimizer` is Fathom's AdamW by
itself. Every side runs in a process of its own with a time limit, its workloads (all, or those
after a colon, joined by +) in turn, and what it had measured when it failed or ran out of time
is kept. `--gpus N --only fathom` shares the model over N GPUs. Prints a table and writes
benchmarks/results/sft_gpu.json. `--model tiny` is a smoke test for a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from provenance import command, versions

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "sft_gpu.json"
RANK = int(os.environ.get("LOCAL_RANK", "0"))
SIDES = ("anchor", "fathom", "float8")
PACKAGES = ("torch", "transformers", "trl", "liger_kernel", "torchao", "triton")
LIMITS = {"anchor": 330, "fathom": 330, "float8": 240, "optimizer": 90}
"""Seconds that a side may take."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("14b", "32b", "tiny"), default="14b")
    parser.add_argument("--layers", type=int, help="of the shape; fewer for a smoke test")
    parser.add_argument("--only", default="anchor,fathom,float8:one,optimizer")
    parser.add_argument("--workloads", default="one,sixteen,mix")
    parser.add_argument("--steps", type=int, default=6, help="of the workload `one`; the first two count for nothing")
    parser.add_argument("--many-steps", type=int, default=1, help="of `sixteen`")
    parser.add_argument(
        "--mix-steps", type=int, default=2, help="of `mix` and `packed`; where several, the first counts for nothing"
    )
    parser.add_argument("--gpus", type=int, default=1, help="that share the model; for Fathom's sides only")
    parser.add_argument("--rows", type=int, default=16, help="of a step of the mix")
    parser.add_argument("--mean", type=int, default=8192, help="length of the mix's rows")
    parser.add_argument("--length", type=int, help="tokens of a full-length row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--host-gib", type=float, default=96, help="pinned host memory that may be taken")
    parser.add_argument("--limit", type=float, default=480, help="seconds for everything")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


# ------------------------------------------------------------------------------ one side, in its own process


def run_side(side: str, options: argparse.Namespace) -> None:
    """Run a side's workloads in turn; each catches its own failure. The report is written again after every step."""
    import torch
    from sft_workload import SHAPES, Clock, workloads

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(RANK)
    if RANK:
        options.file = None
    shape = SHAPES[options.model]
    shape = replace(shape, layers=options.layers or shape.layers)
    full = options.length or (256 if options.model == "tiny" else 16384)
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "layers": shape.layers,
    }

    def attempt(name: str, run: Any) -> None:
        started = time.time()
        try:
            run()
        except Exception:
            report.setdefault(name, {})["failed"] = traceback.format_exc()[-1500:]
        print(
            f"{side} {name}: {time.time() - started:.0f} s {json.dumps(report.get(name))}", file=sys.stderr, flush=True
        )
        if options.file is not None:
            options.file.write_text(json.dumps(report))

    if side == "optimizer":
        _optimizer(shape, report, attempt)
        return
    lengths = {"rows": options.rows, "mean": options.mean}
    counts = (options.steps, options.many_steps, options.mix_steps)
    plans = workloads(full, counts, options.seed, options.gpus, **lengths)
    if side in ("fathom", "float8"):
        from sft_fathom import Side

        ours = Side(shape, device, options.seed, side == "float8", options.host_gib)
    for name in options.workloads.split(","):
        clock = Clock(plans[name], shape, device, options.file, report, options.gpus)
        if side == "anchor":
            import sft_anchor

            attempt(name, partial(sft_anchor.run, plans[name], shape, clock, options.seed))
        elif name != "packed":
            attempt(name, partial(ours.run, plans[name], clock, full))


def _optimizer(shape: Any, report: dict[str, Any], attempt: Any) -> None:
    import sft_optimizer

    def record(name: str, run: Any) -> None:
        attempt(name, lambda: report.__setitem__(name, run()))

    record("correctness", sft_optimizer.correctness)
    some = replace(shape, layers=min(16, shape.layers))
    for states, split in (("int8", False), ("int8", True), ("float32", True)):
        name = f"{states}, {'split' if split else 'stochastic'}"
        record(name, partial(sft_optimizer.speed, some, states, split))
    record("tile sizes (TB/s)", lambda: sft_optimizer.tile_sizes(some))


# ------------------------------------------------------------------------------ all sides


def spawn(side: str, workloads: str, gpus: int, limit: float, directory: Path) -> dict[str, Any]:
    """The report of a side; what it had written when it died or was stopped."""
    file = directory / f"{side}.json"
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"] if gpus > 1 else []
    told = [*sys.argv[1:], "--child", side, "--file", str(file), "--workloads", workloads]
    command = [sys.executable, *start, __file__, *told]
    environment = {
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "TOKENIZERS_PARALLELISM": "false",
    } | os.environ
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), environment.get("PYTHONPATH", "")])
    ended = ""
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        _, log = process.communicate(timeout=limit)
        if process.returncode:
            ended = f"exit code {process.returncode}"
    except subprocess.TimeoutExpired:
        ended = f"stopped after {limit:.0f} s"
        process.terminate()  # torchrun ends its workers then
        try:
            _, log = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            _, log = process.communicate()
    print(log[-3000:], file=sys.stderr, flush=True)
    report = json.loads(file.read_text()) if file.exists() and file.stat().st_size else {}
    return report | ({"ended": ended, "log": log[-1500:]} if ended else {})


def ratios(report: dict[str, Any]) -> dict[str, float]:
    """Useful tokens per second over the anchor's, by workload; on the mix over its faster way, row by row or packed."""
    found = {}
    for ours in ("fathom", "float8"):
        for name in ("one", "sixteen", "mix"):
            rate = _rate(report, ours, name)
            theirs = max(_rate(report, "anchor", name), _rate(report, "anchor", "packed") if name == "mix" else 0)
            if rate and theirs:
                found[f"{ours} {name}"] = round(rate / theirs, 3)
    return found


def _rate(report: dict[str, Any], side: str, name: str) -> float:
    return report.get(side, {}).get(name, {}).get("useful_tokens_per_s", 0)


def table(report: dict[str, Any]) -> str:
    lines = [f"{'side':<10}{'workload':<10}{'tokens/s':>10}{'TFLOP/s':>9}{'MFU':>7}{'GiB':>8}  last loss"]
    for side in SIDES:
        for name, found in report.get(side, {}).items():
            if isinstance(found, dict) and "useful_tokens_per_s" in found:
                loss = found["losses"][-1] if found["losses"] else float("nan")
                lines.append(
                    f"{side:<10}{name:<10}{found['useful_tokens_per_s']:>10.0f}{found['model_tflops']:>9.0f}"
                    f"{found['mfu']:>7.3f}{found.get('peak_allocated_gib', 0):>8.1f}  {loss:.4f}"
                )
    return "\n".join([*lines, json.dumps(report["ratios"])])


def main() -> None:
    options = arguments()
    if options.child:
        run_side(options.child, options)
        return
    started = time.time()
    report: dict[str, Any] = {"command": command(), "versions": versions(*PACKAGES)}
    with tempfile.TemporaryDirectory() as directory:
        for part in options.only.split(","):
            side, _, names = part.partition(":")
            left = options.limit - (time.time() - started)
            if left > 30:
                workloads = names.replace("+", ",") or options.workloads
                report[side] = spawn(side, workloads, options.gpus, min(left, LIMITS[side]), Path(directory))
            report["ratios"] = ratios(report)
            options.out.parent.mkdir(exist_ok=True)
            options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


if __name__ == "__main__":
    main()
