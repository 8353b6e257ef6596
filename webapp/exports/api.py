"""API operations on exports. What they call is what the pages call."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django.http import HttpRequest, HttpResponseBase
from ninja import Router, Schema
from pydantic import ConfigDict, Field

from webapp.errors import RequestError
from webapp.exports import services
from webapp.exports.kinds import Parameters, read_parameters
from webapp.exports.preview import preview
from webapp.exports.selection import Selection, read_selection
from webapp.exports.views import file_response, own_export
from webapp.limits import PAGE_SIZE
from webapp.projects.access import exports_for, get_export, get_project, user_of
from webapp.runs.api import Id, Limit

router = Router(tags=["exports"])


class NewExport(Schema):
    """`selection`: {"runs": [1], "from_step": 0, "to_step": 9, "q": ""} or {"trees": [5]} or
    {"search": "adv:<-1"}; `parameters`: of the kind, and what is left out has its default.
    """

    model_config = ConfigDict(extra="forbid")

    kind: str
    selection: dict[str, Any]
    parameters: dict[str, Any] = Field(default_factory=dict)

    def read(self) -> tuple[Selection, Parameters]:
        """Raises RequestError(400)."""
        return read_selection(self.selection), read_parameters(self.kind, self.parameters)


@router.post("/projects/{slug:slug}/exports", summary="Ask for an export", response={201: Any})
def create_export(request: HttpRequest, slug: str, payload: NewExport) -> Any:
    from ninja.responses import Status

    project = get_project(request, slug)
    selection, parameters = payload.read()
    export = services.create_export(project, user_of(request), selection, parameters)
    return Status(201, services.export_rows([export])[0])


@router.post(
    "/projects/{slug:slug}/exports/preview", summary="Count an export's trees and see its first rows"
)
def preview_export(request: HttpRequest, slug: str, payload: NewExport) -> Any:
    return asdict(preview(get_project(request, slug), *payload.read()))


@router.get("/exports", summary="Your exports, newest first")
def list_exports(request: HttpRequest, before: Id | None = None, limit: Limit = PAGE_SIZE) -> Any:
    mine = exports_for(request.user).filter(created_by=user_of(request)).order_by("-id")
    if before is not None:
        mine = mine.filter(id__lt=before)
    found = list(mine.select_related("project", "created_by")[: limit + 1])
    more, found = len(found) > limit, found[:limit]
    return {"exports": services.export_rows(found), "next_before": found[-1].id if more else None}


@router.get("/exports/{int:export_id}", summary="One export: how far it is")
def read_export(request: HttpRequest, export_id: int) -> Any:
    return services.export_rows([get_export(request, export_id)])[0]


@router.get("/exports/{int:export_id}/file", summary="The file of an export", response={200: None})
def read_file(request: HttpRequest, export_id: int) -> HttpResponseBase:
    export = get_export(request, export_id)
    if not export.file:
        raise RequestError(409, f"This export has no file: it is {export.status}. {export.reason}".strip())
    return file_response(export)


@router.post("/exports/{int:export_id}/cancel", summary="Cancel an export")
def cancel_export(request: HttpRequest, export_id: int) -> Any:
    export = own_export(request, export_id)
    services.cancel(export, user_of(request))
    export.refresh_from_db()
    return services.export_rows([export])[0]


@router.post("/exports/{int:export_id}/delete", summary="Delete the file of an export")
def delete_export(request: HttpRequest, export_id: int) -> Any:
    export = own_export(request, export_id)
    services.delete_file(export, f"Its file was deleted by {user_of(request).get_username()}.")
    export.refresh_from_db()
    return services.export_rows([export])[0]
