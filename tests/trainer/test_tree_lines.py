"""Trees as JSON lines: out and back in, and what is refused."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.test_tree import full_tree
from tests.trainer.trees import T1, credit_tree, nested_trees, tree_of
from trainer import tree_lines
from trainer.config import RunConfig
from trainer.credit import credit_plan
from trainer.presets import PRESETS
from trainer.tree import CreditState, RolloutTree
from trainer.tree_lines import (
    MOST_DEPTH,
    Estimator,
    TreeLine,
    TreeLineError,
    disagreement,
    estimator_of,
    memory_of,
    read_line,
    read_lines,
    write_line,
)

TREERPO = PRESETS["treerpo-tiny"].config


def line_of(tree: RolloutTree, **changes: Any) -> TreeLine:
    return TreeLine(
        **{"run": "first", "index": 3, "estimator": Estimator("grpo", 7, "A = R"), "tree": tree} | changes
    )


def assert_equal_trees(one: RolloutTree, other: RolloutTree) -> None:
    for field in dataclasses.fields(RolloutTree):
        np.testing.assert_array_equal(
            getattr(one, field.name), getattr(other, field.name), err_msg=field.name
        )


@given(nested_trees(), st.text(max_size=20), st.floats(-10, 10, width=32))
def test_any_tree_comes_back_as_it_was_and_is_written_as_the_same_bytes(
    nested: Any, text: str, logprob: float
) -> None:
    tree = credit_tree(tree_of(nested, problem_id="p\u202e"), TREERPO.credit)
    text = text.replace("\x00", "")
    tree = dataclasses.replace(
        tree,
        texts=(text, *tree.texts[1:]),
        logprobs=np.full_like(tree.logprobs, logprob),
        batch_mean=0.1,
    )
    written = write_line(line_of(tree))
    assert written.count(b"\n") == 1
    assert b"NaN" not in written
    read = read_line(written)
    assert_equal_trees(read.tree, tree)
    assert write_line(read) == written


def test_what_not_every_tree_has_comes_back_too() -> None:
    tree = full_tree()
    tree = dataclasses.replace(tree, token_bytes={**tree.token_bytes, 7: b"\xe2\x9c"})
    written = write_line(line_of(tree))
    read = read_line(written)
    for name in (
        "mismatch",
        "top_tokens",
        "top_logprobs",
        "temperature",
        "stream",
        "loss_share",
        "token_bytes",
    ):
        np.testing.assert_equal(getattr(read.tree, name), getattr(tree, name), err_msg=name)
    assert write_line(read) == written
    assert json.loads(written)["token_texts"]["7"] == {"hex": "e29c"}
    for change, message in (
        ({"top_tokens": [[1]]}, "top_tokens must be a list of one list for each"),
        ({"top_logprobs": "x"}, "top_logprobs must be a list of one list"),
        ({"mismatch": [1]}, "mismatch for"),
    ):
        wrong = json.loads(written)
        wrong["nodes"][1] |= change
        with pytest.raises(TreeLineError, match=message):
            read_line(json.dumps(wrong).encode())
    for key, value in (("stream", 5), ("token_texts", {"x": "y"}), ("token_texts", {"1": {"hex": "zz"}})):
        with pytest.raises(TreeLineError, match=key):
            read_line(json.dumps({**json.loads(written), key: value}).encode())


def test_a_line_reads_as_it_is_documented() -> None:
    written = json.loads(write_line(line_of(credit_tree(tree_of(T1), TREERPO.credit))))
    assert (written["format"], written["version"], written["run"], written["index"]) == (
        "arborist.tree",
        1,
        "first",
        3,
    )
    assert written["estimator"] == {"preset": "grpo", "seed": 7, "formula": "A = R"}
    root, better, dropped = written["nodes"][0], written["nodes"][1], written["nodes"][5]
    assert (root["parent"], root["value"], root["advantage"], root["credit_state"]) == (
        None,
        0.25,
        None,
        "none",
    )
    assert (better["parent"], better["advantage"], better["credit_state"]) == (
        0,
        pytest.approx(4 / 3),
        "credited",
    )
    assert (dropped["parent"], dropped["advantage"], dropped["credit_state"]) == (
        2,
        None,
        "dropped_by_filter",
    )
    assert (dropped["verdict"], dropped["reward"], dropped["copies"]) == ("incorrect", 0, 1)
    assert len(better["tokens"]) == len(better["logprobs"]) == len(better["entropies"]) == 2


def test_a_file_made_by_hand_needs_little_and_may_list_nodes_in_any_order() -> None:
    nodes = [
        {"parent": 2, "text": "right", "verdict": "correct", "reward": 1, "advantage": 0.5},
        {"parent": 2, "text": "wrong", "verdict": "incorrect", "reward": 0},
        {"parent": 3, "text": "step"},
        {"parent": None, "text": "Question"},
    ]
    raw = json.dumps({"format": "arborist.tree", "version": 1, "problem_id": "p", "nodes": nodes}).encode()
    line = read_line(raw, index=9)
    tree = line.tree
    assert (line.index, line.run, line.estimator) == (9, "", None)
    assert tree.texts == ("Question", "step", "right", "wrong")
    assert tree.parent.tolist() == [-1, 0, 1, 1]
    assert tree.copies.tolist() == [0, 0, 1, 1]
    assert tree.credit_state.tolist() == [0, 0, CreditState.CREDITED, 0]
    assert np.isnan(tree.value).all()
    assert np.isnan(tree.advantage[[0, 1, 3]]).all()
    # Unknown logprobs stay unknown.
    nodes[2] |= {"tokens": [5, 6], "logprobs": [-1, None]}
    tree = read_line(json.dumps({**json.loads(raw), "nodes": nodes}).encode()).tree
    assert tree.logprobs[0] == -1
    assert np.isnan([tree.logprobs[1], *tree.entropies]).all()


def chain(n: int) -> list[dict[str, Any]]:
    return [{"parent": None if k == 0 else k - 1} for k in range(n)]


def test_a_key_that_stands_twice_among_very_many_is_found_in_one_walk() -> None:
    many = b",".join(b'"%d":0' % n for n in range(40_000))
    seconds = []
    for more in (b"", b',"39999":0'):
        start = time.process_time()
        with pytest.raises(TreeLineError, match="stands twice" if more else "expected"):
            read_line(b"{" + many + more + b"}")
        seconds.append(time.process_time() - start)
    # Counting every key took a thousand times as long, and hours for a file as large as may be sent.
    assert seconds[1] < 30 * seconds[0] + 0.1


ROOT = {"parent": None, "text": "q"}


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([], "at least one node"),
        ([ROOT, {"parent": 2}, {"parent": 1}], ", node 1: it is part of a cycle"),
        ([ROOT, {"parent": 1}], ", node 1: it is part of a cycle"),
        ([ROOT, {"parent": None}], "two roots, nodes 0 and 1"),
        ([{"parent": 0}], "no root"),
        ([ROOT, {"parent": 2}], ", node 1: parent 2 is no node; expected null or 0 to 1"),
        ([ROOT, {"parent": -1}], ", node 1: parent -1 is no node"),
        ([ROOT, {"parent": True}], ", node 1: parent True is no node"),
        ([ROOT, {"parent": 0.0}], ", node 1: parent 0.0 is no node"),
        ([ROOT, {"text": "x"}], ', node 1: it has no "parent"'),
        ([ROOT, "x"], ", node 1: it is no JSON object"),
        ([ROOT, {"parent": 0, "advantages": 1}], ", node 1: unknown key 'advantages'"),
        ([ROOT, {"parent": 0, "reward": "1"}], ", node 1: reward is '1'"),
        ([ROOT, {"parent": 0, "value": 10**400}], ", node 1: value is 1000"),
        ([ROOT, {"parent": 0, "advantage": True}], ", node 1: advantage is True"),
        ([ROOT, {"parent": 0, "text": None}], ", node 1: text is None"),
        ([ROOT, {"parent": 0, "text": "\ud800"}], ", node 1: text holds a NUL or half a surrogate"),
        ([ROOT, {"parent": 0, "text": "\x00"}], ", node 1: text holds a NUL"),
        ([ROOT, {"parent": 0, "tokens": [1, -2]}], ", node 1: a token's id"),
        ([ROOT, {"parent": 0, "tokens": [1, 2.5]}], ", node 1: tokens must be"),
        ([ROOT, {"parent": 0, "tokens": [1], "logprobs": [1, 2]}], ", node 1: 2 logprobs for 1 tokens"),
        ([ROOT, {"parent": 0, "tokens": [1], "clip": [8]}], ": clip must be whole numbers from 0 to 7"),
        ([ROOT, {"parent": 0, "tokens": [1], "entropies": ["x"]}], ", node 1: entropies must be"),
        ([ROOT, {"parent": 0, "verdict": "right"}], ", node 1: verdict is 'right'; expected one of none"),
        ([ROOT, {"parent": 0, "finish": ["eos"]}], ", node 1: finish is ['eos']"),
        ([ROOT, {"parent": 0, "reward": 1}, {"parent": 1}], ", node 1: it is no leaf"),
        ([ROOT, {"parent": 0, "copies": 2**31}], ", node 1: copies is"),
        ([ROOT, {"parent": 0, "copies": 200_001}], ": its copies are 200,001 answers; at most 200,000"),
        ([ROOT, {"parent": 0, "subgroup": 2}], ", node 1: subgroup is 2; expected a whole number from 0"),
        ([ROOT, {"parent": 0, "advantage": 1, "credit_state": "no_reward"}], ", node 1: it has an adv"),
        (chain(MOST_DEPTH + 2), f", node {MOST_DEPTH + 1}: it is 1,001 deep"),
        (chain(100_000), ", node 99999: it is 99,999 deep; at most 1,000"),
    ],
)  # fmt: skip
def test_what_is_no_tree_is_refused_with_its_node(nodes: Any, message: str) -> None:
    raw = json.dumps({"format": "arborist.tree", "version": 1, "problem_id": "p", "nodes": nodes}).encode()
    with pytest.raises(TreeLineError) as refused:
        read_line(raw)
    assert message in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\xff", "Line 2 is not UTF-8: byte 1"),
        (b"[]", "Line 2 is no JSON object"),
        (b"{", "Line 2 is no JSON"),
        (b"{}", 'Line 2: "format" is None'),
        (b'{"format": "arborist.tree", "version": 2}', 'Line 2: "version" is 2; this Arborist reads 1'),
        (b'{"format": "arborist.tree", "version": true}', 'Line 2: "version" is True'),
        (b'{"a": 1, "a": 2}', "Line 2: the key 'a' stands twice"),
        (b'{"a": NaN}', "Line 2: NaN is not JSON"),
        (b'{"a": 1e999}', "Line 2: the number 1e999 is too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "Line 2: a number has too many digits"),
        (b"[" * 100_000, "Line 2 is nested too deeply"),
        (b'{"format": "arborist.tree", "version": 1, "extra": 1}', "Line 2: unknown key 'extra'"),
        (b'{"format": "arborist.tree", "version": 1, "nodes": [{}], "problem_id": " "}', '"problem_id" must'),
        ((b'{"format": "arborist.tree", "version": 1, "nodes": [{"parent": null}], "problem_id": "p", '
          b'"stream": "18446744073709551616"}'), 'Line 2: "stream" must be null or a whole number'),
    ],
)  # fmt: skip
def test_what_is_no_line_is_refused_with_its_number(raw: bytes, message: str) -> None:
    good = write_line(line_of(tree_of(T1)))
    lines = read_lines(io.BytesIO(good + raw + b"\n"))
    assert next(lines)[0] == 1
    with pytest.raises(TreeLineError) as refused:
        next(lines)
    assert message in str(refused.value)


def test_a_line_too_long_is_not_taken_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.tree_lines.MOST_LINE_BYTES", 100)
    with pytest.raises(TreeLineError, match="Line 1 is longer than 100 bytes"):
        list(read_lines(io.BytesIO(b" " * 101)))


def test_a_preset_is_named_only_where_the_credit_is_just_its_own() -> None:
    assert estimator_of(TREERPO, "A").preset == "treerpo-tiny"
    other_credit = PRESETS["grpo-tiny"].config.model_dump(mode="json") | {"preset": "treerpo-tiny"}
    assert estimator_of(RunConfig.model_validate(other_credit), "A") == Estimator(None, TREERPO.seed, "A")
    assert Estimator("no-such-preset").plan() is None


def test_disagreement_names_node_and_both_numbers() -> None:
    tree = credit_tree(tree_of(T1), TREERPO.credit)
    plan = credit_plan(TREERPO)
    assert disagreement(tree, plan) is None
    advantage = tree.advantage.copy()
    advantage[3] += 0.5
    told = disagreement(dataclasses.replace(tree, advantage=advantage), plan)
    assert told == "Node 1.1: its advantage is 2.5, computed 2."
    beyond = tree.reward.copy()
    beyond[3] = 7
    told = disagreement(dataclasses.replace(tree, reward=beyond, value=np.full(7, math.nan)), plan)
    assert told is not None
    assert "rewards from 0 to 1" in told
    told = disagreement(tree, credit_plan(PRESETS["treepo-tiny"].config))
    assert told is not None
    assert "needs figures of the whole batch, and this tree remembers none" in told


@pytest.mark.parametrize(
    "raw",
    [
        b"[" + b"{}," * 100_000 + b"1]",
        b"[" + b'{"a":1},' * 40_000 + b"1]",
        b"[" + b"[]," * 100_000 + b"1]",
        b"[" + b"1.5," * 75_000 + b"1]",
        b"[" + b"12345," * 50_000 + b"1]",
        b"[" + b'"ab",' * 60_000 + b"1]",
        b"{" + b",".join(b'"%x":1' % i for i in range(30_000)) + b"}",
        ('["' + "a" * 300_000 + '\U0001f600"]').encode(),
    ],
    ids=["dicts", "pairs", "lists", "floats", "ints", "strings", "keys", "text"],
)
def test_what_a_line_takes_is_told_before_it_is_read(raw: bytes) -> None:
    tracemalloc.start()
    try:
        tree_lines._loads(raw)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1.1 * memory_of(raw)
    with pytest.raises(TreeLineError, match="Line 2 holds so many values that reading it may take"):
        list(read_lines(io.BytesIO(b"\n" + raw), memory_of(raw) - 1))
