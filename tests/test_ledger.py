"""The bill: nothing lost, nothing twice, nothing free that merely has no price."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing

import pytest

from fathom.calls import PaidCall
from fathom.errors import BudgetStop, InputError
from fathom.ledger import HEARTBEAT, Ledger, Meter
from fathom.prices import Prices, load_prices
from fathom.records import Usage

PRICES = Prices.model_validate(
    {
        "devices": {"cpu": {"usd_per_hour": 3.6, "as_of": "2026-01-01", "source": "test"}},  # $0.001 per second
        "models": {
            "paid": {
                "input": 1.0,
                "cached": 0.5,
                "output": 10.0,
                "batch_input": 0.4,
                "batch_output": 5.0,
                "as_of": "2026-01-01",
                "source": "test",
            },
            "plain": {"input": 1.0, "output": 2.0, "as_of": "2026-01-01", "source": "test"},
        },
    }
)
CALL = PaidCall("call", "paid")


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    yield ledger
    ledger.close()


def meter(ledger, attempt, tmp_path, **changes):
    given = {"stage": "s", "ledger": ledger, "attempt": attempt, "usd_per_second": 0.001, "prices": PRICES}
    return Meter(tmp_path, 0, **{**given, **changes})


def test_time_is_billed_by_device_and_count(ledger):
    attempt = ledger.begin("s", "k", "cpu", 4, PRICES)
    ledger.end(attempt, "done", 100.0)
    (line,) = ledger.bill()
    assert (line.usd, line.wasted_usd, line.basis, line.state) == (pytest.approx(0.4), 0, "metered", "done")
    assert ledger.spent() == pytest.approx(0.4)


def test_failed_work_is_billed_and_shown_as_wasted(ledger):
    first = ledger.begin("s", "k", "cpu", 1, PRICES)
    ledger.save(first, 30.0)
    ledger.end(first, "failed", 50.0)
    second = ledger.begin("s", "k", "cpu", 1, PRICES)
    ledger.end(second, "done", 20.0)
    (line,) = ledger.bill()
    assert (line.attempts, line.seconds, line.wasted_seconds) == (2, 70.0, 20.0)
    assert (line.usd, line.wasted_usd) == (pytest.approx(0.07), pytest.approx(0.02))


def test_a_killed_attempt_is_billed_to_its_last_heartbeat_and_one_more(ledger):
    attempt = ledger.begin("s", "k", "cpu", 1, PRICES)
    ledger.save(attempt, 4.0)
    ledger.beat(attempt, 10.0)
    assert ledger.recover({}) == ["s"]
    (line,) = ledger.bill()
    assert (line.state, line.basis) == ("killed", "estimated")
    assert (line.seconds, line.wasted_seconds) == (10.0 + HEARTBEAT, 6.0 + HEARTBEAT)
    assert ledger.recover({}) == []


def test_an_attempt_whose_artifact_is_there_was_done(ledger):
    attempt = ledger.begin("s", "k", "cpu", 1, PRICES)
    ledger.beat(attempt, 9.0)
    assert ledger.recover({(attempt, "k"): 9.7}) == []
    (line,) = ledger.bill()
    assert (line.state, line.seconds, line.wasted_seconds) == ("done", 9.7, 0.0)


def test_a_late_heartbeat_never_shortens_the_bill(ledger):
    attempt = ledger.begin("s", "k", "cpu", 1, PRICES)
    ledger.beat(attempt, 9.0)
    ledger.beat(attempt, 3.0)
    ledger.end(attempt, "failed", 5.0)
    assert ledger.bill()[0].seconds == 9.0


def test_a_missing_price_is_unpriced_never_free(ledger, tmp_path):
    ledger.end(ledger.begin("s", "k", "quantum", 1, PRICES), "done", 100.0)
    api = ledger.begin("t", "k", "cpu", 1, PRICES)
    meter(ledger, api, tmp_path).usage("unheard-of", Usage(10, 10), "api")
    ledger.end(api, "done", 1.0)
    for line in ledger.bill():
        assert (line.usd, line.wasted_usd, line.basis) == (None, None, "unpriced")


def test_tokens_are_counted_and_those_not_saved_are_wasted(ledger, tmp_path):
    attempt = ledger.begin("s", "k", "cpu", 1, PRICES)
    gauge = meter(ledger, attempt, tmp_path)
    gauge.usage("paid", Usage(500_000, 50_000), "api")
    gauge.saved()
    gauge.usage("paid", Usage(500_000, 50_000), "api")
    gauge.usage("local", Usage(7, 5), "cpu")
    gauge.flush()
    ledger.end(attempt, "failed", 0.0)
    (line,) = ledger.bill()
    assert line.tokens == {"paid": Usage(1_000_000, 100_000), "local": Usage(7, 5)}
    assert line.usd == pytest.approx(2.0, abs=1e-3)
    assert line.wasted_usd == pytest.approx(1.0, abs=1e-3)


def test_cached_tokens_and_dated_names_have_their_price():
    assert PRICES.tokens_usd("paid", Usage(1_000_000, 0, 400_000)) == pytest.approx(0.8)
    assert PRICES.tokens_usd("paid-2025-01-31", Usage(0, 1_000_000)) == pytest.approx(10.0)
    assert PRICES.tokens_usd("paid-2024-11-20", Usage(0, 1_000_000)) == pytest.approx(10.0)
    assert PRICES.tokens_usd("paid-20241120", Usage(0, 1_000_000)) == pytest.approx(10.0)
    for other in ("paid-large", "paid-2026", "paid-20", "paid-2024-11"):
        assert PRICES.tokens_usd(other, Usage(1, 1)) is None


def test_a_batch_has_prices_of_its_own():
    used = Usage(1_000_000, 100_000, 400_000)
    assert PRICES.tokens_usd("paid", used, batch=True) == pytest.approx(0.6 * 0.4 + 0.4 * 0.4 + 0.5)
    cached = {"models": {"m": {**PRICES.models["paid"].model_dump(), "batch_cached": 0.1}}}
    assert Prices.model_validate(cached).tokens_usd("m", used, batch=True) == pytest.approx(0.6 * 0.4 + 0.4 * 0.1 + 0.5)
    assert PRICES.tokens_usd("plain", Usage(1, 1)) == pytest.approx(3e-6)
    assert PRICES.tokens_usd("plain", Usage(1, 1), batch=True) is None


def test_check_stops_before_a_chunk_that_would_not_fit(ledger, tmp_path):
    attempt = ledger.begin("s", "k", "cpu", 1, PRICES)
    began = time.monotonic()
    gauge = meter(ledger, attempt, tmp_path, began=began - 40, budget_usd=0.1)  # $0.04 on the clock
    gauge.check()
    gauge._began -= 35  # a chunk of $0.035: $0.075 now, another one fits not into $0.10
    with pytest.raises(BudgetStop, match=r"stopped by the budget of \$0\.1000: \$0\.0750 is spent"):
        gauge.check()


def test_check_counts_what_earlier_stages_cost(ledger, tmp_path):
    ledger.end(ledger.begin("r", "k", "cpu", 1, PRICES), "done", 99.0)
    attempt = ledger.begin("s", "k", "cpu", 1, PRICES)
    meter(ledger, attempt, tmp_path, budget_usd=0.2).check()
    with pytest.raises(BudgetStop):
        meter(ledger, attempt, tmp_path, budget_usd=0.05).check()


def test_a_paid_call_is_reserved_settled_and_never_paid_again(ledger, tmp_path):
    gauge = meter(ledger, ledger.begin("s", "k", "cpu", 1, PRICES), tmp_path, usd_per_second=0.0)
    assert gauge.reserve(CALL, Usage(0, 100_000)) is None
    assert ledger.calls.usd() == pytest.approx(1.0)
    gauge.settle(CALL, Usage(0, 20_000), "the answer")
    assert ledger.calls.usd() == pytest.approx(0.2)
    assert gauge.reserve(CALL, Usage(0, 100_000)) == "the answer"
    assert ledger.calls.usd() == pytest.approx(0.2)


def test_a_call_whose_fate_is_unknown_stays_on_the_bill(ledger, tmp_path):
    first = meter(ledger, ledger.begin("s", "k", "cpu", 1, PRICES), tmp_path)
    first.reserve(CALL, Usage(0, 100_000))  # then kill -9
    ledger.recover({})
    attempt = ledger.begin("s", "k", "cpu", 1, PRICES)
    second = meter(ledger, attempt, tmp_path)
    assert second.reserve(CALL, Usage(0, 100_000)) is None
    second.settle(CALL, Usage(0, 20_000), "the answer")
    assert ledger.calls.usd() == pytest.approx(1.0 + 0.2)


def test_a_released_call_costs_nothing_and_may_be_sent_again(ledger, tmp_path):
    gauge = meter(ledger, ledger.begin("s", "k", "cpu", 1, PRICES), tmp_path)
    gauge.reserve(CALL, Usage(0, 100_000))
    gauge.release(CALL, "429")
    assert ledger.calls.usd() == 0
    assert gauge.reserve(CALL, Usage(0, 100_000)) is None


def test_a_call_sent_again_in_the_dark_is_marked_and_one_that_failed_is_not(ledger, tmp_path):
    gauge = meter(ledger, ledger.begin("s", "k", "cpu", 1, PRICES), tmp_path)
    dark, failed = PaidCall("dark", "paid"), PaidCall("failed", "paid")
    for call in (dark, failed):
        gauge.reserve(call, Usage(0, 100_000))
    gauge.release(failed, "500")
    for call in (dark, failed):
        gauge.reserve(call, Usage(0, 100_000))
        gauge.settle(call, Usage(0, 20_000), "the answer")
    (line,) = ledger.bill()
    assert (line.maybe_double, line.wasted_usd) == (1, pytest.approx(1.0, abs=1e-3))


def test_calls_together_are_reserved_all_or_none(ledger, tmp_path):
    attempt = ledger.begin("s", "k", "cpu", 1, PRICES)
    gauge = meter(ledger, attempt, tmp_path, usd_per_second=0.0, budget_usd=2.5)
    calls = [PaidCall(f"c{n}", "paid", batch="b") for n in range(9)]
    with pytest.raises(BudgetStop), gauge.together():
        for call in calls:
            gauge.reserve(call, Usage(0, 100_000))  # $0.5 each in a batch
    assert (ledger.calls.usd(), gauge.batched()) == (0, {})
    with gauge.together():
        for call in calls[:5]:
            gauge.reserve(call, Usage(0, 100_000))
    assert gauge.batched() == dict.fromkeys([call.key for call in calls[:5]], "b")
    gauge.settle(calls[0], Usage(0, 100_000), "the answer")
    gauge.release(calls[1], "expired")
    assert gauge.batched() == dict.fromkeys([call.key for call in calls[2:5]], "b")
    assert ledger.calls.usd() == pytest.approx(2.0)


def test_a_ledger_of_an_older_run_is_read_and_goes_on(tmp_path):
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as db:
        db.execute(
            "create table calls (key text primary key, stage text not null, attempt integer not null, model text not null,"
            " state text not null, tries integer not null default 1, reserved_usd real not null,"
            " unknown_usd real not null default 0, cost_usd real not null default 0, prompt integer not null default 0,"
            " completion integer not null default 0, cached integer not null default 0, response text, error text,"
            " at text not null)"
        )
        db.execute(
            "insert into calls (key, stage, attempt, model, state, reserved_usd, response, at)"
            " values ('call', 's', 1, 'paid', 'settled', 0, 'an old answer', '2026-01-01')"
        )
        db.commit()
    with closing(Ledger(tmp_path / "ledger.sqlite")) as ledger:
        gauge = meter(ledger, ledger.begin("s", "k", "cpu", 1, PRICES), tmp_path)
        assert gauge.reserve(CALL, Usage(0, 1)) == gauge.stored(CALL) == "an old answer"
        assert gauge.reserve(PaidCall("new", "paid", "b"), Usage(0, 1)) is None
        assert gauge.batched() == {"new": "b"}


def test_calls_in_flight_never_exceed_the_budget(ledger, tmp_path):
    """64 threads want $0.10 each of a budget of $1: exactly the calls that fit leave."""
    attempt = ledger.begin("s", "k", "cpu", 1, PRICES)
    gauge = meter(ledger, attempt, tmp_path, usd_per_second=0.0, budget_usd=1.005)
    outcomes = []

    def call(number):
        try:
            gauge.reserve(PaidCall(f"call {number}", "paid"), Usage(0, 10_000))
            outcomes.append("sent")
        except BudgetStop:
            outcomes.append("refused")

    threads = [threading.Thread(target=call, args=(n,)) for n in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (outcomes.count("sent"), outcomes.count("refused")) == (10, 54)
    assert ledger.calls.usd() == pytest.approx(1.0)


def test_a_model_without_a_price_is_refused_before_it_is_paid(ledger, tmp_path):
    gauge = meter(ledger, ledger.begin("s", "k", "cpu", 1, PRICES), tmp_path)
    with pytest.raises(InputError, match="no price is known for 'unheard-of'"):
        gauge.reserve(PaidCall("call", "unheard-of"), Usage(1, 1))


def test_null_meter_records_nothing(tmp_path):
    gauge = Meter.null(tmp_path, seed=3)
    gauge.usage("m", Usage(1, 1), "api")
    gauge.saved()
    gauge.check()
    gauge.progress(1, 2)
    assert gauge.seed == 3
    assert list(tmp_path.iterdir()) == []


def test_not_a_ledger(tmp_path):
    (tmp_path / "x.sqlite").write_text("this is no database, however long it may be" * 100)
    with pytest.raises(InputError, match="not a ledger"):
        Ledger(tmp_path / "x.sqlite")


def test_shipped_prices_are_dated_and_sourced():
    prices = load_prices()
    assert prices.devices["h100"].usd_per_hour == 2.836
    assert prices.tokens_usd("o3-mini", Usage(1_000_000, 1_000_000)) == pytest.approx(5.5)
    for price in [*prices.devices.values(), *prices.models.values()]:
        assert price.source
        assert len(price.as_of) == len("2026-01-01")


def test_wrong_price_file_names_the_key(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text("devices:\n  h100:\n    usd_per_hour: -1\n    as_of: 2026-01-01\n    source: x\n")
    with pytest.raises(InputError, match=r"prices\.yaml:3: devices\.h100\.usd_per_hour"):
        load_prices(path)
