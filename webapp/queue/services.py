"""The verbs of the queue: priorities, limits of projects, draining workers."""

from __future__ import annotations

from typing import Literal

from django.db import transaction
from django.db.models import Max
from django.db.models.functions import Now

from webapp.accounts.models import User
from webapp.errors import RequestError, bad_field
from webapp.projects.models import Project
from webapp.queue.classes import CLASSES, is_class
from webapp.queue.models import ALL_CLASSES, ProjectLimit
from webapp.queue.order import MOST_PRIORITY
from webapp.runs.models import CLAIMABLE, ENDED, Run, Worker
from webapp.runs.states import append_status_event

MOST_AT_ONCE = 1000
Move = Literal["raise", "lower", "top"]


def read_move(text: object) -> Move:
    """Raises RequestError(400) for any other word."""
    match text:
        case "raise" | "lower" | "top":
            return text
        case _:
            raise bad_field("move", "A run is raised, lowered, or moved to the top.")


def set_priority(run: Run, user: User, *, priority: int | None = None, move: Move | None = None) -> Run:
    """Give the run a priority among its project's, or move it by one or before all of them that wait in its
    class.

    Raises RequestError: 400 for one out of bounds, 409 for a run that has ended.
    """
    with transaction.atomic():
        run = Run.objects.select_for_update().defer("config").get(id=run.id)
        if run.status in ENDED:
            raise RequestError(409, f"{run.name} has ended ({run.status}); it waits for nothing any more.")
        before = run.priority
        wanted = before if priority is None else priority
        if move == "top":
            others = Run.objects.filter(
                project_id=run.project_id, queue=run.queue, status__in=CLAIMABLE
            ).exclude(id=run.id)
            highest = others.aggregate(most=Max("priority"))["most"]
            wanted = before if highest is None else min(max(before, highest + 1), MOST_PRIORITY)
        elif move is not None:
            step = 1 if move == "raise" else -1
            wanted = max(-MOST_PRIORITY, min(MOST_PRIORITY, before + step))
        if not -MOST_PRIORITY <= wanted <= MOST_PRIORITY:
            raise bad_field("priority", f"{wanted} is no priority. Use -{MOST_PRIORITY} to {MOST_PRIORITY}.")
        if wanted != before:
            Run.objects.filter(id=run.id).update(priority=wanted)
            why = f"Priority {before} → {wanted}, by {user.get_username()}."
            append_status_event(run.id, run.lease_epoch, None, why, actor=user.get_username())
    run.refresh_from_db()
    return run


def set_limits(project: Project, limits: dict[str, int | None]) -> dict[str, int]:
    """Set or, with None, lift the limits of the classes that are named; `all` is all together. Returns those
    that stand then. Runs that are worked on already go on. Raises RequestError(400).
    """
    for name, most in limits.items():
        if name != "all" and not is_class(name):
            known = ", ".join(CLASSES)
            raise bad_field(
                f"limits.{name[:40]}", f"{name[:40]!r} is no resource class. There are {known}, all."
            )
        if most is not None and not 0 <= most <= MOST_AT_ONCE:
            raise bad_field(
                f"limits.{name}", f"{most} is no limit. Use 0 to {MOST_AT_ONCE}, or leave it empty."
            )
    with transaction.atomic():
        for name, most in limits.items():
            queue = ALL_CLASSES if name == "all" else name
            if most is None:
                ProjectLimit.objects.filter(project=project, queue=queue).delete()
            else:
                ProjectLimit.objects.update_or_create(project=project, queue=queue, defaults={"most": most})
    return limits_of(project)


def limits_of(project: Project) -> dict[str, int]:
    """Class, or `all` -> most at once; a class that is not there has no limit."""
    rows = ProjectLimit.objects.filter(project=project).order_by("queue").values_list("queue", "most")
    return {queue or "all": most for queue, most in rows}


def drain(worker: Worker, user: User, *, now: bool) -> Worker:
    """Ask the worker to take nothing new; `now`: also to give back what it works on, after a checkpoint. The
    stronger wish stays.
    """
    with transaction.atomic():
        worker = Worker.objects.select_for_update().get(id=worker.id)
        if worker.drain_at is None or (now and not worker.drain_now):
            Worker.objects.filter(id=worker.id).update(
                drain_at=Now(), drain_now=now, drain_by=user, drain_seen_at=None, drained_at=None
            )
    worker.refresh_from_db()
    return worker


def undrain(worker: Worker) -> Worker:
    """Let the worker take runs again. Asking twice changes nothing."""
    Worker.objects.filter(id=worker.id).update(
        drain_at=None, drain_now=False, drain_by=None, drain_seen_at=None, drained_at=None
    )
    worker.refresh_from_db()
    return worker
