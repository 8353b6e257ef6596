from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tests.trainer.trees import T1, credit_tree, tree_of
from trainer.events import (
    CheckpointSaved,
    Event,
    EventDigest,
    Finished,
    LogLine,
    Metrics,
    Progress,
    Started,
    TreeSampled,
    digest,
    parse_line,
)
from trainer.metrics import METRICS
from trainer.presets import PRESETS
from trainer.summary import summarise
from trainer.tree import RolloutTree

TREE = credit_tree(tree_of(T1), PRESETS["treerpo-tiny"].config.credit)
STARTED = Started(
    time=1.0,
    step=0,
    config_sha256="c",
    weights_sha256="w",
    parameters=3,
    engine="local",
    device="cpu",
    versions={"torch": "2"},
    training_problems=None,
    evaluation_problems=8,
)
EVENTS: list[Event] = [
    STARTED,
    Progress(time=2.0, step=1, phase="sampling", done=3, total=9),
    Metrics(
        time=3.0, step=1, values={"reward/mean": 0.5, "speed/step_seconds": 1.5, "policy/loss": math.nan}
    ),
    TreeSampled(
        time=4.0,
        step=1,
        index=0,
        problem_id="p",
        prompt="q</script>\u2028",
        summary=summarise(TREE),
        payload=TREE.to_payload(),
    ),
    CheckpointSaved(time=5.0, step=1, path="checkpoints/step-1", bytes=9, weights_sha256="w"),
    LogLine(time=6.0, level="warning", message="line\nbreak"),
    Finished(time=7.0, outcome="stopped", step=1, reason="as asked"),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.kind)
def test_an_event_is_one_json_line_and_comes_back(event: Event) -> None:
    line = event.model_dump_json()
    assert "\n" not in line
    json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    again = parse_line(line)
    assert type(again) is type(event)
    assert again.model_dump_json() == line


def test_a_tree_comes_back_from_its_event() -> None:
    again = parse_line(EVENTS[3].model_dump_json())
    assert isinstance(again, TreeSampled)
    assert RolloutTree.from_payload(again.payload).advantage.tolist()[1:5] == TREE.advantage.tolist()[1:5]


@given(st.dictionaries(st.sampled_from(sorted(METRICS)), st.floats(), min_size=1))
def test_metric_values_keep_every_bit(values: dict[str, float]) -> None:
    again = parse_line(Metrics(time=0, step=1, values=values).model_dump_json())
    assert isinstance(again, Metrics)
    for name, value in values.items():
        got = again.values[name]
        assert (math.isnan(got) and math.isnan(value)) or (
            got == value and math.copysign(1, got) == math.copysign(1, value)
        )


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"[]",
        b"nonsense",
        b'{"kind":"other","time":1}',
        b'{"kind":"log","time":1,"level":"info","message":"m","x":1}',
        b'{"kind":"metrics","time":1,"step":-1,"values":{}}',
        b'{"kind":"metrics","time":1,"step":1,"values":{"Bad name":1}}',
        b'{"kind":"metrics","time":1,"step":1,"values":{"a/b":"x"}}',
        b'{"kind":"log","time":-1,"level":"info","message":""}',
    ],
)
def test_a_malformed_line_is_refused(line: bytes) -> None:
    with pytest.raises(ValidationError):
        parse_line(line)


def changed(event: Event, **changes: Any) -> str:
    return digest([event.model_copy(update=changes)])


def test_digest_leaves_out_what_a_clock_decided() -> None:
    assert changed(STARTED, time=99.0, versions={"torch": "3"}) == digest([STARTED])
    metrics = Metrics(
        time=3.0, step=1, values={"speed/step_seconds": 9.0, "policy/loss": math.nan, "reward/mean": 0.5}
    )
    assert digest([metrics]) == digest([EVENTS[2]])
    assert digest([EVENTS[0], EVENTS[1], EVENTS[2]]) == digest([EVENTS[0], EVENTS[2]])


@pytest.mark.parametrize(
    ("event", "changes"),
    [
        (EVENTS[0], {"weights_sha256": "x"}),
        (EVENTS[0], {"step": 1}),
        (EVENTS[2], {"values": {"reward/mean": 0.5}}),
        (EVENTS[2], {"step": 2}),
        (EVENTS[3], {"payload": b"x"}),
        (EVENTS[3], {"index": 1}),
        (EVENTS[4], {"bytes": 8}),
        (EVENTS[5], {"message": "other"}),
    ],
)
def test_digest_sees_everything_else(event: Event, changes: dict[str, Any]) -> None:
    assert changed(event, **changes) != digest([event])


def test_digest_sees_order_and_can_be_read_on_the_way() -> None:
    assert digest(EVENTS) != digest(EVENTS[::-1])
    running = EventDigest()
    for number, event in enumerate(EVENTS, 1):
        running.add(event)
        assert running.hexdigest() == digest(EVENTS[:number])


def test_event_schema_can_be_written_down() -> None:
    schema = TypeAdapter(Event).json_schema()
    assert len(schema["oneOf"]) == 8


def test_metrics_have_names_that_events_accept() -> None:
    Metrics(time=0, step=0, values=dict.fromkeys(METRICS, 0.0))
    assert all(metric.title and metric.formula for metric in METRICS.values())
    assert {metric.better for metric in METRICS.values()} <= {"", "higher", "lower"}


def test_a_sentence_that_quotes_a_broken_name_is_made_storable() -> None:
    line = LogLine(time=1, level="warning", message="column `\ud800` and \x00")
    assert parse_line(line.model_dump_json()) == line
    assert line.message == "column `\ufffd` and \u2400"
    last = Finished(time=1, outcome="failed", step=0, reason="found `\udfff`")
    assert last.reason == "found `\ufffd`"
