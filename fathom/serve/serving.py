"""`fathom serve` without its command line: the configuration, what must hold before it starts, and the server's life.

The routes are `api.py`'s, the socket's manners `listen.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fathom.config import StageConfig
from fathom.document import with_sets
from fathom.engines import TransformersConfig, VllmConfig
from fathom.errors import InputError
from fathom.rollout import SamplingConfig
from fathom.serve.keys import VARIABLE, Keys, Limits, read_keys
from fathom.serve.live import QUEUE
from fathom.serve.served import ThinkingMode
from fathom.serve.solving import default_max_tokens

Seconds = Annotated[float, Field(gt=0)]

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ServerConfig(StageConfig):
    """What `--set` may set.

    host: other than a loopback address needs keys. port: 0 takes a free one. name: of the model, in requests. sampling:
    where a request says nothing. thinking: whether chains begin inside their thinking ("open"), or only with a tag
    ("tagged"); "auto" does what the model's chat template says.
    keys: file of API keys (see `keys.py`). limits: of keys that name none. queue: requests that may wait for the engine.
    body_bytes: of a request. header_seconds, body_seconds: that a client may take to send them. answer_seconds: that a
    whole answer may take. drain_seconds: that answers get to end after SIGTERM.
    store: file of kept answers. keep_hours: how long they are kept.
    """

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    name: str = Field(min_length=1)
    engine: TransformersConfig | VllmConfig = Field(TransformersConfig(), discriminator="kind")
    sampling: SamplingConfig = SamplingConfig()
    thinking: ThinkingMode = "auto"
    keys: str | None = None
    limits: Limits = Limits()
    queue: int = Field(QUEUE, ge=1)
    body_bytes: int = Field(1 << 20, ge=1024)
    header_seconds: Seconds = 10.0
    body_seconds: Seconds = 10.0
    answer_seconds: Seconds = 600.0
    drain_seconds: Seconds = 30.0
    store: str | None = None
    keep_hours: Seconds = 24.0


def configure(model: Path, name: str, sets: Sequence[str]) -> ServerConfig:
    """The configuration that `--set` asks for. name: of the model, where it sets none. Raises InputError as ever."""
    values = {
        "name": name,
        "engine": {"kind": "transformers"},
        "sampling": {"max_tokens": default_max_tokens(model)},
        "store": f"runs/serve-{name.replace('/', '-')}/answers.sqlite",
    }
    return with_sets(ServerConfig, "fathom serve", values, sets)


def server_keys(config: ServerConfig, environment: Mapping[str, str]) -> Keys:
    """The keys of the file and of the environment. Raises InputError where strangers could reach a server without any."""
    keys = read_keys(Path(config.keys) if config.keys else None, config.limits, environment.get(VARIABLE))
    if not keys and config.host not in LOOPBACK:
        raise InputError(
            f"fathom serve: host {config.host} is open to others, which needs API keys:"
            f" --set keys=FILE or ${VARIABLE} (python -m fathom.serve.keys NAME makes one)"
        )
    return keys
