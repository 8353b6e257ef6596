"""The processes of a run as one of them sees it: which it is, and what all of them have to agree on.

Every rank runs the same loop over the same step. Trees are sampled and verified on different ranks, and every
rank then holds all of them; micro-batches are computed on different ranks, and their sums are everyone's.
Whatever decides how the loop goes on is agreed on first, so that no rank waits for one that went elsewhere.

`ALONE` is the one process of an ordinary run, for which each of these does nothing. Several processes are a
`parallel.Group`. Torch-free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import msgpack

from trainer.data import Problem
from trainer.tree import RolloutTree

T = TypeVar("T")


class Ranks:
    """One process, rank 0 of 1. All methods but `share` are collective: every rank calls them, in the same
    order, from one thread alone (another one has `aside`).
    """

    rank = 0
    size = 1

    @property
    def is_first(self) -> bool:
        """Whether this rank speaks for all: events and checkpoints are its."""
        return self.rank == 0

    def gather(self, content: bytes) -> list[bytes]:
        """Everyone's content, by rank."""
        return [content]

    @property
    def aside(self) -> Ranks:
        """The same ranks for another thread: what it says and what this one says do not mix."""
        return self

    def largest(self, *values: int) -> list[int]:
        """The largest of each value over the ranks."""
        return [max(parts) for parts in zip(*self.exchange(list(values)), strict=True)]

    def any(self, flag: bool) -> bool:
        """Whether it is true on any rank."""
        return bool(self.largest(int(flag))[0])

    def exchange(self, value: T) -> list[T]:
        """Everyone's value, by rank: numbers, text, bytes, None, and lists and dicts of them."""
        if self.size == 1:
            return [value]
        return [msgpack.unpackb(content) for content in self.gather(msgpack.packb(value))]

    def sum(self, *values: float) -> list[float]:
        """Each value summed over the ranks, the same to the last bit on all."""
        return [math.fsum(parts) for parts in zip(*self.exchange(list(values)), strict=True)]

    def together(self, work: Callable[[], T], known: tuple[type[Exception], ...] = ()) -> T:
        """What `work` gives here; it holds nothing collective. Where it raises one of `known` on any rank,
        all raise it (of several the first in `known`), so that all go on alike.
        """
        if self.size == 1:
            return work()
        failed: list[Any] = []
        try:
            result = work()
        except known as error:
            kind = next(number for number, one in enumerate(known) if isinstance(error, one))
            failed = [kind, str(error)]
        if troubles := [one for one in self.exchange(failed) if one]:
            kind, message = min(troubles)
            raise known[kind](message)
        return result

    def in_step(self, batches: Iterable[T], nothing: Callable[[], T]) -> Iterator[T]:
        """This rank's batches, and `nothing()` after them until the rank with the most has done its own: a
        sharded model is gathered by all for every forward pass of one.
        """
        if self.size == 1:
            yield from batches
            return
        own = list(batches)
        most = max(self.exchange(len(own)))
        yield from own
        for _ in range(most - len(own)):
            yield nothing()

    def grown(
        self,
        problems: Sequence[Problem],
        grow: Callable[[Sequence[Problem]], list[RolloutTree]],
        known: tuple[type[Exception], ...] = (),
        *,
        is_shared: bool = False,
    ) -> list[RolloutTree]:
        """One tree per problem, in their order; every rank grows its share, and has all of them then.

        `grow` holds nothing collective, unless the ranks are one engine (`is_shared`): then it is called with
        an empty share, too.
        """
        if self.size == 1:
            return grow(problems)
        owners = owners_of(problems, self.size)
        own = [problem for problem, who in zip(problems, owners, strict=True) if who == self.rank]
        trees = self.together(lambda: grow(own) if own or is_shared else [], known)
        # As all others have them, this rank takes its own as they were sent.
        sent = [iter(payloads) for payloads in self.exchange([tree.to_payload() for tree in trees])]
        return [RolloutTree.from_payload(next(sent[who])) for who in owners]

    def share(self, sizes: Sequence[int]) -> list[int]:
        """Which rank each of so many pieces of work falls to: the largest first, each to the rank with the
        least so far. The same on every rank.
        """
        if self.size == 1:
            return [0] * len(sizes)
        load = [0] * self.size
        owners = [0] * len(sizes)
        for number in sorted(range(len(sizes)), key=lambda n: (-sizes[n], n)):
            owners[number] = min(range(self.size), key=lambda rank: (load[rank], rank))
            load[owners[number]] += sizes[number]
        return owners


def owners_of(problems: Sequence[Problem], size: int) -> list[int]:
    """Which of `size` processes grows each problem's tree. A tree depends on how often its problem came
    earlier in the batch, so all trees of a problem are grown by one.
    """
    names = list(dict.fromkeys(problem.problem_id for problem in problems))
    owner = {name: number % size for number, name in enumerate(names)}
    return [owner[problem.problem_id] for problem in problems]


ALONE = Ranks()
