"""AdamW over a model's parameters, and its state as named tensors; float32 arithmetic, storage as configured.

`MasterAdamW` holds everything in float32: where the model computes in float32 its own parameters
are the masters; where it computes in bfloat16 the masters stand beside it, gradients are
accumulated into them in float32, and every update is rounded back once. `FusedAdamW` stores
moments in 8 bits or masters as halves, and touches every byte once. Neither schedules, logs or
decides when to step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch.distributed.tensor import DTensor

from fathom.errors import InputError
from fathom.train.adamw import Moments, Rule, square_sums, update_
from fathom.train.config import OptimizerConfig


def open_optimizer(
    model: torch.nn.Module, config: OptimizerConfig, betas: tuple[float, float], weight_decay: float, seed: int
) -> Optimizer:
    """The optimizer of a configuration. seed: of stochastic rounding."""
    if (config.states, config.master) == ("float32", "float32"):
        return MasterAdamW(model, betas, weight_decay)
    return FusedAdamW(model, config, betas, weight_decay, seed)


class MasterAdamW:
    """AdamW over all trainable parameters of a model; weight decay falls on matrices only."""

    def __init__(self, model: torch.nn.Module, betas: tuple[float, float], weight_decay: float) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._masters = {
            name: p if p.dtype == torch.float32 else torch.nn.Parameter(p.detach().float())
            for name, p in self._parameters.items()
        }
        groups = [
            {"params": [m for m in self._masters.values() if m.ndim >= 2], "weight_decay": weight_decay},
            {"params": [m for m in self._masters.values() if m.ndim < 2], "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(groups, betas=betas, fused=True)
        self._finite = True

    def accumulate(self) -> None:
        """Add the model's gradients to those of the masters; call after every backward pass."""
        for name, p in self._parameters.items():
            master = self._masters[name]
            if master is p or p.grad is None:
                continue
            if master.grad is None:
                master.grad = p.grad.float()
            else:
                master.grad.add_(p.grad)
            p.grad = None

    def clip(self, limit: float | None) -> torch.Tensor:
        """Scale the gradients down to a total norm of `limit` (None: leave them); the norm before, a scalar tensor."""
        norm = torch.nn.utils.clip_grad_norm_(self._masters.values(), limit or math.inf)
        self._finite = bool(norm.isfinite())
        return norm

    def step(self, rate: float) -> None:
        """Update masters and model at this learning rate; nothing where `clip` found a norm that is not finite."""
        if not self._finite:
            return
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()
        with torch.no_grad():
            for name, p in self._parameters.items():
                if p is not self._masters[name]:
                    p.copy_(self._masters[name])

    def drop_gradients(self) -> None:
        self._adamw.zero_grad(set_to_none=True)

    def forget_moments(self) -> None:
        """Start the moments and their bias correction anew, as in a fresh run on the present weights."""
        self._adamw.state.clear()

    def weights(self) -> dict[str, torch.Tensor]:
        """The float32 master weights by parameter name; not copies."""
        return {name: master.detach() for name, master in self._masters.items()}

    def moments(self) -> dict[str, torch.Tensor]:
        """Everything AdamW remembers, as "parameter/moment"; not copies."""
        return {
            f"{name}/{key}": value
            for name, master in self._masters.items()
            for key, value in self._adamw.state.get(master, {}).items()
        }

    def saved_bytes(self) -> int:
        """Of `weights` and `moments` together, once there are moments."""
        return 3 * sum(master.nbytes for master in self._masters.values())

    @torch.no_grad()
    def load(self, weights: Mapping[str, torch.Tensor], moments: Mapping[str, torch.Tensor]) -> None:
        """Take back what `weights` and `moments` returned, into masters and model."""
        remembered: dict[str, dict[str, torch.Tensor]] = {}
        for path, value in moments.items():
            name, _, key = path.rpartition("/")
            remembered.setdefault(name, {})[key] = value
        for name, master in self._masters.items():
            master.copy_(weights[name])
            self._parameters[name].copy_(master)
            if name in remembered:
                self._adamw.state[master] = {key: value.to(master.device) for key, value in remembered[name].items()}


