"""Where a process of a run may die. For tests: each moment is a seam of ours, at which the process that comes
by for the n-th time sends itself SIGKILL, as the kernel or a power cut would.
"""

from __future__ import annotations

import importlib
import os
import signal
from typing import Any

# moment: (module and name of what is called there, whether it dies after it instead of before)
TRAINER: dict[str, tuple[str, bool]] = {
    "loading": ("trainer.loop.load_policy", True),
    "restoring": ("trainer.loop.load_optimiser", True),
    "evaluating": ("trainer.loop.evaluate", True),
    "sampling": ("trainer.sampling.local_engine._Drive._round", False),
    "verifying": ("trainer.loop.verify_trees", True),
    "gradient": ("trainer.optim.Optimiser.gradient", True),
    "optimiser_step": ("torch.optim.AdamW.step", True),
    "counted": ("trainer.loop._Run.count", True),
    "after_tmp": ("trainer.checkpoint._write", True),
    "after_fsync": ("trainer.checkpoint._write_manifest", True),
    "after_rename": ("trainer.checkpoint._take_name", True),
    "saved": ("trainer.loop.save_checkpoint", True),
    "told": ("trainer.loop._Run.save", True),
}
SUPERVISOR: dict[str, tuple[str, bool]] = {
    "claimed": ("workers.lease.claim", True),
    "child_started": ("workers.child.TrainerChild.__init__", True),
    "child_noted": ("workers.watch.Watch.until_it_ends", False),
    "spooled": ("workers.spool.Spool.append", True),
    "torn": ("workers.spool.Spool.append", False),  # half a record is written first
    "before_pointer": ("workers.recorder.Recorder._store_checkpoint", True),
    "after_pointer": ("workers.recorder.Recorder.record", True),  # of a batch with a checkpoint in it
    "recorded": ("workers.spool.SpoolReader.advance", False),  # committed, and not known to be
    "drained": ("workers.supervisor._Attempt._drain_earlier_attempts", True),
    "ended": ("workers.recorder.settle", True),
}


def die(*_: object) -> None:
    """At once, and nobody is told."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moments: dict[str, tuple[str, bool]], plan: str) -> None:
    """`plan`: "moment:n"; "" is none. A moment of the other process is none of ours."""
    moment, _, count = plan.partition(":")
    if moment not in moments:
        return
    where, after = moments[moment]
    owner, name = _found(where)
    original = getattr(owner, name)
    left = int(count)

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        if not after:
            left -= 1
            if not left:
                _last_act(moment, args)
                die()
        result = original(*args, **kwargs)
        if after and _counts(moment, args, result):
            left -= 1
            if not left:
                die()
        return result

    setattr(owner, name, counted)


def _counts(moment: str, args: tuple[Any, ...], result: Any) -> bool:
    if moment == "claimed":
        return result is not None
    if moment == "after_pointer":
        return any(event.kind == "checkpoint" for _, event in args[1])
    return True


def _last_act(moment: str, args: tuple[Any, ...]) -> None:
    if moment == "torn":
        spool, payload = args
        with spool.path.open("r+b") as file:
            file.seek(spool.end)
            file.write((len(payload)).to_bytes(4, "little") + b"\0\0\0\0" + payload[: len(payload) // 2])


def _found(where: str) -> tuple[Any, str]:
    """The object that holds the last name of a dotted path, and that name."""
    parts = where.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:-1]:
            owner = getattr(owner, part)
        return owner, parts[-1]
    raise LookupError(where)
