from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.trainer.trees import credit_tree, tree_of
from trainer.presets import PRESETS
from trainer.rollout_metrics import rollout_metrics
from trainer.tree import FinishReason, RolloutTree, Verdict

GRPO = PRESETS["grpo-tiny"].config.credit
TREERPO = PRESETS["treerpo-tiny"].config.credit


def ragged() -> list[RolloutTree]:
    """root -> a (1; 2 tokens), b (3 tokens) -> c (0; 1), d (1; 4); and root -> e (error; 2), f (0; 5)."""
    first = tree_of([1, [0, 1]], tokens_per_segment=[2, 3, 1, 4])
    second = tree_of([math.nan, 0], tokens_per_segment=[2, 5])
    verdict = second.verdict.copy()
    verdict[2] = Verdict.TRUNCATED
    return [first, replace(second, verdict=verdict)]


def test_every_metric_by_hand() -> None:
    trees = [credit_tree(tree, TREERPO) for tree in ragged()]
    found = rollout_metrics(trees)
    entropies = [float(e) for tree in trees for e in tree.entropies[tree.token_offsets[1] :]]
    # First tree: V(b) .5, group of root mu .75: A(a) = .25 / .1875, A(b) = -.25 / .1875; below b: -+2.
    # Second: one scored child, no credit.
    expected = {
        "reward/mean": (2 / 3 + 0) / 2,
        "reward/pass1": (2 / 3 + 0) / 2,
        # Answers: a 2, c 4, d 7, e 2, f 5.
        "sampling/response_tokens": 20 / 5,
        "sampling/truncated_share": 1 / 5,
        "sampling/unparsed_share": 0.0,
        "sampling/error_share": 1 / 5,
        "tree/unique_tokens": 17.0,
        "tree/flat_tokens": 20.0,
        "tree/leaves": 5 / 2,
        "credit/zero_variance_share": 0.0,
        "credit/credited_share": 10 / 17,
        "credit/advantage_mean_abs": (2 * 0.25 / 0.1875 + 4) / 4,
        "policy/entropy": sum(entropies) / 17,
    }
    assert found == pytest.approx(expected, rel=1e-6)


def test_flat_groups_and_unreadable_answers_are_counted() -> None:
    """root -> (1), (1); root -> g -> (0), (0, unread); root -> (1): two of three groups are flat."""
    second = tree_of([[0, 0], 1])
    verdict = second.verdict.copy()
    verdict[4] = Verdict.UNPARSED
    trees = [tree_of([1, 1]), replace(second, verdict=verdict)]
    found = rollout_metrics([credit_tree(tree, TREERPO) for tree in trees])
    assert found["credit/zero_variance_share"] == pytest.approx(2 / 3)
    assert found["sampling/unparsed_share"] == pytest.approx(1 / 5)
    assert found["sampling/truncated_share"] == 0


def test_merged_answers_count_as_often_as_they_were_sampled() -> None:
    tree = credit_tree(
        replace(tree_of([1, 0], tokens_per_segment=[2, 3]), copies=np.array([0, 3, 1], np.int32)), GRPO
    )
    found = rollout_metrics([tree])
    assert found["reward/mean"] == pytest.approx(0.75)
    assert found["tree/leaves"] == 4
    assert found["tree/flat_tokens"] == 9
    assert found["tree/unique_tokens"] == 5
    assert found["sampling/response_tokens"] == pytest.approx(9 / 4)


def test_what_a_search_gave_up_is_no_answer() -> None:
    tree = tree_of([1, 0, 0], tokens_per_segment=[2, 3, 4])
    finish, verdict, reward = tree.finish.copy(), tree.verdict.copy(), tree.reward.copy()
    finish[3], verdict[3], reward[3] = FinishReason.PRUNED, Verdict.NONE, math.nan
    found = rollout_metrics([credit_tree(replace(tree, finish=finish, verdict=verdict, reward=reward), GRPO)])
    assert found["tree/leaves"] == 2
    assert found["reward/mean"] == 0.5
    assert found["tree/unique_tokens"] == 9
    assert found["sampling/response_tokens"] == 2.5


def test_nothing_counted_is_not_a_number() -> None:
    found = rollout_metrics([])
    assert math.isnan(found["reward/mean"])
    assert math.isnan(found["sampling/response_tokens"])
    assert found["tree/unique_tokens"] == 0
