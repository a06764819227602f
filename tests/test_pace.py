"""Rates, the window of calls at once, and waits that a server asks for."""

from __future__ import annotations

import threading
import time

import pytest
from http_server import ok, serving, status

from fathom.engines import HttpConfig, Request, open_engine, pace
from fathom.engines.pace import BURST_SECONDS, Bucket, Pace, pause
from fathom.records import Message, Sampling

NEVER = threading.Event()


def test_waits_between_tries_are_random_and_bounded():
    third = [pause(3) for _ in range(500)]
    assert 0 <= min(third) < 0.2 and 3.8 < max(third) <= 4
    assert max(pause(40) for _ in range(500)) <= 60
    assert all(7 <= pause(1, 7.0) <= 8 for _ in range(100))


@pytest.mark.parametrize("amount", [1, 7, 500])
def test_a_bucket_keeps_its_rate_whatever_the_size_of_calls(amount):
    bucket, now, taken = Bucket(6000, 0.0), 0.0, 0  # 100 a second
    while now < 60:
        now += bucket.wait(now)
        bucket.take(amount)
        taken += amount
    assert taken == pytest.approx(6000, rel=0.02, abs=amount + 100 * BURST_SECONDS)


def test_a_pause_or_a_jump_of_the_clock_lets_no_burst_through():
    bucket = Bucket(60, 0.0)
    bucket.take(1)
    assert bucket.wait(0.0) == pytest.approx(1.0)
    now, left = 3600.0, 0
    while bucket.wait(now) == 0:
        bucket.take(1)
        left += 1
    assert left == 1 + BURST_SECONDS
    assert bucket.wait(0.0) >= 0, "a clock that goes back makes no negative wait"


def test_what_a_call_did_not_need_is_there_for_others():
    bucket = Bucket(600, 0.0)  # 10 a second
    bucket.take(100)
    assert bucket.wait(0.0) == pytest.approx(10)
    bucket.take(-90)
    assert bucket.wait(0.0) == pytest.approx(1)
    assert Bucket(None, 0.0).wait(0.0) == 0


def test_too_many_halves_the_window_once_and_successes_widen_it():
    now = [0.0]
    gate = Pace(16, clock=lambda: now[0])
    flight = [gate.enter(0, NEVER) for _ in range(16)]
    now[0] = 1.0
    for left_at in flight:
        gate.leave(left_at, limited=True)  # all of one flight: one cut
    assert gate.window == 8
    now[0] = 2.0
    gate.leave(gate.enter(0, NEVER), limited=True)
    assert gate.window == 4
    for _ in range(5):
        gate.leave(gate.enter(0, NEVER))
    assert gate.window == 5
    for step in range(8):
        now[0] = 3.0 + step
        gate.leave(gate.enter(0, NEVER), limited=True)
    assert gate.window == 1
    for _ in range(400):
        gate.leave(gate.enter(0, NEVER))
    assert gate.window == 16


def test_a_full_window_waits_and_a_stop_ends_the_wait():
    gate, stop, entered = Pace(1), threading.Event(), []
    left_at = gate.enter(0, NEVER)
    other = threading.Thread(target=lambda: entered.append(gate.enter(0, stop)))
    other.start()
    time.sleep(0.05)
    assert entered == []
    gate.leave(left_at)
    other.join(1)
    assert entered[0] >= left_at
    stop.set()
    assert gate.enter(0, stop) is None


def ask(server, count, **settings):
    engine = open_engine(HttpConfig(model="m", base_url=server.url, **settings))
    try:
        requests = [Request(f"p{i}", (Message("user", "?"),)) for i in range(count)]
        return list(engine.generate(requests, Sampling(max_tokens=90)))
    finally:
        engine.close()


def timed(times, answer):
    """The answer, after noting when the call came."""

    def note(handler, body):
        times.append(time.monotonic())
        answer(handler, body)

    return note


def test_nobody_calls_before_the_server_wants(monkeypatch):
    """Of 8 calls at once one is told to wait: those that have not left wait too."""
    monkeypatch.setattr(pace, "FIRST_WAIT", 0.01)
    times: list[float] = []
    script = [timed(times, status(429, Retry_After="0.4"))] + [timed(times, ok(seconds=0.05)) for _ in range(7)]
    with serving(*script, rest=timed(times, ok())) as server:
        assert len(ask(server, 40, concurrency=8)) == 40
    told = times[0]
    early = [t for t in times[1:] if t - told < 0.4]
    assert len(early) <= 7 and len(times) == 41


@pytest.mark.parametrize("limit", [{"requests_per_minute": 3000}, {"tokens_per_minute": 3000 * 42}])
def test_the_rate_at_the_server(limit):
    """50 calls a second, or what so many of 42 tokens come to (the worst case is given back when less was used)."""
    times: list[float] = []
    with serving(rest=timed(times, ok())) as server:
        ask(server, 40, concurrency=64, **limit)
    assert 0.75 <= max(times) - min(times) < 4
