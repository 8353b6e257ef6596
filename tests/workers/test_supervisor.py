from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import IntegrityError, connection, connections
from django.db.models.functions import Now

from tests.workers.factories import checkpoint, finished, make_run, metrics, started
from trainer.config import RunConfig
from trainer.events import GrowingTree, Progress
from trainer.guards import TROUBLES, BeginSmallerError
from trainer.supervised import BEGIN_SMALLER
from webapp.embedded import processes
from webapp.projects.models import ModelSource
from webapp.runs import sweeper
from webapp.runs.controls import Action, control
from webapp.runs.forks import fork
from webapp.runs.models import Attempt, Checkpoint, Event, Point, Run
from webapp.trees.models import GrowingTrees
from workers import child, lease, limits, recorder, watch
from workers.drain import Drain
from workers.lease import Lease
from workers.recorder import Recorder
from workers.spool import Spool
from workers.supervisor import supervise

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.process]
FAKE = Path(__file__).with_name("fake_trainer.py")


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(settings, "DATA_DIR", tmp_path)
    yield
    left = list((tmp_path / "workers" / "trainers").glob("*"))
    assert left == [], "a note of a trainer was left"


def claimed(run: Run) -> Lease:
    found = lease.claim(run.id, "worker@here")
    assert found is not None
    return found


def work(run: Run, scenario: str, told_to_leave: Callable[[], int] = lambda: 0) -> Run:
    command = (sys.executable, "-c", _LAUNCH, scenario)
    supervise(claimed(run), told_to_leave=told_to_leave, command=command)
    run.refresh_from_db()
    return run


# `-m` would put the working directory on the path; a script's own folder is of no use here.
_LAUNCH = f"import runpy, sys; sys.path.insert(0, '.'); runpy.run_path({str(FAKE)!r}, run_name='__main__')"


def in_background(run: Run, scenario: str, told_to_leave: Callable[[], int] = lambda: 0) -> threading.Thread:
    held = claimed(run)

    def body() -> None:
        supervise(held, told_to_leave=told_to_leave, command=(sys.executable, "-c", _LAUNCH, scenario))

    thread = threading.Thread(target=body)
    thread.start()
    return thread


def until(condition: Callable[[], bool], seconds: float = 15) -> None:
    assert processes.wait_until(condition, seconds), "it did not happen in time"


def trainer_of(run: Run) -> processes.Identity:
    """The running trainer, found by its mark."""
    marked: list[processes.Identity] = []

    def found() -> bool:
        for pid in processes.pids():
            try:
                environment = Path(f"/proc/{pid}/environ").read_bytes()
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if f"{child.MARK}={run.id}-".encode() in environment and b"runpy" in words:
                identity = processes.Identity.of(pid)
                if identity is not None:
                    marked.append(identity)
        return bool(marked)

    until(found)
    return marked[0]


def _data(run: Run) -> Path:
    return Path(settings.DATA_DIR) / "runs" / str(run.id)


def steps(run: Run) -> int:
    return Run.objects.values_list("step", flat=True).get(id=run.id)


def kinds(run: Run) -> list[str]:
    events = Event.objects.filter(run=run).order_by("seq")
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    return [e.body["status"] if e.kind == "status" else e.kind for e in events]


def test_run_goes_from_claim_to_end() -> None:
    run = work(make_run(), "three steps")
    assert [kind for kind in kinds(run) if kind != "running"] == [
        *("queued", "starting", "started", "metrics", "metrics", "metrics", "finished", "succeeded")
    ]
    assert "running" in kinds(run)
    assert (run.status, run.step, run.reason) == ("succeeded", 3, "All 3 steps are done.")
    assert (run.lease_until, run.lease_owner) == (None, "")
    assert list(Point.objects.filter(run_id=run.id).order_by("seq").values_list("value", flat=True)) == [
        0.1,
        0.2,
        0.3,
    ]
    attempt = Attempt.objects.get(run=run)
    assert (attempt.outcome, attempt.recorded_through) == ("succeeded", 5)
    assert not (_data(run) / "attempt-1" / "spool").exists()


