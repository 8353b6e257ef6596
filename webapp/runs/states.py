"""Where a run may go from where it stands, and the one way it goes there.

Every change of a run's status is a `move`: one UPDATE on the status and epoch that the caller saw, which wins
or does nothing, and the event that tells of it, in one transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db import connection, transaction
from django.db.models import Q
from django.db.models.functions import Now

from trainer.text import storable
from webapp.errors import RequestError
from webapp.live.poke import poke
from webapp.runs.models import ENDED, LEASED, Event, Run, RunStatus

MAX_REASON = 2000
_FROM_WORK = {
    RunStatus.PAUSED,
    RunStatus.SUCCEEDED,
    RunStatus.STOPPED,
    RunStatus.FAILED,
}
# A run that is stopping does not go back to the queue: what was asked for is done, whatever happens.
MOVES: Mapping[RunStatus, frozenset[RunStatus]] = {
    status: frozenset(to)
    for status, to in {
        RunStatus.QUEUED: {RunStatus.STARTING, RunStatus.PAUSED, RunStatus.CANCELLED},
        RunStatus.STARTING: {
            RunStatus.RUNNING,
            RunStatus.STOPPING,
            RunStatus.QUEUED,
            RunStatus.RECOVERING,
            *_FROM_WORK,
        },
        RunStatus.RUNNING: {RunStatus.STOPPING, RunStatus.QUEUED, RunStatus.RECOVERING, *_FROM_WORK},
        RunStatus.STOPPING: _FROM_WORK,
        # Back to running: its worker was only out of contact.
        RunStatus.RECOVERING: {
            RunStatus.STARTING,
            RunStatus.RUNNING,
            RunStatus.PAUSED,
            RunStatus.CANCELLED,
        },
        RunStatus.PAUSED: {RunStatus.QUEUED, RunStatus.STOPPED, RunStatus.CANCELLED},
        RunStatus.STOPPED: {RunStatus.QUEUED},
        RunStatus.FAILED: {RunStatus.QUEUED},
        RunStatus.CANCELLED: {RunStatus.QUEUED},
        RunStatus.SUCCEEDED: set(),
    }.items()
}
BORN = (RunStatus.QUEUED, RunStatus.SUCCEEDED)  # the second one imported


def may_move(status: str, to: str) -> bool:
    return RunStatus(to) in MOVES[RunStatus(status)]


def move(
    run: Run,
    to: RunStatus,
    why: str,
    *,
    actor: str,
    when: Q | None = None,
    told: Mapping[str, str] | None = None,
    **changes: Any,
) -> int | None:
    """Move `run` on from where the caller saw it (`status`, `lease_epoch`), if it still stands there.

    `why` is the event's sentence and, unless `changes` says otherwise, the run's reason. `changes`: more
    columns; what follows from the state alone (end time, lease, wish, place in the step) is set here. `when`:
    what else must hold of the row. `told`: what else the event says. `Any`: values of columns.

    Returns the number of the event, and `run` knows its new state; None when the row is not as it was seen:
    nothing was written. Raises RequestError(409) for a move that is not in `MOVES`.
    """
    if not may_move(run.status, to):
        raise RequestError(409, f"{run.name} is {run.status}; from there it cannot become {to}.")
    why = storable(why)[:MAX_REASON]
    columns: dict[str, Any] = {
        "status": to,
        "reason": why,
        "ended_at": Now() if to in ENDED else None,
        "stalled_at": None,
    }
    if to not in LEASED:
        columns |= {
            "lease_owner": "",
            "lease_until": None,
            "wish": "",
            "wish_at": None,
            "wish_by": None,
            "wish_seen_at": None,
        }
    # Where in a step it was is what people want to know of a run that failed.
    if to not in (*LEASED, RunStatus.FAILED) or to == RunStatus.STARTING:
        columns |= {"phase": "", "phase_done": 0, "phase_total": 0}
    if to == RunStatus.QUEUED:
        columns |= {"queued_at": Now(), "not_before": None}
    columns |= changes
    with transaction.atomic():
        seen = Run.objects.filter(id=run.id, status=run.status, lease_epoch=run.lease_epoch)
        if not seen.filter(when or Q()).update(**columns):
            return None
        before, run.status = run.status, to
        if isinstance(changes.get("lease_epoch"), int):
            run.lease_epoch = changes["lease_epoch"]
        try:
            run.last_seq = append_status_event(run.id, run.lease_epoch, to, why, actor=actor, **told or {})
        except BaseException:
            run.status = before
            raise
    return run.last_seq


def append_status_event(
    run_id: int, epoch: int, status: str | None, reason: str, actor: str = "", **more: str
) -> int:
    """Write the run's next event, of kind "status", and poke. Returns its seq. `status` None: as it stands.

    Call it in a transaction; it takes the run's row lock, if that is not held already, and keeps it to the
    commit. `more`: what else the event says, as `wish` and how far that is.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE arborist_run SET last_seq = last_seq + 1 WHERE id = %s "
            "RETURNING last_seq, project_id, status, step",
            [run_id],
        )
        seq, project_id, stands, step = cursor.fetchone()
        body = {
            "status": str(status or stands),
            "reason": storable(reason),
            "actor": storable(actor),
            "epoch": epoch,
        } | more
        Event.objects.create(
            run_id=run_id, seq=seq, epoch=epoch, kind="status", step=step, at=Now(), body=body
        )
    poke(run_id, project_id, seq)
    return int(seq)
