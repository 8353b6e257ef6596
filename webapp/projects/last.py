"""The project that somebody was in last. Pages of no project (queue, workers, exports, settings) show its
navigation, so that it is not lost on the way through them. The address of a page never depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from django.conf import settings
from django.http import HttpRequest, HttpResponse

if TYPE_CHECKING:
    from webapp.projects.access import ProjectSeen

COOKIE = "project"


class LastProjectMiddleware:
    """Keeps the project of each page until the browser is closed or somebody logs out."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        kept = request.COOKIES.get(COOKIE)
        project = getattr(request, "project", None)
        is_page = response.get("Content-Type", "").startswith("text/html")
        if project is not None and is_page and kept != project.slug:
            response.set_cookie(
                COOKIE,
                project.slug,
                secure=settings.SESSION_COOKIE_SECURE,
                httponly=True,
                samesite="Lax",
            )
        elif kept is not None and request.resolver_match and request.resolver_match.view_name == "logout":
            response.delete_cookie(COOKIE, samesite="Lax")
        return response


def last_project(request: HttpRequest, projects: Iterable[ProjectSeen]) -> ProjectSeen | None:
    """Of those that the user may see: the only one, or the one that the last page was of."""
    mine = list(projects)
    if len(mine) == 1:
        return mine[0]
    return next((one for one in mine if one.slug == request.COOKIES.get(COOKIE)), None)
