"""Every five seconds: finds leases that ran out and runs that nobody works on, and queues them again.

It uses the database's clock only, and anything it does may be done twice: several may run, one sweeps at
a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.models import Q
from django.db.models.functions import Now

from webapp import broker
from webapp.limits import (
    LEASE_SECONDS,
    MAX_RESTARTS,
    RESEND_QUEUED_SECONDS,
    RESTART_BACKOFF_SECONDS,
    SWEEP_SECONDS,
)
from webapp.probes import sweeper as probes
from webapp.runs.models import LEASED, Attempt, Run, RunStatus, WishKind, Worker
from webapp.runs.states import move

LOCK = 0x4152_424F_5245  # any number that nobody else uses: "ARBORE"
MAX_SENT = 1000  # messages of one sweep
FORGET_WORKERS_SECONDS = 3600  # a worker that was not seen for so long leaves the health page

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Swept:
    """Runs and probes whose worker was found lost, and those that a message was sent for."""

    lost: int = 0
    sent: int = 0


def sweep() -> Swept:
    """One round. Does nothing while another process is at it. Raises the database's errors."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [LOCK])
            if not cursor.fetchone()[0]:
                return Swept()
            cursor.execute(
                "SELECT now() - pg_postmaster_start_time() < make_interval(secs => %s)", [LEASE_SECONDS]
            )
            has_just_started = cursor.fetchone()[0]
        # Nobody could renew while the database was away.
        lost = 0 if has_just_started else _give_up_lost() + probes.give_up_lost()
        Worker.objects.filter(heartbeat_at__lt=Now() - timedelta(seconds=FORGET_WORKERS_SECONDS)).delete()
        waiting = _waiting()
    sent = _send(waiting) + probes.send_forgotten()
    return Swept(lost, sent)


def _give_up_lost() -> int:
    expired = Run.objects.filter(status__in=LEASED, lease_until__lt=Now()).defer("config")
    # A row that is locked is being renewed or recorded just now: its worker lives.
    runs = list(expired.select_for_update(skip_locked=True).order_by("id"))
    for run in runs:
        _give_up(run)
    return len(runs)


def _give_up(run: Run) -> None:
    restarts = run.restarts + 1
    where = f"after step {run.step}" if run.step else "before its first step"
    changes: dict[str, Any] = {"restarts": restarts}
    owner, epoch = run.lease_owner, run.lease_epoch
    if run.wish:
        by = run.wish_by.get_username() if run.wish_by else "somebody"
        is_pause = run.wish == WishKind.PAUSE
        status, word = (RunStatus.PAUSED, "Paused") if is_pause else (RunStatus.STOPPED, "Stopped")
        reason = f"{word} by {by}; contact with its worker was lost {where}."
    elif restarts > MAX_RESTARTS:
        status = RunStatus.FAILED
        reason = (
            f"Contact with its worker was lost {restarts} times, the last time {where}. Look at the worker's "
            "machine (memory, disk, log), then start the run again."
        )
    else:
        back_off = RESTART_BACKOFF_SECONDS[min(run.restarts, len(RESTART_BACKOFF_SECONDS) - 1)]
        status = RunStatus.RECOVERING
        reason = f"Contact with its worker was lost {where}; another one may take it in {back_off} s."
        changes["not_before"] = Now() + timedelta(seconds=back_off)
    if move(run, status, reason, actor="sweeper", **changes) is None:
        return
    Attempt.objects.filter(run=run, epoch=epoch).update(
        ended_at=Now(), outcome="lost", reason=f"Contact with {owner} was lost {where}."
    )
    logger.warning("Run %s: %s", run.id, reason)


def _waiting() -> dict[str, list[int]]:
    """Runs that wait for a worker and that a message may have been lost for, by queue, oldest first."""
    forgotten = Q(status=RunStatus.QUEUED, queued_at__lt=Now() - timedelta(seconds=RESEND_QUEUED_SECONDS))
    due = Q(status=RunStatus.RECOVERING) & (Q(not_before__isnull=True) | Q(not_before__lte=Now()))
    found: dict[str, list[int]] = {}
    rows = Run.objects.filter(forgotten | due).order_by("queued_at", "id").values_list("queue", "id")
    for queue, run_id in rows[:MAX_SENT]:
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


def sweep_until(
    told_to_stop: Callable[[float], bool], rounds: Sequence[Callable[[], object]] = (sweep,)
) -> None:
    """Do the rounds for ever. `told_to_stop` waits that many seconds and says whether to end."""
    is_away = False
    while True:
        try:
            for one in rounds:
                one()
            if is_away:
                logger.info("The database answers again.")
            is_away = False
        except (OperationalError, InterfaceError) as error:
            if not is_away:
                logger.warning("The database does not answer: %s", error)
            is_away = True
            connection.close()
        if told_to_stop(SWEEP_SECONDS):
            return
