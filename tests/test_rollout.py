"""The generate -> grade loop: order, completeness, resume after kill -9; the engines that need no model."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from fathom.engines import Completion, RecordedConfig, Request, ScriptedConfig, open_engine
from fathom.errors import BudgetStop, InputError, WorkError
from fathom.ledger import Meter
from fathom.records import Message, Problem, Rollout, Sampling, Verdict, read_jsonl, to_json, write_jsonl
from fathom.rollout import GradeConfig, RolloutConfig, roll_out, run_grade, run_rollout

PROBLEMS = [Problem(f"p{i}", f"What is {i} + {i}?", str(2 * i)) for i in range(7)]
SAMPLING = Sampling(temperature=1.0, max_tokens=32)


class FakeEngine:
    """Answers the right number at even indices, in a shuffled order; counts what it was asked."""

    name, device = "fake", "cpu"

    def __init__(self, spoil=lambda completions: completions):
        self.asked = []
        self.spoil = spoil

    def generate(self, requests, sampling):
        self.asked += [r.key for r in requests]
        completions = [
            Completion(r.key, i, f"\\boxed{{{2 * int(r.key[1:]) + i % 2}}}", 3 + i, "length" if i == 3 else "stop", 10)
            for r in requests
            for i in range(r.first, r.first + r.samples)
        ]
        random.Random(0).shuffle(completions)
        yield from self.spoil(completions)

    def close(self):
        pass


def check(problem, text, truncated):
    return Verdict(text, text == f"\\boxed{{{problem.gold}}}" and not truncated, "test/1")


def test_rollouts_come_in_problem_order_with_verdicts(tmp_path):
    rollouts = roll_out(PROBLEMS, FakeEngine(), SAMPLING, 4, check, Meter.null(tmp_path), chunk=3)
    assert [(r.problem_id, r.index) for r in rollouts] == [(p.id, i) for p in PROBLEMS for i in range(4)]
    assert [r.verdict.correct for r in rollouts[:4]] == [True, False, True, False]
    assert [r.finish for r in rollouts[:4]] == ["stop", "stop", "stop", "length"]
    assert rollouts[0].sampling == SAMPLING and rollouts[0].model == "fake"


def test_the_chunk_size_changes_nothing_but_the_pieces(tmp_path):
    runs = [
        roll_out(PROBLEMS, FakeEngine(), SAMPLING, 2, check, Meter.null(tmp_path / str(c)), chunk=c)
        for c in (1, 3, 100)
    ]
    assert runs[0] == runs[1] == runs[2]


def test_without_a_grader_there_is_no_verdict(tmp_path):
    assert {r.verdict for r in roll_out(PROBLEMS, FakeEngine(), SAMPLING, 1, None, Meter.null(tmp_path))} == {None}


def test_a_failed_run_continues_where_it_stopped(tmp_path):
    class Dying(FakeEngine):
        def generate(self, requests, sampling):
            if len(self.asked) >= 4:
                raise ConnectionError("gone")
            yield from super().generate(requests, sampling)

    with pytest.raises(ConnectionError):
        roll_out(PROBLEMS, Dying(), SAMPLING, 2, check, Meter.null(tmp_path), chunk=2)
    again = FakeEngine()
    resumed = roll_out(PROBLEMS, again, SAMPLING, 2, check, Meter.null(tmp_path), chunk=2)
    assert again.asked == ["p4", "p5", "p6"]
    assert resumed == roll_out(PROBLEMS, FakeEngine(), SAMPLING, 2, check, Meter.null(tmp_path / "other"), chunk=2)


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from fathom.ledger import Meter
    from fathom.records import write_jsonl
    from fathom.rollout import roll_out
    from tests.test_rollout import PROBLEMS, SAMPLING, FakeEngine, check

    def die(completions):
        for n, completion in enumerate(completions):
            if n == 1 and len(engine.asked) > int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
            yield completion

    engine = FakeEngine(die)
    rollouts = roll_out(PROBLEMS, engine, SAMPLING, 3, check, Meter.null(Path(sys.argv[1])), chunk=2)
    write_jsonl(Path(sys.argv[1]) / "done.jsonl", rollouts)
"""