def test_child_gets_the_resolved_model_path() -> None:
    ModelSource.objects.create(slug="mine", name="Mine", path="/models/mine")
    config = RunConfig.model_validate({"model": {"path": "mine"}})
    run = work(make_run(run_config=config), "three steps")
    assert Event.objects.get(run=run, kind="started").body["versions"] == {"model": "/models/mine"}


def test_unknown_model_fails_with_a_sentence() -> None:
    run = make_run(run_config=RunConfig.model_validate({"model": {"path": "gone"}}))
    run = work(run, "three steps")
    assert run.status == "failed"
    assert "'gone' is not known any more" in run.reason


def test_config_of_another_version_fails_with_a_sentence() -> None:
    run = make_run()
    Run.objects.filter(id=run.id).update(config=run.config | {"new_section": {}})
    run = work(run, "three steps")
    assert run.status == "failed"
    assert "new_section" in run.reason


@pytest.mark.parametrize(
    ("scenario", "reason"),
    [
        ("says it failed", "The loss became NaN at step 1."),
        ("traceback", "The trainer failed: ValueError: seed is odd"),
        ("out of memory", "Out of memory (host): "),
        ("leaves without a word", "The trainer left without saying how it went."),
        ("broken event", "The trainer wrote an event that cannot be read: metrics.values"),
    ],
)
def test_every_death_of_the_trainer_fails_the_run_with_a_sentence(scenario: str, reason: str) -> None:
    run = work(make_run(), scenario)
    assert run.status == "failed"
    assert reason in run.reason
    assert run.ended_at is not None
    assert Attempt.objects.get(run=run).outcome == "failed"
    kinds(run)


@pytest.mark.parametrize(
    ("scenario", "what", "where"),
    [
        ("segfault", "Its trainer was ended by signal 11 (SIGSEGV)", "after step 1"),
        ("killed", "Its trainer was ended by signal 9 (SIGKILL)", "after step 1"),
        ("half a line", "Its trainer was ended by signal 9 (SIGKILL)", "before its first step"),
    ],
)
def test_trainer_that_a_signal_ended_gets_another_attempt_and_no_third(
    scenario: str, what: str, where: str
) -> None:
    run = work(make_run(), scenario)
    assert (run.status, run.restarts, run.lease_until) == ("recovering", 1, None)
    assert run.reason == f"{what} {where}; a free worker goes on with it after 10 s."
    first = Attempt.objects.get(run=run)
    assert (first.outcome, first.reason) == ("died", f"{what} {where}.")
    Run.objects.filter(id=run.id).update(not_before=None)
    run = work(run, scenario)
    assert run.status == "failed"
    assert run.reason.startswith(f"{what} 2 times at the same place, {where}. ")
    assert run.reason.endswith(TROUBLES["crash loop"].do)
    kinds(run)


def test_after_one_process_had_no_memory_the_next_attempt_begins_with_half_the_micro_batch() -> None:
    values = RunConfig().model_dump(mode="json")
    values["training"] |= {"steps": 2, "problems_per_step": 4}
    values["evaluation"] |= {"every_steps": 0, "problems": 2}
    values["resources"] |= {"processes": 2}
    run = make_run(run_config=RunConfig.model_validate(values))

    def work_with(most_tokens: int) -> Run:
        command = (sys.executable, "-m", "tests.workers.short_of_memory", str(most_tokens))
        supervise(claimed(run), told_to_leave=lambda: 0, command=command)
        run.refresh_from_db()
        return run

    assert work_with(100).status == "queued"
    told = re.match(
        r"Process 2 of 2 \(rank 1\): out of memory \(GPU\) while .* with micro-batches of (\d+) tokens; "
        r"the run goes on from its last checkpoint with micro-batches of (\d+) tokens\. No step was ",
        run.reason,
    )
    assert told is not None, run.reason
    tried, smaller = map(int, told.groups())
    assert smaller == tried // 2
    first = Attempt.objects.get(run=run)
    assert (first.outcome, first.microbatch_tokens) == ("preempted", smaller)

    assert work_with(tried - 1).status == "succeeded", run.reason
    said = Event.objects.get(run=run, kind="log", body__message__startswith="Memory ran out")
    assert said.body["message"].endswith(f": this one begins with micro-batches of {smaller} tokens.")


