"""Attention over keys and values of 8 bits in pages, in Triton: of one new token per chain, near the memory's speed, and of prompts.

A page holds PAGE tokens of one layer: for keys, then for values, each head's bytes, then its PAGE float32 scales (absmax / 127 of
every token). A byte is the rounded value / scale + 128. Keys lie token by token, values dimension by dimension: the order in
which the two products sum. So everything is read in aligned blocks, which vLLM's own layout, with a scale behind every
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
PROGRAMS, LEAST_SPLITS, MOST_SPLITS = 4096, 8, 64
"""How many programs a batch should have, and into how many parts a chain may be split: enough that a GPU is filled, and
that a long chain beside short ones doesn't hold it up. Lengths are not known where a CUDA graph is recorded."""
LONG = 128
"""Pages of a chain that is split into as many parts as it may be; a shorter one into fewer, as a part has a fixed cost."""
PROMPT_ROWS = 64
"""Pairs of a prompt's token and a query head in one program."""
LOG2E = 1.4426950408889634
ANY = ["table", "lengths", "starts", "skipped"]
"""Arguments of any alignment: a kernel is not compiled anew where one is aligned otherwise."""
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def page_bytes(dim: int) -> int:
    """Of the keys, or of the values, of one head in one page."""
    return PAGE * (dim + 4)


def store(key: Tensor, value: Tensor, pages: Tensor, slots: Tensor) -> None:
    """Round new tokens and write them to their places.

    key, value: (tokens, heads, dim). pages: (pages, 2, heads, page_bytes(dim)) int8. slots: (at most tokens) int64, page
    x PAGE + place in it; negative for a token that is not kept.
    """
    _, heads, dim = key.shape
    _store[len(slots), heads](
        key, value, pages, slots, key.stride(0), key.stride(1), value.stride(0), value.stride(1),
        HEADS=heads, DIM=dim, PAGE=PAGE, num_warps=1,
    )  # fmt: skip


