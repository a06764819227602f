"""Live: everyone gets their own chains, whoever waits is told, and nothing waits forever."""

import asyncio
import threading
import time
from dataclasses import dataclass, field

import pytest

from fathom.engines import Request
from fathom.engines.scripted import ScriptedEngine, echo
from fathom.engines.session import Piece
from fathom.errors import InputError, WorkError
from fathom.records import Message, Sampling
from fathom.serve.answers import Choices, Order, grow
from fathom.serve.live import Busy, Live
from fathom.serve.visits import Visit

SAMPLING = Sampling(0.6, 0.95, 5)
SECONDS = 20
"""What no step of these tests takes; a hang fails instead of hanging."""


def asked(key: str, samples: int = 1) -> Request:
    return Request(key, (Message("user", key),), samples)


@dataclass
class Script:
    """An engine whose session writes `key:position ` once a round; a round is let go by the test where `gate` is one."""

    slots: int = 4
    gate: threading.Semaphore | None = None
    name: str = "script"
    device: str = "cpu"
    started: list[str] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    sessions: int = 0
    broken: str = ""
    closed: bool = False

    def session(self):
        if self.broken == "for good":
            raise RuntimeError("no session any more")
        self.sessions += 1
        return ScriptSession(self)

    def close(self):
        self.closed = True


class ScriptSession:
    def __init__(self, engine):
        self.engine, self.queue, self.chains = engine, [], {}

    def add(self, ticket, request, sampling, thinking=None):
        if request.key == "long":
            raise InputError("script: 'long' does not fit")
        if request.key == "bug":
            raise ZeroDivisionError("not an error of Fathom's own")
        for index in range(request.samples):
            self.queue.append([ticket, request.key, index, 0, sampling.max_tokens])

    def cancel(self, ticket):
        self.engine.cancelled.append(ticket)
        self.queue = [chain for chain in self.queue if chain[0] != ticket]
        self.chains = {name: chain for name, chain in self.chains.items() if chain[0] != ticket}

    def close(self):
        self.queue, self.chains = [], {}

    def step(self):
        if self.engine.gate:
            assert self.engine.gate.acquire(timeout=SECONDS)
        if self.engine.broken:
            raise MemoryError("no memory\nand a long story")
        while self.queue and len(self.chains) < self.engine.slots:
            chain = self.queue.pop(0)
            self.engine.started.append(chain[1])
            self.chains[chain[0], chain[2]] = chain
        pieces = []
        for name, chain in list(self.chains.items()):
            ticket, key, index, position, most = chain
            chain[3] += 1
            finish = "length" if chain[3] == most else None
            pieces.append(Piece(ticket, index, f"{key}:{position} ", 1, 1, finish))
            if finish:
                del self.chains[name]
        return pieces

    @property
    def idle(self):
        return not self.queue and not self.chains

    @property
    def room(self):
        return max(0, self.engine.slots - len(self.chains) - len(self.queue))


def opened(**settings):
    engine = Script(**settings)
    return engine, Live(engine, queue=16)


def text(pieces) -> str:
    return "".join(piece.text for piece in pieces)


def until(holds) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.001)


def test_threads_get_their_own_chains():
    engine, live = opened(slots=3)
    found = {}
    threads = [
        threading.Thread(target=lambda key=key: found.update({key: text(live.stream(asked(key), SAMPLING))}))
        for key in "abcdefgh"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert found == {key: "".join(f"{key}:{i} " for i in range(5)) for key in "abcdefgh"}
    live.close()
    assert engine.closed and not live._thread.is_alive()


def test_tasks_get_their_own_chains_and_a_loop_is_woken_once_a_round(monkeypatch):
    _, live = opened(slots=8)
    woken = []

    async def main():
        loop = asyncio.get_running_loop()
        real = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *given: woken.append(len(given[1])) or real(*given))

        async def one(key):
            async with live.astream(asked(key), SAMPLING) as stream:
                return text([piece async for pieces in stream for piece in pieces])

        return await asyncio.wait_for(asyncio.gather(*map(one, "abcdefgh")), SECONDS)

    texts = asyncio.run(main())
    assert texts == ["".join(f"{key}:{i} " for i in range(5)) for key in "abcdefgh"]
    assert sum(woken) == 8 * 6 and len(woken) < 24
    live.close()


def test_what_was_not_fetched_in_time_comes_at_once():
    _, live = opened()

    async def main():
        async with live.astream(asked("a"), SAMPLING) as late:
            while live.running or live.waiting:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)
            return [pieces async for pieces in late]

    (pieces,) = asyncio.run(asyncio.wait_for(main(), SECONDS))
    assert (text(pieces), len(pieces), pieces[-1].finish) == ("a:0 a:1 a:2 a:3 a:4 ", 5, "length")
    live.close()


