"""A run's events in sentences, for its Events page. As data they are `live.catch_up`'s."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from webapp.runs.models import Event, Run

# What the events page lists; metrics and trees have their own pages.
TOLD = ("status", "started", "checkpoint", "log", "finished")


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
