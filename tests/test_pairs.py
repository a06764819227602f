"""Pairs of chains: which two a rule takes, how they are told apart, and what the op writes."""

import json
from dataclasses import replace

import pytest

from fathom.curate.ops.pairs import PairsConfig, run_pairs
from fathom.curate.pairs import brief, careful
from fathom.errors import InputError
from fathom.ledger import Meter
from fathom.records import Message, Pair, Problem, Rollout, Verdict, read_jsonl, write_jsonl


def chain(index: int, tokens: int, correct: bool | None, finish: str = "stop", problem: str = "p0") -> Rollout:
    text = f"<think>{'so ' * tokens}</think>\\boxed{{{index}}}"
    return Rollout(problem, index, text, tokens, finish, "base", verdict=Verdict(str(index), correct, "math/1"))


@pytest.mark.parametrize(
    ("rule", "ratio", "chains", "expected"),
    [
        (brief, 1, [(30, True), (10, True), (50, True), (5, False)], (1, 2)),
        (brief, 1, [(30, True), (30, True)], None),  # as long as one another
        (brief, 2, [(30, True), (59, True)], None),
        (brief, 2, [(30, True), (60, True)], (0, 1)),
        (brief, 1, [(30, True), (90, True, "length"), (40, None)], None),  # no end, no usable gold
        (brief, 1, [(20, True), (20, True), (40, True), (40, True)], (0, 3)),
        (careful, 1, [(30, True), (10, False), (20, False), (15, True)], (3, 1)),
        (careful, 2, [(30, True), (10, False), (20, False), (15, True)], (0, 1)),
        (careful, 1, [(30, True), (30, False)], None),
        (careful, 1, [(30, True), (10, False, "length")], None),
        (careful, 1, [(10, False)], None),
        (careful, 1, [(10, True)], None),
    ],
)
def test_which_two(rule, ratio, chains, expected):
    two = rule([chain(i, *of) for i, of in enumerate(chains)], ratio)
    assert (two and tuple(c.index for c in two)) == expected


@pytest.mark.parametrize("text", ["", " \n", "<think></think>", "</think>\n"])
def test_a_chain_that_says_nothing_is_in_no_pair(text):
    silent = replace(chain(1, 1, False), text=text)
    assert careful([chain(0, 30, True), silent], 1) is None
    assert careful([chain(0, 30, True), silent, chain(2, 9, False)], 1)[1].index == 2


def test_one_text_of_two_lengths_is_no_pair():
    one = chain(0, 10, True)
    assert brief([one, replace(one, index=1, tokens=12)], 1) is None


def test_characters_count_where_tokens_are_unknown():
    chains = [Rollout("p0", i, "x" * n, 0, "stop", "m", verdict=Verdict("1", True, "g")) for i, n in enumerate((9, 4))]
    assert [c.index for c in brief(chains, 1)] == [1, 0]


@pytest.fixture
def inputs(tmp_path):
    """Six problems of two sources with a short and a long correct chain; of three of them a shorter wrong one, too."""
    problems = [Problem(f"p{i}", f"{i}?", str(i), source="ab"[i % 2], licence="MIT") for i in range(7)]
    chains = [
        c for i in range(6) for c in (chain(0, 20 + i, True, problem=f"p{i}"), chain(1, 40, True, problem=f"p{i}"))
    ]
    chains += [chain(2, 5, False, problem=f"p{i}") for i in range(3)] + [chain(0, 9, False, problem="p6")]
    write_jsonl(tmp_path / "problems.jsonl", problems)
    write_jsonl(tmp_path / "rollouts.jsonl", chains)
    return {"problems": tmp_path, "chains": tmp_path}


def run(inputs, tmp_path, **settings):
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    found = run_pairs(inputs, PairsConfig(problems="p", chains="c", **settings), out, Meter.null(tmp_path, 0))
    return found, list(read_jsonl(out / "pairs.jsonl", Pair)), out


def test_the_op(inputs, tmp_path):
    found, pairs, out = run(inputs, tmp_path, careful={"limit": 2}, system="Think.")
    assert found["funnel"] == [["problems", 7], ["with a pair", 6]]
    assert found["brief"] == {"pairs": 6, "chosen_tokens": 22.5, "rejected_tokens": 40.0}
    assert found["careful"]["pairs"] == 2 and found["pairs"] == len(pairs) == 8
    assert len({pair.id for pair in pairs}) == 8
    (removed,) = [json.loads(line) for line in (out / "removed.jsonl").read_text().splitlines()]
    assert removed == {"id": "p6", "reason": "no pair that is asked for: 0 correct of 1 chains"}
    first = pairs[0]
    assert first.id == "p0#0>1" and [m.role for m in first.messages] == ["system", "user"]
    assert first.chosen == Message("assistant", "\\boxed{0}", reasoning="so " * 20)
    assert first.rejected.reasoning == "so " * 40
    assert first.lineage["rule"] == "brief" and first.lineage["licence"] == "MIT" and first.lineage["rollout"] == 0
    assert first.lineage["rejected"]["rollout"] == 1 and first.lineage["rejected"]["tokens"] == 40
    for pair in pairs:
        if pair.lineage["rule"] == "careful":
            assert (pair.lineage["rollout"], pair.lineage["rejected"]["rollout"]) == (0, 2)


def test_quotas_and_length(inputs, tmp_path):
    _, pairs, out = run(inputs, tmp_path, brief={"quotas": {"a": 1, "b": 0}}, careful={})
    rules = [(pair.lineage["source"], pair.lineage["rule"]) for pair in pairs]
    assert rules.count(("a", "brief")) == 1 and ("b", "brief") not in rules and len(rules) == 4
    kept = {json.loads(line)["id"] for line in (out / "problems.jsonl").read_text().splitlines()}
    assert kept == {pair.problem_id for pair in pairs}
    with pytest.raises(InputError, match=r"pairs: no problem left: problems 7, with a pair 0"):
        run(inputs, tmp_path, max_tokens=30)  # the long ones are gone
    with pytest.raises(InputError, match=r"pairs: brief\.quotas: no problem has the source 'c'; known: a, b"):
        run(inputs, tmp_path, brief={"quotas": {"c": 1}})


def test_some_kind_must_be_asked_for():
    with pytest.raises(ValueError, match="give brief or careful"):
        PairsConfig(problems="p", chains="c", brief=None)
