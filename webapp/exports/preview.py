"""What an export would hold, before it is asked for: how many trees, and its first rows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import orjson
from django.db.models import Sum

from trainer.tree_rows import Row
from webapp.exports.kinds import NodesExport, PageExport, Parameters, TreesExport
from webapp.exports.rows import RowMaker
from webapp.exports.selection import Place, Selection, places, read_trees, trees_of
from webapp.exports.services import count_trees, first_found
from webapp.limits import PREVIEW_BYTES, PREVIEW_ROWS, PREVIEW_SECONDS, PREVIEW_TREES
from webapp.projects.models import Project

SHOWN_LETTERS = 280


@dataclass(frozen=True, slots=True)
class Preview:
    """`n_rows` None: known only when all trees were read; then the first `n_read` of them gave `rows_read`.
    `rows` are at most three, each (key, value as text, letters that are left out) in the file's order.
    """

    n_trees: int
    n_rows: int | None
    n_read: int
    rows_read: int
    rows: list[list[tuple[str, str, int]]]
    left_out: dict[str, int]
    is_cut: bool = False  # they have more rows than there was time to make
    at_least: bool = False  # a search was not done; there may be more trees, and more nodes


def preview(project: Project, selection: Selection, parameters: Parameters) -> Preview:
    """Reads at most 20 trees and 2 MB. Raises RequestError as `count_trees` does."""
    found = first_found(project, selection) if selection.search else None
    nodes = None if found is None else found.nodes
    at_least = found is not None and not found.is_complete
    within = None if nodes is None else nodes.trees
    n_trees = count_trees(project, selection, parameters, within)
    trees = trees_of(project, selection, within)
    n_rows: int | None = None
    if isinstance(parameters, TreesExport | PageExport):
        n_rows = n_trees
    elif found is not None and isinstance(parameters, NodesExport):
        n_rows = found.n_nodes
    elif isinstance(parameters, NodesExport):
        n_rows = trees.aggregate(sum=Sum("n_nodes"))["sum"] or 0
    if isinstance(parameters, PageExport):
        return Preview(n_trees, n_rows, 0, 0, [], {})
    maker = RowMaker(parameters, nodes)
    few = _few(places(trees, by_problem=maker.by_problem, most=PREVIEW_TREES))
    shown: list[Row] = []
    rows_read = 0
    is_cut = False
    until = time.thread_time() + PREVIEW_SECONDS
    for stored in read_trees(few):
        for row in maker.of(stored) if stored is not None else ():
            rows_read += 1
            if len(shown) < PREVIEW_ROWS:
                shown.append(row)
            is_cut = time.thread_time() > until  # one tree may have a hundred thousand long rows
            if is_cut:
                break
        if is_cut or (n_rows is not None and len(shown) == PREVIEW_ROWS):
            break
    for row in maker.rest():
        rows_read += 1
        if len(shown) < PREVIEW_ROWS:
            shown.append(row)
    if len(few) == n_trees and not is_cut:  # so these are all
        n_rows = rows_read if n_rows is None else n_rows
    return Preview(
        n_trees,
        n_rows,
        len(few),
        rows_read,
        [_shown(row) for row in shown],
        {reason: count for reason, count in maker.left_out.items() if count},
        is_cut,
        at_least,
    )


def _few(wanted: list[Place]) -> list[Place]:
    """As many of the first trees as fit, and one at least."""
    size = 0
    few: list[Place] = []
    for place in wanted:
        size += place.size
        if few and size > PREVIEW_BYTES:
            break
        few.append(place)
    return few


def _shown(row: Row) -> list[tuple[str, str, int]]:
    shown = []
    for key, value in row.items():
        if key == "nodes" and isinstance(value, list) and value and isinstance(value[0], dict):
            # Of a tree's nodes the first one tells how all of them look.
            text = f"{len(value):,} nodes, the first: {_text(value[0])}"
        else:
            text = _text(value)
        shown.append((key, text[:SHOWN_LETTERS], max(len(text) - SHOWN_LETTERS, 0)))
    return shown


def _text(value: Any) -> str:
    """Text as it is, everything else as the file's JSON. `Any`: a cell of a row."""
    if isinstance(value, str):
        return value
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode()
