"""API operations on projects and runs. What they call is what the pages call."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

from django.http import HttpRequest, HttpResponse
from ninja import Query, Router, Schema
from pydantic import ConfigDict, Field, ValidationError

from trainer.config import RunConfig
from trainer.metrics import METRICS
from trainer.presets import PRESETS
from webapp.errors import RequestError
from webapp.limits import MAX_CHART_POINTS, MAX_PAGE_SIZE, PAGE_SIZE
from webapp.live.catch_up import events_between
from webapp.projects.access import Role, get_project, get_run, projects_for, require, user_of
from webapp.queue.capacity import check_capacity
from webapp.runs import services
from webapp.runs.clones import clone
from webapp.runs.config_form import ConfigError, config_errors
from webapp.runs.controls import Action, control
from webapp.runs.estimate import estimate
from webapp.runs.forks import changed, fork, forkable
from webapp.runs.metrics import series_data
from webapp.runs.pace import pace_of
from webapp.runs.querysets import run_detail, runs_page

router = Router(tags=["runs"])

Id = Annotated[int, Field(ge=1, le=2**63 - 1)]
Seq = Annotated[int, Field(ge=0, le=2**63 - 1)]
Limit = Annotated[int, Field(ge=1, le=MAX_PAGE_SIZE)]


class NewRun(Schema):
    """`config` may be short: what it leaves out has RunConfig's defaults."""

    model_config = ConfigDict(extra="forbid")

    name: str
    config: dict[str, Any]
    idempotency_key: str | None = None


class ConfigToCheck(Schema):
    model_config = ConfigDict(extra="forbid")

    config: dict[str, Any]


def parse_config(given: dict[str, Any]) -> RunConfig:
    """The config, checked strictly: `"3"` is no number here. Raises RequestError(400) with every error and
    its path.
    """
    try:
        return RunConfig.model_validate_json(json.dumps(given), strict=True)
    except ValidationError as error:
        raise invalid_config(config_errors(error)) from error


def invalid_config(errors: list[ConfigError]) -> RequestError:
    more = f" And {len(errors) - 1} more." if len(errors) > 1 else ""
    first = errors[0]
    place = f"{first.path}: " if first.path else ""
    return RequestError(400, f"{place}{first.message}{more}", [error.as_dict() for error in errors])


@router.get("/projects", summary="The projects you are in")
def list_projects(request: HttpRequest) -> Any:
    return [
        {"slug": project.slug, "name": project.name, "role": project.role}
        for project in projects_for(request.user)
    ]


@router.get("/projects/{slug:slug}/runs", summary="Runs of a project, newest first")
def list_runs(request: HttpRequest, slug: str, before: Id | None = None, limit: Limit = PAGE_SIZE) -> Any:
    runs, next_before = runs_page(get_project(request, slug), before, limit)
    return {"runs": runs, "next_before": next_before}


@router.post("/projects/{slug:slug}/runs", summary="Create a run and queue it", response={201: Any})
def create_run(request: HttpRequest, slug: str, payload: NewRun) -> Any:
    from ninja.responses import Status

    project = get_project(request, slug)
    require(request.user, project, Role.EDITOR)
    config = parse_config(payload.config)
    run = services.create_run(project, user_of(request), config, payload.name, payload.idempotency_key)
    return Status(201, run_detail(run))


@router.get("/runs/{int:run_id}", summary="One run")
def read_run(request: HttpRequest, run_id: int) -> Any:
    return run_detail(get_run(request, run_id))


def _control(request: HttpRequest, run_id: int, action: Action) -> Any:
    run = get_run(request, run_id)
    require(request.user, run.project, Role.EDITOR)
    return run_detail(control(run, user_of(request), action))


@router.post("/runs/{int:run_id}/pause", summary="Save a checkpoint, free the machine, and wait")
def pause_run(request: HttpRequest, run_id: int) -> Any:
    return _control(request, run_id, Action.PAUSE)


@router.post("/runs/{int:run_id}/resume", summary="Queue a paused run again")
def resume_run(request: HttpRequest, run_id: int) -> Any:
    return _control(request, run_id, Action.RESUME)


@router.post("/runs/{int:run_id}/stop", summary="Save a checkpoint and stop a run")
def stop_run(request: HttpRequest, run_id: int) -> Any:
    return _control(request, run_id, Action.STOP)


@router.post("/runs/{int:run_id}/stop-now", summary="End a run's trainer at once, without a checkpoint")
def stop_run_now(request: HttpRequest, run_id: int) -> Any:
    return _control(request, run_id, Action.STOP_NOW)


@router.post("/runs/{int:run_id}/retry", summary="Queue a run again that failed, was stopped or cancelled")
def retry_run(request: HttpRequest, run_id: int) -> Any:
    return _control(request, run_id, Action.RETRY)


class NewFork(Schema):
    """`checkpoint`: one of `GET /runs/{id}/checkpoints`. `changes`: by path, as {"training.steps": 200}."""

    model_config = ConfigDict(extra="forbid")

    name: str
    checkpoint: Id
    changes: dict[str, Any] = Field(default_factory=dict)
    idempotency_key: str | None = None


