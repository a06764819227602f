"""The socket's side of a server: HTTP that waits for nobody, and an end that lets answers end.

uvicorn with two manners of its own: a client that doesn't finish its headers in time is hung up on (slow loris), and
what is no HTTP is refused in the same form as everything else. SIGTERM or Ctrl-C stops the listening at once, answers
in the making have some seconds to end, and then the process ends with 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import resource
import signal
import socket
from collections.abc import Iterator
from functools import partial
from http import HTTPStatus
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from fathom.errors import InputError
from fathom.serve.errors import Refused

HEADER_BYTES = 64 << 10
"""Of one request's first line and headers together."""

LINGER_SECONDS = 1.0
"""That a connection which is hung up on stays open, so that its client gets to read why."""


class Protocol(H11Protocol):
    """One connection. header_seconds: from its first byte, or its opening, to the end of the headers."""

    def __init__(self, *args: Any, header_seconds: float, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._header_seconds = header_seconds
        self._late: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        # asyncio does this only where a socket names its protocol, which accepted ones of `create_server` don't; without
        # it every event of a stream may wait 40 ms for the client's acknowledgement of the last one.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._watch()

    def connection_lost(self, error: Exception | None) -> None:
        self._calm()
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        if not self._refused:
            super().data_received(data)
            self._watch()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._calm()
        elif self._late is None:
            self._late = self.loop.call_later(self._header_seconds, self._too_late)

    def _calm(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _too_late(self) -> None:
        self._refuse(Refused(408, f"the headers took more than {self._header_seconds:g} s", code="slow_headers"))

    def send_400_response(self, message: str) -> None:
        """What uvicorn calls where it can't read a request."""
        told = "this is no HTTP request that can be read, or its headers are too long"
        self._refuse(Refused(400, told, code="invalid_http"))

    def _refuse(self, refused: Refused) -> None:
        """Say so and hang up; nothing but that where another answer is under way.

        What the client still sends is read and forgotten for a moment: to close at once would reset the connection
        and take the words away from under it.
        """
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()
            return
        body = json.dumps(refused.body()).encode()
        head = f"HTTP/1.1 {refused.status} {HTTPStatus(refused.status).phrase}\r\nContent-Type: application/json\r\n"
        self.transport.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)


class Server(uvicorn.Server):
    """draining: whether it has stopped listening and only ends what it began."""

    draining = False

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.draining = True
        await super().shutdown(sockets)


def make_server(app: ASGIApp, header_seconds: float, drain_seconds: float) -> Server:
    config = uvicorn.Config(
        app,
        http=partial(Protocol, header_seconds=header_seconds),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=drain_seconds,
        h11_max_incomplete_event_size=HEADER_BYTES,
    )
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    return Server(config)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises InputError where the address can't be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError, UnicodeError) as error:
        raise InputError(f"{host}:{port}: can't listen there ({getattr(error, 'strerror', None) or error})") from None


def address(listening: socket.socket) -> str:
    """The URL that clients name as their base."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


@contextlib.contextmanager
def ends_well(server: uvicorn.Server) -> Iterator[None]:
    """SIGTERM and Ctrl-C end the server before it listens for them itself, too.

    Once it has drained on them they end nothing more (uvicorn raises them again).
    """

    def end(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def allow_connections() -> None:
    """As many open files as this process may have: each connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
