"""A small selection to export: maths, choice and code, with and without reasoning and a system turn. Not a test."""

from __future__ import annotations

from pathlib import Path

from fathom.curate.examples import make_example
from fathom.records import Problem, Rollout, Sampling, Verdict, write_jsonl

STDIN = [{"kind": "stdin", "input": "1 2\n", "expected": "3\n"}, {"kind": "stdin", "input": "4 5\n", "expected": "9\n"}]
CALLED = [{"kind": "functional", "args": [[3, 1], "a\nb"], "expected": [1, 3]}]
SYSTEM = "Think before you answer."

PROBLEMS = [
    Problem("m/1", "What is $\\frac{1}{4}+\\frac{1}{4}$?", "\\frac{1}{2}", source="numina", licence="Apache-2.0",
            difficulty=2.0, solve_rate=0.5, meta={"solve_rate": {"correct": 4, "chains": 8}}),
    Problem("m/2", "Was ist 3 · 4? ✓", "12", source="numina", licence="Apache-2.0", difficulty=1.0),
    Problem("c/1", "Which is prime?", "B", "choice", source="puzzles", options=["4", "5"]),
    Problem("p/1", "Print the sum of two numbers.", None, "code", source="taco", licence="MIT", tests=STDIN),
]  # fmt: skip
"""One of each kind that every format has a place for."""

TEXTS = {
    "m/1": "<think>\nA quarter and a quarter.\n</think>\n\nA half: \\boxed{\\frac{1}{2}}",
    "m/2": "drei mal vier\n</think>\n\n\\boxed{12}",
    "c/1": "\\boxed{B}",
    "p/1": "<think>\nadd\n</think>\n\n```python\nprint(sum(map(int, input().split())))\n```",
}


def write_selection(folder: Path, problems: list[Problem] = PROBLEMS, system: str | None = None) -> Path:
    """The artifact that a selection of these problems would write."""
    folder.mkdir(parents=True)
    rows = []
    for problem in problems:
        verdict = Verdict(problem.gold, True, f"{problem.kind}/1", "exact")
        chain = Rollout(problem.id, 0, TEXTS[problem.id], 9, "stop", "qwq", 0, Sampling(0.0), verdict, {"usd": 0.001})
        rows.append(make_example(problem, chain, system=system))
    write_jsonl(folder / "problems.jsonl", problems)
    write_jsonl(folder / "examples.jsonl", rows)
    return folder
