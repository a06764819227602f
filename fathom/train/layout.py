"""Which rows make an optimizer step, and how they lie in packs: numbers of rows only, before anything is a tensor.

Everything here is a pure function of its arguments. The sampler has no state: the rows of a step
follow from (seed, epoch, index) alone, so a position in training is one integer. Nothing is cut and
no row is left out. `batch.py` makes streams of tokens of these packs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


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
    # The least room with which that many packs do (MULTIFIT, Coffman, Garey and Johnson 1978).
    while enough - too_small > 1:
        room = (too_small + enough) // 2
        found = _filled(rows, lengths, room)
        if len(found) > count:
            too_small = room
        else:
            packs, enough = found, room
    return sorted(packs, key=lambda part: -sum(lengths[row] for row in part))


def waited(packs: Sequence[Sequence[int]], lengths: Sequence[int], places: int) -> float:
    """Of the time of a step, the share in which a process waits or works for nothing, by count of tokens.

    Packs are dealt in turn to `places` processes. In each turn all wait for the longest pack, also where there is one for some only.
    """
    tokens = [sum(lengths[row] for row in part) for part in packs]
    turns = sum(max(tokens[i : i + places]) for i in range(0, len(tokens), places))
    return 1 - sum(tokens) / (turns * places)


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