@pytest.mark.parametrize("late", [False, True])
def test_neither_text_nor_counts_depend_on_how_many_pieces_come_at_once(late):
    """Five tokens: one of thinking, and the fourth completes the stop string."""
    gate = threading.Semaphore(0)
    _, live = opened(gate=gate)
    visit, order = Visit(), Order(asked("</think>"), SAMPLING, stops=(":3",), opened=True)

    async def main():
        async def answer():
            choices = Choices()
            async for delta in grow(live, order, visit):
                choices.take(delta)
            return choices.whole()

        task = asyncio.ensure_future(answer())
        await asyncio.sleep(0)
        for _ in range(5):
            gate.release()
            await asyncio.sleep(0 if late else 0.01)
        if late:
            until(lambda: not live.running)  # the loop stands still meanwhile
        return await task

    (choice,) = asyncio.run(asyncio.wait_for(main(), SECONDS))
    assert (choice.content, choice.finish) == (":0 </think>:1 </think>:2 </think>", "stop")
    assert (visit.completion_tokens, visit.reasoning_tokens) == (4, 1)
    live.close()


def test_it_is_an_engine():
    live = Live(ScriptedEngine("words", echo))
    requests = [asked("one two", samples=2), asked("three")]
    done = sorted(live.generate(requests, SAMPLING), key=lambda chain: (chain.key, chain.index))
    assert [(c.key, c.index, c.text, c.tokens) for c in done] == [
        ("one two", 0, "one two", 2),
        ("one two", 1, "one two", 2),
        ("three", 0, "three", 1),
    ]
    assert (live.name, live.device) == ("words", "cpu")
    live.close()


def test_owners_take_turns_and_keep_their_own_order():
    """One slot; a has asked for six before b and c come."""
    gate = threading.Semaphore(0)
    engine, live = opened(slots=1, gate=gate)
    one = Sampling(max_tokens=1)
    streams = [live.stream(asked("first"), one, owner="a")]
    until(lambda: live.running == 1)
    for key, owner in [*((f"a{i}", "a") for i in range(5)), ("b0", "b"), ("c0", "c"), ("b1", "b")]:
        streams.append(live.stream(asked(key), one, owner=owner))
    assert (live.waiting, live.running) == (8, 1)
    gate.release(9)
    for stream in streams:
        assert len(list(stream)) == 1
    order = engine.started
    assert [key for key in order if key[0] == "a"] == ["a0", "a1", "a2", "a3", "a4"]
    assert order.index("b0") < order.index("a2") and order.index("c0") < order.index("a2")
    assert order.index("b0") < order.index("b1") < order.index("a4")
    live.close()


def test_who_has_fewest_chains_at_work_is_next():
    gate = threading.Semaphore(0)
    engine, live = opened(slots=3, gate=gate)
    long, one = Sampling(max_tokens=100), Sampling(max_tokens=1)
    streams = [live.stream(asked("hog", samples=2), long, owner="a"), live.stream(asked("b0"), one, owner="b")]
    until(lambda: live.running == 2)
    streams += [live.stream(asked(key), one, owner=owner) for key, owner in [("a1", "a"), ("b1", "b"), ("b2", "b")]]
    gate.release(4)
    until(lambda: live.running == 1)
    assert engine.started == ["hog", "hog", "b0", "b1", "b2", "a1"]
    for stream in streams:
        stream.close()
    gate.release(100)
    live.close()


def test_a_closed_stream_frees_its_slot_in_the_next_round():
    gate = threading.Semaphore(0)
    engine, live = opened(slots=1, gate=gate)
    with live.stream(asked("a"), Sampling(max_tokens=1000)) as hog:
        gate.release()
        assert next(hog).text == "a:0 "
        waiting = live.stream(asked("b"), SAMPLING)
    assert list(hog) == []
    gate.release(2)
    assert next(waiting).text.startswith("b:")
    waiting.close()
    until(lambda: live.running == 0)
    gate.release(10)
    live.close()
    assert engine.cancelled


def test_one_that_waits_can_be_closed():
    gate = threading.Semaphore(0)
    engine, live = opened(slots=1, gate=gate)
    hog = live.stream(asked("a"), SAMPLING)
    until(lambda: live.running == 1)
    waiting = live.stream(asked("b"), SAMPLING)
    waiting.close()
    assert live.waiting == 0 and list(waiting) == []
    gate.release(10)
    assert len(list(hog)) == 5 and engine.started == ["a"]
    live.close()


