"""Curation: what counts as a repeat or a leak, solve rates and their intervals, funnels."""

import random
from math import comb

import pytest
from curating import stage

from fathom.bands import Count, count_solved
from fathom.curate import text
from fathom.curate.decontaminate import HeldOut, Rules, find_leaks
from fathom.curate.dedup import SMALL_BLOCK, find_repeats
from fathom.curate.ops.decontaminate import DecontaminateConfig, run_decontaminate
from fathom.curate.ops.dedup import DedupConfig, run_dedup
from fathom.curate.ops.select import SelectConfig, run_select
from fathom.curate.ops.solve_rate import SolveRateConfig, run_solve_rate
from fathom.curate.solve_rate import posterior_interval
from fathom.errors import InputError
from fathom.ledger import Meter
from fathom.records import Example, Problem, Rollout, Verdict, read_jsonl, write_jsonl
from fathom.sources.families import FAMILIES
from fathom.sources.generated import GeneratedConfig, GeneratedCorpus, generate, identity


def problems(*questions_and_golds):
    return [Problem(f"p{i}", q, g) for i, (q, g) in enumerate(questions_and_golds)]


# ------------------------------------------------------------------------------ text


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("What is $37 + 48$?", "what is 37+48"),
        (r"Find $\dfrac{1}{2} \cdot x$.", "Find 1/2 × x"),
        (r"$x \leq 3$ and $y^{2}$", "x ≤ 3 and y^2"),
        ("a $9$-kilometer walk of 1,000 steps", "a 9 kilometer walk of 1000 steps"),
        (r"\text{area} of $45^{\circ}$", "area of 45 degrees"),
        ("Five pens cost twenty percent more", "5 pens cost 20% more"),
        ("ﬁnd the largest x", "find the greatest x"),
    ],
)
def test_notations_of_one_text(a, b):
    assert text.tokens(a) == text.tokens(b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("What is 37 + 48?", "What is 37 + 49?"),
        ("What is 37 + 48?", "What is 37 - 48?"),
        ("x^{a+b}", "x^a + b"),
        ("(a + b) c", "a + (b c)"),
        ("3.14", "314"),
        ("x < 3", "x <= 3"),
    ],
)
def test_different_texts_stay_different(a, b):
    assert text.tokens(a) != text.tokens(b)


@pytest.mark.parametrize(("a", "b", "same"), [
    ("27", "27.0", True), (r"\frac{1}{2}", "0.5", True), ("$(2,251,252)$", "(2, 251, 252)", True),
    ("1,000", "1000", True), ("1,3", "13", False), ("3", "-3", False), ("1/3", "0.333", False), ("x", "y", False),
])  # fmt: skip
def test_same_gold(a, b, same):
    assert (text.same_gold(a) == text.same_gold(b)) is same


# ------------------------------------------------------------------------------ dedup

WALK = "Mia walks 9 km on Monday and 12 km on Tuesday. How many km does she walk in both days together?"


@pytest.mark.parametrize(
    ("first", "second", "rule"),
    [
        ((WALK, "21"), (WALK.upper(), "21"), "same text"),
        ((WALK, "21"), (WALK, "22"), "same text, other gold"),
        ((WALK, "21"), (WALK.replace("Mia", "Ida"), "21"), "similar"),
        ((WALK, "21"), ("On Tuesday Mia walks 12 km, on Monday 9 km: how many km in both days together?", "21"), "similar"),
        ((WALK, "21"), (WALK.replace("12", "13"), "22"), None),
        ((WALK, "21"), (WALK.replace("together", "fewer"), "3"), None),
        ((WALK, "21"), ("A shelf has 9 red and 12 blue books. How many books are there?", "21"), None),
        (("What is 37 + 48?", "85"), ("What is 37 + 49?", "86"), None),
        (("What is 37 + 48?", "85"), ("Compute 37 + 48.", "85"), "similar"),
        (("What is 48 - 37?", "11"), ("What is 37 + 48?", "85"), None),
        ((WALK, None), (WALK.replace("Mia", "Ida"), None), "similar"),
        (("Show that the set of primes is infinite and unbounded above", None),
         ("Show that the set of twin primes is finite and bounded above", None), None),
    ],
)  # fmt: skip
def test_what_is_a_repeat(first, second, rule):
    found = find_repeats(problems(first, second), {}, similarity=0.5)
    assert [(r.row, r.of, r.rule) for r in found] == ([] if rule is None else [(1, 0, rule)])


def test_the_row_with_the_most_chains_stays_and_nothing_repeats_a_removed_row():
    rows = problems((WALK, "21"), (WALK.replace("Mia", "Ida"), "21"), (WALK.lower(), "21"), ("Else?", "1"))
    assert [(r.row, r.of) for r in find_repeats(rows, {}, 0.5)] == [(1, 0), (2, 0)]
    assert [(r.row, r.of) for r in find_repeats(rows, {"p1": (0, 3), "p2": (0, 1)}, 0.5)] == [(0, 1), (2, 1)]


