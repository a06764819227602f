"""`op: check_tests`: a code problem whose tests its own reference solution fails teaches nothing; it is set aside.

Runs the solutions that a source kept (`meta.solutions`) against the problem's tests, in the sandbox. It judges
the data, not a model: chains are the business of `op: grade`. Problems of other kinds pass through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from fathom.chunks import digest, run_chunks, write_rows
from fathom.config import Input, Operational, StageConfig
from fathom.errors import InputError
from fathom.fanout import RayConfig, open_crew
from fathom.records import Problem, Verdict, read_problems, write_jsonl

if TYPE_CHECKING:
    from fathom.ledger import Meter

CHECKER = "check-tests/1"
UNREADABLE, FAILING, NO_SOLUTION = (
    "tests can't be read",
    "tests fail on the reference solution",
    "no reference solution",
)


class CheckTestsConfig(StageConfig):
    """`op: check_tests`. without_solution: whether code problems without a reference solution stay, unchecked.

    workers: problems at work at once, of each worker of a cluster where there is one (ray). chunk: problems
    per saved piece of work.
    """

    problems: Input
    without_solution: Literal["keep", "set_aside"] = "keep"
    workers: Annotated[int, Operational] = Field(2, ge=1)
    chunk: Annotated[int, Operational] = Field(32, ge=1)
    ray: Annotated[RayConfig | None, Operational] = None


def run_check_tests(inputs: dict[str, Any], config: CheckTestsConfig, out: Path, meter: Meter) -> dict[str, Any]:
    """Stage: problems.jsonl without those whose tests fail on every reference solution; removed.jsonl says why.

    One solution that passes all tests is enough: sources hold some that were wrong or of another version of
    Python. Raises InputError when no problem is left.
    """
    problems = read_problems(inputs["problems"] / "problems.jsonl")
    coded = [p for p in problems if p.kind == "code"]
    folder = meter.scratch / f"checked-{digest(config.chunk)}"

    work = partial(_check_part, at_once=config.workers)
    with open_crew(config.ray) as crew:
        verdicts = run_chunks(coded, config.chunk, folder, work, Verdict, meter, "problems", crew=crew)
    faults = {p.id: v for p, v in zip(coded, verdicts, strict=True) if v.correct is not True}
    if config.without_solution == "keep":
        faults = {name: v for name, v in faults.items() if v.rung != NO_SOLUTION}
    kept = [p for p in problems if p.id not in faults]
    reasons = Counter(v.rung for v in faults.values())
    if not kept:
        told = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
        raise InputError(f"check_tests: no problem left of {len(problems)}: {told}")
    write_jsonl(out / "problems.jsonl", kept)
    write_rows(out / "removed.jsonl", ({"id": name, "reason": v.rung, "text": v.why} for name, v in faults.items()))
    left, funnel = len(problems), [["problems", len(problems)]]
    for reason, count in reasons.most_common():
        left -= count
        funnel.append([f"left after: {reason}", left])
    return {
        "problems": len(kept),
        "checked": sum(v.rung != NO_SOLUTION for v in verdicts),
        "without_solution": sum(v.rung == NO_SOLUTION for v in verdicts),
        "set_aside": dict(reasons.most_common()),
        "funnel": funnel,
    }


def _check_part(part: Sequence[Problem], at_once: int) -> list[Verdict]:
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(check, part))


def check(problem: Problem) -> Verdict:
    """Whether the tests of a code problem pass on one of its reference solutions.

    `correct` is None where nothing could be run; `rung` is the reason, one of this module's three.
    """
    from fathom.graders import code  # the sandbox is loaded for code alone
    from fathom.graders.code_tests import read_tests

    try:
        tests = read_tests(problem.tests or [], code.entry_point(problem), "tests")
    except (InputError, ValueError, RecursionError) as error:
        return Verdict(None, None, CHECKER, UNREADABLE, str(error)[:500])
    first = ""
    for solution in problem.meta.get("solutions", ()):
        try:
            report = code.check_program(solution, tests)
        except code.CheckerFailed as error:
            return Verdict(None, None, CHECKER, UNREADABLE, str(error)[:500])
        if report.passed:
            return Verdict(None, True, CHECKER, "", report.summary)
        first = first or report.summary
    if not first:
        return Verdict(None, None, CHECKER, NO_SOLUTION)
    return Verdict(None, False, CHECKER, FAILING, first)
