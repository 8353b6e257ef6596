"""The fault matrix: one small class each. `inject` breaks something, `heal` mends it `hold` seconds later."""

from __future__ import annotations

import os
import random
import signal
from typing import TYPE_CHECKING, ClassVar

from tests.campaign.stack import WORKERS

if TYPE_CHECKING:
    from tests.campaign.driver import Campaign


class Fault:
    """`touches`: parts that no other fault may hold meanwhile. `moments`: S start-up, R sampling, T training,
    C saving, I idle, D while the spool is drained."""

    name: ClassVar[str] = ""
    what: ClassVar[str] = ""
    touches: tuple[str, ...] = ()
    moments: ClassVar[str] = "R"
    patience = 3.0  # seconds that the moment is waited for
    hold = 4.0

    def __init__(self, campaign: Campaign, rng: random.Random) -> None:
        self.campaign, self.rng = campaign, rng
        self.system = campaign.system
        self.moment = rng.choice(self.moments)
        self.prepare()

    def prepare(self) -> None:
        """Draw what it hits."""

    def impossible(self) -> str:
        """Why this machine cannot have this fault; "" if it can."""
        return ""

    def is_moment(self) -> bool:
        runs = self.campaign.leased()
        match self.moment:
            case "S":
                return any(run.status == "starting" for run in runs)
            case "R":
                return any(run.phase == "sampling" for run in runs)
            case "T":
                return any(run.phase == "training" for run in runs)
            case "C":
                return any(self.system.folder.root.glob("runs/*/attempt-*/checkpoints/step-*.tmp-*"))
        return True

    def inject(self) -> str:
        """Break it. Returns what was done, in a few words."""
        raise NotImplementedError

    def go_on(self) -> None:
        """Called again and again until it is healed."""

    def heal(self) -> None:
        """Mend it."""


class WorkerFault(Fault):
    """Hits one of the two workers."""

    moments = "SRTC"

    def prepare(self) -> None:
        self.worker = self.rng.choice(WORKERS)
        self.touches = (self.worker,)


class WorkerKilled(WorkerFault):
    name, what = "F1", "worker's main process killed"

    def inject(self) -> str:
        self.system.down(self.worker)
        return f"kill -9 of {self.worker} ({self.moment})"

    def heal(self) -> None:
        self.system.up(self.worker)


def catalogue() -> dict[str, type[Fault]]:
    """By name, in the order of the matrix."""
    found: list[type[Fault]] = []
    waiting = [Fault]
    while waiting:
        one = waiting.pop(0)
        waiting += one.__subclasses__()
        if one.name:
            found.append(one)
    return {one.name: one for one in sorted(found, key=lambda one: _order(one.name))}


def _order(name: str) -> tuple[int, str]:
    digits = "".join(letter for letter in name if letter.isdecimal())
    return int(digits or 999), name


__all__ = ["Fault", "catalogue", "os", "signal"]
