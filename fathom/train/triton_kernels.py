"""Triton kernels of the glue between GEMMs: norms, RoPE, SwiGLU, cross-entropy rows.

Each reads its inputs once and writes its outputs once, computes in float32 and rounds where
Hugging Face's modules round. `kernels.py` has the same functions in plain PyTorch with their
contracts; this module is imported on a CUDA device only (or under TRITON_INTERPRET=1).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

NORM_PROGRAMS = 132
"""Programs of the norm's backward pass: one per multiprocessor of an H200; each sums its rows' weight gradient."""
CE_BLOCK, CE_WARPS = 16384, 32
"""One row per multiprocessor at a time, so that its second reading comes from the L2 cache."""
SWIGLU_BLOCK = 1024
AMAX_BLOCK, AMAX_PROGRAMS = 8192, 1056
FLOAT8_BLOCK, PLAIN_BLOCK = 128, 2048


@triton.jit
def _add_rmsnorm(X, DELTA, SUM, WEIGHT, OUT, RSTD, width, eps, HAS_DELTA: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(X + row * width + column, mask=inside, other=0.0)
    if HAS_DELTA:
        x = (x.to(tl.float32) + tl.load(DELTA + row * width + column, mask=inside, other=0.0).to(tl.float32)).to(
            x.dtype
        )
        tl.store(SUM + row * width + column, x, mask=inside)
    wide = x.to(tl.float32)
    rstd = 1 / tl.sqrt(tl.sum(wide * wide, axis=0) / width + eps)
    tl.store(RSTD + row, rstd)
    weight = tl.load(WEIGHT + column, mask=inside, other=0.0)
    normed = (wide * rstd).to(x.dtype).to(tl.float32) * weight.to(tl.float32)
    tl.store(OUT + row * width + column, normed.to(x.dtype), mask=inside)


def add_rmsnorm(x_T_D, delta_T_D, weight_D, eps):
    rows, width = x_T_D.shape
    total = x_T_D if delta_T_D is None else torch.empty_like(x_T_D)
    normed = torch.empty_like(x_T_D)
    rstd = torch.empty(rows, dtype=torch.float32, device=x_T_D.device)
    block = triton.next_power_of_2(width)
    _add_rmsnorm[(rows,)](
        x_T_D, delta_T_D, total, weight_D, normed, rstd, width, eps,
        HAS_DELTA=delta_T_D is not None, BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    return total, normed, rstd


@triton.jit
def _rmsnorm_backward(
    X, RSTD, WEIGHT, GRAD, RESIDUAL, DX, PARTIAL, rows, width, HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr
):
    column = tl.arange(0, BLOCK)
    inside = column < width
    weight_grad = tl.zeros((BLOCK,), dtype=tl.float32)
    step = tl.num_programs(0)
    row = tl.program_id(0).to(tl.int64)
    x = tl.load(X + row * width + column, mask=inside, other=0.0)
    grad = tl.load(GRAD + row * width + column, mask=inside, other=0.0)
    residual = tl.load(RESIDUAL + row * width + column, mask=inside, other=0.0) if HAS_RESIDUAL else grad
    for _ in range(tl.cdiv(rows - tl.program_id(0), step)):
        # the next row is on its way while this one is computed
        after = row + step
        ahead = inside & (after < rows)
        next_x = tl.load(X + after * width + column, mask=ahead, other=0.0)
        next_grad = tl.load(GRAD + after * width + column, mask=ahead, other=0.0)
        next_residual = tl.load(RESIDUAL + after * width + column, mask=ahead, other=0.0) if HAS_RESIDUAL else next_grad
        rstd = tl.load(RSTD + row)
        weight = tl.load(WEIGHT + column, mask=inside, other=0.0)
        unit = x.to(tl.float32) * rstd
        rounded = unit.to(x.dtype).to(tl.float32)
        weight_grad += grad.to(tl.float32) * rounded
        scaled = grad.to(tl.float32) * weight.to(tl.float32)
        dx = rstd * (scaled - unit * (tl.sum(scaled * unit, axis=0) / width))
        if HAS_RESIDUAL:
            dx += residual.to(tl.float32)
        tl.store(DX + row * width + column, dx.to(x.dtype), mask=inside)
        tl.store(GRAD + row * width + column, (rounded * weight.to(tl.float32)).to(x.dtype), mask=inside)
        x, grad, residual = next_x, next_grad, next_residual
        row = after
    tl.store(PARTIAL + tl.program_id(0).to(tl.int64) * width + column, weight_grad, mask=inside)


def rmsnorm_backward_(x_T_D, rstd_T, weight_D, grad_T_D, residual_T_D):
    rows, width = x_T_D.shape
    dx = torch.empty_like(x_T_D)
    programs = min(rows, NORM_PROGRAMS)
    partial = torch.empty(programs, width, dtype=torch.float32, device=x_T_D.device)
    block = triton.next_power_of_2(width)
    _rmsnorm_backward[(programs,)](
        x_T_D, rstd_T, weight_D, grad_T_D, residual_T_D, dx, partial, rows, width,
        HAS_RESIDUAL=residual_T_D is not None, BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    return dx, partial.sum(0)


@triton.jit
def _rope(
    QKV, BIAS, COS, SIN, row_stride, HEADS: tl.constexpr, ROTATED: tl.constexpr, HALF: tl.constexpr,
    HAS_BIAS: tl.constexpr, HEAD_BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    half = tl.arange(0, HALF_BLOCK)
    head = tl.arange(0, HEAD_BLOCK)[:, None]
    cos = tl.load(COS + row * 2 * HALF + half, mask=half < HALF, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(SIN + row * 2 * HALF + half, mask=half < HALF, other=0.0).to(tl.float32)[None, :]
    inside = (head < HEADS) & (half[None, :] < HALF)
    place = head * 2 * HALF + half[None, :]
    at = QKV + row * row_stride + place
    low = tl.load(at, mask=inside, other=0.0)
    high = tl.load(at + HALF, mask=inside, other=0.0)
    x, y = low.to(tl.float32), high.to(tl.float32)
    if HAS_BIAS:
        x += tl.load(BIAS + place, mask=inside, other=0.0).to(tl.float32)
        y += tl.load(BIAS + place + HALF, mask=inside, other=0.0).to(tl.float32)
        cos = tl.where(head < ROTATED, cos, 1.0)
        sin = tl.where(head < ROTATED, sin, 0.0)
    tl.store(at, (x * cos - y * sin).to(low.dtype), mask=inside)
    tl.store(at + HALF, (y * cos + x * sin).to(low.dtype), mask=inside)


def rope_(qkv_T_W, bias_W, cos_T_d, sin_T_d, rotated_heads):
    half = cos_T_d.shape[1] // 2
    heads = rotated_heads if bias_W is None else qkv_T_W.shape[1] // (2 * half)  # a bias falls on the values too
    _rope[(len(qkv_T_W),)](
        qkv_T_W, bias_W, cos_T_d, sin_T_d, qkv_T_W.stride(0),
        HEADS=heads, ROTATED=rotated_heads, HALF=half, HAS_BIAS=bias_W is not None,
        HEAD_BLOCK=triton.next_power_of_2(heads), HALF_BLOCK=triton.next_power_of_2(half), num_warps=8,
    )  # fmt: skip


@triton.jit
def _unrotate(
    GRAD, OUT, COS, SIN, grad_row, grad_head, out_row,
    HEADS: tl.constexpr, HALF: tl.constexpr, HEAD_BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr, ROTATE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    half = tl.arange(0, HALF_BLOCK)
    head = tl.arange(0, HEAD_BLOCK)[:, None]
    inside = (head < HEADS) & (half[None, :] < HALF)
    source = GRAD + row * grad_row + head * grad_head + half[None, :]
    target = OUT + row * out_row + head * 2 * HALF + half[None, :]
    low = tl.load(source, mask=inside, other=0.0)
    high = tl.load(source + HALF, mask=inside, other=0.0)
    if ROTATE:
        cos = tl.load(COS + row * 2 * HALF + half, mask=half < HALF, other=0.0).to(tl.float32)[None, :]
        sin = tl.load(SIN + row * 2 * HALF + half, mask=half < HALF, other=0.0).to(tl.float32)[None, :]
        x, y = low.to(tl.float32), high.to(tl.float32)
        low, high = (x * cos + y * sin).to(low.dtype), (y * cos - x * sin).to(high.dtype)
    tl.store(target, low, mask=inside)
    tl.store(target + HALF, high, mask=inside)


def rope_backward_(grads_T_H_d, cos_T_d, sin_T_d, out_T_W):
    half = cos_T_d.shape[1] // 2
    start = 0
    for grad, rotate in zip(grads_T_H_d, (True, True, False), strict=True):
        rows, heads, _ = grad.shape
        _unrotate[(rows,)](
            grad, out_T_W[:, start:], cos_T_d, sin_T_d, grad.stride(0), grad.stride(1), out_T_W.stride(0),
            HEADS=heads, HALF=half, ROTATE=rotate,
            HEAD_BLOCK=triton.next_power_of_2(heads), HALF_BLOCK=triton.next_power_of_2(half),
            num_warps=8 if heads > 16 else 4,
        )  # fmt: skip
        start += heads * 2 * half


@triton.jit
def _swiglu(GATE_UP, OUT, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(GATE_UP + row * 2 * width + column, mask=inside, other=0.0)
    up = tl.load(GATE_UP + row * 2 * width + width + column, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    active = (wide * tl.sigmoid(wide)).to(gate.dtype).to(tl.float32)
    tl.store(OUT + row * width + column, (active * up.to(tl.float32)).to(gate.dtype), mask=inside)


def swiglu(gate_up_T_2I):
    rows, width = len(gate_up_T_2I), gate_up_T_2I.shape[1] // 2
    out = torch.empty(rows, width, dtype=gate_up_T_2I.dtype, device=gate_up_T_2I.device)
    _swiglu[(rows, triton.cdiv(width, SWIGLU_BLOCK))](gate_up_T_2I, out, width, BLOCK=SWIGLU_BLOCK, num_warps=4)
    return out


@triton.jit
def _swiglu_backward(GATE_UP, GRAD, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    at = GATE_UP + row * 2 * width + column
    gate = tl.load(at, mask=inside, other=0.0)
    up = tl.load(at + width, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(GRAD + row * width + column, mask=inside, other=0.0).to(tl.float32)
    wide = gate.to(tl.float32)
    sigmoid = tl.sigmoid(wide)
    active = (wide * sigmoid).to(gate.dtype).to(tl.float32)
    tl.store(at, (grad * up * sigmoid * (1 + wide * (1 - sigmoid))).to(gate.dtype), mask=inside)
    tl.store(at + width, (grad * active).to(gate.dtype), mask=inside)
    tl.store(GRAD + row * width + column, (active * up).to(gate.dtype), mask=inside)


def swiglu_backward_(gate_up_T_2I, grad_T_I):
    rows, width = grad_T_I.shape
    _swiglu_backward[(rows, triton.cdiv(width, SWIGLU_BLOCK))](
        gate_up_T_2I, grad_T_I, width, BLOCK=SWIGLU_BLOCK, num_warps=4
    )


@triton.jit
def _cross_entropy(LOGITS, TARGETS, WEIGHTS, LOGPROBS, width, SLOPE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    LOGITS += row * width
    target = tl.load(TARGETS + row)
    chosen = tl.load(LOGITS + target).to(tl.float32)
    column = tl.arange(0, BLOCK)
    largest = tl.full((BLOCK,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, width, BLOCK):
        x = tl.load(LOGITS + start + column, mask=start + column < width, other=-1e30).to(tl.float32)
        new = tl.maximum(largest, x)
        total = total * tl.exp(largest - new) + tl.exp(x - new)
        largest = new
    top = tl.max(largest, axis=0)
    normalizer = top + tl.log(tl.sum(total * tl.exp(largest - top), axis=0))
    tl.store(LOGPROBS + row, chosen - normalizer)
    if SLOPE:
        weight = tl.load(WEIGHTS + row)
        tl.debug_barrier()
        for start in range(0, width, BLOCK):
            inside = start + column < width
            x = tl.load(LOGITS + start + column, mask=inside, other=-1e30)
            slope = weight * tl.exp(x.to(tl.float32) - normalizer)
            slope = tl.where(start + column == target, slope - weight, slope)
            tl.store(LOGITS + start + column, slope.to(x.dtype), mask=inside)


def cross_entropy_(logits_R_V, targets_R, weights_R):
    rows, width = logits_R_V.shape
    logprobs = torch.empty(rows, dtype=torch.float32, device=logits_R_V.device)
    block = min(CE_BLOCK, triton.next_power_of_2(width))
    warps = min(CE_WARPS, _warps(block) * 2)
    _cross_entropy[(rows,)](
        logits_R_V, targets_R, weights_R, logprobs, width,
        SLOPE=weights_R is not None, BLOCK=block, num_warps=warps,
    )  # fmt: skip
    return logprobs


def chosen_logprobs(logits_R_V, targets_R):
    return cross_entropy_(logits_R_V, targets_R, None)


@triton.jit
def _amax(X, AMAX, count, BLOCK: tl.constexpr):
    largest = tl.zeros((BLOCK,), dtype=tl.float32)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    for _ in range(tl.cdiv(count - start, tl.num_programs(0) * BLOCK)):
        place = start + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, tl.abs(tl.load(X + place, mask=place < count, other=0.0).to(tl.float32)))
        start += tl.num_programs(0) * BLOCK
    tl.atomic_max(AMAX, tl.max(largest, axis=0))


def amax(x):
    out = torch.zeros((), dtype=torch.float32, device=x.device)
    programs = min(AMAX_PROGRAMS, triton.cdiv(x.numel(), AMAX_BLOCK))
    _amax[(programs,)](x, out, x.numel(), BLOCK=AMAX_BLOCK, num_warps=8)
    return out


@triton.jit
def _float8_plain(X, AMAX, OUT, SCALE, count, LARGEST: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    amax = tl.maximum(tl.load(AMAX), 1e-12)
    if tl.program_id(0) == 0:
        tl.store(SCALE, amax / LARGEST)
    x = tl.load(X + place, mask=place < count, other=0.0).to(tl.float32)
    x = tl.minimum(tl.maximum(x * (LARGEST / amax), -LARGEST), LARGEST)
    tl.store(OUT + place, x.to(OUT.dtype.element_ty), mask=place < count)


@triton.jit
def _float8_transposed(
    X, AMAX, OUT, OUT_T, SCALE, rows, columns, padded, LARGEST: tl.constexpr, PLAIN: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    amax = tl.maximum(tl.load(AMAX), 1e-12)
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        tl.store(SCALE, amax / LARGEST)
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    x = tl.load(X + row[:, None] * columns + column[None, :], mask=inside, other=0.0).to(tl.float32)
    x = tl.minimum(tl.maximum(x * (LARGEST / amax), -LARGEST), LARGEST)
    if PLAIN:
        tl.store(OUT + row[:, None] * columns + column[None, :], x.to(OUT.dtype.element_ty), mask=inside)
    inside = (column[:, None] < columns) & (row[None, :] < padded)
    tl.store(OUT_T + column[:, None] * padded + row[None, :], tl.trans(x.to(OUT_T.dtype.element_ty)), mask=inside)


def float8(x, amax, dtype, plain, transposed):
    rows, columns = x.shape
    padded = -(-rows // 16) * 16
    largest = torch.finfo(dtype).max
    out = torch.empty(rows, columns, dtype=dtype, device=x.device) if plain else None
    scale = torch.empty((), dtype=torch.float32, device=x.device)
    if not transposed:
        grid = (triton.cdiv(x.numel(), PLAIN_BLOCK),)
        _float8_plain[grid](x, amax, out, scale, x.numel(), LARGEST=largest, BLOCK=PLAIN_BLOCK, num_warps=4)
        return out, None, scale
    out_t = torch.empty(columns, padded, dtype=dtype, device=x.device)
    _float8_transposed[(triton.cdiv(padded, FLOAT8_BLOCK), triton.cdiv(columns, FLOAT8_BLOCK))](
        x, amax, out, out_t, scale, rows, columns, padded,
        LARGEST=largest, PLAIN=plain, BLOCK=FLOAT8_BLOCK, num_warps=8,
    )  # fmt: skip
    return out, out_t, scale


def _warps(block: int) -> int:
    return min(16, max(1, block // 512))
