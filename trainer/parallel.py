"""Several processes of one machine as `Ranks`: torch.distributed over gloo on CPUs, and over NCCL for what
lies on GPUs. What is said to one another is numbers and msgpack, never a pickle.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store, TCPStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from trainer.channel import Channel, LostError
from trainer.ranks import Ranks
from trainer.sampling.engine import EngineError
from trainer.sampling.remote_engine import EngineProcesses
from trainer.supervised import Place
from trainer.transfer import Feed

# The longest that ranks wait for one another inside a step. One that died or stands still is noticed by the
# launcher within seconds; this ends the rest.
WAIT = timedelta(minutes=15)
JOIN = timedelta(minutes=2)


class _Talking(Ranks):
    """Ranks that talk over a process group; None: the one of all."""

    _over: dist.ProcessGroup | None = None

    def __init__(self, rank: int, size: int, over: dist.ProcessGroup) -> None:
        self.rank, self.size, self._over = rank, size, over

    def gather(self, content: bytes) -> list[bytes]:
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(content)]), group=self._over)
        longest = max(1, *(int(length) for length in lengths))
        padded = torch.zeros(longest, dtype=torch.uint8)
        if content:
            padded[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        parts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(parts, padded, group=self._over)
        return [part[: int(length)].numpy().tobytes() for part, length in zip(parts, lengths, strict=True)]

    def largest(self, *values: int) -> list[int]:
        found = torch.tensor(values)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self._over)
        return [int(value) for value in found]


class Group(_Talking):
    """The ranks of a run, each on a device of its own."""

    def __init__(self, place: Place, device: torch.device) -> None:
        self.rank, self.size = place.rank, place.size
        is_gpu = device.type == "cuda"
        if is_gpu:
            torch.cuda.set_device(device)
        self.store = meeting_point(place)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if is_gpu else "gloo",
            store=self.store,
            rank=self.rank,
            world_size=self.size,
            timeout=WAIT,
        )
        self.mesh: DeviceMesh = init_device_mesh(device.type, (self.size,))
        # Two threads on one process group would take each other's words.
        self._aside = _Talking(self.rank, self.size, dist.new_group(backend="gloo", timeout=WAIT))

    @property
    def aside(self) -> Ranks:
        return self._aside


def meeting_point(place: Place) -> TCPStore:
    """Where the run's processes meet: rank 0 holds it, and it is there once all ranks have come."""
    store = TCPStore(
        place.address,
        place.port,
        place.size,
        place.rank == 0,
        timeout=JOIN,
        master_listen_fd=place.store_fd if place.rank == 0 else None,
    )
    if place.store_fd is not None:  # nothing that this process starts keeps it open
        os.set_inheritable(place.store_fd, False)
    return store


def engines_of(
    place: Place, store: Store, descriptors: Sequence[int], device: torch.device
) -> EngineProcesses:
    """This rank's engine processes, at the other ends of these sockets."""
    feed = Feed(store, feed_name(place.rank), 0, 1 + len(descriptors), device)
    return EngineProcesses([Channel(descriptor) for descriptor in descriptors], feed)


def feed_of(address: str, port: int, number: int, each: int, device: torch.device) -> Feed:
    """Where the weights of engine process `number` (from 0) come from, of `each` that a rank has."""
    store = TCPStore(address, port, None, False, timeout=JOIN, wait_for_workers=False)
    return Feed(store, feed_name(number // each), 1 + number % each, 1 + each, device)


def feed_name(rank: int) -> str:
    return f"weights of rank {rank}"


def device_of(place: Place | None, kind: str) -> torch.device:
    """A rank's own GPU; CPUs are one device for all. `kind`: cpu or cuda."""
    return torch.device(kind) if place is None or kind == "cpu" else torch.device(kind, place.rank)


def memory_bytes(device: torch.device) -> int:
    """Of this process: the most that it had allocated on its GPU, on a CPU what is resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo", "NCCL", "Timed out")


def is_loss_of_rank(error: BaseException) -> bool:
    """Whether what failed is another process of the run, which this one waited for, if within an engine."""
    if isinstance(error, dist.DistError | LostError):
        return True
    if isinstance(error, EngineError) and error.__cause__ is not None:
        return is_loss_of_rank(error.__cause__)
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST)
