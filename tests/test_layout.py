"""fathom.train.layout: every row is used, in an order that is a pure function of (seed, epoch, ids)."""

import random

import pytest

from fathom.train.layout import epoch_order, split_packs, split_steps, waited

IDS = [f"row{i}" for i in range(50)]
DIFFICULTY = [float(i * 7 % 5) for i in range(50)]


def test_curriculum_rises_in_every_epoch_and_breaks_ties_anew():
    first, second = (epoch_order(IDS, 0, epoch, DIFFICULTY) for epoch in (0, 1))
    for order in (first, second):
        assert sorted(order) == list(range(50))
        assert [DIFFICULTY[row] for row in order] == sorted(DIFFICULTY)
    assert first != second
    assert first == epoch_order(IDS, 0, 0, DIFFICULTY)


def test_shuffles_differ_by_seed_and_epoch_and_not_by_the_order_of_the_file():
    orders = {(seed, epoch): epoch_order(IDS, seed, epoch) for seed in (0, 1) for epoch in (0, 1)}
    assert len({tuple(order) for order in orders.values()}) == 4
    moved = list(reversed(IDS))
    assert [moved[row] for row in epoch_order(moved, 0, 0)] == [IDS[row] for row in orders[0, 0]]


def test_steps_by_examples_and_by_tokens_keep_every_row_in_order():
    draw = random.Random(0)
    lengths = [draw.randint(1, 40) for _ in range(50)]
    order = epoch_order(IDS, 0, 0)
    by_rows = split_steps(order, lengths, batch_size=8)
    assert [len(step) for step in by_rows] == [8] * 6 + [2]
    by_tokens = split_steps(order, lengths, batch_tokens=100)
    for steps in (by_rows, by_tokens):
        assert [row for step in steps for row in step] == order
    totals = [sum(lengths[row] for row in step) for step in by_tokens]
    assert max(totals) <= 100
    following = [lengths[step[0]] for step in by_tokens[1:]]
    assert all(total + more > 100 for total, more in zip(totals, following, strict=False)), "a step was cut too early"


def test_a_row_longer_than_the_budget_stands_alone():
    assert split_steps([0, 1, 2], [5, 300, 5], batch_tokens=100) == [[0], [1], [2]]
    assert split_packs([0, 1, 2], [5, 300, 6], 100) == [[1], [2, 0]]


def test_packs_are_full_and_hold_every_row_once():
    draw = random.Random(1)
    lengths = [draw.randint(20, 300) for _ in range(200)]
    packs = split_packs(range(200), lengths, 1024)
    assert sorted(row for part in packs for row in part) == list(range(200))
    assert all(sum(lengths[row] for row in part) <= 1024 for part in packs)
    assert sum(lengths) / (1024 * len(packs)) > 0.97


@pytest.mark.parametrize("places", [2, 8])
def test_packs_for_several_processes_are_alike_and_as_many_for_each(places):
    draw = random.Random(6)
    lengths = [draw.randint(20, 1000) for _ in range(96)]
    few, even = split_packs(range(96), lengths, 1024), split_packs(range(96), lengths, 1024, places)
    tokens = [sum(lengths[row] for row in part) for part in even]
    assert len(few) % places, "else this shows nothing"
    assert sorted(row for part in even for row in part) == list(range(96))
    assert len(few) < len(even) < len(few) + places and len(even) % places == 0
    assert max(tokens) <= 1024 and tokens == sorted(tokens, reverse=True)
    assert waited(even, lengths, places) < min(waited(few, lengths, places), 0.05)


def test_what_processes_wait_for_by_hand():
    """Turns of 30 and 20 tokens: the second process waits for 5, and has no pack in the second turn."""
    packs, lengths = [[0, 1], [2], [3]], [10, 20, 25, 20]
    assert waited(packs, lengths, 2) == pytest.approx(1 - 75 / (2 * 50))
    assert waited(packs, lengths, 1) == 0


def test_fewer_rows_than_processes_are_a_pack_each():
    assert split_packs([3, 1], [0, 5, 0, 7], 100, places=4) == [[3], [1]]
    assert split_packs([0, 1, 2], [300, 5, 6], 100, places=2) == [[0], [2, 1]]
