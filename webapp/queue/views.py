"""The pages of the queue and of the workers. Views parse, call, render."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.db import connection
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_POST, require_safe

from webapp import broker
from webapp.errors import RequestError
from webapp.probes.querysets import active_probes
from webapp.projects.access import (
    Role,
    get_project,
    get_run,
    is_operator,
    probes_for,
    require,
    require_operator,
    user_of,
)
from webapp.queue import querysets, services
from webapp.queue.classes import CLASSES, start_hint
from webapp.runs.controls import Action, control
from webapp.runs.models import Worker


@require_safe
def queue(request: HttpRequest) -> HttpResponse:
    """What waits, in order, and why."""
    user = user_of(request)
    classes = querysets.queue_of(user)
    context = {
        "classes": classes,
        "n_waiting": sum(len(one["waiting"]) for one in classes),
        "limits": querysets.limits_for(user),
        "all_classes": CLASSES,
        "hints": {one["queue"]: start_hint(one["queue"]) for one in classes},
        "probes": active_probes(probes_for(user)),
    }
    return render(request, "queue/queue.html", context)


@require_POST
def priority(request: HttpRequest, run_id: int) -> HttpResponseBase:
    """Move a run in its queue: `move` is raise, lower or top."""
    run = get_run(request, run_id)
    require(request.user, run.project, Role.ADMIN)
    try:
        moved = services.set_priority(
            run, user_of(request), move=services.read_move(request.POST.get("move"))
        )
        messages.success(request, f"{run.name} has priority {moved.priority} now.")
    except RequestError as refused:
        messages.error(request, refused.detail)
    return redirect(f"{reverse('queue')}#run-{run_id}")


@require_POST
def cancel(request: HttpRequest, run_id: int) -> HttpResponseBase:
    """Take a run that waits out of the queue."""
    run = get_run(request, run_id)
    require(request.user, run.project, Role.EDITOR)
    try:
        control(run, user_of(request), Action.STOP)
        messages.success(request, f"{run.name} is cancelled.")
    except RequestError as refused:
        messages.error(request, refused.detail)
    return redirect("queue")


@require_POST
def limits(request: HttpRequest, slug: str) -> HttpResponseBase:
    """Set a project's limits; an empty field is no limit."""
    project = get_project(request, slug)
    require(request.user, project, Role.ADMIN)
    try:
        wanted = {name: _most(name, request.POST.get(name, "")) for name in ("all", *CLASSES)}
        services.set_limits(project, wanted)
        messages.success(request, f"The limits of {project.name} are set.")
    except RequestError as refused:
        messages.error(request, refused.detail)
    return redirect(f"{reverse('queue')}#limits")


def _most(name: str, text: str) -> int | None:
    text = text.strip()
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 6):
        raise RequestError(
            400, f"{text[:20]!r} is no limit for {name}. Use a whole number, or leave it empty."
        )
    return int(text)


@require_safe
def workers(request: HttpRequest) -> HttpResponse:
    """Who works, on what machine, and what Arborist stands on."""
    context = {
        "workers": querysets.workers_of(user_of(request)),
        "may_drain": is_operator(request.user),
        "stack": {"database": _database_version(), "broker": broker.is_reachable()},
    }
    return render(request, "queue/workers.html", context)


@require_safe
def worker(request: HttpRequest, worker_id: int) -> HttpResponse:
    user = user_of(request)
    found = querysets.workers_of(user, worker_id)
    if not found:
        raise Http404
    context = {
        "worker": found[0],
        "last_runs": querysets.last_runs(found[0]["name"], user),
        "may_drain": is_operator(request.user),
    }
    return render(request, "queue/worker.html", context)


@require_POST
def drain(request: HttpRequest, worker_id: int) -> HttpResponseBase:
    """Let a worker finish and take nothing new; with `now` it gives back what it works on."""
    return _order(request, worker_id, "now" if request.POST.get("now") else "drain")


@require_POST
def undrain(request: HttpRequest, worker_id: int) -> HttpResponseBase:
    return _order(request, worker_id, "undrain")


def _order(request: HttpRequest, worker_id: int, what: str) -> HttpResponseBase:
    require_operator(request.user)
    found = Worker.objects.filter(id=worker_id).first()
    if found is None:
        raise Http404
    if what == "undrain":
        services.undrain(found)
        messages.success(request, f"{found.name} may take runs again.")
    else:
        services.drain(found, user_of(request), now=what == "now")
        messages.success(request, f"{found.name} was asked to drain.")
    return redirect("worker-detail", worker_id)


def _database_version() -> Any:
    with connection.cursor() as cursor:
        cursor.execute("SHOW server_version")
        return f"PostgreSQL {cursor.fetchone()[0]}"
