"""Trees that are open in this process: decoded once, with their shape and credit, and kept while they are
read.

Who walks through a tree asks for one node after the other; without this every step would decode the whole
tree. Access is checked before (`access.get_tree`): what is kept belongs to a row, not to a person.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import TypeVar

import numpy as np
from django.db import connection
from numpy.typing import NDArray
from psycopg import Cursor

from trainer.credit import Credit, CreditPlan, credit_of
from trainer.payload import PackedColumn, Read, open_payload
from trainer.tree import ROOT, RolloutTree
from webapp.errors import RequestError
from webapp.trees.models import StoredTree

MOST_TREES = 3
MOST_BYTES = 512 * 2**20  # of all of them together, decoded
MOST_SUBSTRING = 2**30  # PostgreSQL holds no larger value
LETTER_BYTES = 2  # of a text: one where all are ASCII, up to four
OVERHEAD_BYTES = 120  # of a node: two Python strings

T = TypeVar("T")


class OpenTree:
    """A decoded tree and what pages ask of it again and again. Nothing in it changes."""

    def __init__(self, tree: RolloutTree) -> None:
        self.tree = tree
        self.counts = tree.child_counts()
        self.first = tree.first_children()
        self.n_leaves = tree.leaf_counts()
        self.leaf = tree.is_leaf()
        self._kept: dict[Hashable, object] = {}

    def keep(self, key: Hashable, make: Callable[[], T]) -> T:
        """`make()`, worked out at the first call. Two threads may both work it out; the same comes out."""
        if key not in self._kept:
            self._kept[key] = make()
        found: T = self._kept[key]  # type: ignore[assignment]  # only `keep` puts it there
        return found

    def credit(self, plan: CreditPlan) -> Credit:
        """Raises ValueError when the estimator refuses the tree's rewards."""
        return self.keep(("credit", plan), lambda: credit_of(self.tree, plan))

    # ---- shape

    def siblings(self, node: int) -> range:
        """The children of the node's parent, itself included; none for the root."""
        return range(0) if node == ROOT else self.children(int(self.tree.parent[node]))

    def children(self, node: int) -> range:
        start = int(self.first[node])
        return range(start, start + int(self.counts[node]))

    def name(self, node: int) -> str:
        """As `RolloutTree.name`, without working the shape out again."""
        if node == ROOT:
            return "0"
        numbers = []
        while node != ROOT:
            parent = int(self.tree.parent[node])
            numbers.append(str(node - int(self.first[parent]) + 1))
            node = parent
        return ".".join(reversed(numbers))

    def leaves_below(self, node: int) -> NDArray[np.int64]:
        """Leaves at or below `node`. Breadth-first, so each level below is one range of nodes."""
        found = []
        start, stop = node, node + 1
        while start < stop:
            level = np.arange(start, stop)
            found.append(level[self.leaf[start:stop]])
            inner = level[self.counts[start:stop] > 0]
            if not len(inner):
                break
            start, stop = int(self.first[inner[0]]), int(self.first[inner[-1]] + self.counts[inner[-1]])
        return np.concatenate(found)


def open_tree(stored: StoredTree) -> OpenTree:
    """The whole tree. Raises RequestError(422) with what is damaged, and what it gives raises
    DamagedTreeError where a part of a large tree is, which API and pages answer alike.
    """
    key = (stored.pk, getattr(stored, "version", None))
    if key[1] is None:  # not from `access.get_tree`, so there is no telling whether it changed
        return _decoded(stored)
    with _lock:
        if key in _open:
            _open.move_to_end(key)
            return _open[key][0]
    opened = _decoded(stored)
    size = _bytes_of(opened.tree)
    with _lock:
        if size <= MOST_BYTES:
            _open[key] = (opened, size)
        while len(_open) > MOST_TREES or sum(kept for _, kept in _open.values()) > MOST_BYTES:
            _open.popitem(last=False)
    return opened


_open: OrderedDict[tuple[int, str | None], tuple[OpenTree, int]] = OrderedDict()
_lock = Lock()


def forget() -> None:
    """Close all trees."""
    with _lock:
        _open.clear()


def read_tree(stored: StoredTree) -> RolloutTree:
    """As `open_tree`, the tree alone."""
    return open_tree(stored).tree


def _decoded(stored: StoredTree) -> OpenTree:
    try:
        return OpenTree(open_payload(_reader_of(stored)))
    except ValueError as damage:
        raise RequestError(422, words_of(damage)) from damage


def words_of(damage: ValueError) -> str:
    """Also of a part that is read only when it is looked at (`trainer.payload.DamagedTreeError`)."""
    return f"{damage} Its summary in the list of trees is still right."


def _reader_of(stored: StoredTree) -> Read:
    """Parts of the payload, as they are asked for; a payload that is there already is not read again."""
    if "payload" in stored.__dict__:
        payload = bytes(stored.payload)
        return lambda start, stop: payload[start:stop]
    tree_id = stored.pk
    return lambda start, stop: _part_of(tree_id, start, stop)


def _part_of(tree_id: int, start: int, stop: int) -> bytes:
    """Read as bytes: as text, which Django asks for, it would be twice as long on the way. PostgreSQL stores
    the column as it is, and reads no more of it than the part.
    """
    connection.ensure_connection()
    with Cursor(connection.connection) as cursor:
        cursor.execute(
            "SELECT substring(payload FROM %s FOR %s) FROM arborist_tree WHERE id = %s",
            [start + 1, min(stop - start, MOST_SUBSTRING), tree_id],
            binary=True,
        )
        row = cursor.fetchone()
    if row is None:
        raise RequestError(404, "This tree was deleted just now.")
    part: bytes = row[0]
    return part


def _bytes_of(tree: RolloutTree) -> int:
    # Of columns that are still packed, what they would be.
    columns = sum(
        column.nbytes
        for name in tree.__slots__
        if isinstance(column := getattr(tree, name), np.ndarray | PackedColumn)
    )
    # The node columns once more for shape and credit.
    return 2 * columns + LETTER_BYTES * sum(map(len, tree.texts)) + OVERHEAD_BYTES * tree.n_nodes
