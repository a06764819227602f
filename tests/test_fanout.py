"""Work on a Ray cluster of two workers: the bytes of one process, also when a worker is killed on the way."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fathom import fanout
from fathom.chunks import run_chunks
from fathom.config import key_values, validate
from fathom.engines import ScriptedConfig, TransformersConfig, open_engine
from fathom.errors import BudgetStop, InputError, WorkError
from fathom.fanout import Here, RayConfig, RayCrew, in_order, open_crew
from fathom.ledger import Meter
from fathom.records import Problem, Rollout, Usage, Verdict, read_jsonl, write_jsonl
from fathom.rollout import GradeConfig, RolloutConfig, run_grade, run_rollout
from tests.models import write_model

PROBLEMS = [Problem(f"p{i}", f"What is {i} + {i}?", str(2 * i)) for i in range(12)]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """host:port of a cluster of two machines (two raylets on this one) with one processor each."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'fathom[ray]'")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(tmp_path_factory.mktemp("ray") / "token")
    from ray.cluster_utils import Cluster

    size = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    try:
        cluster.add_node(**size)
        yield cluster.address
    finally:
        cluster.shutdown()


def workers():
    """Processes of the cluster that work for us."""
    return [p for p in psutil.Process().children(recursive=True) if "ray::_Hand" in " ".join(p.cmdline())]


class Killing(Meter):
    """Ends one worker with kill -9 after the first saved chunk; keeps what it is told."""

    def __init__(self, scratch):
        super().__init__(scratch, 0)
        self.pieces, self.victims, self.used, self.steps = 0, [], Usage(), []

    def saved(self):
        self.pieces += 1
        if self.pieces == 1:
            self.victims = workers()[-1:]
            for victim in self.victims:
                victim.kill()

    def usage(self, model, usage, device):
        self.used += usage

    def progress(self, done, total, note=""):
        self.steps.append((done, total))


def both_ways(run, inputs, config, fan_out, tmp_path, caplog):
    """Run a stage here and, with `fan_out` set, on the cluster where a worker is killed; same files, same metrics."""
    results, meters = [], []
    for where, values in (("here", config), ("there", {**config, **fan_out})):
        out = tmp_path / where
        out.mkdir()
        meters.append(Killing(tmp_path / f"{where}-scratch"))
        results.append(run[0](inputs, validate(run[1], values), out, meters[-1]))
    assert results[0] == results[1]
    written = {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()}
    assert meters[1].victims and "starts again" in caplog.text
    assert meters[0].used == meters[1].used
    assert meters[0].steps[-1] == meters[1].steps[-1] and len(meters[0].steps) == len(meters[1].steps)
    return written


def test_generation_on_two_replicas(tmp_path, address, caplog):
    write_jsonl(tmp_path / "problems.jsonl", PROBLEMS)
    inputs = {"problems": tmp_path, "model": write_model(tmp_path / "model")}
    engine = {"kind": "transformers", "device": "cpu"}
    sampling = {"temperature": 1.0, "max_tokens": 24}
    config = {"problems": "p", "model": "m", "engine": engine, "samples": 2, "chunk": 2, "sampling": sampling}
    fan_out = {"engine": {**engine, "replicas": 2}, "ray": {"address": address}}
    written = both_ways((run_rollout, RolloutConfig), inputs, config, fan_out, tmp_path, caplog)
    assert written["rollouts.jsonl"].count(b'"text":') == 24


def test_grading_on_two_workers(tmp_path, address, caplog):
    double = Problem(
        "code", "Double the number.", None, "code", tests=[{"kind": "stdin", "input": "4\n", "expected": "8\n"}]
    )
    chains = [
        Rollout(p.id, i, f"\\boxed{{{2 * int(p.id[1:]) + i}}}", 5, "stop", "m") for p in PROBLEMS for i in range(2)
    ]
    chains += [Rollout("code", i, f"```python\nprint(int(input()) * {i})\n```", 9, "stop", "m") for i in range(4)]
    write_jsonl(tmp_path / "problems.jsonl", [*PROBLEMS, double])
    write_jsonl(tmp_path / "rollouts.jsonl", chains)
    inputs, config = {"problems": tmp_path, "chains": tmp_path}, {"problems": "p", "chains": "c", "chunk": 4}
    both_ways((run_grade, GradeConfig), inputs, config, {"ray": {"address": address}}, tmp_path, caplog)
    graded = list(read_jsonl(tmp_path / "there" / "rollouts.jsonl", Rollout))
    assert [r.verdict.correct for r in graded] == [True, False] * 12 + [False, False, True, False]
