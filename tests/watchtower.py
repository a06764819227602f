"""What the sandbox's tests share: attacks run against everything that they may try to reach.

A `Watchtower` plants secrets, listeners and addresses before an attack and looks afterwards at what was touched.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import socket
import threading
import warnings
from pathlib import Path

from fathom.graders.code import Report, check_program
from fathom.graders.code_tests import read_tests
from fathom.graders.sandbox import Limits
from fathom.graders.sandbox.pool import Runner

SHARED = Path(os.environ.get("FATHOM_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
ATTACKS = sorted((SHARED / "sandbox_attacks").glob("*.py"))
CONTROLS = sorted((SHARED / "sandbox_attacks" / "controls").glob("*.py"))
CANARY = "SBXCANARY"
LIMITS = Limits(seconds=1.0, memory_mb=512)
SUMS = [(0, 1), (2, 3), (-4, 11)]
NOBODY = 65534
SYSTEM_PYTHON = "/usr/bin/python3"  # an interpreter that everyone can read


class Watchtower:
    """All that an attack may try to reach, planted before and inspected after."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.chmod(0o755)
        (directory / "tests").mkdir()
        (directory / "home/.cache/huggingface").mkdir(parents=True)
        for name in ("secret.txt", "secret_0600.txt", "victim.txt", "home/.netrc", "home/.cache/huggingface/token"):
            (directory / name).write_text(CANARY)
        (directory / "secret_0600.txt").chmod(0o600)
        cases = {"inputs": [f"{a} {b}\n" for a, b in SUMS], "outputs": [f"{a + b}\n" for a, b in SUMS]}
        (directory / "tests" / "input_output.json").write_text(repr(cases).replace("'", '"').replace("\\\\n", "\\n"))
        self.planted = set(directory.rglob("*"))
        self.shm = Path("/dev/shm/sbx_canary")
        self.shm.write_text(CANARY)
        self.open_secret = os.open(directory / "secret.txt", os.O_RDWR)
        os.set_inheritable(self.open_secret, True)
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.udp.setblocking(False)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.backdoor = free.getsockname()[1]
        self.signals = 0
        self._old = signal.signal(signal.SIGURG, self._count)

    def _count(self, *_: object) -> None:
        self.signals += 1

    def source(self, attack: Path) -> str:
        """The attack's text with this machine's addresses filled in."""
        text = attack.read_text()
        names = {
            "MARKER_DIR": self.directory, "PORT": self.udp.getsockname()[1], "PORT2": self.backdoor,
            "HARNESS_PID": os.getpid(), "HARNESS_SID": os.getsid(0),
        }  # fmt: skip
        for name, value in names.items():
            text = text.replace(f"@{name}@", str(value))
        return text

    @contextlib.contextmanager
    def knocking(self):
        """Meanwhile, try to reach the backdoor; yields the list that grows when it answers."""
        stop, reached = threading.Event(), []

        def knock() -> None:
            while not stop.wait(0.05):
                with socket.socket() as caller:
                    caller.settimeout(0.2)
                    if caller.connect_ex(("127.0.0.1", self.backdoor)) == 0:
                        reached.append(True)

        thread = threading.Thread(target=knock)
        thread.start()
        try:
            yield reached
        finally:
            stop.set()
            thread.join()

    def breaches(self) -> list[str]:
        """What got out, as sentences."""
        found = [f"wrote {path}" for path in self.directory.rglob("*") if path not in self.planted]
        found += [f"moved {path}" for path in self.planted if not path.exists()]
        if self.signals:
            found.append(f"{self.signals} signals arrived")
        if Path("/dev/shm/sbx_attack_shm").exists():
            found.append("left a shared memory segment")
        with contextlib.suppress(BlockingIOError):
            found.append(f"a datagram arrived: {self.udp.recv(100)!r}")
        return found

    def close(self) -> None:
        signal.signal(signal.SIGURG, self._old)
        self.udp.close()
        os.close(self.open_secret)
        self.shm.unlink(missing_ok=True)


def header(path: Path, key: str) -> str:
    """One header line of an attack or control."""
    return re.search(rf"^# {key}:[ \t]*(.*)$", path.read_text(), re.MULTILINE)[1]


class Recorder:
    """A runner that keeps every run it handed on, so that a test can look at the output."""

    mode = "recorded"
    workers = 1

    def __init__(self, pool: Runner) -> None:
        self.pool = pool
        self.runs = []

    def run(self, job, limits):
        self.runs.append(self.pool.run(job, limits))
        return self.runs[-1]


def grade(text: str, kind: str, runner, limits: Limits = LIMITS) -> Report:
    """The report on a program that should add two numbers."""
    if kind == "call":
        rows = [{"kind": "functional", "args": [a, b], "expected": a + b, "fn_name": "add"} for a, b in SUMS]
    else:
        rows = [{"kind": "stdin", "input": f"{a} {b}\n", "expected": f"{a + b}\n"} for a, b in SUMS]
    return check_program(text, read_tests(rows), runner, limits)


def assault(path: Path, pool: Runner, tower: Watchtower, limits: Limits = LIMITS, slack: float = 6.0) -> list[str]:
    """Run one attack twice on the pool; every way in which it got further than its header allows."""
    accepted = header(path, "EXPECT").split()
    faults = []
    for _ in range(2):  # the second run looks for what the first left behind
        recorder = Recorder(pool)
        with tower.knocking() if path.stem == "net_listen" else contextlib.nullcontext([]) as reached:
            report = grade(tower.source(path), header(path, "KIND"), recorder, limits)
        if report.status.replace("not run", "RE") not in accepted:
            faults.append(f"{report.status}, expected one of {accepted}: {report.summary}")
        for run in recorder.runs:
            output = run.stdout + run.stderr
            if b"ESCAPE" in output or CANARY.encode() in output:
                faults.append(f"printed {output[:300]!r}")
            if run.peak_mb > 2048:
                faults.append(f"held {run.peak_mb:.0f} MB")
            if run.seconds > limits.seconds + slack:
                faults.append(f"took {run.seconds:.1f} s of its {limits.seconds} s")
        if reached:
            faults.append("was reachable from outside")
    return faults + tower.breaches()


def run_as_nobody(work) -> object:
    """Call `work()` in a forked child that is an ordinary user; its result, or its exception as text."""
    receive, send = multiprocessing.Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside idle threads; the child starts anew
        pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            os.chdir("/")
            send.send(work())
        except BaseException as error:
            send.send(f"{type(error).__name__}: {error}")
        finally:
            os._exit(0)
    send.close()
    result = receive.recv()
    os.waitpid(pid, 0)
    return result
