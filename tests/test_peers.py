"""GPUs that copy into one another's memory exchange what collectives exchange, whoever is late."""

import os
import random

import pytest
import torch
import torch.distributed as dist
from two_processes import together

from fathom.train.peers import open_copies
from fathom.train.sharded import Collectives

SHAPES = [(64, 1000), (6,), (2048, 512), (512, 2048)]
TURNS = 40


def exchanges(rank: int) -> None:
    """Gathers and sums of random rows, while one process or the other is held up."""
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    torch.cuda.set_device(rank)
    device = torch.device("cuda", rank)
    dist.init_process_group("cpu:gloo,cuda:nccl")
    try:
        group = dist.group.WORLD
        buffer = (group, sum(torch.Size(shape).numel() for shape in SHAPES), torch.bfloat16, device)
        copies = open_copies(*buffer)
        assert copies is not None
        ways = [copies, Collectives(*buffer)]
        late = random.Random(rank)
        generator = torch.Generator(device).manual_seed(rank)
        waiting: list[list] = [[], []]
        for turn in range(TURNS):
            dtype = torch.float32 if turn % 4 == 0 else torch.bfloat16
            rows = [torch.randn(shape[0] // 2, *shape[1:], generator=generator, device=device) for shape in SHAPES]
            whole = torch.randn(buffer[1], generator=generator, device=device).bfloat16()
            found: list[list[torch.Tensor]] = [[], []]
            for number, way in enumerate(ways):
                ready = way.gather([part.bfloat16() for part in rows], views(way.weights[turn % 2]))
                torch.cuda._sleep(late.randrange(10**6) if late.random() < 0.5 else 1)
                if len(waiting[number]) == 2:
                    found[number] += waiting[number].pop(0)()
                way.gradients[turn % 2].copy_(whole)
                waiting[number].append(way.reduce(views(way.gradients[turn % 2]), [dtype] * len(SHAPES)))
                ready()
                found[number].append(way.weights[turn % 2].clone())
            for ours, theirs in zip(*found, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        for ours, theirs in zip(*[[part() for part in parts] for parts in waiting], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    finally:
        dist.destroy_process_group()


def views(flat: torch.Tensor) -> list[torch.Tensor]:
    lengths = [torch.Size(shape).numel() for shape in SHAPES]
    return [part.view(shape) for part, shape in zip(flat.split(lengths), SHAPES, strict=True)]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_copies_and_collectives_exchange_the_same():
    together(exchanges)


def test_processes_without_gpus_do_not_copy(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert open_copies(dist.group.WORLD, 8, torch.float32, torch.device("cpu")) is None
    finally:
        dist.destroy_process_group()
