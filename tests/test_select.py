"""Selection: windows, quotas, proportions, order, which chain; mixtures; training rows and their lineage."""

import random
import re
from collections import Counter
from dataclasses import replace

import pytest
from curating import stage

from fathom.bands import Window, count_solved
from fathom.config import validate
from fathom.curate.examples import lineage, make_example, split_reasoning
from fathom.curate.ops.mix import MixConfig, run_mix
from fathom.curate.ops.select import SelectConfig, run_select
from fathom.curate.pairs import by_problem
from fathom.curate.select import (
    above_average,
    choose_chain,
    ordered,
    outside,
    over_limit,
    over_quota,
    over_share,
    proportions,
    usable_chains,
)
from fathom.errors import InputError
from fathom.ledger import Meter
from fathom.records import Example, Problem, Rollout, Sampling, Verdict, read_jsonl, write_jsonl


def chain(key, index, correct=True, tokens=10, finish="stop", words="so \\boxed{1}"):
    return Rollout(key, index, words, tokens, finish, "m", verdict=Verdict("1", correct, "math/1", "exact"))


# ------------------------------------------------------------------------------ selection


@pytest.mark.parametrize(("window", "inside", "outside"), [
    ({"min": 0.2, "max": 0.7}, [0.2, 0.5, 0.7], [0.19, 0.71]),
    ({"above": 0, "max": 0.4}, [0.125, 0.4], [0, 0.5]),
    ({"min": 0, "below": 1}, [0, 0.99], [1]),
    ({}, [0, 1], []),
])  # fmt: skip
def test_window(window, inside, outside):
    held = Window(**window)
    assert all(map(held.holds, inside)) and not any(map(held.holds, outside))


def test_only_correct_complete_chains_are_usable():
    chains = [
        chain("a", 2),
        chain("a", 0, False),
        chain("a", 1, finish="length"),
        chain("a", 3, tokens=99),
        Rollout("a", 4, "ungraded", 1, "stop", "m"),
        chain("b", 0, None),
    ]
    assert {k: [c.index for c in v] for k, v in usable_chains(chains).items()} == {"a": [2, 3]}
    assert [c.index for c in usable_chains(chains, max_tokens=50)["a"]] == [2]


def test_choice_of_chain():
    chains = [chain("a", 0, tokens=30, words="x"), chain("a", 1, tokens=10, words="xxx"), chain("a", 2, tokens=10)]
    assert choose_chain(chains, "first", 0).index == 0
    assert choose_chain(chains, "shortest", 0).index == 1
    unknown = [chain("a", 0, tokens=0, words="xx"), chain("a", 1, tokens=9, words="x"), chain("a", 2, tokens=0)]
    assert choose_chain(unknown, "shortest", 0).index == 1
    drawn = Counter(choose_chain(chains, "random", seed).index for seed in range(300))
    assert set(drawn) == {0, 1, 2} and max(drawn.values()) < 140


def test_limit_and_quota_are_seeded_and_exact():
    rows = [Problem(f"p{i}", "?", "1", source="ab"[i % 2]) for i in range(40)]
    kept = [[p.id for p in rows if over_limit(rows, 10, seed)(p) is None] for seed in (0, 0, 1)]
    assert kept[0] == kept[1] != kept[2] and len(kept[0]) == 10
    quota = over_quota(rows, {"a": 3}, 0)
    assert Counter(p.source for p in rows if quota(p) is None) == {"a": 3, "b": 20}


@pytest.mark.parametrize(("available", "weights", "limit", "counts"), [
    ({"a": 10, "b": 30}, {"a": 1, "b": 2}, None, {"a": 10, "b": 20}),
    ({"a": 10, "b": 30}, {"a": 1, "b": 2}, 6, {"a": 2, "b": 4}),
    ({"a": 10, "b": 30}, {"a": 1, "b": 2}, 300, {"a": 10, "b": 20}),
    ({"code": 5200, "maths": 12000, "science": 1000}, {"code": 5, "maths": 10, "science": 1}, 16000,
     {"code": 5000, "maths": 10000, "science": 1000}),
    ({"a": 9, "b": 9, "c": 9}, {"a": 1, "b": 1, "c": 1}, 10, {"a": 4, "b": 3, "c": 3}),
    ({"a": 3, "b": 9}, {"a": 0.3, "b": 0.7}, None, {"a": 3, "b": 7}),
    ({"a": 5, "b": 0}, {"a": 1, "b": 1}, None, {"a": 0, "b": 0}),
    ({"a": 5}, {"a": 1, "b": 1}, None, {"a": 0, "b": 0}),
    ({"a": 7}, {"a": 0.1}, None, {"a": 7}),
])  # fmt: skip
def test_the_largest_mixture_that_keeps_the_weights(available, weights, limit, counts):
    assert proportions(available, weights, limit) == counts


