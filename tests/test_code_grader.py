"""The code grader: what it takes for the program, its verdicts, and whether they are right.

The last part grades recorded programs whose verdict is known: a fixed sample always, all of them five
times over with `-m proof`.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fathom.errors import WorkError
from fathom.graders.code import check_program, entry_point, extract_code, grade_code
from fathom.graders.code_tests import read_tests
from fathom.graders.sandbox import Limits, Pool, Run
from fathom.records import Problem

SHARED = Path(os.environ.get("FATHOM_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")
needs_data = pytest.mark.skipif(
    not (SHARED / "code_lcb_problems.jsonl.gz").exists(), reason=f"no code data under {SHARED}"
)


@pytest.mark.parametrize(
    "text, program",
    [
        ("Here:\n```python\nprint(1)\n```\nDone.", "print(1)\n"),
        ("```\nprint(1)\n```", "print(1)\n"),
        ("print(1)", "print(1)"),
        ("<think>```python\nwrong\n```</think>\n```python\nright\n```", "right\n"),
        ("thinking ```py\nwrong\n``` more</think>right", "right"),
        ("```python\nfirst\n```\n```python\nlast\n```", "last\n"),
        ("```python\nprogram\n```\nOutput:\n```\n3\n```", "program\n"),
        ("```python\nprogram\n```\n```text\n3\n```", "program\n"),
        ("```cpp\nint x;\n```\n```\nplain\n```", "plain\n"),
        ("```python\nnever closed", "never closed"),
        ("1. Do:\n   ```python\n   if x:\n       y()\n   ```\n", "if x:\n    y()\n"),
        ('````python\ndoc = """\n```\n"""\n````', 'doc = """\n```\n"""\n'),
        ("```Python3 title=a\nx\n```", "x\n"),
        ("", ""),
    ],
)
def test_the_program_is_the_last_fenced_block_of_the_answer(text, program):
    assert extract_code(text) == program


@pytest.mark.parametrize(
    "question, meta, name",
    [
        ("", {"fn_name": "a"}, "a"),
        ("", {"entry_point": "b"}, "b"),
        ("", {"starter_code": "class Solution:\n    def c(self, x: int) -> int:\n        "}, "c"),
        ("", {"starter_code": "def d(x):\n"}, "d"),
        ("Complete:\nclass Solution:\n    def e(self, x):\n", {}, "e"),
        ("Write a function.", {}, None),
    ],
)
def test_the_function_under_test_is_named_by_the_problem(question, meta, name):
    assert entry_point(Problem("p", question, None, "code", meta=meta)) == name


@pytest.fixture(scope="module")
def pool():
    """Two warm workers."""
    with Pool(2) as shared:
        yield shared


def problem(tests, **meta) -> Problem:
    """A code problem with these tests."""
    return Problem("p1", "Add.", None, "code", tests=tests, meta=meta)


SUM = [{"kind": "stdin", "input": "2 3\n", "expected": "5\n"}, {"kind": "stdin", "input": "-1 1\n", "expected": "0\n"}]
SPLIT = """
import json, sys
case = json.load(sys.stdin)
print(sum(map(int, case["output"].split())) == int(case["input"]))
"""
CALL = [{"kind": "functional", "args": [[1, 2], 3], "expected": [4, 5]}]


@needs_linux
@pytest.mark.parametrize(
    "tests, text, correct, said",
    [
        (SUM, "```python\nprint(sum(map(int, input().split())))\n```", True, "PASS: 2 of 2"),
        (SUM, "print(5)", False, r"WA: 1 of 2 tests passed; test 2: WA \(line 1: '5', expected '0'\)"),
        (SUM, "print(", False, "RE: 0 of 2.*SyntaxError"),
        (SUM, "while True: pass", False, "TLE: 0 of 2.*over 0.5 s"),
        (SUM, "x = bytearray(1 << 40)", False, "MLE"),
        (SUM, "print('x' * (20 << 20))", False, "OLE"),
        (SUM, "<think>hm</think>", False, "no program"),
        (SUM, "#" * (2 << 20), False, "longer than 1 MiB"),
        (CALL, "def shift(a, k): return [x + k for x in a]", True, "PASS"),
        (CALL, "class Solution:\n    def shift(self, a: List[int], k): return tuple(x + k for x in a)", True, "PASS"),
        (CALL, "def helper(a, k): return 0\ndef main(a, k):\n    helper(1, 2)\n    return [4, 5]", True, "PASS"),
        (CALL, "def main(a, k): return [4, 5]\ndef one(a): return 0", True, "PASS"),
        (CALL, "def shift(a, k): print('noise'); return numpy_free(a)", False, "NameError"),
        (CALL, "def shift(a, k): import os; os.write(3, b'{\"value\": [4, 5]}\\n'); return 0", False, "could be read"),
        (CALL, "def shift(a, k): import os; os.write(3, b'[' * 1000000); os._exit(0)", False, "could be read"),
        (CALL, "def shift(a, k): return lambda: 0", False, "WA.*<function>"),
        (CALL, "x = 1", False, "defines no function"),
        ([{"kind": "asserts", "code": "assert f((1, 2)) == {1: 'a'}\nassert not f(0)"}],
         "def f(x): return {1: 'a'} if x == (1, 2) and type(x) is tuple else {}", True, "PASS"),
        ([{"kind": "asserts", "code": "assert f(1) == 1"}], "def f(x): return 2", False, "WA.*AssertionError"),
        ([{"kind": "asserts", "code": "assert f(1) == 1"}], "def f(x): return 1 / 0", False, "RE.*ZeroDivisionError"),
        ([{"kind": "asserts", "code": "assert f(1) == 1"}], "def f(x):\n    while True: pass", False, "TLE"),
        ([{"kind": "asserts", "code": "assert f(1) == 1"}], "import os; os._exit(0)", False, "RE|WA"),
        ([{"kind": "asserts", "code": "assert f(1)"}], "import re\ndef f(x): return re.match('a', 'a')", True, "PASS"),
        ([{"kind": "asserts", "code": "assert f(1) == 1"}],
         "class A:\n    __eq__ = lambda s, o: True\ndef f(x): return A()", False, "WA"),
        ([{"kind": "stdin", "input": "5", "any_of": ["1 4", "2 3"]}], "print('2 3')", True, "PASS"),
        ([{"kind": "stdin", "input": "5", "expected": "1 4", "checker": {"code": SPLIT}}], "print('2 3')", True, "PASS"),
        ([{"kind": "stdin", "input": "5", "expected": "1 4", "checker": {"code": SPLIT}}], "print('2 4')", False, "refuses"),
    ],
)  # fmt: skip
def test_verdicts(tests, text, correct, said, pool):
    limits = Limits(seconds=0.5 if "TLE" in said else 10)  # who must end in time may be slow
    verdict = grade_code(problem(tests), text, runner=pool, limits=limits)
    assert verdict.correct is correct
    assert re.search(said, verdict.why), verdict.why


@needs_linux
def test_a_truncated_chain_has_no_answer(pool):
    verdict = grade_code(problem(SUM), "print(sum(map(int, input().split())))", truncated=True, runner=pool)
    assert (verdict.answer, verdict.correct, verdict.rung) == (None, False, "truncated")


def test_tests_that_cannot_be_read_are_never_a_reward():
    verdict = grade_code(problem([{"kind": "stdin", "input": "1"}]), "print(1)")
    assert verdict.correct is None and "problem p1: tests[0]" in verdict.why


@needs_linux
def test_a_verdict_for_every_test(pool):
    tests = read_tests([{"kind": "stdin", "input": text, "expected": "1"} for text in ("1", "x", "1", "2")])
    source = "print(int(input()))"
    statuses = [result.status for result in check_program(source, tests, pool).results]
    assert statuses == ["PASS", "RE", "not run", "not run"]
    statuses = [result.status for result in check_program(source, tests, pool, run_all=True).results]
    assert statuses == ["PASS", "RE", "PASS", "WA"]


class Spy:
    """A runner that notes what is sent in, and answers that the sandbox broke."""

    mode = "spy"
    workers = 1

    def __init__(self):
        self.jobs = []

    def run(self, job, limits):
        self.jobs.append(job)
        if job.channel is not None:
            os.close(job.channel)
        return Run("INFRA", "spied")


@pytest.mark.parametrize(
    "test",
    [
        {"kind": "stdin", "input": "1", "expected": "SECRET"},
        {"kind": "functional", "args": [1], "expected": "SECRET"},
        {"kind": "asserts", "code": "assert f(1) == 'SECRET'"},
    ],
)
def test_expected_answers_never_reach_the_program_and_trouble_is_not_a_verdict(test):
    spy = Spy()
    with pytest.raises(WorkError, match="the sandbox failed, not the program: spied"):
        grade_code(problem([test]), "def f(x): return x", runner=spy)
    assert spy.jobs and "SECRET" not in repr(spy.jobs)


def read(name: str) -> list[dict]:
    """Rows of one of the shared files."""
    opened = gzip.open(SHARED / name, "rt") if name.endswith(".gz") else open(SHARED / name)
    with opened as stream:
        return [json.loads(line) for line in stream]


def known_programs() -> list[tuple[str, Problem, str, bool]]:
    """(id, problem, program or completion, right) for every recorded program whose verdict is sure."""
    lcb = {row["question_id"]: row for row in read("code_lcb_problems.jsonl.gz")}
    short = {row["task_id"]: row for row in read("code_humaneval_mbpp_problems.jsonl")}
    known = []
    for row in read("code_lcb_submissions.jsonl.gz"):
        asked = lcb[row["question_id"]]
        meta = {"fn_name": asked["fn_name"]} if asked.get("fn_name") else {}
        tests = [asked["tests"][index] for index in row["tests"]]
        if not row["doubtful"]:
            known.append(
                (
                    row["id"],
                    Problem(row["id"], asked["problem"], None, "code", tests=tests, meta=meta),
                    row["completion"],
                    row["expected"],
                )
            )
    for row in read("code_humaneval_mbpp_programs.jsonl.gz"):
        asked = short[row["task_id"]]
        tests = [{"kind": "asserts", "code": asked["tests"]}]
        if not row["doubtful"]:
            known.append(
                (
                    row["id"],
                    Problem(row["id"], asked["problem"], None, "code", tests=tests),
                    row["code"],
                    row["expected"],
                )
            )
    return known


def wrong_verdicts(known, pool: Pool) -> list[str]:
    """The programs whose verdict isn't the recorded one."""

    def look(row):
        name, asked, text, right = row
        verdict = grade_code(asked, text, runner=pool)
        return None if verdict.correct is right else f"{name}: recorded {right}, said {verdict.why}"

    with ThreadPoolExecutor(pool.workers) as threads:
        return [fault for fault in threads.map(look, known) if fault]


@needs_linux
@needs_data
def test_a_sample_of_recorded_programs_gets_its_verdicts(pool):
    known = known_programs()[::19]
    assert Counter(right for *_, right in known).most_common()[1][1] > 50  # both kinds are there
    assert wrong_verdicts(known, pool) == []


@pytest.mark.proof
@needs_linux
@needs_data
def test_every_recorded_program_gets_its_verdict_five_times(pool):
    assert [fault for _ in range(5) for fault in wrong_verdicts(known_programs(), pool)] == []
