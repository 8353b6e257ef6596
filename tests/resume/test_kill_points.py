"""A run that is killed goes on, and ends as if nothing had been: 20 moments, real processes, a real database.

The suite plays a few of them; `ARBORIST_KILL_POINTS=all` plays all, `=3,7` those two (docs/operations.md).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db.models.functions import Now

from tests.resume.story import digest, story
from tests.workers.factories import make_run
from tests.workers.test_worker import CeleryWorker
from trainer.config import RunConfig
from trainer.presets import PRESETS
from webapp import broker
from webapp.embedded import processes
from webapp.runs import sweeper
from webapp.runs.models import Attempt, Run, RunStatus
from webapp.runs.states import move
from webapp.runs.sweeper import sweep
from workers.child import MARK

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.process]
REPOSITORY = Path(__file__).resolve().parents[2]


def config_of(slug: str, **more: Any) -> RunConfig:
    """The smallest run in which every part of a checkpoint decides something after it."""
    values = PRESETS[slug].config.model_dump(mode="json")
    values["seed"] = 5
    values["training"] |= {
        "steps": 4,
        "problems_per_step": 2,
        "learning_rate": 1e-3,
        "warmup_steps": 3,
        "updates_per_step": 2,
    }
    values["data"]["operations"] = 2
    values["evaluation"] |= {"problems": 2, "every_steps": 2, "samples": 2}
    values["checkpoint"] |= {"every_steps": 1, "keep_last": 2}
    values["recording"]["trees_per_step"] = 2
    for section, changes in more.items():
        values[section] |= changes
    return RunConfig.model_validate(values)


CONFIGS = {
    # An adapter over a base, a reference model, samples thrown away until rewards differ.
    "adapter": config_of(
        "dapo-tiny",
        model={"adapter": {"kind": "lora", "rank": 4, "alpha": 8}},
        objective={"regularizer": {"kind": "k3", "beta": 0.01}},
    ),
    # A search with a value head.
    "search": config_of("rest-mcts-tiny"),
    # Experts mixed in by a schedule.
    "expert": config_of("chord-tiny"),
}


@dataclass(frozen=True)
class Point:
    """`deaths`: the moments at which one attempt after the other dies; the next one is let live."""

    config: str
    deaths: tuple[str, ...]


POINTS = (
    # start-up
    Point("adapter", ("claimed:1",)),
    Point("search", ("child_started:1",)),
    Point("expert", ("loading:1",)),
    # sampling and judging
    Point("adapter", ("sampling:9",)),
    Point("search", ("sampling:12",)),
    Point("expert", ("verifying:3",)),
    Point("adapter", ("evaluating:2",)),
    # the optimiser's step: before, between and after the two updates of a step
    Point("adapter", ("gradient:4",)),
    Point("search", ("optimiser_step:3",)),
    Point("expert", ("counted:3",)),
    # saving
    Point("adapter", ("after_tmp:2",)),
    Point("search", ("after_fsync:3",)),
    Point("expert", ("after_rename:2",)),
    Point("search", ("before_pointer:2",)),
    Point("adapter", ("after_pointer:2",)),
    # events on their way
    Point("expert", ("torn:9",)),
    Point("adapter", ("recorded:5",)),
    # twice in a row, during a resume, and with what the dead one left still to be stored
    Point("search", ("told:2", "restoring:1")),
    Point("expert", ("spooled:14", "drained:1", "child_noted:1")),
    Point("adapter", ("saved:3", "after_rename:1", "ended:1")),
)
IN_THE_SUITE = (13, 17)


def chosen() -> list[int]:
    asked = os.environ.get("ARBORIST_KILL_POINTS", "")
    if asked == "all":
        return list(range(len(POINTS)))
    return [int(number) for number in asked.split(",")] if asked else list(IN_THE_SUITE)


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "DATA_DIR", tmp_path)
    monkeypatch.setattr(sweeper, "LEASE_SECONDS", 0)  # the database has just started


def attempt(run: Run, url: str, plan: str) -> int:
    """Play one attempt to its end. Returns the exit status of its worker."""
    return subprocess.run(
        [sys.executable, "-m", "tests.resume.mortal_worker", str(run.id), plan],
        cwd=REPOSITORY,
        env={**os.environ, "ARBORIST_DATABASE_URL": url, "ARBORIST_DATA_DIR": str(settings.DATA_DIR)},
        timeout=120,
        check=False,
    ).returncode


def trainers(run: Run) -> list[processes.Identity]:
    found = []
    for pid in processes.pids():
        try:
            marks = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        identity = processes.Identity.of(pid)
        if identity and any(mark.startswith(f"{MARK}={run.id}-".encode()) for mark in marks):
            found.append(identity)
    return found


def give_up_and_queue(run: Run) -> None:
    """What the sweeper does when the lease runs out, without the wait for it."""
    run.refresh_from_db()
    if run.status in ("starting", "running", "stopping"):
        Run.objects.filter(id=run.id).update(lease_until=Now() - timedelta(seconds=1))
        assert sweep().lost == 1
        run.refresh_from_db()
    if run.status == "failed":  # two deaths at one place: a person tries it again
        why = "Tried again."
        assert move(run, RunStatus.QUEUED, why, actor="ada", restarts=0, settled_epoch=run.lease_epoch)
    Run.objects.filter(id=run.id).update(not_before=None)


twins: dict[str, dict[str, str]] = {}


def told_of(name: str, deaths: tuple[str, ...], url: str) -> dict[str, str]:
    run = make_run(run_config=CONFIGS[name])
    for plan in deaths:
        assert attempt(run, url, plan) in (-9, 0)
        assert processes.wait_until(lambda: trainers(run) == [], 5)
        give_up_and_queue(run)
        assert run.status != "succeeded", f"nobody died at {plan}"
    assert attempt(run, url, "") == 0
    run.refresh_from_db()
    assert run.status == "succeeded", run.reason
    assert Attempt.objects.filter(run=run).count() == len(deaths) + 1
    return digest(story(run, settings.DATA_DIR / "runs"))


def unbroken(name: str, url: str) -> dict[str, str]:
    if name not in twins:
        twins[name] = told_of(name, (), url)
    return twins[name]


@pytest.mark.parametrize("number", chosen())
def test_killed_and_resumed_is_unbroken(number: int, database_url: str) -> None:
    point = POINTS[number]
    twin = unbroken(point.config, database_url)
    assert told_of(point.config, point.deaths, database_url) == twin


@pytest.mark.skipif(not os.environ.get("ARBORIST_KILL_POINTS"), reason="slow: two real workers")
@pytest.mark.parametrize("seed", [1, 2])
def test_run_of_a_worker_that_is_killed_at_any_time_is_unbroken(
    seed: int, database_url: str, broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its main process, which takes the pool's child and the trainer with it."""
    monkeypatch.setattr(settings, "BROKER_URL", broker_url)
    twin = unbroken("search", database_url)
    run = make_run(run_config=CONFIGS["search"])
    worker = CeleryWorker(database_url, broker_url, tmp_path)
    try:
        assert processes.wait_until(lambda: worker.said(" ready."), 60)
        assert broker.send_train_run(run.id, "cpu")
        assert processes.wait_until(lambda: Run.objects.get(id=run.id).step >= 1, 60)
        time.sleep(random.Random(seed).uniform(0.0, 0.6))
    finally:
        worker.popen.kill()
        worker.popen.wait()
    assert processes.wait_until(lambda: trainers(run) == [], 30)
    give_up_and_queue(run)
    assert attempt(run, database_url, "") == 0
    run.refresh_from_db()
    assert Attempt.objects.filter(run=run).count() == 2
    assert digest(story(run, tmp_path / "runs")) == twin
