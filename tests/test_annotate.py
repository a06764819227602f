"""Annotation: validation, re-asking, setting aside, resuming."""

import json

import pytest
from pydantic import ValidationError

import fathom.annotate.scale
from fathom.annotate.scale import AnnotateConfig, read_scale, run_annotate
from fathom.engines import Completion
from fathom.errors import InputError
from fathom.ledger import Meter
from fathom.records import Problem, read_jsonl, write_jsonl

SCRIPTED = {"kind": "scripted", "script": "generated-difficulty"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Difficulty: 7", 7),
        ("It takes 3 steps.\nDifficulty: 7", 7),
        ("<think>maybe 9</think>\nDifficulty: 4", 4),
        ("\\boxed{10}", 10),
        ("Difficulty: 7.", 7),
        ("Difficulty: 7/10", 7),
        ("I'd say 6 out of 10", 6),
        ("10/10", 10),
        ("Difficulty: 11", None),
        ("Difficulty: 0", None),
        ("Difficulty: -3", None),
        ("Difficulty: 7.5", None),
        ("hard to say", None),
        ("", None),
        ("9" * 5000, None),
    ],
)
def test_read_scale(text, expected):
    assert read_scale(text, 1, 10) == expected


class Moody:
    """Answers from a table key -> answers by attempt; None is not answered at all."""

    name, device = "moody", "cpu"

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def generate(self, requests, sampling):
        for r in requests:
            self.asked.append((r.key, r.first))
            yield Completion(r.key, r.first, self.answers[r.key][r.first], 2, "stop", 20)

    def close(self):
        pass


def annotate(tmp_path, monkeypatch, engine, problems, **config):
    monkeypatch.setattr(fathom.annotate.scale, "open_engine", lambda config, model, meter: engine)
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    write_jsonl(tmp_path / "problems.jsonl", problems)
    config = AnnotateConfig(problems="p", engine=SCRIPTED, **config)
    metrics = run_annotate({"problems": tmp_path}, config, out, Meter.null(tmp_path / "scratch"))
    removed = [json.loads(line) for line in (out / "removed.jsonl").read_text().splitlines()]
    return metrics, list(read_jsonl(out / "problems.jsonl", Problem)), removed


def test_an_invalid_answer_is_asked_again_twice_and_then_set_aside(tmp_path, monkeypatch):
    problems = [Problem(k, "?", "1") for k in "abc"]
    engine = Moody({"a": ["4"], "b": ["?", "42", "Difficulty: 6"], "c": ["no", "no", "no idea"]})
    metrics, kept, removed = annotate(tmp_path, monkeypatch, engine, problems)
    assert [(p.id, p.difficulty) for p in kept] == [("a", 4.0), ("b", 6.0)]
    assert removed == [
        {"id": "c", "reason": "no whole number from 1 to 10 in 3 answers", "detail": "the last was 'no idea'"}
    ]
    assert engine.asked == [("a", 0), ("b", 0), ("c", 0), ("b", 1), ("c", 1), ("b", 2), ("c", 2)]
    assert metrics["funnel"] == [["problems", 3], ["with a valid difficulty", 2]]


def test_known_values_are_kept_and_another_field_goes_to_meta(tmp_path, monkeypatch):
    problems = [Problem("a", "?", "1", difficulty=3.0), Problem("b", "?", "1")]
    engine = Moody({"a": ["9"], "b": ["5"]})
    _, kept, _ = annotate(tmp_path, monkeypatch, engine, problems, keep_known=True)
    assert [p.difficulty for p in kept] == [3.0, 5.0] and engine.asked == [("b", 0)]
    _, kept, _ = annotate(tmp_path, monkeypatch, Moody({"a": ["9"], "b": ["5"]}), problems, field="length")
    assert [(p.difficulty, p.meta["length"]) for p in kept] == [(3.0, 9), (None, 5)]


def test_what_could_not_be_used_is_told_before_anything_is_asked(tmp_path, monkeypatch):
    engine = Moody({"a": ["9"], "b": ["5"]})
    problems = [Problem("a", "?", "1", meta={"level": "Level 5"}), Problem("b", "?", "1")]
    with pytest.raises(InputError, match="problem a: level is 'Level 5', which keep_known can't keep"):
        annotate(tmp_path, monkeypatch, engine, problems, field="level", keep_known=True)
    assert engine.asked == []
    with pytest.raises(ValidationError, match=r"\[10, 1\] must be two numbers, the lower first"):
        annotate(tmp_path, monkeypatch, engine, problems, scale=(10, 1))


def test_a_stopped_annotation_continues(tmp_path, monkeypatch):
    class Dying(Moody):
        def generate(self, requests, sampling):
            if len(self.asked) == 2:
                raise ConnectionError("gone")
            return super().generate(requests, sampling)

    problems = [Problem(k, "?", "1") for k in "abcd"]
    answers = {k: ["5"] for k in "abcd"}
    with pytest.raises(ConnectionError):
        annotate(tmp_path, monkeypatch, Dying(answers), problems, chunk=2)
    again = Moody(answers)
    _, kept, _ = annotate(tmp_path, monkeypatch, again, problems, chunk=2)
    assert [key for key, _ in again.asked] == ["c", "d"] and [p.difficulty for p in kept] == [5.0] * 4


def test_nothing_valid_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="annotate: none of the 1 problems got a valid difficulty"):
        annotate(tmp_path, monkeypatch, Moody({"a": ["x", "y", "z"]}), [Problem("a", "?", "1")])
