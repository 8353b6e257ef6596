"""Rollout trees as lists show them: rows by step, in an order chosen from a short list of orders."""

from __future__ import annotations

from typing import Any

import numpy as np
from django.db.models import Avg, BinaryField, Case, Count, F, Func, IntegerField, Max, Min, Q, When
from django.db.models.expressions import OrderBy
from django.db.models.lookups import LessThanOrEqual
from numpy.typing import NDArray

from trainer.tree import RolloutTree
from webapp.limits import MAX_PAGE_SIZE
from webapp.runs.models import Run
from webapp.trees.models import StoredTree

ICICLE_MAX_NODES = 500
ICICLE_MAX_BYTES = 500_000  # of a payload as it is stored
MAX_STEP_CELLS = 1000

_ROW = (
    "id", "step", "index", "problem_id", "prompt", "value", "n_nodes", "n_leaves", "n_correct", "depth",
    "tokens", "tokens_flat", "advantage_min", "advantage_max", "zero_variance_share", "mean_entropy",
    "n_unparsed", "n_truncated", "n_errors",
)  # fmt: skip

# What a list may be sorted by. Missing values come last either way.
SORTS: dict[str, OrderBy] = {
    "index": F("index").asc(),
    "value": F("value").asc(nulls_last=True),
    "-value": F("value").desc(nulls_last=True),
    "advantage": (F("advantage_max") - F("advantage_min")).desc(nulls_last=True),
    "zero_variance": F("zero_variance_share").desc(nulls_last=True),
}


def tree_row(tree: StoredTree) -> dict[str, Any]:
    """TREEROW: the summary of one tree."""
    return {name: getattr(tree, name) for name in _ROW}


def icicle(payload: bytes | memoryview) -> dict[str, Any] | None:
    """A tree in miniature, for lists; None when it is large, or its payload cannot be read (its own page
    says why).
    """
    try:
        full = RolloutTree.from_payload(bytes(payload))
    except ValueError:
        return None
    if full.n_nodes > ICICLE_MAX_NODES + 1:
        return None
    has_credit = bool(np.isfinite(full.advantage).any())
    drawn = {
        "parent": full.parent.tolist(),
        "advantage": _rounded(full.advantage),
        "state": full.credit_state.tolist(),
        "verdict": full.verdict.tolist(),
    }
    if (full.copies > 1).any():
        drawn["copies"] = full.copies.tolist()
    # A run that trains on pairs or verified answers has no advantages: its trees are told apart by values.
    return drawn if has_credit else {**drawn, "value": _rounded(full.value)}


def _rounded(numbers: NDArray[np.float64]) -> list[float | None]:
    return [round(float(number), 4) if np.isfinite(number) else None for number in numbers]


def trees_of_step(
    run: Run,
    step: int,
    *,
    sort: str = "index",
    after: int | None = None,
    limit: int = 100,
    icicles: bool = True,
) -> tuple[list[dict[str, Any]], int | None]:
    """One page of a step's trees, and the id to pass as `after` for the next. `sort` is a key of `SORTS`. Two
    queries; payloads are read of small trees alone, and only for icicles.
    """
    limit = max(1, min(limit, MAX_PAGE_SIZE))
    trees = StoredTree.objects.filter(run=run, step=step, superseded=False)
    # A step has a few thousand trees at most, and ids alone are cheap: the place of any row is found in any
    # order.
    ids = list(trees.order_by(SORTS[sort], "id").values_list("id", flat=True))
    start = ids.index(after) + 1 if after in ids else 0
    page = ids[start : start + limit]
    found = StoredTree.objects.defer("payload")
    if icicles:
        size = Func(F("payload"), function="octet_length", output_field=IntegerField())
        is_small = Q(n_nodes__lte=ICICLE_MAX_NODES) & LessThanOrEqual(size, ICICLE_MAX_BYTES)
        found = found.annotate(drawn=Case(When(is_small, then=F("payload")), output_field=BinaryField()))
    by_id = found.in_bulk(page)
    rows = [tree_row(by_id[tree_id]) for tree_id in page]
    if icicles:
        for row in rows:
            drawn = getattr(by_id[row["id"]], "drawn")  # noqa: B009 (annotated above, unknown to the type)
            row["icicle"] = icicle(drawn) if drawn is not None else None
    return rows, page[-1] if start + limit < len(ids) else None


def steps_with_trees(run: Run) -> list[dict[str, Any]]:
    """The steps that have trees: `step, n_trees, value_mean`. At most 1000 cells; where a cell stands for
    several steps it is named by the first. Two queries.
    """
    kept = StoredTree.objects.filter(run=run, superseded=False)
    ends = kept.aggregate(low=Min("step"), high=Max("step"))
    if ends["low"] is None:
        return []
    width = 1
    while ends["high"] // width - ends["low"] // width + 1 > MAX_STEP_CELLS:
        width *= 2
    cells = kept.annotate(cell=F("step") / width).values("cell").order_by("cell")
    return [
        {"step": cell["low"], "n_trees": cell["n"], "value_mean": cell["value_mean"]}
        for cell in cells.annotate(low=Min("step"), n=Count("id"), value_mean=Avg("value"))
    ]
