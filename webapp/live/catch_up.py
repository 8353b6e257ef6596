"""Rows after a cursor, as the messages that pages read: what is after seq 812? Synchronous, and no memory."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import connection
from django.db.models import Q

from webapp.runs.models import ACTIVE, LEASED, Run
from webapp.runs.querysets import run_states
from webapp.trees.models import StoredTree
from webapp.trees.querysets import tree_row

MAX_PROMPT_LETTERS = 2000  # of a tree's row in a frame; the tree's own page shows all
MAX_WATCHED_RUNS = 200
_TREE_FIELDS = [f for f in StoredTree._meta.concrete_fields if f.name != "payload"]
_VOLATILE = ("heartbeat_age_s", "progress_age_s", "eta_s", "wish_age_s", "wish_ends_s")


@dataclass(frozen=True, slots=True)
class State:
    """RUNSTATE: `text` is its JSON, `core` the same without what only a clock moves."""

    run: int
    text: str
    core: str
    is_leased: bool  # a worker has it, so its heartbeat is worth telling
    is_active: bool


@dataclass(frozen=True, slots=True)
class News:
    """What is new in a run. `events` are (seq, JSON) after the cursor without a gap.

    `is_behind`: more events wait than were asked for, so none are here and the page had better reload.
    """

    last_seq: int
    state: State
    events: Sequence[tuple[int, str]]
    is_behind: bool


def since(run_id: int, seq: int | None, limit: int) -> News | None:
    """The run's events after `seq`, at most `limit`, and its state. None: there is no such run. Four queries.

    `seq` None: the state alone.
    """
    run = Run.objects.defer("config").filter(id=run_id).first()
    if run is None:
        return None
    (state,) = _states([run])
    is_behind = seq is not None and run.last_seq - seq > limit
    wanted = seq is not None and not is_behind and run.last_seq > seq
    events = events_between(run.id, seq or 0, run.last_seq) if wanted else []
    return News(run.last_seq, state, events, is_behind)


def project_states(project_id: int, run_ids: Collection[int], *, with_active: bool) -> list[State]:
    """The states of some runs of a project, and of those that are active. At most four queries."""
    wanted = Q(id__in=run_ids)
    if with_active:
        wanted |= Q(status__in=ACTIVE)
    runs = Run.objects.defer("config").filter(wanted, project_id=project_id).order_by("-id")
    return _states(list(runs[:MAX_WATCHED_RUNS]))


def newest_runs(project_id: int, count: int) -> list[int]:
    """Ids of the runs that the top of a project's table shows."""
    return list(
        Run.objects.filter(project_id=project_id).order_by("-id").values_list("id", flat=True)[:count]
    )


def _states(runs: Sequence[Run]) -> list[State]:
    found = []
    for run, state in zip(runs, run_states(runs), strict=True):
        core = {key: value for key, value in state.items() if key not in _VOLATILE}
        found.append(State(run.id, encode(state), encode(core), run.status in LEASED, run.is_active))
    return found


def events_between(run_id: int, after: int, through: int) -> list[tuple[int, str]]:
    """(seq, EVENT as JSON) for after < seq <= through. One query: an event with its points as two arrays, or
    with its tree's row. No check of rights: callers start from `projects.access`.
    """
    tree_columns = ", ".join(f't."{field.column}"' for field in _TREE_FIELDS)
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT e.seq, e.kind, e.step, extract(epoch FROM e.at)::float8, e.epoch, e.body::text,
                   p.names, p.vals, {tree_columns}
            FROM arborist_event e
            LEFT JOIN LATERAL (
                SELECT array_agg(s.name ORDER BY p.id) AS names, array_agg(p.value ORDER BY p.id) AS vals
                FROM arborist_point p JOIN arborist_series s ON s.id = p.series_id
                WHERE p.run_id = e.run_id AND p.seq = e.seq
            ) p ON e.kind = 'metrics'
            LEFT JOIN arborist_tree t ON e.kind = 'tree' AND t.run_id = e.run_id AND t.seq = e.seq
            WHERE e.run_id = %s AND e.seq > %s AND e.seq <= %s
            ORDER BY e.seq
            """,  # noqa: S608 (the columns are the model's)
            [run_id, after, through],
        )
        return [(row[0], _event(row)) for row in cursor.fetchall()]


def _event(row: Sequence[Any]) -> str:
    """`Any`: a row holds what its columns hold."""
    seq, kind, step, at, epoch, body, names, values, *tree = row
    event: dict[str, Any] = {
        **json.loads(body),
        "seq": seq,
        "kind": kind,
        "step": step,
        "at": at,
        "epoch": epoch,
    }
    if kind == "metrics":
        event["values"] = {
            name: wire_number(value) for name, value in zip(names or (), values or (), strict=True)
        }
    elif kind == "tree" and tree[0] is not None:
        stored = StoredTree.from_db(None, [field.attname for field in _TREE_FIELDS], tree)
        event["tree"] = tree_row(stored)
        if len(stored.prompt) > MAX_PROMPT_LETTERS:
            event["tree"]["prompt"] = stored.prompt[:MAX_PROMPT_LETTERS] + "…"
    return encode(event)


def wire_number(value: float) -> float | dict[str, str | None]:
    """JSON knows no NaN and no infinity: they travel as `{"v": null, "k": "nan"}`, "inf" or "-inf"."""
    if math.isfinite(value):
        return value
    return {"v": None, "k": "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"}


def encode(value: Any) -> str:
    """Strict JSON in one line."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
