"""From leaf rewards to a value for every segment: the backups. Pure numpy, torch-free.

A leaf whose verifier failed, and one that a search gave up, has no reward and enters no mean. A leaf counts
once for every sampled answer that ended in it (`RolloutTree.copies`), so merged answers give what the
unmerged ones give.
"""

from __future__ import annotations

import math
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from trainer.tree import ROOT, RolloutTree

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


def child_weights(tree: RolloutTree) -> Floats:
    """[N] how often a node counts among its siblings: once, and a leaf once for every answer that ended in
    it.
    """
    return np.maximum(tree.copies, 1).astype(np.float64)


def backed_up_values(tree: RolloutTree, backup: Backup) -> Floats:
    """[N] V(n) by one of four rules; NaN where no leaf at or below n has a reward. A leaf's is its reward.

        child_mean       V(n) = mean of V over the children that have one          TreeRPO §3.1
        leaf_mean        V(n) = mean of the rewards below, every answer alike
        visit_weighted   V(n) = sum max(1, N_c) V(c) / sum max(1, N_c)             MCTS-DPO's search
        quality          `quality_values`                                          ReST-MCTS*

    The first two differ when branches end early: a child counts once, however many leaves hang below it (a
    leaf, as often as answers ended in it).
    """
    rewards = leaf_rewards(tree)
    if backup == "leaf_mean":
        return leaf_means(tree, rewards)
    if backup == "quality":
        return quality_values(tree, rewards)
    weights = child_weights(tree) if backup == "child_mean" else visit_weights(tree)
    return _weighted_child_mean(tree, rewards, weights)


def visit_weights(tree: RolloutTree) -> Floats:
    """[N] max(1, N): visits of a search, at least one."""
    return np.maximum(tree.visits, 1).astype(np.float64)


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
    levels = tree.wide_levels()
    if levels:
        return _weighted_by_level(tree, leaves, weights, levels)
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


def _weighted_by_level(tree: RolloutTree, leaves: Floats, weights: Floats, levels: list[int]) -> Floats:
    """The same to the bit: children are added from the last to the first."""
    value = leaves.copy()
    total, count = np.zeros(tree.n_nodes), np.zeros(tree.n_nodes)
    for start, stop in zip(levels[-2::-1], levels[:0:-1], strict=True):  # the deepest first
        here = np.arange(start, stop)[::-1]
        inner = here[count[here] != 0]
        value[inner] = total[inner] / count[inner]
        if start == ROOT:
            return value
        known = here[~np.isnan(value[here])]
        np.add.at(total, tree.parent[known], weights[known] * value[known])
        np.add.at(count, tree.parent[known], weights[known])
    return value


def quality_values(tree: RolloutTree, rewards: Floats) -> Floats:
    """[N] the quality value of ReST-MCTS* (arXiv:2406.03816, as in its released code), in [0, 1].

        V(root) = 0,  V(n) = max(0, V(p) + (1 - V(p)) r / m(n)),  r = 1 if n reaches a correct leaf, else -1

    m: `steps_to_correct`. A correct leaf always gets 1. Where nothing in the tree is correct every value is
    0. NaN where no leaf below is scored: whether it would reach a correct one is not known.
    """
    steps, reaches = (column.tolist() for column in steps_to_correct(tree, rewards))
    scored: list[float] = answer_weights(tree, rewards).tolist()
    parent: list[int] = tree.parent.tolist()
    value = [0.0] * tree.n_nodes
    for node in range(1, tree.n_nodes):
        above = value[parent[node]]
        sign = 1.0 if reaches[node] else -1.0
        if math.isfinite(steps[node]):
            value[node] = max(0.0, above + (1 - above) * sign / steps[node])
    return np.where(np.array(scored) > 0, value, np.nan)


def steps_to_correct(tree: RolloutTree, rewards: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """[N] m(n), and [N] whether n reaches a correct leaf (reward above 0.5).

    m(correct leaf) = 1,  m(n) = 1 + min m over its children that reach a correct leaf
    on a wrong branch m is that of its nearest ancestor that reaches one; infinite where none does
    """
    steps: list[float] = np.where(np.nan_to_num(rewards) > 0.5, 1.0, np.inf).tolist()
    parent: list[int] = tree.parent.tolist()
    for node in range(tree.n_nodes - 1, 0, -1):
        steps[parent[node]] = min(steps[parent[node]], steps[node] + 1)
    reaches = np.isfinite(steps)
    for node in range(1, tree.n_nodes):
        if math.isinf(steps[node]):
            steps[node] = steps[parent[node]]
    return np.array(steps), reaches


def divided(total: NDArray[Any], count: NDArray[Any]) -> Floats:
    """total / count, NaN where count is 0."""
    quotient: Floats = np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)
    return quotient
