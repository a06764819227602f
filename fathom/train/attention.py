"""Attention in which the documents of one packed stream do not see each other, with no dense mask.

Registered with transformers as the attention implementation `fathom_documents`, so any of its
architectures that takes an attention interface can use it. The stream is cut into its documents,
documents of like length are padded to a common one, and causal attention runs on each such group:
padding exists inside attention only. Not for generation, and not for padded batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from fathom.errors import InputError

NAME = "fathom_documents"
EXPLICIT_WIDTH = 512
"""Longest documents, in tokens, for `explicit_attention`; its memory grows with the square."""


class Exchange(Protocol):
    """What turns some tokens of all heads into all tokens of some heads, and back (see `context.py`)."""

    def to_heads(self, x_T_H_d: torch.Tensor) -> torch.Tensor: ...
    def to_tokens(self, x_T_H_d: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class Group:
    """Consecutive documents, stream[start:end], that run padded to `width` tokens.

    rows: how many documents. slots: place of each of the tokens in the flattened (rows * width)
    padded form; None where nothing is padded.
    """

    start: int
    end: int
    rows: int
    width: int
    slots: torch.Tensor | None


@dataclass(frozen=True)
class Documents:
    """How a stream is cut for attention. exchange: with whom its tokens are shared, None where one process has all."""

    longest: int
    groups: tuple[Group, ...]
    exchange: Exchange | None = None

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        device: torch.device | str = "cpu",
        slack: float = 1.25,
        exchange: Exchange | None = None,
    ) -> Documents:
        """Group consecutive documents so that none is padded beyond `slack` times its length.

        Packs list their documents by falling length, so the groups are few.
        """
        groups: list[Group] = []
        members: list[int] = []
        start = 0
        for length in lengths:
            if members and max(*members, length) > slack * min(*members, length):
                groups.append(_group(start, members, device))
                start, members = start + sum(members), []
            members.append(length)
        groups.append(_group(start, members, device))
        return cls(max(lengths), tuple(groups), exchange)


def _group(start: int, lengths: list[int], device: torch.device | str) -> Group:
    width, end = max(lengths), start + sum(lengths)
    if min(lengths) == width:
        return Group(start, end, len(lengths), width, None)
    slots = torch.cat([torch.arange(row * width, row * width + length) for row, length in enumerate(lengths)])
    return Group(start, end, len(lengths), width, slots.to(device))


class _Pad(torch.autograd.Function):
    """Tokens to their slots of a zero tensor of `count` rows; no slot is taken twice, so the gradient is `_Unpad`."""

    @staticmethod
    def forward(ctx, x, slots, count):
        ctx.slots = slots
        return x.new_zeros(count, *x.shape[1:]).index_copy_(0, slots, x)

    @staticmethod
    def backward(ctx, grad):
        return grad.index_select(0, ctx.slots), None, None


class _Unpad(torch.autograd.Function):
    """The slots' rows back as a stream; the gradient is `_Pad`, zero on the padding."""

    @staticmethod
    def forward(ctx, x, slots):
        ctx.slots, ctx.count = slots, x.shape[0]
        return x.index_select(0, slots)

    @staticmethod
    def backward(ctx, grad):
        return grad.new_zeros(ctx.count, *grad.shape[1:]).index_copy_(0, ctx.slots, grad), None


def document_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    documents: Documents | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document. query: (1, H, T, d); key, value: (1, H_kv, T, d).

    Returns (1, T, H, d). Raises InputError for a model of which it would compute something else, ValueError for a mask.
    """
    if documents is None or attention_mask is not None:
        raise ValueError(f"{NAME} attention needs `documents` and takes no mask")
    if sliding_window is not None and documents.longest > sliding_window:
        raise InputError(
            f"training has full attention only: a row of {documents.longest} tokens exceeds the model's sliding window of {sliding_window}"
        )
    for name in ("softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise InputError(f"training has plain attention only, not {name}")
    exchange = documents.exchange
    streams = [x[0].transpose(0, 1) for x in (query, key, value)]
    if exchange:
        streams = [exchange.to_heads(x) for x in streams]
    out = [
        _group_attention(group, *(x[group.start : group.end] for x in streams), dropout, scaling)
        for group in documents.groups
    ]
    mixed = torch.cat(out)
    return (exchange.to_tokens(mixed) if exchange else mixed)[None], None


def _group_attention(
    group: Group, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, scaling: float | None
) -> torch.Tensor:
    """(tokens, heads, d) of one group's documents -> (tokens, H, d)."""
    padded = [
        x if group.slots is None else _Pad.apply(x, group.slots, group.rows * group.width) for x in (query, key, value)
    ]
    q, k, v = (x.unflatten(0, (group.rows, group.width)).transpose(1, 2) for x in padded)
    if q.dtype == torch.bfloat16 and q.device.type == "cpu" and group.width <= EXPLICIT_WIDTH and dropout == 0:
        mixed = explicit_attention(q, k, v, scaling)
    else:
        mixed = scaled_dot_product_attention(
            q, k, v, is_causal=True, dropout_p=dropout, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
    flat = mixed.transpose(1, 2).flatten(0, 1)
    return flat if group.slots is None else _Unpad.apply(flat, group.slots)


def explicit_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """Causal attention that writes its scores out: q (B, H, L, d), k and v (B, H_kv, L, d) -> (B, H, L, d).

    For short documents in bfloat16 on a CPU, where the fused kernel's backward pass makes no use
    of matrix instructions and takes twice the time. Query heads that share keys run as one.
    """
    rows, heads, width, size = q.shape
    shared = heads // k.shape[1]
    future = torch.full((width, width), -torch.inf, dtype=q.dtype).triu_(1).repeat(shared, 1)
    queries = q.reshape(rows * k.shape[1], shared * width, size)
    scale = size**-0.5 if scaling is None else scaling
    scores = torch.baddbmm(future.expand(len(queries), -1, -1), queries, k.flatten(0, 1).transpose(1, 2), alpha=scale)
    return torch.bmm(scores.softmax(-1), v.flatten(0, 1)).view(rows, heads, width, size)


AttentionInterface.register(NAME, document_attention)
