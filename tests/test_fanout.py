"""Work on a Ray cluster of two workers: the bytes of one process, also when a worker is killed on the way."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from fathom.chunks import run_chunks
from fathom.config import key_values, validate
from fathom.curate import corpus
from fathom.curate.ops.dedup import DedupConfig, run_dedup
from fathom.engines import TransformersConfig, open_engine
from fathom.errors import BudgetStop, InputError, WorkError
from fathom.fanout import Here, RayConfig, RayCrew, in_order, open_crew
from fathom.ledger import Meter
from fathom.records import Problem, Rollout, Usage, Verdict, read_jsonl, write_jsonl
from fathom.rollout import GradeConfig, RolloutConfig, run_grade, run_rollout
from fathom.sources.generated import GeneratedConfig, generate
from tests.models import write_model

PROBLEMS = [Problem(f"p{i}", f"What is {i} + {i}?", str(2 * i)) for i in range(12)]


def token(folder):
    """A secret for a cluster, so that Ray leaves none in the home directory; returns its path."""
    (folder / "token").write_text(secrets.token_hex(32))
    return str(folder / "token")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of two machines (two raylets on this one) with one processor each."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'fathom[ray]'")
    from ray.cluster_utils import Cluster

    size = {"num_cpus": 1, "object_store_memory": 80 << 20}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("RAY_AUTH_TOKEN_PATH", token(tmp_path_factory.mktemp("ray")))
        cluster = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
        try:
            cluster.add_node(**size)
            yield cluster
        finally:
            cluster.shutdown()


@pytest.fixture
def address(cluster):
    return cluster.address


def workers():
    """Processes of the cluster that work for us."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it may just be ending
            if "ray::_Hand" in " ".join(process.cmdline()):
                found.append(process)
    return found


class Watching(Meter):
    """Keeps what it is told; with `kill`, ends the workers of the cluster with kill -9 once the first chunk is done.

    All that there are: the one that did that chunk is among them, and is dealt another.
    """

    def __init__(self, scratch, kill):
        super().__init__(scratch, 0)
        self.kill, self.victims, self.used, self.steps = kill, [], Usage(), []

    def usage(self, model, usage, device):
        self.used += usage

    def progress(self, done, total, note=""):
        self.steps.append((done, total))
        if self.kill and len(self.steps) == 1:
            self.victims = workers()
            for victim in self.victims:
                with suppress(psutil.NoSuchProcess):
                    victim.kill()


def both_ways(run, config_class, inputs, config, fan_out, tmp_path, caplog):
    """Run a stage here and, with `fan_out`, on the cluster where workers are killed: same files, metrics and usage."""
    results, meters = [], []
    for where, values in (("here", config), ("there", {**config, **fan_out})):
        out = tmp_path / where
        out.mkdir()
        meters.append(Watching(tmp_path / f"{where}-scratch", kill=where == "there"))
        results.append(run(inputs, validate(config_class, values), out, meters[-1]))
    here, there = meters
    assert results[0] == results[1] and here.used == there.used and here.steps == there.steps
    written = {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()}
    assert there.victims
    assert "a worker died" in caplog.text or "a worker did not start" in caplog.text
    return there.used


def test_generation_on_two_replicas(tmp_path, address, caplog):
    write_jsonl(tmp_path / "problems.jsonl", PROBLEMS)
    inputs = {"problems": tmp_path, "model": write_model(tmp_path / "model")}
    engine = {"kind": "transformers", "device": "cpu"}
    sampling = {"temperature": 1.0, "max_tokens": 24}
    config = {"problems": "p", "model": "m", "engine": engine, "samples": 2, "chunk": 2, "sampling": sampling}
    fan_out = {"engine": {**engine, "replicas": 2}, "ray": {"address": address}}
    used = both_ways(run_rollout, RolloutConfig, inputs, config, fan_out, tmp_path, caplog)
    assert used.completion_tokens > 24 and used.prompt_tokens > 24


