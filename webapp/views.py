"""Pages that belong to no app: the front door, the projects, the health check, and what is shown when
something is wrong.
"""

from __future__ import annotations

import logging
import secrets
import sys
from typing import Any

from django.db import DatabaseError, InterfaceError, connection
from django.db.models import Count, Q
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import redirect, render
from django.template import loader
from django.views.decorators.cache import never_cache

from webapp.errors import error_response, is_api
from webapp.limits import OUTAGE_RETRY_SECONDS
from webapp.outages import outage_of, unavailable
from webapp.projects.access import projects_for
from webapp.runs.models import ACTIVE

log = logging.getLogger(__name__)


def home(request: HttpRequest) -> HttpResponseBase:
    """The only project's runs, or the choice of projects."""
    projects = list(projects_for(request.user)[:2])
    return redirect("run-list", projects[0].slug) if len(projects) == 1 else redirect("projects")


def project_list(request: HttpRequest) -> HttpResponse:
    # `role` is one membership's; counting runs must not multiply with it, so each run is counted once.
    projects = projects_for(request.user).annotate(
        n_runs=Count("runs", distinct=True),
        n_active=Count("runs", filter=Q(runs__status__in=ACTIVE), distinct=True),
    )
    return render(request, "projects/list.html", {"projects": projects})


@never_cache
def health_check(_request: HttpRequest) -> HttpResponse:
    """For load balancers, so without login: ok, or 503. It says nothing else to strangers."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except (DatabaseError, InterfaceError) as error:
        log.warning("the database does not answer: %s", error)
        wait = {"Retry-After": str(OUTAGE_RETRY_SECONDS)}
        return JsonResponse({"status": "database unreachable"}, status=503, headers=wait)
    return JsonResponse({"status": "ok"})


# ------------------------------------------------------------------------------------------------ errors


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:  # noqa: ARG001 (its text may tell too much)
    detail = "This request cannot be understood. Go back and try again."
    return _error(request, 400, "400.html", detail)


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    return _error(request, 403, "403.html", str(exception) or "Your role does not allow this.")


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    log.info("CSRF check failed: %s", reason)
    detail = "This form was open too long, or was sent from another site. Reload the page and send it again."
    return _error(request, 403, "403.html", detail)


def page_not_found(request: HttpRequest, exception: Exception) -> HttpResponse:  # noqa: ARG001 (its text names our URLs)
    return _error(request, 404, "404.html", "There is nothing here that you may see.")


def server_error(request: HttpRequest) -> HttpResponse:
    """A fault of ours: an id for the person, the traceback (logged by Django just before) for the log. A
    database that does not answer is no fault: 503, and it passes.
    """
    error = sys.exc_info()[1]
    if error is not None and (outage := outage_of(error)):
        return unavailable(request, error, outage)
    fault = secrets.token_hex(6)
    log.error("fault %s at %s %s", fault, request.method, request.path)
    detail = f"Something failed here, and the log has it as {fault}."
    if is_api(request):
        return error_response(500, detail, id=fault)
    # Without context processors: what failed may be the database that they ask.
    return HttpResponse(loader.get_template("500.html").render({"fault": fault, "shell": {}}), status=500)


def _error(request: HttpRequest, status: int, template: str, reason: str, **context: Any) -> HttpResponse:
    if is_api(request):
        return error_response(status, reason)
    return render(request, template, {"reason": reason, **context}, status=status)
