"""Training rows and problems in the shapes that other trainers read.

- messages: `messages`, a list of role and content (TRL's SFTTrainer, verl's MultiTurnSFTDataset);
- sharegpt: `conversations`, and the entry of dataset_info.json (LLaMA-Factory);
- verl: `data_source`, `prompt`, `ability`, `reward_model`, `extra_info` (its RLHFDataset);
- trl: `prompt`, `answer`, `solution` (TRL's GRPOTrainer and its accuracy_reward).

Pure functions from a record to a plain row. The reasoning stands in the assistant's content as
`<think>...</think>`; chat templates are theirs to apply. Files are `fathom/curate/ops/export.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from fathom.graders.choice import gold_letter
from fathom.graders.code import entry_point
from fathom.graders.code_tests import Test, read_tests
from fathom.prompts import Prompt
from fathom.prompts.ask import ask
from fathom.records import Example, Message, Problem

SHAREGPT_ROLES = {"system": "system", "user": "human", "assistant": "gpt"}

VERL_REWARDS = {
    "math": "DigitalLearningGmbH/MATH-lighteval",
    "choice": "DigitalLearningGmbH/MATH-lighteval",
    "code": "codecontests",
}
"""The `data_source` by which verl 0.9 picks a reward: equality of the last box, and programs run on tests."""


class NotExportable(Exception):
    """Why a problem has no place in a format."""


def plain_text(message: Message) -> str:
    """A turn as one text, the reasoning in its tags before the content, both verbatim."""
    return message.content if message.reasoning is None else f"<think>{message.reasoning}</think>{message.content}"


def messages_row(example: Example) -> dict[str, Any]:
    """A row of messages.parquet; what lineage does not know is null."""
    known = example.lineage
    return {
        "id": example.id,
        "problem_id": example.problem_id,
        "messages": _turns(example.messages),
        "source": known.get("source"),
        "licence": known.get("licence"),
        "difficulty": example.difficulty,
        "solve_rate": known.get("solve_rate"),
    }


def sharegpt_row(example: Example) -> dict[str, Any]:
    """A row of sharegpt.json."""
    turns = [{"from": SHAREGPT_ROLES[m.role], "value": plain_text(m)} for m in example.messages]
    return {"id": example.id, "conversations": turns}


def dataset_info(name: str) -> dict[str, Any]:
    """LLaMA-Factory's dataset_info.json for sharegpt.json, under the name that its `dataset:` uses."""
    tags = {f"{role}_tag": tag for role, tag in SHAREGPT_ROLES.items()}
    entry = {
        "file_name": "sharegpt.json",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations"},
        "tags": {"role_tag": "from", "content_tag": "value", **tags},
    }
    return {name: entry}


def lineage_row(example: Example) -> dict[str, Any]:
    """A row of lineage.jsonl: everything that is known of a training row but its text."""
    about = {"id": example.id, "problem_id": example.problem_id, "difficulty": example.difficulty}
    return {name: value for name, value in about.items() if value is not None} | example.lineage


def verl_row(
    problem: Problem, index: int, data_source: Mapping[str, str], prompt: Prompt | None, system: str | None
) -> dict[str, Any]:
    """A row of verl.parquet. data_source: by problem kind, in place of VERL_REWARDS.

    Raises NotExportable where there is nothing that verl could reward by.
    """
    return {
        "data_source": data_source.get(problem.kind, VERL_REWARDS[problem.kind]),
        "prompt": _turns(ask(problem, prompt, system)),
        "ability": problem.kind,
        "reward_model": {"style": "rule", "ground_truth": ground_truth(problem)},
        "extra_info": {"split": "train", "index": index, "id": problem.id, **_about(problem)},
    }


def trl_row(problem: Problem, prompt: Prompt | None, system: str | None) -> dict[str, Any]:
    """A row of trl.parquet; `solution` is the answer in a box, as TRL's accuracy_reward reads it (null for code).

    Raises NotExportable where there is no answer.
    """
    answer = ground_truth(problem)
    return {
        "prompt": _turns(ask(problem, prompt, system)),
        "answer": answer,
        "solution": None if problem.kind == "code" else f"\\boxed{{{answer}}}",
        "kind": problem.kind,
        "id": problem.id,
        **_about(problem),
    }


def ground_truth(problem: Problem) -> str:
    """The gold answer, of a choice its letter; for code the tests as APPS and verl write them, `{"inputs", "outputs", "fn_name"}` in JSON.

    Raises NotExportable without a gold answer, and for tests that this form has no place for.
    """
    if problem.kind != "code":
        gold = gold_letter(problem.gold, problem.options or []) if problem.kind == "choice" else problem.gold
        if gold is None:
            raise NotExportable("no gold answer")
        return gold
    tests = read_tests(problem.tests or [], entry_point(problem), f"problem {problem.id}: tests")
    kinds = {test.kind for test in tests}
    if len(kinds) > 1 or "asserts" in kinds:
        raise NotExportable(f"tests of kind {' and '.join(sorted(kinds))} have no inputs and outputs in common")
    written = {"inputs": [_test_input(t) for t in tests], "outputs": [_test_output(t) for t in tests]}
    if kinds == {"functional"}:
        entries = {test.entry for test in tests}
        if len(entries) > 1 or None in entries:
            raise NotExportable("the function under test is not named")
        written["fn_name"] = entries.pop()
    return json.dumps(written, ensure_ascii=False)


def _test_input(test: Test) -> str:
    """Standard input, or one JSON value per line for each argument."""
    return test.input if test.kind == "stdin" else "\n".join(json.dumps(arg, ensure_ascii=False) for arg in test.args)


def _test_output(test: Test) -> str:
    return str(test.accepted[0]) if test.kind == "stdin" else json.dumps(test.accepted[0], ensure_ascii=False)


def _turns(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": plain_text(m)} for m in messages]


def _about(problem: Problem) -> dict[str, Any]:
    return {
        "source": problem.source or None,
        "licence": problem.licence or None,
        "difficulty": problem.difficulty,
        "solve_rate": problem.solve_rate,
    }
