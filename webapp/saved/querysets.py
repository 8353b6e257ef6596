"""Saved views as pages and API show them."""

from __future__ import annotations

from typing import Any

from django.http import QueryDict
from django.urls import reverse

from webapp.projects.models import Project
from webapp.saved.models import SavedView

MAX_SHOWN = 200


def views_of(project: Project, page: str | None = None) -> list[dict[str, Any]]:
    """By name, of one page or of all. One query."""
    found = SavedView.objects.filter(project=project).select_related("owner", "run").order_by("name", "id")
    if page is not None:
        found = found.filter(page=page)
    return [view_json(view) for view in found[:MAX_SHOWN]]


def view_json(view: SavedView) -> dict[str, Any]:
    query = QueryDict(view.query)
    path = (
        reverse("search", args=[view.project.slug])
        if view.page == SavedView.Page.SEARCH
        else reverse("run-trees", args=[view.run_id])
    )
    return {
        "id": view.id,
        "name": view.name,
        "page": view.page,
        "run": view.run_id,
        "run_name": view.run.name if view.run else "",
        "q": query.get("q", ""),
        "query": view.query,
        "owner": view.owner.get_username(),
        "owner_id": view.owner_id,
        "created_at": view.created_at,
        "alert": view.alert,
        # Up to alerts.MOST_NEW; None where nobody asked to be told.
        "new_matches": view.new_matches if view.alert else None,
        # Encoded again: whatever was stored, it is a query of this page and nothing else.
        "url": f"{path}?{query.urlencode()}",
    }
