"""Calls in batches, as OpenAI's Batch API has them: a file up, a batch, hours of waiting, a file down.

Every batch is tagged, and the tag stands in the ledger with each of its calls before anything leaves.
A run that was killed finds its batches at the server by their tags, so no call is sent in two. What
a batch leaves unanswered goes into the next one.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fathom.engines import Completion, HttpConfig
from fathom.engines.call import Call, reserve, settle, stored
from fathom.engines.pace import pause
from fathom.engines.wire import Client, Failed, read_answer, refused
from fathom.errors import InputError, WorkError
from fathom.ledger import Meter
from fathom.records import Usage

MOST_ROWS, MOST_BYTES = 50_000, 200_000_000
"""Of one batch file. Source: OpenAI's reference of `POST /batches`."""

TAG = "fathom"
"""Key of a batch's metadata that holds its tag."""

Value = TypeVar("Value")


class Batches:
    """The calls of one `generate`, in as few batches as they fit."""

    def __init__(self, client: Client, meter: Meter, config: HttpConfig):
        self._client = client
        self._meter = meter
        self._config = config
        self._read: set[str] = set()
        """Tags of batches that have nothing more to tell."""
        self._failure = ""

    def answers(self, calls: Sequence[Call]) -> Iterator[tuple[Call, Completion]]:
        """Each call with its answer, as batches end.

        Raises WorkError when a call stays unanswered in `tries` batches, InputError for one that the
        server refuses (the others of its batch are settled first), BudgetStop for a batch that can't be paid.
        """
        waiting: dict[str, Call] = {}
        for call in calls:
            completion = stored(call, self._meter)
            if completion is None:
                waiting[call.paid.key] = call
            else:
                yield call, completion
        for number in range(1, self._config.tries + 1):
            if number > 1 and waiting:
                time.sleep(pause(number))
            for batch, part in self._under_way(waiting):
                for call, completion in self._collect(batch, part):
                    del waiting[call.paid.key]
                    yield call, completion
        if waiting:
            first = next(iter(waiting.values()))
            raise WorkError(
                f"{first.paid.model}: {len(waiting)} calls, of {first.key!r} and others, got no answer in"
                f" {self._config.tries} batches, the last: {self._failure}"
            )

    def _under_way(self, waiting: dict[str, Call]) -> list[tuple[str, list[Call]]]:
        """(id at the server, its calls) of batches that hold all that is waited for: found again, or sent now."""
        before: dict[str, list[Call]] = {}
        for key, tag in self._meter.batched().items():
            if key in waiting and tag not in self._read:
                before.setdefault(tag, []).append(waiting[key].in_batch(tag))
        found = []
        for tag, part in before.items():
            if (batch := self._find(tag)) is not None:
                found.append((batch, part))
            else:
                self._release(part, "killed before its batch was made")
        again = {call.paid.key for _, part in found for call in part}
        fresh = [call for key, call in waiting.items() if key not in again]
        return found + [(self._send(part), part) for part in _parts(fresh)]

    def _send(self, part: Sequence[Call]) -> str:
        """Reserve the calls, then upload and create their batch; returns its id."""
        with self._meter.together():
            for call in part:
                reserve(call, self._meter)
        tag = part[0].paid.batch
        path = urlsplit(self._client.url).path.rstrip("/") + "/chat/completions"
        lines = "".join(_line(call, path) for call in part)
        try:
            upload = {
                "files": {"file": (f"{tag}.jsonl", lines.encode(), "application/jsonl")},
                "data": {"purpose": "batch"},
            }
            file = self._insist(lambda: self._client.json("POST", "files", **upload)["id"])
            wanted = {"input_file_id": file, "endpoint": path, "completion_window": "24h", "metadata": {TAG: tag}}
            return self._insist(
                lambda: self._client.json("POST", "batches", json=wanted)["id"], unless=lambda: self._find(tag)
            )
        except InputError as error:
            self._release(part, str(error))
            raise

    def _find(self, tag: str) -> str | None:
        """The id of the batch with a tag, among all that the server lists."""
        query = {"limit": "100"}
        while True:
            page = self._insist(lambda query=query: self._client.json("GET", "batches", params=query))
            listed = page.get("data") or []
            for batch in listed:
                if (batch.get("metadata") or {}).get(TAG) == tag:
                    return batch["id"]
            if not page.get("has_more") or not listed:
                return None
            query = {**query, "after": listed[-1]["id"]}

    def _collect(self, batch: str, part: Sequence[Call]) -> list[tuple[Call, Completion]]:
        """Wait for a batch to end, and put all that it tells into the books at once."""
        while True:
            state = self._insist(lambda: self._client.json("GET", f"batches/{batch}"))
            if state.get("status") in ("completed", "failed", "expired", "cancelled"):
                break
            time.sleep(self._config.poll_seconds)
        rows = self._rows(state)
        answered, refusal = [], None
        with self._meter.together():
            for call in part:
                try:
                    completion, usage = _read_row(rows.get(call.paid.key), call, state)
                    answered.append((call, settle(call, completion, usage, self._meter)))
                except Failed as error:
                    self._failure = error.why
                    if error.free:
                        self._meter.release(call.paid, error.why)
                except InputError as error:
                    self._meter.release(call.paid, str(error))
                    refusal = refusal or error
        self._read.add(part[0].paid.batch)
        if refusal:
            raise refusal
        return answered

    def _rows(self, state: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The lines of a batch's files by `custom_id`; of two lines with the same one the first counts."""
        rows: dict[str, dict[str, Any]] = {}
        for file in filter(None, (state.get("output_file_id"), state.get("error_file_id"))):
            text = self._insist(lambda file=file: self._client.download(f"files/{file}/content"))
            for line in filter(None, text.split("\n")):
                try:
                    row = json.loads(line)
                    rows.setdefault(row["custom_id"], row)
                except (ValueError, TypeError, KeyError):
                    continue  # its call is missing then, which is told there
        return rows

    def _release(self, part: Sequence[Call], why: str) -> None:
        with self._meter.together():
            for call in part:
                self._meter.release(call.paid, why)

    def _insist(self, act: Callable[[], Value], unless: Callable[[], Value | None] = lambda: None) -> Value:
        """Try again until it works. unless: what it may have brought about although it failed."""
        for number in range(1, self._config.tries + 1):
            try:
                return act()
            except (Failed, KeyError) as error:
                failure = error
            if number < self._config.tries:
                time.sleep(pause(number, getattr(failure, "wait", None)))
                if (done := unless()) is not None:
                    return done
        why = failure.why if isinstance(failure, Failed) else f"its answer lacks {failure}"
        raise WorkError(f"{self._config.model}: batches: {number} tries, the last: {why}")


def _parts(calls: Sequence[Call]) -> Iterator[list[Call]]:
    """The calls cut into batches, each with its tag."""
    part: list[Call] = []
    tag, size = uuid.uuid4().hex, 0
    for call in calls:
        length = len(_line(call, "/" * 64).encode())
        if part and (len(part) == MOST_ROWS or size + length > MOST_BYTES):
            yield part
            part, tag, size = [], uuid.uuid4().hex, 0
        part.append(call.in_batch(tag))
        size += length
    if part:
        yield part


def _line(call: Call, path: str) -> str:
    row = {"custom_id": call.paid.key, "method": "POST", "url": path, "body": call.body}
    return json.dumps(row, ensure_ascii=False) + "\n"


def _read_row(row: dict[str, Any] | None, call: Call, state: dict[str, Any]) -> tuple[Completion, Usage]:
    """What a line of a batch's files says of a call. Raises Failed, or InputError for a refusal."""
    status = state["status"]
    if row is None:  # of a batch that ended early it was not run; of a whole one nobody knows
        told = [error.get("message") for error in ((state.get("errors") or {}).get("data") or [])]
        raise Failed(f"the batch is {status} without it{f' ({told[0]})' if told else ''}", free=status != "completed")
    response = row.get("response")
    if not isinstance(response, dict):
        raise Failed(f"the batch says {json.dumps(row.get('error'))[:200]}", free=True)
    code = response.get("status_code")
    if code == 200:
        return read_answer(response.get("body"), call.key, call.index)
    told = json.dumps(response.get("body"))[:300]
    if isinstance(code, int) and refused(code):
        raise InputError(f"{call.paid.model}: the batch refuses {call.key!r} (status {code}): {told}")
    raise Failed(f"status {code}: {told}", free=True)
