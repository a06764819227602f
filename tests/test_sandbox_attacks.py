"""The sandbox against every attack and every honest program of the shared data.

The attacks' headers state what must not happen and which outcomes are acceptable. Each attack is graded
like any program (it should compute a + b); beside its verdict, what it must not reach is watched from outside:
marker files, a canary, listeners on the loopback, signals, time. `-m proof` repeats all of it with every
processor kept busy, and under bubblewrap.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from watchtower import (
    ATTACKS,
    CONTROLS,
    NOBODY,
    SHARED,
    SYSTEM_PYTHON,
    Watchtower,
    assault,
    grade,
    header,
    run_as_nobody,
)

from fathom.graders.sandbox import Job, Limits, Pool, bubblewrap_runner, plain_runner, slot
from fathom.graders.sandbox.inside import seccomp
from fathom.graders.sandbox.process import ProcessRunner

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux"),
    pytest.mark.skipif(not ATTACKS, reason=f"no attack programs under {SHARED}"),
]

UNHURRIED = Limits(seconds=30.0, memory_mb=512)  # where a program must get to its end, however slow the machine is


@pytest.fixture(scope="module")
def pool():
    """Two warm workers."""
    with Pool(2) as shared:
        yield shared


@pytest.fixture
def tower(tmp_path):
    watched = Watchtower(tmp_path)
    yield watched
    watched.close()


@pytest.mark.parametrize("path", ATTACKS, ids=lambda path: path.stem)
def test_every_attack_is_contained(path, pool, tower):
    assert assault(path, pool, tower) == []


@pytest.mark.parametrize("path", CONTROLS, ids=lambda path: path.stem)
def test_every_honest_program_passes(path, pool):
    if path.stem == "ok_numpy":
        pytest.importorskip("numpy")
    assert grade(path.read_text(), header(path, "KIND"), pool, UNHURRIED).status == "PASS"


@pytest.mark.parametrize("path", CONTROLS, ids=lambda path: path.stem)
def test_a_control_with_a_wrong_sum_does_not_pass(path, pool):
    wrong = path.read_text().replace("a + b", "a + b + 1")
    if path.stem == "ok_call_bool_numpyless_tuple":
        wrong = wrong.replace("f(a) + f(b)", "f(a) - f(b)")
    if path.stem == "ok_numpy":
        wrong = wrong.replace(".sum()", ".max()")
    assert grade(wrong, header(path, "KIND"), pool, UNHURRIED).status == "WA"


def pool_of_one() -> Pool:
    return Pool(1, python=SYSTEM_PYTHON)


def bubblewrap() -> ProcessRunner | None:
    return bubblewrap_runner(SYSTEM_PYTHON)


@pytest.mark.parametrize("make", [pool_of_one, pytest.param(bubblewrap, marks=pytest.mark.proof)])
def test_the_same_as_an_ordinary_user(make, request):
    if os.geteuid() != 0:
        pytest.skip("the other tests already run as an ordinary user")
    if run_as_nobody(lambda: os.access(seccomp.__file__, os.R_OK) and os.access(SYSTEM_PYTHON, os.X_OK)) is not True:
        pytest.skip("this checkout or the system's Python can't be read by uid 65534")
    if make is bubblewrap and not shutil.which("bwrap"):
        pytest.skip("bubblewrap isn't installed")
    directory = Path(tempfile.mkdtemp(prefix="fathom-test-"))
    os.chown(directory, NOBODY, NOBODY)
    request.addfinalizer(lambda: shutil.rmtree(directory))
    sources = {path: (path.read_text(), header(path, "KIND")) for path in CONTROLS if path.stem != "ok_numpy"}

    def work() -> list[str]:
        tower = Watchtower(directory)
        runner = make()
        faults = []
        for path in ATTACKS:
            if make is bubblewrap and path.stem == "fs_inode_fill":
                continue  # its tmpfs has a size and no cap on the number of files (see `bubblewrap_runner`)
            faults += [f"{path.stem}: {fault}" for fault in assault(path, runner, tower)]
        for path, (text, kind) in sources.items():
            report = grade(text, kind, runner, UNHURRIED)
            if not report.passed:
                faults.append(f"{path.stem}: {report.summary}")
        runner.close()
        tower.close()
        return faults

    assert run_as_nobody(work) == []


@pytest.mark.parametrize(
    "name", ["fs_write_outside", "fs_read_secret", "net_udp_loopback", "kern_setuid_caps", "py_reload_os"]
)
def test_the_watchtower_sees_what_an_open_machine_lets_through(name, tower):
    path = SHARED / "sandbox_attacks" / f"{name}.py"
    assert assault(path, plain_runner(), tower, UNHURRIED) != []


@pytest.mark.parametrize(
    "file, layer, without, attack",
    [
        ("jail.py", "    seccomp.install(code)", "", "kern_risky_syscalls"),
        ("jail.py", "    seccomp.install(code)", "", "kern_new_userns"),
        ("jail.py", "    limit(memory_bytes, cpu_seconds)", "", "res_thread_bomb"),
        ("zygote.py", "    os.closerange(kept, evidence)", "    del kept", "proc_fd_inherit"),
        ("jail.py", "nr_inodes={TMP_INODES}", "nr_inodes=99999", "fs_inode_fill"),
    ],
)
def test_without_one_layer_an_attack_wins(file, layer, without, attack, tmp_path, tower, monkeypatch):
    shutil.copytree(slot.PACKAGE / "inside", tmp_path / "weak" / "inside")
    weak = tmp_path / "weak" / "inside" / file
    assert layer in weak.read_text()
    weak.write_text(weak.read_text().replace(layer, without))
    tower.planted.update(tmp_path.rglob("*"))
    monkeypatch.setattr(slot, "PACKAGE", tmp_path / "weak")
    with Pool(1) as pool:
        assert assault(SHARED / "sandbox_attacks" / f"{attack}.py", pool, tower, UNHURRIED) != []


@pytest.fixture
def busy_machine():
    """One spinning process per processor."""
    spinners = [
        multiprocessing.get_context("spawn").Process(target=_spin, daemon=True) for _ in range(os.cpu_count() or 1)
    ]
    for spinner in spinners:
        spinner.start()
    yield
    for spinner in spinners:
        spinner.kill()
        spinner.join()


def _spin() -> None:
    while True:
        pass


@pytest.mark.proof
def test_attacks_and_controls_in_any_order_on_a_busy_machine(pool, tower, busy_machine):
    """Two shuffles, attacks and controls interleaved in the same two workers."""
    shuffled = random.Random(0)
    faults = []
    for _ in range(2):
        for path in shuffled.sample(ATTACKS + CONTROLS, len(ATTACKS + CONTROLS)):
            if path in ATTACKS:
                faults += [f"{path.stem}: {fault}" for fault in assault(path, pool, tower)]
            else:
                report = grade(path.read_text(), header(path, "KIND"), pool)
                faults += [] if report.passed else [f"{path.stem}: {report.summary}"]
    assert faults == []


@pytest.mark.proof
def test_waiting_for_a_busy_processor_is_not_charged(pool, busy_machine):
    source = "import time\nwhile time.process_time() < 0.8: pass\nprint('done')"
    for _ in range(5):
        run = pool.run(Job(source), Limits(seconds=1.5))
        assert run.status == "OK" and run.wall_seconds > 1.2, run