SHORT = f"""
import sys
if "--microbatch-tokens" in sys.argv:
    sys.exit("OutOfRoomError: tried 512 and 256")
sys.stderr.write("RankError: {BeginSmallerError("Out of memory", 256)}")
sys.exit({BEGIN_SMALLER})
"""


def test_a_retry_after_both_sizes_failed_begins_with_the_config_s_again() -> None:
    run = make_run()

    def attempt() -> str:
        supervise(claimed(run), command=(sys.executable, "-c", SHORT))
        run.refresh_from_db()
        return run.status

    assert [attempt(), attempt()] == ["queued", "failed"]
    assert "tried 512 and 256" in run.reason
    control(run, run.created_by, Action.RETRY)
    run.refresh_from_db()
    assert [attempt(), attempt()] == ["queued", "failed"]


def test_program_that_cannot_be_started_fails_the_run() -> None:
    run = make_run()
    supervise(claimed(run), command=("/does/not/exist",))
    run.refresh_from_db()
    assert run.status == "failed"
    assert "/does/not/exist" in run.reason


def test_endless_line_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "MAX_LINE_BYTES", 4 * 2**20)
    run = work(make_run(), "endless line")
    assert run.status == "failed"
    assert "a line of more than" in run.reason


def test_stray_prints_are_kept_up_to_a_limit() -> None:
    run = work(make_run(), "stray prints")
    logs = [e.body["message"] for e in Event.objects.filter(run=run, kind="log").order_by("seq")]
    assert run.status == "succeeded"
    assert len(logs) == limits.MAX_STRAY_LINES + 1
    assert logs[0] == "The trainer printed a line that is no event: Loading weights: 0%"
    assert logs[-1] == "The trainer printed 3 more lines that are no events."


def test_odd_text_and_numbers_are_stored() -> None:
    run = work(make_run(), "odd text")
    assert run.status == "succeeded"
    assert (
        Event.objects.get(run=run, kind="log").body["message"] == "a\u2400b \ufffd <script>alert(1)</script>"
    )
    assert str(Point.objects.get(run_id=run.id).value) == "nan"


def test_trainer_that_stays_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "FINISHED_GRACE_SECONDS", 0.5)
    run = work(make_run(), "stays after finishing")
    assert run.status == "succeeded"


def test_what_the_trainer_started_is_ended_too() -> None:
    run = work(make_run(), "leaves a child behind")
    assert run.status == "succeeded"
    for pid in processes.pids():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        assert f"{child.MARK}={run.id}-".encode() not in environment


def test_three_thousand_events_arrive_in_order() -> None:
    run = work(make_run(), "many events")
    values = Point.objects.filter(run_id=run.id).order_by("seq").values_list("step", flat=True)
    assert list(values) == list(range(1, 3001))
    kinds(run)


def test_stop_lets_the_trainer_save_and_keeps_everything() -> None:
    run = make_run()
    thread = in_background(run, "polite")
    until(lambda: steps(run) >= 3)
    asked = time.monotonic()
    control(run, run.created_by, Action.STOP)
    thread.join()
    seconds = time.monotonic() - asked
    run.refresh_from_db()
    assert run.status == "stopped"
    assert seconds < 5
    assert run.reason == f"Stopped by {run.created_by.username} after step {run.step}."
    assert Checkpoint.objects.get(run=run).step == run.step
    assert Point.objects.filter(run_id=run.id).count() == run.step
    assert "stopping" in kinds(run)
    assert kinds(run)[-3:] == ["checkpoint", "finished", "stopped"]


def test_trainer_that_does_not_listen_is_ended_after_its_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "STOP_GRACE_SECONDS", 1)
    run = make_run()
    thread = in_background(run, "deaf")
    until(lambda: steps(run) >= 3)
    control(run, run.created_by, Action.STOP)
    thread.join(10)
    run.refresh_from_db()
    assert run.status == "stopped"
    assert run.reason.endswith("The trainer did not stop within 1 s and was ended; no checkpoint.")
    assert Point.objects.filter(run_id=run.id).count() == run.step


