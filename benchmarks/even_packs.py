"""How long GPUs wait for one another in a step: packs that are merely full, dealt in turn, and packs that are split for so many GPUs.

    python benchmarks/even_packs.py

Tokens alone are counted, no model runs. Lengths are those that `fathom plan` draws: log-normal with a coefficient of
variation of 0.5, cut at 16,384, which is the room of a pack too. Prints a table and writes benchmarks/results/even_packs.json.
"""

from __future__ import annotations

import json
from statistics import fmean

from provenance import ROOT, command

from fathom.estimates_training import drawn_steps
from fathom.train.layout import split_packs, waited

RESULT = ROOT / "benchmarks" / "results" / "even_packs.json"
PACK = 16384
SETTINGS = ((96, 4800, 8), (96, 4800, 2), (48, 4800, 2), (32, 5900, 8), (16, 8192, 2))
"""Rows of a step, their mean length, GPUs. The first are Sky-T1's steps and the fourth Fathom-R1's."""


def main() -> None:
    rows = []
    for count, mean, gpus in SETTINGS:
        steps = drawn_steps(count, mean, PACK)
        shares = {
            name: round(fmean(waited(split_packs(range(count), step, PACK, places), step, gpus) for step in steps), 4)
            for name, places in (("full", 1), ("even", gpus))
        }
        rows.append({"rows": count, "mean": mean, "gpus": gpus, "steps": len(steps), **shares})
        print(f"{count:>4} rows of {mean:,} on {gpus}: {shares['full']:6.1%} -> {shares['even']:6.1%}")
    RESULT.write_text(json.dumps({"command": command(), "waited": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
