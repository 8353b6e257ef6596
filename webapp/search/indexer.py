"""Fills the index of node texts, behind the recorder: reads the trees of a run's new events, copies their
nodes.

Recording never waits for it, and training hardly: a run is indexed when it has ended, or while somebody
searches its project. A run's cursor moves in the transaction that brings the rows, so a crash repeats nothing
and leaves nothing out; several indexers may run, one works at a time. It lives in the sweeper's process, as a
thread of low priority.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from django.db import DatabaseError, DataError, InterfaceError, connection, transaction
from django.db.models import F, Func, IntegerField
from django.db.models.functions import Now

from trainer.tree import ROOT, RolloutTree
from webapp.limits import (
    SEARCH_BATCH_BYTES,
    SEARCH_BATCH_NODES,
    SEARCH_DEMAND_SECONDS,
    SEARCH_INDEX_SECONDS,
    SEARCH_TEXT_LETTERS,
)
from webapp.runs.models import ENDED, Event, Run
from webapp.search.marks import any_of
from webapp.search.models import IndexCursor, IndexedNode, IndexedPart
from webapp.trees.models import StoredTree

LOCK = 0x4152_424F_5249  # any number that nobody else uses: "ARBORI"
NICENESS = 10
TREES_FORGOTTEN = 64  # at once

_COLUMNS = (
    "project_id", "run_id", "tree_id", "step", "value", "advantage", "tokens", "depth", "verdict",
    "credit_state", "path", "problem", "text",
)  # fmt: skip
_TYPES = (
    "int8",
    "int8",
    "int8",
    "int8",
    "float8",
    "float8",
    "int4",
    "int2",
    "int2",
    "int2",
    "text",
    "text",
    "text",
)

logger = logging.getLogger(__name__)


def index_once(*, only_wanted: bool = False) -> int | None:
    """One transaction: some trees of the run that waited longest. Returns how many nodes, or None when
    nothing waits or another process is at it. Raises the database's errors.
    """
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [LOCK])
            if not cursor.fetchone()[0]:
                return None
        run = _behind(only_wanted=only_wanted)
        if run is None:
            return None
        return _index(*run)


def _behind(*, only_wanted: bool) -> tuple[int, int, int, int] | None:
    """Run, project, seq indexed, seq recorded."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT r.id, r.project_id, coalesce(c.seq, 0), r.last_seq
            FROM arborist_run r LEFT JOIN arborist_search_cursor c ON c.run_id = r.id
            WHERE r.last_seq > coalesce(c.seq, 0)
            AND (%s OR r.status = ANY(%s) OR EXISTS (
                SELECT 1 FROM arborist_search_demand d
                WHERE d.project_id = r.project_id AND d.asked_at > now() - make_interval(secs => %s)
            ))
            ORDER BY c.updated_at NULLS FIRST, r.id LIMIT 1
            """,
            [not only_wanted, [status.value for status in ENDED], SEARCH_DEMAND_SECONDS],
        )
        found: tuple[int, int, int, int] | None = cursor.fetchone()
    return found


def _index(run_id: int, project_id: int, done: int, recorded: int) -> int:
    size = Func(F("payload"), function="octet_length", output_field=IntegerField())
    waiting = StoredTree.objects.filter(run_id=run_id, seq__gt=done, seq__lte=recorded, superseded=False)
    chosen: list[int] = []
    through, nodes, weight = recorded, 0, 0
    for tree_id, seq, n_nodes, n_bytes in (
        waiting.order_by("seq").values_list("id", "seq", "n_nodes", size).iterator(chunk_size=1000)
    ):
        if chosen and (nodes + n_nodes > SEARCH_BATCH_NODES or weight + n_bytes > SEARCH_BATCH_BYTES):
            through = seq - 1
            break
        chosen.append(tree_id)
        nodes, weight = nodes + n_nodes, weight + n_bytes
    # An attempt that started over hid trees that may be in the index.
    if done and Event.objects.filter(run_id=run_id, seq__gt=done, seq__lte=through, kind="started").exists():
        _forget_superseded(run_id, done)
    try:
        with transaction.atomic():
            written, step = _copy(project_id, run_id, chosen)
    except DataError as refused:  # of one text or number; the others of the batch must not wait for ever
        logger.warning("Trees %s to %s are left out of the search: %s", chosen[0], chosen[-1], refused)
        written, step = 0, None
    cursor, made = IndexCursor.objects.get_or_create(
        run_id=run_id, defaults={"seq": through, "step": step, "nodes": written}
    )
    if not made:
        IndexCursor.objects.filter(run_id=run_id).update(
            seq=through,
            step=cursor.step if step is None else step,
            nodes=F("nodes") + written,
            updated_at=Now(),
        )
    return written


def _copy(project_id: int, run_id: int, tree_ids: Sequence[int]) -> tuple[int, int | None]:
    """Nodes written, and the newest tree's step."""
    written, step = 0, None
    if not tree_ids:
        return written, step
    trees = StoredTree.objects.filter(id__in=tree_ids).order_by("seq")
    # Read first: while rows are copied in, the connection answers nothing else.
    found = list(trees.only("id", "step", "problem_id", "payload"))
    statement = f"COPY {IndexedNode._meta.db_table} ({', '.join(_COLUMNS)}) FROM STDIN (FORMAT BINARY)"
    # Django makes its own errors of all statements but this.
    with (
        connection.wrap_database_errors,
        connection.cursor() as cursor,
        cursor.cursor.copy(statement) as copy,
    ):
        copy.set_types(_TYPES)
        for stored in found:
            step = stored.step
            try:
                tree = RolloutTree.from_payload(bytes(stored.payload))
            except ValueError as damage:
                logger.warning("Tree %s is left out of the search: %s", stored.id, damage)
                continue
            for row in _rows(tree, (project_id, run_id, stored.id, stored.step), stored.problem_id):
                copy.write_row(row)
                written += 1
    if written:
        _note_part(run_id, written, found[0].step, found[-1].step)
    return written, step


