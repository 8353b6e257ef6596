"""The checker on a good history, and on histories that were forged to be bad: each forgery must be found, and
by the invariant that is about it.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.campaign.checker import MOVES, acknowledged, check, told_chain, unexcused
from tests.campaign.evidence import (
    CheckpointFound,
    EndedAttempt,
    EndedRun,
    Evidence,
    StoredEvent,
    Twin,
)
from tests.campaign.history import History, Line
from tests.campaign.watching import BlindError, Watcher

Story = tuple[list[Line], Evidence]
METRICS = {(step, "reward/mean"): float(step).hex() for step in (1, 2, 3)}
TREES = {(step, 0): f"tree {step}" for step in (1, 2, 3)}
WEIGHTS = {"model/model.safetensors": "w", "optimiser.safetensors": "o"}


def event(seq: int, epoch: int, kind: str, digest: str = "", status: str = "") -> StoredEvent:
    return StoredEvent(1, seq, epoch, kind, None, digest or f"digest {seq}", f"told {seq}", status)


def good() -> Story:
    """A run whose first worker was killed after two records of three, and which its second worker ended."""
    events = [
        event(1, 0, "status", status="queued"),
        event(2, 1, "status", status="starting"),
        event(3, 1, "started", "a1"),
        event(4, 1, "status", status="running"),
        event(5, 1, "metrics", "a2"),
        event(6, 1, "status", status="recovering"),
        event(7, 2, "status", status="starting"),
        event(8, 1, "metrics", "a3"),  # drained from the first attempt's spool
        event(9, 2, "started", "b1"),
        event(10, 2, "status", status="running"),
        event(11, 2, "metrics", "b2"),
        event(12, 2, "finished", "b3"),
        event(13, 2, "status", status="succeeded"),
    ]
    left = Evidence(
        runs=[EndedRun(1, "succeeded", 2, 13, 3, "twin", "", dict(METRICS), dict(TREES), dict(WEIGHTS))],
        attempts=[EndedAttempt(1, 1, 3, "lost"), EndedAttempt(1, 2, 4, "succeeded")],
        events=events,
        twins={"twin": Twin(dict(METRICS), dict(TREES), dict(WEIGHTS))},
        checkpoints=[CheckpointFound(1, "attempt-2/step-3", "", is_listed=True)],
    )
    chain = told_chain(events)
    history: list[Line] = []

    def say(t: float, op: str, kind: str = "info", **more: Any) -> None:
        history.append({"t": t, "op": op, "type": kind} | more)

    def read(t: float, seq: int, status: str | None = None, reader: str = "viewer") -> None:
        say(t, "read", reader=reader, run=1, seq=seq, told=chain[seq], status=status)

    say(0, "run", run=1, status="queued", epoch=0)
    say(1, "run", run=1, status="starting", epoch=1)
    say(1, "holder", run=1, epoch=1, alive=True)
    say(1.5, "trainers", alive=[[1, 1, 100]])
    say(2, "emit", run=1, epoch=1, n=1, digest="a1")
    say(2, "run", run=1, status="running", epoch=1)
    say(3, "emit", run=1, epoch=1, n=2, digest="a2")
    say(3, "ack", "ok", run=1, epoch=1, through=2)
    read(3, 4)
    read(3.5, 5)
    say(4, "emit", run=1, epoch=1, n=3, digest="a3")
    say(4, "pointer", "ok", run=1, epoch=1, step=1)
    say(5, "holder", run=1, epoch=1, alive=False)
    say(5, "trainers", alive=[])
    say(5, "memory", name="web", pid=7, mb=100.0)
    say(28, "run", run=1, status="recovering", epoch=1)
    say(38, "run", run=1, status="starting", epoch=2)
    say(38, "holder", run=1, epoch=2, alive=True)
    say(39, "ack", "ok", run=1, epoch=1, through=3)
    for n, digest in enumerate(("b1", "b2", None, "b3"), 1):
        say(39 + n, "emit", run=1, epoch=2, n=n, digest=digest)
    say(43, "trainers", alive=[[1, 2, 200]])
    say(44, "pointer", "ok", run=1, epoch=2, step=3)
    say(45, "wish", "invoke", run=1, wish="stop")
    say(46, "wish", "ok", run=1)
    say(50, "run", run=1, status="succeeded", epoch=2)
    say(50, "trainers", alive=[])
    say(51, "ack", "ok", run=1, epoch=2, through=4)
    say(52, "http", "ok", path="/", status=503, retry_after="5")
    read(60, 13, "succeeded")
    say(70, "memory", name="web", pid=7, mb=120.0)
    say(80, "memory", name="web", pid=7, mb=140.0)
    return history, left


def test_a_good_history_passes() -> None:
    assert check(*good()) == []


def replaced(left: Evidence, seq: int, **changes: Any) -> None:
    place = next(i for i, one in enumerate(left.events) if one.seq == seq)
    left.events[place] = replace(left.events[place], **changes)


def lines(history: list[Line], op: str) -> list[Line]:
    return [line for line in history if line["op"] == op]


def retold(story: Story) -> None:
    """Readers saw what the forged rows say, so that only the rows are wrong."""
    history, left = story
    chain = told_chain(sorted(left.events, key=lambda one: one.seq))
    for line in lines(history, "read"):
        line["told"] = chain.get(line["seq"], "?")


FORGERIES: dict[str, tuple[str, Callable[[list[Line], Evidence], None]]] = {}


def forged(invariant: str) -> Callable[..., Any]:
    def keep(make: Callable[[list[Line], Evidence], None]) -> None:
        FORGERIES[make.__name__] = (invariant, make)

    return keep


@forged("1 set")
def one_lost_event(history: list[Line], left: Evidence) -> None:
    """Its place was taken by a status event, so that no number is missing."""
    replaced(left, 5, kind="status", status="running", epoch=1)
    retold((history, left))


@forged("1 set")
def one_missing_number(history: list[Line], left: Evidence) -> None:
    left.events = [one for one in left.events if one.seq != 8]
    left.attempts[0] = replace(left.attempts[0], recorded_through=2)
    history[:] = [line for line in history if not (line["op"] == "ack" and line.get("through") == 3)]


@forged("1 set")
def one_event_twice(history: list[Line], left: Evidence) -> None:
    replaced(left, 11, digest="b1")


@forged("1 set")
def one_number_twice(history: list[Line], left: Evidence) -> None:
    left.events.append(left.events[4])


@forged("1 set")
def one_swapped_pair(history: list[Line], left: Evidence) -> None:
    replaced(left, 11, digest="b3")
    replaced(left, 12, digest="b2")


@forged("1 set")
def one_event_that_nobody_emitted(history: list[Line], left: Evidence) -> None:
    left.events.append(event(14, 2, "metrics", "b4"))
    left.runs[0] = replace(left.runs[0], last_seq=14)
    retold((history, left))


@forged("1 set")
def an_acknowledgement_that_was_taken_back(history: list[Line], left: Evidence) -> None:
    lines(history, "ack")[-1]["through"] = 5


@forged("2 prefix")
def a_reader_who_saw_something_else(history: list[Line], left: Evidence) -> None:
    lines(history, "read")[1]["told"] = "something else"


@forged("2 prefix")
def a_reader_who_went_back(history: list[Line], left: Evidence) -> None:
    first, second = lines(history, "read")[:2]
    first["seq"], second["seq"] = second["seq"], first["seq"]
    first["told"], second["told"] = second["told"], first["told"]


@forged("2 prefix")
def a_reader_who_was_sent_a_gap(history: list[Line], left: Evidence) -> None:
    lines(history, "read")[1]["gap"] = 4


@forged("3 convergence")
def a_reader_who_stopped(history: list[Line], left: Evidence) -> None:
    history.remove(lines(history, "read")[-1])


@forged("3 convergence")
def a_reader_who_shows_another_status(history: list[Line], left: Evidence) -> None:
    lines(history, "read")[-1]["status"] = "running"


@forged("4 single writer")
def one_stale_write(history: list[Line], left: Evidence) -> None:
    """The first worker wrote once more after the second one had."""
    replaced(left, 11, epoch=1, digest="a4")
    left.attempts[0] = replace(left.attempts[0], recorded_through=4)
    left.attempts[1] = replace(left.attempts[1], recorded_through=2)


@forged("4 single writer")
def interleaved_epochs(history: list[Line], left: Evidence) -> None:
    replaced(left, 10, epoch=1)


@forged("4 single writer")
def a_stale_checkpoint_pointer(history: list[Line], left: Evidence) -> None:
    history.append(lines(history, "pointer")[0] | {"t": 45.0})


@forged("5 status")
def one_false_status(history: list[Line], left: Evidence) -> None:
    next(line for line in lines(history, "run") if line["status"] == "recovering")["t"] = 36.0


@forged("5 status")
def a_false_status_of_who_is_cut_off(history: list[Line], left: Evidence) -> None:
    """The second worker lives, and cannot reach the database from 38.5 s on."""
    lines(history, "run")[-2]["owner"] = "worker2@here"
    lines(history, "run")[-1]["t"] = 70.0
    history.append({"t": 38.5, "op": "link", "type": "invoke", "worker": "worker2"})
    history.sort(key=lambda line: line["t"])


@forged("5 status")
def a_trainer_of_an_ended_run(history: list[Line], left: Evidence) -> None:
    lines(history, "trainers")[-1]["t"] = 111.0
    history.sort(key=lambda line: line["t"])


@forged("6 state machine")
def a_forbidden_move(history: list[Line], left: Evidence) -> None:
    replaced(left, 7, status="running", kind="status")
    replaced(left, 6, status="cancelled", kind="status")


@forged("6 state machine")
def a_row_that_no_event_explains(history: list[Line], left: Evidence) -> None:
    left.runs[0] = replace(left.runs[0], status="stopped")


@forged("7 tree")
def a_bad_tree(history: list[Line], left: Evidence) -> None:
    left.bad_trees.append("run 1: tree 0 of step 2: its values do not follow from its leaves")


@forged("8 checkpoints")
def a_bad_checkpoint(history: list[Line], left: Evidence) -> None:
    left.checkpoints[0] = replace(
        left.checkpoints[0], problem="model.safetensors is not what its manifest says"
    )


@forged("9 resume equality")
def an_unequal_metric(history: list[Line], left: Evidence) -> None:
    left.runs[0].metrics[2, "reward/mean"] = (2.0000000000000004).hex()


@forged("9 resume equality")
def an_unequal_tree(history: list[Line], left: Evidence) -> None:
    left.runs[0].trees[3, 0] = "another tree"


@forged("9 resume equality")
def unequal_weights(history: list[Line], left: Evidence) -> None:
    left.runs[0].weights["optimiser.safetensors"] = "other moments"


@forged("9 resume equality")
def a_step_left_out(history: list[Line], left: Evidence) -> None:
    del left.runs[0].metrics[2, "reward/mean"]


@forged("10 processes")
def an_orphan(history: list[Line], left: Evidence) -> None:
    """The first attempt's trainer lived on while the second one was at work."""
    gone = next(line for line in lines(history, "trainers") if line["t"] == 5)
    history.remove(gone)
    next(line for line in lines(history, "trainers") if line["t"] == 43)["alive"] = [[1, 1, 100], [1, 2, 200]]
    lines(history, "trainers")[-1]["t"] = 75.0
    history.sort(key=lambda line: line["t"])