def test_options_are_part_of_the_question():
    a = Problem("a", "Which is right?", "A", "choice", options=["cats bark", "dogs bark"])
    b = Problem("b", "Which is right?", "A", "choice", options=["fish swim", "stones swim"])
    assert find_repeats([a, b], {}, 0.5) == []


def test_large_blocks_find_what_the_comparison_of_all_pairs_finds():
    """300 problems with equal numbers and gold: MinHash bands choose the candidates, the truth is brute force."""
    rng = random.Random(5)
    vocabulary = [f"{a}{b}" for a in "bcdfghklmnprst" for b in ("ab", "ed", "iv", "ol", "um")]
    rows = []
    for i in range(150):
        words = rng.sample(vocabulary, 14)
        rows.append(Problem(f"a{i}", " ".join(words) + " 5", "1"))
        near = [*words[:12], *rng.sample(vocabulary, 2)]
        rows.append(Problem(f"b{i}", " ".join(near) + " 5", "1"))
    found = {(r.of, r.row) for r in find_repeats(rows, {}, 0.6)}
    pairs = {(i, i + 1) for i in range(0, 300, 2)}
    assert len(found & pairs) >= 148 and found <= pairs


def planted():
    evaluation = GeneratedCorpus(split="eval", count=300)
    config = GeneratedConfig(count=1500, duplicates=120, leaks=60, leak_from=evaluation)
    return generate(config)[0], generate(GeneratedConfig(**evaluation.model_dump()))[0]


def name(problem):
    return identity(FAMILIES[problem.meta["family"]], problem.meta["numbers"])


def test_planted_duplicates_and_leaks_are_all_removed():
    rows, evaluation = planted()
    gone = {r.row for r in find_repeats(rows, {}, similarity=0.0)}
    unique = [p for i, p in enumerate(rows) if i not in gone]
    kept = {name(p) for p in unique}
    assert len(kept) == len(unique)
    assert len({name(p) for p in rows} - kept) < 0.02 * len(rows), "12 + 9 against 9 + 12 and the like"
    rules = Rules(similarity=0.0, long_grams=False, coverage=None, template_tokens=None)
    leaks = {unique[leak.row].id for leak in find_leaks(unique, [HeldOut("eval", evaluation, rules)])}
    clean = [p for p in unique if p.id not in leaks]
    assert not {name(p) for p in clean} & {name(p) for p in evaluation}
    planted_leaks = {p.id for p in unique if p.meta.get("planted", "").startswith("leak")}
    assert planted_leaks and planted_leaks <= leaks
    assert len(leaks - planted_leaks) < 0.05 * len(unique)


# ------------------------------------------------------------------------------ decontamination

AIME = Problem(
    "aime/1",
    "Every morning Aya goes for a $9$-kilometer-long walk and stops at a coffee shop afterwards. When she walks at a "
    "constant speed of $s$ kilometers per hour, the walk takes her 4 hours, including $t$ minutes spent in the shop. "
    "Find the number of minutes the walk takes her, where m and n are relatively prime positive integers.",
    "204",
)


@pytest.mark.parametrize(
    ("question", "gold", "rule"),
    [
        (AIME.question.replace("$", "").lower(), "204", "exact"),
        (AIME.question.replace("Aya", "Bo").replace("morning", "day").replace("coffee", "tea"), "204", "similar"),
        (
            "Tea time! " + AIME.question.replace("Find the number of minutes", "How long, in hours, is what"),
            "3.4",
            "similar",
        ),
        (AIME.question.split(". ")[0] + ". How many cups does she drink in 5 weeks?", "35", "13-gram"),
        (AIME.question.replace("9", "8").replace("4", "5"), "17", "twin"),
        (AIME.question.replace("9", "8").replace("4", "5").replace("Aya", "Bo").replace("$s$", "$v$"), "17", "twin"),
        ("Problem 7 (5 points). " + AIME.question, "204", "contained"),
        (
            "Let the ratio be m/n where m and n are relatively prime positive integers. Find it for 9 and 4.",
            "9/4",
            None,
        ),
        ("Bo walks 9 km in 4 hours and 4 minutes. How many minutes is that?", "204", None),
    ],
)
def test_what_a_benchmark_recognises(question, gold, rule):
    stock = [Problem(f"s{i}", f"Given {i}, {AIME.question[-80:]}", str(i)) for i in range(6)]
    rows = [Problem("t", question, gold), *stock]
    found = find_leaks(rows, [HeldOut("aime", [AIME], Rules())])
    assert [leak.best.rule for leak in found if leak.row == 0] == ([] if rule is None else [rule])
    for leak in found:
        told = leak.removed(rows[leak.row])
        assert (told["other"], told["other_text"]) == ("aime/1", AIME.question)
        assert (told["id"], told["text"]) == (rows[leak.row].id, rows[leak.row].question)