def _note_part(run_id: int, n: int, first_step: int, last_step: int) -> None:
    """Where the rows just written are: nobody else writes, so their ids follow one another."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT currval(pg_get_serial_sequence('arborist_search_node', 'id'))")
        (last,) = cursor.fetchone()
    IndexedPart.objects.create(
        run_id=run_id, first_id=last - n + 1, last_id=last,
        first_step=min(first_step, last_step), last_step=max(first_step, last_step),
    )  # fmt: skip


def _rows(tree: RolloutTree, ids: tuple[int, ...], problem: str) -> Iterator[tuple[Any, ...]]:
    """Every node but the root, which is the prompt. `Any`: one COPY row."""
    first = tree.first_children().tolist()
    parents = tree.parent.tolist()
    names, depths = [""], [0]
    for node, (parent, value, advantage, tokens, verdict, state, text) in enumerate(
        zip(
            parents, tree.value.tolist(), tree.advantage.tolist(), tree.token_counts().tolist(),
            tree.verdict.tolist(), tree.credit_state.tolist(), tree.texts, strict=True,
        )
    ):  # fmt: skip
        if node == ROOT:
            continue
        number = node - first[parent] + 1
        names.append(f"{names[parent]}.{number}" if parent else str(number))
        depths.append(depths[parent] + 1)
        yield (
            *ids,
            value if math.isfinite(value) else None,
            advantage if math.isfinite(advantage) else None,
            tokens,
            min(depths[node], 32_767),
            verdict,
            state,
            names[node],
            problem,
            text[:SEARCH_TEXT_LETTERS],
        )


def _forget_superseded(run_id: int, through: int) -> None:
    gone = StoredTree.objects.filter(run_id=run_id, superseded=True, seq__lte=through)
    tree_ids = list(gone.values_list("id", flat=True))
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        removed = 0
        for start in range(0, len(tree_ids), TREES_FORGOTTEN):
            some = tree_ids[start : start + TREES_FORGOTTEN]
            cursor.execute(
                f"DELETE FROM arborist_search_node WHERE {INDEXED} @@ %s::tsquery AND tree_id = ANY(%s)",  # noqa: S608
                [any_of(f"#t{tree_id}" for tree_id in some), some],
            )
            removed += cursor.rowcount
        cursor.execute("SET LOCAL enable_seqscan = on")
    IndexCursor.objects.filter(run_id=run_id).update(nodes=F("nodes") - removed)


# What the index is over, letter by letter as in migration 0001.
INDEXED = (
    "(arborist_search_words(text) || arborist_search_marks(id, run_id, tree_id, value, advantage, tokens, "
    "depth, verdict, credit_state, problem))"
)


def tidy() -> None:
    """What came last lies in a list that every search reads through; sort it in."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT gin_clean_pending_list('search_words_and_marks')")


def index_all(told_to_stop: Callable[[], bool] = lambda: False, *, only_wanted: bool = False) -> int:
    """Until nothing waits. Returns how many nodes. `only_wanted`: leave runs alone that train unwatched."""
    total = 0
    while not told_to_stop():
        written = index_once(only_wanted=only_wanted)
        if written is None:
            break
        total += written
    if total:
        tidy()
    return total


def forget_all() -> None:
    """An empty index; the next rounds fill it again."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
        cursor.execute("TRUNCATE arborist_search_node")
        IndexedPart.objects.all().delete()
        IndexCursor.objects.all().delete()


class Indexer(threading.Thread):
    """Indexes until `leave` is set. Whatever the database does, the thread goes on."""

    def __init__(self, leave: threading.Event, then: Callable[[], None] = lambda: None) -> None:
        """`then` is called after each look at what waits to be indexed."""
        super().__init__(name="indexer", daemon=True)
        self.leave, self.then = leave, then

    def run(self) -> None:
        # Of this thread alone: training comes first.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        is_away = False
        while not self.leave.wait(SEARCH_INDEX_SECONDS):
            try:
                index_all(self.leave.is_set, only_wanted=True)
                self.then()
                is_away = False
            except (DatabaseError, InterfaceError) as error:
                if not is_away:
                    logger.warning("The search index waits for the database: %s", error)
                is_away = True
                connection.close()
        connection.close()


def note_demand(project_id: int) -> None:
    """Somebody searches. Written down once a minute at most."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO arborist_search_demand AS d (project_id, asked_at) VALUES (%s, now()) "
            "ON CONFLICT (project_id) DO UPDATE SET asked_at = now() "
            "WHERE d.asked_at < now() - interval '1 minute'",
            [project_id],
        )


def is_caught_up() -> bool:
    """Whether every recorded event has been looked at."""
    behind = Run.objects.filter(last_seq__gt=0).exclude(search_cursor__seq__gte=F("last_seq"))
    return not behind.exists()