def test_paused_run_goes_on_from_where_it_was_paused() -> None:
    run = make_run()
    thread = in_background(run, "polite")
    until(lambda: steps(run) >= 3)
    trainer = trainer_of(run)
    control(run, run.created_by, Action.PAUSE)
    thread.join()
    run.refresh_from_db()
    name, saved = run.created_by.username, run.step
    assert (run.status, run.reason, run.ended_at) == ("paused", f"Paused by {name} after step {saved}.", None)
    assert (run.wish, run.lease_until, trainer.is_alive()) == ("", None, False)
    assert Attempt.objects.get(run=run).outcome == "paused"
    told = Event.objects.filter(run=run, body__has_key="wish").order_by("seq").values_list("body", flat=True)
    assert [(body["wish"], body["wish_is"]) for body in told] == [
        ("pause", "requested"),
        ("pause", "acknowledged"),
    ]
    assert lease.claim(run.id, "eager") is None  # it waits for a person

    control(run, run.created_by, Action.RESUME)
    thread = in_background(run, "polite")
    until(lambda: steps(run) >= saved + 2)
    control(run, run.created_by, Action.STOP)
    thread.join()
    attempt = Attempt.objects.get(run=run, epoch=2)
    assert (attempt.resumed_from_step, attempt.last_step) == (saved, steps(run))
    assert not Point.objects.filter(run_id=run.id, superseded=True).exists()


@pytest.mark.parametrize("is_frozen", [False, True])
def test_stop_now_ends_a_trainer_that_is_stuck(is_frozen: bool) -> None:
    run = make_run()
    thread = in_background(run, "deaf")
    until(lambda: steps(run) >= 3)
    trainer = trainer_of(run)
    if is_frozen:
        os.kill(trainer.pid, signal.SIGSTOP)
    control(run, run.created_by, Action.STOP)  # is patient with it ...
    until(lambda: Run.objects.get(id=run.id).wish_seen_at is not None)
    assert thread.is_alive()
    control(run, run.created_by, Action.STOP_NOW)  # ... and this one is not
    thread.join(10)
    run.refresh_from_db()
    assert (run.status, trainer.is_alive()) == ("stopped", False)
    assert run.reason.endswith("Its trainer was ended at once; no checkpoint.")


