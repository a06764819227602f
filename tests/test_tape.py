"""Recorded answers: a stage runs again for nothing, without a key and without a network."""

from __future__ import annotations

import json

import pytest
from http_server import serving
from paid_stages import PRICES, PROBLEMS, Truth, calls_of, rows, run_stages

from fathom.config import validate
from fathom.engines import HttpConfig, Request, open_engine
from fathom.errors import InputError
from fathom.ledger import Ledger, Meter
from fathom.records import Message, Sampling

NOWHERE = "http://127.0.0.1:9/v1"
SAMPLING = Sampling(0.6, 0.95, 100, seed=3)


def ask(keys, sampling=SAMPLING, meter=None, **settings):
    engine = open_engine(HttpConfig(**{"model": "m", "base_url": NOWHERE, **settings}), meter=meter)
    try:
        found = engine.generate([Request(k, (Message("user", f"What is {k} + {k}?"),)) for k in keys], sampling)
        return {c.key: c for c in found}
    finally:
        engine.close()


@pytest.fixture
def tape(tmp_path):
    with serving(rest=Truth().answering()) as server:
        ask("123", base_url=server.url, record=str(tmp_path / "tape.jsonl"))
    return tmp_path / "tape.jsonl"


def test_three_stages_run_again_for_nothing(tmp_path, monkeypatch):
    first, again = tmp_path / "first", tmp_path / "again"
    first.mkdir(), again.mkdir()
    tape = str(tmp_path / "tape.jsonl")
    monkeypatch.setenv("PAID_KEY", "sk-secret")
    with serving(rest=Truth().answering()) as server:
        run_stages(first, server.url, record=tape, key_env="PAID_KEY")
    monkeypatch.delenv("PAID_KEY")
    run_stages(again, NOWHERE, replay=tape, key_env="PAID_KEY")
    assert rows(again) == rows(first)
    assert '"usd":' in rows(again)["rewritten"].decode()
    assert calls_of(again) == [] and len(calls_of(first)) > 200
    assert "sk-secret" not in (tmp_path / "tape.jsonl").read_text()
    assert {p.question for p in PROBLEMS} <= set(_questions(tmp_path / "tape.jsonl"))


def _questions(tape):
    for line in tape.read_text().splitlines():
        yield json.loads(line)["request"]["messages"][-1]["content"].partition("\n")[0]


def test_the_address_does_not_matter_and_everything_else_does(tape):
    assert {k: c.text for k, c in ask("321", replay=str(tape)).items()}.keys() == set("123")
    for change in (
        {"sampling": Sampling(0.7, 0.95, 100, seed=3)},
        {"sampling": Sampling(0.6, 0.95, 100, seed=4)},
        {"model": "n"},
    ):
        with pytest.raises(
            InputError, match=r"tape\.jsonl: no recorded answer for '1', chain 0, of [mn]: it was recorded with"
        ):
            ask("1", replay=str(tape), **change)


def test_a_missing_answer_is_one_line(tape):
    with pytest.raises(InputError, match="no recorded answer for '4', chain 0, of m") as caught:
        ask("124", replay=str(tape))
    assert "\n" not in str(caught.value)


def test_a_tape_goes_on_after_a_crash(tape, tmp_path):
    """The torn last line is cut off; what the ledger has and the tape lost is written again, unasked."""
    whole = tape.read_bytes()
    ledger = Ledger(tmp_path / "ledger.sqlite")
    meter = Meter(
        tmp_path, 0, stage="s", ledger=ledger, attempt=ledger.begin("s", "k", "cpu", 1, PRICES), prices=PRICES
    )
    truth = Truth()
    with serving(rest=truth.answering()) as server:
        ask("45", base_url=server.url, record=str(tape), meter=meter)
        tape.write_bytes(tape.read_bytes()[:-20])
        ask("456", base_url=server.url, record=str(tape), meter=meter)
    assert len(truth.arrived) == 3
    assert tape.read_bytes().startswith(whole) and len(tape.read_text().splitlines()) == 6
    assert ask("123456", replay=str(tape)).keys() == set("123456")


@pytest.mark.parametrize("text", ["no JSON\n", "[]\n", '{"call": 3, "answer": {}}\n', '{"call": "x"}\n'])
def test_no_tape(tape, text):
    with open(tape, "a") as stream:
        stream.write(text)
    for use in ("replay", "record"):
        with pytest.raises(InputError, match=r"tape\.jsonl:4: not a recorded answer"):
            ask("1", **{use: str(tape)})


@pytest.mark.parametrize("text", ['{"my": "results", "rows": [1, 2]}', "notes", '{"call": "x", "answer": {}}\nnotes'])
def test_a_file_that_is_no_tape_is_left_alone(tmp_path, text):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"mine\.json:\d: not a recorded answer"):
        ask("1", record=str(path))
    assert path.read_text() == text


def test_wrong_settings(tape, tmp_path):
    with pytest.raises(InputError, match="record and replay exclude each other"):
        validate(HttpConfig, {"model": "m", "base_url": NOWHERE, "record": "a", "replay": "b"})
    with pytest.raises(InputError, match=r"absent/tape\.jsonl: can't be opened \(No such file or directory\)"):
        ask("1", record=str(tmp_path / "absent" / "tape.jsonl"))
