from __future__ import annotations

import math
from typing import Any

import psycopg
import pytest
from django.db import OperationalError, connection, connections
from django.db.models.functions import Now
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from tests.workers.factories import (
    NAN,
    checkpoint,
    finished,
    log,
    make_run,
    metrics,
    numbered,
    started,
    tree,
)
from trainer.events import GrowingTree, Occupancy, PackingChecked, Progress
from webapp import limits
from webapp.runs.models import Attempt, Checkpoint, Event, Point, Run, Series
from webapp.trees.models import GrowingTrees, StoredTree
from workers import lease, recorder
from workers.lease import Lease, LeaseLostError
from workers.output import Preempted, moment
from workers.recorder import ConflictError, GapError, Recorder

pytestmark = pytest.mark.django_db

STREAM: list[Any] = [
    started(),
    metrics(0, eval__pass1_sampled=0.25),
    metrics(1, reward__mean=0.5, policy__loss=NAN),
    tree(1, 0),
    tree(1, 1, value=NAN, advantage_min=NAN),
    log("hello"),
    metrics(2, reward__mean=0.75, policy__loss=-1.5),
    tree(2, 0),
    checkpoint(2),
    metrics(3, reward__mean=0.25, policy__loss=math.inf),
    finished(),
]


def claimed(run: Run) -> Lease:
    found = lease.claim(run.id, "w")
    assert found is not None
    return found


def content(run: Run) -> dict[str, Any]:
    """Everything the run holds, as plain values; nothing that a clock or an id decided."""
    return {
        "events": list(
            Event.objects.filter(run=run).order_by("seq").values_list("seq", "epoch", "kind", "step", "body")
        ),
        "points": sorted(
            (name, seq, step, repr(value), superseded)
            for name, seq, step, value, superseded in Point.objects.filter(run_id=run.id).values_list(
                "series__name", "seq", "step", "value", "superseded"
            )
        ),
        "trees": list(
            StoredTree.objects.filter(run=run)
            .order_by("seq")
            .values_list("seq", "epoch", "step", "index", "value", "advantage_min", "n_nodes", "superseded")
        ),
        "series": {
            row[0]: tuple(map(repr, row[1:]))
            for row in Series.objects.filter(run=run).values_list(
                "name", "n_points", "first_value", "last_step", "last_value", "minimum", "maximum"
            )
        },
        "checkpoints": list(
            Checkpoint.objects.filter(run=run).values_list("epoch", "step", "path").order_by("seq")
        ),
        "run": Run.objects.values("status", "reason", "last_seq", "step").get(id=run.id),
    }


def test_stream_becomes_rows() -> None:
    run = make_run()
    held = claimed(run)
    recorded = Recorder(held).record(numbered(STREAM))
    found = content(run)
    # 1 queued, 2 starting, 3..13 the stream, then "running" and "succeeded".
    assert [row[0] for row in found["events"]] == list(range(1, 16))
    assert [row[2] for row in found["events"]][2:13] == [event.kind for event in STREAM]
    assert [row[4].get("status") for row in found["events"][13:]] == ["running", "succeeded"]
    assert found["events"][5][4] == {"index": 0, "problem_id": "problem 0"}
    assert found["points"] == [
        ("eval/pass1_sampled", 4, 0, "0.25", False),
        ("policy/loss", 5, 1, "nan", False),
        ("policy/loss", 9, 2, "-1.5", False),
        ("policy/loss", 12, 3, "inf", False),
        ("reward/mean", 5, 1, "0.5", False),
        ("reward/mean", 9, 2, "0.75", False),
        ("reward/mean", 12, 3, "0.25", False),
    ]
    assert found["trees"] == [
        (6, 1, 1, 0, 0.5, -2.0, 7, False),
        (7, 1, 1, 1, None, None, 7, False),
        (10, 1, 2, 0, 0.5, -2.0, 7, False),
    ]
    # name: n_points, first, last step, last, minimum, maximum
    assert found["series"] == {
        "eval/pass1_sampled": ("1", "0.25", "0", "0.25", "0.25", "0.25"),
        "reward/mean": ("3", "0.5", "3", "0.25", "0.25", "0.75"),
        "policy/loss": ("3", "nan", "3", "inf", "-1.5", "-1.5"),
    }
    assert found["checkpoints"] == [(1, 2, "attempt-1/checkpoints/step-2")]
    assert found["run"] == {
        "status": "succeeded",
        "reason": "All 3 steps are done.",
        "last_seq": 15,
        "step": 3,
    }
    run.refresh_from_db()
    assert run.checkpoint is not None
    assert run.checkpoint.step == 2
    assert run.ended_at is not None
    assert bytes(StoredTree.objects.filter(run=run).order_by("seq")[0].payload) == b"payload"
    assert (recorded.through, recorded.last_seq, recorded.ended) == (11, 15, True)


