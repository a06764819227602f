"""How a serving process ends: killed, asked to, or with an engine that fails; and what it loses (nothing acknowledged)."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from serving import ServerProcess

from fathom.errors import InputError
from fathom.serve.listen import bind, ends_well, make_server

SCRIPT = Path(__file__).with_name("scripted_server.py")


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("lives")
    running = ServerProcess(folder, command=(str(SCRIPT), str(folder / "answers.sqlite")))
    yield running
    running.close()


def asked(seconds: float, name: str | None = None) -> dict:
    """A request that takes so many seconds, under a name."""
    return {
        "messages": [{"role": "user", "content": str(seconds)}],
        "headers": {"Idempotency-Key": name} if name else None,
    }


def worked_on(server: ServerProcess) -> None:
    """Returns when the engine works on a request."""
    deadline = time.monotonic() + 30
    while not re.search(r"^fathom_requests_running [1-9]", server.client.get("/metrics").text, re.MULTILINE):
        assert time.monotonic() < deadline, "the request never came"


def content(answer: httpx.Response) -> str:
    return answer.json()["choices"][0]["message"]["content"]


def test_without_a_name_every_answer_is_made_anew(server):
    assert content(server.post(**asked(0))) != content(server.post(**asked(0)))


def test_an_answer_waits_for_no_acknowledgement(server):
    """Without TCP_NODELAY each takes 40 ms at least (Nagle's algorithm against delayed acknowledgements)."""

    def seconds() -> float:
        began = time.monotonic()
        server.post(**asked(0))
        return time.monotonic() - began

    assert min(seconds() for _ in range(20)) < 0.03


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("LOCALHOST:80", 200), ("[::1]:8000", 200), ("evil.example", 403), ("", 403)],
)
def test_without_keys_only_names_of_this_machine_are_answered(server, host, status):
    answer = server.client.get("/v1/models", headers={"Host": host})
    assert answer.status_code == status
    assert status == 200 or answer.json()["error"]["code"] == "host"


def test_what_was_acknowledged_outlives_kill_9(server):
    whole = {f"w{n}": content(server.post(**asked(0, f"w{n}"))) for n in range(20)}
    streamed = {f"s{n}": server.stream(**asked(0, f"s{n}")) for n in range(5)}
    assert server.kill() == -signal.SIGKILL
    server.start()
    assert {name: content(server.post(**asked(0, name))) for name in whole} == whole
    for name, events in streamed.items():
        assert server.stream(**asked(0, name))[0]["id"] == events[0]["id"]
    assert server.post(**asked(0.0001, "w0")).status_code == 422


def test_a_name_whose_answer_is_in_the_making_is_told_to_wait(server):
    first: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: first.append(server.post(**asked(2, "twice"))))
    thread.start()
    worked_on(server)
    second = server.post(**asked(2, "twice"))
    assert (second.status_code, second.headers["retry-after"]) == (409, "1")
    thread.join()
    assert content(server.post(**asked(2, "twice"))) == content(first[0])


def test_an_answer_that_takes_too_long_is_broken_off(server):
    answer = server.post(**asked(8))
    assert answer.status_code == 408
    assert answer.headers["x-should-retry"] == "false"
    assert "6 s" in answer.json()["error"]["message"]


def test_sigterm_lets_answers_end_and_takes_no_more(server):
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(server.post(**asked(1.2, "last"))))
    thread.start()
    worked_on(server)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{server.root}/ready")
    thread.join()
    assert content(answers[0]).startswith("answer")
    assert server.ended() == 0
    rows = [json.loads(line) for line in server.log.read_text(encoding="utf-8").splitlines()]
    assert {row["status"] for row in rows} == {200, 403, 408, 409, 422}


def test_a_signal_that_comes_before_the_server_listens_for_it_ends_it_too():
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    server = make_server(app, header_seconds=1, drain_seconds=1)
    late = threading.Timer(5, setattr, (server, "should_exit", True))
    late.start()
    with bind("127.0.0.1", 0) as listening, ends_well(server):
        os.kill(os.getpid(), signal.SIGTERM)
        server.run(sockets=[listening])
    assert late.is_alive()
    late.cancel()


def test_a_host_that_is_no_name_is_one_line():
    with pytest.raises(InputError, match=r"^a{70}:0: can't listen there"):
        bind("a" * 70, 0)