def test_stop_now_ends_the_trainer_though_the_thread_that_reads_it_is_stuck(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stuck = threading.Event()
    monkeypatch.setattr(watch.Recording, "sync", lambda *_, **__: stuck.wait(30))
    run = make_run()
    thread = in_background(run, "deaf")
    trainer = trainer_of(run)
    control(run, run.created_by, Action.STOP_NOW)
    until(lambda: not trainer.is_alive() or _is_zombie(trainer.pid))
    Run.objects.filter(id=run.id).update(wish_at=Now() - timedelta(seconds=60))
    monkeypatch.setattr(sweeper, "LEASE_SECONDS", 0)
    sweeper.sweep()
    run.refresh_from_db()
    assert run.status == "stopped"
    assert "its worker did not end it in 15 s" in run.reason
    stuck.set()
    thread.join()
    run.refresh_from_db()
    assert run.status == "stopped"


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_worker_that_is_told_twice_does_not_wait_for_the_trainer() -> None:
    run = make_run()
    told = [0]
    thread = in_background(run, "deaf", lambda: told[0])
    until(lambda: steps(run) >= 3)
    told[0] = 1
    time.sleep(0.5)
    assert thread.is_alive()
    told[0] = 2
    thread.join(10)
    run.refresh_from_db()
    assert (run.status, Attempt.objects.get(run=run).outcome) == ("queued", "preempted")


def test_last_words_of_an_attempt_end_nothing_after_somebody_took_the_run_up_again() -> None:
    run = make_run()
    leave_behind(run, [started(), metrics(1, reward__mean=0.5), finished("stopped", step=1)])
    Run.objects.filter(id=run.id).update(status="paused")  # as the sweeper does with a pause that is lost
    run.refresh_from_db()
    control(run, run.created_by, Action.RESUME)
    run = work(run, "three steps")
    assert (run.status, run.step) == ("succeeded", 3)
    assert Attempt.objects.get(run=run, epoch=1).recorded_through == 3


def test_retried_run_goes_on_in_the_same_run() -> None:
    run = work(make_run(), "says it failed")
    seq = run.last_seq
    control(run, run.created_by, Action.RETRY)
    run = work(run, "three steps")
    assert (run.status, run.restarts) == ("succeeded", 0)
    assert run.last_seq > seq
    kinds(run)
    assert list(Attempt.objects.filter(run=run).order_by("epoch").values_list("outcome", flat=True)) == [
        "failed",
        "succeeded",
    ]


def test_fork_begins_with_a_checkpoint_of_another_run() -> None:
    parent = make_run()
    thread = in_background(parent, "polite")
    until(lambda: steps(parent) >= 3)
    control(parent, parent.created_by, Action.STOP)
    thread.join()
    saved = Checkpoint.objects.get(run=parent)
    config = RunConfig.model_validate({"training": {"steps": 10_000}})
    fork_of = partial(fork, parent, parent.created_by, saved.id, config)
    new = fork_of("first")
    thread = in_background(new, "polite")
    until(lambda: steps(new) >= saved.step + 2)
    control(new, new.created_by, Action.STOP)
    thread.join()
    assert Attempt.objects.get(run=new).resumed_from_step == saved.step
    shown = Point.objects.filter(run_id=new.id).order_by("seq").values_list("step", flat=True)
    assert list(shown) == list(range(saved.step + 1, steps(new) + 1))

    second = fork_of("second")
    folder = _data(parent) / saved.path
    folder.rename(folder.with_name("gone"))
    work(second, "polite")
    second.refresh_from_db()
    assert second.status == "paused"
    assert f"The checkpoint of step {saved.step} that this fork begins with is not on worker" in second.reason


def test_checkpoint_that_was_parked_by_a_killed_trainer_is_found_again() -> None:
    run = make_run()
    thread = in_background(run, "polite")
    until(lambda: steps(run) >= 3)
    control(run, run.created_by, Action.PAUSE)
    thread.join()
    saved = Checkpoint.objects.get(run=run)
    folder = _data(run) / saved.path
    folder.rename(folder.with_name(f"{folder.name}.old-12345678"))
    run.refresh_from_db()
    control(run, run.created_by, Action.RESUME)
    work(run, "three steps")
    assert Attempt.objects.get(run=run, epoch=2).resumed_from_step == saved.step


def test_worker_that_leaves_gives_the_run_back_and_it_goes_on() -> None:
    run = make_run()
    leave = threading.Event()
    thread = in_background(run, "polite", leave.is_set)
    until(lambda: steps(run) >= 3)
    leave.set()
    thread.join()
    run.refresh_from_db()
    assert (run.status, run.ended_at) == ("queued", None)
    assert Attempt.objects.get(run=run, epoch=1).outcome == "preempted"
    saved = Checkpoint.objects.get(run=run).step

    leave.clear()
    thread = in_background(run, "polite", leave.is_set)
    until(lambda: steps(run) >= saved + 2)
    control(run, run.created_by, Action.STOP)
    thread.join()
    run.refresh_from_db()
    assert run.status == "stopped"
    attempt = Attempt.objects.get(run=run, epoch=2)
    assert attempt.resumed_from_step == saved
    shown = Point.objects.filter(run_id=run.id, superseded=False).order_by("seq")
    assert list(shown.values_list("step", flat=True)) == list(range(1, run.step + 1))


def test_stop_that_nobody_asked_for_gives_the_run_back() -> None:
    run = make_run()
    thread = in_background(run, "polite")
    until(lambda: steps(run) >= 2)
    os.kill(trainer_of(run).pid, signal.SIGTERM)
    thread.join()
    run.refresh_from_db()
    assert run.status == "queued"


def test_killed_trainer_keeps_what_it_said() -> None:
    run = make_run()
    thread = in_background(run, "deaf")
    until(lambda: steps(run) >= 3)
    os.kill(trainer_of(run).pid, signal.SIGKILL)
    thread.join()
    run.refresh_from_db()
    assert run.status == "recovering"
    assert "signal 9" in run.reason
    assert Point.objects.filter(run_id=run.id).count() == run.step >= 3


def test_lost_lease_ends_the_trainer_and_writes_nothing_more() -> None:
    run = make_run()
    thread = in_background(run, "deaf")
    until(lambda: steps(run) >= 2)
    trainer = trainer_of(run)
    Run.objects.filter(id=run.id).update(status="recovering", lease_until=None, not_before=None)
    # Before the worker looks again somebody else has it.
    other = lease.claim(run.id, "other")
    while other is None:
        Run.objects.filter(id=run.id).update(status="recovering", lease_until=None, not_before=None)
        other = lease.claim(run.id, "other")
    before = Run.objects.values_list("last_seq", "lease_epoch").get(id=run.id)
    until(lambda: not trainer.is_alive())
    thread.join()
    assert Run.objects.values_list("last_seq", "lease_epoch").get(id=run.id) == before
    assert Attempt.objects.get(run=run, epoch=1).outcome == ""


def test_database_away_loses_nothing() -> None:
    run = make_run()
    thread = in_background(run, "polite")
    until(lambda: steps(run) >= 2)
    cut = time.monotonic()
    # Every session of the workers is cut again and again for two seconds.
    while time.monotonic() - cut < 2:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        time.sleep(0.1)
    at = steps(run)
    until(lambda: steps(run) > at + 5)
    control(run, run.created_by, Action.STOP)
    thread.join()
    run.refresh_from_db()
    assert run.status == "stopped"
    shown = Point.objects.filter(run_id=run.id).order_by("seq").values_list("step", flat=True)
    assert list(shown) == list(range(1, run.step + 1))
    kinds(run)


def test_trees_that_grew_are_shown_though_the_next_phase_has_begun(tmp_path: Path) -> None:
    run = make_run()
    drain = Drain(Spool(tmp_path / "spool"), Recorder(claimed(run)))
    tree = GrowingTree(problem_id="p", parent=[-1, 0], tokens=[0, 3], finish=[0, 1])
    drain.show(Progress(time=1.0, step=1, phase="sampling", done=2, total=2, growing=[tree]))
    drain.show(Progress(time=1.0, step=1, phase="verifying", done=0, total=9))
    drain._show_progress()
    assert GrowingTrees.objects.get(run=run).trees == [tree.model_dump()]
    run.refresh_from_db()
    assert run.phase == "verifying"


def leave_behind(run: Run, events: list[Any], torn: bytes = b"") -> Path:
    """What a worker that died in its first attempt leaves on the disk. Returns the spool."""
    claimed(run)
    folder = _data(run) / "attempt-1"
    folder.mkdir(parents=True)
    spool = Spool(folder / "spool")
    for event in events:
        spool.append(event.model_dump_json().encode())
    spool.close()
    with spool.path.open("ab") as file:
        file.write(torn)
    Run.objects.filter(id=run.id).update(status="recovering", lease_until=None)
    return spool.path


def test_spool_of_a_dead_attempt_is_stored_by_the_next() -> None:
    run = make_run()
    said = [started(), metrics(1, reward__mean=0.5), metrics(2, reward__mean=0.6)]
    spool = leave_behind(run, said, torn=b"\x99\x00\x00\x00torn")
    run = work(run, "three steps")
    assert run.status == "succeeded"
    # The second attempt started over, so what the first one said is kept and hidden.
    points = Point.objects.filter(run_id=run.id).order_by("seq").values_list("step", "superseded")
    assert list(points) == [(1, True), (2, True), (1, False), (2, False), (3, False)]
    assert not spool.exists()
    (said,) = Event.objects.filter(run=run, kind="log").values_list("body", flat=True)
    assert said["message"].startswith(
        "The last event of attempt 1 was cut off by its end and dropped (8 bytes); "
    )
    assert "the 3 before it are stored" in said["message"]
    kinds(run)


def test_spool_that_is_damaged_in_the_middle_gives_what_came_before_and_is_kept() -> None:
    run = make_run()
    spool = leave_behind(run, [started(), *(metrics(n, reward__mean=n / 10) for n in (1, 2, 3))])
    content = bytearray(spool.read_bytes())
    content[-200] ^= 1
    spool.write_bytes(content)
    run = work(run, "three steps")
    assert run.status == "succeeded"
    stored = Attempt.objects.get(run=run, epoch=1).recorded_through
    assert 1 <= stored < 4
    (said,) = Event.objects.filter(run=run, kind="log").values_list("body", flat=True)
    assert said["level"] == "warning"
    assert f"bytes after event {stored} of its spool cannot be read" in said["message"]
    assert spool.with_name("spool.damaged").read_bytes() == content  # for a look: it may matter
    kinds(run)


def test_checkpoint_that_waited_in_a_dead_attempts_spool_is_the_one_to_go_on_from() -> None:
    """It was finished while the database was away."""
    run = make_run()
    said = [started(), metrics(1, reward__mean=0.5), metrics(2, reward__mean=0.6), checkpoint(2)]
    leave_behind(run, [*said, metrics(3, reward__mean=0.7)])
    folder = _data(run) / "attempt-1" / "checkpoints" / "step-2"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"files": {}}')
    half = folder.with_name("step-3.tmp-0a0a0a0a")
    half.mkdir()
    run = work(run, "three steps")
    assert run.status == "succeeded"
    assert Attempt.objects.get(run=run, epoch=2).resumed_from_step == 2
    points = Point.objects.filter(run_id=run.id).order_by("seq").values_list("step", "superseded")
    assert list(points) == [(1, False), (2, False), (3, True), (3, False)]
    assert not half.exists()


