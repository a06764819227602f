"""Calls through the Batch API: joined by id, priced as a batch, sent once whatever is killed when."""

from __future__ import annotations

import random

import pytest
from batch_server import answered, batching, errored, expired
from http_server import CACHED_TOKENS, COMPLETION_TOKENS, PROMPT_TOKENS
from paid_stages import PRICES, calls_of

from fathom.engines import HttpConfig, Request, batch, open_engine, pace
from fathom.engines.wire import Client
from fathom.errors import BudgetStop, InputError, WorkError
from fathom.ledger import Ledger, Meter
from fathom.prices import Prices
from fathom.records import Message, Sampling, Usage

USED = Usage(PROMPT_TOKENS, COMPLETION_TOKENS, CACHED_TOKENS)
PAID = PRICES.tokens_usd("m", USED, batch=True)
SAMPLING = Sampling(0.6, 0.95, 100, seed=3)
KEYS = [f"p{i}" for i in range(7)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(pace, "FIRST_WAIT", 0.001)


def meter_of(folder, **settings):
    ledger = Ledger(folder / "ledger.sqlite")
    ledger.recover({})
    attempt = ledger.begin("rated", "k", "cpu", 1, PRICES)
    return Meter(folder, 0, **{"stage": "rated", "ledger": ledger, "attempt": attempt, "prices": PRICES, **settings})


def ask(server, meter, keys=KEYS, **settings):
    config = HttpConfig(model="m", base_url=server.url, batch=True, **{"poll_seconds": 0.001, "tries": 4, **settings})
    engine = open_engine(config, meter=meter)
    try:
        requests = [Request(key, (Message("user", f"question {key}"),)) for key in keys]
        return {c.key: c.text for c in engine.generate(requests, SAMPLING)}
    finally:
        engine.close()


EXPECTED = {key: f"question {key}" for key in KEYS}


def billed(folder):
    """(settled calls, dollars for them, dollars of unknown fate)."""
    rows = [row for row in calls_of(folder) if row["state"] == "settled"]
    return len(rows), sum(row["cost_usd"] for row in rows), sum(row["unknown_usd"] for row in calls_of(folder))


def test_a_batch_is_joined_by_id_and_priced_as_a_batch(tmp_path):
    def shuffled(rows):
        lines = [answered(row) for row in rows]
        strangers = [{**lines[0], "custom_id": "stranger"}, {"custom_id": None}, answered(rows[0], "a second answer")]
        random.Random(1).shuffle(lines)
        return "completed", lines + strangers, []

    with batching(shuffled) as server:
        assert ask(server, meter_of(tmp_path)) == EXPECTED
        assert ask(server, meter_of(tmp_path)) == EXPECTED  # from the ledger
    (sent,) = server.state.batches
    assert [row["method"] + row["url"] for row in sent.rows] == ["POST/v1/chat/completions"] * 7
    assert billed(tmp_path) == (7, pytest.approx(7 * PAID), 0)
    assert PRICES.tokens_usd("m", USED) > 1.9 * PAID


@pytest.mark.parametrize(("limit", "value", "sizes"), [("MOST_ROWS", 3, [3, 3, 1]), ("MOST_BYTES", 750, [2, 2, 2, 1])])
def test_batches_are_cut_where_they_get_too_large(tmp_path, monkeypatch, limit, value, sizes):
    monkeypatch.setattr(batch, limit, value)
    with batching() as server:
        assert ask(server, meter_of(tmp_path)) == EXPECTED
    assert [len(b.rows) for b in server.state.batches] == sizes
    if limit == "MOST_BYTES":
        assert max(len(text) for name, text in server.state.files.items() if name.startswith("file")) <= value


def test_what_stays_unanswered_goes_into_the_next_batch(tmp_path):
    def half(rows):
        return "expired", [answered(row) for row in rows[:3]], [expired(row) for row in rows[3:5]]

    def busy(rows):
        return "completed", [answered(rows[0])], [errored(row, 500) for row in rows[1:]]

    def failed(rows):
        return "failed", [], []

    with batching(half, failed, busy) as server:
        assert ask(server, meter_of(tmp_path)) == EXPECTED
    assert [len(b.rows) for b in server.state.batches] == [7, 4, 4, 3]
    assert billed(tmp_path) == (7, pytest.approx(7 * PAID), 0)


def test_lines_that_are_lost_or_no_answer_count_at_their_worst_and_are_sent_again(tmp_path):
    def lossy(rows):
        lines = [answered(row) for row in rows[2:]]
        return "completed", [{**answered(rows[0]), "response": {"status_code": 200, "body": {}}}, *lines], []

    with batching(lossy) as server:
        assert ask(server, meter_of(tmp_path)) == EXPECTED
    assert [len(b.rows) for b in server.state.batches] == [7, 2]
    count, paid, unknown = billed(tmp_path)
    assert (count, paid) == (7, pytest.approx(7 * PAID)) and unknown > 0
    assert sorted(row["maybe_double"] for row in calls_of(tmp_path)) == [0] * 5 + [1] * 2


def test_a_refused_line_ends_the_stage_when_the_others_are_settled(tmp_path):
    def refusing(rows):
        return "completed", [answered(row) for row in rows[1:]], [errored(rows[0], 400, "too long")]

    with (
        batching(refusing) as server,
        pytest.raises(InputError, match=r"m: the batch refuses 'p0' \(status 400\).*too long"),
    ):
        ask(server, meter_of(tmp_path))
    assert billed(tmp_path) == (6, pytest.approx(6 * PAID), 0)


def test_batches_that_keep_failing_end_in_one_line(tmp_path):
    def failed(rows):
        return "failed", [], []

    with (
        batching(failed, failed) as server,
        pytest.raises(
            WorkError, match=r"7 calls, of 'p0' and others, got no answer in 2 batches, the last: the batch is failed"
        ),
    ):
        ask(server, meter_of(tmp_path), tries=2)
    assert billed(tmp_path) == (0, 0, 0)
    assert {row["reserved_usd"] for row in calls_of(tmp_path)} == {0}


def test_trouble_with_the_files_and_batches_themselves(tmp_path):
    with batching() as server:
        server.state.trouble = [500, 503, 429]
        assert ask(server, meter_of(tmp_path)) == EXPECTED
    assert len(server.state.batches) == 1
    with batching() as server, pytest.raises(WorkError, match="m: batches: 4 tries, the last: status 500: trouble"):
        server.state.trouble = [500] * 4
        ask(server, meter_of(tmp_path), keys=["new"])
    with batching() as server, pytest.raises(InputError, match=r"refuses the call \(status 404\): trouble"):
        server.state.trouble = [404]
        ask(server, meter_of(tmp_path), keys=["newer"])
    assert {row["reserved_usd"] for row in calls_of(tmp_path) if row["state"] == "failed"} == {0}


def test_a_batch_that_does_not_fit_the_budget_is_not_sent(tmp_path):
    with batching() as server, pytest.raises(BudgetStop, match="the next call to m could cost"):
        ask(server, meter_of(tmp_path, budget_usd=0.002))
    assert (server.state.batches, server.state.files, calls_of(tmp_path)) == ([], {}, [])


def test_a_model_without_a_batch_price_is_not_asked(tmp_path):
    plain = PRICES.models["m"].model_copy(update={"batch_input": None})
    with batching() as server, pytest.raises(InputError, match="rated: no batch price is known for 'm'"):
        ask(server, meter_of(tmp_path, prices=Prices(models={"m": plain})))
    assert server.state.batches == []


class Killed(BaseException):
    """What kill -9 is to the ledger: nothing runs after it."""


def dying(monkeypatch, exchange, after):
    """The process dies at its n-th exchange with the server, before it or after."""
    seen = [0]

    def wrap(name):
        plain = getattr(Client, name)

        def call(*args, **kwargs):
            seen[0] += 1
            if seen[0] == exchange and not after:
                raise Killed
            answer = plain(*args, **kwargs)
            if seen[0] == exchange:
                raise Killed
            return answer

        monkeypatch.setattr(Client, name, call)

    wrap("json")
    wrap("download")


@pytest.mark.parametrize("after", [False, True])
def test_killed_around_any_exchange_no_call_is_in_two_batches(tmp_path, after):
    """Two batches: 2 uploads, 2 creations, 4 looks and 2 downloads are 10 moments, each before and after."""

    def run(folder, exchange):
        folder.mkdir()
        with batching() as server, pytest.MonkeyPatch.context() as patch:
            patch.setattr(batch, "MOST_ROWS", 4)
            with pytest.MonkeyPatch.context() as doom:
                dying(doom, exchange, after)
                try:
                    done = ask(server, meter_of(folder))
                except Killed:
                    done = None
            survived = done is not None
            assert (done or ask(server, meter_of(folder))) == EXPECTED
        sent = [row["custom_id"] for b in server.state.batches for row in b.rows]
        assert len(sent) == len(set(sent)) == 7
        assert billed(folder) == (7, pytest.approx(7 * PAID), 0)
        return survived

    survived = [run(tmp_path / str(exchange), exchange) for exchange in range(1, 12)]
    assert survived == [False] * 10 + [True]