def test_tree_signals_are_columns_and_what_was_not_told_is_null() -> None:
    run = make_run()
    told = {
        "advantage_spread": 4.0, "max_entropy": 1.5, "mean_logprob": -0.5, "cliff": -0.25,
        "cliff_node": "2.1", "duplicate_share": 0.125, "grpo_flips": 0,
    }  # fmt: skip
    Recorder(claimed(run)).record(numbered([started(), tree(1, 0, **told), tree(1, 1)]))
    new, old = StoredTree.objects.filter(run=run).order_by("seq").values(*told)
    assert new == told
    assert old == dict.fromkeys(told)


def test_what_the_check_of_packing_found_is_an_event_with_its_numbers() -> None:
    run = make_run()
    found = PackingChecked(
        time=1001.0,
        step=1,
        gradient_difference=math.nan,
        loss_difference=1e-9,
        packed_tokens=10,
        flat_tokens=31,
    )
    Recorder(claimed(run)).record(numbered([started(), found]))
    row = Event.objects.get(run=run, kind="packing_checked")
    assert row.step == 1
    assert row.body == {
        "gradient_difference": "NaN",
        "loss_difference": 1e-9,
        "packed_tokens": 10,
        "flat_tokens": 31,
    }


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_split_replay_and_overlap_stores_the_same_once(data: st.DataObject) -> None:
    run = make_run()
    held = claimed(run)
    known, stream = 0, STREAM[:-1]
    while known < len(stream):
        first = data.draw(st.integers(1, known + 1))
        last = data.draw(st.integers(known + 1, len(stream)))
        # A restarted recorder knows nothing; a running one has its caches.
        Recorder(held).record(numbered(stream[first - 1 : last], first))
        known = last
    Recorder(held).record(numbered(stream))  # all of it once more

    other = make_run()
    Recorder(claimed(other)).record(numbered(stream))
    ours, theirs = content(run), content(other)
    # "running" stands where the batch with `started` ended, so numbers after it may shift by one.
    kinds = [[row[2:] for row in found["events"] if row[2] != "status"] for found in (ours, theirs)]
    assert kinds[0] == kinds[1]
    assert [row[0] for row in ours["events"]] == list(range(1, len(ours["events"]) + 1))
    for part in ("points", "trees"):
        assert [row[:1] + row[2:] if part == "points" else row[1:] for row in ours[part]] == [
            row[:1] + row[2:] if part == "points" else row[1:] for row in theirs[part]
        ]
    assert ours["series"] == theirs["series"]
    assert ours["run"] == theirs["run"]


def test_gap_is_refused_and_nothing_stored() -> None:
    run = make_run()
    held = claimed(run)
    Recorder(held).record(numbered(STREAM[:2]))
    before = content(run)
    with pytest.raises(GapError, match="record 4 follows 2"):
        Recorder(held).record(numbered(STREAM[3:5], 4))
    assert content(run) == before


def test_stale_recorder_is_refused_and_nothing_stored() -> None:
    run = make_run()
    old = claimed(run)
    Recorder(old).record(numbered(STREAM[:3]))
    Run.objects.filter(id=run.id).update(status="recovering", lease_until=None)
    claimed(run)
    before = content(run)
    with pytest.raises(LeaseLostError):
        Recorder(old).record(numbered(STREAM[3:], 4))
    assert content(run) == before