class FusedAdamW:
    """AdamW with compact storage: one pass over each weight, its gradient and its moments; weight decay on matrices only.

    Gradients stay in the model's precision, where the backward passes add them up. Clipping is a
    factor that waits on the device for `step`, so nothing here waits for the device. An update
    whose gradient norm is not finite leaves everything as it was. Vectors (norms, biases) keep
    float32 moments. Of a sharded model each process updates its shards.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        config: OptimizerConfig,
        betas: tuple[float, float],
        weight_decay: float,
        seed: int,
    ) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._betas, self._weight_decay, self._seed = betas, weight_decay, seed
        self._moments = {
            name: Moments.zero(local(p).detach(), config.states if p.ndim >= 2 else "float32", largest_part(p))
            for name, p in self._parameters.items()
        }
        self._low = {
            name: torch.zeros_like(local(p).detach(), dtype=torch.int16)
            for name, p in self._parameters.items()
            if config.master == "split" and p.dtype == torch.bfloat16
        }
        self._updates = torch.zeros(2, dtype=torch.int64)
        """Since the moments were zero, and in all: the bias correction and the random bits."""
        self._factor: torch.Tensor | None = None

    def accumulate(self) -> None:
        """Nothing: autograd has added the gradients already."""

    def clip(self, limit: float | None) -> torch.Tensor:
        """Have `step` scale the gradients to a total norm of `limit` (None: leave them); the norm before, a scalar tensor."""
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        squares = square_sums([local(grad) for grad in gradients])
        if isinstance(gradients[0], DTensor):
            torch.distributed.all_reduce(squares, group=gradients[0].device_mesh.get_group())
        norm = squares.sqrt()
        wanted = torch.ones_like(norm) if limit is None else (limit / (norm + 1e-6)).clamp(max=1.0)
        self._factor = torch.where(norm.isfinite(), wanted, math.nan)
        return norm

    def step(self, rate: float) -> None:
        """Update the model at this learning rate, with the factor that `clip` found."""
        if self._factor is None:
            self.clip(None)
        self._updates += 1
        step, draw = self._updates.tolist()
        for number, (name, p) in enumerate(self._parameters.items()):
            if p.grad is not None:
                decay = self._weight_decay if p.ndim >= 2 else 0.0
                rule = Rule(rate, *self._betas, decay, step, self._seed, number, draw, first_element(p))
                weight, grad = local(p.detach()), local(p.grad)
                update_(weight, self._low.get(name), grad, self._moments[name], self._factor, rule)
        self._factor = None

    def drop_gradients(self) -> None:
        for p in self._parameters.values():
            p.grad = None

    def forget_moments(self) -> None:
        """Start the moments and their bias correction anew, as in a fresh run on the present weights."""
        self._updates[0] = 0
        for moments in self._moments.values():
            for stored in moments.named().values():
                stored.zero_()

    def weights(self) -> dict[str, torch.Tensor]:
        """The model's own weights by parameter name; not copies. With a split master, rounded (`moments` has the rest)."""
        return {name: p.detach() for name, p in self._parameters.items()}

    def moments(self) -> dict[str, torch.Tensor]:
        """All else that an exact resume needs, as "parameter/moment"; not copies. Sharded as the parameter is.

        "updates" stands with the first parameter and is of all of them.
        """
        state = {}
        for name, p in self._parameters.items():
            low = {"low": self._low[name]} if name in self._low else {}
            for key, part in {**self._moments[name].named(), **low}.items():
                state[f"{name}/{key}"] = like_parameter(part, p)
        return state | {f"{next(iter(self._parameters))}/updates": self._updates}

    def saved_bytes(self) -> int:
        """Of `weights` and `moments` together."""
        return sum(tensor.nbytes for tensor in (*self.weights().values(), *self.moments().values()))

    @torch.no_grad()
    def load(self, weights: Mapping[str, torch.Tensor], moments: Mapping[str, torch.Tensor]) -> None:
        """Take back what `weights` and `moments` returned, in this process or in others that sharded them otherwise."""
        for present, saved in ((self.weights(), weights), (self.moments(), moments)):
            for name, tensor in present.items():
                local(tensor).copy_(own_part(saved[name], tensor))


Optimizer = MasterAdamW | FusedAdamW


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a sharded tensor; a plain one as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def first_element(p: torch.Tensor) -> int:
    """Where this process's part of a tensor sharded over its rows begins, in elements; 0 where it is whole."""
    if not isinstance(p, DTensor):
        return 0
    rows = -(-p.shape[0] // p.device_mesh.size())
    return min(p.device_mesh.get_local_rank() * rows, p.shape[0]) * (p.numel() // p.shape[0])


def largest_part(p: torch.Tensor) -> int:
    """Elements of the largest shard of a tensor, so that every process has as many scales."""
    if not isinstance(p, DTensor):
        return p.numel()
    return -(-p.shape[0] // p.device_mesh.size()) * (p.numel() // p.shape[0])


def like_parameter(part: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """This process's part of a state (of the parameter's shape, or one value a block) as a shard of the whole state."""
    if not isinstance(p, DTensor):
        return part
    if part.shape == local(p).shape:
        return DTensor.from_local(part, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())
    return DTensor.from_local(part, p.device_mesh, p.placements, run_check=False)


def own_part(saved: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """What this process needs of a saved tensor. Raises InputError where blocks of 256 fall on other borders now."""
    if isinstance(saved, DTensor) or not isinstance(present, DTensor):
        part = local(saved)
    else:
        start = first_element(present) // (present.numel() // len(present))
        part = saved[start : start + len(local(present))]
    if part.shape != local(present).shape:
        raise InputError(
            f"optimizer state of {tuple(saved.shape)} values does not divide into {tuple(present.shape)}: "
            "its blocks of 256 weights do not fit this number of devices; resume on as many as before"
        )
    return part
