"""Pages of saved views."""

from __future__ import annotations

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_POST

from webapp.errors import RequestError
from webapp.projects.access import get_project, get_run, user_of
from webapp.saved.alerts import MOST_NEW, mark_seen, set_alert
from webapp.saved.models import SavedView
from webapp.saved.querysets import view_json, views_of
from webapp.saved.services import remove_view, save_view


@require_GET
def view_list(request: HttpRequest, slug: str) -> HttpResponse:
    project = get_project(request, slug)
    context = {
        "project": project,
        "role": project.role,
        "saved": views_of(project),
        "user_id": user_of(request).id,
        "may_remove_any": project.role == "admin",
        "most_new": MOST_NEW,
    }
    return render(request, "saved/list.html", context)


@require_POST
def view_save(request: HttpRequest, slug: str) -> HttpResponseBase:
    """Saves, and shows the view under its own address."""
    project = get_project(request, slug)
    page = request.POST.get("page", "")
    run_id = request.POST.get("run", "")
    run = (
        get_run(request, int(run_id))
        if run_id.isascii() and run_id.isdecimal() and len(run_id) < 18
        else None
    )
    try:
        name, query = request.POST.get("name", ""), request.POST.get("query", "")
        with transaction.atomic():
            view = save_view(project, user_of(request), name, page, query, run)
            if request.POST.get("alert"):
                set_alert(view, user_of(request), alert=True)
    except RequestError as refused:
        messages.error(request, refused.detail)
        if run is not None and run.project_id == project.id:
            return redirect("run-trees", run.id)
        return redirect("view-list", project.slug)
    messages.success(request, f"Saved as {view.name}.")
    return redirect(view_json(view)["url"])


@require_POST
def view_alert(request: HttpRequest, slug: str, view_id: int) -> HttpResponseBase:
    """`alert`: on, off, or seen."""
    view = _view(request, slug, view_id)
    wish = request.POST.get("alert", "")
    try:
        if wish == "seen":
            mark_seen(view, user_of(request))
        else:
            set_alert(view, user_of(request), alert=wish == "on")
    except RequestError as refused:
        if refused.status == 403:
            raise PermissionDenied(refused.detail) from refused
        messages.error(request, refused.detail)
    return redirect("view-list", slug)


def _view(request: HttpRequest, slug: str, view_id: int) -> SavedView:
    found = SavedView.objects.filter(project=get_project(request, slug), id=view_id)
    view = found.select_related("owner", "project").first()
    if view is None:
        raise Http404
    return view


@require_POST
def view_remove(request: HttpRequest, slug: str, view_id: int) -> HttpResponseBase:
    project = get_project(request, slug)
    view = _view(request, slug, view_id)
    try:
        remove_view(view, user_of(request), project.role)
    except RequestError as refused:
        raise PermissionDenied(refused.detail) from refused
    messages.success(request, f"Removed the view {view.name}.")
    return redirect("view-list", project.slug)
