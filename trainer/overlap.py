"""One step off policy: while a step trains, the next step's trees are sampled.

    main thread       credit, gradient of batch n ──┐ settle │ update: v(n), sync, tell, evaluate, save
    sampler's thread  batch n + 1 by v(n - 1) ──────┘        │

The weights move only once the next batch is whole (`settle` comes before the first update of a step). So
nothing that samples is ever changed under its hands, the engine has one version of the weights from the
first token of a batch to the last, a batch is at most one step old, and a stop can give up both halves of a
step: no state but the batch in flight crosses its end. That batch is a part of the checkpoint (`packed`).
Which thread is faster changes no number: randomness has names (`seeding`), and the threads share only what
neither writes. Of several ranks each has both threads, and the sampler's ones talk among themselves
(`Ranks.aside`).

What overlaps is the gradient of a step's first update, with all that leads to it. Torch computes without
Python's lock, which even of a tiny model is held for little of the time (docs/performance.md).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import msgpack
import torch

from trainer.data import Problem
from trainer.guards import NotFinite
from trainer.rollouts import Rollouts
from trainer.tree import RolloutTree

FILE: Final = "batch.msgpack"
FORMAT: Final = 1

Level = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Batch:
    """A step's trees, or why there are none (`not_finite`); `sampled_tokens`, also those that stand in no
    tree; `figures` of the engine; `said`: log lines that belong to the step. `seconds` that sampling took,
    `waited` of them in which nothing trained: of this process's clock, in no checkpoint.
    """

    step: int
    rollouts: Rollouts
    sampled_tokens: int = 0
    not_finite: NotFinite | None = None
    figures: dict[str, float] = field(default_factory=dict)
    said: tuple[tuple[Level, str], ...] = ()
    seconds: float = 0.0
    waited: float = 0.0

    def staleness(self) -> float:
        """Mean steps, of one or more updates each, between the policy that sampled a tree and the one that it
        trains."""
        trees = self.rollouts.trees
        return sum(self.step - 1 - tree.policy_version for tree in trees) / max(len(trees), 1)

    def metrics(self) -> dict[str, float]:
        """By metric name."""
        found = {"sampling/staleness": self.staleness()} | self.figures
        if self.seconds:
            found |= {
                "speed/sampling_seconds": self.seconds,
                "speed/hidden_share": 1 - min(self.waited / self.seconds, 1.0),
            }
        return found


Sample = Callable[[int, Callable[[], bool]], Batch]  # of a step, and what it asks whether to stop


class Ahead:
    """The batch of the step under way and, in a thread of its own, the next one's.

    One thread for all of a run: what it starts (a verifier's process) ends with it.
    """

    def __init__(self, should_stop: Callable[[], bool], device: torch.device) -> None:
        self._asked = should_stop
        self._threads = ThreadPoolExecutor(
            1, "sampler", initializer=_as_main, initargs=(torch.get_num_threads(), device)
        )
        self._under_way: tuple[int, Future[Batch]] | None = None
        self._given_up = threading.Event()
        self._stream: Any = None  # of CUDA, which torch types in part
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.batches: dict[int, Batch] = {}

    @property
    def next_step(self) -> int:
        """The step whose batch is under way; 0: none is."""
        return 0 if self._under_way is None else self._under_way[0]

    @property
    def is_sampling(self) -> bool:
        """Whether the thread is at work."""
        return self._under_way is not None and not self._under_way[1].done()

    def begin(self, step: int, sample: Sample) -> None:
        """Sample the batch of `step` in the thread, unless it is there."""
        if step not in self.batches and self._under_way is None:
            self._under_way = step, self._threads.submit(self._work, step, sample)

    def _work(self, step: int, sample: Sample) -> Batch:
        started = time.perf_counter()
        if self._stream is None:
            stream: Any = nullcontext()
        else:  # else its kernels would queue behind those of training
            self._stream.wait_stream(torch.cuda.default_stream(self._stream.device))
            stream = torch.cuda.stream(self._stream)
        with stream:
            batch = sample(step, lambda: self._given_up.is_set() or self._asked())
        return replace(batch, seconds=time.perf_counter() - started)

    def settle(self) -> None:
        """Wait until the next batch is whole; nothing to do if none was begun. Raises what the thread raised;
        then none is under way any more.
        """
        if self._under_way is None:
            return
        (step, batch), self._under_way = self._under_way, None
        waiting = time.perf_counter()
        found = batch.result()
        if self._stream is not None:
            torch.cuda.default_stream(self._stream.device).wait_stream(self._stream)
        self.batches[step] = replace(found, waited=time.perf_counter() - waiting)

    def done(self, step: int) -> None:
        """Step `step` is complete; its batch is needed no more."""
        self.batches = {number: batch for number, batch in self.batches.items() if number > step}

    def files(self, step: int) -> dict[str, bytes]:
        """What a checkpoint before `step` holds of it."""
        return {FILE: packed(self.batches[step])} if step in self.batches else {}

    def give_up(self) -> None:
        """Have the thread end what it is at, and wait for that. Of several ranks all do, or the threads would
        wait for one another.
        """
        self._given_up.set()
        if self._under_way is not None:
            self._under_way[1].exception()
            self._under_way = None
        self._given_up.clear()

    def close(self, patience: float | None = None) -> None:
        """`patience`: how many seconds to wait for a thread that may wait for ranks which sample on."""
        self._given_up.set()
        if self._under_way is not None and wait([self._under_way[1]], patience).not_done:
            self._threads.shutdown(wait=False)
            return
        self.give_up()
        self._threads.shutdown()


def _as_main(threads: int, device: torch.device) -> None:
    """Compute as the main thread does: a new one would take as many threads as there are cores, and the first
    GPU.
    """
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)


def one_at_a_time(emit: Callable[[Any], None]) -> Callable[[Any], None]:
    """`emit` for two threads. `Any`: an event."""
    lock = threading.Lock()

    def locked(event: Any) -> None:
        with lock:
            emit(event)

    return locked


# ---- in a checkpoint


def packed(batch: Batch) -> bytes:
    """A batch as bytes: equal batches, equal bytes."""
    rollouts = batch.rollouts
    found: bytes = msgpack.packb(
        {
            "format": FORMAT,
            "step": batch.step,
            "problems": [asdict(problem) for problem in rollouts.problems],
            "trees": [tree.to_payload() for tree in rollouts.trees],
            "rounds": rollouts.rounds,
            "dropped": rollouts.dropped,
            "sampled_tokens": batch.sampled_tokens,
            "not_finite": None if batch.not_finite is None else asdict(batch.not_finite),
            "figures": {name: own for name, own in batch.figures.items() if not name.startswith("speed/")},
            "said": [list(line) for line in batch.said],
        }
    )
    return found


def unpacked(content: bytes) -> Batch:
    """The batch of `packed`. Raises ValueError naming the damage."""
    try:
        body = msgpack.unpackb(content)
        if body["format"] != FORMAT:
            raise ValueError(f"format {body['format']}; this Arborist reads format {FORMAT}")
        not_finite = body["not_finite"]
        return Batch(
            step=int(body["step"]),
            rollouts=Rollouts(
                [RolloutTree.from_payload(tree) for tree in body["trees"]],
                [Problem(**problem) for problem in body["problems"]],
                int(body["rounds"]),
                int(body["dropped"]),
            ),
            sampled_tokens=int(body["sampled_tokens"]),
            not_finite=None if not_finite is None else NotFinite(**not_finite),
            figures=dict(body["figures"]),
            said=tuple((level, text) for level, text in body["said"]),
        )
    except (msgpack.UnpackException, KeyError, TypeError, ValueError) as damage:
        raise ValueError(f"the batch in flight cannot be read: {damage}") from damage


def saved_batch(checkpoint: Path) -> Batch | None:
    """The batch that a checkpoint was saved with; None if there is none. Raises ValueError."""
    file = checkpoint / FILE
    return unpacked(file.read_bytes()) if file.exists() else None
