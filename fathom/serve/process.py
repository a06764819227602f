"""The whole of a serving process: model, shared engine, application, socket, and the order in which they end."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from fastapi import FastAPI

from fathom.engines import Engine, open_engine
from fathom.serve.api import build_app
from fathom.serve.kept import Kept
from fathom.serve.keys import Keys
from fathom.serve.listen import address, allow_connections, bind, ends_well, make_server
from fathom.serve.live import Live
from fathom.serve.served import Served, positions, served_model
from fathom.serve.serving import ServerConfig
from fathom.serve.visits import write_log

Page = Callable[[FastAPI, Live, Served, ServerConfig], None]
"""Mounts more into the application, such as a web page."""


def serve(
    config: ServerConfig, model: Path, keys: Keys, page: Page | None = None, public: tuple[str, ...] = ()
) -> None:
    """Serve a model directory until SIGTERM or Ctrl-C. page, public: what is mounted besides, and what of it asks for no key.

    The address is taken before the model is read, so a taken port is told at once; clients that come meanwhile wait.
    Raises InputError for an address or a model that can't be used.
    """
    with bind(config.host, config.port) as listening:
        engine = open_engine(config.engine, model)
        served = served_model(model, config.name, positions(config.engine, model), config.thinking)
        run(config, engine, served, keys, listening, page, public)


def run(
    config: ServerConfig,
    engine: Engine,
    served: Served,
    keys: Keys,
    listening: socket.socket,
    page: Page | None = None,
    public: tuple[str, ...] = (),
) -> None:
    """Serve an engine on a socket until the process is told to end; closes the engine."""
    allow_connections()
    with ExitStack() as closes:
        live = Live(engine, config.queue)
        closes.callback(live.close, 0.0)
        kept = closes.enter_context(closing(Kept(Path(config.store), config.keep_hours))) if config.store else None
        app = build_app(live, served, config, keys=keys, kept=kept, told=write_log, public=public)
        if page:
            page(app, live, served, config)
        server = make_server(app, config.header_seconds, config.drain_seconds)
        app.state.api.draining = lambda: server.draining
        with ends_well(server):
            print(f"fathom: {config.name} at {address(listening)}", flush=True)
            server.run(sockets=[listening])
