"""Code grader: a program against its tests, each in the sandbox, compared outside it.

`grade_code` takes a whole completion, `check_program` a bare program. A program is right when it
passes every test; after the first failure the rest isn't run unless asked for. Not a code-quality judge and
not a judge of other languages than Python.
"""

from __future__ import annotations

import json
import re
import reprlib
import socket
import textwrap
import threading
from dataclasses import dataclass, replace
from typing import Any, Literal

from fathom.errors import InputError, WorkError
from fathom.graders.code_tests import Test, first_difference, output_matches, read_tests, value_matches
from fathom.graders.sandbox.inside.values import decode, encode
from fathom.graders.sandbox.job import Job, Limits, Run
from fathom.graders.sandbox.pool import Runner, shared_runner
from fathom.records import Problem, Verdict

GRADER = "code/1"
# LiveCodeBench stops a test after 6 s of its machine. Here its recorded passes take at most 0.5 s and its
# recorded time-outs at least 4.5 s, so a limit between the two keeps both on their side of it.
LIMITS = Limits(seconds=3.0)
MAX_SOURCE = 1 << 20  # characters; a solution is a few thousand, a data table smuggled in is not a solution
TestStatus = Literal["PASS", "WA", "RE", "TLE", "MLE", "OLE", "not run"]

_FENCE = re.compile(r"^[ \t]*(`{3,})[ \t]*([^\s`]*)[^\n`]*$", re.MULTILINE)
_PYTHON = {"python", "py", "python3", "python2", "pypy", "pypy3"}
_METHOD = re.compile(r"class\s+Solution\b.*?def\s+([A-Za-z]\w*)\s*\(\s*self", re.DOTALL)
_FUNCTION = re.compile(r"^def\s+([A-Za-z]\w*)\s*\(", re.MULTILINE)


class CheckerFailed(WorkError):
    """A checker that came with the data crashed: neither the program's fault nor the sandbox's."""


@dataclass(frozen=True)
class TestResult:
    """How one test went; seconds are the program's own."""

    __test__ = False  # not a test class, whatever pytest thinks of its name

    status: TestStatus
    why: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Report:
    """One result per test, in the order of the tests. sandbox: how the programs were isolated."""

    results: list[TestResult]
    sandbox: str

    @property
    def passed(self) -> bool:
        return all(result.status == "PASS" for result in self.results)

    @property
    def status(self) -> TestStatus:
        """PASS, or the status of the first test that didn't pass."""
        return next((result.status for result in self.results if result.status != "PASS"), "PASS")

    @property
    def summary(self) -> str:
        """One line: the count, and the first failure with its reason."""
        count = sum(result.status == "PASS" for result in self.results)
        text = f"{self.status}: {count} of {len(self.results)} tests passed"
        for number, result in enumerate(self.results, 1):
            if result.status != "PASS":
                return f"{text}; test {number}: {result.status} ({result.why})"
        return text


def grade_code(
    problem: Problem, text: str, truncated: bool = False, runner: Runner | None = None, limits: Limits = LIMITS
) -> Verdict:
    """Verdict on a completion for a code problem.

    `correct` is None when the problem's tests can't be read. The function under test is named by
    the tests, by `meta["fn_name"]` / `meta["entry_point"]` or by starter code; else it is guessed from the program.
    Raises WorkError when the sandbox itself fails (never the program's fault).
    """
    if truncated:
        return Verdict(None, False, GRADER, "truncated", "the chain hit its token budget before an answer")
    source = extract_code(text)
    if not source.strip():
        return Verdict(None, False, GRADER, "extract", "no program in the answer")
    try:
        tests = read_tests(problem.tests or [], entry_point(problem), f"problem {problem.id}: tests")
    except InputError as error:
        return Verdict(source, None, GRADER, "tests", str(error))
    report = check_program(source, tests, runner, limits)
    return Verdict(source, report.passed, GRADER, "tests", report.summary)


def check_program(
    source: str, tests: list[Test], runner: Runner | None = None, limits: Limits = LIMITS, run_all: bool = False
) -> Report:
    """Run a program against tests, one fresh process each; compiling counts as the program's time.

    run_all: go on after a failure.
    """
    runner = runner or shared_runner()
    if len(source) > MAX_SOURCE:
        refused = TestResult("RE", f"the program is longer than {MAX_SOURCE >> 20} MiB")
        return Report([refused] * len(tests), runner.mode)
    results: list[TestResult] = []
    for test in tests:
        if results and results[-1].status != "PASS" and not run_all:
            results.append(TestResult("not run"))
            continue
        own = replace(limits, seconds=test.seconds) if test.seconds else limits
        results.append(_CHECKS[test.kind](source, test, runner, own))
    return Report(results, runner.mode)


def extract_code(text: str) -> str:
    """The program in a completion: the last fenced block after the last `</think>`.

    Blocks tagged as Python come before untagged ones, and those before other languages. A block that
    is never closed reaches to the end; text without a fence is itself the program.
    """
    answer = text.rpartition("</think>")[2]
    blocks: list[tuple[int, str]] = []
    start: re.Match[str] | None = None
    for fence in _FENCE.finditer(answer):
        if start is None:
            start = fence
        elif not fence[2] and len(fence[1]) >= len(start[1]):
            blocks.append(_block(start, answer[start.end() + 1 : fence.start()]))
            start = None
    if start is not None:
        blocks.append(_block(start, answer[start.end() + 1 :]))
    if not blocks:
        return answer
    best = max(rank for rank, _ in blocks)
    return [code for rank, code in blocks if rank == best][-1]


