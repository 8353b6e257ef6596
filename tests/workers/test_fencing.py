"""A worker whose lease is gone writes nothing: no event, no checkpoint pointer, no status, no progress, no
sighting. All places that write are found in the code, so a new one must be added here to pass.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.db.models.functions import Now

from tests.workers.factories import checkpoint, finished, make_run, metrics, numbered, started, tree
from trainer.events import GrowingTree, Progress
from webapp.runs.models import Run, RunStatus, Worker
from workers import keeping, lease
from workers.heartbeat import Heartbeat
from workers.lease import Lease, LeaseLostError, Wish
from workers.recorder import Recorder
from workers.supervisor import _forget_sighting

WORKERS = Path(keeping.__file__).parent
# Exports, imports, probes and verifications have rows and epochs of their own (test_exports, test_imports,
# test_probing, test_verifying).
OTHER_LEASES = ("exports", "export_files", "jobs", "imports", "probing", "verifying")
WRITES = re.compile(
    r"\.(update|create|delete|save|update_or_create|get_or_create|bulk_create|bulk_update)\("
    r"|\b(INSERT INTO|UPDATE [a-z{]|DELETE FROM|COPY \{?\w)|\bexecute\(_"
    r"|(?<!\.)(?<!def )\b(move|append_status_event|settle|give_up)\("
)

BATCH = numbered([started(), metrics(1, reward__mean=1.0), tree(1), checkpoint(1), finished()])
GROWING = GrowingTree(problem_id="p", parent=[-1], tokens=[3], finish=[0])
PROGRESS = Progress(time=1.0, step=1, phase="sampling", done=1, total=2, growing=[GROWING])

ENTRIES: dict[str, Callable[[Lease], object]] = {
    "record": lambda held: Recorder(held).record(BATCH),
    "record for a dead one": lambda held: Recorder(held, attempt_epoch=1).record(BATCH),
    "show": lambda held: Recorder(held).show(PROGRESS),
    "renew": lambda held: lease.renew(held, 1.0),
    "acknowledge": lambda held: lease.acknowledge(held, Wish("stop", "ada")),
    "end": lambda held: lease.end(held, RunStatus.FAILED, "No."),
    "beat": lambda held: Heartbeat(held)._look(renew=True),
    "be seen": lambda held: Heartbeat(held)._be_seen(),
    "look": lambda held: Heartbeat(held)._look(renew=False),
    "forget": _forget_sighting,
}
# Who writes, and by which entry. Below the entry nobody asks again: the row is locked.
WRITERS = {
    "recorder.Recorder._store_checkpoint": "record",
    "recorder.Recorder._restart_series": "record",
    "recorder.Recorder._move": "record",
    "recorder.Recorder._show_this_attempt": "record",
    "recorder._upsert_series": "record",
    "recorder._show": "record",
    "recorder._copy_rows": "record",
    "recorder.Recorder.show": "show",
    "lease.renew": "renew",
    "lease.acknowledge": "acknowledge",
    "lease.end": "end",
    "lease.settle": "end",
    "heartbeat.Heartbeat._be_seen": "be seen",
    "supervisor._forget_sighting": "forget",
    "keeping.take_off_the_list": "record",
}
UNFENCED = {
    "lease.claim": "takes the lease, by compare-and-set",
    "lease._take_back": "of the same epoch, which nobody took since",
    "upkeep._Upkeep._be_seen": "a worker says that it lives, whatever it works on",
    "upkeep._Upkeep._obey": "a worker says that it heard of a drain, and is done; of its own row",
    "upkeep.end": "a worker says that it leaves",
}


def writers() -> set[str]:
    found = set()
    for path in WORKERS.glob("*.py"):
        if path.stem in OTHER_LEASES:
            continue
        text = path.read_text()
        for node in ast.parse(text).body:
            parts = node.body if isinstance(node, ast.ClassDef) else [node]
            for part in parts:
                source = ast.get_source_segment(text, part) or ""
                if isinstance(part, ast.FunctionDef) and WRITES.search(source):
                    name = f"{node.name}.{part.name}" if isinstance(node, ast.ClassDef) else part.name
                    found.add(f"{path.stem}.{name}")
    return found


def test_every_place_that_writes_is_known() -> None:
    assert writers() == WRITERS.keys() | UNFENCED.keys()
    assert set(WRITERS.values()) <= ENTRIES.keys()


def rows() -> dict[str, list[dict[str, Any]]]:
    """All that workers may write to."""
    models = [model for app in ("runs", "trees") for model in apps.get_app_config(app).get_models()]
    return {model.__name__: list(model._base_manager.order_by("pk").values()) for model in models}


def taken_by_another(run: Run) -> None:
    Run.objects.filter(id=run.id).update(status="recovering", lease_until=None)
    assert lease.claim(run.id, "w") is not None
    Worker.objects.filter(name="w").update(run=run)


def ended(run: Run) -> None:
    Run.objects.filter(id=run.id).update(status="failed", ended_at=Now(), lease_until=None)


def waits(run: Run) -> None:
    Run.objects.filter(id=run.id).update(status="queued", lease_until=None)


def paused(run: Run) -> None:
    Run.objects.filter(id=run.id).update(status="paused", lease_until=None)


@pytest.mark.django_db
@pytest.mark.parametrize("what_happened", [taken_by_another, ended, waits, paused])
@pytest.mark.parametrize("entry", ENTRIES)
def test_without_the_lease_nothing_is_written(entry: str, what_happened: Callable[[Run], None]) -> None:
    run = make_run()
    held = lease.claim(run.id, "w")
    assert held is not None
    Worker.objects.create(name="w", queues="cpu", run=run)
    what_happened(run)
    before = rows()
    is_quiet = entry in ("be seen", "look", "forget")  # they tell nobody that they were refused
    if is_quiet:
        ENTRIES[entry](held)
    else:
        with pytest.raises(LeaseLostError):
            ENTRIES[entry](held)
    if not is_quiet or what_happened is taken_by_another:
        assert rows() == before


@pytest.mark.django_db
@pytest.mark.parametrize("entry", ENTRIES)
def test_with_the_lease_something_is(entry: str) -> None:
    """Else the test above would prove nothing."""
    run = make_run()
    held = lease.claim(run.id, "w")
    assert held is not None
    Worker.objects.create(name="w", queues="cpu", run=None if entry in ("beat", "be seen") else run)
    Run.objects.filter(id=run.id).update(wish="stop", wish_at=Now())
    before = rows()
    ENTRIES[entry](held)
    assert rows() != before
