"""The AdamW update of `adamw.py` as one Triton kernel, and the squared norm of all gradients in one pass.

Same arithmetic and the same random bits; a GPU fuses multiplications and additions and takes fast roots,
so results differ from plain PyTorch's in the last bit of float32, and not at all under
TRITON_INTERPRET=1. Imported on a CUDA device only (or under the interpreter).

Bytes moved per parameter: gradient 2, weight 2 + 2, and 2 + 2 for 8-bit moments: 10 (14 with a split
master; the gradient is dropped, not zeroed). Made to be bound by memory: one Philox serves four
elements, and no float becomes an integer by conversion, which runs at a quarter of the rate.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fathom.train.adamw import BLOCK, M_CODES, TINY, V_CODES, WORDS, Moments, Rule

ROWS, WARPS = 1, 2
"""Groups of 1024 elements that one program updates, and its warps."""

NORM_TILE, NORM_TILES = 16384, 4
"""Elements summed at a time, and how often, by one program of the norm."""

_M_CODES, _V_CODES, _TINY = tl.constexpr(M_CODES), tl.constexpr(V_CODES), tl.constexpr(TINY)
_BLOCK, _WORDS = tl.constexpr(BLOCK), tl.constexpr(WORDS)


@triton.jit
def _read_weight(WEIGHT, LOW, at, inside, MASTER: tl.constexpr):
    if MASTER == "float32":
        weight = tl.load(WEIGHT + at, mask=inside, other=0.0)
    else:
        pattern = tl.load(WEIGHT + at, mask=inside, other=0).to(tl.int32) << 16
        if MASTER == "split":
            pattern += tl.load(LOW + at, mask=inside, other=0).to(tl.int32)
        weight = pattern.to(tl.float32, bitcast=True)
    return weight


@triton.jit
def _write_weight(WEIGHT, LOW, at, inside, weight, bits, MASTER: tl.constexpr):
    if MASTER == "float32":
        tl.store(WEIGHT + at, weight, mask=inside)
    else:
        pattern = weight.to(tl.int32, bitcast=True)
        if MASTER == "split":
            high = (pattern + 0x8000) >> 16
            tl.store(LOW + at, (pattern - (high << 16)).to(tl.int16), mask=inside)
        else:
            high = (pattern + (bits & 0xFFFF).to(tl.int32)) >> 16
        tl.store(WEIGHT + at, high.to(tl.int16), mask=inside)


@triton.jit
def _codes(magnitude, scale, chance, LEAST: tl.constexpr, CODES: tl.constexpr):
    """Integers from LEAST to CODES. Added to 1.5 * 2**23 a float32 has its nearest integer in its last bits."""
    over = tl.where(scale > _TINY, CODES * CODES / scale, 0.0)
    code = tl.minimum(tl.maximum(tl.sqrt(magnitude * over[:, None]) + chance, LEAST), CODES)
    return (code + 12582912.0).to(tl.int32, bitcast=True) & 0xFF


@triton.jit(do_not_specialize=["seed", "tensor", "draw", "first"])
def _update(
    WEIGHT, LOW, GRAD, M, V, M_SCALE, V_SCALE, FACTOR, count, seed, tensor, draw, first,
    beta1, rest1, beta2, rest2, shrink, size, root2, eps,
    MASTER: tl.constexpr, GRAD16: tl.constexpr, CODED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    factor = tl.load(FACTOR)
    if tl.abs(factor) < float("inf"):
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        column = tl.arange(0, _BLOCK)
        place = row[:, None] * _BLOCK + column[None, :]
        none = tl.zeros_like(place)
        words = tl.philox(seed, place + first, none + tensor, none + draw, none)
        for word in tl.static_range(_WORDS):
            block = row.to(tl.int64) * _WORDS + word
            at = block[:, None] * _BLOCK + column[None, :]
            inside = at < count
            some = block * _BLOCK < count
            bits = words[word]
            if GRAD16:
                g = (tl.load(GRAD + at, mask=inside, other=0).to(tl.int32) << 16).to(tl.float32, bitcast=True)
            else:
                g = tl.load(GRAD + at, mask=inside, other=0.0)
            g = g * factor
            if CODED:
                m_code = tl.load(M + at, mask=inside, other=0).to(tl.int32).to(tl.float32)
                v_code = tl.load(V + at, mask=inside, other=0).to(tl.int32).to(tl.float32)
                m_unit = tl.load(M_SCALE + block, mask=some, other=0.0) * (1 / (_M_CODES * _M_CODES))
                v_unit = tl.load(V_SCALE + block, mask=some, other=0.0) * (1 / (_V_CODES * _V_CODES))
                m = m_code * tl.abs(m_code) * m_unit[:, None]
                v = v_code * v_code * v_unit[:, None]
                v = v * v
            else:
                m = tl.load(M + at, mask=inside, other=0.0)
                v = tl.load(V + at, mask=inside, other=0.0)
            m = beta1 * m + rest1 * g
            v = beta2 * v + rest2 * (g * g)
            root = tl.sqrt(v)
            weight = _read_weight(WEIGHT, LOW, at, inside, MASTER)
            weight = shrink * weight - size * m / (root * root2 + eps)
            _write_weight(WEIGHT, LOW, at, inside, weight, bits, MASTER)
            if CODED:
                chance = ((bits >> 16 << 7) | 0x3F800000).to(tl.float32, bitcast=True) - 1.5
                m_scale = tl.max(tl.abs(m), axis=1)
                v_scale = tl.max(root, axis=1)
                m_code = _codes(tl.abs(m), m_scale, chance, 0.0, _M_CODES)
                v_code = _codes(root, v_scale, chance, 1.0, _V_CODES)
                tl.store(M + at, tl.where(m < 0, -m_code, m_code).to(tl.int8), mask=inside)
                tl.store(V + at, v_code.to(tl.uint8), mask=inside)
                tl.store(M_SCALE + block, m_scale, mask=some)
                tl.store(V_SCALE + block, v_scale, mask=some)
            else:
                tl.store(M + at, m, mask=inside)
                tl.store(V + at, v, mask=inside)


def update_(
    weight: torch.Tensor,
    low: torch.Tensor | None,
    grad: torch.Tensor,
    moments: Moments,
    factor: torch.Tensor,
    rule: Rule,
) -> None:
    """`adamw.update_` on tensors of one CUDA device (or of the CPU under the interpreter)."""
    if weight.dtype == torch.float32:
        master, weight = "float32", weight.detach()
    else:
        master, weight = "stochastic" if low is None else "split", weight.detach().view(torch.int16)
    halves = grad.dtype == torch.bfloat16
    coded = moments.m_scale is not None
    count = weight.numel()
    _update[(triton.cdiv(count, ROWS * WORDS * BLOCK),)](
        weight, weight if low is None else low, grad.view(torch.int16) if halves else grad,
        moments.m, moments.v, moments.m_scale if coded else moments.m, moments.v_scale if coded else moments.v,
        factor, count, rule.seed, rule.tensor, rule.draw, rule.start // WORDS, *rule.scalars(),
        MASTER=master, GRAD16=halves, CODED=coded, ROWS=ROWS, num_warps=WARPS,
    )  # fmt: skip


@triton.jit
def _square_sum(GRAD, SUMS, count, HALVES: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * TILE * TILES
    total = tl.zeros((TILE,), dtype=tl.float32)
    for tile in range(TILES):
        at = start + tile * TILE + tl.arange(0, TILE)
        if HALVES:
            g = (tl.load(GRAD + at, mask=at < count, other=0).to(tl.int32) << 16).to(tl.float32, bitcast=True)
        else:
            g = tl.load(GRAD + at, mask=at < count, other=0.0)
        total += g * g
    tl.store(SUMS + tl.program_id(0), tl.sum(total, axis=0))


def square_sums(tensors: list[torch.Tensor]) -> torch.Tensor:
    """`adamw.square_sums` in one pass: every program writes its own sum, and those are added in float64."""
    programs = [triton.cdiv(tensor.numel(), NORM_TILE * NORM_TILES) for tensor in tensors]
    sums = torch.empty(sum(programs), dtype=torch.float32, device=tensors[0].device)
    start = 0
    for tensor, count in zip(tensors, programs, strict=True):
        halves = tensor.dtype == torch.bfloat16
        _square_sum[(count,)](
            tensor.view(torch.int16) if halves else tensor, sums[start:], tensor.numel(),
            HALVES=halves, TILE=NORM_TILE, TILES=NORM_TILES, num_warps=8,
        )  # fmt: skip
        start += count
    return sums.sum(dtype=torch.float64).float()
