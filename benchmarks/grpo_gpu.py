"""A whole GRPO step on one GPU: Fathom (vLLM on the same GPU, fused step) and TRL's GRPOTrainer with vLLM, in one run.

    python benchmarks/grpo_gpu.py [--model 1.5b|tiny] [--only fathom,trl,gap] [--problems 64] [--samples 8]
                                  [--tokens 1024] [--steps 2] [--skip 1] [--limit 480]

A random model of the true shape in bfloat16, prompts of one length, every chain exactly `--tokens` long, AdamW, the same
clipping, the same correction for what engine and trainer differ by, every other chain correct. Each side runs in a process
of its own with a time limit; what it had measured when it failed or ran out of time is kept. Seconds per step are medians
over the steps after `--skip`: rollout, grading (`grading_exposed`: what of it nothing hides), measure (the trainer's
log-probabilities before the update), sync of weights, update. `gap`: how far engine and trainer are apart on a
trained model. Prints a table and writes benchmarks/results/grpo_gpu.json.
`--model tiny` is a smoke test for a CPU, without vLLM.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from provenance import command, versions

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "grpo_gpu.json"
SIDES = ("fathom", "trl")
PARTS = ("step", "rollout", "grading", "grading_exposed", "measure", "sync", "update")
PACKAGES = ("torch", "transformers", "trl", "vllm", "liger_kernel", "triton")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("1.5b", "tiny"), default="1.5b")
    parser.add_argument("--only", default="fathom,trl,gap")
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=1024, help="new tokens of every chain")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--skip", type=int, default=1, help="first steps, which warm up")
    parser.add_argument("--memory", type=float, default=0.3, help="share of the GPU that vLLM takes")
    parser.add_argument("--pack-tokens", type=int, default=16384, help="of one forward pass, Fathom")
    parser.add_argument("--micro", type=int, default=16, help="chains of one forward pass, TRL")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=480, help="seconds for everything")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def run_side(side: str, options: argparse.Namespace) -> None:
    """One side in this process; its report is written again after every step."""
    import torch
    from grpo_workload import SHAPES, Clock, Work, write_model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = options.directory / "model"
    if side != "gap" and not model.exists():
        write_model(model, SHAPES[options.model], device, options.seed)
        if device == "cuda":
            torch.cuda.empty_cache()
    work = Work(options.problems, options.samples, options.tokens, options.steps, options.skip, options.seed)
    clock = Clock(work, options.directory / f"{side}.json")
    clock.report["device"] = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    try:
        if side == "fathom":
            import grpo_fathom

            grpo_fathom.run(clock, model, device, options.memory, options.pack_tokens)
        elif side == "gap":
            import grpo_agreement

            grpo_agreement.run(clock, device)
        else:
            import grpo_trl

            grpo_trl.run(clock, model, device, options.memory, options.micro)
    except Exception:
        clock.report["failed"] = traceback.format_exc()[-3000:]
        print(clock.report["failed"], file=sys.stderr, flush=True)
    clock.report["done"] = True
    clock.save()


def spawn(side: str, limit: float, directory: Path) -> dict[str, Any]:
    """The report of a side; what it had written when it died or was stopped."""
    file = directory / f"{side}.json"
    command = [sys.executable, __file__, *sys.argv[1:], "--child", side, "--directory", str(directory)]
    environment = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"} | os.environ
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), environment.get("PYTHONPATH", "")])
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    until = time.time() + limit
    while process.poll() is None and time.time() < until and not _read(file).get("done"):
        time.sleep(0.5)
    ended = f"exit code {process.returncode}" if process.poll() else f"stopped after {limit:.0f} s"
    _end(process)  # how long vLLM takes to end is not measured
    report = _read(file)
    return report if report.pop("done", False) else report | {"ended": ended}


def _read(file: Path) -> dict[str, Any]:
    """A report; {} where there is none yet, or half of one."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _end(process: subprocess.Popen) -> None:
    """The process and those it started, an engine's among them."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def table(report: dict[str, Any]) -> str:
    lines = [f"{'seconds':<10}" + "".join(f"{part:>17}" for part in PARTS)]
    for side in SIDES:
        seconds = report.get(side, {}).get("seconds", {})
        lines.append(f"{side:<10}" + "".join(f"{seconds.get(part, float('nan')):>17.2f}" for part in PARTS))
    return "\n".join([*lines, json.dumps(report.get("ratio"))])


def main() -> None:
    options = arguments()
    if options.child:
        run_side(options.child, options)
        return
    started = time.time()
    report: dict[str, Any] = {"command": command(), "versions": versions(*PACKAGES)}
    with tempfile.TemporaryDirectory() as directory:
        for side in options.only.split(","):
            left = options.limit - (time.time() - started)
            if left > 30:
                report[side] = spawn(side, left, Path(directory))
            steps = [report.get(name, {}).get("seconds", {}).get("step") for name in SIDES]
            if all(steps):
                report["ratio"] = round(steps[1] / steps[0], 3)
            options.out.parent.mkdir(exist_ok=True)
            options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


if __name__ == "__main__":
    main()
