"""Sampling in waves: who gets more chains, that they are the same chains, resume after kill -9, what a recipe may ask."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest
from test_rollout import PROBLEMS, SAMPLING, FakeEngine, check

from fathom.bands import Until
from fathom.config import validate
from fathom.curate.select import usable_chains
from fathom.engines import Completion, RecordedConfig, open_engine
from fathom.errors import InputError
from fathom.ledger import Meter
from fathom.records import Problem, Rollout, Verdict, read_jsonl, to_json, write_jsonl
from fathom.rollout import RolloutConfig, roll_out, run_rollout

UNTIL = Until(windows=[{"min": 0.2, "max": 0.7}], agreement=0.99)
MANY = [Problem(f"p{i}", f"What is {i} + {i}?", str(2 * i)) for i in range(40)]


class Skilled(FakeEngine):
    """Solves the first half of `MANY` always, the second half at every other index."""

    def generate(self, requests, sampling):
        self.asked += [(r.key, r.first, r.samples) for r in requests]
        chains = []
        for r in requests:
            for i in range(r.first, r.first + r.samples):
                wrong = int(r.key[1:]) >= 20 and i % 2
                chains.append(Completion(r.key, i, f"\\boxed{{{2 * int(r.key[1:]) + wrong}}}", 3 + i, "stop", 10))
        yield from self.spoil(reversed(chains))


def in_waves(tmp_path, engine=None, samples=16, **config):
    engine = engine or Skilled()
    return roll_out(MANY, engine, SAMPLING, samples, check, Meter.null(tmp_path), until=UNTIL, chunk=3, **config)


def test_waves_leave_certain_problems_alone_and_draw_the_same_chains(tmp_path):
    rollouts = in_waves(tmp_path)
    whole = roll_out(MANY, Skilled(), SAMPLING, 16, check, Meter.null(tmp_path / "whole"))
    assert [r for r in whole if r in rollouts] == rollouts
    counts = Counter(r.problem_id for r in rollouts)
    assert max(counts[p.id] for p in MANY[:20]) < min(counts[p.id] for p in MANY[20:]) < 16


def test_the_chunk_size_does_not_change_what_waves_draw(tmp_path):
    def run(chunk):
        meter = Meter.null(tmp_path / str(chunk))
        return roll_out(MANY, Skilled(), SAMPLING, 16, check, meter, until=UNTIL, chunk=chunk)

    assert run(1) == run(7) == run(100)


def test_samples_is_the_most_that_waves_draw(tmp_path):
    wide = UNTIL.model_copy(update={"wave": 4})
    rollouts = roll_out(MANY, Skilled(), SAMPLING, 6, check, Meter.null(tmp_path), until=wide)
    assert max(Counter(r.problem_id for r in rollouts).values()) == 6


def test_a_bad_gold_is_not_sampled_further(tmp_path):
    def no_gold(problem, text, truncated):
        return Verdict(None, None, "test/1") if problem.id == "p0" else check(problem, text, truncated)

    rollouts = roll_out(MANY, Skilled(), SAMPLING, 8, no_gold, Meter.null(tmp_path), until=UNTIL)
    counts = Counter(r.problem_id for r in rollouts)
    assert counts["p0"] == 2 < counts["p1"]


def test_a_longer_chain_than_the_budget_counts_as_unsolved(tmp_path):
    """Chain i has 3 + i tokens: within 3 tokens only the first of each problem is solved, which looks unsettled."""

    def drawn(max_tokens):
        until = UNTIL.model_copy(update={"max_tokens": max_tokens})
        return len(roll_out(MANY[:20], Skilled(), SAMPLING, 16, check, Meter.null(tmp_path), until=until))

    assert drawn(3) > drawn(4) == drawn(None) == 40


def test_an_engine_that_runs_dry_ends_the_waves(tmp_path):
    rows = [
        {"problem_id": p.id, "text": f"\\boxed{{{2 * i + (n % 2 if i >= 20 else 0)}}}"}
        for i, p in enumerate(MANY)
        for n in range(3)
    ]
    (tmp_path / "stored.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    engine = open_engine(RecordedConfig(path=str(tmp_path / "stored.jsonl"), allow_fewer=True))
    rollouts = in_waves(tmp_path / "scratch", engine, allow_fewer=True)
    assert max(Counter(r.problem_id for r in rollouts).values()) == 3


KILLED_IN_WAVES = """
    import os, signal, sys
    from pathlib import Path
    from fathom.records import write_jsonl
    from test_waves import Skilled, in_waves

    def die(completions):
        for n, completion in enumerate(completions):
            if n == 1 and len(engine.asked) > int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
            yield completion

    engine = Skilled(die)
    rollouts = in_waves(Path(sys.argv[1]), engine)
    write_jsonl(Path(sys.argv[1]) / "done.jsonl", rollouts)
    (Path(sys.argv[1]) / "asked").write_text(str(len(engine.asked)))
