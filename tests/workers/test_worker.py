"""A real Celery worker, the real broker, the real trainer on the tiny model."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from django.db.models.functions import Now

from tests.workers.factories import make_run
from trainer.config import RunConfig
from trainer.presets import PRESETS
from trainer.tree import RolloutTree
from webapp import broker
from webapp.embedded import processes
from webapp.embedded.broker import BrokerServer
from webapp.embedded.folder import DataFolder
from webapp.embedded.processes import Identity
from webapp.queue.services import drain, undrain
from webapp.runs import sweeper
from webapp.runs.controls import Action, control
from webapp.runs.models import Attempt, Event, Point, Run, Worker
from webapp.runs.sweeper import sweep
from webapp.trees.models import StoredTree
from workers.child import MARK

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.process]
REPOSITORY = Path(__file__).resolve().parents[2]


class CeleryWorker:
    """One worker process as the stack starts it."""

    def __init__(self, url: str, broker_url: str, data: Path, queues: str = "cpu") -> None:
        self.log = data / "worker.log"
        environment = {
            **os.environ,
            "ARBORIST_DATABASE_URL": url,
            "ARBORIST_BROKER_URL": broker_url,
            "ARBORIST_DATA_DIR": str(data),
        }
        argv = [sys.executable, "-m", "celery", "--app", "workers.celery:app", "worker"]
        argv += [
            "--queues",
            queues,
            "--loglevel",
            "INFO",
            "--hostname",
            f"w-{data.name}@%h",
            "--without-gossip",
        ]
        with self.log.open("ab") as output:
            self.popen = subprocess.Popen(
                [*argv, "--without-gossip", "--without-mingle"],
                cwd=REPOSITORY,
                env=environment,
                stdout=output,
                stderr=output,
            )

    def said(self, text: str) -> bool:
        return text in self.log.read_text(errors="replace")

    def pool_child(self) -> int:
        children = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children").read_text().split()
        return int(children[0])

    def trainers(self) -> list[Identity]:
        """Trainers that this worker has started: their config lies in its data folder."""
        ours = str(self.log.parent / "runs").encode()
        found = []
        for pid in processes.pids():
            identity = Identity.of(pid)
            if identity and ours in _proc(pid, "cmdline") and MARK.encode() in _proc(pid, "environ"):
                found.append(identity)
        return found

    def end(self) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(20)
        self.popen.kill()
        self.popen.wait()


def _proc(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


@pytest.fixture
def worker(
    database_url: str, broker_url: str, tmp_path: Path, settings: Any
) -> Iterator[Callable[..., CeleryWorker]]:
    settings.BROKER_URL = broker_url
    settings.DATA_DIR = tmp_path
    broker_of(broker_url).flushall()
    started: list[CeleryWorker] = []

    def start(url: str = broker_url, queues: str = "cpu") -> CeleryWorker:
        one = CeleryWorker(database_url, url, tmp_path, queues)
        started.append(one)
        until(lambda: one.said(" ready.") or one.popen.poll() is not None, 60)
        assert one.popen.poll() is None, one.log.read_text()
        return one

    yield start
    for one in started:
        one.end()
    assert "Traceback" not in (tmp_path / "worker.log").read_text()


def broker_of(url: str) -> redis.Redis:
    """The broker's own client, to look into it and to break it."""
    return redis.Redis.from_url(url.replace("redis+socket://", "unix://"))


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    assert processes.wait_until(condition, seconds), "it did not happen in time"


def tiny(steps: int = 3, **changes: Any) -> RunConfig:
    """The TreeRPO preset, small enough for a test."""
    config = PRESETS["treerpo-tiny"].config.model_dump(mode="json")
    config["training"] |= {"steps": steps, "problems_per_step": 4}
    config["evaluation"] |= {"every_steps": 0, "problems": 4}
    config["checkpoint"] |= {"every_steps": changes.pop("checkpoint_every", 2)}
    config["recording"] |= {"trees_per_step": 4}
    return RunConfig.model_validate(config)


def status(run: Run) -> str:
    return Run.objects.values_list("status", flat=True).get(id=run.id)


def step(run: Run) -> int:
    return Run.objects.values_list("step", flat=True).get(id=run.id)


