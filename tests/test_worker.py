"""A killable call: limits hold, the next call is unharmed, from any thread, with no signal in the parent."""

import asyncio
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fathom.graders.worker import Killed, Unavailable, Worker

SOON = 10
"""Seconds: far more than a call's limit and a new process need, far less than a call that isn't killed."""


@pytest.fixture(scope="module")
def worker():
    worker = Worker("worker_target", seconds=0.4)
    worker.call("echo", "warm")
    yield worker
    worker.close()


@pytest.mark.parametrize("function", ["hang", "sleep", "hog", "die"])
def test_a_bad_call_is_killed_and_the_next_one_is_not_slower(worker, function):
    started = time.monotonic()
    with pytest.raises(Killed):
        worker.call(function)
    assert time.monotonic() - started < SOON
    started = time.monotonic()
    assert worker.call("echo", [1, "two", None]) == [1, "two", None]
    assert time.monotonic() - started < SOON


def test_every_call_gets_a_fresh_process_of_the_same_zygote(worker):
    assert len({worker.call("process") for _ in range(3)}) == 3
    assert len({worker.call("parent") for _ in range(3)}) == 1


def test_output_of_the_function_does_not_enter_the_protocol(worker):
    assert worker.call("chatter") == "quiet"


def test_a_killed_zygote_is_replaced_and_the_call_repeated(worker):
    first = worker.call("parent")
    os.kill(first, signal.SIGKILL)
    assert worker.call("parent") != first
    assert worker.call("echo", 2) == 2


def test_threads_and_asyncio_share_one_worker_without_signals(worker):
    before = [signal.getsignal(s) for s in (signal.SIGALRM, signal.SIGCHLD)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda n: worker.call("echo", n), range(20))) == list(range(20))

    async def several():
        return await asyncio.gather(*(asyncio.to_thread(worker.call, "echo", n) for n in range(5)))

    assert asyncio.run(several()) == list(range(5))
    assert [signal.getsignal(s) for s in (signal.SIGALRM, signal.SIGCHLD)] == before
    assert threading.active_count() < 20


def test_a_missing_library_is_unavailable_and_says_which():
    broken = Worker("no_such_module_at_all")
    with pytest.raises(Unavailable, match="no_such_module_at_all"):
        broken.call("anything")
