"""Engines: prompts in, completions and usage out. An engine never sees a gold answer or a grader.

`Engine` is the protocol; one module per implementation, imported only when opened.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from fathom.config import FileInput, Operational, StageConfig
from fathom.engines.endpoint import ServeConfig
from fathom.errors import InputError
from fathom.records import Finish, Message, Sampling

if TYPE_CHECKING:
    from fathom.ledger import Meter


@dataclass(frozen=True)
class Request:
    """One prompt, of which `samples` chains are wanted, with indices `first` .. `first+samples-1`.

    key: stable identity (a problem id); draws are seeded by (sampling.seed, key, index, position). raw: the one
    message is the whole prompt as it stands, to which no chat template is applied. begun: for a session, token ids that the
    one chain has drawn before; it goes on after them, and they count towards its max_tokens.
    """

    key: str
    messages: tuple[Message, ...]
    samples: int = 1
    first: int = 0
    raw: bool = False
    begun: tuple[int, ...] = ()


@dataclass(frozen=True)
class Completion:
    """One chain. text excludes the prompt and the end-of-turn token; tokens counts what was generated, the end token included.

    usd: what a paid call cost when it was made; None for all others, and where nothing is billed.
    """

    key: str
    index: int
    text: str
    tokens: int
    finish: Finish
    prompt_tokens: int = 0
    token_ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    usd: float | None = None


class Engine(Protocol):
    """What rollout, annotate and serve need of a model."""

    name: str
    """Who answers, as the ledger and the rollouts name it."""

    device: str
    """Where the tokens are made: "cpu", "cuda"; "api" where calls are paid, which the engine itself bills."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Completion]:
        """Yield every completion of every request, in whatever order they finish."""
        ...

    def close(self) -> None: ...


