"""From values to advantages: baseline, filter, scale, spread, each a small function over numpy columns.

Every scale is a division, so an advantage is always

    A(n) = (amount(n) - offset) / divisor(n)

amount: the value less its baseline; offset: the batch's mean (batch_whiten alone, else 0). `Comparison` keeps
these three, so that whoever explains an advantage has the numbers that made it. Pure, torch-free.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.schema.credit import (
    Baseline,
    BatchStdScale,
    BatchWhitenScale,
    GroupMeanBaseline,
    LeaveOneOutBaseline,
    LogAvgExpBaseline,
    Scale,
)
from trainer.schema.reward import BudgetShaping
from trainer.tree import ROOT, CreditState, FinishReason, RolloutTree
from trainer.values import EQUAL_WITHIN, Floats, answer_weights, divided, leaf_means, leaf_rewards

Ints = NDArray[np.int64]
States = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """What each node was compared with. All [N]; NaN (or -1) where a node has none of it.

    value: V(n) by the run's backup. amount: V less its baseline, before any scale. baseline: what was taken
    off (NaN where the baseline is not one number). group: number of its group, -1 without; weight: how often
    it counts there. state: CREDITED where `amount` may train, else why not.
    """

    value: Floats
    amount: Floats
    baseline: Floats
    group: Ints
    weight: Floats
    state: States


# ------------------------------------------------------------------------------------------------ groups


@dataclass(frozen=True, slots=True, eq=False)
class GroupFigures:
    """Per group number: weighted count, mean, range and the sum of squares around the mean; NaN if empty."""

    size: Floats
    mean: Floats
    low: Floats
    high: Floats
    squares: Floats

    @property
    def is_flat(self) -> NDArray[np.bool_]:
        """Whether all values of a group are equal, up to rounding."""
        return ~(self.high - self.low > EQUAL_WITHIN)

    def std(self, ddof: int) -> Floats:
        """sqrt(sum w (v - mean)^2 / (sum w - ddof)); 0 where that has no meaning."""
        return np.sqrt(np.nan_to_num(divided(self.squares, np.maximum(self.size - ddof, 0))))


def group_figures(values: Floats, group: Ints, weight: Floats, n_groups: int) -> GroupFigures:
    """Of the nodes with a group and a finite value. values, group, weight [N]."""
    at = np.flatnonzero((group >= 0) & np.isfinite(values))
    of, v, w = group[at], values[at], weight[at]
    size = np.bincount(of, w, minlength=n_groups).astype(np.float64)
    mean = divided(np.bincount(of, w * v, minlength=n_groups), size)
    low, high = np.full(n_groups, np.inf), np.full(n_groups, -np.inf)
    np.minimum.at(low, of, v)
    np.maximum.at(high, of, v)
    squares = np.bincount(of, w * (v - mean[of]) ** 2, minlength=n_groups).astype(np.float64)
    return GroupFigures(size, mean, low, high, squares)


def groups_of(tree: RolloutTree, kind: str, values: Floats) -> tuple[Ints, Floats]:
    """[N] group number, -1 outside, and [N] weight. Siblings: every sampled node, once; tree and prompt: the
    leaves, by copies. `values` [N]: what is compared.
    """
    if kind == "siblings":
        group = tree.parent.astype(np.int64)
        group[tree.finish == FinishReason.GIVEN] = -1
        weight = np.ones(tree.n_nodes)
    else:
        numbers = tree.subgroup.astype(np.int64) if kind == "tree" else np.zeros(tree.n_nodes, np.int64)
        group = np.where(tree.is_leaf(), numbers, -1)
        weight = tree.copies.astype(np.float64)
    return group, np.where(np.isfinite(values), weight, 0.0)


# ------------------------------------------------------------------------------------------------ baselines


def compare(
    tree: RolloutTree,
    value: Floats,
    baseline: Baseline,
    *,
    budget: BudgetShaping | None,
    budgets: Sequence[int],
    is_trajectory: bool,
    selected: NDArray[np.bool_],
) -> Comparison:
    """Every node against its baseline (the classes of `schema.credit` hold the formulas).

    value [N]: `values.backed_up_values`; selected [N]: leaves that train (TreeRL's code formula counts them).
    """
    if baseline.kind in ("group_mean", "leave_one_out", "log_avg_exp"):
        return _against_group(tree, value, baseline)
    if baseline.kind == "parent_value":
        return _against_parent(tree, value)
    if baseline.kind == "ancestor_mean":
        return _against_ancestors(tree, value, baseline.weights, is_trajectory=is_trajectory)
    if baseline.kind == "root_and_parent":
        if baseline.form == "code":
            return _root_and_parent_code(tree, value, selected)
        above = np.maximum(tree.parent, ROOT)
        amount = (value - value[ROOT]) + (value - value[above])
        return _plain(tree, value, amount, np.full(tree.n_nodes, np.nan))
    if baseline.kind == "tree_and_prompt":
        return _tree_and_prompt(tree, value, baseline.parts, baseline.ddof, baseline.eps)
    if baseline.kind == "state":
        return _against_state(tree, value, baseline.eps, is_global=baseline.global_term)
    if baseline.kind == "budget":
        if budget is None:
            raise ValueError("Baseline budget needs the run's token budgets. Set reward.shaping to budget.")
        return _against_budget(tree, value, budget, budgets, baseline.ddof, baseline.eps)
    nothing = np.full(tree.n_nodes, np.nan)
    return _plain(tree, value, nothing, nothing, CreditState.NO_ADVANTAGE)


def _states(tree: RolloutTree, amount: Floats, otherwise: CreditState = CreditState.NO_REWARD) -> States:
    """[N] CREDITED where there is an amount; the root NONE, given nodes GIVEN, else `otherwise`."""
    state = np.where(np.isfinite(amount), np.uint8(CreditState.CREDITED), np.uint8(otherwise))
    state[tree.finish == FinishReason.GIVEN] = CreditState.GIVEN
    state[ROOT] = CreditState.NONE
    return state.astype(np.uint8)


def _plain(
    tree: RolloutTree,
    value: Floats,
    amount: Floats,
    baseline: Floats,
    otherwise: CreditState = CreditState.NO_REWARD,
) -> Comparison:
    """A comparison without a group. The siblings stand in for one, for those who look on."""
    group, weight = groups_of(tree, "siblings", value)
    amount = amount.copy()
    amount[ROOT] = np.nan
    amount[tree.finish == FinishReason.GIVEN] = np.nan
    return Comparison(value, amount, baseline, group, weight, _states(tree, amount, otherwise))


def _against_group(
    tree: RolloutTree, value: Floats, baseline: GroupMeanBaseline | LeaveOneOutBaseline | LogAvgExpBaseline
) -> Comparison:
    kind = "prompt" if isinstance(baseline, LogAvgExpBaseline) else baseline.group
    group, weight = groups_of(tree, kind, value)
    n_groups = max(tree.n_nodes, int(group.max(initial=0)) + 1)
    figures = group_figures(value, group, weight, n_groups)
    of = np.maximum(group, 0)
    size, mean = figures.size[of], figures.mean[of]
    if isinstance(baseline, GroupMeanBaseline):
        off = mean + baseline.shift
        amount = np.where(figures.is_flat[of], -baseline.shift, value - off)
    elif isinstance(baseline, LeaveOneOutBaseline):
        off = divided(size * mean - value, np.maximum(size - 1, 0))
        amount = np.where(figures.is_flat[of], 0.0, value - off)
    else:
        off = _log_avg_exp(value, group, weight, figures, baseline.tau)[of]
        amount = np.where(figures.is_flat[of], 0.0, value - off)
    alone = (size < 1.5) & (group >= 0)
    if baseline.single == "reward":
        amount, off = np.where(alone, value, amount), np.where(alone, 0.0, off)
    amount = np.where((group >= 0) & np.isfinite(value), amount, np.nan)
    state = _states(tree, amount)
    if baseline.single == "none":
        state[alone & np.isfinite(amount)] = CreditState.ONLY_CHILD
        amount[alone] = np.nan
    if kind != "siblings":
        state[(group < 0) & (state == CreditState.NO_REWARD)] = CreditState.PER_PATH
    return Comparison(value, amount, np.where(np.isfinite(amount), off, np.nan), group, weight, state)


def _log_avg_exp(value: Floats, group: Ints, weight: Floats, figures: GroupFigures, tau: float) -> Floats:
    """[G] tau log(sum w exp(R / tau) / sum w), from the largest R on, so that nothing overflows."""
    at = np.flatnonzero((group >= 0) & np.isfinite(value))
    of = group[at]
    raised = np.exp((value[at] - figures.high[of]) / tau)
    total = divided(np.bincount(of, weight[at] * raised, minlength=len(figures.size)), figures.size)
    with np.errstate(invalid="ignore"):  # empty groups are -inf and NaN
        mean: Floats = figures.high + tau * np.log(total)
    return mean


def _against_parent(tree: RolloutTree, value: Floats) -> Comparison:
    above = value[np.maximum(tree.parent, ROOT)]
    amount = value - above
    amount[np.abs(amount) <= EQUAL_WITHIN] = 0.0
    return _plain(tree, value, amount, above)


def _against_ancestors(tree: RolloutTree, value: Floats, weights: str, *, is_trajectory: bool) -> Comparison:
    """TreePO eq. 5 over leaves; with spread node the mean over a node's ancestors of V - V(a)."""
    n = tree.n_nodes
    rewards = leaf_rewards(tree)
    means = leaf_means(tree, rewards) if is_trajectory else value
    sizes = answer_weights(tree, rewards)
    total, count = np.zeros(n), np.zeros(n)  # over the proper ancestors: sum of w V(a), sum of w
    for node in range(1, n):
        above = int(tree.parent[node])
        # The root's group is always one; another ancestor's only if it holds two answers or more.
        is_in = above == ROOT or not is_trajectory or sizes[above] > 1
        weight = (sizes[above] if weights == "size" else 1.0) if is_in and np.isfinite(means[above]) else 0.0
        total[node] = total[above] + weight * (means[above] if weight else 0.0)
        count[node] = count[above] + weight
    baseline = divided(total, count)
    compared = rewards if is_trajectory else value
    amount = compared - baseline
    amount[np.abs(amount) <= EQUAL_WITHIN] = 0.0
    comparison = _plain(tree, value, amount, baseline)
    if is_trajectory:
        inner = ~tree.is_leaf() & (comparison.state == CreditState.NO_REWARD)
        comparison.state[inner] = CreditState.PER_PATH
    return comparison


def _root_and_parent_code(tree: RolloutTree, value: Floats, selected: NDArray[np.bool_]) -> Comparison:
    """TreeRL's released code: leave-one-out rewards, acc(n) their sum below n,

        v(n) = acc(n) / sqrt(selected leaves below) / leaves below;  v(root) = 0
        A(n) = d(n) + v(n),  d(n) = v(n) - v(p), or d(p) where |v(n) - v(p)| < 1e-8

    ("the previous node's difference" of the code is read as the parent's.)
    """
    n = tree.n_nodes
    rewards = leaf_rewards(tree)
    counts = answer_weights(tree, rewards)
    m = counts[ROOT]
    mean = float(leaf_means(tree, rewards)[ROOT])
    left_out = (rewards - mean) * m / (m - 1) if m > 1 else np.where(np.isfinite(rewards), 0.0, np.nan)
    left_out[np.abs(left_out) <= EQUAL_WITHIN] = 0.0
    acc = tree.sum_over_leaves(np.where(np.isfinite(left_out), left_out * tree.copies, 0.0))
    chosen = tree.sum_over_leaves(
        np.where(selected & np.isfinite(rewards), tree.copies, 0).astype(np.float64)
    )
    v = divided(divided(acc, np.sqrt(np.maximum(chosen, 1.0))), counts)
    v[ROOT] = 0.0
    step = np.zeros(n)
    for node in range(1, n):
        above = int(tree.parent[node])
        change = v[node] - v[above]
        step[node] = step[above] if abs(change) < 1e-8 else change
    return _plain(tree, value, step + v, np.full(n, np.nan))


def _tree_and_prompt(tree: RolloutTree, value: Floats, parts: str, ddof: int, eps: float) -> Comparison:
    rewards = leaf_rewards(tree)
    amount = np.zeros(tree.n_nodes)
    for kind in ("tree", "prompt"):
        if parts in ("both", kind):
            group, weight = groups_of(tree, kind, rewards)
            amount = amount + standardised(rewards, group, weight, ddof, eps)
    return _per_leaf(tree, value, np.where(np.isfinite(rewards), amount, np.nan))


def standardised(values: Floats, group: Ints, weight: Floats, ddof: int, eps: float) -> Floats:
    """[N] (v - mean) / (std + eps) in its group; of an all-equal group 0, of a group of one v / (1 + eps)
    (verl: mean 0, std 1). NaN outside.
    """
    n_groups = max(1, int(group.max(initial=0)) + 1)
    figures = group_figures(values, group, weight, n_groups)
    of = np.maximum(group, 0)
    scaled = (values - figures.mean[of]) / (
        figures.std(ddof)[of] + eps + np.where(figures.is_flat[of], 1.0, 0.0)
    )
    scaled = np.where(figures.is_flat[of], 0.0, scaled)
    scaled = np.where(figures.size[of] < 1.5, values / (1 + eps), scaled)
    outside = (group < 0) | ~np.isfinite(values)
    result: Floats = np.where(outside, np.nan, scaled)
    return result


def _per_leaf(tree: RolloutTree, value: Floats, amount: Floats) -> Comparison:
    """A comparison of leaves with all leaves of the prompt; inner nodes are PER_PATH."""
    group, weight = groups_of(tree, "prompt", leaf_rewards(tree))
    state = _states(tree, amount)
    state[~tree.is_leaf() & (state == CreditState.NO_REWARD)] = CreditState.PER_PATH
    return Comparison(value, amount, np.full(tree.n_nodes, np.nan), group, weight, state)


def _against_state(tree: RolloutTree, value: Floats, eps: float, *, is_global: bool) -> Comparison:
    """step-grpo: children of a state compared by the answers through them,

        mu = sum n_c V_c / sum n_c,  sd = sqrt(sum n_c (V_c - mu)^2 / sum n_c),  A = (V_c - mu) / (sd + eps)

    no step credit where all V_c are equal; with the global term + (V_c - V(root)) / (sd(root) + eps) over the
    prompt's answers, the prompt dropped when sd(root) = 0.
    """
    n = tree.n_nodes
    rewards = leaf_rewards(tree)
    means = leaf_means(tree, rewards)
    counts = answer_weights(tree, rewards)
    group, _ = groups_of(tree, "siblings", means)
    figures = group_figures(means, group, counts, n)
    of = np.maximum(group, 0)
    with np.errstate(invalid="ignore"):  # groups without a value
        amount = (means - figures.mean[of]) / (figures.std(0)[of] + eps)
    is_flat = figures.is_flat[of]
    members = np.bincount(of[(group >= 0) & (counts > 0)], minlength=n)
    state = _states(tree, means)
    if is_global:
        leaves, weight = groups_of(tree, "prompt", rewards)
        prompt = group_figures(rewards, leaves, weight, 1)
        if prompt.is_flat[0]:
            state[state == CreditState.CREDITED] = CreditState.DROPPED_BY_FILTER
            amount = np.full(n, np.nan)
        else:
            amount = np.where(is_flat, 0.0, amount) + (means - prompt.mean[0]) / (prompt.std(0)[0] + eps)
    else:
        lonely = (state == CreditState.CREDITED) & is_flat
        state[lonely] = np.where(
            members[of[lonely]] < 2, CreditState.ONLY_CHILD, CreditState.DROPPED_BY_FILTER
        )
        amount = np.where(is_flat, np.nan, amount)
    amount[state != CreditState.CREDITED] = np.nan
    return Comparison(value, amount, figures.mean[of], group, counts, state)


def _against_budget(
    tree: RolloutTree, value: Floats, shaping: BudgetShaping, budgets: Sequence[int], ddof: int, eps: float
) -> Comparison:
    """HBPO (arXiv:2507.15844 §3):

    A = (mean R of the budget group - beta cos(pi b / 2 L)) + (R - mean R) / std R
    """
    rewards = leaf_rewards(tree)
    group, weight = groups_of(tree, "tree", rewards)
    if group.max(initial=0) >= len(budgets):
        raise ValueError(
            f"Problem {tree.problem_id} has answers of budget group {int(group.max())}, and there are "
            f"{len(budgets)} budgets, from 0 on."
        )
    figures = group_figures(rewards, group, weight, len(budgets))
    best = np.array([budget_reward(b, shaping) for b in budgets])
    offset = (figures.mean - best)[np.maximum(group, 0)]
    everyone, weight = groups_of(tree, "prompt", rewards)
    return _per_leaf(tree, value, offset + standardised(rewards, everyone, weight, ddof, eps))


def budget_reward(tokens: float, shaping: BudgetShaping) -> float:
    """beta cos(pi tokens / 2 L): the reward of a correct answer that takes so many tokens."""
    return shaping.beta * math.cos(math.pi * tokens / (2 * shaping.max_tokens))


# ------------------------------------------------------------------------------------------------ filters


def filtered(tree: RolloutTree, comparison: Comparison, kind: str, tau: float) -> States:
    """[N] the states after the filter: `range` drops groups whose values differ by no more than tau,
    `nonzero` nodes whose amount is 0, `zero_variance` the prompt whose rewards are all equal.
    """
    state = comparison.state.copy()
    credited = state == CreditState.CREDITED
    if kind == "zero_variance":
        if has_zero_variance(tree):
            state[credited] = CreditState.DROPPED_BY_FILTER
    elif kind == "nonzero":
        zero = credited & (np.abs(np.nan_to_num(comparison.amount)) <= EQUAL_WITHIN)
        state[zero] = CreditState.DROPPED_BY_FILTER
    elif kind == "range":
        n_groups = max(tree.n_nodes, int(comparison.group.max(initial=0)) + 1)
        figures = group_figures(comparison.value, comparison.group, comparison.weight, n_groups)
        narrow = ~(figures.high - figures.low > tau)
        state[credited & narrow[np.maximum(comparison.group, 0)]] = CreditState.DROPPED_BY_FILTER
    return state


def has_zero_variance(tree: RolloutTree) -> bool:
    """Whether the rewards of all scored leaves are equal (also if there are none)."""
    rewards = tree.reward[tree.is_leaf()]
    rewards = rewards[np.isfinite(rewards)]
    return not len(rewards) or float(rewards.max() - rewards.min()) <= EQUAL_WITHIN


# ------------------------------------------------------------------------------------------------ scales


@dataclass(frozen=True, slots=True)
class BatchFigures:
    """Mean and standard deviation over the step's whole batch; NaN where the scale needs none."""

    mean: float = math.nan
    std: float = math.nan


def divisors(
    tree: RolloutTree, comparison: Comparison, scale: Scale, batch: BatchFigures
) -> tuple[Floats, float]:
    """[N] what the amounts are divided by, and the offset that is taken off before. Never 0."""
    n = tree.n_nodes
    if scale.kind == "group_std":
        group, value = comparison.group, comparison.value
        figures = group_figures(value, group, comparison.weight, max(n, int(group.max(initial=0)) + 1))
        divisor = figures.std(scale.ddof)[np.maximum(group, 0)] + scale.eps
    elif scale.kind == "bernoulli_variance":
        group = comparison.group
        figures = group_figures(
            comparison.value, group, comparison.weight, max(n, int(group.max(initial=0)) + 1)
        )
        mean = figures.mean[np.maximum(group, 0)]
        divisor = mean * (1 - mean)
    elif scale.kind == "inverse_sqrt_leaves":
        divisor = np.sqrt(answer_weights(tree, leaf_rewards(tree)))
    elif scale.kind in ("batch_std", "batch_whiten"):
        divisor = np.full(n, batch.std + scale.eps)
    else:
        divisor = np.ones(n)
    divisor = np.where(np.isfinite(divisor) & (divisor > 0), divisor, 1.0)
    return divisor, batch.mean if scale.kind == "batch_whiten" else 0.0


def batch_figures(
    trees: Sequence[RolloutTree],
    comparisons: Sequence[Comparison],
    scale: Scale,
    token_weights: Sequence[Floats],
) -> BatchFigures:
    """What batch_std and batch_whiten divide by. token_weights [N] per tree: how many trained tokens carry a
    node's amount.
    """
    values: list[Floats] = []
    weights: list[Floats] = []
    for tree, comparison, tokens in zip(trees, comparisons, token_weights, strict=True):
        if isinstance(scale, BatchStdScale):
            # Of the leaves' rewards, or of what they are above their group's mean.
            of = (
                leaf_rewards(tree)
                if scale.std_of == "raw"
                else np.where(tree.is_leaf(), comparison.amount, np.nan)
            )
            weight = tree.copies.astype(np.float64)
        else:
            of, weight = comparison.amount, tokens
        here = np.isfinite(of) & (weight > 0)
        if isinstance(scale, BatchWhitenScale):
            here &= comparison.state == CreditState.CREDITED
        values.append(of[here])
        weights.append(weight[here])
    v, w = np.concatenate(values), np.concatenate(weights)
    total = float(w.sum())
    if total <= 0:
        return BatchFigures(0.0, 0.0)
    mean = float((w * v).sum() / total)
    rest = total - scale.ddof if isinstance(scale, BatchStdScale | BatchWhitenScale) else total
    std = math.sqrt(float((w * (v - mean) ** 2).sum()) / rest) if rest > 0 else 0.0
    return BatchFigures(mean, std)