def assert_whole(run: Run) -> None:
    seqs = list(Event.objects.filter(run=run).order_by("seq").values_list("seq", flat=True))
    run.refresh_from_db()
    assert seqs == list(range(1, run.last_seq + 1))


def test_task_trains_the_tiny_model_and_stores_what_it_did(worker: Callable[..., CeleryWorker]) -> None:
    one = worker()
    until(lambda: Worker.objects.filter(queues="cpu").exists())
    run = make_run(run_config=tiny())
    assert broker.send_train_run(run.id, "cpu")
    assert broker.send_train_run(run.id, "cpu")  # the same message twice
    until(lambda: status(run) in ("succeeded", "failed"), 90)
    assert_whole(run)
    assert (run.status, run.reason, run.step) == ("succeeded", "All 3 steps are done.", 3)
    assert Attempt.objects.filter(run=run).count() == 1
    rewards = Point.objects.filter(run_id=run.id, series__name="reward/mean").order_by("step")
    assert list(rewards.values_list("step", flat=True)) == [1, 2, 3]
    trees = list(StoredTree.objects.filter(run=run))
    assert len(trees) == 12
    for stored in trees:
        tree = RolloutTree.from_payload(bytes(stored.payload))
        assert (tree.step, tree.n_nodes) == (stored.step, stored.n_nodes)
    finished = Event.objects.get(run=run, kind="finished").body
    assert len(finished["weights_sha256"]) == 64
    until(lambda: one.said("does not wait for a worker"))
    one.end()
    assert one.popen.returncode == 0
    assert not Worker.objects.exists()
    assert not (one.log.parent / "runs" / str(run.id) / "attempt-1" / "spool").exists()


def test_message_that_is_no_run_is_dropped(worker: Callable[..., CeleryWorker], broker_url: str) -> None:
    one = worker()
    app = broker._producer(broker_url)
    for nonsense in ("1; drop table", None, -1, True, 2**70, [1], 10**9):
        app.send_task(broker.TRAIN_RUN, args=[nonsense], queue="cpu")
    app.send_task("os.system", args=["true"], queue="cpu")
    # A pickle is refused before it is looked at.
    app.send_task(broker.TRAIN_RUN, args=[1], queue="cpu", serializer="pickle")
    run = make_run(run_config=tiny(steps=1))
    broker.send_train_run(run.id, "cpu")
    until(lambda: status(run) == "succeeded", 60)
    text = one.log.read_text()
    assert text.count("which is no id; it is dropped") == 6
    assert "ContentDisallowed" in text or "Refusing to deserialize" in text
    one.log.write_text(text.replace("Traceback", "traceback"))


def test_worker_told_to_stop_gives_the_run_back_and_the_next_one_goes_on(
    worker: Callable[..., CeleryWorker],
) -> None:
    one = worker()
    run = make_run(run_config=tiny(steps=100_000, checkpoint_every=0))
    broker.send_train_run(run.id, "cpu")
    until(lambda: step(run) >= 2, 60)
    one.end()
    assert one.popen.returncode == 0
    assert status(run) == "queued"
    first = Attempt.objects.get(run=run, epoch=1)
    assert first.outcome == "preempted"
    saved = Run.objects.get(id=run.id).checkpoint
    assert saved is not None

    two = worker()
    broker.send_train_run(run.id, "cpu")
    until(lambda: step(run) >= saved.step + 2, 60)
    assert Attempt.objects.get(run=run, epoch=2).resumed_from_step == saved.step
    control(run, run.created_by, Action.STOP)
    until(lambda: status(run) == "stopped", 10)
    assert_whole(run)
    shown = Point.objects.filter(run_id=run.id, series__name="reward/mean", superseded=False).order_by("seq")
    assert list(shown.values_list("step", flat=True)) == list(range(1, run.step + 1))
    assert two.trainers() == []


