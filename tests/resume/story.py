"""What a run has become, without what a clock, an id or the number of attempts decided. For tests."""

from __future__ import annotations

import json
import struct
from hashlib import sha256
from pathlib import Path
from typing import Any

from trainer.events import TIMED_AREAS
from webapp.runs.models import Checkpoint, Event, Point, Run
from webapp.trees.models import StoredTree

TOLD = ("metrics", "tree", "checkpoint", "log")
# What an attempt says of itself, and not of the run.
OF_AN_ATTEMPT = (
    *("Going on from", "The checkpoint of step", "Last lines", "Resumed", "The trainer printed"),
    *("The last event of attempt", "Attempt ", "What attempt"),
)


def history(run: Run) -> list[Event]:
    """The events that the run's newest attempt goes on from, and its own: each `started` takes back what came
    after the checkpoint it names. Gap-free numbers are checked on the way.
    """
    kept: list[Event] = []
    events = list(Event.objects.filter(run=run).order_by("seq"))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    for event in events:
        if event.kind == "started":
            resumed = event.body["resumed_from"]
            saved = [n for n, e in enumerate(kept, 1) if e.kind == "checkpoint" and e.body["path"] == resumed]
            assert resumed is None or saved, event.body
            kept = kept[: saved[-1]] if saved else []
        kept.append(event)
    return kept


def story(run: Run, folder: Path) -> dict[str, Any]:
    """By part: of runs with equal configs all parts are equal, wherever they were interrupted."""
    told = [event for event in history(run) if event.kind in TOLD]
    points: dict[int, list[tuple[str, str]]] = {}
    shown = Point.objects.filter(run_id=run.id, superseded=False).values_list("seq", "series__name", "value")
    for seq, name, value in shown:
        if not name.startswith(TIMED_AREAS):
            points.setdefault(seq, []).append((name, struct.pack(">d", value).hex()))
    trees = {
        row.pop("seq"): {
            k: sha256(bytes(v)).hexdigest() if k == "payload" else repr(v) for k, v in row.items()
        }
        for row in StoredTree.objects.filter(run=run, superseded=False).values()
        if row.pop("id") and row.pop("epoch") and row.pop("run_id")
    }
    metrics, wood, rest = [], [], []
    for event in told:
        if event.kind == "metrics":
            metrics.append((event.step, sorted(points.pop(event.seq, []))))
        elif event.kind == "tree":
            wood.append((event.step, event.body, trees.pop(event.seq, None)))
        elif event.kind == "checkpoint":
            body = {name: event.body[name] for name in ("bytes", "weights_sha256")}
            rest.append((event.step, body))
        elif not event.body["message"].startswith(OF_AN_ATTEMPT):
            rest.append((event.step, event.body))
    # Nothing is shown beside the history.
    assert not points, f"points of {sorted(points)} are shown and are no part of the history"
    assert not trees, f"trees of {sorted(trees)} are shown and are no part of the history"
    last = Checkpoint.objects.filter(run=run).order_by("-seq").first()
    assert last is not None
    finished = Event.objects.filter(run=run, kind="finished").order_by("-seq").first()
    return {
        "weights": finished and finished.body["weights_sha256"],
        "checkpoint": on_disk(folder / str(run.id) / last.path),
        "metrics": metrics,
        "trees": wood,
        "events": rest,
        "status": (run.status, run.step, run.reason),
    }


def on_disk(checkpoint: Path) -> dict[str, str]:
    """SHA-256 by file, the counters without the processor time."""
    found = {}
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.name == "state.json":
            state = json.loads(content)
            del state["cpu_seconds"]
            content = json.dumps(state).encode()
        if path.name not in ("manifest.json", "config.json"):
            found[path.relative_to(checkpoint).as_posix()] = sha256(content).hexdigest()
    return found


def digest(told: dict[str, Any]) -> dict[str, str]:
    """One SHA-256 per part."""
    return {name: sha256(repr(part).encode()).hexdigest()[:16] for name, part in told.items()}
