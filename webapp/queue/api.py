"""API operations on the queue, limits and workers. What they call is what the pages call."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from django.http import Http404, HttpRequest
from ninja import Router, Schema
from pydantic import ConfigDict, Field, model_validator

from webapp.projects.access import Role, get_project, get_run, require, require_operator, user_of
from webapp.queue import querysets, services
from webapp.runs.models import Worker
from webapp.runs.querysets import run_detail

router = Router(tags=["queue"])


class Priority(Schema):
    """One of the two: a number, or a way to go."""

    model_config = ConfigDict(extra="forbid")

    priority: Annotated[int, Field(strict=True, ge=-100, le=100)] | None = None
    move: Literal["raise", "lower", "top"] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Priority:
        if (self.priority is None) == (self.move is None):
            raise ValueError("give priority, from -100 to 100, or move: raise, lower or top")
        return self


class Limits(Schema):
    """Class, or `all` -> most runs at once; null lifts a limit, what is not named stays."""

    model_config = ConfigDict(extra="forbid")

    limits: dict[str, Annotated[int, Field(strict=True, ge=0, le=services.MOST_AT_ONCE)] | None]


class Drain(Schema):
    """`now`: also give back what is worked on, after a checkpoint."""

    model_config = ConfigDict(extra="forbid")

    now: Annotated[bool, Field(strict=True)] = False


@router.get("/queue", summary="What waits, in order, with the reason and the expected start")
def read_queue(request: HttpRequest) -> Any:
    return {"classes": querysets.queue_of(user_of(request))}


@router.post("/runs/{int:run_id}/priority", summary="Move a run in its queue")
def set_priority(request: HttpRequest, run_id: int, payload: Priority) -> Any:
    run = get_run(request, run_id)
    require(request.user, run.project, Role.ADMIN)
    moved = services.set_priority(run, user_of(request), priority=payload.priority, move=payload.move)
    return run_detail(moved) | {"priority": moved.priority}


@router.get("/projects/{slug:slug}/limits", summary="How many runs of a project may be worked on at once")
def read_limits(request: HttpRequest, slug: str) -> Any:
    return {"limits": services.limits_of(get_project(request, slug))}


@router.post("/projects/{slug:slug}/limits", summary="Set or lift a project's limits")
def set_limits(request: HttpRequest, slug: str, payload: Limits) -> Any:
    project = get_project(request, slug)
    require(request.user, project, Role.ADMIN)
    return {"limits": services.set_limits(project, payload.limits)}


@router.get("/workers", summary="Workers: machine, heartbeat, what they work on")
def list_workers(request: HttpRequest) -> Any:
    return {"workers": querysets.workers_of(user_of(request))}


@router.get("/workers/{int:worker_id}", summary="One worker, and what it did last")
def read_worker(request: HttpRequest, worker_id: int) -> Any:
    return _worker(request, worker_id)


@router.post("/workers/{int:worker_id}/drain", summary="Let a worker take nothing new")
def drain_worker(request: HttpRequest, worker_id: int, payload: Drain) -> Any:
    require_operator(request.user)
    services.drain(_row(worker_id), user_of(request), now=payload.now)
    return _worker(request, worker_id)


@router.post("/workers/{int:worker_id}/undrain", summary="Let a worker take runs again")
def undrain_worker(request: HttpRequest, worker_id: int) -> Any:
    require_operator(request.user)
    services.undrain(_row(worker_id))
    return _worker(request, worker_id)


def _row(worker_id: int) -> Worker:
    row = Worker.objects.filter(id=worker_id).first()
    if row is None:
        raise Http404
    return row


def _worker(request: HttpRequest, worker_id: int) -> dict[str, Any]:
    user = user_of(request)
    found = querysets.workers_of(user, worker_id)
    if not found:
        raise Http404
    return {**found[0], "last_runs": querysets.last_runs(found[0]["name"], user)}
