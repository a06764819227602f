"""A server of the project's own for the duration of a stage: the child process behind `serve:` of an `http` engine.

The parent's side alone: it starts `python -m fathom.serve.endpoint` on a free port of this machine,
waits for its address and ends it. What the server answers is `fathom.serve`'s business.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Annotated, Literal

from pydantic import Field

from fathom.config import Operational, StageConfig
from fathom.errors import WorkError

Share = Annotated[float, Field(ge=0, le=1)]


class FaultsConfig(StageConfig):
    """How a server misbehaves: shares of calls, 0-1, that end in each of these ways.

    too_many: status 429 with Retry-After. error: status 500. truncated: status 200 and half of the
    JSON. dropped: hangs up within the answer. retry_after, delay: seconds, delay the longest that a
    call is made to wait. most: faults in a row that one request meets before it is answered.
    """

    seed: int = 0
    too_many: Share = 0.0
    error: Share = 0.0
    truncated: Share = 0.0
    dropped: Share = 0.0
    retry_after: float = Field(0.2, ge=0)
    delay: float = Field(0.0, ge=0)
    most: int = Field(3, ge=0)


class ServeConfig(StageConfig):
    """`serve:` of an `http` engine: a script answers over HTTP (see `fathom/serve/practice.py`).

    faults: none when absent. They don't enter the stage's key: a client that is worth its name ends
    with the same rows.
    """

    script: Literal["tiny-teacher", "tiny-labeller", "tiny-rewriter"]
    faults: Annotated[FaultsConfig | None, Operational] = None


class Endpoint:
    """A running server; `base_url` is where it answers. It dies with this process, however that dies."""

    def __init__(self, config: ServeConfig, model: str):
        """Raises WorkError, with the server's own last words, when it does not start."""
        command = [sys.executable, "-m", "fathom.serve.endpoint", config.model_dump_json()]
        self._process = subprocess.Popen(
            [*command, "--model", model, "--parent", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.base_url = self._process.stdout.readline().strip()
        if not self.base_url.startswith("http"):
            said = [self.base_url, *self._process.stdout.read().splitlines()]
            self.close()
            raise WorkError(f"the endpoint for {model!r} did not start: {said[-1]}")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
