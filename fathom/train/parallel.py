"""Several processes that train one model: who they are, how they share weights and packs.

Weights, gradients and moments are sharded with FSDP2 (`fully_shard`), the packs of a step are dealt
out, and gradients are summed, so a step is the same sum as on one device. One process is the special
case in which nothing is exchanged. Processes are started elsewhere (torchrun).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from fathom.errors import InputError
from fathom.train.batch import Pack
from fathom.train.context import Context, context_logprobs
from fathom.train.model import pack_logprobs

Forward = Callable[[Pack], torch.Tensor]
"""log-probabilities of a pack's predicted tokens, float32, shape N; what `pack_logprobs` gives for a model."""


@dataclass(frozen=True)
class World:
    """This process among those of the run. device: its own. side: a group for what talks beside the training.

    context: who shares each pack with it, None where it has its packs to itself.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    side: dist.ProcessGroup | None = None
    context: Context | None = None

    @property
    def shared_by(self) -> int:
        """How many processes work on one pack together."""
        return self.context.size if self.context else 1

    @property
    def places(self) -> int:
        """To how many processes, or groups that share packs, the packs of a step are dealt."""
        return self.size // self.shared_by

    @property
    def first(self) -> bool:
        return self.rank == 0

    def total(self, value: float) -> float:
        """Sum over the processes."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return float(tensor)

    def dealt(self, items: Sequence[Any], work: Callable[[Any], Any]) -> list[Any]:
        """`work` of every item, in their order, in all processes; each works on every `size`-th one.

        All make as many calls (`work` may exchange weights), the last ones for nothing where the items don't divide.
        """
        if self.size == 1:
            return [work(item) for item in items]
        rounds = -(-len(items) // self.size)
        own = [work(items[min(turn * self.size + self.rank, len(items) - 1)]) for turn in range(rounds)]
        all_of: list[Any] = [None] * self.size
        dist.all_gather_object(all_of, own)
        return [all_of[number % self.size][number // self.size] for number in range(len(items))]

    def any(self, flag: bool) -> bool:
        """Whether it holds in one of the processes."""
        return self.total(float(flag)) > 0

    def told_by_first(self, act: Callable[[], Any]) -> Any:
        """What `act` returns or raises in the first process, in all of them; the others don't call it."""
        if self.size == 1:
            return act()
        told: list[Any] = [None, None]
        if self.first:
            try:
                told[0] = act()
            except Exception as error:
                told[1] = error
        dist.broadcast_object_list(told, src=0)
        if told[1] is not None:
            raise told[1]
        return told[0]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def mine(self, packs: Sequence[Pack]) -> list[Pack]:
        """The packs of this process. All get as many; for one too few there is the last, the shortest, which weighs nothing."""
        own = list(packs[self.rank // self.shared_by :: self.places])
        if len(own) < -(-len(packs) // self.places):
            own.append(replace(packs[-1], weights_N=torch.zeros_like(packs[-1].weights_N)))
        return own


@contextmanager
def joined(sharing: int = 1) -> Iterator[World]:
    """The world that torchrun's environment describes, for the time of the block; one process where there is none.

    sharing: how many processes work on one pack together (context parallelism). Raises InputError
    when there are fewer GPUs than processes on this machine, or the processes don't divide so.
    """
    size, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available()
    if cuda and local >= torch.cuda.device_count():
        raise InputError(f"hardware.count: {size} processes, but this machine has {torch.cuda.device_count()} GPUs")
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if size % sharing:
        raise InputError(f"context: {sharing} processes to a pack, and hardware.count is {size}")
    if size == 1:
        yield World(device=device)
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        side = dist.new_group(backend="gloo")
        yield World(dist.get_rank(), size, device, side, _share_packs(size, sharing))
    finally:
        dist.destroy_process_group()


def _share_packs(size: int, sharing: int) -> Context | None:
    """The processes next to this one that share its packs; every process makes every group."""
    if sharing == 1:
        return None
    groups = [dist.new_group(range(start, start + sharing)) for start in range(0, size, sharing)]
    return Context(groups[dist.get_rank() // sharing], dist.get_rank() % sharing, sharing)


def shard(model: PreTrainedModel, world: World, compute: torch.dtype) -> Forward:
    """Share the model over the world, in place; returns how to run a pack through it.

    compute: dtype of the forward and backward pass; weights keep theirs (float32 weights are their own
    masters). Gradients are reduced in float32 and summed.
    """
    if world.size == 1:
        return functools.partial(pack_logprobs, model)
    heads = model.config.num_key_value_heads
    if heads % world.shared_by:
        raise InputError(
            f"context: the model has {heads} key heads, which don't divide among {world.shared_by} processes"
        )
    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    for part in (*model.get_decoder().layers, model):
        fully_shard(part, mesh=mesh, mp_policy=policy)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
    run = functools.partial(context_logprobs, context=world.context) if world.context else pack_logprobs
    model.pack_logprobs = MethodType(run, model)
    register_fsdp_forward_method(model, "pack_logprobs")

    def forward(pack: Pack) -> torch.Tensor:
        logprobs = model.pack_logprobs(pack)
        if not torch.is_grad_enabled():  # no backward pass will, and whole weights must not be taken for the shards
            model.reshard()
        return logprobs

    return forward


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a sharded tensor (every process must ask); a plain one as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