def test_worker_told_twice_leaves_at_once_though_its_trainer_cannot_save(
    worker: Callable[..., CeleryWorker],
) -> None:
    one = worker()
    run = make_run(run_config=tiny(steps=100_000, checkpoint_every=2))
    broker.send_train_run(run.id, "cpu")
    until(lambda: step(run) >= 3, 60)
    (trainer,) = one.trainers()
    os.kill(trainer.pid, signal.SIGSTOP)
    one.popen.send_signal(signal.SIGTERM)
    time.sleep(2)
    assert one.popen.poll() is None  # a trainer has a minute to save
    one.popen.send_signal(signal.SIGTERM)
    assert one.popen.wait(15) == 0
    assert one.trainers() == []
    assert (status(run), Attempt.objects.get(run=run).outcome) == ("queued", "preempted")
    assert Run.objects.get(id=run.id).checkpoint is not None
    assert_whole(run)


def test_a_drained_worker_gives_back_what_it_took_first_and_takes_nothing_until_let_in(
    worker: Callable[..., CeleryWorker], broker_url: str
) -> None:
    worker()
    low = make_run(run_config=tiny(steps=1))
    high = make_run(low.project, run_config=tiny(steps=100_000, checkpoint_every=0), priority=1)
    broker.send_train_run(low.id, "cpu")  # a hint that something waits, no more
    until(lambda: step(high) >= 1, 60)
    assert status(low) == "queued"
    seen = Worker.objects.get()
    drain(seen, high.created_by, now=True)
    until(lambda: Worker.objects.filter(drain_seen_at__isnull=False, drained_at__isnull=False).exists(), 60)
    assert (status(high), Attempt.objects.get(run=high).outcome) == ("queued", "preempted")
    assert Run.objects.get(id=high.id).checkpoint is not None
    # Messages stay in the broker, for workers that take them.
    broker.send_train_run(low.id, "cpu")
    until(lambda: broker_of(broker_url).llen("cpu") >= 1, 5)
    time.sleep(1.5)
    assert (broker.waiting("cpu") or 0) >= 1
    undrain(seen)
    until(lambda: status(high) == "running", 60)  # what was given back goes on first
    assert status(low) == "queued"
    control(high, high.created_by, Action.STOP)
    until(lambda: status(high) == "stopped", 20)
    until(lambda: status(low) == "succeeded", 60)


