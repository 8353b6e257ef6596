"""What a worker does beside its runs: be seen on the health page, and end trainers that nobody supervises.

A sighting is only that; leases decide.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from django.db import InterfaceError, OperationalError, connection
from django.db.models.functions import Now

from webapp.runs.models import LEASED, Run, RunStatus, Worker
from workers import probing, reaper
from workers.limits import UPKEEP_SECONDS

logger = logging.getLogger(__name__)


class _Upkeep(threading.Thread):
    def __init__(self, name: str, queues: Sequence[str], notes: Path) -> None:
        super().__init__(name="upkeep", daemon=True)
        self.worker = name[:120]
        self.queues = ",".join(queues)[:200]
        self.notes = notes
        self.leave = threading.Event()

    def run(self) -> None:
        is_first = True
        while True:
            try:
                self._be_seen(is_first)
                is_first = False
                reaper.reap(self.notes, _is_current)
                reaper.reap(probing.notes(), probing.is_current)
            except (OperationalError, InterfaceError) as error:
                logger.info("Worker %s could not say that it lives: %s", self.worker, error)
            finally:
                # Not kept: the pool may fork meanwhile, and a connection must not be shared.
                connection.close()
            if self.leave.wait(UPKEEP_SECONDS):
                return

    def _be_seen(self, is_first: bool) -> None:
        seen = {"queues": self.queues, "heartbeat_at": Now()}
        if is_first:
            seen |= {"started_at": Now(), "versions": _versions(), "run": None}
        Worker.objects.update_or_create(name=self.worker, defaults=seen)


def _is_current(run_id: int, epoch: int) -> bool:
    """Whether the attempt may still have a trainer; it may while its worker is only out of contact."""
    held = (*LEASED, RunStatus.RECOVERING)
    return Run.objects.filter(id=run_id, lease_epoch=epoch, status__in=held).exists()


_current: _Upkeep | None = None


def begin(name: str, queues: Sequence[str], notes: Path) -> None:
    """From now on. `notes`: where this machine's trainers are written down."""
    global _current
    # Those of a worker that was killed need no database to be known for orphans.
    reaper.reap(notes)
    reaper.reap(probing.notes())
    _current = _Upkeep(name, queues, notes)
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
