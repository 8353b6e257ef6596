"""What a worker does beside its runs: be seen on the workers page, obey a drain, and end trainers that nobody
supervises.

A sighting is only that; leases decide.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

from django.conf import settings
from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.models.functions import Now

from webapp.embedded import leftovers
from webapp.exports.models import Export, ExportStatus
from webapp.probes.models import Probe, ProbeStatus
from webapp.queue import order
from webapp.runs.leftovers import may_have_trainer
from webapp.runs.models import LEASED, Run, Worker
from workers import keeping, machine, probing
from workers.limits import MEASURE_SECONDS, UNFINISHED_SECONDS, UPKEEP_SECONDS

logger = logging.getLogger(__name__)


class Turn(Protocol):
    """Shuts or opens the worker's queues; `give_back`: also what is worked on."""

    def __call__(self, *, shut: bool, give_back: bool) -> None: ...


class _Upkeep(threading.Thread):
    def __init__(self, name: str, queues: Sequence[str], slots: int, notes: Path, turn: Turn) -> None:
        super().__init__(name="upkeep", daemon=True)
        self.worker = name[:120]
        self.queues = ",".join(queues)[:200]
        self.slots = slots
        self.notes = notes
        self.turn = turn
        self.measured_at: float | None = None
        self.leave = threading.Event()

    def run(self) -> None:
        is_first = True
        swept_at = 0.0
        while True:
            try:
                self._be_seen(is_first)
                is_first = False
                self._obey()
                leftovers.reap(self.notes, may_have_trainer)
                leftovers.reap(probing.notes(), probing.is_current)
                if not swept_at or time.monotonic() - swept_at > UNFINISHED_SECONDS / 4:
                    keeping.sweep(settings.DATA_DIR / "runs")
                    swept_at = time.monotonic()
            except (OperationalError, InterfaceError) as error:
                logger.info("Worker %s could not say that it lives: %s", self.worker, error)
            finally:
                # Not kept: the pool may fork meanwhile, and a connection must not be shared.
                connection.close()
            if self.leave.wait(UPKEEP_SECONDS):
                return

    def _be_seen(self, is_first: bool) -> None:
        seen = {"queues": self.queues, "slots": self.slots, "heartbeat_at": Now()}
        if self.measured_at is None or time.monotonic() - self.measured_at >= MEASURE_SECONDS:
            seen["machine"] = machine.measured()
            self.measured_at = time.monotonic()
        if is_first:
            seen |= {"started_at": Now(), "versions": _versions(), "run": None}
        Worker.objects.update_or_create(name=self.worker, defaults=seen)

    def _obey(self) -> None:
        """Do what operators want, and say that it was heard and when it is done."""
        columns = ("drain_at", "drain_now", "drain_seen_at", "drained_at")
        row = Worker.objects.filter(name=self.worker).only(*columns).first()
        if row is None:
            return
        self.turn(shut=row.drain_at is not None, give_back=row.drain_now)
        if row.drain_at is None:
            return
        this_wish = Worker.objects.filter(name=self.worker, drain_at=row.drain_at, drain_now=row.drain_now)
        if row.drain_seen_at is None:
            this_wish.update(drain_seen_at=Now())
        if row.drained_at is None:
            with transaction.atomic():
                order.claim_one_at_a_time()  # one that began before the wish has committed then
                if not is_busy(self.worker):
                    this_wish.update(drained_at=Now())


def is_busy(worker: str) -> bool:
    """Whether that worker holds a run, a probe or an export."""
    return (
        Run.objects.filter(lease_owner=worker, status__in=LEASED).exists()
        or Probe.objects.filter(owner=worker, status=ProbeStatus.RUNNING).exists()
        or Export.objects.filter(lease_owner=worker, status=ExportStatus.RUNNING).exists()
    )


_current: _Upkeep | None = None


def begin(name: str, queues: Sequence[str], slots: int, notes: Path, turn: Turn) -> None:
    """From now on. `slots`: how many runs it takes at once; `notes`: where this machine's trainers are
    written down.
    """
    global _current
    # Those of a worker that was killed need no database to be known for orphans.
    leftovers.reap(notes)
    leftovers.reap(probing.notes())
    _current = _Upkeep(name, queues, slots, notes, turn)
    _current.start()


def end() -> None:
    """The worker leaves in good order: nothing of it remains on the page."""
    if _current is None:
        return
    _current.leave.set()
    _current.join()
    try:
        Worker.objects.filter(name=_current.worker).delete()
    except (OperationalError, InterfaceError) as error:
        logger.info("Worker %s stays on the health page for a while: %s", _current.worker, error)
    finally:
        connection.close()


def _versions() -> dict[str, str]:
    found = {}
    for package in ("arborist", "torch", "transformers", "celery"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
