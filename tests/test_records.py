"""Rows that are JSON and no records: one line that names the row and the key."""

from __future__ import annotations

import pytest

from fathom.errors import InputError
from fathom.records import Problem, read_jsonl

WRONG = {
    '{"id": "a", "question": "half \\ud83d", "gold": null}': "question: half of a surrogate pair is no text",
    '{"id": "a", "question": "?", "gold": null, "meta": {"from": ["x", {"\\udc00": 1}]}}': "half of a surrogate pair",
    '{"id": "a", "question": "?", "gold": null, "difficulty": NaN}': "difficulty: expected a finite number, got nan",
    '{"id": "a", "question": "?", "gold": null, "difficulty": 1e999}': "difficulty: expected a finite number, got inf",
    '{"id": "a", "question": "?", "gold": null, "solve_rate": %s}'
    % ("9" * 400): "solve_rate: expected a finite number",
}


@pytest.mark.parametrize(("row", "told"), WRONG.items())
def test_a_wrong_row_is_one_line(tmp_path, row, told):
    path = tmp_path / "problems.jsonl"
    path.write_text(f"\n{row}\n")
    with pytest.raises(InputError) as caught:
        list(read_jsonl(path, Problem))
    message = str(caught.value)
    assert message.startswith(f"{path}:2: ") and told in message
    assert message.encode().count(b"\n") == 0


def test_whole_pairs_and_whole_numbers_are_read(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text('{"id": "a", "question": "\\ud83d\\ude00", "gold": null, "difficulty": 3}\n')
    (problem,) = read_jsonl(path, Problem)
    assert problem.question == "\U0001f600"
    assert problem.difficulty == 3.0 and isinstance(problem.difficulty, float)
