"""How long the GPU takes for something, for choices that are made by measuring."""

from __future__ import annotations

from collections.abc import Callable

import torch

REPEATS = 3


def gpu_seconds(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """Mean of a few calls after one that warms up. Waits for the device."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    run()
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / repeats / 1000
