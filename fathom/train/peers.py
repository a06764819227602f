"""Weights and gradients exchanged by the copy engines of GPUs on one host, beside the arithmetic.

The kernel of a collective takes multiprocessors from the arithmetic, and holds them while it waits for the others; a copy
engine takes none. Each process writes its rows straight into the others' memory (torch's symmetric memory). Who may
write, and what has arrived, are counters in that memory, which the GPUs' streams write and wait for themselves (CUDA's
stream memory operations). It shards nothing, and knows no layers.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

SLOTS = 2
"""Places for weights, and for gradients under way; one is filled while the other is used."""

ROOM, WEIGHTS, GRADIENT_ROOM, GRADIENTS = range(4)
"""What a process tells each other one, as a number of exchanges: there is room for its weights, its weights have
arrived, there is room for its gradients, its gradients have arrived."""

_open: weakref.WeakSet[PeerCopies] = weakref.WeakSet()


def outside_bytes() -> int:
    """Of device memory that this process holds for exchanges, which torch's own counts leave out."""
    return sum(copies.bytes for copies in _open)


class PeerCopies:
    """`sharded.Collectives` for GPUs that reach one another's memory.

    All processes of the group make it at once (`open_copies`), and nobody exchanges before all have made it.
    """

    def __init__(self, group: dist.ProcessGroup, size: int, dtype: torch.dtype, device: torch.device) -> None:
        from cuda.bindings import driver
        from torch.distributed import _symmetric_memory as symmetric

        self._driver = driver
        self._rank, self._world = group.rank(), group.size()
        self._others = [(self._rank + k) % self._world for k in range(1, self._world)]
        self.bytes = 0
        _open.add(self)

        def shared(*shape: int, dtype: torch.dtype = dtype) -> list[torch.Tensor]:
            """Everybody's zeros of a shape, in memory that all can write to."""
            own = symmetric.empty(*shape, dtype=dtype, device=device).zero_()
            self.bytes += own.nbytes
            handle = symmetric.rendezvous(own, group)
            return [
                own if peer == self._rank else handle.get_remote_tensor(peer, own.shape, dtype)
                for peer in range(self._world)
            ]

        self._weights = shared(SLOTS, size)
        self._received = shared(self._world - 1, SLOTS, -(-size // self._world))
        self._counters = shared(4, self._world, dtype=torch.int32)
        self.weights = list(self._weights[self._rank])
        self.gradients = [torch.zeros(size, dtype=dtype, device=device) for _ in range(SLOTS)]
        self._weights_out, self._gradients_out = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self._gathers = self._sums = 0
        torch.cuda.synchronize(device)

    def gather(self, rows: Sequence[torch.Tensor], views: Sequence[torch.Tensor]) -> Callable[[], None]:
        """Start to fill views of `weights` with everybody's rows; what to call before they are used."""
        self._gathers += 1
        turn, out = self._gathers, self._weights_out
        out.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(out):
            for peer in self._others:
                self._tell(peer, ROOM, turn)
            places = [view.chunk(self._world)[self._rank] for view in views]
            for place, own in zip(places, rows, strict=True):
                place.copy_(own)
                own.record_stream(out)
            placed = out.record_event()
            start = self._weights[self._rank].data_ptr()
            for peer in self._others:
                self._await(peer, ROOM, turn)
                theirs = self._weights[peer].view(-1)
                for place in places:
                    at = (place.data_ptr() - start) // place.element_size()
                    theirs[at : at + place.numel()].copy_(place.reshape(-1))
                self._tell(peer, WEIGHTS, turn)

        def wait() -> None:
            torch.cuda.current_stream().wait_event(placed)
            for peer in self._others:
                self._await(peer, WEIGHTS, turn)

        return wait

    def reduce(self, views: Sequence[torch.Tensor], dtypes: Sequence[torch.dtype]) -> Callable[[], list[torch.Tensor]]:
        """Start to sum views of `gradients` over the processes; what to call for this one's rows of the sums."""
        self._sums += 1
        turn, out = self._sums, self._gradients_out
        slot = turn % SLOTS
        parts = [view.chunk(self._world) for view in views]
        out.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(out):
            for peer in self._others:
                if turn > SLOTS:
                    self._await(peer, GRADIENT_ROOM, turn)
                for part, place in zip(parts, self._places(self._rank, peer, slot, parts), strict=True):
                    place.copy_(part[peer])
                self._tell(peer, GRADIENTS, turn)
            sent = out.record_event()

        def finish() -> list[torch.Tensor]:
            sums = [part[self._rank].to(dtype) for part, dtype in zip(parts, dtypes, strict=True)]
            for peer in self._others:
                self._await(peer, GRADIENTS, turn)
                sums = torch._foreach_add(sums, self._places(peer, self._rank, slot, parts))
                self._tell(peer, GRADIENT_ROOM, turn + SLOTS)
            torch.cuda.current_stream().wait_event(sent)
            return sums

        return finish

    def settle(self) -> None:
        """Rows may change after what is asked of the device from now on."""
        torch.cuda.current_stream().wait_stream(self._weights_out)

    def _places(
        self, source: int, target: int, slot: int, parts: Sequence[Sequence[torch.Tensor]]
    ) -> list[torch.Tensor]:
        """Where `target` has the rows of each gradient that come from `source`. parts: the gradients in as many as processes."""
        rows = [part[target] for part in parts]
        sizes = [some.numel() for some in rows]
        memory = self._received[target][(source - target - 1) % self._world, slot]
        return [place.view_as(some) for place, some in zip(memory[: sum(sizes)].split(sizes), rows, strict=True)]

    def _tell(self, peer: int, what: int, number: int) -> None:
        """Once the current stream gets here, `peer` knows."""
        at = self._counters[peer][what, self._rank].data_ptr()
        self._check(self._driver.cuStreamWriteValue32(torch.cuda.current_stream().cuda_stream, at, number, 0))

    def _await(self, peer: int, what: int, number: int) -> None:
        """Have the current stream wait until `peer` has told it that number, or a later one."""
        at = self._counters[self._rank][what, peer].data_ptr()
        later = int(self._driver.CUstreamWaitValue_flags.CU_STREAM_WAIT_VALUE_GEQ)
        self._check(self._driver.cuStreamWaitValue32(torch.cuda.current_stream().cuda_stream, at, number, later))

    def _check(self, result: tuple) -> None:
        if int(result[0]):
            raise RuntimeError(f"CUDA's stream memory operations: {result[0].name}")


def open_copies(group: dist.ProcessGroup, size: int, dtype: torch.dtype, device: torch.device) -> PeerCopies | None:
    """PeerCopies where all of the group can have them: on GPUs of one host that reach one another's memory; None elsewhere."""
    on_this_host = int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
    if device.type != "cuda" or group.size() == 1 or group.size() != on_this_host:
        return None
    others = [number for number in range(group.size()) if number != device.index]
    seen = torch.cuda.device_count() >= group.size()
    if not _all(group, device, seen and all(torch.cuda.can_device_access_peer(device.index, n) for n in others)):
        return None
    try:
        copies = PeerCopies(group, size, dtype, device)
    # Another torch, whose private parts these are; no driver bindings; a container in which memory can't be shared.
    except (AttributeError, ImportError, RuntimeError):
        copies = None
    return copies if _all(group, device, copies is not None) else None


def _all(group: dist.ProcessGroup, device: torch.device, own: bool) -> bool:
    """Whether it holds in all processes; all must ask."""
    answer = torch.tensor(int(own), device=device)
    dist.all_reduce(answer, dist.ReduceOp.MIN, group)
    return bool(answer)