def test_grading_on_two_workers(tmp_path, address, caplog):
    tests = [{"kind": "stdin", "input": "4\n", "expected": "8\n"}]
    programs = [f"```python\nprint(int(input()) * {i})\n```" for i in range(4)]
    chains = [
        Rollout(p.id, i, f"\\boxed{{{2 * n + i}}}", 5, "stop", "m") for n, p in enumerate(PROBLEMS) for i in range(2)
    ]
    chains += [Rollout("code", i, program, 9, "stop", "m") for i, program in enumerate(programs)]
    write_jsonl(tmp_path / "problems.jsonl", [*PROBLEMS, Problem("code", "Double it.", None, "code", tests=tests)])
    write_jsonl(tmp_path / "rollouts.jsonl", chains)
    inputs, config = {"problems": tmp_path, "chains": tmp_path}, {"problems": "p", "chains": "c", "chunk": 4}
    both_ways(run_grade, GradeConfig, inputs, config, {"ray": {"address": address}}, tmp_path, caplog)
    graded = list(read_jsonl(tmp_path / "there" / "rollouts.jsonl", Rollout))
    assert [r.verdict.correct for r in graded] == [True, False] * 12 + [False, False, True, False]


def test_dedup_on_two_workers(tmp_path, address, caplog, monkeypatch):
    monkeypatch.setattr(corpus, "CHUNK", 30)
    rows, _ = generate(GeneratedConfig(count=300, duplicates=40))
    write_jsonl(tmp_path / "problems.jsonl", rows)
    config, fan_out = {"problems": "p", "workers": 1}, {"ray": {"address": address}}
    both_ways(run_dedup, DedupConfig, {"problems": tmp_path}, config, fan_out, tmp_path, caplog)
    assert (tmp_path / "there" / "removed.jsonl").read_bytes().count(b"\n") > 20


# ------------------------------------------------------------------------------ the crew of a cluster


def test_a_cluster_works_and_tells_what_goes_wrong(address, caplog):
    """One connection for all of it: results, an error of the input, a bug, and a part that kills whoever takes it."""

    def fail_at_three(number):
        if number == 3:
            raise InputError("rows.jsonl:3: is wrong")

    def die_at_three(number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    with RayCrew(RayConfig(address=address), 2) as crew:
        assert list(in_order(crew.map(lambda n: n * n, range(20)))) == [n * n for n in range(20)]
        with pytest.raises(InputError, match=r"^rows\.jsonl:3: is wrong$"):
            list(crew.map(fail_at_three, range(6)))
        with pytest.raises(ZeroDivisionError):
            list(crew.map(lambda n: 1 / (n - 3), range(6)))
        with pytest.raises(WorkError, match="part 3 lost 3 workers"):
            list(crew.map(die_at_three, range(6)))
        assert caplog.text.count("part 3 starts again") == 2
        assert sorted(crew.map(lambda n: n * n, range(3))) == [(0, 0), (1, 1), (2, 4)]


def test_more_workers_than_the_cluster_has_room_for_hold_up_nothing(address):
    with open_crew(RayConfig(address=address, workers=9)) as crew:
        assert list(in_order(crew.map(lambda n: n * n, range(20)))) == [n * n for n in range(20)]


def test_a_machine_that_goes_holds_up_nothing(cluster):
    """Its results go with it where they are too large to have come at once; a worker in its place finds no room."""
    third = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    with RayCrew(RayConfig(address=cluster.address), 3) as crew:
        done = []
        for position, result in crew.map(lambda n: bytes([n]) * (1 << 20), range(18)):
            done.append((position, result[:1]))
            if len(done) == 4:
                cluster.remove_node(third, allow_graceful=False)
    assert sorted(done) == [(n, bytes([n])) for n in range(18)]


def test_no_room_for_a_single_worker(address, monkeypatch):
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    with pytest.raises(InputError, match="8 processors and 1 GPUs; one worker needs 1 and 2"):
        RayCrew(RayConfig(address=address), 1, gpus=2)
    assert not ray.is_initialized()


def test_a_cluster_of_its_own_ends_with_the_stage(tmp_path):
    """`address: local`, in the process of a stage that is killed: no worker outlives it, nor what would start others.

    (Two agents of Ray's own look for their parent now and then and end a little later.)
    """
    pytest.importorskip("ray", reason="needs Ray: pip install 'fathom[ray]'")
    code = (
        "from fathom.fanout import *\nimport time\n"
        "with open_crew(RayConfig(workers=1)) as crew:\n"
        "    print(list(crew.map(lambda n: n * n, [3])), flush=True)\n    time.sleep(60)\n"
    )
    path = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "RAY_AUTH_TOKEN_PATH": token(tmp_path)}
    stage = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=path)
    try:
        assert stage.stdout.readline() == "[(0, 9)]\n"
        names = {p: " ".join(p.cmdline()) for p in psutil.Process(stage.pid).children(recursive=True)}
        cluster = [
            p for p, name in names.items() if "ray::_Hand" in name or "raylet/raylet" in name or "gcs_server" in name
        ]
        assert len(cluster) >= 3
    finally:
        stage.kill()
        stage.wait()
        stage.stdout.close()
    assert psutil.wait_procs(cluster, 20)[1] == []


