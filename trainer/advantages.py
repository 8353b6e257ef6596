"""From values to advantages: baseline, filter, scale, each a small function over numpy columns.

Every scale is a division, so an advantage is always

    A(n) = (amount(n) - offset) / divisor(n)

amount: the value less its baseline; offset: the batch's mean (batch_whiten alone, else 0). `Comparison` keeps
these three, so that whoever explains an advantage has the numbers that made it. Pure, torch-free.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trainer.schema.credit import (
    Baseline,
    BatchStdScale,
    BatchWhitenScale,
    CreditFilter,
    GroupMeanBaseline,
    LeaveOneOutBaseline,
    LogAvgExpBaseline,
    Scale,
    ZeroVarianceFilter,
)
from trainer.schema.reward import BudgetShaping
from trainer.tree import ROOT, CreditState, FinishReason, RolloutTree, Verdict
from trainer.values import (
    EQUAL_WITHIN,
    Backup,
    Floats,
    answer_weights,
    backed_up_values,
    child_weights,
    divided,
    leaf_means,
    leaf_rewards,
)

Ints = NDArray[np.int64]
States = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What every baseline starts from. All [N].

    leaf: has no children. reward: R of scored leaves, NaN elsewhere. answers: scored answers at or below.
    value: V by the run's backup, NaN without any. given: text that was put there, which is compared with
    nothing.
    """

    tree: RolloutTree
    leaf: NDArray[np.bool_]
    reward: Floats
    answers: Floats
    value: Floats
    given: NDArray[np.bool_]