@forged("10 processes")
def a_process_left_at_the_end(history: list[Line], left: Evidence) -> None:
    left.processes_left.append("process 100 was left when everything had stopped")


@forged("11 no errors")
def an_answer_of_500(history: list[Line], left: Evidence) -> None:
    lines(history, "http")[0]["status"] = 500


@forged("11 no errors")
def a_503_that_does_not_say_when(history: list[Line], left: Evidence) -> None:
    lines(history, "http")[0]["retry_after"] = ""


@forged("11 no errors")
def a_traceback(history: list[Line], left: Evidence) -> None:
    left.log_trouble.append("web.log: 1× ZeroDivisionError")


@forged("12 memory")
def memory_that_grows(history: list[Line], left: Evidence) -> None:
    lines(history, "memory")[-1]["mb"] = 171.0


@forged("controls")
def a_wish_that_nobody_heard(history: list[Line], left: Evidence) -> None:
    """Its worker lives until the run has ended, and never looks."""
    lines(history, "wish")[0]["t"] = 39.0
    history.remove(lines(history, "wish")[1])
    history.sort(key=lambda line: line["t"])


@forged("controls")
def a_worker_that_ignores_a_wish(history: list[Line], left: Evidence) -> None:
    """The wish of a run whose worker dies at once; the one that takes over lives and does not look."""
    asked, seen = lines(history, "wish")
    asked["t"], seen["t"] = 5.1, 48.1
    history.sort(key=lambda line: line["t"])


