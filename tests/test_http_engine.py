"""The http engine against a real server on localhost: answers, retries, refusals, and a bill that survives kill -9."""

import logging
import time

import pytest
from http_server import COMPLETION_TOKENS, PROMPT_TOKENS, drop, ok, raw, serving, status

from fathom.annotate.scale import AnnotateConfig, run_annotate
from fathom.config import validate
from fathom.engines import HttpConfig, Request, open_engine, pace
from fathom.engines.call import TEMPLATE_TOKENS
from fathom.errors import BudgetStop, InputError, WorkError
from fathom.ledger import Ledger, Meter
from fathom.prices import Prices, TokenPrice
from fathom.records import Message, Problem, Sampling, Usage, write_jsonl

KEY = "sk-very-secret-0123456789"
PRICES = Prices(models={"m": TokenPrice(input=1.0, output=10.0, cached=0.5, as_of="2026-01-01", source="test")})
PAID = PRICES.tokens_usd("m", Usage(PROMPT_TOKENS, COMPLETION_TOKENS, 5))
SAMPLING = Sampling(0.6, 0.95, 100, seed=3)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(pace, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("TEST_KEY", KEY)


def request(key="p", samples=1):
    return Request(key, (Message("system", "Be brief."), Message("user", f"What is 2 + 2, {key}?")), samples)


def config(server, **settings):
    return HttpConfig(
        **{"model": "m", "base_url": server.url, "key_env": "TEST_KEY", "timeout_seconds": 20, **settings}
    )


def ask(server, *requests, meter=None, sampling=SAMPLING, **settings):
    engine = open_engine(config(server, **settings), meter=meter)
    try:
        done = list(engine.generate(requests or [request()], sampling))
    finally:
        engine.close()
    return sorted(done, key=lambda c: (c.key, c.index))


def billing(tmp_path, budget_usd=None):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    attempt = ledger.begin("rated", "k", "cpu", 1, PRICES)
    return ledger, Meter(
        tmp_path, 0, stage="rated", ledger=ledger, attempt=attempt, prices=PRICES, budget_usd=budget_usd
    )


# ------------------------------------------------------------------------------ answers


def test_every_sample_is_a_call_with_a_seed_of_its_own():
    with serving() as server:
        done = ask(server, request("a", samples=3), request("b"))
    assert [(c.key, c.index) for c in done] == [("a", 0), ("a", 1), ("a", 2), ("b", 0)]
    assert {(c.text, c.tokens, c.prompt_tokens, c.finish) for c in done} == {
        ("4", COMPLETION_TOKENS, PROMPT_TOKENS, "stop")
    }
    bodies = [body for _, body in server.calls]
    assert len({body["seed"] for body in bodies}) == 4
    assert all(0 <= body["seed"] < 2**31 for body in bodies)
    expected = {"model": "m", "temperature": 0.6, "top_p": 0.95, "max_completion_tokens": 100}
    for body in bodies:
        assert expected.items() <= body.items()
        assert [m["role"] for m in body["messages"]] == ["system", "user"]
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers, _ in server.calls)


def test_seeds_follow_the_recipe_and_nothing_else():
    with serving() as server:
        ask(server, request("a"), request("b"))
        ask(server, request("b"))
        ask(server, request("b"), sampling=Sampling(0.6, 0.95, 100, seed=4))
    a_or_b = {body["messages"][1]["content"]: body["seed"] for _, body in server.calls[:2]}
    assert server.calls[2][1]["seed"] == a_or_b["What is 2 + 2, b?"]
    assert server.calls[3][1]["seed"] != server.calls[2][1]["seed"]


@pytest.mark.parametrize(
    ("answer", "text", "finish"),
    [
        (ok("4", reasoning_content="2 and 2"), "<think>2 and 2</think>4", "stop"),
        (ok("4", reasoning="2 and 2"), "<think>2 and 2</think>4", "stop"),
        (ok(None, "length", reasoning="2 and"), "<think>2 and", "length"),
        (ok("so it", "length", reasoning="2 and 2"), "<think>2 and 2</think>so it", "length"),
        (ok("<think>hm</think>4"), "<think>hm</think>4", "stop"),
        (ok(None), "", "stop"),
        (ok("\ud83d is half a smile"), "\ufffd is half a smile", "stop"),
    ],
)
def test_thinking_becomes_text(answer, text, finish):
    with serving(answer) as server:
        (done,) = ask(server)
    assert (done.text, done.finish) == (text, finish)


def test_body_adds_and_leaves_out():
    with serving() as server:
        ask(server, body={"temperature": None, "seed": None, "reasoning_effort": "high"})
    ((_, body),) = server.calls
    assert body.keys() == {"model", "messages", "top_p", "max_completion_tokens", "reasoning_effort"}


def test_no_key_is_sent_where_none_is_named():
    with serving() as server:
        ask(server, key_env=None)
    assert "Authorization" not in server.calls[0][0]


