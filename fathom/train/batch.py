"""From encoded examples to packs: which rows make a step, and how they lie in one stream of tokens.

Everything here is a pure function of its arguments. The sampler has no state: the rows of a step
follow from (seed, epoch, index) alone, so a position in training is one integer. Nothing is padded
and nothing is cut: a pack is whole documents end to end, isolated by their lengths.

Shapes: T tokens of a pack, N of them predicted (weight not 0).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Self

import torch

from fathom.tokens import EncodedExample


@dataclass(frozen=True)
class Pack:
    """Whole documents in one stream of T tokens.

    ids_T, positions_T: int64; positions count from 0 in every document. lengths: tokens of each
    document, in order. sources_N: places in the stream whose hidden state predicts targets_N, the
    token after it; weights_N: float32, the weight of that token's loss.
    """

    ids_T: torch.Tensor
    positions_T: torch.Tensor
    lengths: tuple[int, ...]
    sources_N: torch.Tensor
    targets_N: torch.Tensor
    weights_N: torch.Tensor

    def predicted(self, part: slice) -> Self:
        """The same with some of the predicted tokens only."""
        return replace(self, **{name: value[part] for name, value in self._tensors().items() if name.endswith("_N")})

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """With every tensor moved."""
        return replace(self, **{name: move(value) for name, value in self._tensors().items()})

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}


def epoch_order(ids: Sequence[str], seed: int, epoch: int, difficulties: Sequence[float] | None = None) -> list[int]:
    """Row numbers in the order of this epoch: rising difficulty where given, shuffled otherwise.

    Equal difficulties are shuffled anew in every epoch. The order depends on the ids and not on
    the order of the rows.
    """

    def draw(row: int) -> bytes:
        return hashlib.sha256(f"{seed}/{epoch}/{ids[row]}".encode()).digest()

    if difficulties is None:
        return sorted(range(len(ids)), key=draw)
    return sorted(range(len(ids)), key=lambda row: (difficulties[row], draw(row)))


def split_steps(
    order: Sequence[int], lengths: Sequence[int], batch_size: int | None = None, batch_tokens: int | None = None
) -> list[list[int]]:
    """Cut an epoch's order into optimizer steps of `batch_size` rows, or of at most `batch_tokens` tokens.

    Exactly one of the two is given. No row is dropped: the last step of an epoch may be smaller,
    and a row longer than `batch_tokens` is a step of its own.
    """
    if batch_size is not None:
        return [list(order[i : i + batch_size]) for i in range(0, len(order), batch_size)]
    assert batch_tokens is not None
    steps: list[list[int]] = []
    room = 0
    for row in order:
        if lengths[row] > room:
            steps.append([])
            room = batch_tokens
        steps[-1].append(row)
        room -= lengths[row]
    return steps


def split_packs(rows: Sequence[int], lengths: Sequence[int], pack_tokens: int, places: int = 1) -> list[list[int]]:
    """Cut a step's rows into packs of at most `pack_tokens` tokens, few and full.

    A row longer than `pack_tokens` is a pack of its own. places: to how many processes the packs are dealt in turn. As those
    wait for one another, each gets as many packs, and all are of like lengths, as far as the rows allow.
    """
    packs = _filled(rows, lengths, pack_tokens)
    if places == 1:
        return packs
    count = -(-len(packs) // places) * places
    too_small, enough = sum(lengths[row] for row in rows) // count, pack_tokens
    while (
        enough - too_small > 1
    ):  # the least room with which that many packs do (MULTIFIT, Coffman, Garey and Johnson 1978)
        room = (too_small + enough) // 2
        found = _filled(rows, lengths, room)
        if len(found) > count:
            too_small = room
        else:
            packs, enough = found, room
    return sorted(packs, key=lambda part: -sum(lengths[row] for row in part))


def _filled(rows: Sequence[int], lengths: Sequence[int], room: int) -> list[list[int]]:
    """As few packs as first fit decreasing finds."""
    packs: list[list[int]] = []
    rooms: list[int] = []
    for row in sorted(rows, key=lambda row: -lengths[row]):
        place = next((i for i, left in enumerate(rooms) if lengths[row] <= left), None)
        if place is None:
            place = len(packs)
            packs.append([])
            rooms.append(room)
        packs[place].append(row)
        rooms[place] -= lengths[row]
    return packs


def pack(examples: Sequence[EncodedExample]) -> Pack:
    """Lay the examples end to end. A document's first token is never predicted (nothing precedes it)."""
    lengths = tuple(len(example.ids) for example in examples)
    ids_T = torch.tensor([token for example in examples for token in example.ids])
    weights_T = torch.tensor([weight for example in examples for weight in example.weights])
    weights_T[[0, *accumulate(lengths[:-1])]] = 0
    predicted_N = weights_T.nonzero().squeeze(1)
    return Pack(
        ids_T=ids_T,
        positions_T=torch.cat([torch.arange(length) for length in lengths]),
        lengths=lengths,
        sources_N=predicted_N - 1,
        targets_N=ids_T[predicted_N],
        weights_N=weights_T[predicted_N],
    )
