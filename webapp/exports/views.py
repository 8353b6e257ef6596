"""Pages of exports: ask for one, watch mine, fetch a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, QueryDict, StreamingHttpResponse
from django.shortcuts import redirect, render
from django.utils.http import content_disposition_header
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from webapp.errors import RequestError
from webapp.exports import files, services
from webapp.exports.kinds import KINDS, Parameters, read_parameters
from webapp.exports.models import Export, ExportStatus
from webapp.exports.preview import preview
from webapp.exports.selection import Selection, read_selection, runs_of
from webapp.limits import PAGE_SIZE
from webapp.projects.access import Role, exports_for, get_export, get_project, may, user_of
from webapp.projects.models import Project
from webapp.runs.models import Run
from webapp.runs.views import page_cursor

CHUNK_BYTES = 256 * 1024
MOST_OFFERED_RUNS = 100


@require_http_methods(["GET", "HEAD", "POST"])
def export_new(request: HttpRequest, slug: str) -> HttpResponseBase:
    """The choice of what to export, with its preview; a POST asks for it. The address holds the choice."""
    project = get_project(request, slug)
    sent = request.POST if request.method == "POST" else request.GET
    kind = sent.get("kind") or _usual_kind(sent)
    errors: list[Mapping[str, str]] = []
    selection: Selection | None = None
    parameters: Parameters | None = None
    problem = ""
    try:
        selection = read_selection(_selection(sent))
    except RequestError as refused:
        problem, errors = refused.detail, [*errors, *refused.errors]
    try:
        parameters = read_parameters(kind, _knobs(kind, sent), strict=False)
    except RequestError as refused:
        if kind not in KINDS:
            raise Http404 from refused
        problem, errors = problem or refused.detail, [*errors, *refused.errors]
    shown = None
    if selection is not None and parameters is not None:
        try:
            if request.method == "POST":
                services.create_export(project, user_of(request), selection, parameters)
                messages.success(request, "The export has begun. Its file appears here.")
                return redirect("export-list")
            shown = preview(project, selection, parameters)
        except RequestError as refused:
            if refused.status == 404:
                raise Http404 from refused
            problem, errors = refused.detail, [*errors, *refused.errors]
    context = {
        "project": project,
        "role": project.role,
        "kinds": KINDS,
        "kind": kind,
        "words": KINDS[kind],
        "knobs": _knob_fields(kind, sent, parameters, errors),
        "selection": selection,
        "title": "" if selection is None else _title(project, selection),
        "runs": _offered_runs(project, selection),
        "back": _back(project, selection),
        "sent": sent,
        "step_error": next((e["message"] for e in errors if e["path"] in ("from_step", "to_step")), ""),
        "search_error": next((e["message"] for e in errors if e["path"] == "search"), ""),
        "filter_error": next((e["message"] for e in errors if e["path"] == "q"), ""),
        "problem": problem,
        "preview": shown,
    }
    return render(request, "exports/new.html", context, status=400 if request.method == "POST" else 200)


def _usual_kind(sent: QueryDict) -> str:
    if sent.get("search"):
        return "nodes"
    return "page" if sent.get("tree") and "," not in sent["tree"] else "trees"


def _selection(sent: QueryDict) -> dict[str, Any]:
    """As JSON has it. What is no number stays text, and is refused as such."""
    given: dict[str, Any] = {}
    for name, key in (("run", "runs"), ("tree", "trees")):
        parts = [part.strip() for text in sent.getlist(name) for part in text.split(",") if part.strip()]
        if parts:
            given[key] = [int(part) if part.isdecimal() and len(part) <= 18 else part for part in parts]
    for name, key in (("from", "from_step"), ("to", "to_step")):
        if text := sent.get(name, "").strip():
            given[key] = int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else text
    for name in ("q", "search"):
        if sent.get(name):
            given[name] = sent[name]
    return given


def _knobs(kind: str, sent: QueryDict) -> dict[str, str]:
    known = KINDS[kind].knobs if kind in KINDS else ()
    return {knob.name: text for knob in known if (text := sent.get(knob.name, "").strip())}


def _knob_fields(
    kind: str, sent: QueryDict, parameters: Parameters | None, errors: list[Mapping[str, str]]
) -> list[dict[str, Any]]:
    usual = read_parameters(kind, {})
    return [
        {
            "knob": knob,
            "value": sent.get(knob.name) or str(getattr(parameters or usual, knob.name)),
            "error": next((error["message"] for error in errors if error["path"] == knob.name), ""),
        }
        for knob in KINDS[kind].knobs
    ]


def _title(project: Project, selection: Selection) -> str:
    try:
        return services.title_of(project, selection)
    except RequestError as refused:
        raise Http404 from refused


def _offered_runs(project: Project, selection: Selection | None) -> list[dict[str, Any]]:
    """The newest runs, and those that are chosen; none where single trees are meant."""
    if selection is not None and (selection.trees or selection.search):
        return []
    chosen = set(selection.runs if selection is not None else ())
    newest = Run.objects.filter(project=project).order_by("-id").only("id", "name", "colour")
    offered = list(newest[:MOST_OFFERED_RUNS])
    offered += [run for run in newest.filter(id__in=chosen) if run not in offered]
    return [{"run": run, "chosen": run.id in chosen} for run in offered]


def _back(project: Project, selection: Selection | None) -> tuple[str, int, str] | None:
    """Where the choice came from: route, id, words."""
    if selection is not None and len(selection.trees) == 1:
        return ("tree-detail", selection.trees[0], "the tree")
    if selection is not None and len(selection.runs) == 1 and not selection.trees:
        return ("run-trees", selection.runs[0], runs_of(project, selection)[0].name)
    return None


# ------------------------------------------------------------------------------------------------ mine


@require_GET
@never_cache
def export_list(request: HttpRequest) -> HttpResponse:
    """My exports, newest first, in all my projects."""
    mine = exports_for(request.user).filter(created_by=user_of(request)).order_by("-id")
    before = page_cursor(request, "before")
    if before is not None:
        mine = mine.filter(id__lt=before)
    found = list(mine.select_related("project", "created_by")[: PAGE_SIZE + 1])
    context = {
        "exports": services.export_rows(found[:PAGE_SIZE]),
        "next_before": found[PAGE_SIZE - 1].id if len(found) > PAGE_SIZE else None,
    }
    return render(request, "exports/list.html", context)


@require_POST
def export_cancel(request: HttpRequest, export_id: int) -> HttpResponseBase:
    export = own_export(request, export_id)
    try:
        services.cancel(export, user_of(request))
    except RequestError as refused:
        messages.warning(request, refused.detail)
    return redirect("export-list")


@require_POST
def export_delete(request: HttpRequest, export_id: int) -> HttpResponseBase:
    export = own_export(request, export_id)
    services.delete_file(export, f"Its file was deleted by {user_of(request).get_username()}.")
    return redirect("export-list")


def own_export(request: HttpRequest, export_id: int) -> Export:
    """The export, if it is the user's own or the user is an admin of its project. Raises PermissionDenied."""
    export = get_export(request, export_id)
    if export.created_by_id != user_of(request).id and not may(export.role, Role.ADMIN):
        raise PermissionDenied(f"This export is {export.created_by.get_username()}'s. Ask them, or an admin.")
    return export


# ------------------------------------------------------------------------------------------------ the file


@require_GET
def export_file(request: HttpRequest, export_id: int) -> HttpResponseBase:
    return file_response(get_export(request, export_id))


def file_response(export: Export) -> HttpResponseBase:
    """The file, to be saved and never shown by the browser. Raises Http404 without one."""
    path = files.path_of(export)
    if export.status != ExportStatus.SUCCEEDED or not path.is_file():
        raise Http404
    response = StreamingHttpResponse(_chunks(path), content_type="application/octet-stream")
    response["Content-Length"] = str(path.stat().st_size)
    response["Content-Disposition"] = content_disposition_header(True, files.download_name(export)) or ""
    response["X-Content-Type-Options"] = "nosniff"
    response["Content-Security-Policy"] = "sandbox; default-src 'none'"
    response["Cache-Control"] = "private, no-store"
    return response


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    """A piece at a time, read beside the event loop, so that a slow reader holds no memory and no thread."""
    with path.open("rb") as stream:
        while chunk := await asyncio.to_thread(stream.read, CHUNK_BYTES):
            yield chunk