# ------------------------------------------------------------------------------ without a cluster


def nobody_listens():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{held.getsockname()[1]}"


def test_a_cluster_that_cannot_be_reached_is_one_line(monkeypatch):
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'fathom[ray]'")
    address = nobody_listens()
    with pytest.raises(InputError, match=rf"^ray.address '{address}': the cluster can't be reached \(.*refused\)$"):
        RayCrew(RayConfig(address=address), 1)

    def find_none(address, **settings):
        assert address == "auto"
        raise ConnectionError("Could not find any running Ray instance.\nPlease start one.\n")

    monkeypatch.setattr(ray, "init", find_none)
    with pytest.raises(InputError, match=r"^ray.address 'auto': the cluster can't be reached \(Please start one.\)$"):
        RayCrew(RayConfig(address="auto"), 1)


def test_without_ray_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"Ray is not installed; it comes with `pip install 'fathom\[ray\]'`"):
        RayCrew(RayConfig(), 2)


@pytest.mark.parametrize(
    ("config_class", "values", "said"),
    [
        (GradeConfig, {"ray": {"address": "ray://head:10001"}}, "ray.address: expected .*host:port"),
        (GradeConfig, {"ray": {"address": "head"}}, "ray.address"),
        (
            RolloutConfig,
            {"engine": {"kind": "http", "model": "m", "base_url": "http://h/v1"}, "ray": {}},
            "concurrency",
        ),
        (RolloutConfig, {"engine": {"kind": "transformers"}, "ray": {"workers": 2}}, "engine.replicas"),
    ],
)
def test_a_cluster_that_makes_no_sense_is_refused_with_the_recipe(config_class, values, said):
    with pytest.raises(InputError, match=said):
        validate(config_class, {"problems": "p", **({"chains": "c"} if config_class is GradeConfig else {}), **values})


def test_where_work_is_done_stays_out_of_the_key():
    engine = {"kind": "transformers", "device": "cpu"}
    here = validate(RolloutConfig, {"problems": "p", "model": "m", "engine": engine})
    there = {"problems": "p", "model": "m", "engine": {**engine, "replicas": 4}, "ray": {"address": "head:6379"}}
    assert key_values(here, str) == key_values(validate(RolloutConfig, there), str)


def test_a_stage_that_asks_one_engine_refuses_replicas(tmp_path):
    with pytest.raises(InputError, match=r"engine\.replicas: 2 copies"):
        open_engine(TransformersConfig(replicas=2), tmp_path)


class Backwards:
    """A crew whose last part is done first."""

    def map(self, work, parts):
        yield from reversed(list(Here().map(work, parts)))


def verdicts(part):
    return [Verdict(str(n), True, "test/1") for n in part]


def test_chunks_keep_their_order_and_survive_one_by_one(tmp_path):
    meter, billed = Meter.null(tmp_path), []

    class Stopping(Backwards):
        def map(self, work, parts):
            for number, result in enumerate(super().map(work, parts)):
                if number == 2:
                    raise BudgetStop("enough")
                yield result

    def run(crew):
        return run_chunks(range(7), 2, tmp_path / "c", verdicts, Verdict, meter, crew=crew, bill=billed.append)

    with pytest.raises(BudgetStop):
        run(Stopping())
    assert [path.name for path in sorted((tmp_path / "c").iterdir())] == ["00000004.jsonl", "00000006.jsonl"]
    assert [v.answer for v in run(Backwards())] == list("0123456")
    assert [[v.answer for v in part] for part in billed] == [["6"], ["4", "5"], ["2", "3"], ["0", "1"]]


def test_results_are_put_in_order_as_soon_as_they_can():
    seen = []

    def results():
        for position in (1, 0, 3, 2):
            seen.append(position)
            yield position, position

    assert [(n, list(seen)) for n in in_order(results())] == [
        (0, [1, 0]),
        (1, [1, 0]),
        (2, [1, 0, 3, 2]),
        (3, [1, 0, 3, 2]),
    ]
