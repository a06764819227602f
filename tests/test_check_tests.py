"""`op: check_tests`: code rows of the corpora against their own reference solutions, in the real sandbox."""

from __future__ import annotations

import json

import hub_snapshots as hub
import pytest
from test_sources import run

from fathom import check_tests
from fathom.check_tests import CheckTestsConfig, run_check_tests
from fathom.errors import InputError
from fathom.ledger import Meter
from fathom.records import Problem, read_problems, write_jsonl

STDIN = [{"kind": "stdin", "input": "2\n", "expected": "4\n"}, {"kind": "stdin", "input": "5\n", "expected": "10\n"}]
DOUBLE, TRIPLE = "print(2 * int(input()))", "print(3 * int(input()))"


def problem(name, tests=STDIN, solutions=(DOUBLE,), **meta):
    return Problem(
        name, "Double it.", None, "code", "apps", "MIT", tests=tests, meta={"solutions": list(solutions), **meta}
    )


def checked(tmp_path, problems, **options):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir(exist_ok=True)
    out.mkdir(exist_ok=True)
    write_jsonl(source / "problems.jsonl", problems)
    config = CheckTestsConfig(problems="problems", **options)
    metrics = run_check_tests({"problems": source}, config, out, Meter.null(tmp_path / "scratch"))
    removed = [json.loads(line) for line in (out / "removed.jsonl").read_text().splitlines()]
    return metrics, [p.id for p in read_problems(out / "problems.jsonl")], removed


CASES = {
    "right": (problem("p"), None),
    "right at the second try": (problem("p", solutions=("import nothing_there", DOUBLE)), None),
    "a wrong test": (problem("p", [STDIN[0], {**STDIN[1], "expected": "11"}]), check_tests.FAILING),
    "wrong solutions": (problem("p", solutions=(TRIPLE, "1 +")), check_tests.FAILING),
    "a solution that never ends": (problem("p", [{**STDIN[0], "seconds": 0.5}], ["while True: pass"]), check_tests.FAILING),
    "a test of no kind": (problem("p", [{"input": "2", "expected": "4"}]), check_tests.UNREADABLE),
    "a test with nothing expected": (problem("p", [{"kind": "stdin", "input": "2"}]), check_tests.UNREADABLE),
    "a checker that crashes": (problem("p", [{**STDIN[0], "checker": {"code": "1 / 0"}}]), check_tests.UNREADABLE),
    "no solution": (problem("p", solutions=()), check_tests.NO_SOLUTION),
    "a function": (problem("p", [{"kind": "functional", "args": [2], "any_of": [[4], 4]}],
                           ["def double(x):\n    return 2 * x"], fn_name="double"), None),
}  # fmt: skip


@pytest.mark.parametrize(("row", "reason"), CASES.values(), ids=CASES)
def test_one_problem(tmp_path, row, reason):
    other = Problem("m", "1 + 1?", "2")
    metrics, kept, removed = checked(tmp_path, [row, other], without_solution="set_aside")
    if reason is None:
        assert (kept, removed) == (["p", "m"], [])
    else:
        assert kept == ["m"]
        assert [(r["id"], r["reason"]) for r in removed] == [("p", reason)]
        assert metrics["funnel"] == [["problems", 2], [f"left after: {reason}", 1]]


def test_problems_without_a_solution_stay_unless_asked(tmp_path):
    metrics, kept, removed = checked(tmp_path, [problem("a"), problem("b", solutions=())])
    assert (kept, removed) == (["a", "b"], [])
    assert (metrics["checked"], metrics["without_solution"]) == (1, 1)


def test_nothing_left_is_an_error(tmp_path):
    with pytest.raises(InputError, match="check_tests: no problem left of 1: tests fail on the reference solution 1"):
        checked(tmp_path, [problem("p", solutions=[TRIPLE])])


def test_from_a_corpus_to_checked_problems(tmp_path):
    wrong = {**hub.APPS_STDIN, "input_output": json.dumps({"inputs": ["1 2"], "outputs": ["4"]})}
    path = hub.apps(tmp_path / "apps", [hub.APPS_STDIN, wrong, hub.APPS_CALL])
    _, problems, _, _ = run(tmp_path, {"name": "apps", "split": "test", "path": path})
    _, kept, removed = checked(tmp_path, problems)
    assert kept == ["apps-test-000001", "apps-test-000003"]
    assert [r["id"] for r in removed] == ["apps-test-000002"]
    assert "3" in removed[0]["text"] and "4" in removed[0]["text"]


def test_a_killed_check_goes_on_where_it_was(tmp_path, monkeypatch):
    """Finished chunks are read back: no program of theirs runs again, and the result is the same."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    problems = [problem(f"p{i}", solutions=(DOUBLE if i % 3 else TRIPLE,)) for i in range(9)]
    whole = checked(tmp_path / "whole", problems, chunk=2)
    check, seen, lives = check_tests.check, [], [5]

    def watched(row):
        if not lives[0]:
            raise KeyboardInterrupt
        lives[0] -= 1
        seen.append(row.id)
        return check(row)

    monkeypatch.setattr(check_tests, "check", watched)
    with pytest.raises(KeyboardInterrupt):
        checked(tmp_path / "killed", problems, chunk=2, workers=1)
    assert seen == ["p0", "p1", "p2", "p3", "p4"]
    lives[0] = 99
    seen.clear()
    assert checked(tmp_path / "killed", problems, chunk=2, workers=1) == whole
    assert seen == ["p4", "p5", "p6", "p7", "p8"]
