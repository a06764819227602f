"""Attention over keys and values of 8 bits in pages, in Triton: of one new token per chain, near the memory's speed, and of prompts.

A page holds PAGE tokens of one layer: for keys, then for values, each head's PAGE x DIM int8, then its PAGE float32
scales (absmax / 127 of every token). So a head's rows are one aligned block, which vLLM's own layout, with a scale behind every
row, is not. Causal, without sliding windows and soft caps. vLLM's side is `vllm_int8.py`.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

PAGE = 64
"""Tokens of a page, and of a step of the kernels."""
LEAST_PAGES = 4
"""Of a part of a chain: fewer are not worth a program."""
PROGRAMS, LEAST_SPLITS, MOST_SPLITS = 4096, 8, 64
"""How many programs a batch should have, and into how many parts a chain may be split: enough that a GPU is filled, and
that a long chain beside short ones doesn't hold it up. Lengths are not known where a CUDA graph is recorded."""
PROMPT_ROWS = 64
"""Pairs of a prompt's token and a query head in one program."""
LOG2E = 1.4426950408889634
ANY = ["table", "lengths", "starts"]
"""Arguments that begin anywhere: a kernel is not compiled anew where one is aligned otherwise."""
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def page_bytes(dim: int) -> int:
    """Of the keys, or of the values, of one head in one page."""
    return PAGE * (dim + 4)


def rows_and_scales(pages: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Views of keys and values, (pages, PAGE, heads, dim) int8, each followed by its scales, (pages, PAGE, heads) float32.

    pages: (pages, 2, heads, page_bytes(dim)) int8, as they lie in memory.
    """
    rows = pages[..., : PAGE * dim].unflatten(-1, (PAGE, dim))
    scales = pages.view(torch.float32)[..., PAGE * dim // 4 :]
    key, value = rows.transpose(2, 3).unbind(1)
    key_scales, value_scales = scales.transpose(2, 3).unbind(1)
    return key, key_scales, value, value_scales


def attend(query: Tensor, pages: Tensor, table: Tensor, lengths: Tensor, scale: float, out: Tensor) -> None:
    """Write softmax(scale * q K^T) V of each chain's last token to `out`.

    query, out: (chains, query heads, dim) in 16 bits. pages: as for `rows_and_scales`. table: (chains, most pages) int32,
    the pages of each chain in order. lengths: (chains) int32, tokens of each, the last included; 0 gives zeros.
    """
    chains, heads, dim = query.shape
    kv_heads = pages.shape[2]
    splits = max(LEAST_SPLITS, min(MOST_SPLITS, triton.next_power_of_2(PROGRAMS // (chains * kv_heads))))
    partial = torch.empty(chains, heads, splits, dim, dtype=torch.float32, device=query.device)
    sums = torch.empty(chains, heads, splits, 2, dtype=torch.float32, device=query.device)
    rows = max(8, triton.next_power_of_2(heads // kv_heads))
    _attend_part[kv_heads, splits, chains](
        query, pages, pages.view(torch.float32), table, lengths, partial, sums, scale * LOG2E,
        table.stride(0), query.stride(0), query.stride(1),
        KV_HEADS=kv_heads, GROUP=heads // kv_heads, ROWS=rows, DIM=dim, PAGE=PAGE,
        SPLITS=splits, LEAST=LEAST_PAGES, INTERPRETED=INTERPRETED, num_warps=2, num_stages=2,
    )  # fmt: skip
    _join[heads, chains](
        partial, sums, lengths, out, out.stride(0), out.stride(1),
        HEADS=heads, DIM=dim, PAGE=PAGE, SPLITS=splits, LEAST=LEAST_PAGES, num_warps=1,
    )  # fmt: skip


def attend_prompts(
    query: Tensor,
    starts: Tensor,
    longest: int,
    pages: Tensor,
    table: Tensor,
    lengths: Tensor,
    scale: float,
    out: Tensor,
) -> None:
    """The same of each chain's last several tokens, each of which sees those before it and itself.

    query, out: (tokens, query heads, dim), one chain's after another's. starts: (chains + 1) int32, where those of each
    begin. longest: the most tokens of a chain here. The keys and values of all are in `pages` already.
    """
    (_, heads, dim), chains, kv_heads = query.shape, len(lengths), pages.shape[2]
    group = heads // kv_heads
    rows = max(PROMPT_ROWS, triton.next_power_of_2(group))
    _attend_prompt[triton.cdiv(longest, rows // group), kv_heads, chains](
        query, pages, pages.view(torch.float32), table, lengths, starts, out, scale * LOG2E,
        table.stride(0), query.stride(0), query.stride(1), out.stride(0), out.stride(1),
        KV_HEADS=kv_heads, GROUP=group, ROWS=rows, DIM=dim, PAGE=PAGE, INTERPRETED=INTERPRETED, num_warps=4, num_stages=2,
    )  # fmt: skip


@triton.jit
def _half(x, INTERPRETED: tl.constexpr):
    """int8 to float16, exactly: a byte becomes the low bits of 1024 + x + 128. Five instructions for four elements."""
    if INTERPRETED:
        return x.to(tl.float16)
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 biased, low, high, ones;
        xor.b32 biased, $2, 0x80808080;
        mov.b32 ones, 0x64646464;
        prmt.b32 low, biased, ones, 0x4140;
        prmt.b32 high, biased, ones, 0x4342;
        mov.b32 ones, 0x64806480;
        sub.f16x2 $0, low, ones;
        sub.f16x2 $1, high, ones;
        }""",
        "=r,=r,r",
        [x],
        dtype=tl.float16,
        is_pure=True,
        pack=4,
    )