def _block(fence: re.Match[str], code: str) -> tuple[int, str]:
    tag = fence[2].lower()
    return 2 if tag in _PYTHON else 1 if not tag else 0, textwrap.dedent(code)


def entry_point(problem: Problem) -> str | None:
    """The function under test, where the problem names one."""
    for key in ("fn_name", "entry_point", "func_name"):
        if isinstance(problem.meta.get(key), str):
            return problem.meta[key]
    starter = problem.meta.get("starter_code")
    starter = starter if isinstance(starter, str) else ""
    match = _METHOD.search(starter) or _METHOD.search(problem.question) or _FUNCTION.search(starter)
    return match[1] if match else None


def _check_stdin(source: str, test: Test, runner: Runner, limits: Limits) -> TestResult:
    run = runner.run(Job(source, stdin=test.input.encode("utf-8", "replace")), limits)
    if run.status != "OK":
        return _failed(run)
    got = run.stdout.decode("utf-8", "replace")
    if isinstance(test.checker, dict):
        return _ask_checker(test, got, run, runner, limits)
    difference = first_difference(test, lambda answer: output_matches(answer, got, test.checker))
    return TestResult("WA" if difference else "PASS", difference or "", run.seconds)


def _check_functional(source: str, test: Test, runner: Runner, limits: Limits) -> TestResult:
    job = Job(source, "call", entry=test.entry, args=tuple(encode(arg) for arg in test.args))
    run = runner.run(job, limits)
    if run.status != "OK":
        return _failed(run)
    try:
        got = json.loads(run.reply)["value"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return TestResult("RE", "the function returned nothing that could be read", run.seconds)
    if isinstance(test.checker, dict):
        return _ask_checker(test, got, run, runner, limits)
    for answer in test.accepted:
        if value_matches(answer, got, test.checker):
            return TestResult("PASS", "", run.seconds)
    return TestResult("WA", f"returned {_shown(run.reply)}, expected {_clip(test.accepted[0])}", run.seconds)


def _ask_checker(test: Test, got: Any, run: Run, runner: Runner, limits: Limits) -> TestResult:
    """The data's own checker, a program like any other: it runs in the sandbox too, apart from the first."""
    given = test.input if test.kind == "stdin" else list(test.args)
    case = {"input": given, "expected": test.accepted[0], "output": got}
    check = runner.run(Job(test.checker["code"], stdin=json.dumps(case).encode()), limits)
    if check.status != "OK":
        raise CheckerFailed(f"a test's checker failed: {check.status} ({check.why}; {check.last_words})")
    right = check.stdout.strip().lower() in (b"1", b"true")
    return TestResult("PASS" if right else "WA", "" if right else "the test's checker refuses it", run.seconds)


def _check_asserts(source: str, test: Test, runner: Runner, limits: Limits) -> TestResult:
    """Two sandboxes joined by a socket: the program answers calls, the test's text makes them.

    The text holds the expected answers, so the program never shares a process with it.
    """
    ours, theirs = socket.socketpair()
    served: list[Run | BaseException] = []

    def serve() -> None:
        try:
            served.append(runner.run(Job(source, "serve", channel=theirs.detach()), limits))
        except BaseException as error:  # told to the thread that waits for it
            served.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    # The judge waits for the program, so the program's clock must be the first to run out.
    patient = Limits(limits.wall_seconds + 5, limits.memory_mb, limits.output_bytes)
    judge = Job(test.code, "judge", names=test.names, channel=ours.detach())
    try:
        judged = shared_runner("judges").run(judge, patient)
    finally:
        thread.join()
    (run,) = served
    if isinstance(run, BaseException):
        raise run
    if run.status != "OK":
        return _failed(run)
    if judged.status == "OK" and judged.stdout.endswith(b"every assertion held\n"):
        return TestResult("PASS", "", run.seconds)
    if judged.status == "INFRA":
        return _failed(judged)
    status = "RE" if judged.last_words.startswith("RuntimeError") else "WA"
    return TestResult(status, judged.last_words or judged.why, run.seconds)


def _failed(run: Run) -> TestResult:
    """The result of a run that didn't end well by itself."""
    if run.status == "INFRA":
        raise WorkError(f"the sandbox failed, not the program: {run.why}")
    return TestResult(run.status, run.last_words or run.why, run.seconds)


def _shown(reply: bytes) -> str:
    """A returned value as the program would have written it; only its beginning when it is long."""
    if len(reply) > 2000:
        return _clip(reply[:200].decode("utf-8", "replace"))
    try:
        return _clip(decode(json.loads(reply)["value"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return "a malformed value"


def _clip(value: Any, limit: int = 60) -> str:
    """A short repr that no giant value can make slow."""
    text = reprlib.repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


_CHECKS = {"stdin": _check_stdin, "functional": _check_functional, "asserts": _check_asserts}
