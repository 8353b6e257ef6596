"""What an event says, as a digest that is the same for a spool's record and for the rows made of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from trainer.events import (
    CheckpointSaved,
    Event,
    Finished,
    LogLine,
    Metrics,
    PackingChecked,
    Progress,
    Started,
    TreeSampled,
)
from trainer.text import storable
from workers.output import Preempted

# What a clock decided, or what may change after the event was stored.
_NOT_TOLD = frozenset({"superseded", "at", "url", "note"})
TIMED = "speed/"


def digest(value: Any) -> str:
    """`Any`: JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def chained(before: str, more: str) -> str:
    """The digest of a whole sequence from that of its beginning: two that agree are equal so far."""
    return hashlib.sha256(f"{before} {more}".encode()).hexdigest()[:20]


def numbers(values: Mapping[str, float]) -> list[list[str]]:
    """Metric values to the bit."""
    return [[name, float(value).hex()] for name, value in sorted(values.items())]


def payload_digest(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()[:20]


def of_event(event: Event | Preempted) -> tuple[str, int | None, str] | None:
    """(kind, step, digest) of a spool's record; None for one that makes no row."""
    match event:
        case Metrics():
            return "metrics", event.step, digest(numbers(event.values))
        case TreeSampled():
            return (
                "tree",
                event.step,
                digest([event.index, storable(event.problem_id), payload_digest(event.payload)]),
            )
        case CheckpointSaved():
            return "checkpoint", event.step, digest([event.bytes, event.weights_sha256])
        case LogLine():
            return "log", None, digest([event.level, storable(event.message)])
        case Started():
            return "started", event.step, digest([event.resumed_from, event.weights_sha256])
        case PackingChecked():
            return "packing_checked", event.step, digest([event.packed_tokens, event.flat_tokens])
        case Finished():
            return "finished", event.step, digest([event.outcome, storable(event.reason)])
        case Preempted() | Progress():
            return None


def of_row(
    kind: str,
    body: Mapping[str, Any],
    values: Mapping[str, float],
    tree: tuple[int, str, bytes] | None,
) -> str:
    """The same digest from a stored event: its body, its points, its tree (index, problem, payload)."""
    match kind:
        case "metrics":
            return digest(numbers(values))
        case "tree":
            if tree is None:
                return "no tree"
            return digest([tree[0], tree[1], payload_digest(tree[2])])
        case "checkpoint":
            return digest([body.get("bytes"), body.get("weights_sha256")])
        case "log":
            return digest([body.get("level"), body.get("message")])
        case "started":
            return digest([body.get("resumed_from"), body.get("weights_sha256")])
        case "packing_checked":
            return digest([body.get("packed_tokens"), body.get("flat_tokens")])
        case "finished":
            return digest([body.get("outcome"), body.get("reason")])
    return digest(dict(body))


def of_message(event: Mapping[str, Any]) -> str:
    """A reader's event, as sockets and the API send it, without what changes later."""
    kept = {key: value for key, value in event.items() if key not in _NOT_TOLD}
    if isinstance(kept.get("tree"), dict):
        kept["tree"] = {k: v for k, v in kept["tree"].items() if k not in _NOT_TOLD}
    return digest(kept)
