"""Each watchdog trips on its own trouble, and on nothing else."""

from dataclasses import replace

import pytest

from fathom.train.config import WatchdogConfig
from fathom.train.watchdogs import WATCHDOGS, Facts, alarm

LIMITS = WatchdogConfig()
FINE = Facts(
    batch=1,
    drawn=8,
    groups=8,
    next_place=8,
    staleness=0,
    reward=0.5,
    pass1=0.5,
    tokens=100.0,
    truncated=0.1,
    entropy=0.4,
    gap=1e-6,
    fooled=0.0,
)


def history(*changes: dict, start: dict | None = None) -> list[Facts]:
    """Four batches in which all is well, then one for each change."""
    return [replace(FINE, **(start or {}))] * 4 + [replace(FINE, **change) for change in changes]


FALLEN = {"start": {"held_out": 0.6, "held_out_error": 0.03}}

CASES = [
    ("stale_weights", history({"staleness": 1}), "weights that are 1 batches old"),
    ("logprob_gap", history({"gap": 0.06}), "differ by 0.06 nats"),
    ("logprob_gap", history({"gap": float("nan")}), "differ by nan nats"),
    ("credulous_grader", history({"fooled": 0.9}), "calls 90% of other problems' answers correct"),
    ("truncation", history(*[{"truncated": 0.4}] * 4), "40% of the chains are truncated, 10% were"),
    ("entropy", history(*[{"entropy": 0.01}] * 4), "the policy has collapsed"),
    ("entropy", history(*[{"entropy": 1.7}] * 4), "the policy dissolves"),
    (
        "hacked_reward",
        history(*[{"reward": 0.7, "held_out": 0.45, "held_out_error": 0.04}] * 4, **FALLEN),
        "rose from 0.500 to 0.700 while held-out pass@1 fell from 0.600 to 0.450",
    ),
]


@pytest.mark.parametrize(("name", "batches", "reason"), CASES)
def test_it_trips_alone(name, batches, reason):
    said = {watchdog.__name__: watchdog(batches, LIMITS) for watchdog in WATCHDOGS}
    assert reason in said.pop(name)
    assert set(said.values()) == {None}
    assert reason in alarm(batches, LIMITS)


@pytest.mark.parametrize(
    "batches",
    [
        [FINE],
        history({}),
        history(*[{"truncated": 0.3, "entropy": 0.1, "gap": 0.04, "fooled": 0.4}] * 4),
        # the reward falls with it, or the fall is within its noise
        history(*[{"reward": 0.4, "held_out": 0.45, "held_out_error": 0.04}] * 4, **FALLEN),
        history(*[{"reward": 0.7, "held_out": 0.53, "held_out_error": 0.04}] * 4, **FALLEN),
        history(*[{"reward": 0.7, "held_out": 0.7, "held_out_error": 0.04}] * 4, **FALLEN),
    ],
)
def test_all_is_well(batches):
    assert alarm(batches, LIMITS) is None
