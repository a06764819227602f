"""A chat-completions server on localhost that misbehaves to order. Not a test: tests of the http engine import it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROMPT_TOKENS, COMPLETION_TOKENS, CACHED_TOKENS = 12, 30, 5

Answer = Callable[["Handler", dict[str, Any]], None]
"""Answers one call, whose request body it is given."""


class Server(ThreadingHTTPServer):
    """calls: (headers, body) of every call, in order of arrival. Answers come from `script`, then from `rest`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *script: Answer, rest: Answer | None = None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = list(script)
        self.rest = rest or ok()
        self.calls: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.completed = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address) -> None:
        """A client that was killed or gave up is no news."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    """Connections stay open, unless the client wants none to."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.calls.append((dict(self.headers), body))
            answer = self.server.script.pop(0) if self.server.script else self.server.rest
        answer(self, body)

    def reply(self, status: int, text: str, length: int | None = None, **headers: str) -> None:
        """length: what Content-Length claims; more than the text cuts the answer short."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(text.encode()) if length is None else length))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: object) -> None:
        pass


def ok(content: str | None = "4", finish: str = "stop", seconds: float = 0.0, **message: str) -> Answer:
    """A proper answer, after some seconds."""

    def answer(handler: Handler, body: dict[str, Any]) -> None:
        time.sleep(seconds)
        with handler.server.lock:
            handler.server.completed += 1
        handler.reply(200, json.dumps(completion(content, finish, **message)))

    return answer


def completion(content: str | None, finish: str = "stop", **message: str) -> dict[str, Any]:
    """The body of a proper answer."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}
    usage = {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": COMPLETION_TOKENS,
        "prompt_tokens_details": {"cached_tokens": CACHED_TOKENS},
    }
    return {"choices": [choice], "usage": usage}


def status(code: int, message: str = "no", **headers: str) -> Answer:
    """An error in OpenAI's form."""
    return lambda handler, body: handler.reply(code, json.dumps({"error": {"message": message}}), **headers)


def raw(text: str, length: int | None = None) -> Answer:
    """Status 200 and any text."""
    return lambda handler, body: handler.reply(200, text, length)


def drop(handler: Handler, body: dict[str, Any]) -> None:
    """Hang up without a word."""
    handler.close_connection = True
    handler.connection.close()


@contextmanager
def serving(*script: Answer, rest: Answer | None = None) -> Iterator[Server]:
    """A running server whose first answers are the script's."""
    server = Server(*script, rest=rest)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