def test_a_task_that_is_cancelled_frees_its_slot():
    gate = threading.Semaphore(0)
    _, live = opened(slots=1, gate=gate)

    async def main():
        async def one():
            async with live.astream(asked("a"), Sampling(max_tokens=1000)) as pieces:
                async for _ in pieces:
                    pass

        task = asyncio.ensure_future(one())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        gate.release(20)
        async with live.astream(asked("b"), SAMPLING) as stream:
            return text([piece async for pieces in stream for piece in pieces])

    assert asyncio.run(asyncio.wait_for(main(), SECONDS)).startswith("b:0 b:1 ")
    live.close()


def test_what_waits_is_bounded():
    gate = threading.Semaphore(0)
    _, live = opened(slots=1, gate=gate)
    streams = [live.stream(asked("a"), SAMPLING)]
    until(lambda: live.running == 1)
    streams += [live.stream(asked(str(i)), SAMPLING) for i in range(16)]
    with pytest.raises(Busy, match="script is busy: 16 requests wait, of at most 16"):
        live.stream(asked("too many"), SAMPLING)
    with pytest.raises(Busy):
        list(live.generate([asked("x"), asked("y")], SAMPLING))
    streams.pop().close()
    streams.append(live.stream(asked("fits"), SAMPLING))
    gate.release(1000)
    assert all(len(list(stream)) == 5 for stream in streams)
    live.close()


@pytest.mark.parametrize(
    ("key", "error", "told"), [("long", InputError, "does not fit"), ("bug", WorkError, "ZeroDiv")]
)
def test_a_request_that_can_not_be_served_fails_alone(key, error, told):
    engine, live = opened()
    good = live.stream(asked("a"), SAMPLING)
    with pytest.raises(error, match=told):
        next(live.stream(asked(key), SAMPLING))
    assert len(list(good)) == 5 and engine.sessions == 1
    live.close()


def test_an_engine_that_fails_tells_everyone_it_worked_for_and_goes_on():
    gate = threading.Semaphore(0)
    engine, live = opened(slots=2, gate=gate)
    running = [live.stream(asked(key), SAMPLING) for key in "ab"]
    until(lambda: live.running == 2)
    waiting = live.stream(asked("c"), SAMPLING)
    engine.broken = "once"
    gate.release()
    for stream in running:
        with pytest.raises(WorkError, match=r"^script: the engine failed \(MemoryError: no memory\)$"):
            list(stream)
    engine.broken = ""
    gate.release(20)
    assert len(list(waiting)) == 5 and engine.sessions == 2
    live.close()


def test_an_engine_that_has_failed_for_good_leaves_nobody_waiting():
    gate = threading.Semaphore(0)
    engine, live = opened(slots=1, gate=gate)
    streams = [live.stream(asked(key), SAMPLING) for key in "abc"]
    until(lambda: live.running == 1)
    engine.broken = "for good"
    gate.release()
    for stream in streams:
        with pytest.raises(WorkError, match="the engine failed"):
            list(stream)
    live._thread.join(SECONDS)
    with pytest.raises(Busy, match="takes no more: script: the engine failed"):
        live.stream(asked("d"), SAMPLING)
    assert live.refusal
    live.close()


def test_an_engine_that_died_between_requests_takes_no_more():
    engine, live = opened()
    engine.alive, engine.broken = False, "for good"
    with pytest.raises(WorkError, match="the engine failed"):
        list(live.stream(asked("bug"), SAMPLING))
    live._thread.join(SECONDS)
    assert live.refusal
    live.close()


def test_it_drains_before_it_closes():
    engine, live = opened(slots=1)
    streams = [live.stream(asked(key), SAMPLING) for key in "abc"]
    live.refuse()
    with pytest.raises(Busy, match="script is shutting down"):
        live.stream(asked("d"), SAMPLING)
    live.close()
    assert engine.closed
    assert [len(list(stream)) for stream in streams] == [5, 5, 5]


def test_what_takes_longer_than_it_may_is_cut_and_told():
    gate = threading.Semaphore(0)
    engine, live = opened(slots=1, gate=gate)
    running, waiting = live.stream(asked("a"), SAMPLING), live.stream(asked("b"), SAMPLING)
    gate.release()
    assert next(running).text == "a:0 "
    closing = threading.Thread(target=live.close, args=(0.01,))
    closing.start()
    for stream in (running, waiting):
        with pytest.raises(WorkError, match="script: stopped before this chain ended"):
            list(stream)
    gate.release(5)
    closing.join(SECONDS)
    assert engine.closed and not closing.is_alive()
