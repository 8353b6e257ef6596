from __future__ import annotations

import json
import math
from typing import Any

import pytest

from trainer.events import LogLine, Metrics, TreeSampled
from workers.output import Preempted, UnreadableEventError, is_event, moment, read_event, storable_json

TREE: dict[str, Any] = {
    "kind": "tree",
    "time": 1.0,
    "step": 3,
    "index": 0,
    "problem_id": "p",
    "prompt": "2 + 2",
    "summary": {
        "n_nodes": 3,
        "n_leaves": 2,
        "n_correct": 1,
        "n_unparsed": 0,
        "n_truncated": 0,
        "n_errors": 0,
        "depth": 1,
        "tokens": 9,
        "tokens_flat": 9,
        "value": 0.5,
        "advantage_min": "NaN",
        "advantage_max": "NaN",
        "zero_variance_share": 0.0,
        "mean_entropy": 0.1,
    },
    "payload": "AAEC",
}
CHECKPOINT = {
    "kind": "checkpoint",
    "time": 1,
    "step": 1,
    "path": "step-1",
    "bytes": 9,
    "weights_sha256": "ab",
}


def line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


def test_nan_and_infinity_are_numbers() -> None:
    event = read_event(
        b'{"kind":"metrics","time":1,"step":2,"values":{"a/b":"NaN","a/c":"-Infinity","a/d":1.5}}'
    )
    assert isinstance(event, Metrics)
    assert math.isnan(event.values["a/b"])
    assert event.values["a/c"] == -math.inf
    assert event.values["a/d"] == 1.5


def test_tree_carries_its_payload_as_bytes() -> None:
    event = read_event(line(TREE))
    assert isinstance(event, TreeSampled)
    assert event.payload == b"\x00\x01\x02"
    assert math.isnan(event.summary.advantage_min)


def test_preempted_is_a_spool_event() -> None:
    record = Preempted(time=1.0, step=4, reason="r")
    assert read_event(record.model_dump_json().encode()) == record


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (b'"a\\u0000b"', "a\u2400b"),  # NUL, which is valid JSON
        (b'"a\\ud83d b"', "a\ufffd b"),  # a lone surrogate
        (b'"\\ud83d\\ude00"', "\U0001f600"),  # a pair is a letter
        (b'"a\xff b"', "a\ufffd b"),  # no UTF-8
        (b'"<script>alert(1)</script>"', "<script>alert(1)</script>"),
    ],
)
def test_text_that_databases_refuse_is_read(text: bytes, read: str) -> None:
    event = read_event(b'{"kind":"log","time":1,"level":"info","message":%s}' % text)
    assert isinstance(event, LogLine)
    assert event.message == read


@pytest.mark.parametrize(
    ("bad", "names"),
    [
        (b'{"kind":"metrics"', "EOF"),
        (b"{}", "kind"),
        (b'{"kind":"surprise","time":1}', "surprise"),
        (line({"kind": "metrics", "time": 1, "step": 1, "values": {"no area": 1}}), "values"),
        (line({"kind": "metrics", "time": 1, "step": 1, "values": {"a/" + "b" * 200: 1}}), "200"),
        (line({"kind": "metrics", "time": 1, "step": 2**53 + 1, "values": {}}), "step"),
        (line({"kind": "metrics", "time": 1, "step": 1, "values": {}, "extra": 1}), "extra"),
        (line(TREE | {"index": 2**31}), "index"),
        (line(TREE | {"summary": TREE["summary"] | {"n_nodes": 2**31}}), "n_nodes"),
        (line(TREE | {"payload": "not base64!"}), "payload"),
        (line(CHECKPOINT | {"path": "../../etc"}), "path"),
        (line(CHECKPOINT | {"path": "/etc/passwd"}), "path"),
        (line(CHECKPOINT | {"path": ""}), "path"),
        (line(CHECKPOINT | {"weights_sha256": "a" * 65}), "SHA-256"),
    ],
)
def test_broken_event_is_refused_with_what_is_wrong(bad: bytes, names: str) -> None:
    with pytest.raises(UnreadableEventError, match=names):
        read_event(bad)


def test_largest_step_is_read() -> None:
    assert read_event(line({"kind": "metrics", "time": 1, "step": 2**53, "values": {}})).step == 2**53  # type: ignore[union-attr]


def test_stray_print_is_no_event() -> None:
    assert is_event(b' {"kind"')
    assert not is_event(b"Loading weights: 100%")
    assert not is_event(b"")


def test_nested_text_is_made_storable() -> None:
    assert storable_json({"a\x00": ["x\x00", {"b": "\ud800"}, 1, None]}) == {
        "a\u2400": ["x\u2400", {"b": "\ufffd"}, 1, None]
    }


def test_moment_survives_every_clock() -> None:
    assert moment(0).year == 1970
    assert moment(1e300).year == 2100
    assert moment(math.inf).year >= 2024