def chain_seed(seed: int, key: str, index: int) -> int:
    """A signed 64-bit number that belongs to one chain: what else is sampled beside it doesn't enter."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}/{index}".encode()).digest()[:8], "big", signed=True)


class TransformersConfig(StageConfig):
    """The `transformers` engine. slots: chains that decode together; 256 on a CPU, 2,048 on a GPU when absent.

    device: "auto", "cpu" or "cuda".
    dtype: of weights and cache; "auto" is float32 on a CPU and bfloat16 on a GPU. replicas: copies of
    the model that work at once, each with a GPU of its own, on the stage's `ray` cluster (this machine when absent).
    """

    kind: Literal["transformers"] = "transformers"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    slots: Annotated[int | None, Operational] = Field(None, ge=1)
    device: Annotated[Literal["auto", "cpu", "cuda"], Operational] = "auto"
    replicas: Annotated[int, Operational] = Field(1, ge=1)

    @property
    def replica_gpus(self) -> int:
        """GPUs of one replica, where there are any."""
        return 0 if self.device == "cpu" else 1


class VllmConfig(StageConfig):
    """The `vllm` engine. tensor_parallel: GPUs that share one copy of the model; when absent all that are seen, or one per replica.

    gpus: which of this machine's GPUs, by number; all when absent. replicas: copies of the model that work at
    once, on the stage's `ray` cluster (this machine when absent). server: the address of a `vllm serve` of
    the model, which is asked in place of all that (see docs/engines.md).

    gpu_memory_utilization: share of each GPU's memory. max_model_len: prompt and completion together,
    in tokens; the model's own when absent. kv_cache_dtype: as vLLM names it ("auto", "fp8", ...). sleep: prepare
    `sleep()`, which gives the memory back between generations. options: further arguments of vLLM's engine, by its names.
    """

    kind: Literal["vllm"] = "vllm"
    tensor_parallel: Annotated[int | None, Operational] = Field(None, ge=1)
    gpus: Annotated[list[int] | None, Operational] = Field(None, min_length=1)
    server: Annotated[str | None, Operational] = None
    replicas: Annotated[int, Operational] = Field(1, ge=1)
    gpu_memory_utilization: Annotated[float, Operational] = Field(0.9, gt=0, le=1)
    max_model_len: Annotated[int | None, Operational] = Field(None, ge=1)
    kv_cache_dtype: str = "auto"
    sleep: Annotated[bool, Operational] = False
    options: dict[str, Any] = {}

    @property
    def replica_gpus(self) -> int:
        """GPUs of one replica."""
        return self.tensor_parallel or 1


TOKEN_LIMITS = ("max_completion_tokens", "max_tokens")
"""What bounds a call's completion in a request; OpenAI's newer models take the first only, many servers the second."""


class HttpConfig(StageConfig):
    """The `http` engine: an OpenAI-compatible chat-completions endpoint.

    model: as the endpoint and the price file name it. base_url: what comes before /chat/completions;
    or, in its place, serve: a server of Fathom's own that runs on this machine as long as the stage does.
    key_env: environment variable that holds the key; none is sent when absent. body: further entries
    of the request, such as {reasoning_effort: high}; null leaves out one that Fathom would send and
    the endpoint refuses (OpenAI's reasoning models take no temperature). timeout_seconds: of one call.
    requests_per_minute, tokens_per_minute: what the endpoint allows, where it is known; it is slowed down
    by "too many requests" in any case. batch: send calls through the Batch API, as many in one as the
    stage's `chunk` holds; poll_seconds: between two looks at a batch.

    record: file to which every answer is added. replay: such a file, from which every answer is
    taken; no call leaves and no key is needed.
    """

    kind: Literal["http"] = "http"
    model: str
    base_url: str | None = None
    serve: ServeConfig | None = None
    key_env: Annotated[str | None, Operational] = None
    body: dict[str, Any] = {}
    concurrency: Annotated[int, Operational] = Field(64, ge=1)
    timeout_seconds: Annotated[float, Operational] = Field(600.0, gt=0)
    tries: Annotated[int, Operational] = Field(8, ge=1)
    requests_per_minute: Annotated[float | None, Operational] = Field(None, gt=0)
    tokens_per_minute: Annotated[float | None, Operational] = Field(None, gt=0)
    batch: Annotated[bool, Operational] = False
    poll_seconds: Annotated[float, Operational] = Field(30.0, gt=0)
    record: Annotated[str | None, Operational] = None
    replay: FileInput | None = None

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        address = urlsplit(value)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError("expected an address like https://api.openai.com/v1")
        try:
            address.hostname.encode("idna")
            unreachable = address.port == 0 or not value.isprintable()
        except ValueError:  # a port that is no number, or too large a one; a name that none can have
            unreachable = True
        if unreachable:
            raise ValueError(f"{address.netloc!r} is no host and port")
        if address.username is not None or address.query:
            raise ValueError("holds more than an address; a key belongs into the variable that key_env names")
        return value

    @model_validator(mode="after")
    def _one_of_each(self) -> HttpConfig:
        if (self.base_url is None) == (self.serve is None):
            raise ValueError("give either base_url or serve")
        if self.record is not None and self.replay is not None:
            raise ValueError("record and replay exclude each other")
        return self

    @field_validator("body")
    @classmethod
    def _bounded(cls, value: dict[str, Any]) -> dict[str, Any]:
        """A call is reserved at what it may cost at most before it leaves."""
        if own := value.keys() & {"model", "messages", "n", "stream"}:
            raise ValueError(f"{', '.join(sorted(own))}: not for the recipe to set")
        limits = {name: value[name] for name in TOKEN_LIMITS if name in value}
        if any(limit is not None and (type(limit) is not int or limit < 1) for limit in limits.values()):
            raise ValueError(f"{' and '.join(limits)}: expected a whole number from 1 up")
        if value.get("max_completion_tokens", 1) is None and not value.get("max_tokens"):
            raise ValueError(
                "without max_completion_tokens a call's tokens have no bound; give max_tokens in its place"
            )
        return value

    @field_validator("key_env")
    @classmethod
    def _variable_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
            raise ValueError("expected the name of an environment variable, not a key")
        return value


class ScriptedConfig(StageConfig):
    """The `scripted` engine: a named function answers (see `fathom/engines/scripted.py`)."""

    kind: Literal["scripted"] = "scripted"
    script: Literal["generated-difficulty", "surface-difficulty", "echo"]


class RecordedColumns(StageConfig):
    """Which columns hold what. tokens, prompt_tokens: counts (0 = unknown). truncated: a bool."""

    key: str = "problem_id"
    text: str = "text"
    tokens: str | None = None
    prompt_tokens: str | None = None
    truncated: str | None = None
    model: str = "model"


class RecordedConfig(StageConfig):
    """The `recorded` engine: stored generations, served as if they were sampled now.

    models: serve only rows whose `columns.model` is one of these. allow_fewer: serve what there is
    when a key has fewer chains than asked, instead of failing.
    """

    kind: Literal["recorded"] = "recorded"
    path: FileInput
    columns: RecordedColumns = RecordedColumns()
    models: list[str] | None = None
    allow_fewer: bool = False


EngineConfig = Annotated[
    TransformersConfig | VllmConfig | HttpConfig | ScriptedConfig | RecordedConfig, Field(discriminator="kind")
]


def engine_name(config: EngineConfig, model: Path | None = None) -> str:
    """Who answers, known before the engine is open. Raises InputError when the kind needs a model and none is given."""
    if isinstance(config, ScriptedConfig):
        return f"scripted:{config.script}"
    if isinstance(config, RecordedConfig):
        return f"recorded:{Path(config.path).name}"
    if isinstance(config, HttpConfig):
        return config.model
    if model is None:
        raise _no_model(config)
    return f"{config.kind}:{model.name}"


def _no_model(config: EngineConfig) -> InputError:
    return InputError(f"engine: kind {config.kind!r} needs a model")


def open_engine(
    config: EngineConfig, model: Path | None = None, meter: Meter | None = None, *, logprobs: bool = False
) -> Engine:
    """The engine of a configuration.

    model: a Hugging Face model directory, for the kinds that run one. meter: bills paid calls; without
    one they are made and billed nowhere. logprobs: completions carry the log-probability of each token, where a
    model is run. Raises InputError when the kind needs a model and none is given, or
    for several replicas (see `replicas.py`).
    """
    if isinstance(config, ScriptedConfig):
        from fathom.engines.scripted import SCRIPTS, ScriptedEngine

        return ScriptedEngine(engine_name(config), SCRIPTS[config.script])
    if isinstance(config, RecordedConfig):
        from fathom.engines.recorded import RecordedEngine

        return RecordedEngine(config)
    if isinstance(config, HttpConfig):
        from fathom.engines.http import HttpEngine

        return HttpEngine(config, meter)
    if model is None:
        raise _no_model(config)
    if config.replicas > 1:
        raise InputError(f"engine.replicas: {config.replicas} copies, but this stage asks one engine")
    if isinstance(config, VllmConfig) and config.server:
        from fathom.engines.vllm_server import VllmServerEngine

        return VllmServerEngine(model, config, logprobs)
    if isinstance(config, VllmConfig):
        from fathom.engines.vllm import VllmEngine

        return VllmEngine(model, config, logprobs)
    from fathom.engines.hf import TransformersEngine

    return TransformersEngine(model, config, logprobs)
