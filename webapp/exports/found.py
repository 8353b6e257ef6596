"""The nodes that a search finds, all of them, as an export needs them: tree by tree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from webapp.errors import RequestError
from webapp.filters import FilterError
from webapp.limits import MAX_EXPORT_NODES
from webapp.projects.models import Project
from webapp.search.finding import ask, find

NODES_AT_ONCE = 500


@dataclass(slots=True)
class Found:
    """`nodes`: tree -> names of its nodes that match. `is_complete` False: there may be more of either."""

    nodes: dict[int, set[str]] = field(default_factory=dict)
    n_nodes: int = 0
    is_complete: bool = False


def look(
    project: Project,
    search: str,
    *,
    goes_on: Callable[[int, int], bool] = lambda _looked, _of: True,
    most: int = MAX_EXPORT_NODES,
) -> Found:
    """Matches, newest first, page by page, until there are no more, `most` nodes were found, or `goes_on`
    says no: it is told after each page how many nodes were looked at, of how many.

    Raises RequestError(400) for a search that cannot be read.
    """
    found = Found()
    looked, before = 0, None
    try:
        asked = ask(project, search)
        while found.n_nodes < most and not found.is_complete:
            page = find(asked, before=before, limit=min(NODES_AT_ONCE, most - found.n_nodes))
            for node in page.nodes:
                found.nodes.setdefault(node["tree_id"], set()).add(node["path"])
            found.n_nodes += len(page.nodes)
            found.is_complete, before = page.is_complete, page.before
            looked += page.looked
            if not goes_on(looked, page.n_nodes):
                break
    except FilterError as error:
        told = [{"path": "search", "message": error.message}]
        raise RequestError(400, f"search: {error.message}", told) from error
    return found
