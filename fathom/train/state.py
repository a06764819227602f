"""The state of a training run on disk: weights, moments and the log, as checkpoints that are whole or absent.

One process writes two files. Several write their shards through torch's distributed checkpoint, in
safetensors (its default form holds a pickle) and in the background; the checkpoint is sealed once all
shards are there. Either kind resumes on any number of processes. When to save is the loop's business.
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor

from fathom.errors import InputError, WorkError, first_line
from fathom.ledger import Meter
from fathom.store import disk_errors
from fathom.train.checkpoint import Checkpoints
from fathom.train.optimizer import Optimizer
from fathom.train.parallel import World
from fathom.weights import os_errors

WEIGHTS, MOMENTS, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"

logging.getLogger("torch.distributed.checkpoint").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", module="torch.distributed.checkpoint")


class Saver:
    """Writes the checkpoints of one run. log: its rows, which the loop appends to."""

    def __init__(
        self,
        optimizer: Optimizer,
        checkpoints: Checkpoints,
        meter: Meter,
        identity: Mapping[str, Any],
        log: Sequence[Mapping[str, Any]],
        world: World,
    ):
        self._optimizer, self._checkpoints, self._meter = optimizer, checkpoints, meter
        self._identity, self._log, self._world = dict(identity), log, world
        self._saved = len(log) or None
        """The step of the newest checkpoint that was read or written."""
        self._pending: tuple[int, Future] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    def save(self) -> None:
        """Checkpoint the present state, unless that was done already. With several processes it may go on after this."""
        step = len(self._log)
        self.finish()
        if step == self._saved:
            return
        if self._world.size == 1:
            self._checkpoints.save(step, self._write)
            self._saved = step
            self._meter.saved()
            return
        directory = self._world.told_by_first(lambda: self._begin(step))
        writer = HuggingFaceStorageWriter(str(directory), save_distributed=True)
        tensors = {**self._optimizer.weights(), **self._optimizer.moments()}
        copies = {
            name: tensor.detach().cpu() if tensor.is_cuda else tensor.detach().clone()
            for name, tensor in tensors.items()
        }
        self._pending = (
            step,
            self._thread.submit(dcp.save, copies, storage_writer=writer, process_group=self._world.side),
        )

    def seal_written(self) -> None:
        """Seal what was being written where every process has written its part. All call it at once."""
        if self._pending is not None and not self._world.any(not self._pending[1].done()):
            self.finish()

    def finish(self) -> None:
        """Wait for what is being written, and seal it."""
        if self._pending is None:
            return
        step, written = self._pending
        self._pending = None
        try:
            written.result()
        except CheckpointException as error:  # the same in all processes, and no Exception
            raise_for(error, self._checkpoints.directory / f"step-{step}")
        self._world.barrier()
        self._world.told_by_first(lambda: self._checkpoints.seal(step))
        self._saved = step
        self._meter.saved()

    def _begin(self, step: int) -> Path:
        directory = self._checkpoints.begin(step)
        with disk_errors(directory):
            self._write_log(directory)
        return directory

    def _write(self, directory: Path) -> None:
        with os_errors(directory):
            save_file(self._optimizer.weights(), directory / WEIGHTS)
            save_file(self._optimizer.moments(), directory / MOMENTS)
        self._write_log(directory)

    def _write_log(self, directory: Path) -> None:
        state = {"step": len(self._log), "identity": self._identity, "log": list(self._log)}
        (directory / STATE).write_text(json.dumps(state), encoding="utf-8")


def raise_for(error: CheckpointException, path: Path) -> NoReturn:
    """What kept shards from being written, as an error that crosses folders."""
    causes = [failure[0] if isinstance(failure, tuple) else failure for failure in error.failures.values()]
    for cause in causes:
        if isinstance(cause, OSError):
            with disk_errors(path):
                raise cause from None
    raise WorkError(f"{path}: the checkpoint was not written ({first_line(causes[0])})") from error


def resume(
    optimizer: Optimizer, checkpoints: Checkpoints, identity: Mapping[str, Any], world: World
) -> list[dict[str, Any]]:
    """Load the newest checkpoint that verifies; return its log ([] when there never was one).

    What a killed run had begun to write goes. Raises as `Checkpoints.newest`, and InputError for another run's checkpoint.
    """
    world.told_by_first(checkpoints.drop_unfinished)
    found = world.told_by_first(checkpoints.newest)
    if found is None:
        return []
    state = json.loads((found / STATE).read_text(encoding="utf-8"))
    then, now = state["identity"], json.loads(json.dumps(identity))
    if changed := sorted(key for key in {*now, *then} if now.get(key) != then.get(key)):
        what = ", ".join(f"{key} was {then.get(key)!r} and is {now.get(key)!r}" for key in changed)
        raise InputError(f"{found}: made by another run ({what}); remove {checkpoints.directory} to start over")
    if world.size == 1 and (found / WEIGHTS).is_file():
        optimizer.load(load_file(found / WEIGHTS), load_file(found / MOMENTS))
    else:
        weights, moments = _read_shards(found, optimizer.weights())
        optimizer.load(weights, moments)
    return state["log"]


def _read_shards(
    directory: Path, masters: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights and moments of a checkpoint of either kind, each process its part, sharded as the masters are now."""
    reader = HuggingFaceStorageReader(str(directory))
    stored = reader.read_metadata().state_dict_metadata
    tensors = {
        name: _like(masters[name if name in masters else name.rpartition("/")[0]], entry.size, entry.properties.dtype)
        for name, entry in stored.items()
    }
    dcp.load(tensors, storage_reader=reader)
    weights = {name: tensor for name, tensor in tensors.items() if name in masters}
    return weights, {name: tensor for name, tensor in tensors.items() if name not in masters}


def _like(master: torch.Tensor, size: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """Room for a stored tensor: sharded as its master where it has the master's shape, else whole in each process."""
    if size == master.shape:
        return torch.empty_like(master, dtype=dtype)
    device = master.to_local().device if isinstance(master, DTensor) else master.device
    return torch.empty(size, dtype=dtype, device=device)


def require_space(optimizer: Optimizer, checkpoints: Checkpoints, to_come: int) -> None:
    """Raise InputError when the disk can't hold the checkpoints (weights and moments each) that will lie there at once.

    to_come: how many the run will still write. One is written before the oldest of those that are kept goes.
    """
    checkpoints.directory.mkdir(parents=True, exist_ok=True)
    more = min(to_come, max(1, checkpoints.keep + 1 - len(checkpoints.steps())))
    need = more * optimizer.saved_bytes()
    free = shutil.disk_usage(checkpoints.directory).free
    if free < need:
        raise InputError(
            f"{checkpoints.directory}: room for {more} more checkpoints is needed, {need:,} bytes, and {free:,} are free"
        )
