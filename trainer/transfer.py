"""Weights on their way from a training process to its engine processes: packed into a few large messages,
NCCL's between GPUs, gloo's between CPUs.

A model has hundreds of small tensors and a broadcast has a price of its own, so their bytes are laid one
behind the other into buckets of a bounded size, and a bucket is one broadcast to all engines at once. Both
ends reckon the places from the sizes alone (`buckets`); nothing but bytes is sent. The group is no
torch.distributed world: the ranks have theirs, and vLLM makes one of its own in an engine's process.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store

# Measured on a CPU: 277 MB go over gloo in .18 s by 16 MiB, which stay in its cache, and in .44 s by 256 MiB.
# NCCL likes large messages; not measured yet.
BUCKET_BYTES: Final = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}
# The launcher notices a process that died or stands still within seconds; this ends the rest.
WAIT: Final = timedelta(minutes=15)


class Piece(NamedTuple):
    """Bytes `own` of tensor number `tensor`; in their bucket they stand `there`."""

    tensor: int
    own: slice
    there: slice


def buckets(sizes: Sequence[int], most: int) -> list[list[Piece]]:
    """What stands where, for tensors of so many bytes each: all buckets but the last are full."""
    found: list[list[Piece]] = []
    room = 0
    for tensor, size in enumerate(sizes):
        first = 0
        while first < size:
            if not room:
                found.append([])
                room = most
            count, at = min(size - first, room), most - room
            found[-1].append(Piece(tensor, slice(first, first + count), slice(at, at + count)))
            first, room = first + count, room - count
    return found


class Feed:
    """A training process (member 0) and its engine processes. All of its methods but `make_room` are
    collective.
    """

    def __init__(self, store: Store, name: str, member: int, size: int, device: torch.device) -> None:
        """`store`: where all processes of the run meet; `name`: of this feed among those that meet there;
        `device`: this member's own.
        """
        self._device, self._most = device, BUCKET_BYTES[device.type]
        self._room: Tensor | None = None  # of the next hand-over's buckets
        meeting = PrefixStore(name, store)
        self._group: Any  # torch types it in part, and a torch without CUDA has no NCCL
        if device.type == "cuda":
            torch.cuda.set_device(device)
            kind: Any = dist.ProcessGroupNCCL  # type: ignore[attr-defined,unused-ignore]
            options = kind.Options()
            options._timeout = WAIT  # as torch itself sets it
            self._group = kind(meeting, member, size, options)
        else:
            self._group = dist.ProcessGroupGloo(meeting, member, size, WAIT)

    def make_room(self, tensors: Sequence[Tensor]) -> Tensor:
        """For these to be sent or received next: where there is no memory, it is told while nobody waits."""
        size = min(sum(tensor.nbytes for tensor in tensors), self._most)
        self._room = torch.empty(size, dtype=torch.uint8, device=self._device)
        return self._room

    def send(self, tensors: Sequence[Tensor]) -> None:
        """To all engine processes, who `receive` tensors of the same sizes."""
        whole = [_bytes(tensor.detach().contiguous()) for tensor in tensors]
        for bucket, pieces in self._buckets(whole):
            for piece in pieces:
                bucket[piece.there] = whole[piece.tensor][piece.own]
            self._broadcast(bucket)

    def receive(self, tensors: Sequence[Tensor]) -> None:
        """Into these tensors, in place; each must be contiguous."""
        whole = [_bytes(tensor.detach()) for tensor in tensors]
        for bucket, pieces in self._buckets(whole):
            self._broadcast(bucket)
            for piece in pieces:
                whole[piece.tensor][piece.own] = bucket[piece.there]

    def _buckets(self, whole: Sequence[Tensor]) -> list[tuple[Tensor, list[Piece]]]:
        """Each bucket's bytes, all in the same memory, with its pieces."""
        memory = self.make_room(whole) if self._room is None else self._room
        self._room = None
        found = buckets([len(one) for one in whole], self._most)
        return [(memory[: pieces[-1].there.stop], pieces) for pieces in found]

    def _broadcast(self, bucket: Tensor) -> None:
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        self._group.broadcast([bucket], options).wait()


def _bytes(tensor: Tensor) -> Tensor:
    """[bytes] of a contiguous tensor, in the same memory."""
    return tensor.view(-1).view(torch.uint8)
