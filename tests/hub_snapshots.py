"""Small snapshots of the public corpora, in each repository's own file layout and with its own columns."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

OPENR1 = {
    "problem": "Compute $1+1$.", "solution": "2", "answer": "2", "problem_type": "Algebra",
    "question_type": "math-word-problem", "source": "olympiads", "uuid": "f1e2",
    "is_reasoning_complete": [True, False], "generations": ["<think>\neasy\n</think>\n\n$\\boxed{2}$", "<think>\nwell"],
    "correctness_math_verify": [True, False], "correctness_llama": None, "finish_reasons": ["stop", "length"],
    "correctness_count": 1, "messages": [{"content": "Compute $1+1$.", "role": "user"}],
}  # fmt: skip
NUMINA = {
    "problem": "Find $x$.", "solution": "x=3", "answer": "3", "problem_type": "Algebra",
    "question_type": "math-word-problem", "problem_is_valid": "Yes", "solution_is_valid": "Yes",
    "source": "aops_forum", "synthetic": False,
}  # fmt: skip
NUMINA_COT = {
    "source": "amc_aime", "problem": "Which is it?", "solution": r"Not \boxed{4}, no: \[\boxed{\textbf{(B)}\ 12}\]",
    "messages": [{"content": "Which is it?", "role": "user"}, {"content": "...", "role": "assistant"}],
}  # fmt: skip
APPS_STDIN = {
    "id": 0, "question": "Print the sum of two numbers.", "difficulty": "interview", "url": "https://example.org/0",
    "starter_code": "", "solutions": json.dumps(["a, b = map(int, input().split())\nprint(a + b)", "import nothing_there"]),
    "input_output": json.dumps({"inputs": ["1 2\n", ["3 4"]], "outputs": ["3\n", ["7"]]}),
}  # fmt: skip
APPS_CALL = {
    "id": 1, "question": "Double a number.", "difficulty": "introductory", "url": "https://example.org/1",
    "starter_code": "class Solution:\n    def double(self, x: int) -> int:\n        ",
    "solutions": json.dumps(["class Solution:\n    def double(self, x):\n        return 2 * x"]),
    "input_output": json.dumps({"fn_name": "double", "inputs": [[2], [3]], "outputs": [[4], 6]}),
}  # fmt: skip
TACO = {
    **{key: APPS_STDIN[key] for key in ("question", "solutions", "input_output", "url")}, "starter_code": "",
    "difficulty": "MEDIUM", "raw_tags": "[]", "name": None, "source": "codeforces", "tags": "[]", "skill_types": "[]",
    "Expected Auxiliary Space": None, "time_limit": "2.0 seconds", "date": None, "picture_num": None,
    "memory_limit": None, "Expected Time Complexity": None,
}  # fmt: skip
STILL2 = {
    "question": "Which gas do plants take in?\nA. O2\nB. CO2", "domain": "biology",
    "combined_text": "<|begin_of_thought|>\n\nNot oxygen.\n\n<|end_of_thought|>\n\n"
    "<|begin_of_solution|>\n\nIt is \\boxed{B}.\n\n<|end_of_solution|>",
}  # fmt: skip
GSM8K = {"question": "Tom has 3 apples and buys 1,000. How many?", "answer": "3+1000=<<3+1000=1003>>1003\n#### 1,003"}
MATH = {"problem": "What is $\\frac24$?", "level": "Level 1", "type": "Algebra", "solution": r"So $\boxed{\frac12}$."}

MATH_SUBSETS = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra", "precalculus",
)  # fmt: skip


def parquet(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def jsonl(path: Path, rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def in_data(path: Path, *shards: list[dict], config: str = "default") -> str:
    """`data/train-*.parquet`, as OpenR1, NuminaMath and STILL-2 have it."""
    for number, rows in enumerate(shards):
        parquet(path / "data" / f"train-{number:05d}-of-{len(shards):05d}.parquet", rows)
    return _card(path, {config: "data"})


def in_subsets(path: Path, rows: dict[str, list[dict]]) -> str:
    """`<subset>/train-*.parquet`, as GSM8K and MATH have it."""
    for subset, held in rows.items():
        parquet(path / subset / "train-00000-of-00001.parquet", held)
    return _card(path, {subset: subset for subset in rows})


def apps(path: Path, rows: list, split: str = "test") -> str:
    """`train.jsonl`, `test.jsonl` and a loading script that `datasets` refuses to run."""
    jsonl(path / f"{split}.jsonl", rows)
    (path / f"{path.name}.py").write_text("raise SystemExit('a loading script must not run')\n")
    return str(path)


def taco(path: Path, rows: list[dict], split: str = "train") -> str:
    """`ALL/<split>-*.parquet` and a loading script."""
    parquet(path / "ALL" / f"{split}-00000-of-00001.parquet", rows)
    (path / f"{path.name}.py").write_text("raise SystemExit('a loading script must not run')\n")
    return str(path)


def _card(path: Path, folders: dict[str, str]) -> str:
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {folder}/train-*\n"
        for name, folder in folders.items()
    )
    (path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return str(path)
