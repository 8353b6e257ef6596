"""A thread that keeps the lease, tells how the trainer is, and brings back what people wish for.

It needs nothing of the thread that reads the trainer, so the lease lives while that one is busy.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from django.db import InterfaceError, OperationalError, connection
from django.db.models import Exists
from django.db.models.functions import Now

from webapp.limits import HEARTBEAT_SECONDS
from webapp.runs.models import Run, Worker
from workers import lease as leases
from workers.lease import Lease, LeaseLostError, Wish
from workers.limits import WISH_SECONDS

logger = logging.getLogger(__name__)


class Heartbeat(threading.Thread):
    """`lost`: why the lease is gone, or None. `wish`: what people ask of the run, acknowledged already."""

    def __init__(self, lease: Lease) -> None:
        super().__init__(name=f"heartbeat-{lease.run_id}", daemon=True)
        self.lease = lease
        self.lost: str | None = None
        self.wish = Wish()
        self._kill: Callable[[], None] | None = None
        self._hands = threading.Lock()
        self._spoke = time.monotonic()
        self._leave = threading.Event()
        self._away = False

    def trainer_spoke(self) -> None:
        """The trainer said something just now."""
        self._spoke = time.monotonic()

    def take(self, kill: Callable[[], None] | None) -> None:
        """What ends the trainer at once; None as soon as it may not be called any more. The thread that reads
        the trainer may itself be stuck.
        """
        with self._hands:
            self._kill = kill

    def _end_trainer(self) -> None:
        with self._hands:
            if self._kill is not None:
                self._kill()

    def run(self) -> None:
        beat = 0.0
        try:
            while not self._leave.wait(WISH_SECONDS if beat else 0):
                due = time.monotonic() - beat >= HEARTBEAT_SECONDS
                try:
                    self._look(renew=due)
                except LeaseLostError as lost:
                    self.lost = str(lost)
                    self._end_trainer()
                    return
                except (OperationalError, InterfaceError) as error:
                    # The run goes on: nobody can take it either while the database is away.
                    if not self._away:
                        logger.warning("Run %s: the database does not answer (%s).", self.lease.run_id, error)
                    self._away = True
                    connection.close()
                    continue
                if due:
                    beat = time.monotonic()
                if self._away:
                    self._away = False
                    logger.info("Run %s: the database answers again.", self.lease.run_id)
        except Exception as error:  # a defect of ours: without a heartbeat the lease runs out unseen
            logger.exception("The heartbeat of run %s broke", self.lease.run_id)
            self.lost = f"the heartbeat broke ({type(error).__name__}: {error})"
        finally:
            connection.close()

    def _look(self, *, renew: bool) -> None:
        if renew:
            wish = leases.renew(self.lease, time.monotonic() - self._spoke)
            self._be_seen()
        else:
            wish = leases.read_wish(self.lease)
        if wish.kind and wish != self.wish:
            leases.acknowledge(self.lease, wish)
            self.wish = wish
        if self.wish.kind == "kill":
            self._end_trainer()

    def _be_seen(self) -> None:
        ours = Run.objects.filter(id=self.lease.run_id, lease_epoch=self.lease.epoch)
        seen = Worker.objects.filter(Exists(ours), name=self.lease.owner)
        seen.update(heartbeat_at=Now(), run_id=self.lease.run_id)

    def leave(self) -> None:
        """Stop beating; the lease is kept by nobody from now on."""
        self._leave.set()
        self.join()
