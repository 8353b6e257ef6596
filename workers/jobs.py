"""The right to work one job off, and every way in which that ends, whatever kind of job it is.

The row is the job. Every write names the epoch of the claim, so a worker whose job was cancelled, or given to
another, finds no row to write to and leaves.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Generic, TypeVar

from django.core.exceptions import ObjectDoesNotExist
from django.db import IntegrityError
from django.db.models import F
from django.db.models.functions import Now

from trainer.text import storable
from webapp.errors import RequestError
from webapp.jobs import Job, JobStatus
from webapp.limits import JOB_LEASE_SECONDS

LEASE = timedelta(seconds=JOB_LEASE_SECONDS)
REPORT_SECONDS = 1.0
MAX_REASON = 2000

J = TypeVar("J", bound=Job)

logger = logging.getLogger(__name__)


class JobLostError(Exception):
    """It was cancelled, or somebody else has it now: nothing more is written."""


class JobGivenBackError(Exception):
    """The worker is told to leave; another one begins anew."""


class JobFailedError(Exception):
    """It cannot be done; the message is one sentence for people."""


@dataclass(slots=True)
class Held(Generic[J]):
    """The right to work one job off."""

    model: type[J]
    id: int
    epoch: int
    told_to_leave: Callable[[], bool] = lambda: False
    reported: float = field(default_factory=time.monotonic)

    @property
    def what(self) -> str:
        return f"{self.model._meta.verbose_name} {self.id}"

    def job(self) -> J:
        """Raises JobLostError when the row was deleted, with its project."""
        rows = self.model._default_manager.select_related("created_by")
        if (found := rows.filter(id=self.id).first()) is None:
            raise JobLostError("it was deleted")
        return found

    def is_there(self) -> bool:
        return self.model._default_manager.filter(id=self.id).exists()

    def update(self, **changes: object) -> None:
        """Raises JobLostError when the row is not ours any more."""
        mine = self.model._default_manager.filter(id=self.id, epoch=self.epoch, status=JobStatus.RUNNING)
        if not mine.update(**changes):
            raise JobLostError(f"it is not held in epoch {self.epoch} any more")

    def report(self, **progress: int | str) -> None:
        """Tell how far it is and keep the lease, at most once a second. Raises JobLostError and
        JobGivenBackError.
        """
        now = time.monotonic()
        if now - self.reported < REPORT_SECONDS:
            return
        self.reported = now
        if self.told_to_leave():
            raise JobGivenBackError
        self.update(**progress, lease_until=Now() + LEASE)


def claim(
    model: type[J], job_id: int, owner: str, told_to_leave: Callable[[], bool], **afresh: object
) -> Held[J] | None:
    """Take the job if it waits, with what it had done set back to `afresh`. None: it does not wait, which is
    no error.
    """
    rows = model._default_manager.filter(id=job_id)
    won = rows.filter(status=JobStatus.QUEUED).update(
        status=JobStatus.RUNNING,
        reason="",
        epoch=F("epoch") + 1,
        attempts=F("attempts") + 1,
        lease_owner=owner[:120],
        lease_until=Now() + LEASE,
        started_at=Now(),
        **afresh,
    )
    if not won:
        return None
    return Held(model, job_id, rows.values_list("epoch", flat=True).get(), told_to_leave)


def work_off(held: Held[J], do: Callable[[Held[J]], None], os_words: Callable[[OSError], str]) -> None:
    """Do a claimed job and move its row to an end. Database errors pass: the lease runs out and the sweeper
    brings it back. os_words: what a disk that refuses is told as.
    """
    try:
        do(held)
    except JobLostError as lost:
        logger.info("%s ends here: %s.", held.what.capitalize(), lost)
    except JobGivenBackError:
        end(
            held,
            status=JobStatus.QUEUED,
            queued_at=Now(),
            attempts=F("attempts") - 1,
            reason="Its worker was told to leave; another one begins anew.",
        )
    except RequestError as refused:
        fail(held, refused.detail)
    except ObjectDoesNotExist:
        fail(held, "What it was to read was deleted meanwhile.")
    except IntegrityError:
        if held.is_there():
            raise
        logger.info("%s ends here: it was deleted with its project.", held.what.capitalize())
    except OSError as error:
        fail(held, os_words(error))
    except JobFailedError as error:
        fail(held, str(error))
    except (ValueError, TypeError, KeyError, ArithmeticError, MemoryError) as error:  # a defect of ours
        logger.exception("%s broke", held.what.capitalize())
        fail(held, f"It broke ({type(error).__name__}); the worker's log has the rest. Please report it.")


def fail(held: Held[J], reason: str, **changes: object) -> None:
    end(held, status=JobStatus.FAILED, ended_at=Now(), reason=storable(reason)[:MAX_REASON], **changes)


def end(held: Held[J], **changes: object) -> None:
    """Give the lease back; if it is gone by now, there is nothing to give."""
    try:
        held.update(lease_until=None, lease_owner="", **changes)
    except JobLostError as lost:
        logger.info("%s ends here: %s.", held.what.capitalize(), lost)
