"""An endpoint with files and batches on localhost, whose batches end as told. Not a test: tests of batches import it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from http_server import completion

Row = dict[str, Any]
Ending = Callable[[list[Row]], tuple[str, list[Row], list[Row]]]
"""From the lines of a batch's input to its status, the lines of its output file and those of its error file."""


def answered(row: Row, content: str | None = None) -> Row:
    """An output line; the content repeats the question unless given."""
    body = completion(content if content is not None else row["body"]["messages"][-1]["content"])
    return {"id": "r", "custom_id": row["custom_id"], "response": {"status_code": 200, "body": body}, "error": None}


def errored(row: Row, code: int, message: str = "no") -> Row:
    """A line of a call that came back with a status."""
    body = {"error": {"message": message}}
    return {"id": "r", "custom_id": row["custom_id"], "response": {"status_code": code, "body": body}, "error": None}


def expired(row: Row) -> Row:
    """A line of a call that was not run in time."""
    return {
        "id": "r",
        "custom_id": row["custom_id"],
        "response": None,
        "error": {"code": "batch_expired", "message": "late"},
    }


def whole(rows: list[Row]) -> tuple[str, list[Row], list[Row]]:
    """Every call answered."""
    return "completed", [answered(row) for row in rows], []


@dataclass
class Batch:
    """looks: how often it was looked at; it is through at the second look."""

    id: str
    rows: list[Row]
    metadata: dict[str, str]
    looks: int = 0


@dataclass
class State:
    """What the server knows. endings: of its batches in turn, `whole` after the last."""

    endings: list[Ending]
    files: dict[str, str] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)
    trouble: list[int] = field(default_factory=list)
    """Statuses of the next exchanges, whatever they are."""


class BatchHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: BatchServer

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self._in_trouble():
            return
        state = self.server.state
        if self.path == "/v1/files":
            head, _, rest = data.partition(b"\r\n\r\n")
            while b"filename=" not in head:
                head, _, rest = rest.partition(b"\r\n\r\n")
            name = f"file-{len(state.files)}"
            state.files[name] = rest.partition(b"\r\n--")[0].decode()
            self.reply({"id": name})
        else:
            wanted = json.loads(data)
            assert wanted["endpoint"] == "/v1/chat/completions" and wanted["completion_window"] == "24h"
            rows = [json.loads(line) for line in state.files[wanted["input_file_id"]].splitlines()]
            batch = Batch(f"batch-{len(state.batches)}", rows, wanted["metadata"])
            state.batches.append(batch)
            self.reply({"id": batch.id, "status": "validating"})

    def do_GET(self) -> None:
        if self._in_trouble():
            return
        state, parts = self.server.state, urlsplit(self.path)
        if parts.path == "/v1/batches":
            query = parse_qs(parts.query)
            newest = [{"id": b.id, "metadata": b.metadata} for b in reversed(state.batches)]
            start = next((i + 1 for i, b in enumerate(newest) if [b["id"]] == query.get("after")), 0)
            self.reply({"data": newest[start : start + 2], "has_more": start + 2 < len(newest)})  # pages of two
        elif parts.path.startswith("/v1/batches/"):
            number = int(parts.path.rpartition("-")[2])
            self.reply(self._look(number, state))
        else:
            self.reply_text(200, state.files[parts.path.split("/")[3]])

    def _look(self, number: int, state: State) -> dict[str, Any]:
        batch = state.batches[number]
        batch.looks += 1
        if batch.looks < 2:
            return {"id": batch.id, "status": "in_progress"}
        ending = state.endings[number] if number < len(state.endings) else whole
        status, output, errors = ending(batch.rows)
        shown: dict[str, Any] = {"id": batch.id, "status": status}
        for name, rows in (("output_file_id", output), ("error_file_id", errors)):
            if rows:
                shown[name] = f"{name}-{number}"
                state.files[shown[name]] = "".join(json.dumps(row) + "\n" for row in rows)
        return shown

    def _in_trouble(self) -> bool:
        if not self.server.state.trouble:
            return False
        self.reply_text(self.server.state.trouble.pop(0), '{"error": {"message": "trouble"}}')
        return True

    def reply(self, value: Any) -> None:
        self.reply_text(200, json.dumps(value))

    def reply_text(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: object) -> None:
        pass


class BatchServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *endings: Ending):
        super().__init__(("127.0.0.1", 0), BatchHandler)
        self.state = State(list(endings))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


@contextmanager
def batching(*endings: Ending) -> Iterator[BatchServer]:
    """A running server whose first batches end so."""
    server = BatchServer(*endings)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
