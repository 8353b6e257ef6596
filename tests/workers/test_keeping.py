from __future__ import annotations

import json
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db.models.functions import Now

from tests.workers.factories import checkpoint, finished, make_run, metrics, numbered, started
from trainer.schema.training import CheckpointConfig
from webapp.runs.models import Checkpoint, Run
from workers import keeping, lease
from workers.lease import Lease
from workers.recorder import Recorder

pytestmark = pytest.mark.django_db
KEEP = CheckpointConfig(keep_last=2, keep_best=True)


def on_disk(folder: Path, attempt: int, step: int, accuracy: float | None = None) -> Path:
    path = folder / f"attempt-{attempt}" / "checkpoints" / f"step-{step}"
    path.mkdir(parents=True)
    (path / "weights").write_bytes(b"w")
    (path / "manifest.json").write_text(json.dumps({"accuracy": accuracy}))
    return path


def held(run: Run) -> Lease:
    working = Run.objects.filter(id=run.id, status__in=("starting", "running"))
    working.update(status="recovering", lease_until=None)
    found = lease.claim(run.id, "w")
    assert found is not None
    return found


def listed(run: Run) -> list[str]:
    return list(Checkpoint.objects.filter(run=run).order_by("seq").values_list("path", flat=True))


def lies(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.glob("attempt-*/checkpoints/*"))


def keep(run: Run, folder: Path, policy: CheckpointConfig) -> None:
    keeping.remove(keeping.take_off_the_list(run, folder, policy))


def test_the_last_ones_and_the_best_stay_over_attempts(tmp_path: Path) -> None:
    run = make_run()
    Recorder(held(run)).record(numbered([started(), *[checkpoint(step) for step in (1, 2, 3)]]))
    Recorder(held(run)).record(
        numbered([started(3, "attempt-1/checkpoints/step-3"), *[checkpoint(s) for s in (4, 5, 6)]])
    )
    for step, accuracy in ((1, 0.2), (2, 0.9), (3, 0.9)):
        on_disk(tmp_path, 1, step, accuracy)
    for step in (4, 6):  # 5 was saved on another machine
        on_disk(tmp_path, 2, step, 0.1)
    keep(run, tmp_path, KEEP)
    kept = ["attempt-1/checkpoints/step-2", "attempt-2/checkpoints/step-4", "attempt-2/checkpoints/step-6"]
    assert lies(tmp_path) == kept
    assert listed(run) == [*kept[:2], "attempt-2/checkpoints/step-5", kept[2]]
    keep(run, tmp_path, KEEP.model_copy(update={"keep_last": 1, "keep_best": False}))
    assert lies(tmp_path) == kept[2:]


def test_what_a_fork_began_with_stays(tmp_path: Path) -> None:
    run = make_run()
    Recorder(held(run)).record(numbered([started(), *[checkpoint(step) for step in (1, 2, 3, 4)]]))
    for step in (1, 2, 3, 4):
        on_disk(tmp_path, 1, step)
    make_run(forked_from=Checkpoint.objects.get(run=run, step=1))
    keep(run, tmp_path, KEEP)
    assert [Path(path).name for path in lies(tmp_path)] == ["step-1", "step-3", "step-4"]


def test_a_checkpoint_is_deleted_when_a_newer_one_is_stored_and_not_before(tmp_path: Path) -> None:
    run = make_run()
    one = held(run)

    def unlist(of: Run) -> list[Path]:
        return keeping.take_off_the_list(of, tmp_path, CheckpointConfig(keep_last=1, keep_best=False))

    def record(event: Any, n: int) -> None:
        keeping.remove(Recorder(one, unlist=unlist).record(numbered([event], n)).old)

    record(started(), 1)
    for step in (1, 2):
        on_disk(tmp_path, 1, step)
    record(checkpoint(1), 2)
    assert len(lies(tmp_path)) == 2  # the second one waits in the spool
    record(metrics(2, reward__mean=1.0), 3)
    assert len(lies(tmp_path)) == 2
    record(checkpoint(2), 4)
    assert (lies(tmp_path), listed(run)) == (["attempt-1/checkpoints/step-2"],) * 2
    on_disk(tmp_path, 1, 3)
    Recorder(one, unlist=unlist).record(numbered([checkpoint(3), finished()], 5))
    assert listed(run) == ["attempt-1/checkpoints/step-3"]
    # Its worker died just then. Much later:
    Run.objects.filter(id=run.id).update(ended_at=Now() - timedelta(hours=2))
    tmp_path.rename(tmp_path.with_name(str(run.id)))
    keeping.sweep(tmp_path.parent)
    assert lies(tmp_path.with_name(str(run.id))) == ["attempt-1/checkpoints/step-3"]


def test_what_dead_attempts_left_is_cleared_up(tmp_path: Path) -> None:
    run = make_run()
    Recorder(held(run)).record(numbered([started(), checkpoint(1)]))
    on_disk(tmp_path, 1, 1)
    on_disk(tmp_path, 1, 2)  # finished, and its worker died before it told of it
    half = on_disk(tmp_path, 1, 3)
    half.rename(half.with_name("step-3.tmp-0a0a0a0a"))
    elsewhere = on_disk(tmp_path, 7, 9)  # of an epoch that this database does not know: from a backup
    keeping.clear_up(held(run), tmp_path)
    assert lies(tmp_path) == ["attempt-1/checkpoints/step-1", "attempt-7/checkpoints/step-9"]
    assert elsewhere.exists()


def test_half_written_checkpoints_are_swept_after_an_hour(tmp_path: Path) -> None:
    young, old = (on_disk(tmp_path / str(run), 1, 3) for run in (1, 2))
    young, old = (path.rename(path.with_name("step-3.tmp-0a0a0a0a")) for path in (young, old))
    long_ago = time.time() - 3700
    for path in (*old.iterdir(), old):
        os.utime(path, (long_ago, long_ago))
    os.utime(young, (long_ago, long_ago))  # a file in it is being written to
    keeping.sweep(tmp_path)
    assert (young.exists(), old.exists()) == (True, False)
