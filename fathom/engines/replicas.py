"""Engines in several copies: each worker of a Ray cluster opens its own and keeps it.

`staffed_engine` gives a stage its engine and the crew that works with it. Whole chunks go to the
copies, made up as they would be here, so every chain is the same. The calls of a paid engine are not dealt out: one process sends them
at once as they are, and keeps the bill.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fathom.engines import (
    Completion,
    Engine,
    EngineConfig,
    HttpConfig,
    Request,
    TransformersConfig,
    VllmConfig,
    engine_name,
    open_engine,
)
from fathom.errors import InputError
from fathom.fanout import Crew, Here, RayConfig, RayCrew
from fathom.records import Sampling

if TYPE_CHECKING:
    from fathom.ledger import Meter


@dataclass(frozen=True)
class Replica:
    """An engine by its configuration: light to send to a worker, opened where it is asked."""

    config: EngineConfig
    model: Path | None
    name: str
    device: str

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Completion]:
        """As the engine itself."""
        key = (self.config.model_dump_json(), self.model)
        if key not in _OPEN:
            _OPEN[key] = open_engine(self.config, self.model)
        return _OPEN[key].generate(requests, sampling)

    def close(self) -> None:
        """Nothing to release: an open engine ends with its worker."""


_OPEN: dict[tuple[str, Path | None], Engine] = {}
"""The engines of this worker; several waves and samplings ask the same one."""


def check_fan_out(config: EngineConfig, ray: RayConfig | None) -> None:
    """Raises ValueError, in a configuration's words, for a `ray` that says nothing to this engine."""
    if ray and isinstance(config, HttpConfig):
        raise ValueError("ray is for engines that run here; calls to an endpoint have `concurrency`")
    if ray and ray.workers and isinstance(config, TransformersConfig | VllmConfig):
        raise ValueError("ray.workers is for stages without a model; engine.replicas says how many copies there are")


@contextlib.contextmanager
def staffed_engine(
    config: EngineConfig, model: Path | None, meter: Meter, ray: RayConfig | None
) -> Iterator[tuple[Engine, Crew]]:
    """The engine of a stage and who works with it: this process, or replicas where `replicas` or `ray` ask for them.

    model: see `open_engine`; every machine of a cluster must find it under this path. Raises InputError as `RayCrew` does.
    """
    runs_model = isinstance(config, TransformersConfig | VllmConfig)
    if ray is None and not (runs_model and config.replicas > 1):
        with contextlib.closing(open_engine(config, model, meter)) as engine:
            yield engine, Here()
        return
    ray = ray or RayConfig()
    name = engine_name(config, model)
    size, gpus = (config.replicas, config.replica_gpus) if runs_model else (ray.workers, 0)
    with RayCrew(ray, size, gpus) as crew:
        if isinstance(config, VllmConfig) and not crew.gpus:
            raise InputError(f"ray.address {ray.address!r}: the cluster has no GPU, which engine kind 'vllm' needs")
        one = config.model_copy(update={"replicas": 1}) if runs_model else config
        yield Replica(one, model and model.absolute(), name, "cuda" if crew.gpus else "cpu"), crew