def test_mixtures_are_never_larger_than_what_there_is():
    rng = random.Random(3)
    for _ in range(300):
        names = "abcd"[: rng.randint(1, 4)]
        available = {name: rng.randint(0, 60) for name in names}
        weights = {name: rng.choice([1, 2, 5, 0.3, 7.7]) for name in names}
        limit = rng.choice([None, rng.randint(1, 200)])
        counts = proportions(available, weights, limit)
        total = sum(counts.values())
        assert all(counts[n] <= available[n] for n in names) and total <= (limit or total)
        assert all(abs(counts[n] - total * weights[n] / sum(weights.values())) < 1 for n in names)


def test_weights_and_filters_over_sources():
    rows = [Problem(f"p{i}", "?", "1", source="abc"[i % 3], licence=["MIT", ""][i % 2]) for i in range(60)]
    share = over_share(rows, {"a": 1, "b": 4}, None, 0)
    assert Counter(p.source for p in rows if share(p) is None) == {"a": 5, "b": 20}
    assert {share(p) for p in rows if p.source == "c"} == {"source 'c' has no weight"}
    wanted = outside({"source": ["a", "b"], "licence": ["MIT"]})
    assert {(p.source, p.licence) for p in rows if wanted(p) is None} == {("a", "MIT"), ("b", "MIT")}
    assert wanted(rows[1]) == "licence '' is not wanted" and wanted(rows[2]) == "source 'c' is not wanted"


def test_order():
    rows = [
        Problem("a", "?", "1", source="z", difficulty=5, solve_rate=0.2),
        Problem("b", "?", "1", source="y", difficulty=3, solve_rate=0.2),
        Problem("c", "?", "1", source="z", difficulty=5, solve_rate=0.6),
    ]
    assert [p.id for p in ordered(rows, "difficulty")] == ["b", "c", "a"]
    assert [p.id for p in ordered(rows, "source")] == ["b", "a", "c"]
    assert [p.id for p in ordered(rows, "none")] == ["a", "b", "c"]


# ------------------------------------------------------------------------------ training rows


@pytest.mark.parametrize(
    ("written", "reasoning", "answer"),
    [
        ("<think>\nhm\n</think>\n\n\\boxed{1}", "\nhm\n", "\n\n\\boxed{1}"),
        ("hm\n</think>\n\n\\boxed{1}", "hm\n", "\n\n\\boxed{1}"),
        ("hm </think> no, </think> yes", "hm </think> no, ", " yes"),
        ("\\boxed{1}", None, "\\boxed{1}"),
        ("<|begin_of_thought|>\n\nhm\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n\\boxed{1}\n<|end_of_solution|>",
         "\nhm\n", "\n\n\\boxed{1}"),
    ],
)  # fmt: skip
def test_split_reasoning(written, reasoning, answer):
    assert split_reasoning(written) == (reasoning, answer)


def test_an_example_carries_its_lineage():
    problem = Problem("p", "What is 0 + 1?", "1", source="s", licence="MIT", difficulty=2.0, solve_rate=0.5)
    example = make_example(problem, chain("p", 3, words="hm\n</think>\n\n\\boxed{1}"))
    assert [m.role for m in example.messages] == ["user", "assistant"]
    assert example.messages[0].content.startswith("What is 0 + 1?") and "\\boxed{}" in example.messages[0].content
    assert (example.messages[1].reasoning, example.messages[1].content) == ("hm\n", "\n\n\\boxed{1}")
    assert (example.id, example.problem_id, example.difficulty) == ("p#3", "p", 2.0)
    assert example.lineage == {
        "source": "s", "licence": "MIT", "model": "m", "rollout": 3, "tokens": 10, "solve_rate": 0.5,
        "verdict": {"grader": "math/1", "rung": "exact", "answer": "1"},
    }  # fmt: skip


def test_lineage_holds_what_is_known_and_nothing_else():
    bare = lineage(Problem("p", "?", "1"), Rollout("p", 0, "x", 0, "stop", "m"))
    assert bare == {"model": "m", "rollout": 0}
    rewritten = {"by": "gpt-4o-mini", "prompt": "9f", "kept": 0.98, "asks": 1}
    about = {"rewrite": rewritten, "usd": 0.0, "prompt": "ab12"}
    rich = lineage(
        Problem("p", "?", "1", solve_rate=0.0, meta={"solve_rate": {"correct": 0, "chains": 8}}),
        Rollout("p", 2, "x", 0, "stop", "m", sampling=Sampling(), meta=about),
    )
    assert rich["sampling"] == {"temperature": 0.6, "top_p": 0.95, "max_tokens": 16384, "seed": 0}
    assert rich["solve_rate"] == 0.0 and rich["solved"] == {"correct": 0, "chains": 8}
    assert {name: rich[name] for name in about} == about


# ------------------------------------------------------------------------------ stages


