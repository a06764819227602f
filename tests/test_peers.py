"""GPUs that copy into one another's memory exchange what collectives exchange, whoever is late."""

import os
import random
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from two_processes import together

from fathom.train.peers import SLOTS, PeerCopies, open_copies
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


def views(flat: torch.Tensor, shapes: list[tuple[int, ...]] = SHAPES) -> list[torch.Tensor]:
    """The tensors of these shapes at the beginning of a buffer."""
    lengths = [torch.Size(shape).numel() for shape in shapes]
    return [part.view(shape) for part, shape in zip(flat[: sum(lengths)].split(lengths), shapes, strict=True)]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_copies_and_collectives_exchange_the_same():
    together(exchanges)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_rows_find_their_places_among_several_processes(monkeypatch, world):
    """Addresses alone: all processes in this one, in turn, so that nothing has to wait."""
    stream = SimpleNamespace(wait_stream=lambda other: None, wait_event=lambda event: None, record_event=lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda own: nullcontext())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda rows, own: None)
    for name in ("_tell", "_await"):
        monkeypatch.setattr(PeerCopies, name, lambda *told: None)
    shapes = [(12 * world, 5), (2 * world,), (3 * world, 7)]
    size = sum(torch.Size(shape).numel() for shape in shapes) + 24
    weights = [torch.zeros(SLOTS, size) for _ in range(world)]
    received = [torch.zeros(world - 1, SLOTS, -(-size // world)) for _ in range(world)]
    processes = []
    for rank in range(world):
        process = PeerCopies.__new__(PeerCopies)
        process._rank, process._world, process._others = rank, world, [r for r in range(world) if r != rank]
        process._weights, process._received = weights, received
        process._weights_out = process._gradients_out = stream
        process._gathers = process._sums = 0
        processes.append(process)
    generator = torch.Generator().manual_seed(0)
    for turn in range(2 * SLOTS + 1):
        rows = [[torch.randn(n // world, *rest, generator=generator) for n, *rest in shapes] for _ in range(world)]
        gradients = [torch.randn(size, generator=generator) for _ in range(world)]
        buffers = [weights[rank][turn % SLOTS] for rank in range(world)]
        for process, own, buffer in zip(processes, rows, buffers, strict=True):
            process.gather(own, views(buffer, shapes))
        for buffer in buffers:
            assert all(map(torch.equal, views(buffer, shapes), map(torch.cat, zip(*rows, strict=True))))
        sums = [p.reduce(views(own, shapes), [own.dtype] * 3) for p, own in zip(processes, gradients, strict=True)]
        whole = views(sum(gradients), shapes)
        for rank, finish in enumerate(sums):
            torch.testing.assert_close(finish(), [part.chunk(world)[rank] for part in whole])


def test_processes_without_gpus_do_not_copy(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert open_copies(dist.group.WORLD, 8, torch.float32, torch.device("cpu")) is None
    finally:
        dist.destroy_process_group()
