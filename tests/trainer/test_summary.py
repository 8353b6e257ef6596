from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from tests.trainer.trees import T1, credit_tree, tree_of
from trainer.presets import PRESETS
from trainer.summary import duplicate_share, grpo_flips, summarise, zero_variance_share
from trainer.tree import FinishReason, Verdict

TREERPO = PRESETS["treerpo-tiny"].config.credit


def test_summary_by_hand() -> None:
    # T1, 3 prompt tokens, segments of 2: 6 segments, 12 unique tokens; 4 answers of 4 tokens, 16 flat.
    tree = credit_tree(tree_of(T1), TREERPO)
    found = summarise(tree)
    assert found.n_nodes == 7
    assert (found.n_leaves, found.n_correct, found.n_unparsed, found.n_truncated, found.n_errors) == (
        4,
        1,
        0,
        0,
        0,
    )
    assert (found.depth, found.tokens, found.tokens_flat) == (2, 12, 16)
    assert found.value == 0.25
    assert (found.advantage_min, found.advantage_max) == (-2, 2)
    assert found.zero_variance_share == pytest.approx(1 / 3)  # of the groups root, A, B only B is all equal
    assert found.mean_entropy == pytest.approx(float(tree.entropies[3:].mean()))


def test_summary_counts_each_verdict() -> None:
    tree = tree_of([1, 0, math.nan, 0, 0])
    verdict = tree.verdict.copy()
    verdict[4:] = [Verdict.UNPARSED, Verdict.TRUNCATED]
    found = summarise(credit_tree(tree.with_verdicts(verdict, tree.reward, tree.answers), TREERPO))
    assert (found.n_correct, found.n_unparsed, found.n_truncated, found.n_errors) == (1, 1, 1, 1)


def test_summary_counts_answers_with_their_copies_and_what_was_given_up_apart() -> None:
    tree = tree_of([1, 0, 0, math.nan])
    finish, verdict = tree.finish.copy(), tree.verdict.copy()
    finish[4], verdict[4] = FinishReason.PRUNED, Verdict.NONE
    copies = np.array([0, 3, 2, 1, 1], np.int32)
    found = summarise(dataclasses.replace(tree, finish=finish, verdict=verdict, copies=copies))
    assert (found.n_leaves, found.n_answers, found.n_given_up) == (4, 6, 1)
    assert (found.n_correct, found.n_errors) == (3, 0)


def test_summary_of_a_tree_without_credit_is_not_a_number_and_not_zero() -> None:
    found = summarise(credit_tree(tree_of([math.nan]), TREERPO))
    assert all(
        math.isnan(v)
        for v in (found.value, found.advantage_min, found.advantage_max, found.zero_variance_share)
    )


def test_zero_variance_share_counts_groups_of_two_or_more_scored_siblings() -> None:
    trees = [credit_tree(tree_of(nested), TREERPO) for nested in (T1, [[1], [0, math.nan]])]
    # T1: 3 groups, one equal. The other: the root group (1, 0) counts, the two below have one scored child
    # each.
    assert zero_variance_share(trees) == pytest.approx(1 / 4)


def test_signals_by_hand() -> None:
    # T1: A has 1 of 2, B 0 of 2. TreeRPO: A.1 +2, A.2 -2, A +, B -; B's children are all equal, so dropped.
    tree = credit_tree(tree_of(T1), TREERPO)
    found = summarise(tree)
    assert found.advantage_spread == 4
    assert found.max_entropy == pytest.approx(float(tree.entropies[3:].max()))
    assert found.mean_logprob == pytest.approx(float(tree.logprobs[3:].mean()))
    assert math.isnan(found.cliff)  # Beta(1, 3) below Beta(2, 2): 0.8
    assert found.cliff_node == ""
    # GRPO: the mean reward is 1/4; A's answers are on average above, so A +, A.1 +, A.2 -, B -: all agree.
    assert found.grpo_flips == 0


def test_the_cliff_is_named() -> None:
    found = summarise(credit_tree(tree_of([1, [[0, 0, 0, 0], [1, 1, 1, 1, 1]]]), TREERPO))
    assert (found.cliff, found.cliff_node) == (pytest.approx(-5 / 9), "2.1")


def test_segments_that_plain_grpo_would_push_the_other_way_are_counted() -> None:
    # Mean reward 4/10. A has 3 of 4, B 1 of 6. B.2 has 1 of 3: better than its siblings (0 of 3), so TreeRPO
    # pushes it up, and GRPO, which compares with all answers, down. Its answers agree.
    tree = credit_tree(tree_of([[1, 1, 1, 0], [[0, 0, 0], [1, 0, 0]]]), TREERPO)
    assert tree.name(8) == "2.2"
    assert tree.advantage[8] > 0
    assert grpo_flips(tree) == 1
    assert grpo_flips(tree_of(T1)) is None  # nothing has credit
    assert grpo_flips(credit_tree(tree_of([[0, 0], [0, 0]]), TREERPO)) is None


def test_duplicates_are_siblings_with_equal_tokens() -> None:
    tree = tree_of([[1, 0], [0, 0], 1], tokens_per_segment=1)  # nodes 1, 2, 3 and below 4, 5 | 6, 7
    tokens = np.array([9, 9, 9, 5, 5, 6, 7, 7, 7, 7], np.int32)  # 1 = 2; 4 = 5; 6 = 7, each 7
    tree = dataclasses.replace(tree, tokens=tokens)
    assert duplicate_share(tree) == pytest.approx(3 / 7)
    # The answer at 3 was sampled three times: two repeats more. 6 and 7 are given: they do not count.
    finish = tree.finish.copy()
    finish[6:] = FinishReason.GIVEN
    merged = dataclasses.replace(tree, copies=np.array([0, 0, 0, 3, 1, 1, 1, 1], np.int32), finish=finish)
    assert duplicate_share(merged) == pytest.approx(4 / 7)
    assert math.isnan(duplicate_share(tree_of([[1]])))


def test_given_text_counts_in_no_token_signal() -> None:
    tree = tree_of([[1, 0], 0], tokens_per_segment=[1, 1, 1, 1])
    finish = tree.finish.copy()
    finish[1] = FinishReason.GIVEN
    entropies = np.array([0, 0, 0, 9, 1, 2, 3], np.float32)
    found = summarise(dataclasses.replace(tree, finish=finish, entropies=entropies, logprobs=-entropies))
    assert (found.mean_entropy, found.max_entropy, found.mean_logprob) == (2, 3, -2)