@triton.jit
def _over_pages(
    query, own, seen, first, last, pages, scales, table, head, scale,
    KV_HEADS: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, PAGE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Pages `first` to `last` of one chain for rows of queries: the weighted sum of values, the weights' sum, and their common exponent.

    query: (ROWS) where each row's begins; own: which rows are any; seen: how many of the chain's tokens each may see.
    """
    HEAD: tl.constexpr = PAGE * (DIM + 4)
    dim, slot = tl.arange(0, DIM), tl.arange(0, PAGE)
    # Scaled before it is rounded to 16 bits, so that its range is that of logits.
    q = tl.load(query[None, :] + dim[:, None], mask=own[None, :], other=0.0).to(tl.float32) * scale
    q = q.to(tl.float16)
    tokens = tl.max(seen, 0)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    weight = tl.zeros([PAGE, ROWS], tl.float32)
    total = tl.zeros([DIM, ROWS], tl.float32)
    # Tokens and dimensions are the rows of both products, so that few query heads waste little of them.
    for page in range(first, last):
        keys = tl.load(table + page).to(tl.int64) * (2 * KV_HEADS * HEAD) + head * HEAD
        values = keys + KV_HEADS * HEAD
        at = page * PAGE + slot
        key_scale = tl.load(scales + (keys + PAGE * DIM) // 4 + slot, mask=at < tokens, other=0.0)
        value_scale = tl.load(scales + (values + PAGE * DIM) // 4 + slot, mask=at < tokens, other=0.0)
        k = tl.load(pages + (keys + slot * DIM)[:, None] + dim[None, :])
        logits = tl.dot(_half(k, INTERPRETED), q) * key_scale[:, None]
        logits = tl.where(at[:, None] < seen[None, :], logits, float("-inf"))
        # Weights are 2^8 at most, not 1: times a scale they stay in float16's range.
        now = tl.maximum(largest, tl.max(logits, 0) - 8)
        shrink = tl.exp2(largest - now)
        weights = tl.exp2(logits - now[None, :])
        weight = weight * shrink[None, :] + weights
        v = tl.load(pages + (values + slot * DIM)[None, :] + dim[:, None])
        weights = (weights * value_scale[:, None]).to(tl.float16)
        total = tl.dot(_half(v, INTERPRETED), weights, total * shrink[None, :])
        largest = now
    return total, tl.sum(weight, 0), largest


@triton.jit
def _pages_each(length, PAGE: tl.constexpr, SPLITS: tl.constexpr, LEAST: tl.constexpr):
    return tl.maximum(tl.cdiv(tl.cdiv(length, PAGE), SPLITS), LEAST)


@triton.jit(do_not_specialize_on_alignment=ANY)
def _attend_part(
    query, pages, scales, table, lengths, partial, sums, scale, table_stride, chain_stride, head_stride,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, PAGE: tl.constexpr,
    SPLITS: tl.constexpr, LEAST: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One token of a chain, all query heads of a key head, over a part of the chain."""
    head, split, chain = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + chain)
    each = _pages_each(length, PAGE, SPLITS, LEAST)
    first = split * each
    if first * PAGE >= length:
        return
    row, dim = tl.arange(0, ROWS), tl.arange(0, DIM)
    own = row < GROUP
    total, weight, largest = _over_pages(
        query + chain * chain_stride + (head * GROUP + row) * head_stride, own, length + tl.zeros_like(row),
        first, tl.minimum(first + each, tl.cdiv(length, PAGE)), pages, scales, table + chain * table_stride, head, scale,
        KV_HEADS, ROWS, DIM, PAGE, INTERPRETED,
    )  # fmt: skip
    place = ((chain * KV_HEADS + head) * GROUP + row) * SPLITS + split
    tl.store(sums + place * 2, largest, mask=own)
    tl.store(sums + place * 2 + 1, weight, mask=own)
    tl.store(partial + place[None, :] * DIM + dim[:, None], total, mask=own[None, :])


