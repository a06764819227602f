"""The `http` engine: any OpenAI-compatible chat-completions endpoint, every chain a call of its own.

A call is reserved in the ledger at its worst case before it leaves and settled with its answer; an
answer that is already there is never asked for again, so a killed run pays for no answer twice. What
asking again can't mend ends the stage, the rest is retried (`wire`), at the endpoint's pace (`pace`).
Calls may go in batches (`batch`), and answers may come from a file instead (`tape`). Not a client for
streams, tools or images.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from pathlib import Path

from fathom.engines import Completion, HttpConfig, Request, engine_name
from fathom.engines.batch import Batches
from fathom.engines.call import Call, make_call, reserve, settle, stored
from fathom.engines.endpoint import Endpoint
from fathom.engines.pace import Pace, pause
from fathom.engines.tape import Player, Recorder
from fathom.engines.wire import Client, Failed, read_answer
from fathom.errors import FathomError, WorkError
from fathom.ledger import Meter
from fathom.records import Sampling, Usage


class HttpEngine:
    """See the module docstring. Raises InputError when the variable that should hold the key is not set."""

    device = "api"

    def __init__(self, config: HttpConfig, meter: Meter | None = None):
        self.name = engine_name(config)
        self._config = config
        self._meter = meter or Meter.null(Path())
        self._endpoint = Endpoint(config.serve, config.model) if config.serve and not config.replay else None
        address = self._endpoint.base_url if self._endpoint else config.base_url
        self._client = None if config.replay else Client(config, address)
        self._player = Player(Path(config.replay)) if config.replay else None
        self._recorder = Recorder(Path(config.record)) if config.record else None
        self._pace = Pace(config.concurrency, config.requests_per_minute, config.tokens_per_minute)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Completion]:
        """Completions as they arrive, `concurrency` calls at a time.

        Raises WorkError when a call failed in all its tries, InputError when the server refuses it or
        the recorded file lacks it, BudgetStop before a call that can't be paid; calls under way then
        end first and are settled.
        """
        provider = self._config.base_url or self._config.serve.script
        chains = ((r, index) for r in requests for index in range(r.first, r.first + r.samples))
        calls = [make_call(self._config, provider, r, index, sampling) for r, index in chains]
        with closing(self._answers(calls)) as answers:
            for call, completion in answers:
                if self._recorder:
                    self._recorder.add(call.tape, call.body, completion)
                yield completion

    def close(self) -> None:
        for part in (self._player, self._recorder, self._client, self._endpoint):
            if part:
                part.close()

    def _answers(self, calls: Sequence[Call]) -> Iterator[tuple[Call, Completion]]:
        if self._player:
            for call in calls:
                yield call, self._player.play(call.tape, f"{call.key!r}, chain {call.index}, of {self.name}")
        elif self._config.batch:
            batches = Batches(self._client, self._meter, self._config)
            yield from batches.answers(calls)
        else:
            yield from self._one_by_one(calls)

    def _one_by_one(self, calls: Sequence[Call]) -> Iterator[tuple[Call, Completion]]:
        stop = threading.Event()
        pool = ThreadPoolExecutor(self._config.concurrency)
        try:
            futures = {pool.submit(self._answer, call, stop): call for call in calls}
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)

    def _answer(self, call: Call, stop: threading.Event) -> Completion:
        """From the ledger where it is paid already, else asked for until it comes."""
        completion = stored(call, self._meter)
        if completion is not None:
            return completion
        failure = None
        for number in range(1, self._config.tries + 1):
            try:
                return self._at_its_turn(call, stop)
            except Failed as error:
                failure = error
            if number < self._config.tries and stop.wait(pause(number, failure.wait)):
                break
        raise WorkError(f"{self.name}: {call.key!r} got no answer in {number} tries, the last: {failure.why}")

    def _at_its_turn(self, call: Call, stop: threading.Event) -> Completion:
        """One try, when the pace allows it. Raises Failed."""
        most = call.worst.prompt_tokens + call.worst.completion_tokens
        left_at = self._pace.enter(most, stop)
        if left_at is None:
            raise Failed("the engine was stopped", free=True)
        used, failure = 0, None
        try:
            completion = reserve(call, self._meter)
            if completion is None:
                completion, usage = self._exchange(call)
                used = usage.prompt_tokens + usage.completion_tokens
                completion = settle(call, completion, usage, self._meter)
            return completion
        except Failed as error:
            failure = error
            used = 0 if error.free else most
            raise
        finally:
            limited = failure is not None and failure.limited
            self._pace.leave(left_at, unused=most - used, limited=limited, hold=failure.wait if failure else None)

    def _exchange(self, call: Call) -> tuple[Completion, Usage]:
        """A reserved call is sent. Raises Failed and InputError, after releasing what surely cost nothing."""
        # Endpoints that know the header charge once for a call that is sent again because its fate is unknown.
        headers = {"Idempotency-Key": call.paid.key}
        try:
            answer = self._client.json("POST", "chat/completions", json=call.body, headers=headers)
            return read_answer(answer, call.key, call.index)
        except Failed as error:
            if error.free:
                self._meter.release(call.paid, error.why)
            raise
        except FathomError as error:
            self._meter.release(call.paid, str(error))
            raise
