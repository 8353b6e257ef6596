"""From leaf rewards to one value and one advantage per segment: the estimators, as plain numpy.

The trainer, the node inspector and anything else that shows an advantage call this one module. Pure and
torch-free.

TreeRPO (arXiv:2506.05183 §3.1-3.3), backup child_mean, group siblings, scale bernoulli_variance, spread node,
filter range:

    V(n) = mean of V over n's children; of a leaf, its reward
    G    = all children of one node; kept iff max V - min V > tau
    mu   = mean of V over G
    A(c) = (V(c) - mu) / (mu (1 - mu))        the Bernoulli variance, not its root; the same for every token
    of segment c

GRPO (arXiv:2402.03300 §4.1.2), group prompt, scale group_std, spread trajectory:

    A_i = (R_i - mean R) / (std R + eps)       over all answers i to one prompt; the same for every token of
    answer i

A leaf without reward (the verifier failed) is in no mean and gets no credit; neither does an only child.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.schema.credit import CreditConfig
from trainer.tree import ROOT, CreditState, RolloutTree

Floats = NDArray[np.float64]


class RewardRangeError(ValueError):
    """The Bernoulli variance mu (1 - mu) needs rewards in [0, 1]."""


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One node that an advantage was, or was not, compared with."""

    node: int
    name: str
    value: float
    in_group: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """How one node came by its value and advantage, recomputed by the functions that made them.

    `formula` in symbols and `numbers` the same line with this node's figures; `value_formula` and
    `value_numbers` likewise for its value; `group` what it was compared with; `filter` a sentence on whether
    its group was kept, "" where no group exists. `advantage` is NaN without credit; `state` then says why and
    `reason` says it in a sentence.
    """

    node: int
    name: str
    value: float
    value_formula: str
    value_numbers: str
    formula: str
    numbers: str
    group: tuple[GroupRow, ...]
    filter: str
    reason: str
    state: CreditState
    advantage: float


def credit_trees(trees: Sequence[RolloutTree], config: CreditConfig) -> list[RolloutTree]:
    """The trees with `value`, `advantage` and `credit_state` filled. Raises RewardRangeError."""
    return [credit_tree(tree, config) for tree in trees]


def credit_tree(tree: RolloutTree, config: CreditConfig) -> RolloutTree:
    """One tree with its credit columns filled; other trees never matter."""
    value = backed_up_values(tree, config)
    advantage, state = advantages(tree, value, config)
    return tree.with_credit(value, advantage, state)


def backed_up_values(tree: RolloutTree, config: CreditConfig) -> Floats:
    """[N] V(n): of a leaf its reward; else the mean over its children that have a value (child_mean), or over
    all rewarded leaves below it (leaf_mean). NaN where no leaf below has a reward.

    The two differ when branches end early: a child counts once, however many leaves hang below it.
    """
    is_leaf = tree.is_leaf()
    rewards = np.where(is_leaf, tree.reward, np.nan)
    if config.scale.kind == "bernoulli_variance" and np.any((rewards < 0) | (rewards > 1)):
        bad = rewards[(rewards < 0) | (rewards > 1)][0]
        raise RewardRangeError(
            f"Problem {tree.problem_id} has a reward of {bad:g}; scale bernoulli_variance needs rewards from "
            f"0 to 1. "
            "Use another scale, or a verifier that gives 0 to 1."
        )
    if config.backup == "leaf_mean":
        scored = is_leaf & np.isfinite(rewards)
        total = tree.sum_over_leaves(np.where(scored, rewards, 0.0))
        return _divided(total, tree.sum_over_leaves(scored.astype(np.float64)))
    value: list[float] = rewards.tolist()
    parent: list[int] = tree.parent.tolist()
    total_below = [0.0] * tree.n_nodes
    children = [0] * tree.n_nodes
    for node in range(tree.n_nodes - 1, -1, -1):  # children stand after their parent
        if children[node]:
            value[node] = total_below[node] / children[node]
        if node != ROOT and value[node] == value[node]:
            total_below[parent[node]] += value[node]
            children[parent[node]] += 1
    return np.array(value)


