"""Rollout trees as lists show them: pages by keyset in any order, counts that stop, a run's steps in cells.

No list is read whole. Every order of `SORTS` has an index, so a page costs the same among a million trees as
among a hundred.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from django.db import OperationalError, connection, transaction
from django.db.models import BinaryField, Case, F, Func, IntegerField, Q, QuerySet, When
from django.db.models.fields.tuple_lookups import TupleGreaterThan, TupleLessThan
from django.db.models.lookups import LessThanOrEqual
from numpy.typing import NDArray
from psycopg.errors import QueryCanceled

from trainer.tree import CreditState, RolloutTree
from webapp.errors import RequestError
from webapp.filters import Filter
from webapp.limits import MAX_PAGE_SIZE
from webapp.runs.models import Run
from webapp.trees.filters import matching
from webapp.trees.models import StoredTree

ICICLE_MAX_NODES = 500
ICICLE_MAX_BYTES = 500_000  # of a payload as it is stored
MAX_STEP_CELLS = 600
CELL_TREES = 40_000  # that the cells of a step bar are made of, at most
MAX_COUNT = 10_000
COUNT_MILLISECONDS = 400
LIST_MILLISECONDS = 4000

_ROW = (
    "id", "step", "index", "problem_id", "prompt", "value", "n_nodes", "n_leaves", "n_answers", "n_given_up",
    "n_correct", "depth", "tokens", "tokens_flat", "advantage_min", "advantage_max", "advantage_spread",
    "zero_variance_share", "mean_entropy", "max_entropy", "mean_logprob", "cliff", "cliff_node",
    "duplicate_share", "grpo_flips", "n_unparsed", "n_truncated", "n_errors",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sort:
    """An order of a list: `name` in addresses (`-name`: the other way round), `columns` before the id.
    Missing values come last either way. `first`: the direction that is asked for first.
    """

    name: str
    columns: tuple[str, ...]
    title: str
    help: str
    first: Literal["", "-"] = "-"
    nullable: bool = True

    @property
    def signal(self) -> str:
        """The column it tells trees apart by."""
        return self.columns[-1]


SORTS: Mapping[str, Sort] = {
    sort.name: sort
    for sort in (
        Sort("index", ("step", "index"), "as sampled", "Step by step, in batch order", "", nullable=False),
        Sort("value", ("value",), "V", "Value of the root", ""),
        Sort("spread", ("advantage_spread",), "A-spread", "Largest less smallest advantage"),
        Sort("cliff", ("cliff",), "drop", "Drop of the value cliff: where answers start to fail", ""),
        Sort(
            "zero_var", ("zero_variance_share",), "0-var",
            "Share of sibling groups whose values are all equal: they teach nothing",
        ),
        Sort("tokens", ("tokens",), "tokens", "Unique tokens sampled", nullable=False),
        Sort("nodes", ("n_nodes",), "nodes", "Nodes, the prompt included", nullable=False),
        Sort("depth", ("depth",), "depth", "Levels below the prompt", nullable=False),
        Sort("entropy", ("mean_entropy",), "entropy", "Mean entropy of the sampled tokens, nats"),
        Sort("duplicates", ("duplicate_share",), "duplicates", "Share of segments that repeat a sibling"),
        Sort("errors", ("n_errors",), "errors", "Answers at which the verifier failed", nullable=False),
        Sort("flips", ("grpo_flips",), "GRPO flips", "Segments that plain GRPO would push the other way"),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scope:
    """Which steps a list is of, both ends included; None is open. One step: both the same."""

    first: int | None = None
    last: int | None = None

    @classmethod
    def of_step(cls, step: int) -> Scope:
        return cls(step, step)


def tree_row(tree: StoredTree) -> dict[str, Any]:
    """TREEROW: the summary of one tree. Answers are counted with copies; what was given up is apart."""
    row = {name: getattr(tree, name) for name in _ROW}
    if row["n_answers"] is None:
        row["n_answers"] = row["n_leaves"]
    return row


# States of trees that train on advantages, whether or not any node of them got one.
COULD_HAVE_HAD = (CreditState.DROPPED_BY_FILTER, CreditState.ONLY_CHILD, CreditState.PER_PATH)


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
    has_advantages = np.isfinite(full.advantage).any() or np.isin(full.credit_state, COULD_HAVE_HAD).any()
    drawn = {
        "parent": full.parent.tolist(),
        "advantage": _rounded(full.advantage),
        "state": full.credit_state.tolist(),
        "verdict": full.verdict.tolist(),
    }
    if (full.copies > 1).any():
        drawn["copies"] = full.copies.tolist()
    # A run that trains on pairs or verified answers has no advantages: its trees are told apart by values.
    return drawn if has_advantages else {**drawn, "value": _rounded(full.value)}


def _rounded(numbers: NDArray[np.float64]) -> list[float | None]:
    return [round(float(number), 4) if np.isfinite(number) else None for number in numbers]


def icicles_of(trees: QuerySet[StoredTree]) -> dict[int, dict[str, Any] | None]:
    """The miniature of each tree, None where it is too large. One query; payloads of small trees alone."""
    size = Func(F("payload"), function="octet_length", output_field=IntegerField())
    is_small = Q(n_nodes__lte=ICICLE_MAX_NODES) & LessThanOrEqual(size, ICICLE_MAX_BYTES)
    drawn = Case(When(is_small, then=F("payload")), output_field=BinaryField())
    return {
        tree_id: None if payload is None else icicle(payload)
        for tree_id, payload in trees.annotate(drawn=drawn).values_list("id", "drawn")
    }


# ------------------------------------------------------------------------------------------------ pages


def trees_in(run: Run, scope: Scope, wanted: Filter | None = None) -> QuerySet[StoredTree]:
    """The trees of a run that count (superseded ones do not), in these steps, that pass the filter. Without
    payloads.
    """
    found = StoredTree.objects.filter(run=run, superseded=False).defer("payload")
    if scope.first is not None and scope.first == scope.last:
        found = found.filter(step=scope.first)
    else:
        if scope.first is not None:
            found = found.filter(step__gte=scope.first)
        if scope.last is not None:
            found = found.filter(step__lte=scope.last)
    return matching(found, wanted, run) if wanted else found


def trees_page(
    run: Run,
    scope: Scope,
    wanted: Filter | None = None,
    *,
    sort: str = "index",
    after: int | None = None,
    limit: int = 100,
    trees: QuerySet[StoredTree] | None = None,
) -> tuple[list[dict[str, Any]], int | None]:
    """One page of rows, and the id to pass as `after` for the next. `sort`: a key of `SORTS`, `-` before it
    for the other way round. `trees`: what `trees_in` gave, if the caller has it. Two to four queries, each
    along an index. Raises RequestError: 400 when there is no tree `after`, 503 when the filter takes too
    long.
    """
    limit = max(1, min(limit, MAX_PAGE_SIZE))
    trees = trees_in(run, scope, wanted) if trees is None else trees
    order = SORTS[sort.removeprefix("-")]
    is_down = sort.startswith("-")
    columns = (*order.columns, "id")
    last = None
    if after is not None:
        # Of all trees of the run: one that was superseded meanwhile still says where the reader was.
        last = StoredTree.objects.filter(id=after, run=run).values_list(*columns).first()
        if last is None:
            raise RequestError(
                400, f"There is no tree {after} in this run to go on after. Start at the first."
            )
    ids: list[int] = []
    # Missing values come after all others, whatever the direction: a part of its own, so that one index
    # serves both directions.
    for missing in (False, True) if order.nullable else (False,):
        if len(ids) > limit:
            break
        part = trees.filter(**{f"{order.signal}__isnull": missing}) if order.nullable else trees
        if last is not None:
            was_missing = order.nullable and last[-2] is None
            if was_missing and not missing:
                continue
            if was_missing:  # compared by id alone: nothing equals NULL
                part = part.filter(**{f"id__{'lt' if is_down else 'gt'}": last[-1]})
            elif not missing:
                beyond = TupleLessThan if is_down else TupleGreaterThan
                part = part.filter(beyond(tuple(F(name) for name in columns), last))
        part = part.order_by(*(f"-{name}" if is_down else name for name in columns))
        ids += _in_time(part.values_list("id", flat=True)[: limit + 1 - len(ids)])
    by_id = StoredTree.objects.defer("payload").in_bulk(ids[:limit])
    return [tree_row(by_id[tree_id]) for tree_id in ids[:limit]], ids[limit - 1] if len(ids) > limit else None


def _in_time(ids: QuerySet[StoredTree, int]) -> list[int]:
    """Raises RequestError(503) when the database needs longer than a reader waits."""
    try:
        with transaction.atomic():
            _limit_milliseconds(LIST_MILLISECONDS)
            return list(ids)
    except OperationalError as error:
        if not isinstance(error.__cause__, QueryCanceled):
            raise
        raise RequestError(
            503,
            "Looking through these trees takes too long. Ask for fewer steps, or for a problem by its id "
            "(problem:…), or sort by what the filter names.",
        ) from error


def count_up_to(trees: QuerySet[StoredTree], most: int = MAX_COUNT) -> int | None:
    """How many there are, `most + 1` for more than `most`; None when counting takes too long."""
    try:
        with transaction.atomic():
            _limit_milliseconds(COUNT_MILLISECONDS)
            return trees.order_by()[: most + 1].count()
    except OperationalError as error:
        if not isinstance(error.__cause__, QueryCanceled):
            raise
        return None


def _limit_milliseconds(milliseconds: int) -> None:
    """For the rest of the transaction."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('statement_timeout', %s, true)", [str(milliseconds)])


