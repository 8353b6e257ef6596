"""What people ask of a run that exists: pause, resume, stop, stop now, retry.

Where a worker holds the run, it is a wish on the row, which the worker acknowledges and fulfils; where nobody
does, it is done here and now.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from webapp import broker
from webapp.accounts.models import User
from webapp.errors import RequestError
from webapp.queue.capacity import check_capacity
from webapp.runs.models import CLAIMABLE, ENDED, LEASED, Run, RunStatus, WishKind
from webapp.runs.services import check_room
from webapp.runs.states import append_status_event, move
from webapp.runs.words import ASKED

TRIES = 5  # a run may move between the look and the deed


class Action(StrEnum):
    """Each is also the last word of its address."""

    PAUSE = "pause"
    RESUME = "resume"
    STOP = "stop"
    STOP_NOW = "stop-now"
    RETRY = "retry"


WISHES = {Action.PAUSE: WishKind.PAUSE, Action.STOP: WishKind.STOP, Action.STOP_NOW: WishKind.KILL}
_STRENGTH = {"": 0, WishKind.PAUSE: 1, WishKind.STOP: 2, WishKind.KILL: 3}


def possible(run: Run) -> list[Action]:
    """What may be asked of the run as it stands."""
    if run.is_imported:
        return []
    if run.status in LEASED:
        return [action for action, wish in WISHES.items() if _STRENGTH[wish] > _STRENGTH[run.wish]]
    if run.status in CLAIMABLE:
        return [Action.PAUSE, Action.STOP]
    if run.status == RunStatus.PAUSED:
        return [Action.RESUME, Action.STOP]
    return [] if run.status == RunStatus.SUCCEEDED else [Action.RETRY]


def control(run: Run, user: User, action: Action) -> Run:
    """Do it, or ask the run's worker to. Asking for the same again changes nothing.

    Raises RequestError(409), with a sentence, when the run stands where that cannot be asked.
    """
    do: Callable[[Run, User], bool] = {
        Action.PAUSE: lambda run, user: _wish(run, user, WishKind.PAUSE),
        Action.STOP: lambda run, user: _wish(run, user, WishKind.STOP),
        Action.STOP_NOW: lambda run, user: _wish(run, user, WishKind.KILL),
        Action.RESUME: _resume,
        Action.RETRY: _retry,
    }[action]
    for _ in range(TRIES):
        with transaction.atomic():
            done = do(run, user)
        run.refresh_from_db()
        if done:
            return run
    raise RequestError(409, f"{run.name} is changing right now. Look at it and try again.")


def done_words(run: Run, action: Action) -> str:
    """What was done, or will be, for whoever pressed the button."""
    if run.wish:
        end = "is paused" if run.wish == WishKind.PAUSE else "ends"
        before = "" if run.wish == WishKind.KILL else "saves a checkpoint, then it "
        return f"{run.name} was asked: it {before}{end}."
    done = {
        Action.PAUSE: "is paused",
        Action.RESUME: "waits for a worker again",
        Action.RETRY: "waits for a worker again",
    }.get(action, f"is {run.status}; everything it made is kept")
    return f"{run.name} {done}."


def _wish(run: Run, user: User, wish: WishKind) -> bool:
    """Whether it is asked for, or done. False: the run has moved on since it was read."""
    name = user.get_username()
    if run.status in ENDED:
        verb = "pause" if wish == WishKind.PAUSE else "stop"
        raise RequestError(409, f"{run.name} has already ended ({run.status}); there is nothing to {verb}.")
    if run.status in LEASED:
        return _ask_worker(run, user, wish)
    where = "before it started" if run.step == 0 else "while it waited"
    if wish == WishKind.PAUSE:
        if run.status == RunStatus.PAUSED:
            return True
        return move(run, RunStatus.PAUSED, f"Paused by {name} {where}.", actor=name) is not None
    if run.status == RunStatus.PAUSED and run.step:
        why = f"Stopped by {name} while it was paused after step {run.step}."
        return move(run, RunStatus.STOPPED, why, actor=name) is not None
    return move(run, RunStatus.CANCELLED, f"Cancelled by {name} {where}.", actor=name) is not None


def _ask_worker(run: Run, user: User, wish: WishKind) -> bool:
    if wish == WishKind.PAUSE and _STRENGTH[run.wish] > _STRENGTH[wish]:
        raise RequestError(409, f"{run.name} is being stopped already; it cannot be paused any more.")
    if _STRENGTH[wish] <= _STRENGTH[run.wish]:
        return True
    name = user.get_username()
    seen = Run.objects.filter(id=run.id, status=run.status, lease_epoch=run.lease_epoch, wish=run.wish)
    if not seen.update(wish=wish, wish_at=Now(), wish_by=user, wish_seen_at=None):
        return False
    why = f"{ASKED[wish]} requested by {name}."
    append_status_event(run.id, run.lease_epoch, None, why, actor=name, wish=wish, wish_is="requested")
    return True


def _resume(run: Run, user: User) -> bool:
    if run.status != RunStatus.PAUSED:
        if run.wish == WishKind.PAUSE:
            raise RequestError(409, f"{run.name} is being paused. Resume it when it is paused.")
        hint = " Retry it instead." if Action.RETRY in possible(run) else ""
        raise RequestError(409, f"{run.name} is {run.status}, not paused.{hint}")
    return _queue_again(run, user, "Resumed")


def _retry(run: Run, user: User) -> bool:
    if Action.RETRY not in possible(run):
        hint = {
            RunStatus.SUCCEEDED: "It did all it was to do: fork it to do more.",
            RunStatus.PAUSED: "Resume it.",
        }.get(RunStatus(run.status), "It has not ended.")
        raise RequestError(409, f"{run.name} is {run.status} and cannot be retried. {hint}")
    return _queue_again(run, user, "Retried", restarts=0)


def _queue_again(run: Run, user: User, word: str, **changes: Any) -> bool:
    kinds = ("config__resources__processes", "config__resources__engine_processes")
    processes, engines = Run.objects.values_list(*kinds).get(id=run.id)
    check_capacity(run.queue, processes or 1, engines or 0)
    name = user.get_username()
    check_room(run.project, run.created_by)
    why = f"{word} by {name}; waiting for a worker."
    if move(run, RunStatus.QUEUED, why, actor=name, settled_epoch=F("lease_epoch"), **changes) is None:
        return False
    # The row is the job and this is only a hint: without a broker the sweeper sends it again.
    transaction.on_commit(lambda: broker.send_train_run(run.id, run.queue), robust=True)
    return True