def attend(
    query: Tensor, pages: Tensor, table: Tensor, lengths: Tensor, scale: float, out: Tensor, chains: int
) -> None:
    """Write softmax(scale * q K^T) V of the last token of each of the first `chains` chains.

    query, out: (chains or more, query heads, dim) in 16 bits. pages: as for `store`. table: (chains or more, most pages) int32,
    the pages of each chain in order. lengths: (chains or more) int32, tokens of each, the last included; 0 gives zeros.
    """
    _, heads, dim = query.shape
    kv_heads = pages.shape[2]
    splits = max(LEAST_SPLITS, min(MOST_SPLITS, triton.next_power_of_2(PROGRAMS // (chains * kv_heads))))
    partial = torch.empty(chains * heads * splits, dim, dtype=torch.float32, device=query.device)
    sums = torch.empty(chains * heads * splits, 2, dtype=torch.float32, device=query.device)
    group = heads // kv_heads
    _attend_part[kv_heads, splits, chains](
        query, pages, table, lengths, partial, sums, scale * LOG2E, table.stride(0), query.stride(0), query.stride(1),
        KV_HEADS=kv_heads, GROUP=group, ROWS=max(8, triton.next_power_of_2(group)), DIM=dim, PAGE=PAGE,
        SPLITS=splits, LONG=LONG, INTERPRETED=INTERPRETED, num_warps=2, num_stages=2,
    )  # fmt: skip
    _join[heads, chains](
        partial, sums, lengths, out, out.stride(0), out.stride(1),
        HEADS=heads, DIM=dim, PAGE=PAGE, SPLITS=splits, LONG=LONG, num_warps=1,
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
    skipped: int,
) -> None:
    """The same of the last several tokens of each chain but the first `skipped`; each token sees those before it and itself.

    query, out: (tokens, query heads, dim), one chain's after another's. starts: (chains + 1) int32, where those of each
    begin. longest: the most tokens of a chain here. The keys and values of all are in `pages` already.
    """
    _, heads, dim = query.shape
    kv_heads = pages.shape[2]
    group = heads // kv_heads
    rows = max(PROMPT_ROWS, triton.next_power_of_2(group))
    _attend_prompt[triton.cdiv(longest, rows // group), kv_heads, len(lengths) - skipped](
        query, pages, table, lengths, starts, out, skipped, scale * LOG2E,
        table.stride(0), query.stride(0), query.stride(1), out.stride(0), out.stride(1),
        KV_HEADS=kv_heads, GROUP=group, ROWS=rows, DIM=dim, PAGE=PAGE, INTERPRETED=INTERPRETED, num_warps=4, num_stages=2,
    )  # fmt: skip


@triton.jit
def _store(
    key, value, pages, slots, key_token_stride, key_head_stride, value_token_stride, value_head_stride,
    HEADS: tl.constexpr, DIM: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """One head of a token."""
    HEAD: tl.constexpr = PAGE * (DIM + 4)
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + token)
    if slot < 0:
        return
    scales = pages.to(tl.pointer_type(tl.float32), bitcast=True)
    page, at = slot // PAGE * (2 * HEADS * HEAD), slot % PAGE
    keys, values = page + head * HEAD, page + (HEADS + head) * HEAD
    dim = tl.arange(0, DIM)
    k, k_scale = _rounded(tl.load(key + token * key_token_stride + head * key_head_stride + dim))
    tl.store(pages + keys + at * DIM + dim, k)
    tl.store(scales + (keys + PAGE * DIM) // 4 + at, k_scale)
    v, v_scale = _rounded(tl.load(value + token * value_token_stride + head * value_head_stride + dim))
    tl.store(pages + values + dim * PAGE + at, v)
    tl.store(scales + (values + PAGE * DIM) // 4 + at, v_scale)


@triton.jit
def _rounded(row):
    """Bytes and their scale."""
    row = row.to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(row), 0) / 127, 1e-6)
    return (tl.floor(row / scale + 0.5).to(tl.int32) - 128).to(tl.int8), scale


@triton.jit
def _half(x, INTERPRETED: tl.constexpr):
    """Bytes to 1024 + byte in float16, exactly: they become its low bits. An instruction for two elements."""
    if INTERPRETED:
        return ((x.to(tl.int32) & 255) + 1024).to(tl.float16)
    return tl.inline_asm_elementwise(
        "{ .reg .b32 top; mov.b32 top, 0x64646464; prmt.b32 $0, $2, top, 0x4140; prmt.b32 $1, $2, top, 0x4342; }",
        "=r,=r,r",
        [x],
        dtype=tl.float16,
        is_pure=True,
        pack=4,
    )


@triton.jit
def _over_pages(
    query, own, seen, first, last, pages, table, head, scale,
    KV_HEADS: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, PAGE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Pages `first` to `last` of one chain for rows of queries: the weighted sum of values, the weights' sum, and their common exponent.

    query: (ROWS) where each row's begins; own: which rows are any; seen: how many of the chain's tokens each may see.
    """
    HEAD: tl.constexpr = PAGE * (DIM + 4)
    ABOVE: tl.constexpr = 1152
    scales = pages.to(tl.pointer_type(tl.float32), bitcast=True)
    dim, slot = tl.arange(0, DIM), tl.arange(0, PAGE)
    # Scaled before it is rounded to 16 bits, so that its range is that of logits.
    q = tl.load(query[None, :] + dim[:, None], mask=own[None, :], other=0.0).to(tl.float32) * scale
    q = q.to(tl.float16)
    # `_half` gives what was stored and 1024 + 128: of keys that is taken off every product at once, where its sum begins.
    begin = tl.zeros([PAGE, ROWS], tl.float32) - ABOVE * tl.sum(q.to(tl.float32), 0)[None, :]
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
        logits = tl.dot(_half(k, INTERPRETED), q, begin) * key_scale[:, None]
        logits = tl.where(at[:, None] < seen[None, :], logits, float("-inf"))
        # Weights are 2^8 at most, not 1: times a scale they stay in float16's range.
        now = tl.maximum(largest, tl.max(logits, 0) - 8)
        shrink = tl.exp2(largest - now)
        weights = tl.exp2(logits - now[None, :])
        weight = weight * shrink[None, :] + weights
        v = tl.load(pages + values + slot[None, :] + dim[:, None] * PAGE)
        weights = (weights * value_scale[:, None]).to(tl.float16)
        # Of values before the product: weights are all positive, so what is above would outgrow what is summed.
        total = tl.dot(_half(v, INTERPRETED) - ABOVE, weights, total * shrink[None, :])
        largest = now
    return total, tl.sum(weight, 0), largest


@triton.jit
def _pages_each(length, PAGE: tl.constexpr, SPLITS: tl.constexpr, LONG: tl.constexpr):
    """Of a chain's parts."""
    pages = tl.cdiv(length, PAGE)
    parts = tl.minimum(tl.maximum(pages * SPLITS // LONG, 1), SPLITS)
    return tl.maximum(tl.cdiv(pages, parts), 1)


@triton.jit(do_not_specialize_on_alignment=ANY)
def _attend_part(
    query, pages, table, lengths, partial, sums, scale, table_stride, chain_stride, head_stride,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, PAGE: tl.constexpr,
    SPLITS: tl.constexpr, LONG: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One token of a chain, all query heads of a key head, over a part of the chain."""
    head, split, chain = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + chain)
    each = _pages_each(length, PAGE, SPLITS, LONG)
    first = split * each
    if first * PAGE >= length:
        return
    row, dim = tl.arange(0, ROWS), tl.arange(0, DIM)
    own = row < GROUP
    total, weight, largest = _over_pages(
        query + chain * chain_stride + (head * GROUP + row) * head_stride, own, length + tl.zeros_like(row),
        first, tl.minimum(first + each, tl.cdiv(length, PAGE)), pages, table + chain * table_stride, head, scale,
        KV_HEADS, ROWS, DIM, PAGE, INTERPRETED,
    )  # fmt: skip
    place = ((chain * KV_HEADS + head) * GROUP + row) * SPLITS + split
    tl.store(sums + place * 2, largest, mask=own)
    tl.store(sums + place * 2 + 1, weight, mask=own)
    tl.store(partial + place[None, :] * DIM + dim[:, None], total, mask=own[None, :])


@triton.jit(do_not_specialize_on_alignment=ANY)
def _join(
    partial, sums, lengths, out, chain_stride, head_stride,
    HEADS: tl.constexpr, DIM: tl.constexpr, PAGE: tl.constexpr, SPLITS: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """One head of a chain out of the parts that `_attend_part` wrote."""
    head, chain = tl.program_id(0), tl.program_id(1)
    split, dim = tl.arange(0, SPLITS), tl.arange(0, DIM)
    length = tl.load(lengths + chain)
    there = split * _pages_each(length, PAGE, SPLITS, LONG) * PAGE < length
    place = (chain * HEADS + head) * SPLITS + split
    largest = tl.load(sums + place * 2, mask=there, other=float("-inf"))
    share = tl.where(there, tl.exp2(largest - tl.max(largest, 0)), 0.0)
    weight = tl.sum(tl.load(sums + place * 2 + 1, mask=there, other=0.0) * share, 0)
    parts = tl.load(partial + place[:, None] * DIM + dim[None, :], mask=there[:, None], other=0.0)
    joined = tl.sum(parts * share[:, None], 0) / tl.where(weight > 0, weight, 1.0)
    tl.store(out + chain * chain_stride + head * head_stride + dim, joined.to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["skipped"], do_not_specialize_on_alignment=ANY)
def _attend_prompt(
    query, pages, table, lengths, starts, out, skipped, scale,
    table_stride, token_stride, head_stride, out_token_stride, out_head_stride,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, PAGE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Some tokens of a prompt, all query heads of a key head."""
    TOKENS: tl.constexpr = ROWS // GROUP
    block, head, chain = tl.program_id(0), tl.program_id(1), tl.program_id(2) + skipped
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
        query + place * token_stride + heads * head_stride, own, seen, 0, last, pages,
        table + chain * table_stride, head, scale, KV_HEADS, ROWS, DIM, PAGE, INTERPRETED,
    )  # fmt: skip
    where = out + place * out_token_stride + heads * out_head_stride
    total = (total / weight[None, :]).to(out.dtype.element_ty)
    tl.store(where[None, :] + dim[:, None], total, mask=own[None, :])