def test_spool_that_says_something_else_than_before_is_set_aside() -> None:
    run = make_run()
    spool = leave_behind(run, [started(), metrics(1, reward__mean=0.5), metrics(2, reward__mean=0.6)])
    Attempt.objects.filter(run=run).update(recorded_through=2, recorded_checksum=1)
    run = work(run, "three steps")
    assert run.status == "succeeded"
    assert not spool.exists()
    (warning,) = [e.body["message"] for e in Event.objects.filter(run=run, kind="log")]
    assert "records 1 to 2 of attempt 1 came again with other content" in warning


def test_dead_attempt_that_had_finished_needs_no_trainer() -> None:
    run = make_run()
    leave_behind(run, [started(), metrics(1, reward__mean=0.5), finished(step=1, reason="Done before.")])
    run = work(run, "deaf")
    assert (run.status, run.reason) == ("succeeded", "Done before.")


def test_full_disk_pauses_the_run_and_it_goes_on_when_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Spool.append

    def append(self: Spool, payload: bytes) -> int:
        if self.count >= 5:
            raise OSError(28, "No space left on device")
        return real(self, payload)

    monkeypatch.setattr(Spool, "append", append)
    run = work(make_run(), "polite")
    assert (run.status, run.lease_until, run.ended_at) == ("paused", None, None)
    assert run.reason == (
        "Disk full: the worker could not keep the run's events (No space left on device); all that it had "
        "kept is stored. Last complete step: 4; no checkpoint. Make room on the worker's disk, then resume."
    )
    assert (_data(run).stat().st_mode & 0o777) == 0o700
    assert Point.objects.filter(run_id=run.id).count() == 4
    assert kinds(run)[-2:] == ["finished", "paused"]
    monkeypatch.setattr(Spool, "append", real)
    control(run, run.created_by, Action.RESUME)
    assert work(run, "three steps").status == "succeeded"
    kinds(run)