"""


def test_kill_9_within_waves_leaves_the_same_bytes_and_repeats_one_chunk(tmp_path):
    undisturbed, engine = tmp_path / "undisturbed", Skilled()
    rollouts = in_waves(undisturbed, engine)

    def run(die_after):
        command = [sys.executable, "-c", textwrap.dedent(KILLED_IN_WAVES), str(tmp_path / "killed"), str(die_after)]
        path = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parents[1], Path(__file__).parent))),
        }
        return subprocess.run(command, check=False, env=path).returncode

    (tmp_path / "killed").mkdir()
    assert [run(24), run(24), run(0)] == [-signal.SIGKILL] * 3
    assert run(1000) == 0
    assert (tmp_path / "killed" / "done.jsonl").read_text() == "".join(to_json(r) + "\n" for r in rollouts)
    assert 0 < int((tmp_path / "killed" / "asked").read_text()) < len(engine.asked) - 24


def test_run_rollout_in_waves_tells_what_it_saved_and_keeps_the_chains(tmp_path):
    write_jsonl(tmp_path / "problems.jsonl", PROBLEMS[:3])
    rows = [{"problem_id": p.id, "text": f"\\boxed{{{p.gold}}}", "n": 5} for p in PROBLEMS[:3] for _ in range(16)]
    (tmp_path / "stored.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = RolloutConfig.model_validate({
        "problems": "in", "samples": 16, "until": {"windows": [{"above": 0, "max": 0.4}], "agreement": 0.9},
        "engine": {"kind": "recorded", "path": str(tmp_path / "stored.jsonl"), "columns": {"tokens": "n"}},
    })  # fmt: skip
    metrics = run_rollout({"problems": tmp_path}, config, tmp_path, Meter.null(tmp_path / "scratch"))
    chains = list(read_jsonl(tmp_path / "rollouts.jsonl", Rollout))
    mean = len(chains) / 3
    assert 2 <= mean < 16 and metrics["until"]["chains_mean"] == round(mean, 3)
    assert metrics["until"]["saved"]["16"] == {"chains": round(1 - mean / 16, 4), "tokens": round(1 - mean / 16, 4)}
    assert {key: len(kept) for key, kept in usable_chains(chains).items()} == Counter(c.problem_id for c in chains)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"grade": False}, "until decides by verdicts, which grade: false leaves out"),
        ({"samples": 65}, "until draws at most 64 chains of a problem, samples is 65"),
        ({"until": {"windows": []}}, "until.windows"),
        ({"until": {"windows": [{"min": 0.2}], "agreement": 1}}, "until.agreement"),
        ({"until": {"windows": [{"min": 0.2}], "edges": [0.2]}}, "unknown key 'until.edges'"),
    ],
)
def test_until_that_cannot_decide(config, message):
    given = {"problems": "p", "engine": {"kind": "scripted", "script": "echo"}, "until": {"windows": [{"min": 0.2}]}}
    with pytest.raises(InputError, match=message):
        validate(RolloutConfig, {**given, **config}, "base_chains")
