"""`grade_file`: anyone's rows in, the same rows with verdicts out, in order, in constant memory."""

import gzip
import json

import pytest

from fathom.errors import InputError
from fathom.graders.files import describe, grade_file
from fathom.graders.sandbox import doctor
from fathom.records import Problem, to_dict


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


ROWS = [
    ({"gold": "5", "prediction": r"so \boxed{5}"}, True),
    ({"id": "b", "gold": "5", "prediction": "6", "note": "kept"}, False),
    ({"gold": "", "prediction": "6"}, None),
    ({"gold": r"\frac{1}{2}", "prediction": "0.5"}, True),
    ({"gold": 5, "prediction": 5.0}, True),
    ({"gold": "5", "prediction": None}, False),
    ({"gold": "5", "prediction": "He has 3 apples. He eats them. 5"}, False),
    ({"gold": "C", "prediction": "the answer is (C)."}, True),
    ({"gold": "C", "kind": "choice", "options": ["1", "2", "3"], "prediction": "the answer is 3."}, True),
    ({"gold": "She has 3 + 4 = 7 apples. She eats none.\n#### 7", "prediction": "The answer is 7."}, True),
    ({"gold": "x", "kind": "math", "prediction": "π is not x. No."}, False),
]


def test_rows_come_back_in_order_with_verdicts(tmp_path):
    totals = grade_file(write(tmp_path / "in.jsonl", [row for row, _ in ROWS]), tmp_path / "out.jsonl")
    out = read(tmp_path / "out.jsonl")
    assert [row["correct"] for row in out] == [expected for _, expected in ROWS]
    assert [{k: v for k, v in row.items() if k not in ("correct", "answer", "rung", "why")} for row in out] == [
        row for row, _ in ROWS
    ]
    assert all(row["rung"] and row["why"] for row in out)
    correct = sum(expected is True for _, expected in ROWS)
    assert (totals["rows"], totals["correct"], totals["ungradable"]) == (len(ROWS), correct, 1)
    assert totals["accuracy"] == correct / (len(ROWS) - 1)
    assert sum(totals["rungs"].values()) == len(ROWS)


def test_same_file_same_bytes(tmp_path):
    source = write(tmp_path / "in.jsonl", [row for row, _ in ROWS])
    grade_file(source, tmp_path / "a.jsonl")
    grade_file(source, tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_problems_with_a_text_and_other_projects_logs(tmp_path):
    rows = [
        {**to_dict(Problem("p", "1+1?", "2")), "text": r"\boxed{2}"},
        {"doc_id": 0, "doc": {"question": "?"}, "target": "42", "resps": [["The answer is 42.", "The answer is 41."]]},
        {"gold": ["7"], "predictions": [r"\boxed{7}", r"\boxed{8}"]},
        {"doc": {"query": "?", "choices": ["3", "4"], "gold_index": 1}, "model_response": {"text": [r"\boxed{4}"]}},
    ]
    totals = grade_file(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl")
    assert [row["correct"] for row in read(tmp_path / "out.jsonl")] == [True, [True, False], [True, False], [True]]
    assert (totals["rows"], totals["predictions"]) == (4, 6)


DOUBLE = "```python\ndef double(x):\n    return 2 * x\n```"
PRINTS = "```python\nprint(2 * int(input()))\n```"
APPS = {"inputs": ["3\n", "5\n"], "outputs": ["6\n", "10\n"]}
CODE_ROWS = [
    ({"tests": APPS, "prediction": PRINTS}, True),
    ({"tests": json.dumps(APPS), "prediction": "print(input())"}, False),
    ({"tests": "assert double(4) == 8", "prediction": DOUBLE}, True),
    ({"tests": [{"kind": "functional", "args": [4], "expected": 8}], "fn_name": "double", "prediction": DOUBLE}, True),
    ({"tests": [{"kind": "functional", "args": [4], "expected": 8}], "fn_name": "triple", "prediction": DOUBLE}, False),
    ({"question": "Double it.", "tests": APPS, "kind": "code", "gold": None, "text": PRINTS}, True),
    ({"tests": [{"kind": "poem"}], "prediction": PRINTS}, None),
]


@pytest.mark.skipif(not all(ok for _, ok, _ in doctor()), reason="this machine can't isolate programs")
def test_code_rows_take_tests_in_every_format(tmp_path):
    source = write(tmp_path / "in.jsonl", [row for row, _ in CODE_ROWS])
    totals = grade_file(source, tmp_path / "out.jsonl")
    assert [row["correct"] for row in read(tmp_path / "out.jsonl")] == [expected for _, expected in CODE_ROWS]
    assert describe(totals).startswith("7 rows, 7 predictions: 4 correct, 2 wrong, 1 ungradable; accuracy 66.67%\n")


def test_a_compressed_file_and_no_output(tmp_path):
    with gzip.open(tmp_path / "in.jsonl.gz", "wt") as stream:
        stream.write(json.dumps({"gold": "5", "prediction": "5"}) + "\n\n")
    assert grade_file(tmp_path / "in.jsonl.gz")["correct"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl.gz"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[1, 2]", "expected an object"),
        (b"{broken", "not JSON"),
        (b'"\xff"', "not UTF-8"),
        (b'{"gold": "5"}', "'prediction'"),
        (b'{"prediction": "5"}', "'gold'"),
        (b'{"gold": "5", "prediction": {"a": 1}}', "prediction"),
        (b'{"gold": {"a": 1}, "prediction": "5"}', "gold"),
        (b'{"gold": "5", "prediction": "5", "kind": "poem"}', "kind"),
        (b'{"tests": "[{", "prediction": "5"}', "tests: not JSON"),
        (b'{"tests": 7, "prediction": "5"}', "tests: expected tests, got int"),
        (b'{"tests": [7], "prediction": "5"}', "tests"),
        (b'{"gold": "5", "prediction": "5 \\ud83d"}', "half of a surrogate pair"),
        (b'{"gold": "5", "text": "5", "meta": 7}', "meta: expected an object, got int"),
    ],
)
def test_a_bad_row_is_one_line_that_names_it(tmp_path, line, message):
    good = b'{"gold": "5", "prediction": "5"}\n'
    (tmp_path / "in.jsonl").write_bytes(good + good + line + b"\n")
    (tmp_path / "out.jsonl").write_text("earlier result")
    with pytest.raises(InputError, match=message) as caught:
        grade_file(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert f"{tmp_path / 'in.jsonl'}:3" in str(caught.value) and "\n" not in str(caught.value)
    assert (tmp_path / "out.jsonl").read_text() == "earlier result"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        grade_file(tmp_path / "absent.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "out.jsonl").write_text("earlier result")
    with pytest.raises(InputError, match="no rows"):
        grade_file(tmp_path / "empty.jsonl", tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "earlier result"