def test_killed_worker_leaves_no_trainer_and_the_next_one_goes_on(
    worker: Callable[..., CeleryWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "LEASE_SECONDS", 0)  # the database has just started
    one = worker()
    run = make_run(run_config=tiny(steps=100_000, checkpoint_every=2))
    broker.send_train_run(run.id, "cpu")
    until(lambda: step(run) >= 3, 60)
    assert len(one.trainers()) == 1
    one.popen.kill()
    until(lambda: one.trainers() == [], 5)
    # The lease runs for a while still; here it ends at once.
    assert status(run) == "running"
    Run.objects.filter(id=run.id).update(lease_until=Now() - timedelta(seconds=1))
    assert sweep().lost == 1
    assert status(run) == "recovering"

    two = worker()
    Run.objects.filter(id=run.id).update(not_before=Now() - timedelta(seconds=1))
    assert sweep().sent == 1
    until(lambda: Attempt.objects.filter(run=run, epoch=2, resumed_from_step__gte=2).exists(), 60)
    resumed = Attempt.objects.get(run=run, epoch=2).resumed_from_step
    assert resumed is not None
    until(lambda: step(run) >= resumed + 2, 60)
    control(run, run.created_by, Action.STOP)
    until(lambda: status(run) == "stopped", 10)
    assert_whole(run)
    shown = Point.objects.filter(run_id=run.id, series__name="reward/mean", superseded=False).order_by("seq")
    assert list(shown.values_list("step", flat=True)) == list(range(1, run.step + 1))
    assert two.trainers() == []
    assert [attempt.outcome for attempt in Attempt.objects.filter(run=run).order_by("epoch")] == [
        "lost",
        "stopped",
    ]


def test_a_killed_process_of_several_is_named_and_a_killed_worker_leaves_none_of_them(
    worker: Callable[..., CeleryWorker],
) -> None:
    one = worker()
    config = tiny(steps=100_000).model_dump(mode="json") | {"resources": {"processes": 2}}
    run = make_run(run_config=RunConfig.model_validate(config))
    broker.send_train_run(run.id, "cpu")
    until(lambda: step(run) >= 1, 90)
    ranks = {_rank(trainer.pid): trainer for trainer in one.trainers()}
    assert sorted(ranks) == [b"", b"0", b"1"]  # the launcher, and whom it started
    os.kill(ranks[b"1"].pid, signal.SIGKILL)
    until(lambda: status(run) == "recovering")
    assert one.trainers() == []
    run.refresh_from_db()
    assert run.reason.startswith("Process 2 of 2 (rank 1) was ended by signal 9 (SIGKILL) after step ")

    Run.objects.filter(id=run.id).update(not_before=Now() - timedelta(seconds=1))
    assert sweep().sent == 1
    until(lambda: len(one.trainers()) == 3, 60)
    one.popen.kill()
    until(lambda: one.trainers() == [], 10)


def _rank(pid: int) -> bytes:
    """Of a trainer's process, from its command line; "" for the launcher."""
    words = _proc(pid, "cmdline").split(b"\0")
    return words[words.index(b"--rank") + 1] if b"--rank" in words else b""


def test_worker_replaces_a_killed_child(
    worker: Callable[..., CeleryWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARBORIST_DATABASE_POOL", "4")  # the web's, which is of no use in what was forked
    one = worker()
    run = make_run(run_config=tiny(steps=100_000))
    broker.send_train_run(run.id, "cpu")
    until(lambda: step(run) >= 1, 60)
    assert len(one.trainers()) == 1
    os.kill(one.pool_child(), signal.SIGKILL)
    until(lambda: one.trainers() == [], 5)
    other = make_run(run_config=tiny(steps=1))
    for _ in range(8):  # a hint may go to the dead child; the sweeper sends it again
        broker.send_train_run(other.id, "cpu")
        if processes.wait_until(lambda: status(other) == "succeeded", 15):
            break
    assert status(other) == "succeeded", one.log.read_text()
    one.log.write_text(one.log.read_text().replace("Traceback", "traceback"))


def test_worker_consumes_again_after_the_broker_was_killed_frozen_emptied_and_full(
    worker: Callable[..., CeleryWorker], tmp_path: Path, settings: Any
) -> None:
    folder = DataFolder.at(tmp_path / "own")
    folder.prepare()
    settings.BROKER_URL = folder.broker_url
    server = BrokerServer(folder)
    child = server.start("test")
    try:
        until(server.is_ready)
        one = worker(folder.broker_url)
        child.popen.kill()
        child.end()
        run = make_run(run_config=tiny(steps=1))
        asked = time.monotonic()
        assert not broker.send_train_run(run.id, "cpu")
        assert time.monotonic() - asked < 2
        child = server.start("test")
        until(server.is_ready)
        assert broker.send_train_run(run.id, "cpu")
        until(lambda: status(run) == "succeeded", 90)

        # Frozen for a while, emptied, out of memory: each costs nothing but the messages.
        def consumes(number: int) -> None:
            assert broker.send_train_run(number, "cpu")
            until(lambda: one.said(f"Run {number} does not wait"), 30)

        child.signal(signal.SIGSTOP)
        assert not broker.send_train_run(run.id, "cpu")
        time.sleep(3)
        child.signal(signal.SIGCONT)
        until(broker.is_reachable)
        consumes(10**9 + 1)
        link = broker_of(folder.broker_url)
        link.flushall()
        consumes(10**9 + 2)
        link.config_set("maxmemory", "1")
        assert not broker.send_train_run(run.id, "cpu")
        link.config_set("maxmemory", "0")
        consumes(10**9 + 3)
        # Full just when the worker takes a message, which it has to note down in the broker.
        one.popen.send_signal(signal.SIGSTOP)
        assert broker.send_train_run(run.id, "cpu")
        link.config_set("maxmemory", "1")
        one.popen.send_signal(signal.SIGCONT)
        until(lambda: one.said("command not allowed when used memory"))
        link.config_set("maxmemory", "0")
        link.close()
        consumes(10**9 + 4)
        assert one.popen.poll() is None
    finally:
        child.signal(signal.SIGCONT)
        server.stop(child)
        folder.remove()
    log = tmp_path / "worker.log"
    log.write_text(log.read_text().replace("Traceback", "traceback"))
