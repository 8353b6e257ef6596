"""The right to write to a run: claim it, keep it, give it back.

The run row is the job and its `lease_epoch` is the fence: every write here and in the recorder first locks
the row and looks whether the epoch is still ours. All times are the database's.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta

from django.db import connection, transaction
from django.db.models import F, Q
from django.db.models.functions import Coalesce, Now

from trainer.text import storable
from webapp.limits import LEASE_SECONDS
from webapp.runs.models import CLAIMABLE, LEASED, Attempt, Run, RunStatus
from webapp.runs.services import append_status_event

LEASE = timedelta(seconds=LEASE_SECONDS)
MAX_REASON = 2000
BACK_IN_CONTACT = "The worker is back in contact and goes on."

logger = logging.getLogger(__name__)


class LeaseLostError(Exception):
    """Somebody else may write to the run now, or nobody: this worker writes nothing more."""


@dataclass(frozen=True, slots=True)
class Lease:
    run_id: int
    epoch: int
    owner: str


@dataclass(frozen=True, slots=True)
class Wish:
    """What people want of the run: `stop_by` is the name of who asked it to stop, "" if somebody unknown."""

    stop_by: str | None


def claim(run_id: int, owner: str) -> Lease | None:
    """Take the run if it waits for a worker. None: it does not, or another was faster, which is no error."""
    with transaction.atomic():
        free = Q(lease_until__isnull=True) | Q(lease_until__lt=Now())
        due = Q(not_before__isnull=True) | Q(not_before__lte=Now())
        won = Run.objects.filter(free, due, id=run_id, status__in=CLAIMABLE).update(
            status=RunStatus.STARTING,
            reason="",
            lease_epoch=F("lease_epoch") + 1,
            lease_owner=owner[:120],
            lease_until=Now() + LEASE,
            heartbeat_at=Now(),
            progress_at=Now(),
            started_at=Coalesce("started_at", Now()),
            not_before=None,
            phase="",
            phase_done=0,
            phase_total=0,
        )
        if not won:
            return None
        epoch = Run.objects.values_list("lease_epoch", flat=True).get(id=run_id)
        Attempt.objects.create(run_id=run_id, epoch=epoch, owner=owner[:120])
        append_status_event(run_id, epoch, RunStatus.STARTING, f"Taken by {owner}.", actor=owner)
    return Lease(run_id, epoch, owner)


def lock(lease: Lease) -> Run:
    """The run, its row locked to the end of the transaction. Raises LeaseLostError if it is not ours.

    A run that was given up for lost but taken by nobody since is taken back: the worker was out of contact.
    """
    run = Run.objects.select_for_update().defer("config").filter(id=lease.run_id).first()
    if run is None:
        raise LeaseLostError(f"run {lease.run_id} was deleted")
    if run.lease_epoch != lease.epoch:
        raise LeaseLostError(f"run {run.id} is at epoch {run.lease_epoch}, this worker holds {lease.epoch}")
    if run.status == RunStatus.RECOVERING:
        _take_back(run, lease)
    elif run.status not in LEASED:
        raise LeaseLostError(f"run {run.id} is {run.status}")
    return run


def _take_back(run: Run, lease: Lease) -> None:
    run.status = RunStatus.RUNNING
    run.restarts = max(run.restarts - 1, 0)
    Run.objects.filter(id=run.id).update(
        status=run.status,
        reason="",
        restarts=run.restarts,
        not_before=None,
        lease_until=Now() + LEASE,
        lease_owner=lease.owner[:120],
    )
    Attempt.objects.filter(run_id=run.id, epoch=lease.epoch).update(ended_at=None, outcome="", reason="")
    run.last_seq = append_status_event(
        run.id, lease.epoch, RunStatus.RUNNING, BACK_IN_CONTACT, actor=lease.owner
    )


def renew(lease: Lease, progress_age_seconds: float) -> Wish:
    """Keep the lease a while longer and say when the trainer last spoke. Raises LeaseLostError."""
    held = Run.objects.filter(id=lease.run_id, lease_epoch=lease.epoch, status__in=LEASED)
    changes = {
        "lease_until": Now() + LEASE,
        "heartbeat_at": Now(),
        "progress_at": Now() - timedelta(seconds=max(progress_age_seconds, 0.0)),
    }
    if not held.update(**changes):
        with transaction.atomic():
            lock(lease)
            held.update(**changes)
    return read_wish(lease)


def read_wish(lease: Lease) -> Wish:
    """One cheap look between renewals: plain SQL, since it is asked all day long."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT u.username FROM arborist_run r LEFT JOIN arborist_user u ON u.id = r.stop_requested_by_id"
            " WHERE r.id = %s AND r.stop_requested_at IS NOT NULL",
            [lease.run_id],
        )
        row = cursor.fetchone()
    return Wish(None if row is None else row[0] or "")


def begin_stopping(lease: Lease, actor: str) -> None:
    """Show that the wish to stop has arrived. Raises LeaseLostError."""
    with transaction.atomic():
        run = lock(lease)
        if run.status != RunStatus.STOPPING:
            Run.objects.filter(id=run.id).update(status=RunStatus.STOPPING)
            append_status_event(
                run.id, lease.epoch, RunStatus.STOPPING, "The trainer was asked to stop.", actor=actor
            )


def end(lease: Lease, status: RunStatus, reason: str) -> None:
    """Move the run to its end and give the lease back, in a transaction of its own. Raises LeaseLostError."""
    with transaction.atomic():
        settle(lock(lease), lease, status, reason)


def settle(run: Run, lease: Lease, status: RunStatus, reason: str) -> int:
    """`end` for a run that is locked already, in the caller's transaction. Returns the last seq.

    QUEUED gives the run back to the queue ("preempted"), to go on from its checkpoint elsewhere.
    """
    if status == RunStatus.QUEUED and run.stop_requested_at is not None:
        # Somebody asked for a stop just before: nobody wants it to go on elsewhere.
        status, reason = RunStatus.STOPPED, "Stopped, as was asked."
    requeued = status == RunStatus.QUEUED
    reason = storable(reason)[:MAX_REASON]
    Run.objects.filter(id=run.id).update(
        status=status,
        reason=reason,
        lease_owner="",
        lease_until=None,
        ended_at=None if requeued else Now(),
        queued_at=Now() if requeued else F("queued_at"),
        phase="",
        phase_done=0,
        phase_total=0,
    )
    outcome = "preempted" if requeued else str(status)
    Attempt.objects.filter(run_id=run.id, epoch=lease.epoch).update(
        ended_at=Now(), outcome=outcome, reason=reason
    )
    return append_status_event(run.id, lease.epoch, status, reason, actor=lease.owner)
