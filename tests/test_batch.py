"""fathom.train.batch: a pack predicts what its documents say, each from its own tokens."""

import torch

from fathom.tokens import EncodedExample
from fathom.train.batch import pack


def test_pack_predicts_each_weighted_token_from_the_place_before_it():
    rows = [
        EncodedExample("a", [10, 11, 12, 13], [0.0, 0.0, 1.0, 1.0], 2),
        EncodedExample("b", [20, 21, 22], [1.0, 0.5, 0.0], 1),
    ]
    packed = pack(rows)
    assert packed.ids_T.tolist() == [10, 11, 12, 13, 20, 21, 22]
    assert packed.positions_T.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert packed.lengths == (4, 3)
    # b's first token has a weight but nothing before it in its own document
    assert packed.sources_N.tolist() == [1, 2, 4]
    assert packed.targets_N.tolist() == [12, 13, 21]
    assert torch.equal(packed.weights_N, torch.tensor([1.0, 1.0, 0.5]))