def test_kill_9_in_the_middle_of_chunks_leaves_the_same_bytes(tmp_path):
    def run(die_after):
        command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), str(die_after)]
        return subprocess.run(
            command, check=False, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        ).returncode

    assert [run(0), run(2), run(2)] == [-signal.SIGKILL] * 3
    assert not (tmp_path / "done.jsonl").exists()
    assert run(100) == 0
    undisturbed = roll_out(PROBLEMS, FakeEngine(), SAMPLING, 3, check, Meter.null(tmp_path / "other"), chunk=2)
    assert (tmp_path / "done.jsonl").read_text() == "".join(to_json(r) + "\n" for r in undisturbed)


def test_other_sampling_does_not_reuse_saved_chunks(tmp_path):
    roll_out(PROBLEMS, FakeEngine(), SAMPLING, 1, check, Meter.null(tmp_path))
    other = FakeEngine()
    roll_out(PROBLEMS, other, Sampling(temperature=0.6, max_tokens=32), 1, check, Meter.null(tmp_path))
    assert other.asked == [p.id for p in PROBLEMS]


def test_the_budget_stops_between_chunks(tmp_path):
    class Broke(Meter):
        def check(self):
            if (self.scratch / "spent").exists():
                raise BudgetStop("budget")
            (self.scratch / "spent").touch()

    engine = FakeEngine()
    with pytest.raises(BudgetStop):
        roll_out(PROBLEMS, engine, SAMPLING, 1, check, Broke.null(tmp_path), chunk=2)
    assert engine.asked == ["p0", "p1"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c[:-1], "never came"),
        (lambda c: [*c, c[0]], "came twice"),
        (lambda c: [*c, Completion("stranger", 0, "", 0, "stop")], "was not asked"),
        (lambda c: [*c, Completion("p0", 9, "", 0, "stop")], "was not asked"),
    ],
)
def test_an_engine_that_miscounts_is_caught(tmp_path, spoil, message):
    with pytest.raises(WorkError, match=message):
        roll_out(PROBLEMS, FakeEngine(spoil), SAMPLING, 2, check, Meter.null(tmp_path))


def test_every_chain_carries_its_prompt_and_what_it_cost(tmp_path):
    def priced(completions):
        return [replace(c, usd=0.25) if c.index else c for c in completions]

    free, paid = roll_out(PROBLEMS[:1], FakeEngine(priced), SAMPLING, 2, check, Meter.null(tmp_path))
    assert paid.meta == {**free.meta, "usd": 0.25} and set(free.meta) == {"prompt"}
    other = roll_out(PROBLEMS[:1], FakeEngine(), SAMPLING, 1, check, Meter.null(tmp_path), system="Be brief.")
    assert len(free.meta["prompt"]) == 16 and other[0].meta["prompt"] != free.meta["prompt"]
    again = roll_out(PROBLEMS[:2], FakeEngine(), SAMPLING, 1, check, Meter.null(tmp_path))
    assert again[0].meta == free.meta != again[1].meta


# ------------------------------------------------------------------------------ engines


def ask_for(key, samples=1, first=0, text="a question"):
    return Request(key, (Message("user", text),), samples, first)


def recorded(tmp_path, **config):
    rows = [{"problem_id": k, "text": f"{k}-{i}", "model": f"m{i}", "cut": i == 1} for k in "ab" for i in range(3)]
    path = tmp_path / "stored.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return open_engine(RecordedConfig(path=str(path), columns={"truncated": "cut"}, **config))


def test_recorded_serves_stored_rows_in_order(tmp_path):
    got = list(recorded(tmp_path).generate([ask_for("b", 2, first=1), ask_for("a")], SAMPLING))
    assert [(c.key, c.index, c.text, c.finish) for c in got] == [
        ("b", 1, "b-1", "length"),
        ("b", 2, "b-2", "stop"),
        ("a", 0, "a-0", "stop"),
    ]


def test_recorded_says_which_key_has_too_few(tmp_path):
    with pytest.raises(InputError, match=r"stored\.jsonl: 3 chains of 'a', 4 are asked for"):
        list(recorded(tmp_path).generate([ask_for("a", 4)], SAMPLING))
    assert len(list(recorded(tmp_path, allow_fewer=True).generate([ask_for("a", 4)], SAMPLING))) == 3
    assert [c.text for c in recorded(tmp_path, models=["m2"]).generate([ask_for("a")], SAMPLING)] == ["a-2"]
    with pytest.raises(InputError, match="no row of nobody"):
        recorded(tmp_path, models=["nobody"])


