"""Rewards of groups and their advantages, against hand arithmetic."""

import math

import pytest

from fathom.train.rewards import REWARDS, Outcome, group_advantages, has_signal, shorter

RIGHT_100, RIGHT_200, WRONG_50 = Outcome(True, 100), Outcome(True, 200), Outcome(False, 50)


@pytest.mark.parametrize(
    ("kind", "group", "expected"),
    [
        ("shorter", [RIGHT_100, RIGHT_200, WRONG_50], [1.0, 0.75, 0.0]),
        ("shorter", [RIGHT_200, Outcome(True, 401)], [1.0, 0.0]),  # correct, but over the budget
        ("shorter", [WRONG_50, WRONG_50], [0.0, 0.0]),
        # the penalty begins at 320 of 400 tokens and is whole at 400
        ("soft_overlong", [Outcome(True, 320), Outcome(True, 360), Outcome(False, 400)], [1.0, 0.75, -0.5]),
        ("cosine", [Outcome(True, 0), RIGHT_200, Outcome(True, 400)], [1.0, 0.75, 0.5]),
        ("cosine", [Outcome(False, 0), Outcome(False, 200), Outcome(False, 400)], [-0.5, -0.25, -0.5]),
        # two of three right: 0.5 * 2/3 * tokens / 400
        ("pass_rate", [RIGHT_100, RIGHT_200, WRONG_50], [1 - 1 / 12, 1 - 1 / 6, -1 / 24]),
        ("pass_rate", [WRONG_50, Outcome(False, 100)], [-0.5 / 2 * 50 / 400, -0.5 / 2 * 100 / 400]),
    ],
)
def test_rewards_by_hand(kind, group, expected):
    assert REWARDS[kind](group, 400, 0.5) == pytest.approx(expected)


@pytest.mark.parametrize("kind", REWARDS)
def test_a_group_of_which_no_chain_counts_has_no_reward(kind):
    assert REWARDS[kind]([], 400, 0.5) == []


@pytest.mark.parametrize("weight", [0.0, 0.5, 0.99])
def test_any_correct_chain_is_worth_more_than_any_wrong_one(weight):
    rewards = shorter([Outcome(True, 1), Outcome(True, 400), Outcome(False, 1)], 400, weight)
    assert min(rewards[:2]) > rewards[2] == 0


def test_advantages_by_hand():
    assert group_advantages([1.0, 0.75, 0.0, 0.25]) == pytest.approx([0.5, 0.25, -0.5, -0.25])
    spread = math.sqrt((0.25 + 0.0625) * 2 / 3) + 1e-4
    assert group_advantages([1.0, 0.75, 0.0, 0.25], scale=True) == pytest.approx(
        [0.5 / spread, 0.25 / spread, -0.5 / spread, -0.25 / spread]
    )


@pytest.mark.parametrize(
    ("rewards", "signal"),
    [([1.0, 1.0], False), ([0.0, 0.0, 0.0], False), ([1.0, 0.75], True), ([1.0], False), ([], False)],
)
def test_a_group_whose_rewards_are_alike_teaches_nothing(rewards, signal):
    assert has_signal(rewards) is signal
