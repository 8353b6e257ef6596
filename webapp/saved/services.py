"""Saving and removing views."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode

from django.db import IntegrityError, transaction

from trainer.text import storable
from webapp.accounts.models import User
from webapp.errors import RequestError
from webapp.projects.access import Role, may
from webapp.projects.models import Project
from webapp.runs.models import Run
from webapp.saved.models import SavedView

MAX_VIEWS = 200  # of one person in one project
MAX_QUERY = 4000
PASSING = ("before", "after", "counts")  # a place in a list is no part of a view


def save_view(
    project: Project, owner: User, name: str, page: str, query: str, run: Run | None = None
) -> SavedView:
    """Under a name that the owner has not used yet. Raises RequestError."""
    name = " ".join(storable(name).split())
    if not 1 <= len(name) <= 120:
        raise RequestError(
            400,
            "A saved view needs a name of 1 to 120 letters.",
            [{"path": "name", "message": "1 to 120 letters"}],
        )
    if page not in SavedView.Page.values:
        raise RequestError(400, f"A view of {page[:40]!r} cannot be saved. Use search or trees.")
    if (page == SavedView.Page.TREES) != (run is not None):
        raise RequestError(400, "A view of trees belongs to a run, a search to the project.")
    if run is not None and run.project_id != project.id:
        raise RequestError(400, "That run belongs to another project.")
    pairs = [(key, value) for key, value in parse_qsl(storable(query).lstrip("?")) if key not in PASSING]
    kept = urlencode(pairs)
    if len(kept) > MAX_QUERY:
        raise RequestError(
            400, f"This view's address is longer than {MAX_QUERY:,} letters. Shorten its filter."
        )
    if not kept:
        raise RequestError(400, "There is nothing to save yet. Search for something, then save the view.")
    mine = SavedView.objects.filter(project=project, owner=owner)
    if mine.count() >= MAX_VIEWS:
        raise RequestError(409, f"You have saved {MAX_VIEWS} views in this project. Remove one first.")
    try:
        with transaction.atomic():
            return SavedView.objects.create(
                project=project, owner=owner, name=name, page=page, run=run, query=kept
            )
    except IntegrityError as taken:
        raise RequestError(
            409,
            f"You already have a view called {name}. Choose another name.",
            [{"path": "name", "message": "taken"}],
        ) from taken


def remove_view(view: SavedView, user: User, role: str | None) -> None:
    """Owners remove their own, admins any. Raises RequestError."""
    if view.owner_id != user.id and not may(role, Role.ADMIN):
        raise RequestError(
            403, f"This view belongs to {view.owner.get_username()}. They can remove it, or an admin."
        )
    view.delete()