def test_half_a_transaction_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    held = claimed(run)
    before = content(run)
    real = recorder._copy_rows

    def break_at_trees(cursor: Any, table: str, *rest: Any) -> None:
        if table == "arborist_tree":
            raise psycopg.OperationalError("server closed the connection")
        real(cursor, table, *rest)

    monkeypatch.setattr(recorder, "_copy_rows", break_at_trees)
    ours = Recorder(held)
    with pytest.raises(psycopg.OperationalError):
        ours.record(numbered(STREAM))
    assert content(run) == before
    monkeypatch.undo()
    ours.record(numbered(STREAM))
    assert len(content(run)["points"]) == 7


@pytest.mark.django_db(transaction=True)
def test_a_database_that_fails_while_rows_are_copied_is_away_and_no_defect() -> None:
    """As when its disk is full, or it is stopped just then: the drain waits for Django's errors only."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()

    def rows() -> Any:
        yield (1, 1, 1, "log", None, moment(0.0), Jsonb({}))
        with psycopg.connect(**_address(), autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s)", [pid])
        yield (1, 2, 1, "log", None, moment(0.0), Jsonb({}))

    with pytest.raises(OperationalError), connection.cursor() as cursor:
        recorder._copy_rows(cursor, "arborist_event", recorder._EVENT, recorder._EVENT_TYPES, rows())
    connection.close()


def _address() -> dict[str, Any]:
    parameters = connection.get_connection_params()
    return {name: parameters[name] for name in ("host", "dbname", "user") if parameters.get(name)}


def test_dead_attempt_is_drained_under_the_new_epoch() -> None:
    run = make_run()
    old = claimed(run)
    Recorder(old).record(numbered(STREAM[:3]))
    Run.objects.filter(id=run.id).update(status="recovering", lease_until=None)
    new = claimed(run)
    Recorder(new, attempt_epoch=1).record(numbered(STREAM[:9]))
    found = content(run)
    assert [row[0] for row in found["events"]] == list(range(1, len(found["events"]) + 1))
    assert [row[1] for row in found["events"] if row[2] == "tree"] == [1, 1, 1]
    assert found["checkpoints"] == [(1, 2, "attempt-1/checkpoints/step-2")]
    assert Attempt.objects.get(run=run, epoch=1).recorded_through == 9
    assert Attempt.objects.get(run=run, epoch=2).recorded_through == 0


def test_dead_attempt_that_had_finished_ends_the_run() -> None:
    run = make_run()
    claimed(run)
    Run.objects.filter(id=run.id).update(status="recovering", lease_until=None)
    new = claimed(run)
    assert Recorder(new, attempt_epoch=1).record(numbered(STREAM)).ended
    run.refresh_from_db()
    assert run.status == "succeeded"


def test_resumed_attempt_hides_what_it_makes_again() -> None:
    run = make_run()
    old = claimed(run)
    # Steps 1 to 3 with a checkpoint after step 2, then the worker is lost.
    Recorder(old).record(numbered([*STREAM[:10], tree(3, 0)]))
    Run.objects.filter(id=run.id).update(status="recovering", lease_until=None)
    new = claimed(run)
    Recorder(new).record(
        numbered(
            [started(2, resumed_from="step-2"), metrics(3, reward__mean=0.5, policy__loss=2.0), tree(3, 0)]
        )
    )
    found = content(run)
    hidden = [(name, step) for name, _, step, _, superseded in found["points"] if superseded]
    assert hidden == [("policy/loss", 3), ("reward/mean", 3)]
    assert [(step, superseded) for _, _, step, _, _, _, _, superseded in found["trees"]] == [
        (1, False),
        (1, False),
        (2, False),
        (3, True),
        (3, False),
    ]
    assert found["series"]["reward/mean"] == ("3", "0.5", "3", "0.5", "0.5", "0.75")
    assert found["series"]["policy/loss"] == ("3", "nan", "3", "2.0", "-1.5", "2.0")
    assert Attempt.objects.get(run=run, epoch=2).resumed_from_step == 2


def taken_again(run: Run) -> Lease:
    """The worker is lost, another one takes the run."""
    Run.objects.filter(id=run.id).update(status="recovering", lease_until=None)
    return claimed(run)


def shown(run: Run) -> list[tuple[int, int]]:
    """(step, epoch) of the points that are shown, in order."""
    epochs = dict(Event.objects.filter(run=run).values_list("seq", "epoch"))
    points = Point.objects.filter(run_id=run.id, superseded=False).order_by("seq").values_list("step", "seq")
    trees = StoredTree.objects.filter(run=run, superseded=False).order_by("seq").values_list("step", "epoch")
    found = [(step, epochs[seq]) for step, seq in points]
    assert list(trees) == found
    return found


def steps(first: int, last: int) -> list[Any]:
    return [e for step in range(first, last + 1) for e in (metrics(step, reward__mean=step / 8), tree(step))]


def test_history_is_what_the_checkpoint_reflects_wherever_the_run_goes_on() -> None:
    run = make_run()
    one = claimed(run)
    Recorder(one).record(numbered([started(), *steps(1, 2), checkpoint(2), *steps(3, 4), checkpoint(4)]))
    # On another machine there is no checkpoint: from the beginning.
    Recorder(taken_again(run)).record(numbered([started(), *steps(1, 3), checkpoint(3), *steps(4, 4)]))
    assert shown(run) == [(1, 2), (2, 2), (3, 2), (4, 2)]
    # On the first one again: what was hidden is the history now.
    from_one = started(4, "attempt-1/checkpoints/step-4")
    three = taken_again(run)
    Recorder(three).record(numbered([from_one, *steps(5, 5)]))
    assert shown(run) == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 3)]
    # Its newest one is damaged, so it goes on from an older one; then from what it saved itself.
    from_older = started(2, "attempt-1/checkpoints/step-2")
    Recorder(taken_again(run)).record(numbered([from_older, *steps(3, 3), checkpoint(3), *steps(4, 6)]))
    assert shown(run) == [(1, 1), (2, 1), (3, 4), (4, 4), (5, 4), (6, 4)]
    Recorder(taken_again(run)).record(numbered([started(3, "attempt-4/checkpoints/step-3"), *steps(4, 4)]))
    assert shown(run) == [(1, 1), (2, 1), (3, 4), (4, 5)]
    series = Series.objects.get(run=run)
    assert (series.n_points, series.last_step, series.last_value, series.maximum) == (4, 4, 0.5, 0.5)


def test_what_comes_late_is_kept_and_is_not_the_history() -> None:
    run = make_run()
    claimed(run)  # attempt 1 runs on a machine that is out of contact
    Recorder(taken_again(run)).record(numbered([started(), *steps(1, 3), checkpoint(3)]))
    current = Run.objects.values("step", "checkpoint").get(id=run.id)
    # Attempt 3 begins on that machine, and stores what attempt 1 had said, in two batches.
    three = taken_again(run)
    end = finished("failed", reason="The disk is full.")
    late = numbered([started(), *steps(1, 4), checkpoint(4), *steps(5, 5), end])
    Recorder(three, attempt_epoch=1).record(late[:5])
    recorded = Recorder(three, attempt_epoch=1).record(late)
    assert not recorded.ended
    assert shown(run) == [(1, 2), (2, 2), (3, 2)]
    assert Series.objects.get(run=run).last_step == 3
    assert Run.objects.values("step", "checkpoint").get(id=run.id) == current
    assert Checkpoint.objects.get(run=run, epoch=1).step == 4  # and one may go on from it
    Recorder(three).record(numbered([started(4, "attempt-1/checkpoints/step-4"), *steps(5, 5)]))
    assert shown(run) == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 3)]


def test_late_attempt_that_had_succeeded_is_the_history() -> None:
    run = make_run()
    claimed(run)
    Recorder(taken_again(run)).record(numbered([started(), *steps(1, 2)]))
    late = numbered([started(), *steps(1, 3), finished()])
    three = taken_again(run)
    Recorder(three, attempt_epoch=1).record(late[:4])
    assert Recorder(three, attempt_epoch=1).record(late).ended
    assert shown(run) == [(1, 1), (2, 1), (3, 1)]
    run.refresh_from_db()
    assert (run.status, run.step) == ("succeeded", 3)


def test_records_that_come_again_with_other_content_are_refused() -> None:
    run = make_run()
    ours = Recorder(claimed(run))
    ours.record(numbered(STREAM[:3]), [11, 22, 33])
    before = content(run)
    ours.record(numbered(STREAM[:3]), [11, 22, 33])  # the answer was lost: all of it once more
    ours.record(numbered(STREAM[:2]), [11, 22])
    with pytest.raises(ConflictError, match="records 1 to 3 of attempt 1 came again with other content"):
        ours.record(numbered([*STREAM[:2], log("other"), *STREAM[3:]]), [11, 22, 99, 100, *range(7)])
    assert content(run) == before
    ours.record(numbered(STREAM[2:], 3), list(range(33, 42)))
    assert content(run)["run"]["status"] == "succeeded"


def test_attempt_from_the_beginning_hides_all_before() -> None:
    run = make_run()
    Recorder(claimed(run)).record(numbered(STREAM[:5]))
    Run.objects.filter(id=run.id).update(status="recovering", lease_until=None)
    Recorder(claimed(run)).record(numbered([started(), metrics(0, eval__pass1_sampled=0.5)]))
    found = content(run)
    assert [row[-1] for row in found["trees"]] == [True, True]
    assert found["series"] == {
        "eval/pass1_sampled": ("1", "0.5", "0", "0.5", "0.5", "0.5"),
        "policy/loss": ("0", "None", "0", "None", "None", "None"),
        "reward/mean": ("0", "None", "0", "None", "None", "None"),
    }
    assert found["run"]["step"] == 0


def test_text_is_made_storable() -> None:
    # Half a surrogate pair cannot get this far: see test_output.
    run = make_run()
    Recorder(claimed(run)).record(
        numbered(
            [
                log("a\x00b <script>alert(1)</script>"),
                tree(1, prompt="p\x00", problem_id="i\x00"),
                finished("failed", reason="r\x00"),
            ]
        )
    )
    message = Event.objects.get(run=run, kind="log").body["message"]
    assert message == "a\u2400b <script>alert(1)</script>"
    stored = StoredTree.objects.get(run=run)
    assert (stored.prompt, stored.problem_id) == ("p\u2400", "i\u2400")
    assert Run.objects.get(id=run.id).reason == "r\u2400"


@pytest.mark.parametrize(("extra", "kept", "warned"), [(-1, 3, 0), (0, 4, 0), (1, 4, 1)])
def test_series_limit(monkeypatch: pytest.MonkeyPatch, extra: int, kept: int, warned: int) -> None:
    monkeypatch.setattr(recorder, "MAX_SERIES_PER_RUN", 4)
    assert limits.MAX_SERIES_PER_RUN == 1000
    run = make_run()
    ours = Recorder(claimed(run))
    ours.record(numbered([metrics(1, **{f"a__b{i}": 1.0 for i in range(4 + extra)})]))
    assert Series.objects.filter(run=run).count() == kept
    assert Event.objects.filter(run=run, kind="log").count() == warned
    # Names that are kept go on.
    ours.record(numbered([metrics(2, a__b0=2.0)], 2))
    assert Series.objects.get(run=run, name="a/b0").last_value == 2.0


def test_progress_moves_the_phase_without_an_event() -> None:
    run = make_run()
    held = claimed(run)
    progress = Progress(time=1.0, step=1, phase="sampling", done=3, total=48)
    Recorder(held).show(progress)
    run.refresh_from_db()
    assert (run.phase, run.phase_done, run.phase_total, run.last_seq) == ("sampling", 3, 48, 2)
    Run.objects.filter(id=run.id).update(lease_epoch=2)
    with pytest.raises(LeaseLostError):
        Recorder(held).show(progress)


def test_same_step_saved_twice_is_one_checkpoint() -> None:
    run = make_run()
    Recorder(claimed(run)).record(numbered([checkpoint(2), checkpoint(2, weights="e" * 64)]))
    saved = Checkpoint.objects.get(run=run)
    assert (saved.seq, saved.weights_sha256) == (4, "e" * 64)


def test_preempted_attempt_gives_the_run_back() -> None:
    run = make_run()
    held = claimed(run)
    record = Preempted(time=1.0, step=2, reason="The worker was told to stop.")
    assert Recorder(held).record(numbered([*STREAM[:9], record])).ended
    run.refresh_from_db()
    assert (run.status, run.step) == ("queued", 2)
    # Drained later, by the attempt that goes on, it means nothing any more.
    new = claimed(run)
    Attempt.objects.filter(run=run, epoch=1).update(recorded_through=9)
    Recorder(new, attempt_epoch=1).record(numbered([record], 10))
    run.refresh_from_db()
    assert run.status == "starting"


def test_stop_names_who_asked() -> None:
    run = make_run()
    held = claimed(run)
    Run.objects.filter(id=run.id).update(wish="stop", wish_at=Now(), wish_by=run.created_by)
    Recorder(held).record(numbered([started(), finished("stopped", step=2, reason="Stopped, as asked.")]))
    run.refresh_from_db()
    assert run.reason == f"Stopped by {run.created_by.username} after step 2."


@pytest.mark.django_db(transaction=True)
def test_commit_pokes() -> None:
    run = make_run()
    held = claimed(run)
    settings_dict = connection.settings_dict
    with psycopg.connect(
        host=settings_dict["HOST"], user=settings_dict["USER"], dbname=settings_dict["NAME"], autocommit=True
    ) as listener:
        listener.execute("LISTEN arborist_poke")
        Recorder(held).record(numbered(STREAM[:3]))
        pokes = [note.payload for note in listener.notifies(timeout=5, stop_after=1)]
    assert pokes == [f'{{"run": {run.id}, "project": {run.project_id}, "last_seq": 6}}']
    connections.close_all()


def test_forty_events_cost_few_queries(django_assert_max_num_queries: Any) -> None:
    run = make_run()
    ours = Recorder(claimed(run))
    ours.record(numbered([started()]))
    batch = [metrics(i, reward__mean=0.5) if i % 2 else tree(i) for i in range(40)]
    with django_assert_max_num_queries(12):
        ours.record(numbered(batch, 2))


def test_trees_that_grow_are_shown_and_are_no_event() -> None:
    run = make_run()
    recorder = Recorder(claimed(run))
    recorder.record(numbered([started()]))
    before = Run.objects.get(id=run.id).last_seq

    def told(step: int, trees: int) -> Progress:
        growing = [GrowingTree(problem_id="p", parent=[-1, 0], tokens=[0, 3], finish=[0, 1])] * trees
        busy = Occupancy(running=step, waiting=2, kv_use=0.1, cached_share=0.5) if step < 2 else None
        return Progress(
            time=1.0, step=step, phase="sampling", done=1, total=2, growing=growing, occupancy=busy
        )

    recorder.show(told(1, 2))
    assert GrowingTrees.objects.get(run=run).occupancy == {
        "running": 1, "waiting": 2, "kv_use": 0.1, "cached_share": 0.5,
    }  # fmt: skip
    assert [len(row.trees) for row in GrowingTrees.objects.filter(run=run)] == [2]
    recorder.show(told(2, 1))
    recorder.show(told(3, 0))  # says nothing of trees: what is known stays
    (row,) = GrowingTrees.objects.filter(run=run)
    assert (row.step, row.occupancy) == (2, None)
    assert row.trees == [
        {"problem_id": "p", "parent": [-1, 0], "tokens": [0, 3], "finish": [0, 1], "verdict": []}
    ]
    assert Run.objects.get(id=run.id).last_seq == before
    Run.objects.filter(id=run.id).update(lease_epoch=9)
    with pytest.raises(LeaseLostError):
        recorder.show(told(4, 1))
    assert GrowingTrees.objects.get(run=run).step == 2
