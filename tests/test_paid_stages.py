"""Paid stages through crashes and faults: nothing asked or billed twice, and the same rows in the end."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from http_server import (
    CACHED_TOKENS,
    COMPLETION_TOKENS,
    PROMPT_TOKENS,
    Answer,
    Handler,
    completion,
    drop,
    raw,
    serving,
    status,
)
from paid_stages import PRICES, Truth, answer_text, calls_of, rows, run_stages

from fathom.engines import pace
from fathom.ledger import Ledger
from fathom.records import Usage

KILLS = 20
AT_ONCE = 4
PAID = PRICES.tokens_usd("m", Usage(PROMPT_TOKENS, COMPLETION_TOKENS, CACHED_TOKENS))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The rows of a run in which nothing goes wrong, and the calls that it took."""
    folder, truth = tmp_path_factory.mktemp("undisturbed"), Truth()
    with serving(rest=truth.answering()) as server:
        run_stages(folder, server.url)
    assert len(truth.arrived) == len(set(truth.arrived)) == len(truth.charged) > 200
    return rows(folder), set(truth.arrived)


def test_kill_minus_nine_at_twenty_random_moments(undisturbed, tmp_path):
    """Settled calls are never sent again; the others are sent again with the same Idempotency-Key, and marked."""
    luck, truth = random.Random(7), Truth()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    program = [sys.executable, str(Path(__file__).with_name("paid_stages.py"))]
    with (
        serving(rest=truth.answering(seconds=0.01)) as server,
        subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as parent,
    ):

        def start() -> int:
            parent.stdin.write(f"{tmp_path} {server.url}\n")
            parent.stdin.flush()
            return int(parent.stdout.readline())

        settled_at_kills = []
        for _ in range(KILLS):
            child = start()
            goal, patience = len(truth.arrived) + luck.randint(0, 18), time.monotonic() + 20
            while len(truth.arrived) < goal and time.monotonic() < patience:
                time.sleep(0.001)
            time.sleep(luck.uniform(0, 0.03))
            os.kill(child, signal.SIGKILL)
            assert int(parent.stdout.readline()) == signal.SIGKILL, "it was through before it was killed"
            settled = {row["key"] for row in calls_of(tmp_path) if row["state"] == "settled"}
            settled_at_kills.append((len(truth.arrived), settled))
        start()
        assert int(parent.stdout.readline()) == 0
        parent.stdin.close()

    expected_rows, expected_calls = undisturbed
    assert rows(tmp_path) == expected_rows
    assert {content for _, content in truth.arrived} == {content for _, content in expected_calls}
    for arrived, settled in settled_at_kills:
        assert settled.isdisjoint(key for key, _ in truth.arrived[arrived:])
    times = Counter(key for key, _ in truth.arrived)
    ledger = {row["key"]: row for row in calls_of(tmp_path)}
    assert times.keys() == ledger.keys() == truth.charged.keys()
    assert {row["state"] for row in ledger.values()} == {"settled"}
    assert all(row["cost_usd"] == pytest.approx(PAID) for row in ledger.values())
    assert all(times[key] - 1 <= row["maybe_double"] for key, row in ledger.items())
    assert 0 < sum(row["maybe_double"] for row in ledger.values()) <= KILLS * AT_ONCE
    assert all((row["unknown_usd"] > 0) == (row["maybe_double"] > 0) for row in ledger.values())
    marked = sum(row["unknown_usd"] for row in ledger.values())
    assert wasted(tmp_path) == pytest.approx(marked)
    assert len(truth.arrived) * PAID <= len(ledger) * PAID + marked


def wasted(folder: Path) -> float:
    """Dollars that the bill shows as wasted."""
    with closing(Ledger(folder / "ledger.sqlite")) as ledger:
        lines = ledger.bill()
    assert sum(line.maybe_double for line in lines) == sum(row["maybe_double"] for row in calls_of(folder))
    return sum(line.wasted_usd for line in lines)


# ------------------------------------------------------------------------------ faults


def twice(truth: Truth) -> Answer:
    """A proper answer that comes a second time on the same connection."""

    def answer(handler: Handler, body: dict) -> None:
        with truth.lock:
            truth.charged[handler.headers["Idempotency-Key"]] = 1
        text = json.dumps(completion(answer_text(body)))
        handler.reply(200, text)
        handler.reply(200, text)

    return answer


def late(handler: Handler, body: dict) -> None:
    """Nothing for longer than anybody waits."""
    time.sleep(1.2)


def drip(handler: Handler, body: dict) -> None:
    """An answer of which a byte comes now and then."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(60):
        handler.wfile.write(b" ")
        time.sleep(0.02)


FAULTS = {
    "too many, with a wait": lambda truth: status(429, Retry_After="0.05"),
    "too many": lambda truth: status(429),
    "error": lambda truth: status(500),
    "overloaded": lambda truth: status(503, Retry_After="0.02"),
    "truncated": lambda truth: raw('{"choices": [{"message": {"content": "4', length=5000),
    "half": lambda truth: raw('{"choices": [{"message": {"content": "4'),
    "a page": lambda truth: raw("<html>"),
    "not UTF-8": lambda truth: raw('{"choices": "\udcff"}'),
    "dropped": lambda truth: drop,
    "twice": twice,
    "late": lambda truth: late,
    "drip": lambda truth: drip,
}


def test_with_faults_the_same_rows(undisturbed, tmp_path, monkeypatch):
    """Every third call goes wrong in one of these ways; all of them occur."""
    monkeypatch.setattr(pace, "FIRST_WAIT", 0.01)
    luck, truth, seen = random.Random(3), Truth(), Counter()
    faults = list(FAULTS)

    def trouble() -> Answer | None:
        if luck.random() > 1 / 3:
            return None
        name = faults[sum(seen.values()) % len(faults)]
        seen[name] += 1
        return FAULTS[name](truth)

    with serving(rest=truth.answering(trouble=trouble)) as server:
        run_stages(tmp_path, server.url, timeout_seconds=0.8, tries=30, concurrency=16)
    assert seen.keys() == FAULTS.keys() and min(seen.values()) > 3
    assert rows(tmp_path) == undisturbed[0]
    ledger = calls_of(tmp_path)
    assert {row["state"] for row in ledger} == {"settled"} and len(ledger) == len(truth.charged)
    assert sum(row["cost_usd"] for row in ledger) == pytest.approx(len(ledger) * PAID)
    costly = sum(seen[name] for name in ("truncated", "half", "a page", "not UTF-8", "dropped", "late", "drip"))
    assert sum(row["maybe_double"] for row in ledger) == costly