def test_at_most_so_many_calls_at_once():
    with serving(*[ok(seconds=0.5)] * 8) as server:
        start = time.monotonic()
        ask(server, request("a", samples=8), concurrency=4)
        assert 1.0 <= time.monotonic() - start < 4.0  # one after the other: 4.0


# ------------------------------------------------------------------------------ retries


@pytest.mark.parametrize(
    "trouble",
    [
        status(429),
        status(500),
        status(503, "overloaded"),
        raw('{"choices": [{"message"'),
        raw('{"choices": [{"message"', length=1000),
        raw("<html>"),
        raw("[]"),
        raw('{"choices": []}'),
        raw('{"choices": [{"message": {"content": "4"}}]}'),
        raw('{"choices": [{"message": {"content": ["4"]}}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}'),
        raw('{"choices": [{"message": {"content": "4"}}], "usage": {"prompt_tokens": -1, "completion_tokens": 1}}'),
        raw('{"error": {"message": "upstream is down"}}'),
        drop,
    ],
)
def test_trouble_that_passes_is_tried_again(trouble):
    with serving(trouble, trouble) as server:
        (done,) = ask(server)
    assert done.text == "4"
    assert len(server.calls) == 3
    assert server.calls[0][1] == server.calls[2][1]


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        (status(429, "slow down"), "status 429: slow down"),
        (status(502, f"bad key {KEY}"), r"status 502: bad key \*\*\*"),
        (drop, "the connection broke"),
        (raw("{"), "the answer is not a JSON object"),
    ],
)
def test_trouble_that_stays_ends_in_one_line(trouble, told):
    with (
        serving(*[trouble] * 9) as server,
        pytest.raises(WorkError, match=f"^m: 'p' got no answer in 3 tries, the last: {told}"),
    ):
        ask(server, tries=3)
    assert len(server.calls) == 3


def test_silence_is_tried_again_and_ends_in_one_line():
    with serving(ok(seconds=2.0)) as server:
        assert len(ask(server, timeout_seconds=0.5)) == 1
    with (
        serving(*[ok(seconds=2.0)] * 2) as server,
        pytest.raises(WorkError, match=r"2 tries, the last: no answer within 0.5 s"),
    ):
        ask(server, timeout_seconds=0.5, tries=2)


def test_nobody_listens():
    with serving() as server:
        pass
    with pytest.raises(WorkError, match=r"2 tries, the last: can't connect to http://127"):
        ask(server, tries=2)


@pytest.mark.parametrize("header", [{"Retry_After": "1"}, {"Retry_After": "60", "retry_after_ms": "1000"}])
def test_retry_after_is_honoured(header):
    with serving(status(429, **header)) as server:
        start = time.monotonic()
        ask(server)
        assert 1.0 <= time.monotonic() - start < 30


@pytest.mark.parametrize("header", ["86400", "Fri, 01 Jan 2100 00:00:00 GMT", "inf"])
def test_a_server_that_asks_for_hours_is_not_waited_for(header):
    with (
        serving(status(429, Retry_After=header)) as server,
        pytest.raises(WorkError, match=r"asks to wait .* longer than 600 s"),
    ):
        ask(server)


@pytest.mark.parametrize("header", ["Fri, 01 Jan 2010 00:00:00 GMT", "soon", "-5"])
def test_a_strange_retry_after_is_no_wait(header):
    with serving(status(503, Retry_After=header)) as server:
        assert len(ask(server)) == 1


# ------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (status(401, f"wrong key {KEY}"), r"m: http://127.* refuses the key in \$TEST_KEY \(status 401\)"),
        (status(404, "no model m"), r"refuses the call \(status 404\): no model m"),
        (status(400, "Unsupported parameter: 'temperature'"), r"\(status 400\): Unsupported parameter: 'temperature'"),
        (status(429, "You exceeded your quota (insufficient_quota)"), "exceeded your quota"),
        (status(307, Location="http://127.0.0.1:9/"), r"\(status 307\)"),
    ],
)
def test_a_refusal_is_final_and_one_line(answer, told, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    ledger, meter = billing(tmp_path)
    with serving(answer) as server, pytest.raises(InputError, match=told) as caught:
        ask(server, meter=meter)
    assert len(server.calls) == 1
    assert "\n" not in str(caught.value)
    assert ledger.calls.usd() == 0
    assert KEY not in str(caught.value) + caplog.text
    assert KEY.encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_a_missing_key_is_told_before_anything_is_sent(monkeypatch):
    monkeypatch.delenv("TEST_KEY")
    with (
        serving() as server,
        pytest.raises(InputError, match=r"the environment variable TEST_KEY \(key_env\) is not set"),
    ):
        ask(server)
    assert server.calls == []


@pytest.mark.parametrize("key", ["sk-secret\nsk-more", "sk-abc\u2026xyz"])
def test_what_is_no_key_is_told_without_telling_it(monkeypatch, key):
    monkeypatch.setenv("TEST_KEY", key)
    with serving() as server, pytest.raises(InputError, match=r"TEST_KEY \(key_env\) holds no key") as caught:
        ask(server)
    assert server.calls == [] and "sk-" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"key_env": KEY}, "key_env: expected the name of an environment variable, not a key"),
        ({"base_url": f"https://user:{KEY}@host/v1"}, "base_url: holds more than an address"),
        ({"base_url": f"https://host/v1?key={KEY}"}, "base_url: holds more than an address"),
        ({"base_url": "api.openai.com/v1"}, "base_url: expected an address like"),
        ({"base_url": "http://host:abc/v1"}, "base_url: 'host:abc' is no host and port"),
        ({"base_url": "http://a..b/v1"}, r"base_url: 'a\.\.b' is no host and port"),
        ({"base_url": "https://.openai.azure.com/v1"}, r"base_url: '\.openai\.azure\.com' is no host and port"),
        ({"body": {"n": 4, "stream": True}}, "body: n, stream: not for the recipe to set"),
        ({"body": {"max_tokens": "many"}}, "body: max_tokens: expected a whole number"),
        ({"body": {"max_completion_tokens": None}}, "body: .* no bound; give max_tokens in its place"),
        ({"concurrency": 0}, "concurrency: .*greater"),
    ],
)
def test_wrong_settings(settings, told):
    with pytest.raises(InputError, match=told) as caught:
        validate(HttpConfig, {"model": "m", "base_url": "https://host/v1", **settings})
    assert KEY not in str(caught.value)


