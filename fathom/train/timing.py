"""How long the GPU takes for something, for choices that are made by measuring."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

SUSTAINED = 0.06
"""Seconds that show what lasts: under full load a GPU lowers its clock within tens of milliseconds."""


def gpu_seconds(run: Callable[[], object], at_least: float = SUSTAINED) -> float:
    """Mean over as many calls as fill `at_least` seconds, after two that warm up. Waits for the device."""
    run()
    repeats = max(1, math.ceil(at_least / max(_seconds(run, 1), 1e-5)))
    return _seconds(run, min(repeats, 100))


def _seconds(run: Callable[[], object], repeats: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / repeats / 1000
