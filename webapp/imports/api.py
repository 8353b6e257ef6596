"""API operations on imports. What they call is what the page calls."""

from __future__ import annotations

from typing import Annotated, Any

from django.http import HttpRequest
from ninja import File, Form, Router
from ninja.files import UploadedFile

from webapp.imports import services
from webapp.limits import PAGE_SIZE
from webapp.projects.access import Role, get_import, get_project, require, user_of
from webapp.runs.api import Id, Limit

router = Router(tags=["imports"])


@router.post(
    "/projects/{slug:slug}/imports", summary="Upload a file of trees to become a run", response={201: Any}
)
def create_import(
    request: HttpRequest,
    slug: str,
    file: Annotated[UploadedFile | None, File()] = None,
    name: Annotated[str, Form()] = "",
) -> Any:
    from ninja.responses import Status

    project = get_project(request, slug)
    require(request.user, project, Role.EDITOR)
    asked = services.create_import(project, user_of(request), file, name)
    return Status(201, services.import_rows([asked])[0])


@router.get("/projects/{slug:slug}/imports", summary="Imports of a project, newest first")
def list_imports(request: HttpRequest, slug: str, before: Id | None = None, limit: Limit = PAGE_SIZE) -> Any:
    found = services.newest_of(get_project(request, slug), limit + 1, before)
    more, found = len(found) > limit, found[:limit]
    return {"imports": services.import_rows(found), "next_before": found[-1].id if more else None}


@router.get("/imports/{int:import_id}", summary="One import: how far it is, and what cannot be used")
def read_import(request: HttpRequest, import_id: int) -> Any:
    return services.import_rows([get_import(request, import_id)])[0]


@router.post("/imports/{int:import_id}/cancel", summary="Cancel an import; nothing of it stays")
def cancel_import(request: HttpRequest, import_id: int) -> Any:
    asked = get_import(request, import_id)
    require(request.user, asked.project, Role.EDITOR)
    services.cancel(asked, user_of(request))
    asked.refresh_from_db()
    return services.import_rows([asked])[0]
