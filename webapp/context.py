"""What the frame around every page shows."""

from __future__ import annotations

from typing import Any

from django.db.models import Count, Q
from django.http import HttpRequest

from webapp.projects.access import projects_for, runs_for
from webapp.projects.last import last_project
from webapp.runs.models import ACTIVE, CLAIMABLE, LEASED

THEMES = ("light", "dark")


def shell(request: HttpRequest) -> dict[str, Any]:
    """`shell`: projects for the switcher, how many runs wait and are worked on, the theme. `project` comes
    from the view; on pages of no project but the list of all, it is the one that the user was in last.

    Two queries on a page for someone who is logged in, none elsewhere.
    """
    theme = request.COOKIES.get("theme", "")
    frame: dict[str, Any] = {"theme": theme if theme in THEMES else "", "projects": [], "runs": None}
    # An error page may come before the middleware that sets the user.
    user = getattr(request, "user", None)
    if user is not None and user.is_authenticated:
        # `n_news`: the user's saved searches with new matches.
        news = Q(saved_views__owner=user, saved_views__new_matches__gt=0)
        frame["projects"] = list(projects_for(user).annotate(n_news=Count("saved_views", filter=news)))
        frame["runs"] = (
            runs_for(user)
            .filter(status__in=ACTIVE)
            .aggregate(
                queued=Count("id", filter=Q(status__in=CLAIMABLE)),
                running=Count("id", filter=Q(status__in=LEASED)),
            )
        )
    match = getattr(request, "resolver_match", None)
    frame["project"] = getattr(request, "project", None)
    if frame["project"] is None and (match is None or match.view_name != "projects"):
        frame["project"] = last_project(request, frame["projects"])
    return {"shell": frame}
