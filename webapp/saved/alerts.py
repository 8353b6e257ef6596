"""What is new of a saved search since its owner saw it last.

Looked for behind the indexer, at most `MOST_NEW` matches and some seconds a view, so it is as new as the
index: of a run that trains, while somebody searches its project; else when it has ended.
"""

from __future__ import annotations

import time

from django.db.models import Max
from django.http import QueryDict

from webapp.accounts.models import User
from webapp.errors import RequestError
from webapp.filters import FilterError
from webapp.projects.models import Project
from webapp.saved.models import SavedView
from webapp.search.finding import ask, find
from webapp.search.models import IndexedPart

MOST_NEW = 1000  # beyond it "1,000+" says enough
LOOK_SECONDS = 3.0
AT_ONCE = 500
MOST_ALERTS = 20  # of a person: each is a search again and again


def newest_node(project: Project) -> int:
    """The number of the node that was indexed last; 0: none."""
    return IndexedPart.objects.filter(run__project=project).aggregate(last=Max("last_id"))["last"] or 0


def look_for_news() -> None:
    """Count again for every alert whose project has newer nodes than were looked at."""
    for view in SavedView.objects.filter(alert=True).select_related("project"):
        newest = newest_node(view.project)
        if newest > view.looked_id:
            # Not if its owner has marked it as seen meanwhile: then it is counted anew from there.
            SavedView.objects.filter(id=view.id, seen_id=view.seen_id).update(
                new_matches=_matches_after(view), looked_id=newest
            )


def mark_seen(view: SavedView, user: User) -> None:
    """What is there now is no news any more. Raises RequestError(403) for anybody but the owner."""
    _require_owner(view, user)
    newest = newest_node(view.project)
    SavedView.objects.filter(id=view.id).update(new_matches=0, seen_id=newest, looked_id=newest)


def set_alert(view: SavedView, user: User, *, alert: bool) -> None:
    """Tell of new matches from now on, or no more. Raises RequestError: 403, 400 for a view of trees, and 409
    beyond `MOST_ALERTS`.
    """
    _require_owner(view, user)
    if view.page != SavedView.Page.SEARCH:
        raise RequestError(400, "Only of a search is told what is new. Save a search, not a list of trees.")
    if alert and SavedView.objects.filter(owner=user, alert=True).exclude(id=view.id).count() >= MOST_ALERTS:
        raise RequestError(
            409, f"You have {MOST_ALERTS} alerts already. Stop one of them, or save this without."
        )
    newest = newest_node(view.project)
    SavedView.objects.filter(id=view.id).update(alert=alert, new_matches=0, seen_id=newest, looked_id=newest)


def _require_owner(view: SavedView, user: User) -> None:
    if view.owner_id != user.id:
        raise RequestError(
            403, f"This view's alert is {view.owner.get_username()}'s. Save the search for yourself."
        )


def _matches_after(view: SavedView) -> int:
    """Of nodes that were indexed since it was seen; up to `MOST_NEW`."""
    n, before = 0, None
    until = time.monotonic() + LOOK_SECONDS
    try:
        asked = ask(view.project, QueryDict(view.query).get("q", ""))
        while n < MOST_NEW and time.monotonic() < until:
            page = find(asked, before=before, after=view.seen_id, limit=AT_ONCE)
            n += len(page.nodes)
            before = page.before
            if page.is_complete:
                break
    except (FilterError, RequestError):
        return view.new_matches  # its run was deleted, say; the view's page tells
    return min(n, MOST_NEW)