def advantages(tree: RolloutTree, value: Floats, config: CreditConfig) -> tuple[Floats, NDArray[np.uint8]]:
    """[N] A(n), NaN without credit, and [N] CreditState saying why.

    value [N]: `backed_up_values`. With group siblings every node but the root is compared with its siblings;
    with group prompt every leaf with all leaves, and inner nodes are PER_PATH. All-equal groups that no
    filter drops have A = 0.
    """
    member, group = _groups(tree, config)
    state = np.full(tree.n_nodes, CreditState.NO_REWARD, np.uint8)
    state[~member] = CreditState.PER_PATH
    state[ROOT] = CreditState.NONE
    advantage = np.full(tree.n_nodes, np.nan)
    scored = np.flatnonzero(member & np.isfinite(value))
    if not len(scored):
        return advantage, state
    of, v = group[scored], value[scored]  # [S] group of each scored member, its value
    size = np.bincount(of, minlength=tree.n_nodes)  # [N] by group; nearly all groups are parents
    mean = _divided(np.bincount(of, v, minlength=tree.n_nodes), size)
    low, high = np.full(tree.n_nodes, np.inf), np.full(tree.n_nodes, -np.inf)
    np.minimum.at(low, of, v)
    np.maximum.at(high, of, v)
    is_alone = size[of] < 2
    if config.filter.kind == "range":
        is_dropped = ~is_alone & ~(high[of] - low[of] > config.filter.tau)
    else:
        is_dropped = np.zeros(len(of), np.bool_)
    is_kept = ~is_alone & ~is_dropped
    centred = v - mean[of]
    # An all-equal group: its rounded mean may miss its value by one bit.
    centred[high[of] == low[of]] = 0.0
    credited = scored[is_kept]
    advantage[credited] = centred[is_kept] / _scales(centred, of, mean, size, config)[of[is_kept]]
    state[credited] = CreditState.CREDITED
    state[scored[is_alone]] = CreditState.ONLY_CHILD
    state[scored[is_dropped]] = CreditState.DROPPED_BY_FILTER
    return advantage, state


def _groups(tree: RolloutTree, config: CreditConfig) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """[N] whether a node is compared with a group at all, and [N] the number of that group."""
    if _group(config) == "siblings":
        member = np.ones(tree.n_nodes, np.bool_)
        member[ROOT] = False
        return member, np.maximum(tree.parent, ROOT).astype(np.int64)
    return tree.is_leaf(), np.zeros(tree.n_nodes, np.int64)


def _group(config: CreditConfig) -> str:
    return config.baseline.group if config.baseline.kind == "group_mean" else "prompt"


def _scales(
    centred: Floats, of: NDArray[np.int64], mean: Floats, size: NDArray[Any], config: CreditConfig
) -> Floats:
    """[N] what each group's centred values are divided by; 1 where that would be 0 (they are all 0 then)."""
    if config.scale.kind == "none":
        return np.ones_like(mean)
    if config.scale.kind == "bernoulli_variance":
        scale = mean * (1 - mean)
    else:
        squares = np.bincount(of, centred**2, minlength=len(mean))
        scale = np.sqrt(_divided(squares, np.maximum(size - config.scale.ddof, 0))) + config.scale.eps
    return np.where(scale > 0, scale, 1.0)


def _divided(total: NDArray[Any], count: NDArray[Any]) -> Floats:
    """total / count, NaN where count is 0."""
    quotient: Floats = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    return quotient


# ---------------------------------------------------------------------------------------------------- in
# words


def explain(tree: RolloutTree, node: int, config: CreditConfig) -> Explanation:
    """Value and advantage of `node` in formulas and figures, computed anew from the leaf rewards.

    Raises IndexError when the tree has no such node, and RewardRangeError.
    """
    if not 0 <= node < tree.n_nodes:
        raise IndexError(f"There is no node {node}; the tree has nodes 0 to {tree.n_nodes - 1}.")
    value = backed_up_values(tree, config)
    advantage, states = advantages(tree, value, config)
    state = CreditState(int(states[node]))
    member, group = _groups(tree, config)
    rows: tuple[GroupRow, ...] = ()
    members = np.empty(0)
    if state not in (CreditState.NONE, CreditState.PER_PATH):
        peers = np.flatnonzero(member & (group == group[node]))
        rows = tuple(
            GroupRow(int(peer), tree.name(int(peer)), float(value[peer]), bool(np.isfinite(value[peer])))
            for peer in peers
        )
        members = value[peers][np.isfinite(value[peers])]
    value_formula, value_numbers = _value_lines(tree, node, value, config)
    formula = _FORMULAS[config.scale.kind, _group(config)]
    numbers = ""
    if state is CreditState.CREDITED:
        numbers = _numbers_line(float(value[node]), members, float(advantage[node]), config)
    return Explanation(
        node=node,
        name=tree.name(node),
        value=float(value[node]),
        value_formula=value_formula,
        value_numbers=value_numbers,
        formula=formula,
        numbers=numbers,
        group=rows,
        filter=_filter_sentence(members, config),
        reason=_reason(state),
        state=state,
        advantage=float(advantage[node]),
    )


