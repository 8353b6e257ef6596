"""The right to write to a run: claim it, keep it, give it back.

The run row is the job and its `lease_epoch` is the fence: every write here and in the recorder first locks
the row and looks whether the epoch is still ours. All times are the database's.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass
from datetime import timedelta

from django.db import connection, transaction
from django.db.models import F, Q
from django.db.models.functions import Coalesce, Now

from trainer.text import storable
from webapp.database.locks import let_go_when_idle
from webapp.limits import LEASE_SECONDS
from webapp.queue import order
from webapp.runs.models import CLAIMABLE, LEASED, Attempt, Run, RunStatus, WishKind, Worker
from webapp.runs.states import MAX_REASON, append_status_event, move

LEASE = timedelta(seconds=LEASE_SECONDS)
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
    """What people want of the run: "pause", "stop" or "kill", and the name of who asked ("" if unknown).
    Without a kind: nothing.
    """

    kind: str = ""
    by: str = ""


def claim(run_id: int, owner: str, mark: uuid.UUID | None = None) -> Lease | None:
    """Take the run if it waits for a worker. None: it does not, or another was faster, which is no error.

    `mark`: a new one, by which `claimed` finds what this took although its answer was lost.
    """
    owner = owner[:120]
    free = Q(lease_until__isnull=True) | Q(lease_until__lt=Now())
    due = Q(not_before__isnull=True) | Q(not_before__lte=Now())
    with transaction.atomic():
        run = Run.objects.defer("config").filter(free, due, id=run_id, status__in=CLAIMABLE).first()
        if run is None or not move(
            run,
            RunStatus.STARTING,
            f"Taken by {owner}.",
            actor=owner,
            when=free & due,
            reason="",
            lease_epoch=run.lease_epoch + 1,
            lease_owner=owner,
            lease_until=Now() + LEASE,
            heartbeat_at=Now(),
            progress_at=Now(),
            started_at=Coalesce("started_at", Now()),
            not_before=None,
        ):
            return None
        Attempt.objects.create(run=run, epoch=run.lease_epoch, owner=owner, claim=mark)
    return Lease(run_id, run.lease_epoch, owner)


def claim_next(queue: str, owner: str, mark: uuid.UUID | None = None) -> Lease | None:
    """Take the run of `queue` that is next (`webapp.queue.order`). None: none may be taken now, or this
    worker is to take nothing new. `mark`: see `claim`.
    """
    with transaction.atomic():
        order.claim_one_at_a_time()
        if Worker.objects.filter(name=owner[:120], drain_at__isnull=False).exists():
            return None
        run_id = order.next_run(queue)
        if run_id is None:
            return None
        order.note_turn(run_id)
        return claim(run_id, owner, mark)


def claimed(mark: uuid.UUID) -> Lease | None:
    """What the claim with this mark took. None: it was never stored, or the run was taken from it since.

    Waits until the claim is over: it may still be on its way when the connection breaks.
    """
    with transaction.atomic():
        order.claim_one_at_a_time()
        attempt = Attempt.objects.filter(
            claim=mark, run__lease_epoch=F("epoch"), run__status__in=LEASED
        ).first()
    return None if attempt is None else Lease(attempt.run_id, attempt.epoch, attempt.owner)


def lock(lease: Lease) -> Run:
    """The run, its row locked to the end of the transaction. Raises LeaseLostError if it is not ours.

    A run that was given up for lost but taken by nobody since is taken back: the worker was out of contact.
    Not so one whose trainer died, as this worker itself has said: its beats may still be on their way.
    """
    let_go_when_idle()
    run = Run.objects.select_for_update().defer("config").filter(id=lease.run_id).first()
    if run is None:
        raise LeaseLostError(f"run {lease.run_id} was deleted")
    if run.lease_epoch != lease.epoch:
        raise LeaseLostError(f"run {run.id} is at epoch {run.lease_epoch}, this worker holds {lease.epoch}")
    if run.status == RunStatus.RECOVERING:
        if Attempt.objects.filter(run=run, epoch=lease.epoch, outcome="died").exists():
            raise LeaseLostError(f"the trainer of run {run.id} died, and the run waits for another one")
        _take_back(run, lease)
    elif run.status not in LEASED:
        raise LeaseLostError(f"run {run.id} is {run.status}")
    return run


def _take_back(run: Run, lease: Lease) -> None:
    run.restarts = max(run.restarts - 1, 0)
    move(
        run,
        RunStatus.RUNNING,
        BACK_IN_CONTACT,
        actor=lease.owner,
        reason="",
        restarts=run.restarts,
        not_before=None,
        lease_until=Now() + LEASE,
        lease_owner=lease.owner[:120],
    )
    Attempt.objects.filter(run_id=run.id, epoch=lease.epoch).update(
        ended_at=None, outcome="", reason="", last_step=None
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
            "SELECT r.wish, u.username FROM arborist_run r LEFT JOIN arborist_user u ON u.id = r.wish_by_id"
            " WHERE r.id = %s AND r.wish <> '' AND r.lease_epoch = %s",
            [lease.run_id, lease.epoch],
        )
        row = cursor.fetchone()
    return Wish() if row is None else Wish(row[0], row[1] or "")


_ACKNOWLEDGED = {
    WishKind.PAUSE: "The worker answers: it lets the trainer save, then the run is paused.",
    WishKind.STOP: "The worker answers: it lets the trainer save, then the run is stopped.",
    WishKind.KILL: "The worker answers: it ends the trainer at once.",
}


def acknowledge(lease: Lease, wish: Wish) -> None:
    """Show that the wish has arrived; the run is stopping now. Raises LeaseLostError."""
    with transaction.atomic():
        run = lock(lease)
        if run.wish != wish.kind or run.wish_seen_at is not None:
            return
        words, told = _ACKNOWLEDGED[WishKind(wish.kind)], {"wish": wish.kind, "wish_is": "acknowledged"}
        Run.objects.filter(id=run.id).update(wish_seen_at=Now())
        if run.status == RunStatus.STOPPING:
            append_status_event(run.id, lease.epoch, None, words, actor=lease.owner, **told)
        else:
            move(run, RunStatus.STOPPING, words, actor=lease.owner, told=told)


def end(lease: Lease, status: RunStatus, reason: str) -> None:
    """Move the run to its end and give the lease back, in a transaction of its own. Raises LeaseLostError."""
    with transaction.atomic():
        settle(lock(lease), lease, status, reason)


def settle(run: Run, lease: Lease, status: RunStatus, reason: str) -> int:
    """`end` for a run that is locked already, in the caller's transaction. Returns the last seq.

    QUEUED gives the run back to the queue ("preempted"), to go on from its checkpoint elsewhere. A wish
    outweighs that: a run that was to pause or to stop does not go on elsewhere.
    """
    by = run.wish_by.get_username() if run.wish_by else "somebody"
    if run.wish == WishKind.PAUSE and status in (RunStatus.QUEUED, RunStatus.STOPPED):
        if status == RunStatus.QUEUED:
            reason = f"Paused by {by}; its worker was told to stop."
        status = RunStatus.PAUSED
    elif run.wish in (WishKind.STOP, WishKind.KILL) and status in (RunStatus.QUEUED, RunStatus.PAUSED):
        if status == RunStatus.QUEUED:
            reason = f"Stopped by {by}; its worker was told to stop."
        status = RunStatus.STOPPED
    # A run that its worker gives back keeps its place in the queue: nobody asked for that.
    seq = move(run, status, reason, actor=lease.owner, queued_at=run.queued_at)
    if seq is None:
        raise LeaseLostError(f"run {run.id} was moved by somebody else")
    outcome = "preempted" if status == RunStatus.QUEUED else str(status)
    Attempt.objects.filter(run_id=run.id, epoch=lease.epoch).update(
        ended_at=Now(), outcome=outcome, reason=storable(reason)[:MAX_REASON], last_step=run.step
    )
    return seq
