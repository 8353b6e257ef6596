"""Every five seconds: finds leases that ran out and runs that nobody works on, and queues them again.

It uses the database's clock only, and anything it does may be done twice: several may run, one sweeps at
a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.models import F
from django.db.models.functions import Now

from trainer.guards import TROUBLES, told
from webapp import broker
from webapp.database.locks import let_go_when_idle
from webapp.limits import (
    HEARTBEAT_SECONDS,
    KILL_SECONDS,
    LEASE_SECONDS,
    MAX_RESTARTS,
    RESEND_QUEUED_SECONDS,
    RESTART_BACKOFF_SECONDS,
    SAME_STEP_DEATHS,
    SWEEP_SECONDS,
)
from webapp.probes import sweeper as probes
from webapp.queue import order
from webapp.runs.models import LEASED, Attempt, Run, RunStatus, WishKind, Worker
from webapp.runs.states import append_status_event, move

LOCK = 0x4152_424F_5245  # any number that nobody else uses: "ARBORE"
MAX_SENT = 1000  # messages of one sweep
FORGET_WORKERS_SECONDS = 3600  # a worker that was not seen for so long leaves the health page

SHORT_OUTAGE_SECONDS = LEASE_SECONDS - HEARTBEAT_SECONDS
AWAY_SECONDS = 1.0  # between two attempts while the database is away

CONTACT_LOST = "Contact with its worker was lost"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Swept:
    """Runs and probes whose worker was found lost, and those that a message was sent for."""

    lost: int = 0
    sent: int = 0


def sweep(*, is_settled: bool = True) -> Swept:
    """One round. Does nothing while another process is at it. Raises the database's errors.

    `is_settled`: False just after an outage, when workers may not have come to renew their leases yet.
    """
    with transaction.atomic():
        let_go_when_idle()
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [LOCK])
            if not cursor.fetchone()[0]:
                return Swept()
            cursor.execute(
                "SELECT now() - pg_postmaster_start_time() < make_interval(secs => %s)", [LEASE_SECONDS]
            )
            has_just_started = cursor.fetchone()[0]
        # Nobody could renew while the database was away.
        lost = 0
        if is_settled and not has_just_started:
            lost = _give_up_lost() + _end_unanswered() + probes.give_up_lost()
            _tell_stalled()
        Worker.objects.filter(heartbeat_at__lt=Now() - timedelta(seconds=FORGET_WORKERS_SECONDS)).delete()
        waiting = _waiting()
    sent = _send(waiting) + probes.send_forgotten()
    return Swept(lost, sent)


def _give_up_lost() -> int:
    expired = Run.objects.filter(status__in=LEASED, lease_until__lt=Now()).defer("config")
    # A row that is locked is being renewed or recorded just now: its worker lives.
    runs = list(expired.select_for_update(skip_locked=True).order_by("id"))
    for run in runs:
        give_up(run)
    return len(runs)


def give_up(run: Run, what: str = CONTACT_LOST, actor: str = "sweeper") -> None:
    """The run's attempt is lost, or its trainer died, which is for good; another one goes on from its
    checkpoint after a while, unless this happens again and again. Its row is locked by the caller. `what`
    happened: a sentence that "after step 3" ends.
    """
    restarts = run.restarts + 1
    where = f"after step {run.step}" if run.step else "before its first step"
    changes: dict[str, Any] = {"restarts": restarts}
    if run.wish:
        is_pause = run.wish == WishKind.PAUSE
        status, word = (RunStatus.PAUSED, "Paused") if is_pause else (RunStatus.STOPPED, "Stopped")
        reason = f"{word} by {_wisher(run)}; {what[0].lower()}{what[1:]} {where}."
    elif loop := _crash_loop(run, restarts, what, where):
        saved = None if run.checkpoint is None else run.checkpoint.step
        status, reason = RunStatus.FAILED, told(loop, run.step, saved, TROUBLES["crash loop"].do)
    else:
        back_off = RESTART_BACKOFF_SECONDS[min(run.restarts, len(RESTART_BACKOFF_SECONDS) - 1)]
        status = RunStatus.RECOVERING
        reason = f"{what} {where}; a free worker goes on with it after {back_off} s."
        changes["not_before"] = Now() + timedelta(seconds=back_off)
    if what == CONTACT_LOST:
        outcome, why = "lost", f"Contact with {run.lease_owner} was lost {where}."
    else:
        outcome, why = "died", f"{what} {where}."
    _end_attempt(run, status, reason, outcome, why, actor=actor, **changes)


def _crash_loop(run: Run, restarts: int, what: str, where: str) -> str:
    """Why the run is not tried once more; "" where it is."""
    earlier = Attempt.objects.filter(run=run, epoch__gt=run.settled_epoch, epoch__lt=run.lease_epoch)
    deaths = 1 + earlier.filter(outcome__in=("died", "lost"), last_step=run.step).count()
    if deaths >= SAME_STEP_DEATHS:
        return f"{what} {deaths} times at the same place, {where}."
    if restarts > MAX_RESTARTS:
        return f"{what} {restarts} times, the last time {where}."
    return ""


def _end_unanswered() -> int:
    """End runs that are to stop at once and whose worker beats but does not do it."""
    waited = Now() - timedelta(seconds=KILL_SECONDS)
    unanswered = Run.objects.filter(status__in=LEASED, wish=WishKind.KILL, wish_at__lt=waited)
    runs = list(unanswered.defer("config").select_for_update(skip_locked=True).order_by("id"))
    for run in runs:
        reason = f"Stopped by {_wisher(run)}; its worker did not end it in {KILL_SECONDS} s and lost it."
        _end_attempt(
            run, RunStatus.STOPPED, reason, "lost", f"{run.lease_owner} did not end it when asked to."
        )
    return len(runs)


def _end_attempt(
    run: Run,
    status: RunStatus,
    reason: str,
    outcome: str,
    why: str,
    *,
    actor: str = "sweeper",
    **changes: Any,
) -> None:
    """Move the run to `status` for `reason`, and end its attempt with `outcome`, for `why`."""
    if move(run, status, reason, actor=actor, **changes) is None:
        return
    Attempt.objects.filter(run=run, epoch=run.lease_epoch).update(
        ended_at=Now(), outcome=outcome, reason=why, last_step=run.step
    )
    logger.warning("Run %s: %s", run.id, reason)


def _wisher(run: Run) -> str:
    return run.wish_by.get_username() if run.wish_by else "somebody"


def _tell_stalled() -> None:
    """Mark runs whose worker lives but whose trainer does not get on, and those that get on again."""
    seconds = settings.STALLED_SECONDS
    leased = Run.objects.filter(status__in=LEASED).defer("config")
    silent = leased.filter(stalled_at__isnull=True, progress_at__lt=Now() - timedelta(seconds=seconds))
    for run in silent.select_for_update(skip_locked=True).order_by("id"):
        Run.objects.filter(id=run.id).update(stalled_at=Now())
        why = (
            f"Stalled: no progress for {seconds} s, though its worker is alive. Look at its log; if it "
            "hangs, stop it now and retry."
        )
        append_status_event(run.id, run.lease_epoch, None, why, actor="sweeper", stalled="yes")
        logger.warning("Run %s makes no progress.", run.id)
    moving = leased.filter(progress_at__gt=F("stalled_at"))
    for run in moving.select_for_update(skip_locked=True).order_by("id"):
        Run.objects.filter(id=run.id).update(stalled_at=None)
        append_status_event(run.id, run.lease_epoch, None, "It makes progress again.", actor="sweeper")


def _waiting() -> dict[str, list[int]]:
    """Runs that a worker may take and that a message may have been lost for, by queue, in order."""
    found: dict[str, list[int]] = {}
    for queue, run_id in order.admissible(queued_for_seconds=RESEND_QUEUED_SECONDS, most=MAX_SENT):
        found.setdefault(queue, []).append(run_id)
    return found


def _send(waiting: dict[str, list[int]]) -> int:
    """A queue that still holds messages has no free worker, and more of them would only pile up."""
    sent = 0
    for queue, run_ids in waiting.items():
        if broker.waiting(queue) != 0:
            continue
        for run_id in run_ids:
            if not broker.send_train_run(run_id, queue):
                return sent
            sent += 1
    return sent


def sweep_until(told_to_stop: Callable[[float], bool], others: Sequence[Callable[[], object]] = ()) -> None:
    """Sweep and do the others for ever. `told_to_stop` waits that many seconds and says whether to end.

    A database that was frozen or cut off has not started anew, and yet nobody could renew. A lease that was
    renewed in time outlasts an outage of `SHORT_OUTAGE_SECONDS`; after a longer one nobody is declared dead
    for a lease.
    """
    away_since: float | None = None
    settled_at = 0.0
    while True:
        began = time.monotonic()
        if away_since is not None and began - away_since > SHORT_OUTAGE_SECONDS:
            settled_at = began + LEASE_SECONDS
        try:
            sweep(is_settled=began >= settled_at)
            for one in others:
                one()
            if away_since is not None:
                logger.info("The database answers again.")
            away_since = None
        except (OperationalError, InterfaceError) as error:
            if away_since is None:
                logger.warning("The database does not answer: %s", error)
                away_since = began  # it may have said nothing for a while
            connection.close()
        # Soon, so that a short outage is not taken for a long one.
        if told_to_stop(SWEEP_SECONDS if away_since is None else AWAY_SECONDS):
            return
