"""Siblings and differences, on trees worked by hand."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from django.test import Client
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.trees import tree_of
from tests.webapp.material import People, add_tree, worked_tree
from trainer.credit import credit_plan, credit_trees
from trainer.presets import PRESETS
from trainer.tree import FinishReason, RolloutTree
from webapp.runs.models import Run
from webapp.trees import comparing
from webapp.trees.comparing import diff_json, siblings_json
from webapp.trees.opened import OpenTree
from webapp.trees.word_diff import MOST_WORDS, _common, word_diff

CONFIG = PRESETS["treerpo-tiny"].config


def credited(nested: object, texts: dict[int, str], tokens: dict[int, list[int]]) -> RolloutTree:
    """Nodes with texts and tokens of choice; token i of every node has logprob log(1/2)."""
    tree = tree_of(nested)
    n = tree.n_nodes
    parts = [tokens.get(i, [100 + i, 200 + i]) for i in range(n)]
    offsets = np.concatenate(([0], np.cumsum([len(part) for part in parts]))).astype(np.int64)
    flat = np.concatenate([np.array(part, np.int32) for part in parts])
    tree = dataclasses.replace(
        tree,
        token_offsets=offsets,
        tokens=flat,
        logprobs=np.full(len(flat), np.log(0.5), np.float32),
        entropies=np.full(len(flat), 0.25, np.float32),
        texts=tuple(texts.get(i, text) for i, text in enumerate(tree.texts)),
        answers=tuple("1" if reward == 1 else "0" if reward == 0 else "" for reward in tree.reward),
    )
    (done,) = credit_trees([tree], credit_plan(CONFIG))
    return done


# ------------------------------------------------------------------------------------------------ words


def slow_common(a: list[str], b: list[str]) -> int:
    """Length of a longest common subsequence, by its definition."""
    best = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            best[i + 1][j + 1] = best[i][j] + 1 if x == y else max(best[i][j + 1], best[i + 1][j])
    return best[-1][-1]


@given(st.lists(st.sampled_from("abc"), max_size=14), st.lists(st.sampled_from("abc"), max_size=14))
def test_as_many_words_are_in_common_as_can_be(a: list[str], b: list[str]) -> None:
    pairs = _common(a, b)
    assert len(pairs) == slow_common(a, b)
    assert all(a[i] == b[j] for i, j in pairs)
    assert all(one[0] < two[0] and one[1] < two[1] for one, two in pairwise(pairs))


@given(st.text(max_size=60), st.text(max_size=60))
def test_the_pieces_of_a_side_join_to_its_text(a: str, b: str) -> None:
    for text, pieces in zip((a, b), word_diff(a, b), strict=True):
        assert "".join(piece.text for piece in pieces) == text
        assert all(piece.text for piece in pieces)
    common = ["".join(piece.text for piece in side if piece.is_common) for side in word_diff(a, b)]
    assert common[0] == common[1]


def test_lone_words_in_common_do_not_chop_up_a_change() -> None:
    one, _ = word_diff("So there are 18 even divisors.", "Therefore the number of odd ones is not 18.")
    assert [piece.text for piece in one if piece.is_common] == ["."]
    one, other = word_diff("and so on, so 18 of them", "and so on, so 12 of them")
    assert [piece.text for piece in one if not piece.is_common] == ["18"]
    assert [piece.text for piece in other if not piece.is_common] == ["12"]


def test_a_text_that_repeats_itself_costs_no_more() -> None:
    """A comparison that looks at every pair of equal words would take minutes here."""
    one, other = word_diff("a b " * 40_000, "b a " * 40_000)
    assert sum(len(piece.text) for piece in one) == MOST_WORDS
    assert sum(piece.is_common for piece in other) >= 1


# ------------------------------------------------------------------------------------------------ siblings


def siblings_tree() -> RolloutTree:
    """Four children of the root; 2 and 3 have the same 40 tokens but one.

    1: leaves 1, 0, V = 1/2     2: leaves 1, 1, V = 1     3: leaf 0, V = 0     4: leaves 0, 0, V = 0
    """
    long = list(range(1000, 1040))
    return credited(
        [[1, 0], [1, 1], 0, [0, 0]],
        {1: "We find 12 here\n", 2: "We find 18 here\n", 3: "We find 18 here!\n", 4: "We find nothing"},
        {1: [7, 8, 50], 2: [7, 8, *long], 3: [7, 8, *long[:-1], 5], 4: [7, 8]},
    )


def test_very_many_siblings_are_compared_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = comparing._is_same
    monkeypatch.setattr(comparing, "_is_same", lambda a, b: calls.append(1) or real(a, b))
    monkeypatch.setattr(comparing, "MOST_COMPARED", 100)
    monkeypatch.setattr(comparing, "MOST_NAMED", 3)
    different = {node: [node] * 3 for node in range(1, 301)}
    tree = credited([0] * 310, {}, different | {node: [7, 7, 7] for node in range(301, 311)})
    found = siblings_json(OpenTree(tree), 7, "order")
    assert len(calls) == 100
    # What is equal shares a column all the same; so many are named.
    assert (found["n_siblings"], found["n_columns"]) == (310, 300)
    column = next(column for column in found["columns"] if column["node"] == "7")
    assert (column["n_others"], [other["node"] for other in column["others"]]) == (10, ["301", "302", "303"])


def test_siblings_stand_by_value_with_what_they_share_once() -> None:
    found = siblings_json(OpenTree(siblings_tree()), 4, "value")
    assert (found["parent"], found["n_siblings"], found["n_columns"]) == ("0", 4, 3)
    assert (found["common"], found["common_tokens"]) == ("We find ", 2)
    columns = {column["node"]: column for column in found["columns"]}
    assert list(columns) == ["2", "1", "4"]
    assert [other["node"] for other in columns["2"]["others"]] == ["3"]
    assert columns["4"]["others"] == []
    assert [columns[name]["selected"] for name in ("2", "1", "4")] == [False, False, True]
    assert (columns["1"]["first_word"], columns["1"]["rest"]) == ("12", " here\n")
    assert columns["1"]["probability"] == pytest.approx(0.5)
    assert columns["4"]["probability"] is None  # it ends where the others go on
    assert columns["1"]["advantage"] == pytest.approx(0.125 / (0.375 * 0.625), abs=1e-6)
    assert [(mix["verdict"], mix["n"]) for mix in columns["1"]["verdicts"]] == [
        ("correct", 1),
        ("incorrect", 1),
    ]
    assert columns["1"]["wilson"] is not None
    in_order = siblings_json(OpenTree(siblings_tree()), 4, "order")
    assert [column["node"] for column in in_order["columns"]] == ["1", "2", "4"]


def test_where_siblings_part_the_likeliest_tokens_are_named_once() -> None:
    tree = siblings_tree()
    n = len(tree.tokens)
    assert siblings_json(OpenTree(tree), 1, "value")["alternatives"] == []
    place = int(tree.token_offsets[2]) + 2  # the first column has two tokens in common with the others
    tops = np.full((n, 2), -1, np.int32)
    tops[place] = 50, 1000
    told = dataclasses.replace(
        tree, top_tokens=tops, top_logprobs=np.full((n, 2), -1, np.float16), token_bytes={50: b" a\n"}
    )
    found = siblings_json(OpenTree(told), 1, "value")["alternatives"]
    assert [item["text"] for item in found] == ["·a↵", "#1000"]
    assert found[0]["probability"] == pytest.approx(np.exp(-1))


def test_tokens_that_were_given_or_came_without_logprobs_have_no_probability() -> None:
    tree = siblings_tree()
    finish = tree.finish.copy()
    finish[1] = FinishReason.GIVEN
    unknown = np.full(len(tree.tokens), np.nan, np.float32)
    for other in (
        dataclasses.replace(tree, finish=finish),
        dataclasses.replace(tree, logprobs=unknown, entropies=unknown),
    ):
        columns = {column["node"]: column for column in siblings_json(OpenTree(other), 4, "value")["columns"]}
        assert columns["1"]["probability"] is columns["1"]["entropy"] is None


def test_no_interval_where_answers_share_text() -> None:
    tree = credited([[[1, 0], [1, 0]], [1, 0]], {}, {})
    (deep, shallow) = siblings_json(OpenTree(tree), 1, "order")["columns"]
    assert deep["wilson"] is None
    assert shallow["wilson"] is not None
    assert diff_json(OpenTree(tree), 1, 2)["gap"]["interval"] is None
    assert diff_json(OpenTree(tree), 1, 2)["gap"]["probability"] is not None


# ------------------------------------------------------------------------------------------------ two nodes


def test_two_nodes_part_after_their_last_common_ancestor() -> None:
    found = diff_json(OpenTree(siblings_tree()), 5, 8)  # 1.1 and 2.2
    assert (found["above"], [part["node"] for part in found["shared"]]) == ("0", ["0"])
    a, b = found["sides"]
    assert ([s["node"] for s in a["segments"]], [s["node"] for s in b["segments"]]) == (
        ["1", "1.1"],
        ["2", "2.2"],
    )
    changed = [[piece.text for piece in s["pieces"] if not piece.is_common] for s in a["segments"]]
    assert changed[0] == ["12"]
    assert found["gap"]["value"] == 0.0
    siblings = diff_json(OpenTree(siblings_tree()), 2, 1)
    assert (siblings["gap"]["value"], siblings["gap"]["share"]) == (0.5, 0.5)
    low, high = siblings["gap"]["interval"]
    assert low < 0 < 0.5 < high
    assert siblings["gap"]["probability"] == pytest.approx(0.8)  # Beta(3, 1) above Beta(2, 2)
    assert siblings["answers"]["rows"] == [
        {"answer": "1", "verdict": "correct", "a": 2, "b": 1},
        {"answer": "0", "verdict": "incorrect", "a": 0, "b": 1},
    ]


def test_a_node_against_its_own_beginning_has_no_interval() -> None:
    found = diff_json(OpenTree(siblings_tree()), 1, 5)
    assert (found["above"], found["sides"][0]["segments"]) == ("1", [])
    assert (found["gap"]["is_apart"], found["gap"]["interval"], found["gap"]["probability"]) == (
        False,
        None,
        None,
    )


def test_the_pages_show_hostile_text_as_text(run: Run, people: People) -> None:
    hostile = "<img src=x onerror=alert(1)></script><b>\u202e"
    tree, client = add_tree(run, 7, worked_tree(7, text=hostile)), people.client("viewer")
    for path in ("siblings?n=1", "siblings", "diff?a=1&b=2", "diff?a=1.1&b=2", "diff"):
        page = client.get(f"/t/{tree.id}/{path}")
        assert page.status_code == 200, path
        content = page.content.decode()
        assert "<img" not in content, path
        assert "</script><b>" not in content, path
    assert "&lt;" in client.get(f"/t/{tree.id}/diff?a=1&b=2").content.decode()


@pytest.mark.parametrize("query", ["siblings?n=9", "diff?a=1&b=7", "diff?a=x"])
def test_what_does_not_exist_is_not_found(run: Run, people: People, query: str) -> None:
    client: Client = people.client("viewer")
    assert client.get(f"/t/{add_tree(run, 7, worked_tree(7)).id}/{query}").status_code == 404