def scores_of(tree: RolloutTree, backup: Backup) -> Scores:
    """The tree's leaf rewards, counted and backed up."""
    reward = leaf_rewards(tree)
    return Scores(
        tree=tree,
        leaf=tree.is_leaf(),
        reward=reward,
        answers=answer_weights(tree, reward),
        value=backed_up_values(tree, backup),
        given=tree.finish == FinishReason.GIVEN,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """What each node was compared with. All [N]; NaN (or -1) where a node has none of it.

    compared: what is held against the baseline: V, or the reward where answers are compared. amount: that
    less its baseline, before any scale. baseline: what was taken off (NaN where it is not one number).
    group: number of its group, -1 without; weight: how often it counts there. state: CREDITED where `amount`
    may train, else why not.
    """

    compared: Floats
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
        return ~is_wider(self.high - self.low, 0.0)

    def std(self, ddof: int) -> Floats:
        """sqrt(sum w (v - mean)^2 / (sum w - ddof)); 0 where that has no meaning."""
        return np.sqrt(np.nan_to_num(divided(self.squares, np.maximum(self.size - ddof, 0))))


def group_figures(values: Floats, group: Ints, weight: Floats) -> GroupFigures:
    """Of the nodes with a group and a finite value. values, group, weight [N]; at least one group."""
    n_groups = int(group.max(initial=0)) + 1
    at = np.flatnonzero((group >= 0) & np.isfinite(values))
    of, v, w = group[at], values[at], weight[at]
    size = np.bincount(of, w, minlength=n_groups).astype(np.float64)
    mean = divided(np.bincount(of, w * v, minlength=n_groups), size)
    low, high = np.full(n_groups, np.inf), np.full(n_groups, -np.inf)
    np.minimum.at(low, of, v)
    np.maximum.at(high, of, v)
    squares = np.bincount(of, w * (v - mean[of]) ** 2, minlength=n_groups).astype(np.float64)
    return GroupFigures(size, mean, low, high, squares)


def groups_of(scores: Scores, kind: str, values: Floats) -> tuple[Ints, Floats]:
    """[N] group number, -1 outside, and [N] weight, 0 without a finite value [N].

    siblings: every sampled node once, and a leaf once for every answer that ended in it; tree, prompt: the
    leaves, by copies.
    """
    tree = scores.tree
    if kind == "siblings":
        group = np.where(scores.given, -1, tree.parent).astype(np.int64)
        weight = child_weights(tree)
    else:
        numbers = tree.subgroup if kind == "tree" else np.zeros(tree.n_nodes, np.int32)
        group = np.where(scores.leaf, numbers, -1).astype(np.int64)
        weight = tree.copies.astype(np.float64)
    return group, np.where(np.isfinite(values), weight, 0.0)


# ------------------------------------------------------------------------------------------------ baselines


def compare(
    scores: Scores,
    baseline: Baseline,
    *,
    budget: BudgetShaping | None,
    budgets: Sequence[int],
    is_trajectory: bool,
    selected: NDArray[np.bool_],
) -> Comparison:
    """Every node against its baseline (the classes of `schema.credit` hold the formulas).

    selected [N]: leaves that train (TreeRL's code formula counts them).
    """
    if baseline.kind in ("group_mean", "leave_one_out", "log_avg_exp"):
        return against_group(scores, baseline)
    value, parent = scores.value, np.maximum(scores.tree.parent, ROOT)
    if baseline.kind == "parent_value":
        return _plain(scores, value, value - value[parent], value[parent])
    if baseline.kind == "ancestor_mean":
        return against_ancestors(scores, baseline.weights, is_trajectory=is_trajectory)
    if baseline.kind == "root_and_parent":
        if baseline.form == "code":
            _, step, own = root_and_parent_terms(scores, selected)
            return _plain(scores, value, step + own, None)
        return _plain(scores, value, (value - value[ROOT]) + (value - value[parent]), None)
    if baseline.kind == "tree_and_prompt":
        parts = ("tree", "prompt") if baseline.parts == "both" else (baseline.parts,)
        amounts = [standardised_in(scores, part, baseline.ddof, baseline.eps) for part in parts]
        return _per_leaf(scores, np.sum(amounts, axis=0))
    if baseline.kind == "state":
        return against_state(scores, baseline.eps, is_global=baseline.global_term)
    if baseline.kind == "budget":
        if budget is None:
            raise ValueError("Baseline budget needs the run's token budgets. Set reward.shaping to budget.")
        return against_budget(scores, budget, budgets, baseline.ddof, baseline.eps)
    nothing = np.full(scores.tree.n_nodes, np.nan)
    return _plain(scores, value, nothing, None, CreditState.NO_ADVANTAGE)


def _states(scores: Scores, amount: Floats, otherwise: CreditState = CreditState.NO_REWARD) -> States:
    """[N] CREDITED where there is an amount; the root NONE, given nodes GIVEN, else `otherwise`."""
    state = np.where(np.isfinite(amount), np.uint8(CreditState.CREDITED), np.uint8(otherwise))
    state[scores.given] = CreditState.GIVEN
    state[ROOT] = CreditState.NONE
    return state.astype(np.uint8)


def _without_rounding(amount: Floats) -> Floats:
    """[N] with 0 for what is 0 but for rounding."""
    return np.where(np.abs(amount) <= EQUAL_WITHIN, 0.0, amount)


def _plain(
    scores: Scores,
    compared: Floats,
    amount: Floats,
    baseline: Floats | None,
    otherwise: CreditState = CreditState.NO_REWARD,
) -> Comparison:
    """A comparison without a group. The siblings stand in for one, for those who look on."""
    group, weight = groups_of(scores, "siblings", compared)
    amount = _without_rounding(amount)
    amount[ROOT] = np.nan
    amount[scores.given] = np.nan
    baseline = np.full(len(amount), np.nan) if baseline is None else baseline
    return Comparison(compared, amount, baseline, group, weight, _states(scores, amount, otherwise))


def against_group(
    scores: Scores, baseline: GroupMeanBaseline | LeaveOneOutBaseline | LogAvgExpBaseline
) -> Comparison:
    """Nodes with their siblings, or answers with the answers of their tree or prompt."""
    kind = "prompt" if isinstance(baseline, LogAvgExpBaseline) else baseline.group
    compared = scores.value if kind == "siblings" else scores.reward
    group, weight = groups_of(scores, kind, compared)
    figures = group_figures(compared, group, weight)
    of = np.maximum(group, 0)
    size, mean, is_flat = figures.size[of], figures.mean[of], figures.is_flat[of]
    if isinstance(baseline, GroupMeanBaseline):
        off = mean + baseline.shift
        amount = np.where(is_flat, -baseline.shift, compared - off)
    else:
        if isinstance(baseline, LeaveOneOutBaseline):
            off = divided(size * mean - compared, np.maximum(size - 1, 0))
        else:
            off = _log_avg_exp(compared, group, weight, figures, baseline.tau)[of]
        amount = np.where(is_flat, 0.0, compared - off)
    alone = (size < 1.5) & (group >= 0)
    if baseline.single == "reward":
        amount, off = np.where(alone, compared, amount), np.where(alone, 0.0, off)
    amount = np.where((group >= 0) & np.isfinite(compared), amount, np.nan)
    amount[ROOT] = np.nan
    state = _states(scores, amount)
    if baseline.single == "none":
        state[alone & np.isfinite(amount)] = CreditState.ONLY_CHILD
        amount[alone] = np.nan
    if kind != "siblings":
        state[~scores.leaf & (state == CreditState.NO_REWARD)] = CreditState.PER_PATH
    return Comparison(compared, amount, np.where(np.isfinite(amount), off, np.nan), group, weight, state)


def _log_avg_exp(value: Floats, group: Ints, weight: Floats, figures: GroupFigures, tau: float) -> Floats:
    """[G] tau log(sum w exp(R / tau) / sum w), from the largest R on, so that nothing overflows."""
    at = np.flatnonzero((group >= 0) & np.isfinite(value))
    of = group[at]
    raised = np.exp((value[at] - figures.high[of]) / tau)
    total = divided(np.bincount(of, weight[at] * raised, minlength=len(figures.size)), figures.size)
    with np.errstate(invalid="ignore"):  # empty groups are -inf and NaN
        mean: Floats = figures.high + tau * np.log(total)
    return mean


def against_ancestors(scores: Scores, weights: str, *, is_trajectory: bool) -> Comparison:
    """TreePO eq. 5 over leaves; with spread node the mean over a node's ancestors of V - V(a)."""
    tree, n = scores.tree, scores.tree.n_nodes
    compared = scores.reward if is_trajectory else scores.value
    means: list[float] = (leaf_means(tree, scores.reward) if is_trajectory else scores.value).tolist()
    sizes: list[float] = scores.answers.tolist()
    parent: list[int] = tree.parent.tolist()
    total, count = [0.0] * n, [0.0] * n  # over the proper ancestors: sum of w V(a), sum of w
    for node in range(1, n):
        above = parent[node]
        # The root's group is always one; another ancestor's only if it holds two answers or more.
        is_in = (above == ROOT or not is_trajectory or sizes[above] > 1) and sizes[above] > 0
        weight = (sizes[above] if weights == "size" else 1.0) if is_in else 0.0
        total[node] = total[above] + (weight * means[above] if weight else 0.0)
        count[node] = count[above] + weight
    baseline = divided(np.array(total), np.array(count))
    if is_trajectory:
        return _per_leaf(scores, _without_rounding(compared - baseline), baseline)
    return _plain(scores, compared, compared - baseline, baseline)


def root_and_parent_terms(scores: Scores, selected: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
    """[N] v(p), d, v of TreeRL's released code: leave-one-out rewards, acc(n) their sum below n,

        v(n) = acc(n) / sqrt(selected leaves below) / leaves below;  v(root) = 0
        A(n) = d(n) + v(n),  d(n) = v(n) - v(p), or d(p) where |v(n) - v(p)| < 1e-8

    ("the previous node's difference" of the code is read as the parent's.)
    """
    tree, rewards, counts = scores.tree, scores.reward, scores.answers
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
    above = v[np.maximum(tree.parent, ROOT)]
    step: list[float] = (v - above).tolist()
    parent: list[int] = tree.parent.tolist()
    step[ROOT] = 0.0
    for node in range(1, tree.n_nodes):
        if abs(step[node]) < 1e-8:
            step[node] = step[parent[node]]
    return above, np.array(step), v


def standardised_in(scores: Scores, kind: str, ddof: int, eps: float) -> Floats:
    """[N] of every scored leaf among the answers of its tree, or of the prompt."""
    group, weight = groups_of(scores, kind, scores.reward)
    return standardised(scores.reward, group, weight, ddof, eps)


def standardised(values: Floats, group: Ints, weight: Floats, ddof: int, eps: float) -> Floats:
    """[N] (v - mean) / (std + eps) in its group; of an all-equal group 0, of a group of one v / (1 + eps)
    (verl: mean 0, std 1). NaN outside.
    """
    figures = group_figures(values, group, weight)
    of = np.maximum(group, 0)
    is_flat = figures.is_flat[of]
    scaled = (values - figures.mean[of]) / np.where(is_flat, 1.0, figures.std(ddof)[of] + eps)
    scaled = np.where(is_flat, 0.0, scaled)
    scaled = np.where(figures.size[of] < 1.5, values / (1 + eps), scaled)
    outside = (group < 0) | ~np.isfinite(values)
    result: Floats = np.where(outside, np.nan, scaled)
    return result


def _per_leaf(scores: Scores, amount: Floats, baseline: Floats | None = None) -> Comparison:
    """A comparison of leaves with all leaves of the prompt; inner nodes are PER_PATH."""
    group, weight = groups_of(scores, "prompt", scores.reward)
    state = _states(scores, amount)
    state[~scores.leaf & (state == CreditState.NO_REWARD)] = CreditState.PER_PATH
    baseline = np.full(len(amount), np.nan) if baseline is None else baseline
    return Comparison(scores.reward, amount, baseline, group, weight, state)


def against_state(scores: Scores, eps: float, *, is_global: bool) -> Comparison:
    """step-grpo: children of a state compared by the answers through them,

        mu = sum n_c V_c / sum n_c,  sd = sqrt(sum n_c (V_c - mu)^2 / sum n_c),  A = (V_c - mu) / (sd + eps)

    no step credit where all V_c are equal; with the global term + (V_c - V(root)) / (sd(root) + eps) over the
    prompt's answers, the prompt dropped when sd(root) = 0. V: the mean of the answers through a node,
    whatever the backup.
    """
    counts = scores.answers
    means = leaf_means(scores.tree, scores.reward)
    group, _ = groups_of(scores, "siblings", means)
    figures = group_figures(means, group, counts)
    of = np.maximum(group, 0)
    is_flat = figures.is_flat[of]
    amount = (means - figures.mean[of]) / np.where(is_flat, 1.0, figures.std(0)[of] + eps)
    state = _states(scores, means)
    if is_global:
        leaves, weight = groups_of(scores, "prompt", scores.reward)
        prompt = group_figures(scores.reward, leaves, weight)
        if prompt.is_flat[0]:
            state[state == CreditState.CREDITED] = CreditState.DROPPED_BY_FILTER
        else:
            amount = np.where(is_flat, 0.0, amount) + (means - prompt.mean[0]) / (prompt.std(0)[0] + eps)
            amount = _without_rounding(amount)
    else:
        members = np.bincount(of[(group >= 0) & (counts > 0)], minlength=len(figures.size))[of]
        lonely = (state == CreditState.CREDITED) & is_flat
        state[lonely] = np.where(members[lonely] < 2, CreditState.ONLY_CHILD, CreditState.DROPPED_BY_FILTER)
    amount[state != CreditState.CREDITED] = np.nan
    return Comparison(means, amount, figures.mean[of], group, counts, state)


def against_budget(
    scores: Scores, shaping: BudgetShaping, budgets: Sequence[int], ddof: int, eps: float
) -> Comparison:
    """HBPO (arXiv:2507.15844 §3):

    A = (mean R of the budget group - beta cos(pi b / 2 L)) + (R - mean R) / std R
    """
    group, weight = groups_of(scores, "tree", scores.reward)
    if group.max(initial=0) >= len(budgets):
        raise ValueError(
            f"Problem {scores.tree.problem_id} has answers of budget group {int(group.max())}, and there are "
            f"{len(budgets)} budgets, numbered from 0 on."
        )
    figures = group_figures(scores.reward, group, weight)
    best = np.array([budget_reward(b, shaping) for b in budgets])[: len(figures.mean)]
    offset = (figures.mean - best)[np.maximum(group, 0)]
    return _per_leaf(scores, offset + standardised_in(scores, "prompt", ddof, eps))


def budget_reward(tokens: float, shaping: BudgetShaping) -> float:
    """beta cos(pi tokens / 2 L): the reward of a correct answer that takes so many tokens."""
    return shaping.beta * math.cos(math.pi * tokens / (2 * shaping.max_tokens))


# ------------------------------------------------------------------------------------------------ filters


def filtered(tree: RolloutTree, comparison: Comparison, rule: CreditFilter) -> Comparison:
    """The comparison after the filter: `range` drops groups whose values differ by no more than tau,
    `nonzero` nodes whose amount is 0, `zero_variance` the prompt whose answers are all equal.
    """
    state = comparison.state.copy()
    credited = state == CreditState.CREDITED
    if rule.kind == "zero_variance":
        if has_zero_variance(tree, rule):
            state[credited] = CreditState.DROPPED_BY_FILTER
    elif rule.kind == "nonzero":
        zero = credited & (np.abs(np.nan_to_num(comparison.amount)) <= EQUAL_WITHIN)
        state[zero] = CreditState.DROPPED_BY_FILTER
    elif rule.kind == "range":
        figures = group_figures(comparison.compared, comparison.group, comparison.weight)
        narrow = ~is_wider(figures.high - figures.low, rule.tau)
        state[credited & narrow[np.maximum(comparison.group, 0)]] = CreditState.DROPPED_BY_FILTER
    return replace(comparison, state=state)


def is_wider(spread: Floats, tau: float) -> NDArray[np.bool_]:
    """Whether max - min > tau, by more than rounding: 0.4 - 0.3 is not more than 0.1."""
    return spread > tau + EQUAL_WITHIN


def has_zero_variance(tree: RolloutTree, rule: ZeroVarianceFilter) -> bool:
    """Whether all scored answers are equal, in reward or in verdict (also if there are none)."""
    scored = tree.is_leaf() & np.isfinite(tree.reward)
    if rule.equal == "verdict":
        correct = tree.verdict[scored] == Verdict.CORRECT
        return bool(correct.all() or not correct.any())
    rewards = tree.reward[scored]
    return not len(rewards) or float(rewards.max() - rewards.min()) <= EQUAL_WITHIN


# ------------------------------------------------------------------------------------------------ scales


@dataclass(frozen=True, slots=True)
class BatchFigures:
    """Mean and standard deviation over the step's whole batch; NaN where the scale needs none."""

    mean: float = math.nan
    std: float = math.nan


def divisors(scores: Scores, comparison: Comparison, scale: Scale, batch: BatchFigures) -> Floats:
    """[N] what the amounts are divided by. Never 0.

    All values equal, of a group or of the batch, have no deviation to divide by: 1 stands for it, so that
    eps alone never divides (verl does so for a group of one).
    """
    n = scores.tree.n_nodes
    if scale.kind in ("group_std", "bernoulli_variance"):
        figures = group_figures(comparison.compared, comparison.group, comparison.weight)
        of = np.maximum(comparison.group, 0)
        is_flat = figures.is_flat[of]
        if scale.kind == "group_std":
            return np.where(is_flat, 1.0, figures.std(scale.ddof)[of]) + scale.eps
        mean = figures.mean[of]
        return np.where(is_flat, 1.0, mean * (1 - mean))
    if scale.kind == "inverse_sqrt_leaves":
        return np.sqrt(np.maximum(scores.answers, 1.0))
    if scale.kind in ("batch_std", "batch_whiten"):
        return np.full(n, (batch.std if batch.std > EQUAL_WITHIN else 1.0) + scale.eps)
    return np.ones(n)


def batch_figures(
    scores: Sequence[Scores],
    comparisons: Sequence[Comparison],
    scale: BatchStdScale | BatchWhitenScale,
    token_weights: Sequence[Floats],
) -> BatchFigures:
    """What batch_std and batch_whiten divide by. token_weights [N] per tree: how many trained tokens carry a
    node's amount.
    """
    values: list[Floats] = []
    weights: list[Floats] = []
    for one, comparison, tokens in zip(scores, comparisons, token_weights, strict=True):
        if isinstance(scale, BatchStdScale):
            # Of the leaves' rewards, or of what they are above their baseline.
            of = one.reward if scale.std_of == "raw" else np.where(one.leaf, comparison.amount, np.nan)
            weight = one.tree.copies.astype(np.float64)
            here = np.isfinite(of) & (weight > 0)
        else:
            of, weight = comparison.amount, tokens
            here = (comparison.state == CreditState.CREDITED) & (weight > 0)
        values.append(of[here])
        weights.append(weight[here])
    v, w = np.concatenate(values), np.concatenate(weights)
    total = float(w.sum())
    if total <= 0:
        return BatchFigures(0.0, 0.0)
    mean = float((w * v).sum() / total)
    rest = total - scale.ddof
    std = math.sqrt(float((w * (v - mean) ** 2).sum()) / rest) if rest > 0 else 0.0
    return BatchFigures(mean, std)