def test_full_spool_makes_the_trainer_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MAX_SPOOL_BYTES", 1)
    run = work(make_run(), "many events")
    assert run.status == "succeeded"
    assert Point.objects.filter(run_id=run.id).count() == 3000


def test_defect_of_ours_does_not_leave_the_run_running(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("workers.supervisor.leftovers.write", broken)
    run = make_run()
    with pytest.raises(KeyError):
        work(run, "deaf")
    run.refresh_from_db()
    assert run.status == "failed"
    assert "KeyError" in run.reason
    connections.close_all()


def test_defect_in_the_drain_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr(recorder.Recorder, "_add", broken)
    run = work(make_run(), "polite")
    assert run.status == "failed"
    assert "KeyError" in run.reason


def test_defect_in_the_heartbeat_ends_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr(lease, "read_wish", broken)
    run = work(make_run(), "deaf")
    # The lease runs out and the sweeper brings the run back.
    assert run.status in ("starting", "running")
    assert run.lease_until is not None


def test_rows_that_cannot_be_stored_fail_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise IntegrityError("series_name_is_unique")

    monkeypatch.setattr(recorder, "_copy_rows", refuse)
    run = work(make_run(), "polite")
    assert run.status == "failed"
    assert "could not be stored: IntegrityError" in run.reason
    assert Run.objects.filter(id=run.id, ended_at__lte=Now()).exists()
