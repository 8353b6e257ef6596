"""What the worker makes of full disks, jumping clocks, stuck trainers, damaged checkpoints, lost memory."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import psycopg.errors
import pytest
from django.conf import settings
from django.db import OperationalError
from django.db.models import F

from tests.trainer.test_guards import small_disk as small_disk
from tests.workers.factories import make_run
from tests.workers.test_supervisor import (
    claimed,
    in_background,
    kinds,
    steps,
    trainer_of,
    until,
    work,
)
from tests.workers.test_supervisor import own_data_folder as own_data_folder
from trainer.config import RunConfig
from webapp.runs.controls import Action, control
from webapp.runs.models import Attempt, Checkpoint, Event, Point, Run
from workers import child, recorder, watch
from workers.supervisor import supervise

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.process]


def said(run: Run, kind: str = "log") -> list[str]:
    bodies = Event.objects.filter(run=run, kind=kind).order_by("seq").values_list("body", flat=True)
    return [body["message"] for body in bodies]


def points(run: Run) -> list[tuple[int, bool]]:
    return list(Point.objects.filter(run_id=run.id).order_by("seq").values_list("step", "superseded"))


# ---- disks


def test_worker_whose_disk_fills_up_pauses_the_run_and_loses_nothing_that_it_kept(
    small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk(1)
    monkeypatch.setattr(settings, "DATA_DIR", disk)
    run = make_run()
    thread = in_background(run, "polite")
    until(lambda: steps(run) >= 2)
    (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free))
    thread.join(30)
    run.refresh_from_db()
    assert run.status == "paused"
    assert run.reason.startswith("Disk full: the worker could not keep the run's events")
    stored = points(run)
    assert stored == [(n, False) for n in range(1, run.step + 1)]
    assert Attempt.objects.get(run=run).recorded_through == run.step + 2  # its beginning and its end
    kinds(run)

    # The next attempt would make a little room by itself: by clearing up what the last one half wrote.
    for left in disk.glob("runs/*/attempt-1/checkpoints"):
        shutil.rmtree(left)
    with (disk / "ballast").open("ab") as file:
        file.write(bytes(shutil.disk_usage(disk).free))
    control(run, run.created_by, Action.RESUME)  # too early: it says so again, and dies of nothing
    run = work(run, "three steps")
    assert (run.status, run.reason.partition(":")[0]) == ("paused", "Disk full")
    (disk / "ballast").unlink()
    control(run, run.created_by, Action.RESUME)
    run = work(run, "three steps")
    assert (run.status, run.restarts) == ("succeeded", 0)
    assert [point for point in points(run) if not point[1]] == [(n, False) for n in (1, 2, 3)]
    kinds(run)


def test_database_without_room_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    real, refused = recorder._copy_rows, 0

    def full(*args: object) -> None:
        nonlocal refused
        refused += 1
        if refused <= 3:
            try:
                raise psycopg.errors.DiskFull("could not extend file: No space left on device")
            except psycopg.Error as error:
                raise OperationalError(str(error)) from error
        real(*args)  # type: ignore[arg-type]

    assert issubclass(psycopg.errors.DiskFull, psycopg.OperationalError)  # which Django passes on as its own
    monkeypatch.setattr(recorder, "_copy_rows", full)
    run = work(make_run(), "three steps")
    assert (run.status, refused > 3) == ("succeeded", True)
    kinds(run)


def test_spool_that_is_full_while_the_database_is_away_makes_the_trainer_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, is_away = recorder._copy_rows, True

    def away(*args: object) -> None:
        if is_away:
            raise OperationalError("the database is away")
        real(*args)  # type: ignore[arg-type]

    limit = 20_000
    monkeypatch.setattr(recorder, "_copy_rows", away)
    monkeypatch.setattr(watch, "MAX_SPOOL_BYTES", limit)
    monkeypatch.setattr(child, "_CHUNK", 4096)
    run = make_run()
    thread = in_background(run, "many events")
    spool = settings.DATA_DIR / "runs" / str(run.id) / "attempt-1" / "spool"
    until(lambda: spool.exists() and spool.stat().st_size >= limit)
    time.sleep(1)
    assert spool.stat().st_size < limit + 2 * 4096  # of 300,000
    assert not Point.objects.filter(run_id=run.id).exists()
    is_away = False
    thread.join(60)
    run.refresh_from_db()
    assert (run.status, run.step) == ("succeeded", 3000)
    assert points(run) == [(n, False) for n in range(1, 3001)]


# ---- clocks


def test_clock_that_jumps_kills_nobody_and_turns_nothing_round(monkeypatch: pytest.MonkeyPatch) -> None:
    now, real, looked = time.time(), time.time, 0

    def jumps() -> float:
        nonlocal looked
        looked += 1
        return real() + (0, 7200, -7200, -10 * 365.25 * 86400)[looked % 4]

    monkeypatch.setattr(time, "time", jumps)
    run = work(make_run(), "clock jumps")
    monkeypatch.undo()
    assert looked
    assert (run.status, run.step, run.restarts) == ("succeeded", 4, 0)
    assert points(run) == [(n, False) for n in (1, 2, 3, 4)]
    kinds(run)
    attempt = Attempt.objects.get(run=run)
    assert attempt.ended_at is not None
    assert timedelta(0) < attempt.ended_at - attempt.started_at < timedelta(minutes=5)
    assert abs(attempt.started_at.timestamp() - now) < 300
    times = Event.objects.filter(run=run, kind="metrics").order_by("seq").values_list("at", flat=True)
    assert list(times) != sorted(times)  # for people they are what the clock said


# ---- stuck


def test_trainer_that_is_stuck_with_the_interpreter_shows_it_and_can_be_stopped_now() -> None:
    run = make_run()
    thread = in_background(run, "stuck with the interpreter")
    until(lambda: steps(run) >= 1)
    trainer = trainer_of(run)
    os.kill(trainer.pid, signal.SIGTERM)  # which it cannot hear
    # The heartbeat goes on, and tells that nothing moves.
    still = Run.objects.filter(id=run.id, heartbeat_at__gt=F("progress_at") + timedelta(seconds=3))
    until(still.exists, 30)
    assert trainer.is_alive()
    control(run, run.created_by, Action.STOP_NOW)
    thread.join(10)
    run.refresh_from_db()
    assert (run.status, trainer.is_alive()) == ("stopped", False)
    assert "Its trainer was ended at once" in run.reason


# ---- checkpoints and models


def train_for_real(run: Run) -> Run:
    supervise(claimed(run))
    run.refresh_from_db()
    return run


def real_run(steps_of: int) -> Run:
    config = RunConfig.model_validate(
        {
            "training": {"steps": steps_of, "problems_per_step": 2},
            "data": {"kind": "chain", "operations": 3},
            "sampler": RunConfig().sampler.model_dump() | {"branching_per_depth": [2, 2, 2]},
            "evaluation": {"every_steps": 0, "problems": 2},
            "checkpoint": {"every_steps": 1, "keep_last": 9},
            "recording": {"trees_per_step": 1},
        }
    )
    return make_run(run_config=config)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_damaged_checkpoints_are_passed_over_and_said_and_without_any_a_person_decides() -> None:
    run = train_for_real(real_run(2))
    folders = [settings.DATA_DIR / "runs" / str(run.id) / c.path for c in Checkpoint.objects.filter(run=run)]
    newest = max(folders, key=lambda folder: folder.name)
    damage(newest / "optimiser.safetensors")
    config = run.config | {"training": run.config["training"] | {"steps": 3}}
    Run.objects.filter(id=run.id).update(config=config, status="queued", ended_at=None)
    run = train_for_real(run)
    assert run.status == "succeeded"
    assert Attempt.objects.get(run=run, epoch=2).resumed_from_step == 1
    (warning,) = [line for line in said(run) if "damaged" in line]
    assert warning.startswith("The checkpoint of step 2 is damaged and was not loaded: ")
    assert "optimiser.safetensors does not match its SHA-256" in warning
    kinds(run)

    for folder in (settings.DATA_DIR / "runs" / str(run.id)).glob("attempt-*/checkpoints/step-*"):
        (folder / "manifest.json").write_text("{}")
    Run.objects.filter(id=run.id).update(status="queued", ended_at=None)
    run = train_for_real(run)
    assert run.status == "paused"
    assert run.reason.startswith("None of the run's ")
    assert "manifest.json" in run.reason
    assert run.step == 3
    kinds(run)
    shutil.rmtree(settings.DATA_DIR / "runs" / str(run.id))
    control(run, run.created_by, Action.RESUME)
    run = train_for_real(run)
    assert run.status == "paused"
    assert "has none of their folders" in run.reason
    assert "Last complete step: 3" in run.reason


# ---- memory


_GROUP = """
import json, os, subprocess, sys
from pathlib import Path
group = Path(sys.argv[1])
(group / "cgroup.procs").write_text(str(os.getpid()))
from workers import memory
before = memory.kernel_kills()
child = subprocess.run([sys.executable, "-c", "b = bytearray(400 * 10**6)"])
print(json.dumps([child.returncode, before, memory.kernel_kills()]))
"""


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group of 100 MB."""
    own = next(
        (
            line.split(":", 2)
            for line in Path("/proc/self/cgroup").read_text().splitlines()
            if "memory" in line
        ),
        None,
    )
    if own is None:
        pytest.skip("no memory control group of version 1 here")
    group = Path("/sys/fs/cgroup/memory", own[2].lstrip("/"), f"arborist-test-{os.getpid()}")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(100 * 10**6))
    except OSError:
        pytest.skip("control groups cannot be made here")
    yield group
    until(lambda: not (group / "cgroup.procs").read_text().strip())
    group.rmdir()


def test_kernel_that_ends_the_trainer_for_memory_is_noticed(memory_group: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_GROUP), str(memory_group)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    status, before, after = json.loads(found.stdout)
    assert status == -signal.SIGKILL
    assert after == before + 1


def test_trainer_that_the_kernel_ended_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    kills = iter([3, 4])
    monkeypatch.setattr("workers.memory.kernel_kills", lambda: next(kills))
    run = work(make_run(), "killed")
    assert run.status == "failed"
    assert run.reason == (
        "Out of memory (host): the machine had none left, and its kernel ended the trainer. Last complete "
        "step: "
        "1; no checkpoint. Retry on a larger machine, or fork the run with fewer training.problems_per_step, "
        "less branching or a lower training.microbatch_tokens."
    )