@triton.jit
def _join(
    partial, sums, lengths, out, chain_stride, head_stride,
    HEADS: tl.constexpr, DIM: tl.constexpr, PAGE: tl.constexpr, SPLITS: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    """One head of a chain out of the parts that `_attend_part` wrote."""
    head, chain = tl.program_id(0), tl.program_id(1)
    split, dim = tl.arange(0, SPLITS), tl.arange(0, DIM)
    length = tl.load(lengths + chain)
    there = split * _pages_each(length, PAGE, SPLITS, LEAST) * PAGE < length
    place = (chain * HEADS + head) * SPLITS + split
    largest = tl.load(sums + place * 2, mask=there, other=float("-inf"))
    share = tl.where(there, tl.exp2(largest - tl.max(largest, 0)), 0.0)
    weight = tl.sum(tl.load(sums + place * 2 + 1, mask=there, other=0.0) * share, 0)
    parts = tl.load(partial + place[:, None] * DIM + dim[None, :], mask=there[:, None], other=0.0)
    joined = tl.sum(parts * share[:, None], 0) / tl.where(weight > 0, weight, 1.0)
    tl.store(out + chain * chain_stride + head * head_stride + dim, joined.to(out.dtype.element_ty))


@triton.jit(do_not_specialize_on_alignment=ANY)
def _attend_prompt(
    query, pages, scales, table, lengths, starts, out, scale,
    table_stride, token_stride, head_stride, out_token_stride, out_head_stride,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, PAGE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Some tokens of a prompt, all query heads of a key head."""
    TOKENS: tl.constexpr = ROWS // GROUP
    block, head, chain = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    begin = tl.load(starts + chain)
    count = tl.load(starts + chain + 1) - begin
    if block * TOKENS >= count:
        return
    length = tl.load(lengths + chain)
    row, dim = tl.arange(0, ROWS), tl.arange(0, DIM)
    token = block * TOKENS + row // GROUP
    own = (row < TOKENS * GROUP) & (token < count)
    seen = length - count + tl.minimum(token, count - 1) + 1
    place = (begin + token).to(tl.int64)
    heads = head * GROUP + row % GROUP
    last = tl.cdiv(length - count + tl.minimum((block + 1) * TOKENS, count), PAGE)
    total, weight, _ = _over_pages(
        query + place * token_stride + heads * head_stride, own, seen, 0, last, pages, scales,
        table + chain * table_stride, head, scale, KV_HEADS, ROWS, DIM, PAGE, INTERPRETED,
    )  # fmt: skip
    where = out + place * out_token_stride + heads * out_head_stride
    total = (total / weight[None, :]).to(out.dtype.element_ty)
    tl.store(where[None, :] + dim[:, None], total, mask=own[None, :])
