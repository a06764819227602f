"""A pack: whole encoded examples end to end in one stream of tokens, isolated by their lengths.

Nothing is padded and nothing is cut. Which examples lie together is decided in `layout.py`.

Shapes: T tokens of a pack, N of them predicted (weight not 0).
"""

from __future__ import annotations

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
