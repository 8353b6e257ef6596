"""The page of a project's imports: upload a file, see how far each one is."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from webapp.errors import RequestError
from webapp.imports import services
from webapp.limits import MAX_IMPORT_ERRORS, MAX_UPLOAD_BYTES
from webapp.projects.access import Role, get_import, get_project, require, user_of
from webapp.runs.views import page_cursor

PAGE_IMPORTS = 20


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def trees_import(request: HttpRequest, slug: str) -> HttpResponseBase:
    """A file of trees is to become a run. For editors."""
    project = get_project(request, slug)
    require(request.user, project, Role.EDITOR)
    problem = ""
    if request.method == "POST":
        name = request.POST.get("name", "")
        try:
            services.create_import(project, user_of(request), request.FILES.get("file"), name)
        except RequestError as refused:
            problem = refused.detail
        else:
            messages.success(request, "The import has begun. Its run appears below.")
            return redirect("trees-import", slug)
    found = services.newest_of(project, PAGE_IMPORTS + 1, page_cursor(request, "before"))
    context = {
        "project": project,
        "problem": problem,
        "name": request.POST.get("name", ""),
        "most_bytes": MAX_UPLOAD_BYTES,
        "most_errors": MAX_IMPORT_ERRORS,
        "imports": services.import_rows(found[:PAGE_IMPORTS]),
        "next_before": found[PAGE_IMPORTS - 1].id if len(found) > PAGE_IMPORTS else None,
    }
    return render(request, "imports/import.html", context, status=400 if problem else 200)


@require_POST
def import_cancel(request: HttpRequest, import_id: int) -> HttpResponse:
    asked = get_import(request, import_id)
    require(request.user, asked.project, Role.EDITOR)
    try:
        services.cancel(asked, user_of(request))
    except RequestError as refused:
        messages.warning(request, refused.detail)
    return redirect("trees-import", asked.project.slug)
