"""Stored generations of others and ours give the same numbers again, without an engine."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fathom.errors import InputError
from fathom.evaluate.regrade import regrade
from fathom.records import Problem, Rollout, Sampling, Verdict, json_lines, write_jsonl


def boxed(answer):
    return f"Let me think.\n\\boxed{{{answer}}}"


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_plain_rows_with_the_same_id_are_samples_of_one_problem(tmp_path):
    path = write_rows(
        tmp_path / "mine.jsonl",
        [
            {"id": "a", "gold": "1/2", "prediction": boxed("0.5"), "correct": False},
            {"id": "a", "gold": "1/2", "prediction": boxed("3"), "correct": False},
            {"id": "b", "gold": "7", "prediction": [boxed("7"), boxed("7")]},
        ],
    )
    result = regrade(path)
    (row,) = result["rows"]
    assert result["format"] == "plain" and result["chains"] == 4
    assert (row["benchmark"], row["problems"], row["samples"]) == ("mine", 2, 2)
    assert row["pass1"] == pytest.approx((1 / 2 + 1) / 2)
    assert row["cons"] == pytest.approx((1 / 2 + 1) / 2)
    assert row["tokens_mean"] is None  # nobody counted them
    recorded = result["recorded"]
    assert (recorded["rows"], recorded["agree"]) == (2, 1)
    (differs,) = recorded["differ"]
    assert (differs["problem_id"], differs["index"], differs["recorded"], differs["correct"]) == ("a", 0, False, True)


def ours(tmp_path, verdicts):
    problems = [Problem(id=f"p{i}", question="?", gold=str(i)) for i in range(2)]
    rollouts = [
        Rollout(
            f"p{i}", j, boxed(i + j), tokens=10 * (j + 1), finish="stop", model="m",
            sampling=Sampling(max_tokens=100), verdict=Verdict(str(i + j), verdicts[i][j], "old"),
            meta={"benchmark": "toy"},
        )
        for i in range(2)
        for j in range(2)
    ]  # fmt: skip
    write_jsonl(tmp_path / "rollouts.jsonl", rollouts)
    return problems


def test_our_rollouts_are_graded_by_the_problems_beside_them(tmp_path):
    problems = ours(tmp_path, verdicts=[[True, True], [True, False]])
    trusted = regrade(tmp_path / "rollouts.jsonl")
    assert trusted["rows"][0]["pass1"] == 3 / 4 and "recorded" not in trusted
    write_jsonl(tmp_path / "problems.jsonl", problems)
    result = regrade(tmp_path / "rollouts.jsonl", out=tmp_path / "again")
    assert result["rows"][0]["pass1"] == 1 / 2 and result["rows"][0]["tokens_mean"] == 15
    assert [d["problem_id"] for d in result["recorded"]["differ"]] == ["p0"]
    assert json.loads((tmp_path / "again" / "rows.json").read_text()) == result["rows"]
    assert regrade(tmp_path / "again" / "rollouts.jsonl")["rows"] == result["rows"]


def test_lm_eval_samples(tmp_path):
    def row(doc, filter_name, target, text, score):
        return {
            "doc_id": doc, "doc": {"question": "q"}, "target": target, "arguments": [["q", {}]],
            "resps": [[text]], "filtered_resps": [text], "filter": filter_name, "exact_match": score,
        }  # fmt: skip

    path = write_rows(
        tmp_path / "samples_gsm8k_2025-01-02T03-04-05.678.jsonl",
        [
            row(0, "strict-match", "2 + 2 = 4\n#### 4", boxed("4"), 1.0),
            row(1, "strict-match", "#### 1,200", boxed("1200"), 0.0),
            row(0, "flexible-extract", "2 + 2 = 4\n#### 4", boxed("4"), 1.0),
            row(1, "flexible-extract", "#### 1,200", boxed("1200"), 1.0),
        ],
    )
    result = regrade(path)
    assert result["format"] == "lm-eval" and result["chains"] == 2
    assert (result["rows"][0]["benchmark"], result["rows"][0]["pass1"]) == ("gsm8k", 1.0)
    assert [(d["problem_id"], d["recorded"]) for d in result["recorded"]["differ"]] == [("gsm8k/1", False)]


@pytest.mark.parametrize("underscores", ["", "__"])
def test_lighteval_details(tmp_path, underscores):
    def name(key):
        return f"{underscores}{key}{underscores}"

    rows = [
        {
            name("doc"): {"id": "0", "query": "q", "choices": ["So it is $\\boxed{8}$."], "gold_index": [0], "task_name": "math_500"},
            name("model_response"): {"text": [boxed("8"), boxed("9")], "output_tokens": [[1, 2, 3], [4]]},
            name("metric"): {"pass@k:k=1": 0.5},
        },
        {
            name("doc"): {"id": "1", "query": "q", "choices": ["5"], "gold_index": [0], "task_name": "math_500"},
            name("model_response"): {"text": [boxed("5"), boxed("5")], "output_tokens": [[1, 2], [4, 5]]},
            name("metric"): {"pass@k:k=1": 1.0},
        },
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "details_math_500.parquet")
    result = regrade(tmp_path / "details_math_500.parquet")
    (row,) = result["rows"]
    assert result["format"] == "lighteval"
    assert (row["benchmark"], row["samples"], row["pass1"], row["tokens_mean"]) == ("math_500", 2, 0.75, 2.0)


def test_older_lighteval_details(tmp_path):
    rows = [{"example": "q", "gold": "['3']", "predictions": str([boxed("3"), boxed("4")]), "metrics": {"em": 1.0}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "details.parquet")
    result = regrade(tmp_path / "details.parquet")
    assert result["format"] == "lighteval (before 0.10)" and result["rows"][0]["pass1"] == 0.5


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ([{"q": 1, "a": 2}], r"x.jsonl:1: not a stored generation .* its keys: q, a"),
        ([{"gold": "1", "prediction": "1"}, {"gold": "1"}], r"x.jsonl:2: needs 'gold' and 'prediction'"),
        ([{"gold": "1", "prediction": "1"}, [1]], r"x.jsonl:2: expected an object, got list"),
        (
            [{"gold": "1", "prediction": "1", "tokens": "many"}],
            r"x.jsonl:1: not a row as plain writes it \(ValueError: ",
        ),
        ([{"doc_id": 1, "doc": "text", "resps": [["1"]], "target": "1"}], r"x.jsonl:1: not a row as lm-eval writes it"),
        (
            [{"doc": {"choices": ["1"], "gold_index": 3}, "model_response": {"text": ["1"]}}],
            r"x.jsonl:1: not a row as lighteval writes it \(IndexError: ",
        ),
        ([{"gold": "1", "prediction": 5}], r"x.jsonl:1: expected the generated text, got int"),
        (
            [{"problem_id": "a", "index": 0, "text": "t", "tokens": 1, "finish": "stop", "model": "m"}],
            "neither a verdict",
        ),
    ],
)
def test_unreadable_files_name_the_row(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        regrade(write_rows(tmp_path / "x.jsonl", rows))


def test_a_rollout_of_an_unknown_problem_is_refused(tmp_path):
    problems = ours(tmp_path, verdicts=[[True, True], [True, True]])
    write_jsonl(tmp_path / "other.jsonl", problems[:1])
    with pytest.raises(InputError, match=r"problem 'p1' is not in .*other\.jsonl"):
        regrade(tmp_path / "rollouts.jsonl", problems=tmp_path / "other.jsonl")


DATA = Path(os.environ.get("FATHOM_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
RECORDED = DATA / "completions_math.jsonl.gz"


@pytest.mark.skipif(not RECORDED.is_file(), reason=f"shared data absent: {RECORDED}")
def test_eight_recorded_samples_of_one_model_give_the_recorded_accuracy(tmp_path):
    """Qwen2.5-Math's published example: eight samples a problem with the publisher's verdicts."""
    recorded = [
        row
        for _, row in json_lines(RECORDED)
        if row["model"].startswith("Qwen2.5-Math-Instruct#") and not row["doubtful"]
    ]
    rows = [
        {"id": row["problem_id"], "gold": row["gold"], "prediction": row["completion"], "correct": row["published"]}
        for row in recorded
    ]
    result = regrade(write_rows(tmp_path / "math.jsonl", rows))
    assert result["recorded"] == {"rows": 360, "agree": 360, "differ": []}
    (row,) = result["rows"]
    assert (row["problems"], row["samples"]) == (45, 8)
    assert row["pass1"] == pytest.approx(sum(r["published"] for r in recorded) / 360)
    assert row["cons"] >= row["pass1"]
