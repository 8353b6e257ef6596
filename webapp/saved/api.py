"""API operations on saved views."""

from __future__ import annotations

from typing import Any

from django.db import transaction
from django.http import Http404, HttpRequest
from ninja import Router, Schema
from ninja.responses import Status
from pydantic import ConfigDict

from webapp.projects.access import get_project, get_run, user_of
from webapp.runs.api import Id
from webapp.saved.alerts import mark_seen, set_alert
from webapp.saved.models import SavedView
from webapp.saved.querysets import view_json, views_of
from webapp.saved.services import remove_view, save_view

router = Router(tags=["saved views"])


class NewView(Schema):
    model_config = ConfigDict(extra="forbid")

    name: str
    page: str
    query: str
    run: Id | None = None
    alert: bool = False


class Alert(Schema):
    """`alert`: tell of new matches; `seen`: what is there now is no news."""

    model_config = ConfigDict(extra="forbid")

    alert: bool | None = None
    seen: bool = False


@router.get("/projects/{slug:slug}/views", summary="Saved views of a project")
def list_views(request: HttpRequest, slug: str) -> Any:
    return views_of(get_project(request, slug))


@router.post("/projects/{slug:slug}/views", summary="Save a view", response={201: Any})
def create_view(request: HttpRequest, slug: str, payload: NewView) -> Any:
    project = get_project(request, slug)
    run = None if payload.run is None else get_run(request, payload.run)
    with transaction.atomic():
        view = save_view(project, user_of(request), payload.name, payload.page, payload.query, run)
        if payload.alert:
            set_alert(view, user_of(request), alert=True)
    view.refresh_from_db()
    return Status(201, view_json(view))


@router.patch(
    "/projects/{slug:slug}/views/{int:view_id}", summary="Alert of a saved search, or mark it as seen"
)
def alert_of_view(request: HttpRequest, slug: str, view_id: int, payload: Alert) -> Any:
    project = get_project(request, slug)
    view = SavedView.objects.filter(project=project, id=view_id).select_related("owner", "project").first()
    if view is None:
        raise Http404
    if payload.alert is not None:
        set_alert(view, user_of(request), alert=payload.alert)
    if payload.seen:
        mark_seen(view, user_of(request))
    view.refresh_from_db()
    return view_json(view)


@router.delete("/projects/{slug:slug}/views/{int:view_id}", summary="Remove a view", response={204: None})
def delete_view(request: HttpRequest, slug: str, view_id: int) -> Any:
    project = get_project(request, slug)
    view = SavedView.objects.filter(project=project, id=view_id).select_related("owner").first()
    if view is None:
        raise Http404
    remove_view(view, user_of(request), project.role)
    return Status(204, None)