@pytest.mark.parametrize(("off", "left"), [
    ({}, "twin"),
    ({"twin": 1.0}, "coverage"),
    ({"template_tokens": 500}, "coverage"),
    ({"template_tokens": None}, "coverage"),
    ({"template_tokens": None, "coverage": None}, "13-gram"),
    ({"template_tokens": None, "coverage": None, "long_grams": False}, None),
])  # fmt: skip
def test_each_rule_can_be_switched_off(off, left):
    nearly = Problem("t", AIME.question.replace("9", "7").replace("4", "3").replace("Find", "Guess"), "1")
    found = find_leaks([nearly], [HeldOut("aime", [AIME], Rules(**off))])
    assert [leak.best.rule for leak in found] == ([left] if left else [])


def test_the_plainest_rule_comes_first_and_every_benchmark_is_named():
    near = Problem("b/2", AIME.question.replace("9", "7"), "204")
    (leak,) = find_leaks([AIME], [HeldOut("near", [near], Rules()), HeldOut("same", [AIME], Rules())])
    assert [(m.benchmark, m.rule) for m in leak.matches] == [("same", "exact"), ("near", "twin")]
    assert leak.removed(AIME)["also"] == ["near"]


# ------------------------------------------------------------------------------ solve rates


def chain(key, index, correct=True, tokens=10, finish="stop", words="so \\boxed{1}"):
    return Rollout(key, index, words, tokens, finish, "m", verdict=Verdict("1", correct, "math/1", "exact"))


def test_counts_follow_verdicts_and_the_token_limit():
    chains = [
        chain("a", 0),
        chain("a", 1, tokens=7000),
        chain("a", 2, False),
        chain("a", 3, None),
        chain("b", 0, False),
    ]
    assert count_solved(chains) == {"a": Count(2, 3), "b": Count(0, 1)}
    assert count_solved(chains, max_tokens=6000) == {"a": Count(1, 3), "b": Count(0, 1)}


def test_posterior_interval_by_hand():
    assert posterior_interval(Count(0, 0)) == pytest.approx((0.025, 0.975), abs=1e-5)
    low, high = posterior_interval(Count(0, 8))
    assert low == pytest.approx(1 - 0.975 ** (1 / 9), abs=1e-5)
    assert high == pytest.approx(1 - 0.025 ** (1 / 9), abs=1e-5)
    low, high = posterior_interval(Count(3, 8))
    mirrored = posterior_interval(Count(5, 8))
    assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-5)
    for bound, p in ((low, 0.025), (high, 0.975)):
        assert sum(comb(9, j) * bound**j * (1 - bound) ** (9 - j) for j in range(4, 10)) == pytest.approx(p, abs=1e-5)


def test_posterior_interval_covers():
    """Rates drawn from the prior fall into their 95% intervals 95% of the time."""
    rng = random.Random(0)
    hits = 0
    for _ in range(2000):
        rate = rng.random()
        low, high = posterior_interval(Count(sum(rng.random() < rate for _ in range(8)), 8))
        hits += low <= rate <= high
    assert 0.93 < hits / 2000 < 0.97


# ------------------------------------------------------------------------------ stages


