"""From leaf rewards to a value for every segment: the backups. Pure numpy, torch-free.

A leaf whose verifier failed has no reward and enters no mean. A leaf counts once for every sampled answer
that ended in it (`RolloutTree.copies`), so merged answers give what the unmerged ones give.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from trainer.tree import ROOT, FinishReason, RolloutTree

Floats = NDArray[np.float64]
Backup = Literal["child_mean", "leaf_mean", "visit_weighted", "quality"]
EQUAL_WITHIN: Final = 1e-12  # rewards and values closer than this are equal


def leaf_rewards(tree: RolloutTree) -> Floats:
    """[N] R_i of scored leaves, NaN elsewhere."""
    return np.where(tree.is_leaf(), tree.reward, np.nan)


def answer_weights(tree: RolloutTree, rewards: Floats) -> Floats:
    """[N] scored answers at or below each node; of a leaf its copies, 0 where it has no reward."""
    own = np.where(np.isfinite(rewards), tree.copies, 0).astype(np.float64)
    return tree.sum_over_leaves(own)


def backed_up_values(tree: RolloutTree, backup: Backup) -> Floats:
    """[N] V(n) by one of four rules; NaN where no leaf below has a reward. A leaf's is its reward.

        child_mean       V(n) = mean of V over the children that have one          TreeRPO §3.1
        leaf_mean        V(n) = mean of the rewards below, every answer alike
        visit_weighted   V(n) = sum max(1, N_c) V(c) / sum max(1, N_c)             MCTS-DPO's search
        quality          `quality_values`                                          ReST-MCTS*

    The first two differ when branches end early: a child counts once, however many leaves hang below it. Of a
    search that left a node unfinished, visit_weighted and quality take the score that the search gave it.
    """
    rewards = leaf_rewards(tree)
    if backup == "leaf_mean":
        return leaf_means(tree, rewards)
    if backup == "quality":
        return quality_values(tree, rewards)
    if backup == "visit_weighted":
        return _weighted_child_mean(
            tree, scored_leaves(tree, rewards), np.maximum(tree.visits, 1).astype(np.float64)
        )
    return _weighted_child_mean(tree, rewards, np.ones(tree.n_nodes))


def scored_leaves(tree: RolloutTree, rewards: Floats) -> Floats:
    """[N] rewards, and at leaves that a search gave up (PRUNED) the score it gave them."""
    scores: Floats = np.where(
        tree.finish == FinishReason.PRUNED, np.where(tree.is_leaf(), tree.value, np.nan), rewards
    )
    return scores


def leaf_means(tree: RolloutTree, per_leaf: Floats) -> Floats:
    """[N] mean of `per_leaf` [N] over the leaves at or below each node, weighted by copies; NaN leaves count
    not at all.
    """
    total = tree.sum_over_leaves(np.where(np.isfinite(per_leaf), per_leaf * tree.copies, 0.0))
    return divided(total, answer_weights(tree, per_leaf))


def _weighted_child_mean(tree: RolloutTree, leaves: Floats, weights: Floats) -> Floats:
    """[N] of a leaf `leaves` [N]; of an inner node the mean over the children that have a value, by their
    weights [N].
    """
    value: list[float] = leaves.tolist()
    parent: list[int] = tree.parent.tolist()
    weight: list[float] = weights.tolist()
    total = [0.0] * tree.n_nodes
    count = [0.0] * tree.n_nodes
    for node in range(tree.n_nodes - 1, -1, -1):  # children stand after their parent
        if count[node]:
            value[node] = total[node] / count[node]
        if node != ROOT and value[node] == value[node]:
            total[parent[node]] += weight[node] * value[node]
            count[parent[node]] += weight[node]
    return np.array(value)


def quality_values(tree: RolloutTree, rewards: Floats) -> Floats:
    """[N] the quality value of ReST-MCTS* (arXiv:2406.03816, as in its released code), in [0, 1].

        m(correct leaf) = 1,  m(n) = 1 + min m over its children that reach a correct leaf
        on a wrong branch m is that of its nearest ancestor that reaches one
        V(root) = 0,  V(n) = max(0, V(p) + (1 - V(p)) r / m(n)),  r = 1 if n reaches a correct leaf, else -1

    A correct leaf always gets 1. Where nothing in the tree is correct every value is 0.
    """
    n = tree.n_nodes
    steps = np.where(np.nan_to_num(rewards) > 0.5, 1.0, np.inf)
    for node in range(n - 1, 0, -1):
        steps[tree.parent[node]] = min(steps[tree.parent[node]], steps[node] + 1)
    reaches = np.isfinite(steps)
    value = np.zeros(n)
    for node in range(1, n):
        above = int(tree.parent[node])
        if not reaches[node]:
            steps[node] = steps[above]
        if np.isfinite(steps[node]):
            sign = 1.0 if reaches[node] else -1.0
            value[node] = max(0.0, value[above] + (1 - value[above]) * sign / steps[node])
    return value


def divided(total: NDArray[Any], count: NDArray[Any]) -> Floats:
    """total / count, NaN where count is 0."""
    quotient: Floats = np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)
    return quotient
