"""Where one decoder layer's activations stay between its forward and its backward pass.

A plain record without torch: the memory planner writes it, the step reads it. It decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Placement = Literal["keep", "offload", "recompute"]
"""On the device; in pinned host memory, copied on a stream of its own; nowhere, computed again from what is kept."""


@dataclass(frozen=True)
class LayerPlan:
    """One placement for each tensor that backward needs (T tokens; widths in elements of the model's dtype).

    x1: the layer's input (hidden size). qkv: queries, keys and values after RoPE (all heads).
    attn: attention's output before its projection (query heads; the float32 log-sum-exp of every
    query head stays with it). x2: the residual stream after attention (hidden size). gate_up: both
    projections of the MLP (twice the intermediate size).
    Recomputing costs: qkv and gate_up one GEMM, x2 one GEMM, attn an attention forward.
    """

    x1: Literal["keep", "offload"] = "keep"
    qkv: Placement = "keep"
    attn: Placement = "keep"
    x2: Placement = "keep"
    gate_up: Placement = "keep"