# ------------------------------------------------------------------------------ the bill


def worst_usd(wanted):
    """Every byte of the prompt a token, and all the tokens that may be written."""
    prompt = sum(len(m.content) + TEMPLATE_TOKENS for m in wanted.messages)
    return PRICES.tokens_usd("m", Usage(prompt, SAMPLING.max_tokens))


def test_what_was_paid_is_on_the_bill_and_asked_once(tmp_path):
    ledger, meter = billing(tmp_path)
    with serving() as server:
        first = ask(server, request(samples=4), meter=meter)
        again = ask(server, request(samples=4), meter=meter)
        assert len(server.calls) == 4
        ask(server, request(samples=5), meter=meter)
        assert len(server.calls) == 5
    assert first == again
    assert ledger.calls.usd() == pytest.approx(5 * PAID)
    (line,) = ledger.bill()
    assert line.tokens == {"m": Usage(5 * PROMPT_TOKENS, 5 * COMPLETION_TOKENS, 25)}


def test_errors_cost_nothing_and_silence_costs_its_worst_case(tmp_path):
    ledger, meter = billing(tmp_path)
    with serving(status(500), status(429)) as server:
        ask(server, meter=meter)
    assert ledger.calls.usd() == pytest.approx(PAID)
    with serving(drop, status(504, Retry_After="3600"), raw("{")) as server:
        ask(server, request("q"), meter=meter)
    assert ledger.calls.usd() == pytest.approx(2 * PAID + 3 * worst_usd(request("q")))


def test_the_budget_stops_calls_before_they_leave(tmp_path):
    ledger, meter = billing(tmp_path, budget_usd=0.004)
    with serving() as server, pytest.raises(BudgetStop, match="rated: the next call to m could cost"):
        ask(server, request(samples=50), meter=meter, concurrency=2)
    assert ledger.calls.usd() <= 0.004
    assert 0 < len(server.calls) == server.completed < 50
    assert ledger.calls.usd() == pytest.approx(len(server.calls) * PAID)


@pytest.mark.parametrize(
    "body", [{"max_completion_tokens": 30_000}, {"max_completion_tokens": None, "max_tokens": 30_000}]
)
def test_a_bound_that_the_recipe_sets_is_what_is_reserved(tmp_path, body):
    ledger, meter = billing(tmp_path, budget_usd=0.004)
    with serving() as server, pytest.raises(BudgetStop, match="rated: the next call to m could cost"):
        ask(server, meter=meter, body=body)
    assert server.calls == [] and ledger.calls.usd() == 0


def test_a_model_without_a_price_is_not_asked(tmp_path):
    _, meter = billing(tmp_path)
    with serving() as server, pytest.raises(InputError, match="no price is known for 'other'"):
        ask(server, meter=meter, model="other")
    assert server.calls == []


def test_a_stage_bills_every_call_once(tmp_path):
    """`annotate` leaves the bill to the engine, and answers that don't validate are asked for anew."""
    problems = [Problem(f"p{i}", f"What is {i}?", str(i)) for i in range(3)]
    write_jsonl(tmp_path / "problems.jsonl", problems)
    out = tmp_path / "out"
    out.mkdir()
    ledger, meter = billing(tmp_path)
    with serving(ok("no idea")) as server:
        settings = AnnotateConfig(problems="p", engine=config(server, concurrency=1).model_dump())
        metrics = run_annotate({"problems": tmp_path}, settings, out, meter)
    assert len(server.calls) == 4
    assert metrics["histogram"] == {"4": 3}
    assert ledger.bill()[0].tokens == {"m": Usage(4 * PROMPT_TOKENS, 4 * COMPLETION_TOKENS, 20)}
    assert ledger.calls.usd() == pytest.approx(4 * PAID)