def test_the_stages_add_up_row_by_row(tmp_path):
    rows, _ = planted()
    first = tmp_path / "problems"
    first.mkdir()
    chains = [chain(p.id, i, (len(p.id) + i) % 3 > 0, tokens=20 - i) for p in rows for i in range(4)]
    write_jsonl(first / "problems.jsonl", rows)
    write_jsonl(first / "rollouts.jsonl", chains)
    unique, _, kept, removed = stage(
        tmp_path, "unique", run_dedup, DedupConfig(problems="p", similarity=0.0), problems=first
    )
    assert {r["other"] for r in removed} <= {p.id for p in kept}
    rules = {"similarity": 0.0, "long_grams": False, "coverage": None, "template_tokens": None}
    benchmarks = [{"generated": {"split": "eval", "count": 300}}]
    clean, metrics, kept, removed = stage(
        tmp_path, "clean", run_decontaminate,
        DecontaminateConfig.model_validate(
            {"problems": "u", "benchmarks": benchmarks, "rules_for": {"generated": rules}}
        ),
        problems=unique,
    )  # fmt: skip
    assert metrics["by_benchmark"] == {"generated": len(removed)} and len(removed) >= 60
    measured, _, kept, removed = stage(
        tmp_path, "measured", run_solve_rate, SolveRateConfig(problems="c", chains="p"), problems=clean, chains=first
    )
    assert removed == [] and all(p.meta["solve_rate"]["chains"] == 4 for p in kept)
    difficulty = [Problem(**{**p.__dict__, "difficulty": float(p.meta["level"])}) for p in kept]
    write_jsonl(measured / "problems.jsonl", difficulty)
    mean = sum(p.difficulty for p in difficulty) / len(difficulty)
    band, metrics, kept, removed = stage(
        tmp_path, "band", run_select,
        SelectConfig.model_validate({
            "problems": "m", "chains": "p", "solve_rate": {"min": 0.2, "max": 0.7}, "difficulty": "above_average",
            "chain": "shortest", "order": "difficulty", "limit": 30, "quotas": {"generated/gcd": 2},
        }),
        problems=measured, chains=first,
    )  # fmt: skip
    examples = list(read_jsonl(band / "examples.jsonl", Example))
    assert len(kept) == 30 and all(p.difficulty > mean and p.solve_rate == 0.5 for p in kept)
    assert [p.difficulty for p in kept] == sorted(p.difficulty for p in kept)
    assert [e.problem_id for e in examples] == [p.id for p in kept] and metrics["tokens_mean"] < 20
    assert {r["reason"].split()[0] for r in removed} == {"solve_rate", "difficulty", "over"}


def test_solve_rate_sets_problems_with_few_chains_aside(tmp_path):
    write_jsonl(tmp_path / "problems.jsonl", problems(("a", "1"), ("b", "1"), ("c", "1")))
    write_jsonl(
        tmp_path / "rollouts.jsonl", [chain("p0", 0), chain("p0", 1, False), chain("p1", 0), chain("p1", 1, None)]
    )
    config = SolveRateConfig(problems="p", chains="c", min_chains=2)
    _, _, kept, removed = stage(tmp_path, "m", run_solve_rate, config, problems=tmp_path, chains=tmp_path)
    assert [(p.id, p.solve_rate) for p in kept] == [("p0", 0.5)]
    assert [r["reason"] for r in removed] == ["1 usable chains, 2 needed", "0 usable chains, 2 needed"]


def test_nothing_left_is_one_line_with_the_funnel(tmp_path):
    write_jsonl(tmp_path / "problems.jsonl", problems(("a", "1"), ("b", "1")))
    write_jsonl(tmp_path / "rollouts.jsonl", [chain("p0", 0)])
    config = SelectConfig.model_validate({"problems": "p", "chains": "c", "solve_rate": {"min": 0.2}})
    with pytest.raises(InputError) as caught:
        run_select({"problems": tmp_path, "chains": tmp_path}, config, tmp_path, Meter.null(tmp_path))
    assert str(caught.value) == "select: no problem left: problems 2, solve rate >= 0.2 0, with a correct chain 0"


@pytest.mark.parametrize("chains", [64, 1100, 20_000])
def test_an_interval_of_many_chains(chains):
    low, high = posterior_interval(Count(chains // 2, chains), 0.95)
    assert (low + high) / 2 == pytest.approx(0.5, abs=1e-3)
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / chains**0.5, rel=0.05)


def test_two_benchmarks_of_one_name(tmp_path):
    write_jsonl(tmp_path / "problems.jsonl", problems(("a", "1")))
    twice = [{"generated": {"count": 5}}, {"generated": {"count": 6, "split": "eval"}}]
    config = DecontaminateConfig.model_validate({"problems": "p", "benchmarks": twice})
    with pytest.raises(InputError, match="benchmark 'generated' occurs twice"):
        run_decontaminate({"problems": tmp_path}, config, tmp_path, Meter.null(tmp_path))


@pytest.mark.parametrize("similarity", [0.0, 0.5])
def test_many_rows_without_numbers_or_gold_are_all_compared(similarity):
    rng = random.Random(0)
    words = [[rng.choice("abcdefgh") * rng.randint(1, 9) + rng.choice("xyz") for _ in range(30)] for _ in range(200)]
    rows = problems(*((" ".join(text), None) for text in words), *((" ".join([*text, "once"]), None) for text in words))
    assert len(find_repeats(rows, {}, similarity)) == 200 > SMALL_BLOCK


def test_rules_for_an_unknown_benchmark(tmp_path):
    write_jsonl(tmp_path / "problems.jsonl", problems(("a", "1")))
    config = DecontaminateConfig.model_validate(
        {"problems": "p", "benchmarks": [{"generated": {"count": 5}}], "rules_for": {"aime": {}}}
    )
    with pytest.raises(InputError, match="rules_for names 'aime'; the benchmarks are generated"):
        run_decontaminate({"problems": tmp_path}, config, tmp_path, Meter.null(tmp_path))