def test_recorded_names_the_row_without_a_text(tmp_path):
    (tmp_path / "s.jsonl").write_text('{"problem_id": "a", "text": "x"}\n{"problem_id": "a"}\n')
    with pytest.raises(InputError, match=r"s\.jsonl:2: no text in column 'text'"):
        open_engine(RecordedConfig(path=str(tmp_path / "s.jsonl")))


def test_generated_difficulty_is_near_the_level_and_repeatable():
    engine = open_engine(ScriptedConfig(script="generated-difficulty"))
    requests = [ask_for(f"gen-train-linear-d07-{i:06d}") for i in range(300)]
    ratings = [int(c.text.split()[-1]) for c in engine.generate(requests, SAMPLING)]
    assert set(ratings) == {6, 7, 8} and abs(sum(ratings) / 300 - 7) < 0.15
    assert ratings == [int(c.text.split()[-1]) for c in engine.generate(requests, SAMPLING)]
    other = [int(c.text.split()[-1]) for c in engine.generate(requests, Sampling(seed=1))]
    assert other != ratings
    with pytest.raises(InputError, match="carries no level"):
        list(engine.generate([ask_for("real/1")], SAMPLING))


def test_a_scripted_engine_keeps_to_max_tokens():
    engine = open_engine(ScriptedConfig(script="echo"))
    (cut,) = engine.generate([ask_for("k", text="one two three")], Sampling(max_tokens=2))
    assert (cut.text, cut.tokens, cut.finish) == ("one two", 2, "length")


# ------------------------------------------------------------------------------ stages


def test_run_rollout_grades_recorded_chains_through_the_real_grader(tmp_path):
    problems = tmp_path / "in"
    problems.mkdir()
    write_jsonl(problems / "problems.jsonl", PROBLEMS[:2])
    rows = [{"problem_id": p.id, "text": f"so \\boxed{{{a}}}"} for p in PROBLEMS[:2] for a in (0, 2)]
    (tmp_path / "stored.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = RolloutConfig(
        problems="in", engine={"kind": "recorded", "path": str(tmp_path / "stored.jsonl")}, samples=2
    )
    metrics = run_rollout({"problems": problems}, config, tmp_path, Meter.null(tmp_path / "scratch"))
    assert (metrics["chains"], metrics["correct"], metrics["wrong"]) == (4, 2, 2)
    verdicts = [r.verdict.correct for r in read_jsonl(tmp_path / "rollouts.jsonl", Rollout)]
    assert verdicts == [True, False, False, True]


def test_run_grade_compares_with_a_recorded_verdict_and_sets_strangers_aside(tmp_path):
    problems, chains, out = tmp_path / "p", tmp_path / "c", tmp_path / "out"
    for directory in (problems, chains, out):
        directory.mkdir()
    write_jsonl(problems / "problems.jsonl", PROBLEMS[:2])

    def chain(key, index, answer, **meta):
        return Rollout(key, index, f"\\boxed{{{answer}}}", 3, "stop", "m", meta=meta)

    stored = [
        chain("p1", 0, 2, ok=True),
        chain("p1", 1, 3, ok=True),
        chain("p1", 2, 3, ok=True, unsure=True),
        chain("p5", 0, 10, ok=True),
    ]
    write_jsonl(chains / "rollouts.jsonl", stored)
    config = GradeConfig(problems="p", chains="c", reference={"verdict": "ok", "doubtful": "unsure"}, chunk=2)
    metrics = run_grade({"problems": problems, "chains": chains}, config, out, Meter.null(tmp_path / "s"))
    assert metrics["reference"] == {
        "rows": 2, "equal": 1, "integer_rows": 2, "integer_equal": 1, "differ": ["p1#1"],
    }  # fmt: skip
    assert metrics["funnel"] == [["recorded chains", 4], ["of remaining problems", 3], ["correct", 1]]
    assert [json.loads(line)["id"] for line in (out / "removed.jsonl").read_text().splitlines()] == ["p5#0"]


def test_run_grade_refuses_chains_of_other_problems(tmp_path):
    write_jsonl(tmp_path / "problems.jsonl", PROBLEMS[:1])
    write_jsonl(tmp_path / "rollouts.jsonl", [Rollout("zz", 0, "x", 1, "stop", "m")])
    config = GradeConfig(problems="p", chains="c")
    with pytest.raises(InputError, match="none of the 1 chains belongs to one of the 1 problems"):
        run_grade({"problems": tmp_path, "chains": tmp_path}, config, tmp_path, Meter.null(tmp_path))