# ------------------------------------------------------------------------------------------------ steps


def newest_step(run: Run) -> int | None:
    """The last step that has trees; while the run works on one, the last it finished, if there is any. A
    probe of an index or two.
    """
    found = _kept(run).order_by("-step").values_list("step", flat=True)
    if run.is_active and (finished := found.filter(step__lte=run.step).first()) is not None:
        return finished
    return found.first()


def steps_beside(run: Run, step: int) -> tuple[int | None, int | None]:
    """The nearest steps with trees before and after `step`. Two probes of an index."""
    kept = _kept(run)
    before = kept.filter(step__lt=step).order_by("-step").values_list("step", flat=True).first()
    return before, kept.filter(step__gt=step).order_by("step").values_list("step", flat=True).first()


def _kept(run: Run) -> QuerySet[StoredTree]:
    return StoredTree.objects.filter(run=run, superseded=False)


def steps_with_trees(run: Run, sort: str = "value") -> list[dict[str, Any]]:
    """The steps that have trees: `step, n_trees, mean` of the signal that `sort` goes by (None without any).

    At most 600 cells. In a longer run each stands for several steps and shows the first of them that has
    trees. A step of very many trees is told by its first ones; `n_trees` counts those that were looked at.
    Two queries, whose cost does not grow with the run.
    """
    order = SORTS[sort.removeprefix("-")]
    column = "value" if order.name == "index" else order.signal
    kept = _kept(run)
    low = kept.order_by("step").values_list("step", flat=True).first()
    high = kept.order_by("-step").values_list("step", flat=True).first()
    if low is None or high is None:
        return []
    width = 1
    while high // width - low // width + 1 > MAX_STEP_CELLS:
        width *= 2
    cells = high // width - low // width + 1
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT s.step, t.n, t.mean
            FROM generate_series(%(from)s::bigint, %(high)s::bigint, %(width)s::bigint) AS c (first)
            CROSS JOIN LATERAL (
                SELECT step FROM arborist_tree
                WHERE run_id = %(run)s AND NOT superseded AND step >= c.first AND step < c.first + %(width)s
                ORDER BY step LIMIT 1
            ) s
            CROSS JOIN LATERAL (
                SELECT count(*) AS n, avg("{column}")::float8 AS mean FROM (
                    SELECT "{column}" FROM arborist_tree
                    WHERE run_id = %(run)s AND NOT superseded AND step = s.step LIMIT %(trees)s
                ) AS looked_at
            ) t
            ORDER BY s.step
            """,  # noqa: S608 (a column of SORTS)
            {
                "from": low // width * width,
                "high": high,
                "width": width,
                "run": run.id,
                "trees": max(64, CELL_TREES // cells),
            },
        )
        return [{"step": step, "n_trees": n, "mean": mean} for step, n, mean in cursor.fetchall()]
