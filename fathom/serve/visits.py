"""What is known of one HTTP request while it is served, and what is told of it afterwards: access log and metrics.

A line of the log is one JSON object with times, counts and the *name* of a key. It never holds a prompt, an answer, a
key, a query string or a path that the client made up. Metrics are Prometheus's, in a registry of their own.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


@dataclass
class Visit:
    """One request. owner: name of the key, "" without keys. route: the pattern that matched, or what refused it.

    tokens are counted as they come, so that an answer that is broken off is charged for what it took.
    """

    id: str = field(default_factory=lambda: f"req_{secrets.token_hex(12)}")
    began: float = field(default_factory=time.monotonic)
    method: str = ""
    route: str = ""
    owner: str = ""
    status: int = 0
    streamed: bool = False
    gone: bool = False
    """Whether the client left before its answer was whole."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    """Those of the completion tokens that are thinking."""
    first_token: float | None = None
    """Seconds from the request to the first token."""

    def grew(self, tokens: int, thinking: bool) -> None:
        """So many tokens of the answer came. thinking: whether they belong to it."""
        if tokens and self.first_token is None:
            self.first_token = time.monotonic() - self.began
        self.completion_tokens += tokens
        self.reasoning_tokens += tokens if thinking else 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Metrics:
    """waiting, running: how many requests wait for the engine, and how many it works on."""

    def __init__(self, waiting: Callable[[], float], running: Callable[[], float]):
        self._registry = CollectorRegistry()
        labels = ("route", "status")
        self._requests = Counter("fathom_requests", "Requests answered", labels, registry=self._registry)
        self._tokens = Counter("fathom_tokens", "Tokens", ("kind",), registry=self._registry)
        self._gone = Counter("fathom_disconnects", "Clients gone before their answer", registry=self._registry)
        timed = {"buckets": SECONDS, "registry": self._registry}
        self._seconds = Histogram("fathom_request_seconds", "Whole requests", ("route",), **timed)
        self._first = Histogram("fathom_first_token_seconds", "From request to first token", **timed)
        for name, text, read in (("waiting", "wait for the engine", waiting), ("running", "are worked on", running)):
            Gauge(f"fathom_requests_{name}", f"Requests that {text}", registry=self._registry).set_function(read)

    def count(self, visit: Visit) -> None:
        self._requests.labels(visit.route, str(visit.status)).inc()
        self._seconds.labels(visit.route).observe(time.monotonic() - visit.began)
        self._tokens.labels("prompt").inc(visit.prompt_tokens)
        self._tokens.labels("completion").inc(visit.completion_tokens)
        if visit.first_token is not None:
            self._first.observe(visit.first_token)
        if visit.gone:
            self._gone.inc()

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self._registry)


def log_line(visit: Visit) -> str:
    row: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "id": visit.id,
        "key": visit.owner,
        "method": visit.method,
        "route": visit.route,
        "status": visit.status,
        "seconds": round(time.monotonic() - visit.began, 4),
        "first_token": None if visit.first_token is None else round(visit.first_token, 4),
        "prompt_tokens": visit.prompt_tokens,
        "completion_tokens": visit.completion_tokens,
        "stream": visit.streamed,
        "gone": visit.gone,
    }
    return json.dumps(row)


def write_log(visit: Visit) -> None:
    """One line, to stderr; a log that can't be written stops nobody's answer."""
    with contextlib.suppress(OSError):
        print(log_line(visit), file=sys.stderr, flush=True)
