"""What the sandbox promises beyond containment: evidence, ordinary Python, no losses, no leftovers, refusal.

`-m proof` soaks the pool with two thousand programs.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from watchtower import LIMITS, SUMS, SYSTEM_PYTHON, grade, run_as_nobody

from fathom.errors import InputError
from fathom.graders.sandbox import (
    Job,
    Limits,
    Pool,
    SandboxError,
    bubblewrap_runner,
    doctor,
    isolated_runner,
    plain_runner,
    run_program,
)
from fathom.graders.sandbox.inside import seccomp

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")


@pytest.fixture(scope="module", autouse=True)
def scratch(tmp_path_factory):
    """A temporary directory of our own, so that what is left in it was left by us."""
    tmp_path_factory.getbasetemp()  # pytest's own directory must not be made inside ours
    directory, before = tempfile.mkdtemp(prefix="fathom-tests-"), tempfile.tempdir
    os.chmod(directory, 0o1777)
    tempfile.tempdir = directory
    yield
    tempfile.tempdir = before
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def pool():
    """Two warm workers."""
    with Pool(2) as shared:
        yield shared


@pytest.mark.parametrize(
    "source, status, code",
    [
        ("print(1)", "OK", 0),
        ("import sys; sys.exit()", "OK", 0),
        ("import sys; sys.exit('no')", "RE", 1),
        *[(f"import os; os._exit({code})", "RE", code) for code in (1, 124, 125, 126, 127, 137, 139, 255)],
        ("import os; os.kill(os.getpid(), 9)", "RE", None),
        ("import os; os.abort()", "RE", None),
        ("import os; os.kill(1, 9); os._exit(3)", "RE", 3),
        ("import os; os.kill(-1, 9)", "RE", 1),
        ("1 +", "RE", 1),
        ("while True: pass", "TLE", None),
        ("import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", "TLE", None),
        ("x = [0] * (1 << 40)", "MLE", 1),
        ("print('x' * (40 << 20))", "OLE", None),
        ("import sys; sys.stderr.write(' ' * (40 << 20))", "OLE", None),
    ],
)
def test_status_and_exit_code_come_from_evidence(source, status, code, pool):
    run = pool.run(Job(source), LIMITS)
    assert (run.status, run.exit_code) == (status, code)


@pytest.mark.parametrize(
    "source, output",
    [
        ("print('y' * (1 << 20))", b"y" * (1 << 20) + b"\n"),
        ("import sys; sys.stdout.buffer.write(bytes(range(256)))", bytes(range(256))),
        ("print(len(str(10 ** 100_000)))", b"100001\n"),
        ("f = lambda n: 0 if n == 0 else 1 + f(n - 1)\nprint(f(40_000))", b"40000\n"),
        (
            "import resource as r; r.setrlimit(r.RLIMIT_STACK, (r.RLIM_INFINITY, r.getrlimit(r.RLIMIT_STACK)[1])); print(1)",
            b"1\n",
        ),
        ("import atexit; atexit.register(print, 'bye'); print('hi')", b"hi\nbye\n"),
        ("import threading as t; t.Timer(0.05, lambda: print('late')).start()", b"late\n"),
        (
            "import os, sys; print(dict(os.environ), sys.argv, os.getcwd(), os.listdir())",
            b"{} ['program.py'] /tmp []\n",
        ),
        ("import os; print(sorted(os.listdir('/dev')))", b"['full', 'null', 'random', 'urandom', 'zero']\n"),
        ("print({'b', 'a', 'c'} == {'a', 'b', 'c'}, len(open('/dev/urandom', 'rb').read(8)))", b"True 8\n"),
    ],
)
def test_an_honest_program_finds_an_ordinary_python(source, output, pool):
    run = pool.run(Job(source), Limits(seconds=5))
    assert (run.status, run.stdout) == ("OK", output), run.last_words


def test_a_program_repeats_itself(pool):
    source = "import random; print(random.random(), list({'a', 'b', 'c', 'd'}), hash('x'))"
    assert len({pool.run(Job(source)).stdout for _ in range(6)}) == 1


def test_memory_is_what_was_asked_for(pool):
    source = "x = bytearray(300 << 20); print('held')"
    assert pool.run(Job(source), Limits(memory_mb=400)).stdout == b"held\n"
    assert pool.run(Job(source), Limits(memory_mb=200)).status == "MLE"


def test_two_hundred_programs_in_parallel_lose_none(pool):
    def one(number: int) -> bytes:
        return pool.run(Job(f"print(int(input()) * {number})", stdin=b"7\n")).stdout

    with ThreadPoolExecutor(200) as threads:
        assert list(threads.map(one, range(200))) == [b"%d\n" % (7 * number) for number in range(200)]


def test_a_verdict_costs_under_60_ms(pool):
    pool.run(Job("pass"))
    times = []
    for _ in range(15):
        start = time.perf_counter()
        assert grade("print(sum(map(int, input().split())))", "stdio", pool).passed
        times.append((time.perf_counter() - start) / len(SUMS))
    assert sorted(times)[len(times) // 2] < 0.06


def test_a_run_survives_the_death_of_its_worker(tmp_path):
    with Pool(1) as own:
        own.run(Job("pass"))
        (slot,) = own._free
        killer = threading.Timer(0.3, os.kill, (slot._process.pid, signal.SIGKILL))
        killer.start()
        run = own.run(Job("import time; time.sleep(0.8); print('done')"), Limits(seconds=3))
        killer.join()
        assert (run.status, run.stdout) == ("OK", b"done\n")
        assert slot not in own._free


def test_nothing_outlives_a_killed_parent():
    script = (
        "from fathom.graders.sandbox import *\n"
        "pool = Pool(1); pool.run(Job('pass')); print(pool._free[0]._process.pid, flush=True)\n"
        "pool.run(Job('import time; time.sleep(60)'), Limits(seconds=50))\n"
    )
    root = Path(__file__).parents[1]
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=root)
    zygote = int(parent.stdout.readline())
    children = Path(f"/proc/{zygote}/task/{zygote}/children")
    deadline = time.monotonic() + 10
    while not (running := children.read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 3
    while any(Path(f"/proc/{pid}/mem").exists() and is_alive(int(pid)) for pid in (zygote, *running)):
        assert time.monotonic() < deadline, "a process of the sandbox outlived its parent"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Neither gone nor a zombie that waits for whoever inherited it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def footprint() -> tuple[int, int, int, int]:
    """Open descriptors, children, mounts of a jail, and leftovers in the temporary directory."""
    own = [pid for pid in os.listdir("/proc") if pid.isdigit() and is_alive(int(pid)) and parent_of(pid) == os.getpid()]
    mounts = sum(line.startswith(("sandbox ", "tmp ")) for line in Path("/proc/self/mounts").read_text().splitlines())
    return len(os.listdir("/proc/self/fd")), len(own), mounts, len(os.listdir(tempfile.gettempdir()))


def parent_of(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return -1


SOAK = ["print(1)", "1 / 0", "import os; os._exit(3)", "open('f', 'w').write('x' * 9999)", "import os; os.fork()",
        "import threading, time; threading.Thread(target=time.sleep, args=(9,), daemon=True).start()"]  # fmt: skip


def soak(pool: Pool, programs: int) -> list[float]:
    """Seconds of each of ten equal parts of the soak."""
    parts = []
    for _ in range(10):
        start = time.perf_counter()
        statuses = [pool.run(Job(SOAK[i % len(SOAK)])).status for i in range(programs // 10)]
        assert statuses == [["OK", "RE", "RE", "OK", "RE", "OK"][i % len(SOAK)] for i in range(programs // 10)]
        parts.append(time.perf_counter() - start)
    return parts


def test_nothing_is_left_behind(pool):
    soak(pool, 20)
    before = footprint()
    soak(pool, 120)
    assert footprint() == before


def test_a_closed_pool_leaves_no_worker():
    before = footprint()
    with Pool(2) as own:
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda n: own.run(Job("import time; time.sleep(0.1)")), range(2)))
        assert footprint()[1] == before[1] + 2
    assert footprint() == before
    with pytest.raises(SandboxError, match="closed"):
        own.run(Job("pass"))


def test_where_namespaces_are_off_it_refuses_with_the_reason():
    script = (
        "from fathom.graders.sandbox import *\n"
        "try: shared_runner().run(Job('print(1)'))\n"
        "except SandboxError as error: print('refused:', error)\n"
        "print([row for row in doctor() if not row[1]])\n"
        "allow_unsafe(); run = shared_runner().run(Job('print(1)')); print(run.status, shared_runner().mode)\n"
    )
    command = [
        "unshare",
        "-Ur",
        "sh",
        "-c",
        'echo 0 > /proc/sys/user/max_user_namespaces; exec "$0" -c "$1"',
        sys.executable,
        script,
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    refused, rows, unsafe = done.stdout.splitlines() if done.returncode == 0 else (done.stderr, "", "")
    assert refused.startswith("refused: ") and "namespace" in refused
    assert "max_user_namespaces=0" in rows and "--unsafe-exec" in rows
    assert unsafe == "OK none (unsafe)"


def test_where_the_call_filter_is_unknown_it_refuses(monkeypatch):
    assert seccomp.available() is None
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert "riscv64" in seccomp.available()


def test_doctor_tries_the_real_thing():
    assert [(name, ok) for name, ok, _ in doctor()] == [
        ("sandbox: system-call filter", True),
        ("sandbox: namespaces", True),
        ("sandbox: trial program", True),
    ]


def test_run_program_reports_status_output_and_usage(tmp_path):
    source, given = tmp_path / "p.py", tmp_path / "in.txt"
    source.write_text("import sys; print(int(input()) + 1); sys.exit(4)")
    given.write_text("41\n")
    told = run_program(source, given, 5, 512)
    assert (told["status"], told["exit_code"], told["stdout"]) == ("RE", 4, "42\n")
    assert told["sandbox"] == Pool.mode and 0 <= told["usage"]["wall_seconds"] < 5  # 0 where we were told of it late
    assert told["usage"]["cpu_seconds"] > 0 and told["usage"]["peak_mb"] > 0


@pytest.mark.parametrize(
    "seconds, memory, stdin, message",
    [
        (0, 512, None, "seconds"),
        (float("nan"), 512, None, "seconds"),
        (6, 1, None, "memory_mb"),
        (6, 512, "absent", "absent: No such"),
    ],
)
def test_run_program_refuses_wrong_input(seconds, memory, stdin, message, tmp_path):
    source = tmp_path / "p.py"
    source.write_text("print(1)")
    with pytest.raises(InputError, match=message):
        run_program(source, tmp_path / stdin if stdin else None, seconds, memory)


def test_the_unsafe_runner_still_limits_time_and_size():
    plain = plain_runner()
    assert plain.mode == "none (unsafe)"
    assert plain.run(Job("print(input())", stdin=b"hi\n")).stdout == b"hi\n"
    assert plain.run(Job("while 1: pass"), Limits(seconds=1)).status == "TLE"
    assert plain.run(Job("print('x' * 2_000_000)"), Limits(output_bytes=1 << 20)).status == "OLE"
    assert plain.run(Job("1 / 0")).last_words == "ZeroDivisionError: division by zero"
    assert grade("def add(a, b): return a + b", "call", plain).passed


def test_bubblewrap_steps_in_for_an_ordinary_user_only():
    if not shutil.which("bwrap"):
        pytest.skip("bubblewrap isn't installed")

    def work() -> list[object]:
        runner = bubblewrap_runner(SYSTEM_PYTHON)
        source = "import os\ntry: os.fork()\nexcept OSError: print(os.listdir('/tmp'), os.path.exists('/proc/self'), os.getuid())"
        runs = [
            runner.run(Job(text), LIMITS)
            for text in (source, "import os; os.abort()", "while 1: pass", "print('x' * 10**8)")
        ]
        return [runner.mode, runs[0].stdout, [run.status for run in runs]]

    if os.geteuid() == 0:
        assert bubblewrap_runner() is None
        if run_as_nobody(lambda: os.access(seccomp.__file__, os.R_OK)) is not True:
            pytest.skip("this checkout can't be read by uid 65534")
    mode, seen, statuses = run_as_nobody(work) if os.geteuid() == 0 else work()
    assert mode.startswith("bubblewrap+seccomp/")
    parts = Path(seccomp.__file__).parts
    own = [parts[2]] if parts[1] == "tmp" else []  # of a checkout below /tmp the way to it shows
    assert seen.decode() == f"{own} False 1000\n"
    assert statuses == ["OK", "RE", "TLE", "OLE"]


def test_the_second_choice_is_taken_only_where_the_first_fails_and_the_second_works(monkeypatch):
    def refuse(*_):
        raise SandboxError("no namespaces")

    first = isolated_runner()
    first.close()
    assert isinstance(first, Pool)
    monkeypatch.setattr("fathom.graders.sandbox.pool.Slot", refuse)
    second = plain_runner()
    monkeypatch.setattr("fathom.graders.sandbox.pool.bubblewrap_runner", lambda: second)
    assert isolated_runner() is second
    second.python = "/bin/false"
    with pytest.raises(SandboxError, match="no namespaces"):
        isolated_runner()
    monkeypatch.setattr("fathom.graders.sandbox.pool.bubblewrap_runner", lambda: None)
    with pytest.raises(SandboxError, match="no namespaces"):
        isolated_runner()


@pytest.mark.proof
def test_two_thousand_programs_leave_nothing_behind(pool):
    soak(pool, 20)
    before = footprint()
    parts = soak(pool, 2000)
    assert footprint() == before
    assert min(parts[-3:]) < 1.5 * min(parts[:3])
