"""A run's events as clients get them: rows after a cursor, each with what it brought."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from webapp.runs.models import Event, Point, Run
from webapp.trees.models import StoredTree
from webapp.trees.querysets import tree_row

# What the events page lists; metrics and trees have their own pages.
TOLD = ("status", "started", "checkpoint", "log", "finished")


def events_after(run_id: int, after: int, limit: int) -> list[dict[str, Any]]:
    """EVENTs with `after < seq`, in order, at most `limit`: `seq, kind, step, at (Unix seconds), epoch`, the
    body, `values` of metrics and `tree` of trees. Three queries. No check of rights: callers start from
    `projects.access`.
    """
    rows = list(Event.objects.filter(run_id=run_id, seq__gt=after).order_by("seq")[:limit])
    if not rows:
        return []
    values: dict[int, dict[str, Any]] = {}
    if any(row.kind == "metrics" for row in rows):
        points = Point.objects.filter(run_id=run_id, seq__gte=rows[0].seq, seq__lte=rows[-1].seq)
        for seq, name, value in points.values_list("seq", "series__name", "value"):
            values.setdefault(seq, {})[name] = marked(value)
    trees: dict[int, dict[str, Any]] = {}
    if any(row.kind == "tree" for row in rows):
        found = StoredTree.objects.filter(run_id=run_id, seq__gte=rows[0].seq, seq__lte=rows[-1].seq).defer(
            "payload"
        )
        trees = {tree.seq: tree_row(tree) for tree in found}
    events = []
    for row in rows:
        body = row.body if isinstance(row.body, dict) else {}
        event = {
            **body,
            "seq": row.seq,
            "kind": row.kind,
            "step": row.step,
            "at": row.at.timestamp(),
            "epoch": row.epoch,
        }
        if row.kind == "metrics":
            event["values"] = values.get(row.seq, {})
        elif row.kind == "tree":
            event["tree"] = trees.get(row.seq)
        events.append(event)
    return events


def marked(value: float) -> float | dict[str, Any]:
    """A metric's value in strict JSON: NaN and infinity as `{"v": null, "k": "nan"}`, with kinds nan, inf and
    -inf.
    """
    if math.isfinite(value):
        return value
    return {"v": None, "k": "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"}


def told_events(run: Run, after: int, limit: int) -> tuple[Sequence[dict[str, Any]], int | None]:
    """What the events page shows: `seq, at, step, kind, level, message, actor`, and the cursor of the next
    page. One query.
    """
    rows = list(Event.objects.filter(run=run, kind__in=TOLD, seq__gt=after).order_by("seq")[: limit + 1])
    more, rows = len(rows) > limit, rows[:limit]
    return [_told(row) for row in rows], rows[-1].seq if more else None


def _told(row: Event) -> dict[str, Any]:
    body = row.body if isinstance(row.body, dict) else {}
    level, message = "", ""
    match row.kind:
        case "status":
            message = f"{str(body.get('status', '')).capitalize()}. {body.get('reason', '')}".strip()
        case "started":
            resumed = f", resumed from {body['resumed_from']}" if body.get("resumed_from") else ""
            message = (
                f"Training starts after step {body.get('step', 0)} on {body.get('device', '?')} with "
                f"{body.get('engine', '?')}, {body.get('parameters', 0):,} parameters{resumed}."
            )
        case "checkpoint":
            message = f"Saved {body.get('path', '')} ({body.get('bytes', 0):,} bytes)."
        case "log":
            level, message = str(body.get("level", "")), str(body.get("message", ""))
        case "finished":
            message = f"The trainer {body.get('outcome', 'ended')}. {body.get('reason', '')}".strip()
    return {
        "seq": row.seq,
        "at": row.at,
        "step": row.step,
        "kind": row.kind,
        "level": level,
        "message": message,
        "actor": body.get("actor", ""),
    }
