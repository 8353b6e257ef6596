from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.trainer.trees import tree_of
from trainer.rewards import answer_tokens, rewards_of, shape_rewards
from trainer.schema.reward import BudgetShaping, OverlongShaping, RewardConfig
from trainer.tree import FinishReason, RolloutTree, Verdict


def flat(verdicts: list[int], lengths: list[int]) -> RolloutTree:
    tree = tree_of([0] * len(verdicts), tokens_per_segment=lengths)
    return replace(tree, verdict=np.array([0, *verdicts], np.uint8))


ALL = [Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNPARSED, Verdict.TRUNCATED, Verdict.ERROR]


def test_verdicts_become_rewards_and_an_error_none() -> None:
    found = rewards_of(flat(ALL, [1] * 5), RewardConfig(correct=1, incorrect=-1))
    assert found[1:5].tolist() == [1, -1, -1, -1]
    assert math.isnan(found[5])
    assert math.isnan(found[0])


def test_overlong_penalty_by_hand() -> None:
    # Longest 10, buffer 4: none up to 6 tokens, -1/4 at 7, -1/2 at 8, -1 at 10 and beyond.
    reward = RewardConfig(shaping=OverlongShaping(max_tokens=10, buffer_tokens=4))
    tree = flat([Verdict.CORRECT] * 5, [6, 7, 8, 10, 12])
    assert rewards_of(tree, reward)[1:].tolist() == [1, 0.75, 0.5, 0, 0]


def test_length_counts_the_whole_path_and_no_given_text() -> None:
    tree = tree_of([[1, 0]], tokens_per_segment=[5, 2, 3])
    assert answer_tokens(tree).tolist() == [0, 5, 7, 8]
    finish = tree.finish.copy()
    finish[1] = FinishReason.GIVEN
    assert answer_tokens(replace(tree, finish=finish)).tolist() == [0, 0, 2, 3]


def test_budget_rewards_by_hand() -> None:
    # L = 40, beta 1, alpha .01; budget 10: f(10) = cos(pi / 8) = .92388 within it; 20: cos(pi / 4) - .1.
    reward = RewardConfig(shaping=BudgetShaping(max_tokens=40, beta=1.0, alpha=0.01))
    tree = flat([Verdict.CORRECT] * 4 + [Verdict.INCORRECT], [4, 10, 20, 41, 4])
    found = rewards_of(tree, reward, [10])
    assert found[1:].tolist() == pytest.approx([0.92388, 0.92388, 0.70711 - 0.1, 0, 0], abs=1e-5)


def test_kl_is_taken_off_and_its_absence_is_an_error() -> None:
    reward = RewardConfig(kl_coefficient=0.5)
    tree = flat([Verdict.CORRECT, Verdict.INCORRECT], [1, 1])
    (found,) = shape_rewards([tree], reward, kl=[np.array([0.0, 0.2, -0.4])])
    assert found.reward[1:].tolist() == pytest.approx([0.9, 0.2])
    with pytest.raises(ValueError, match="kl_coefficient"):
        shape_rewards([tree], reward)
