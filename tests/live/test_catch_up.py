from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests.workers.factories import NAN, checkpoint, log, make_run, metrics, numbered, started, tree
from webapp.live import catch_up
from webapp.runs.models import Run
from workers import lease
from workers.recorder import Recorder

STREAM = [
    started(),
    metrics(1, reward__mean=0.5, policy__loss=NAN, policy__grad_norm=-math.inf),
    tree(1, 0, value=NAN, prompt="p" * 3000),
    log("<script>"),
    checkpoint(1),
]


@pytest.fixture
def recorded() -> Run:
    run = make_run()
    held = lease.claim(run.id, "w")
    assert held is not None
    Recorder(held).record(numbered(STREAM))
    run.refresh_from_db()
    return run


def events(run: Run, after: int) -> list[dict[str, Any]]:
    news = catch_up.since(run.id, after, 500)
    assert news is not None
    return [json.loads(text) for _, text in news.events]


def test_events_after_the_cursor_come_without_a_gap(recorded: Run) -> None:
    assert recorded.last_seq == 8
    for after in range(9):
        assert [event["seq"] for event in events(recorded, after)] == list(range(after + 1, 9))


def test_an_event_carries_what_its_kind_has(recorded: Run) -> None:
    by_kind = {event["kind"]: event for event in events(recorded, 2)}
    assert by_kind["metrics"]["values"] == {
        "reward/mean": 0.5,
        "policy/loss": {"v": None, "k": "nan"},
        "policy/grad_norm": {"v": None, "k": "-inf"},
    }
    assert [by_kind["metrics"][key] for key in ("step", "epoch", "at")] == [1, 1, 1001.0]
    row = by_kind["tree"]["tree"]
    assert (row["step"], row["index"], row["value"], row["n_nodes"]) == (1, 0, None, 7)
    assert row["prompt"] == "p" * 2000 + "…"
    assert by_kind["log"]["message"] == "<script>"
    assert by_kind["checkpoint"]["path"] == "attempt-1/checkpoints/step-1"
    assert by_kind["started"]["engine"] == "local"
    assert by_kind["status"]["status"] == "running"


def test_state_comes_along(recorded: Run) -> None:
    news = catch_up.since(recorded.id, 8, 500)
    assert news is not None
    assert news.events == []
    state = json.loads(news.state.text)
    assert (state["id"], state["status"], state["last_seq"]) == (recorded.id, "running", 8)
    assert state["latest"]["reward/mean"] == 0.5
    assert "heartbeat_age_s" not in json.loads(news.state.core)


@pytest.mark.parametrize(("limit", "behind"), [(7, True), (8, False), (9, False)])
def test_too_many_waiting_events_are_not_read(recorded: Run, limit: int, behind: bool) -> None:
    news = catch_up.since(recorded.id, 0, limit)
    assert news is not None
    assert (news.is_behind, len(news.events), news.last_seq) == (behind, 0 if behind else 8, 8)


def test_run_that_is_gone_is_none() -> None:
    assert catch_up.since(10**9, 0, 500) is None


def test_four_queries_whatever_waits(recorded: Run, django_assert_max_num_queries: Any) -> None:
    with django_assert_max_num_queries(4):
        catch_up.since(recorded.id, 0, 500)


def test_numbers_that_json_does_not_know() -> None:
    assert catch_up.wire_number(1.5) == 1.5
    assert catch_up.wire_number(NAN) == {"v": None, "k": "nan"}
    assert catch_up.wire_number(math.inf) == {"v": None, "k": "inf"}
    with pytest.raises(ValueError, match="JSON compliant"):
        catch_up.encode({"x": NAN})
