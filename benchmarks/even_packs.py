"""How long GPUs wait for one another in a step: packs that are merely full, dealt in turn, and packs that are split for so many GPUs.

    python benchmarks/even_packs.py

Tokens alone are counted, no model runs: in each turn all wait for the longest pack, and a turn in which some have none
counts for all. Lengths are log-normal with a coefficient of variation of 0.5, cut at 16,384, which is the room of a pack too.
Prints a table and writes benchmarks/results/even_packs.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from provenance import command
from sft_workload import CAP, lognormal_lengths

from fathom.train.batch import split_packs

RESULT = Path(__file__).resolve().parent / "results" / "even_packs.json"
STEPS = 20
SETTINGS = ((96, 4800, 8), (96, 4800, 2), (48, 4800, 2), (32, 5900, 8), (16, 8192, 2))
"""Rows of a step, their mean length, GPUs. The first are Sky-T1's steps and the fourth Fathom-R1's."""


def waited(packs: Sequence[Sequence[int]], lengths: Sequence[int], gpus: int) -> float:
    """Of the time of a step, the share in which a GPU waits or works for nothing, in the mean."""
    tokens = [sum(lengths[row] for row in part) for part in packs]
    turns = sum(max(tokens[i : i + gpus]) for i in range(0, len(tokens), gpus))
    return 1 - sum(tokens) / (turns * gpus)


def main() -> None:
    rows = []
    for count, mean, gpus in SETTINGS:
        steps = lognormal_lengths(np.random.default_rng(0), mean, (STEPS, count))
        shares = {
            name: float(np.mean([waited(split_packs(range(count), step, CAP, places), step, gpus) for step in steps]))
            for name, places in (("full", 1), ("even", gpus))
        }
        rows.append({"rows": count, "mean": mean, "gpus": gpus, **{k: round(v, 4) for k, v in shares.items()}})
        print(f"{count:>4} rows of {mean:,} on {gpus}: {shares['full']:6.1%} -> {shares['even']:6.1%}")
    RESULT.write_text(json.dumps({"command": command(), "steps": STEPS, "waited": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