@pytest.mark.parametrize(("key", "value", "told"), [
    ("quotas", {"nomina": 3}, "quotas: no problem has the source 'nomina'; did you mean 'numina'?"),
    ("weights", {"numina": 1, "apps": 2}, "weights: no problem has the source 'apps'; known: numina"),
    ("where", {"kind": ["code"]}, "where: no problem has the kind 'code'; known: math"),
])  # fmt: skip
def test_a_selection_by_a_name_that_no_problem_has(tmp_path, key, value, told):
    write_jsonl(tmp_path / "problems.jsonl", [Problem("p", "?", "1", source="numina")])
    write_jsonl(tmp_path / "rollouts.jsonl", [chain("p", 0)])
    config = SelectConfig.model_validate({"problems": "p", "chains": "c", key: value})
    with pytest.raises(InputError) as caught:
        run_select({"problems": tmp_path, "chains": tmp_path}, config, tmp_path, Meter.null(tmp_path))
    assert str(caught.value) == f"select: {told}"


def selection(folder, name, ids):
    """The artifact of a selection: a problem and a training row for each id."""
    folder = folder / name
    folder.mkdir()
    rows = [Problem(i, f"{i}?", "1", source=name, difficulty=float(len(ids) - n)) for n, i in enumerate(ids)]
    write_jsonl(folder / "problems.jsonl", rows)
    write_jsonl(folder / "examples.jsonl", [make_example(p, chain(p.id, 2)) for p in rows])
    return folder


def mix(tmp_path, **config):
    code, maths = (f"c{i}" for i in range(8)), (f"m{i}" for i in range(20))
    parts = {
        "code": selection(tmp_path, "code", [*code, "both"]),
        "maths": selection(tmp_path, "maths", ["both", *maths]),
    }
    config = MixConfig.model_validate({"parts": {"code": "a", "maths": "b"}, **config})
    out, metrics, kept, removed = stage(tmp_path, "mixed", run_mix, config, parts=parts)
    examples = list(read_jsonl(out / "examples.jsonl", Example))
    assert [e.problem_id for e in examples] == [p.id for p in kept]
    assert all(e.lineage["part"] == e.lineage["source"] == p.source for e, p in zip(examples, kept, strict=True))
    return metrics, kept, removed


def test_a_mixture_by_row_counts(tmp_path):
    metrics, kept, removed = mix(tmp_path, rows={"code": 5, "maths": 30}, order="source")
    assert Counter(p.source for p in kept) == {"code": 5, "maths": 20}
    assert (metrics["parts"], metrics["short"]) == ({"code": 5, "maths": 20}, {"maths": 10})
    assert [p.source for p in kept] == ["code"] * 5 + ["maths"] * 20
    reasons = Counter(row["reason"] for row in removed)
    assert reasons == {"over the 5 rows of part code": 4, "in part maths and already in part code": 1}


def test_a_mixture_by_weights(tmp_path):
    metrics, kept, _ = mix(tmp_path, weights={"code": 1, "maths": 4}, order="difficulty")
    assert metrics["parts"] == {"code": 5, "maths": 20}
    assert [p.difficulty for p in kept] == sorted(p.difficulty for p in kept)


@pytest.mark.parametrize(("lines", "told"), [
    (slice(1, None), "part code: problem 'c0' has no row in examples.jsonl"),
    ([0, 0], "part code: problem 'c0' has several rows in examples.jsonl"),
])  # fmt: skip
def test_a_part_has_one_row_for_each_problem(tmp_path, lines, told):
    part = selection(tmp_path, "code", ["c0", "c1"])
    rows = (part / "examples.jsonl").read_text().splitlines(keepends=True)
    kept = rows[lines] if isinstance(lines, slice) else [rows[i] for i in lines]
    (part / "examples.jsonl").write_text("".join(kept))
    config = MixConfig.model_validate({"parts": {"code": "a"}})
    with pytest.raises(InputError, match=told):
        run_mix({"parts": {"code": part}}, config, tmp_path, Meter.null(tmp_path))


def test_what_nobody_counted_is_within_no_limit():
    counted, uncounted = chain("p", 5), replace(chain("p", 0), tokens=0)
    assert usable_chains([counted, uncounted])["p"]
    for use in (usable_chains, count_solved, by_problem):
        with pytest.raises(InputError, match=r"max_tokens: chain p#\d has no count of its tokens"):
            use([counted, uncounted], 16)


def test_equal_ones_are_not_above_their_own_mean():
    assert above_average([Problem(str(i), "?", "1", difficulty=4.4) for i in range(7)]).above == 4.4


@pytest.mark.parametrize(("config", "told"), [
    ({"rows": {"cod": 3}}, "'cod' is none of the parts; did you mean 'code'?"),
    ({"rows": {"code": 3}, "weights": {"code": 1, "maths": 1}}, "rows and weights can't be had together"),
    ({"weights": {"code": 1}}, "weights: the part 'maths' has none"),
    ({"limit": 3}, "limit needs weights (rows bounds each part)"),
])  # fmt: skip
def test_a_mixture_that_contradicts_itself(config, told):
    with pytest.raises(InputError, match=re.escape(told)):
        validate(MixConfig, {"parts": {"code": "a", "maths": "b"}, **config})
