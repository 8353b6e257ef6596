"""From a leaf's verdict to its reward R: what the estimators work on. Pure numpy, torch-free.

    correct          `reward.correct`, everything else that was judged `reward.incorrect`
    overlong         + min(0, (max - buffer - length) / buffer) factor, at least -factor        DAPO
    budget b         correct: f(b) within it, f(length) - alpha |length - b| beyond it; wrong or longer
                     than L: 0; f(n) = beta cos(pi n / 2 L)                                     HBPO
    kl               - coefficient * sum over the answer of log(policy / reference)               RLOO

A leaf whose verifier failed has no reward, whatever its length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.advantages import budget_reward
from trainer.schema.reward import OverlongShaping, RewardConfig
from trainer.tree import ROOT, FinishReason, RolloutTree, Verdict


def shape_rewards(
    trees: Sequence[RolloutTree],
    reward: RewardConfig,
    budgets: Sequence[int] = (),
    kl: Sequence[NDArray[np.float64]] | None = None,
) -> list[RolloutTree]:
    """The verified trees with `reward` as the estimators see it. kl: per tree [N], of leaves log(policy /
    reference) summed over the answer; needed only with a KL coefficient.
    """
    shaped = []
    for number, tree in enumerate(trees):
        rewards = rewards_of(tree, reward, budgets)
        if reward.kl_coefficient:
            if kl is None:
                raise ValueError(
                    "reward.kl_coefficient needs the answers' log-ratios to the reference model."
                )
            rewards = rewards - reward.kl_coefficient * kl[number]
        shaped.append(tree.with_verdicts(tree.verdict, rewards, tree.answers))
    return shaped


def rewards_of(tree: RolloutTree, reward: RewardConfig, budgets: Sequence[int] = ()) -> NDArray[np.float64]:
    """[N] R of judged leaves, NaN elsewhere."""
    judged = tree.is_leaf() & (tree.verdict != Verdict.NONE) & (tree.verdict != Verdict.ERROR)
    correct = tree.verdict == Verdict.CORRECT
    rewards = np.where(correct, reward.correct, reward.incorrect)
    lengths = answer_tokens(tree)
    shaping = reward.shaping
    if shaping.kind == "overlong":
        rewards = rewards + overlong_penalty(lengths, shaping)
    elif shaping.kind == "budget":
        rewards = np.zeros(tree.n_nodes)
        for leaf in np.flatnonzero(judged & correct & (lengths <= shaping.max_tokens)).tolist():
            budget, length = budgets[int(tree.subgroup[leaf])], int(lengths[leaf])
            rewards[leaf] = budget_reward(max(length, budget), shaping)
            rewards[leaf] -= shaping.alpha * max(0, length - budget)
    return np.where(judged, rewards, np.nan)


def overlong_penalty(lengths: NDArray[np.int64], shaping: OverlongShaping) -> NDArray[np.float64]:
    """[N] from 0 to -factor (arXiv:2503.14476, soft overlong punishment)."""
    over = (shaping.max_tokens - shaping.buffer_tokens - lengths) / shaping.buffer_tokens
    penalty: NDArray[np.float64] = shaping.factor * np.clip(over, -1.0, 0.0)
    return penalty


def answer_tokens(tree: RolloutTree) -> NDArray[np.int64]:
    """[N] sampled tokens from the root to each node; the prompt and given text do not count."""
    counts = tree.token_counts()
    counts[tree.finish == FinishReason.GIVEN] = 0
    counts[ROOT] = 0
    for node in range(1, tree.n_nodes):
        counts[node] += counts[tree.parent[node]]
    return counts