_FORMULAS = {
    ("none", "siblings"): "A = V − μ,  μ = mean V of the siblings",
    ("none", "prompt"): "A = R − mean R,  over all answers to the prompt",
    ("group_std", "siblings"): "A = (V − μ) / (σ + ε),  μ, σ of the siblings' V",
    ("group_std", "prompt"): "A = (R − mean R) / (std R + ε),  over all answers to the prompt",
    ("bernoulli_variance", "siblings"): "A = (V − μ) / (μ (1 − μ)),  μ = mean V of the siblings",
    ("bernoulli_variance", "prompt"): "A = (R − μ) / (μ (1 − μ)),  μ = mean R over all answers to the prompt",
}


def _value_lines(tree: RolloutTree, node: int, value: Floats, config: CreditConfig) -> tuple[str, str]:
    is_leaf = tree.is_leaf()
    if is_leaf[node]:
        return "V = reward of the answer", f"V = {_figure(value[node])}"
    if config.backup == "child_mean":
        formula = "V = mean V of the children"
        below = np.flatnonzero(tree.parent == node)
    else:
        formula = "V = mean reward of the leaves below"
        reached = np.zeros(tree.n_nodes, np.bool_)
        reached[node] = True
        for other in range(node + 1, tree.n_nodes):
            reached[other] = reached[tree.parent[other]]
        below = np.flatnonzero(reached & is_leaf)
    figures = [_figure(v) for v in value[below][:_MOST_FIGURES] if np.isfinite(v)]
    if not figures:
        return formula, ""
    more = f", … {len(below)} in all" if len(below) > _MOST_FIGURES else ""
    return formula, f"V = mean({', '.join(figures)}{more}) = {_figure(value[node])}"


_MOST_FIGURES = 16


def _numbers_line(v: float, members: Floats, advantage: float, config: CreditConfig) -> str:
    mean = float(members.mean())
    top = f"({_figure(v)} − {_figure(mean)})"
    if config.scale.kind == "none":
        return f"A = {_figure(v)} − {_figure(mean)} = {_figure(advantage)}"
    if config.scale.kind == "bernoulli_variance":
        return f"A = {top} / ({_figure(mean)} × {_figure(1 - mean)}) = {_figure(advantage)}"
    std = float(members.std(ddof=config.scale.ddof))
    return f"A = {top} / ({_figure(std)} + {config.scale.eps:g}) = {_figure(advantage)}"


def _filter_sentence(members: Floats, config: CreditConfig) -> str:
    if len(members) < 2:
        return ""
    spread = float(members.max() - members.min())
    if config.filter.kind == "none":
        return "There is no group filter: every group is kept."
    if spread > config.filter.tau:
        return f"Kept: max V − min V = {_figure(spread)} > τ = {config.filter.tau:g}."
    return f"Dropped: max V − min V = {_figure(spread)} ≤ τ = {config.filter.tau:g}."


def _reason(state: CreditState) -> str:
    return {
        CreditState.NONE: "The prompt was not sampled, so it gets no credit.",
        CreditState.CREDITED: "",
        CreditState.DROPPED_BY_FILTER: "No credit: the values of its group differ too little.",
        CreditState.ONLY_CHILD: "No credit: there is nothing to compare it with.",
        CreditState.NO_REWARD: "No credit: no leaf at or below it has a reward.",
        CreditState.PER_PATH: "Credit is given per answer: its tokens take the advantage of each leaf below.",
    }[state]


def _figure(number: float) -> str:
    """A number for people: four decimals, without trailing zeros, with a true minus."""
    text = f"{float(number):.4f}".rstrip("0").rstrip(".")
    return (text if text not in ("-0", "") else "0").replace("-", "−")
