"""A run's events in sentences, for its Events page. As data they are `live.catch_up`'s."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from webapp.runs.models import Event, Run

# What the events page lists; metrics and trees have their own pages.
TOLD = ("status", "started", "packing_checked", "checkpoint", "log", "finished")

# Relative gradient differences up to these are rounding.
ROUNDING = {"float32": 1e-4, "bfloat16": 5e-2}
MOST_EVENTS_BEFORE_CHECK = 10_000


@dataclass(frozen=True, slots=True)
class PackingWords:
    """What the comparison of packed with flat training found. `is_rounding`: there is nothing to worry
    about."""

    text: str
    is_rounding: bool


def packing_words(body: Mapping[str, Any], precision: str = "float32") -> PackingWords:
    """`Packed training checked against flat: gradient difference 1.6e−6, 3.1× fewer tokens.`

    `body` is a `packing_checked` event's; its numbers that are not finite came as words.
    """
    difference = float(body.get("gradient_difference", math.nan))
    packed, flat = int(body.get("packed_tokens", 0)), int(body.get("flat_tokens", 0))
    size = f"{difference:.1e}" if math.isfinite(difference) else str(difference)
    found = re.sub(r"e([+-])0?(\d)", r"e\1\2", size).replace("-", "−")
    ratio = flat / packed if packed else 1.0
    tokens = f"{ratio:.1f}× fewer tokens" if ratio >= 1.05 else "as many tokens"
    limit = ROUNDING.get(precision, ROUNDING["float32"])
    is_rounding = math.isfinite(difference) and difference <= limit
    text = f"Packed training checked against flat: gradient difference {found}, {tokens}."
    return PackingWords(text if is_rounding else f"{text} That is more than rounding.", is_rounding)


def packing_check(run: Run, precision: str) -> PackingWords | None:
    """What the run's first check found; None while there is none. One query, that looks at the beginning of
    the run alone.
    """
    near = Event.objects.filter(run=run, seq__lte=MOST_EVENTS_BEFORE_CHECK, kind="packing_checked")
    row = near.order_by("seq").first()
    return None if row is None else packing_words(row.body, precision)


def told_events(run: Run, after: int, limit: int) -> tuple[Sequence[dict[str, Any]], int | None]:
    """What the events page shows: `seq, at, step, kind, level, message, actor`, and the cursor of the next
    page. One query.
    """
    rows = list(Event.objects.filter(run=run, kind__in=TOLD, seq__gt=after).order_by("seq")[: limit + 1])
    more, rows = len(rows) > limit, rows[:limit]
    return [_told(row) for row in rows], rows[-1].seq if more else None


def trained_on(started: dict[str, Any]) -> str:
    """What a trainer that started runs on, in words: `cpu`, `2 processes on cuda:0 to cuda:1`, `cuda:0,
    sampled in 2 engine processes`.
    """
    engines = _engines(started)
    return _devices(started) + (f", sampled {engines}" if engines else "")


def _engines(started: dict[str, Any]) -> str:
    """The processes that only sample, if there are any."""
    count = int(started.get("engine_processes", 0))
    return f"in {count} engine process{'' if count == 1 else 'es'}" if count else ""


def _devices(started: dict[str, Any]) -> str:
    device, processes = str(started.get("device", "?")), int(started.get("processes", 1))
    if processes == 1:
        return device
    kind, _, first = device.partition(":")
    return f"{processes} processes on {device}" + (f" to {kind}:{processes - 1}" if first else "")


def devices_of(run: Run) -> dict[int, str]:
    """What each attempt was trained on, as far as it came to that. One query."""
    rows = Event.objects.filter(run=run, kind="started").order_by("seq").values_list("epoch", "body")
    return {epoch: trained_on(body) for epoch, body in rows if isinstance(body, dict)}


def _told(row: Event) -> dict[str, Any]:
    body = row.body if isinstance(row.body, dict) else {}
    level, message = "", ""
    match row.kind:
        case "status":
            message = f"{str(body.get('status', '')).capitalize()}. {body.get('reason', '')}".strip()
        case "started":
            resumed = f", resumed from {body['resumed_from']}" if body.get("resumed_from") else ""
            engine = f"{body.get('engine', '?')} {_engines(body)}".strip()
            message = (
                f"Training starts after step {row.step or 0} "
                f"{'in' if body.get('processes', 1) > 1 else 'on'} {_devices(body)} with "
                f"{engine}, {body.get('parameters', 0):,} parameters{resumed}."
            )
        case "packing_checked":
            found = packing_words(body)
            level, message = "" if found.is_rounding else "warning", found.text
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