@forged("ends")
def a_failure_that_is_our_fault(history: list[Line], left: Evidence) -> None:
    lines(history, "run")[-2] |= {"status": "failed", "reason": "The worker failed: KeyError: 7."}


@forged("ends")
def a_failure_without_a_word(history: list[Line], left: Evidence) -> None:
    lines(history, "run")[-2] |= {"status": "failed", "reason": ""}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_history_is_found(name: str) -> None:
    invariant, forge = FORGERIES[name]
    history, left = deepcopy(good())
    forge(history, left)
    assert invariant in {violation.invariant for violation in check(history, left)}


def test_time_without_a_database_is_excused_and_no_more() -> None:
    history, left = good()
    next(line for line in lines(history, "run") if line["status"] == "recovering")["t"] = 37.9
    assert {one.invariant for one in check(history, left)} == {"5 status"}
    away = [
        {"t": 6.0, "op": "away", "type": "invoke", "what": "database"},
        {"t": 7.0, "op": "away", "type": "ok", "what": "database"},
    ]
    assert check(sorted([*history, *away], key=lambda line: line["t"]), left) == []
    assert unexcused(0, 100, [(10, 30), (20, 50), (90, 200)]) == 50


def test_the_dead_the_frozen_and_who_is_cut_off_need_not_hear_a_wish() -> None:
    """From 5 s to 38 s nobody works on the run; the worker from then on answers 9 s later."""
    history, left = good()
    asked, seen = lines(history, "wish")
    asked["t"], seen["t"] = 5.1, 47.0
    history.sort(key=lambda line: line["t"])
    assert acknowledged(history) == [(1, "stop", 9.0)]
    assert check(history, left) == []
    frozen = [
        {"t": 40.0, "op": "holder", "type": "info", "run": 1, "epoch": 2, "alive": False},
        {"t": 42.0, "op": "holder", "type": "info", "run": 1, "epoch": 2, "alive": True},
    ]
    cut_off = [
        {"t": 43.0, "op": "link", "type": "invoke", "worker": "worker2"},
        {"t": 46.0, "op": "link", "type": "ok", "worker": "worker2"},
        {"t": 43.0, "op": "link", "type": "invoke", "worker": "worker1"},
    ]
    for line in lines(history, "run"):
        line["owner"] = "worker2@here"
    told = sorted([*history, *frozen, *cut_off], key=lambda line: line["t"])
    assert acknowledged(told) == [(1, "stop", 4.0)]


def test_the_product_and_the_checker_know_the_same_moves() -> None:
    from webapp.runs.states import BORN
    from webapp.runs.states import MOVES as PRODUCT

    product = {str(status): {str(to) for to in moves} for status, moves in PRODUCT.items()}
    assert product | {"": MOVES[""]} == MOVES
    assert MOVES[""] <= {str(status) for status in BORN}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_campaign_that_nobody_watches_any_more_ends(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    watcher = Watcher(SimpleNamespace(history=history))  # type: ignore[arg-type]  # a system with nothing to see
    watcher.start()
    for thread in watcher._threads:
        thread.join(5)
    with pytest.raises(BlindError, match="campaign-watch ended by itself"):
        watcher.raise_if_blind()
