"""The nodes that a search finds, all of them, as an export needs them: tree by tree."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b

from webapp.errors import RequestError
from webapp.filters import FilterError
from webapp.limits import MAX_EXPORT_NODES
from webapp.projects.models import Project
from webapp.search.finding import ask, find

NODES_AT_ONCE = 500


class FoundNodes:
    """Nodes of many trees, eight bytes each: a name may have thousands of letters, and a million may match.
    Kept are 64-bit hashes; that any two of a million meet has a chance of 3e-8.
    """

    def __init__(self) -> None:
        self.trees: set[int] = set()
        self._hashes = array("Q")
        self._is_sorted = True

    def add(self, tree: int, name: str) -> None:
        self.trees.add(tree)
        self._hashes.append(_hashed(tree, name))
        self._is_sorted = False

    def of(self, tree: int) -> NamesOfTree:
        return NamesOfTree(self, tree)

    def holds(self, tree: int, name: str) -> bool:
        if not self._is_sorted:
            self._hashes = array("Q", sorted(self._hashes))
            self._is_sorted = True
        wanted = _hashed(tree, name)
        at = bisect_left(self._hashes, wanted)
        return at < len(self._hashes) and self._hashes[at] == wanted


@dataclass(frozen=True, slots=True)
class NamesOfTree:
    """Which names of one tree's nodes were found: `"2.1" in names`."""

    found: FoundNodes
    tree: int

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.found.holds(self.tree, name)


def _hashed(tree: int, name: str) -> int:
    return int.from_bytes(blake2b(f"{tree} {name}".encode(), digest_size=8).digest(), "little")


@dataclass(slots=True)
class Found:
    """What a search finds. `is_complete` False: there may be more."""

    nodes: FoundNodes = field(default_factory=FoundNodes)
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
                found.nodes.add(node["tree_id"], node["path"])
            found.n_nodes += len(page.nodes)
            found.is_complete, before = page.is_complete, page.before
            looked += page.looked
            if not goes_on(looked, page.n_nodes):
                break
    except FilterError as error:
        told = [{"path": "search", "message": error.message}]
        raise RequestError(400, f"search: {error.message}", told) from error
    return found