@router.get("/runs/{int:run_id}/checkpoints", summary="Checkpoints that are kept, newest first")
def list_checkpoints(request: HttpRequest, run_id: int) -> Any:
    fields = ("id", "step", "epoch", "size_bytes", "weights_sha256", "is_pinned", "created_at")
    kept = forkable(get_run(request, run_id))
    return [{name: getattr(one, name) for name in fields} for one in kept]


@router.post(
    "/runs/{int:run_id}/fork", summary="Queue a new run that begins with a checkpoint", response={201: Any}
)
def fork_run(request: HttpRequest, run_id: int, payload: NewFork) -> Any:
    from ninja.responses import Status

    run = get_run(request, run_id)
    require(request.user, run.project, Role.EDITOR)
    if run.is_imported:
        raise RequestError(409, "This run was imported: it has no checkpoint to begin with.")
    config = parse_config(changed(run.config, payload.changes))
    new = fork(run, user_of(request), payload.checkpoint, config, payload.name, payload.idempotency_key)
    return Status(201, run_detail(new))


class NewClone(Schema):
    """`changes`: by path, as {"seed": 2}. Without `name` it has the run's, with the next number."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = None
    changes: dict[str, Any] = Field(default_factory=dict)
    idempotency_key: str | None = None


@router.post(
    "/runs/{int:run_id}/clone", summary="Queue a new run with this run's config", response={201: Any}
)
def clone_run(request: HttpRequest, run_id: int, payload: NewClone) -> Any:
    from ninja.responses import Status

    run = get_run(request, run_id)
    require(request.user, run.project, Role.EDITOR)
    if run.is_imported:
        raise RequestError(409, "This run was imported: it has no config to start a run with.")
    config = parse_config(changed(run.config, payload.changes))
    return Status(
        201, run_detail(clone(run, user_of(request), config, payload.name, payload.idempotency_key))
    )


@router.get("/runs/{int:run_id}/metrics", summary="Metric series, bucketed for charts")
def read_metrics(
    request: HttpRequest,
    run_id: int,
    names: str | None = None,
    max_points: Annotated[int, Query(ge=1, le=MAX_CHART_POINTS)] = 1000,
    from_step: Seq | None = None,
    to_step: Seq | None = None,
    superseded: bool = False,
) -> Any:
    run = get_run(request, run_id)
    wanted = None if names is None else [name for name in names.split(",") if name]
    series = series_data(
        run, wanted, max_points=max_points, from_step=from_step, to_step=to_step, superseded=superseded
    )
    # Read before the points were: what came between is told again by the socket, from this cursor on.
    return {"run": run.id, "last_seq": run.last_seq, "series": series}


@router.get("/runs/{int:run_id}/events", summary="Events after a cursor")
def read_events(request: HttpRequest, run_id: int, after: Seq = 0, limit: Limit = PAGE_SIZE) -> HttpResponse:
    run = get_run(request, run_id)
    # Numbers have no gap, so a page of events is a range. Each comes as JSON, as sockets send it.
    through = min(run.last_seq, after + limit)
    events = ",".join(text for _, text in events_between(run.id, after, through))
    body = f'{{"run":{run.id},"last_seq":{run.last_seq},"events":[{events}]}}'
    return HttpResponse(body, content_type="application/json")


@router.post("/configs/validate", summary="Check a config and estimate its cost")
def validate_config(request: HttpRequest, payload: ConfigToCheck) -> Any:  # noqa: ARG001 (ninja calls it so)
    try:
        config = RunConfig.model_validate_json(json.dumps(payload.config), strict=True)
    except ValidationError as error:
        return {"valid": False, "errors": [one.as_dict() for one in config_errors(error)], "estimate": None}
    pace = pace_of(config)
    found = {
        "valid": True,
        "errors": [],
        "estimate": asdict(estimate(config)) | {"pace": asdict(pace) | {"basis": pace.basis(config)}},
    }
    try:
        wanted = config.resources
        check_capacity(wanted.queue, wanted.processes, wanted.engine_processes)
    except RequestError as refused:
        found |= {"valid": False, "errors": refused.errors}
    return found


@router.get("/presets", summary="Complete configs to start from")
def list_presets(request: HttpRequest) -> Any:  # noqa: ARG001
    return [
        {
            "slug": preset.slug,
            "title": preset.title,
            "summary": preset.summary,
            "formula": preset.formula,
            "source": preset.source,
            "family": preset.family,
            "scale": preset.scale,
            "differences": preset.differences,
            "unverified": preset.unverified,
            "config": preset.config.model_dump(mode="json"),
        }
        for preset in PRESETS.values()
    ]


@router.get("/metrics", summary="Every metric a run logs")
def list_metrics(request: HttpRequest) -> Any:  # noqa: ARG001
    return [asdict(metric) for metric in METRICS.values()]
