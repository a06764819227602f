"""The evaluate stage on recorded completions: rows by hand arithmetic, pairing, resume, bad input."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from fathom.errors import InputError
from fathom.evaluate.run import EvaluateConfig, run_evaluate
from fathom.evaluate.scores import collect
from fathom.ledger import Meter
from fathom.records import Rollout, Verdict, read_jsonl
from fathom.sources import benchmarks, livecodebench
from fathom.sources.benchmarks import BenchmarkChoice

GOLDS = {"toy/a": "1", "toy/b": "2", "toy/c": "3"}


def write_bench(path, golds=GOLDS):
    rows = [{"id": key, "problem": f"What is {key}?", "answer": gold} for key, gold in golds.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_completions(path, answers):
    """answers: problem id -> list of (answer, tokens); None stands for a truncated chain."""
    with open(path, "w") as stream:
        for key, chains in answers.items():
            for answer, tokens in chains:
                text = "<think>\nhm" if answer is None else f"<think>\nhm\n</think>\n\\boxed{{{answer}}}"
                row = {"problem_id": key, "text": text, "tokens": tokens, "truncated": answer is None}
                stream.write(json.dumps(row) + "\n")


def config(tmp_path, completions, **changes):
    values = {
        "model": "tuned",
        "benchmarks": [{"name": "toy", "path": str(tmp_path / "bench.jsonl")}],
        "samples": 4,
        "samplings": [{"temperature": 0.6, "top_p": 0.95, "max_tokens": 100}],
        "engine": {
            "kind": "recorded",
            "path": str(completions),
            "columns": {"tokens": "tokens", "truncated": "truncated"},
        },
        "budgets": [10, 50, 100],
    }
    return EvaluateConfig.model_validate({**values, **changes})


def evaluate(tmp_path, name, answers, against=None, **changes):
    """Run the stage; returns (rows.json, artifact directory)."""
    completions = tmp_path / f"{name}.jsonl"
    write_completions(completions, answers)
    out = tmp_path / f"{name}-out"
    out.mkdir()
    inputs = {"model": None, "against": against}
    if against is not None:
        changes["against"] = "eval_base"
    run_evaluate(inputs, config(tmp_path, completions, **changes), out, Meter.null(tmp_path / f"{name}-scratch"))
    return json.loads((out / "rows.json").read_text()), out


TUNED = {
    "toy/a": [("1", 10), ("1", 20), ("1", 30), ("9", 40)],  # 3 of 4, majority right
    "toy/b": [("2", 10), ("2", 10), ("5", 10), ("5", 10)],  # 2 of 4, tied
    "toy/c": [("7", 60), ("7", 60), ("7", 60), (None, 100)],  # 0 of 4, one truncated
}
BASE = {
    "toy/a": [("1", 50), ("8", 50)],
    "toy/b": [("2", 50), ("5", 50)],
    "toy/c": [("3", 50), (None, 100)],
}


@pytest.fixture(autouse=True)
def bench(tmp_path):
    write_bench(tmp_path / "bench.jsonl")


def test_a_row_holds_the_promised_keys_with_hand_computed_values(tmp_path):
    (row,), out = evaluate(tmp_path, "tuned", TUNED)
    assert list(row) == [
        "model", "benchmark", "temperature", "top_p", "problems", "samples", "max_tokens",
        "pass1", "pass1_ci", "cons", "cons_ci", "tokens_mean", "truncated", "vs_base",
    ]  # fmt: skip
    assert (row["model"], row["benchmark"], row["problems"], row["samples"]) == ("tuned", "toy", 3, 4)
    assert (row["temperature"], row["top_p"], row["max_tokens"]) == (0.6, 0.95, 100)
    assert row["pass1"] == pytest.approx((3 / 4 + 2 / 4 + 0) / 3)
    assert row["cons"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert row["tokens_mean"] == pytest.approx((25 + 10 + 70) / 3)
    assert row["truncated"] == pytest.approx((0 + 0 + 1 / 4) / 3)
    assert row["vs_base"] is None
    for rate in ("pass1", "cons"):
        low, high = row[f"{rate}_ci"]
        assert 0 <= low < row[rate] < high <= 1
    assert {p.name for p in out.iterdir()} == {
        "problems.jsonl", "rollouts.jsonl", "rows.json", "curves.json", "comparisons.json",
    }  # fmt: skip


def test_difference_to_the_base_is_paired_and_takes_other_sample_counts(tmp_path):
    _, base = evaluate(tmp_path, "base", BASE, model="base", samples=2)
    (row,), _ = evaluate(tmp_path, "tuned", TUNED, against=base)
    # per problem: 0.75 - 0.5, 0.5 - 0.5, 0 - 0.5
    assert row["vs_base"]["pass1_diff"] == pytest.approx((0.25 + 0 - 0.5) / 3)
    assert row["vs_base"]["tokens_ratio"] == pytest.approx(((25 + 10 + 70) / 3) / ((50 + 50 + 75) / 3))
    low, high = row["vs_base"]["ci"]
    assert low < row["vs_base"]["pass1_diff"] < high


def test_several_samplings_share_a_file_and_greedy_draws_once(tmp_path):
    samplings = [
        {"temperature": 0.6, "top_p": 0.95, "max_tokens": 100},
        {"temperature": 0, "top_p": 1, "max_tokens": 100},
    ]
    rows, out = evaluate(tmp_path, "tuned", TUNED, samplings=samplings)
    assert [(row["temperature"], row["samples"]) for row in rows] == [(0.6, 4), (0.0, 1)]
    rollouts = list(read_jsonl(out / "rollouts.jsonl", Rollout))
    assert {(r.sampling.temperature, r.meta["benchmark"], r.model) for r in rollouts} == {
        (0.6, "toy", "tuned"),
        (0.0, "toy", "tuned"),
    }


def test_curves_and_pass_at_k_are_written(tmp_path):
    _, out = evaluate(tmp_path, "tuned", TUNED, usd_per_million_tokens=2.0)
    (curve,) = json.loads((out / "curves.json").read_text())
    assert curve["pass_at"]["4"] == pytest.approx(2 / 3)
    assert [point["max_tokens"] for point in curve["points"]] == [10, 50, 100]
    ten, fifty, hundred = (point["pass1"] for point in curve["points"])
    assert (ten, fifty, hundred) == pytest.approx(((1 / 4 + 2 / 4) / 3, 5 / 12, 5 / 12))
    # 420 tokens for 5 right answers at 2 dollars a million
    assert curve["points"][-1]["usd_per_correct"] == pytest.approx(420 / 5 * 2e-6)


def test_same_input_same_bytes(tmp_path):
    _, first = evaluate(tmp_path, "one", TUNED)
    _, second = evaluate(tmp_path, "two", TUNED)
    for name in ("problems.jsonl", "rollouts.jsonl", "rows.json", "curves.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_an_unusable_gold_is_left_out_and_reported(tmp_path):
    write_bench(tmp_path / "bench.jsonl")
    completions = tmp_path / "c.jsonl"
    write_completions(completions, TUNED)
    out = tmp_path / "out"
    out.mkdir()
    run_evaluate({}, config(tmp_path, completions), out, Meter.null(tmp_path / "scratch"))
    rollouts = list(read_jsonl(out / "rollouts.jsonl", Rollout))
    spoilt = [replace(r, verdict=replace(r.verdict, correct=None)) if r.problem_id == "toy/c" else r for r in rollouts]
    (scores,) = collect(spoilt)
    assert scores.problem_ids == ("toy/a", "toy/b") and scores.unusable == ("toy/c",)
    with pytest.raises(InputError, match="no problem has a gold"):
        collect([r for r in spoilt if r.problem_id == "toy/c"])


def test_only_mathematical_answers_are_compared_as_mathematics():
    def chain(index, answer, grader):
        return Rollout("p", index, "", 1, "stop", "m", verdict=Verdict(answer, True, grader))

    asked = []

    def equivalent(a, b):
        return asked.append((a, b)) or True

    (scores,) = collect([chain(0, "print(1)", "code/1"), chain(1, "print( 1)", "code/1")], equivalent)
    assert scores.votes[0].tolist() == [0, 1] and not asked
    (scores,) = collect([chain(0, "1/2", "math/1"), chain(1, "0.5", "math/1")], equivalent)
    assert scores.votes[0].tolist() == [0, 0] and asked == [("1/2", "0.5")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"benchmarks": ["aime99"]}, "'aime99' is unknown"),
        ({"benchmarks": [{"name": "toy", "path": "nowhere.jsonl"}]}, "nowhere.jsonl: no such file"),
    ],
)
def test_wrong_benchmarks_are_one_clear_line(tmp_path, change, message):
    with pytest.raises((InputError, ValidationError), match=message):  # an unknown name is told with the recipe
        evaluate(tmp_path, "tuned", TUNED, **change)


def test_a_misspelt_key_is_refused(tmp_path):
    with pytest.raises(ValidationError, match="sample"):
        config(tmp_path, "x.jsonl", sample=4)


def test_a_duplicate_id_and_a_missing_column_name_the_row(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"id": "a", "problem": "q", "answer": "1"}\n' * 2)
    with pytest.raises(InputError, match="'bad/a' occurs twice"):
        benchmarks.load(BenchmarkChoice(name="bad", path=str(path)))
    path.write_text('{"id": "a", "text": "q", "answer": "1"}\n')
    with pytest.raises(InputError, match=r"bad.jsonl:1: no column 'problem'"):
        benchmarks.load(BenchmarkChoice(name="bad", path=str(path)))


def test_a_base_without_this_sampling_is_refused_before_anything_is_sampled(tmp_path):
    _, base = evaluate(tmp_path, "base", BASE, model="base", samples=2)
    other = [{"temperature": 1.0, "top_p": 1, "max_tokens": 100}]
    with pytest.raises(InputError, match="has no rollouts for toy"):
        evaluate(tmp_path, "tuned", TUNED, against=base, samplings=other)
    assert not (tmp_path / "tuned-scratch").exists()


def test_every_known_benchmark_is_complete():
    names = set(benchmarks.table())
    assert names == {
        "aime24", "aime25", "hmmt25", "math500", "gpqa-diamond", "olympiadbench", "minerva", "amc23", "gsm8k",
        "livecodebench-easy", "livecodebench-medium", "livecodebench-hard",
    }  # fmt: skip
    for entry in benchmarks.table().values():
        assert entry.licence and entry.prompt and entry.problems and entry.hub.name
        assert entry.hub.revision is None or len(entry.hub.revision) == 40


def test_options_are_shuffled_by_the_seed_alone():
    options = ["right", "w1", "w2", "w3"]
    assert benchmarks.shuffled(options, "q1", 0) == benchmarks.shuffled(reversed(options), "q1", 0)
    places = [benchmarks.shuffled(options, f"q{i}", 0).index("right") for i in range(400)]
    assert all(70 <= places.count(place) <= 130 for place in range(4))


def test_livecodebench_pickles_can_build_nothing_but_text():
    import base64
    import pickle
    import zlib

    def packed(value):
        return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()

    cases = json.dumps([{"input": "1\n", "output": "2\n", "testtype": "stdin"}])
    row = {"public_test_cases": "[]", "private_test_cases": packed(cases)}
    assert livecodebench.tests(row, "row 1") == [{"kind": "stdin", "input": "1\n", "expected": "2\n"}]
    with pytest.raises(InputError, match="row 1: tests can't be read"):
        livecodebench.tests({**row, "private_test_cases": packed(print)}, "row 1")
    for wrong in ("[{}]", "[7]", "7", None, packed([1])):
        with pytest.raises(InputError, match="row 1: tests can't be read"):
            livecodebench.tests({**row, "private_test_cases": wrong}, "row 1")
    with pytest.raises(InputError, match="row 1: metadata"):
        livecodebench.meta({"metadata": "[1]"}, "row 1")


BENCH = Path(os.environ.get("FATHOM_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data")) / "bench"


@pytest.mark.skipif(not BENCH.is_dir(), reason=f"shared data absent: {BENCH}")
@pytest.mark.parametrize(
    ("name", "file", "problems", "first_gold"),
    [
        ("aime24", "bench/aime24.jsonl", 30, "204"),
        ("aime25", "bench/aime25.jsonl", 30, "70"),
        ("hmmt25", "bench/hmmt25.jsonl", 30, "103"),
        ("math500", "bench/math500.jsonl", 500, r"\left( 3, \frac{\pi}{2} \right)"),
        ("olympiadbench", "bench/olympiadbench.jsonl", 675, "2"),
        ("minerva", "bench/minerva.jsonl", 272, "1.6"),
        ("amc23", "bench/amc.jsonl", 40, "27.0"),
        ("gsm8k", "bench/gsm8k_test.jsonl", 1319, "18"),
        ("livecodebench-easy", "code_lcb_problems.jsonl.gz", None, None),
    ],
)
def test_local_copies_of_the_real_benchmarks_load(name, file, problems, first_gold):
    loaded = benchmarks.load(BenchmarkChoice(name=name, path=str(BENCH.parent / file)))
    assert problems is None or len(loaded.problems) == problems
    first = loaded.problems[0]
    assert first.id.startswith(f"{name}/") and first.gold == first_gold and first.licence
    if first.kind == "code":
        assert all(p.tests and p.meta["difficulty"] == "easy" for p in loaded.problems)


def test_hub_rows_are_read_by_the_table(monkeypatch):
    rows = {
        "gsm8k": [{"question": "q", "answer": "2 + 2 = 4\n#### 4"}],
        "olympiadbench": [{"id": 7, "question": "q", "final_answer": ["1", "2"]}],
        "gpqa-diamond": [
            {
                "Record ID": "r1",
                "Question": "q",
                "Correct Answer": " yes\n",
                "Incorrect Answer 1": "no",
                "Incorrect Answer 2": "maybe",
                "Incorrect Answer 3": "never",
            }
        ],
    }
    monkeypatch.setattr(
        benchmarks, "_hub_rows", lambda name, entry, revision: ((f"{name}: row 1", r) for r in rows[name])
    )
    monkeypatch.setattr(benchmarks, "_check_count", lambda choice, entry, count: None)
    (gsm8k,) = benchmarks.load(BenchmarkChoice(name="gsm8k")).problems
    assert (gsm8k.id, gsm8k.gold) == ("gsm8k/gsm8k-000001", "4")
    (olympiad,) = benchmarks.load(BenchmarkChoice(name="olympiadbench")).problems
    assert (olympiad.id, olympiad.gold) == ("olympiadbench/7", "1, 2")
    (gpqa,) = benchmarks.load(BenchmarkChoice(name="gpqa-diamond"), seed=3).problems
    assert gpqa.kind == "choice" and gpqa.options["ABCD".index(gpqa.gold)] == "yes"
    assert gpqa.meta == {"shuffle_seed": 3}


def test_another_number_of_rows_than_the_table_says_is_an_error(monkeypatch):
    monkeypatch.setattr(benchmarks, "_hub_rows", lambda *_: iter([("aime25: row 1", {"problem": "q", "answer": "1"})]))
    with pytest.raises(InputError, match="1 problems where 30 were expected"):
        benchmarks.load(BenchmarkChoice(name="aime25"))
