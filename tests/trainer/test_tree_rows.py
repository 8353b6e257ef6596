"""Rows of a tree that is worked by hand."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest

from tests.trainer.trees import credit_tree, tree_of
from trainer.presets import PRESETS
from trainer.tree import FinishReason, RolloutTree
from trainer.tree_rows import NODE_COLUMNS, BestAnswers, node_names, node_rows, preference_pairs, step_labels

# 0 = 3/8 ── 1 = 1/2 ── 1.1 = 1, 1.2 = 0
#         ── 2 = 1/4 ── 2.1 = 0, 2.2 = 1/2 (rewarded so), each TreeRPO's child mean.
TREE = credit_tree(tree_of([[1, 0], [0, 0.5]]), PRESETS["treerpo-tiny"].config.credit)
WHERE = {"run": "first", "step": 1}
NAN = float("nan")


def changed(tree: RolloutTree, **columns: dict[int, Any]) -> RolloutTree:
    """`tree` with single entries of its columns replaced."""
    new: dict[str, Any] = {}
    for name, entries in columns.items():
        column = list(getattr(tree, name))
        for node, value in entries.items():
            column[node] = value
        old = getattr(tree, name)
        new[name] = tuple(column) if isinstance(old, tuple) else np.array(column, old.dtype)
    return dataclasses.replace(tree, **new)


def test_nodes_have_every_column_and_no_number_where_there_is_none() -> None:
    rows = list(node_rows(TREE, WHERE))
    assert [row["node"] for row in rows] == ["0", "1", "2", "1.1", "1.2", "2.1", "2.2"]
    assert all(list(row) == [*WHERE, *NODE_COLUMNS] for row in rows)
    assert [row["parent"] for row in rows] == ["", "0", "0", "1", "1", "2", "2"]
    assert [row["value"] for row in rows] == [0.375, 0.5, 0.25, 1, 0, 0, 0.5]
    assert [row["n_correct"] for row in rows] == [2, 1, 1, 1, 0, 0, 1]
    assert rows[0]["advantage"] is rows[0]["mean_logprob"] is None
    own = slice(TREE.token_offsets[3], TREE.token_offsets[4])
    assert rows[3]["mean_entropy"] == pytest.approx(float(TREE.entropies[own].mean()))
    assert rows[3]["max_entropy"] == pytest.approx(float(TREE.entropies[own].max()))
    assert rows[3]["reward"] == 1
    assert rows[1]["reward"] is None
    told = list(node_rows(changed(TREE, finish={1: FinishReason.GIVEN}), WHERE))
    assert told[1]["mean_entropy"] is told[1]["max_entropy"] is told[1]["mean_logprob"] is None


def test_names_are_those_of_the_tree() -> None:
    tree = tree_of([[1, [0, [1, 0]]], 1, [0, 0]])
    assert node_names(tree) == [tree.name(node) for node in range(tree.n_nodes)]


def pairs(
    tree: RolloutTree, gap: float = 0.5, answers: int = 1, most: int = 1
) -> tuple[list[Any], Counter[str]]:
    left_out: Counter[str] = Counter()
    return list(
        preference_pairs(tree, WHERE, gap=gap, answers=answers, most=most, left_out=left_out)
    ), left_out


def test_pairs_are_siblings_that_are_far_enough_apart_and_keep_their_prefix() -> None:
    found, _ = pairs(TREE)
    # 1 and 2 are 1/4 apart: too little. 1.1 and 1.2 are 1 apart, 2.2 and 2.1 just 1/2.
    assert [(row["prompt"], row["chosen"], row["rejected"], row["gap"]) for row in found] == [
        ("s0s1", "s3", "s4", 1.0),
        ("s0s2", "s6", "s5", 0.5),
    ]
    assert (found[1]["chosen_node"], found[1]["rejected_value"], found[1]["run"]) == ("2.2", 0, "first")
    assert [row["chosen_node"] for row in pairs(TREE, gap=0.25)[0]] == ["1", "1.1", "2.2"]
    # Two scored answers are below 1 and 2, one at each leaf.
    found, left_out = pairs(TREE, gap=0.25, answers=2)
    assert [(row["chosen_node"], row["chosen_answers"]) for row in found] == [("1", 2)]
    assert left_out["siblings with too few scored answers"] == 4


def test_pairs_leave_out_equal_texts_given_text_and_siblings_without_value() -> None:
    found, left_out = pairs(changed(TREE, texts={4: "s3"}))
    assert [row["chosen_node"] for row in found] == ["2.2"]
    assert left_out["siblings of equal text"] == 1
    assert [row["chosen_node"] for row in pairs(changed(TREE, finish={3: FinishReason.GIVEN}))[0]] == ["2.2"]
    assert [row["chosen_node"] for row in pairs(changed(TREE, value={3: NAN}))[0]] == ["2.2"]


def test_the_widest_pairs_of_a_group_come_first() -> None:
    star = credit_tree(tree_of([0.1, 0.9, 0.5, 0.9, 0.0, 0.3]), PRESETS["grpo-tiny"].config.credit)
    slow = sorted(
        (
            (-round(a[1] - b[1], 9), a[0], b[0])
            for a, b in itertools.permutations(enumerate([0.1, 0.9, 0.5, 0.9, 0.0, 0.3], 1), 2)
            if a[1] - b[1] >= 0.4 - 1e-12
        ),
    )
    found, left_out = pairs(star, gap=0.4 - 1e-12, most=100)
    assert [(-round(row["gap"], 9)) for row in found] == [pair[0] for pair in slow]
    assert {(row["chosen_node"], row["rejected_node"]) for row in found} == {
        (str(a), str(b)) for _, a, b in slow
    }
    assert not left_out["groups with further pairs"]
    found, left_out = pairs(star, gap=0.4 - 1e-12, most=2)
    assert [(row["chosen_node"], row["rejected_node"]) for row in found] == [("2", "5"), ("4", "5")]
    assert left_out["groups with further pairs"] == 1
    assert pairs(star, gap=0, most=100)[0][-1]["gap"] > 0  # equal values prefer nothing


def labels(tree: RolloutTree, threshold: float = 0.5) -> tuple[list[Any], Counter[str]]:
    left_out: Counter[str] = Counter()
    return list(step_labels(tree, WHERE, threshold=threshold, left_out=left_out)), left_out


def test_labels_say_of_every_step_whether_its_value_reaches_the_threshold() -> None:
    rows, _ = labels(TREE)
    assert [(row["leaf"], row["completions"], row["labels"], row["values"]) for row in rows] == [
        ("1.1", ["s1", "s3"], [True, True], [0.5, 1]),
        ("1.2", ["s1", "s4"], [True, False], [0.5, 0]),
        ("2.1", ["s2", "s5"], [False, False], [0.25, 0]),
        ("2.2", ["s2", "s6"], [False, True], [0.25, 0.5]),
    ]
    assert {row["prompt"] for row in rows} == {"s0"}
    assert rows[0]["nodes"] == ["1", "1.1"]


def test_labels_read_given_text_with_what_stands_before_it_and_skip_what_has_no_value() -> None:
    given = changed(
        TREE, finish={1: FinishReason.GIVEN, 5: FinishReason.GIVEN}, texts={6: ""}, value={4: NAN}
    )
    rows, left_out = labels(given)
    assert [(row["prompt"], row["completions"]) for row in rows] == [
        ("s0s1", ["s3"]),  # 1 was given
        ("s0", ["s2s5"]),  # so was 2.1
        ("s0", ["s2"]),  # 2.2 has no text
    ]
    assert left_out["answers with a step without value"] == 1


def test_best_answers_are_correct_each_text_once_and_at_most_so_many() -> None:
    older = TREE
    newer = dataclasses.replace(TREE, policy_version=5, texts=tuple(f"t{text}" for text in TREE.texts))
    again = dataclasses.replace(older, policy_version=9)  # the same texts from a newer policy
    left_out: Counter[str] = Counter()
    trees = [(older, {"step": 1}), (newer, {"step": 6}), (again, {"step": 10})]
    best = BestAnswers(3, left_out)
    for tree, where in trees:
        best.add(tree, where)
    rows = best.rows()
    # Rewards 1 before 1/2; of equal ones the newest policy's.
    assert [(row["step"], row["node"], row["reward"]) for row in rows] == [
        (10, "1.1", 1),
        (6, "1.1", 1),
        (10, "2.2", 0.5),
    ]
    assert rows[0]["messages"] == [
        {"role": "user", "content": "s0"},
        {"role": "assistant", "content": "s1s3"},
    ]
    assert left_out == {"answers of equal text": 1, "further answers to a problem": 2}
