"""From leaf rewards to one value and one advantage per segment: the one function of all estimators.

The trainer, the node inspector, `arborist credit` and anything else that shows an advantage call this module.
Values: `values`; baselines, filters and scales: `advantages`; the same in words: `explanation`. Pure and
torch-free.

A leaf without reward (the verifier failed) is in no mean and gets no credit. What has no credit has the
advantage NaN, never 0, and `CreditState` says why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.advantages import (
    BatchFigures,
    Comparison,
    Scores,
    batch_figures,
    compare,
    divisors,
    filtered,
    scores_of,
)
from trainer.config import RunConfig
from trainer.schema.credit import CreditConfig
from trainer.schema.reward import BudgetShaping
from trainer.seeding import generator
from trainer.tree import ROOT, CreditState, FinishReason, RolloutTree, Verdict
from trainer.values import Floats, divided, leaf_rewards

NEEDS_UNIT_REWARDS = ("bernoulli_variance", "quality")


class RewardRangeError(ValueError):
    """The Bernoulli variance mu (1 - mu), and the quality value, need rewards in [0, 1]. Names the first node
    whose reward is out of it: `node`, and `what` refused it.
    """

    def __init__(self, tree: RolloutTree, node: int, what: str) -> None:
        self.node, self.what = node, what
        super().__init__(
            f"Problem {tree.problem_id}, node {tree.name(node)}, has a reward of {tree.reward[node]:g}; "
            f"{what} needs rewards from 0 to 1. Choose another part in its place, or rewards of 0 to 1."
        )


@dataclass(frozen=True, slots=True)
class CreditPlan:
    """All that decides credit. budget, budgets: of HBPO alone. most_probability: tokens sampled with at least
    this probability do not train and do not count in a whitening. seed: of the choice of leaves.
    """

    credit: CreditConfig
    budget: BudgetShaping | None = None
    budgets: tuple[int, ...] = ()
    most_probability: float = 1.0
    seed: int = 0


def credit_plan(config: RunConfig) -> CreditPlan:
    """The plan of a run."""
    shaping, sampler, objective = config.reward.shaping, config.sampler, config.objective
    return CreditPlan(
        credit=config.credit,
        budget=shaping if shaping.kind == "budget" else None,
        budgets=sampler.budgets if sampler.kind == "flat" else (),
        most_probability=objective.max_token_probability if objective.kind == "policy" else 1.0,
        seed=config.seed,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Credit:
    """One tree's credit with what made it: A = (amount - offset) / divisor where `comparison` carries it is
    `own` [N]; the spread then gives `advantage` [N] (NaN: none) and `state` [N]. `selected` [N]: leaves that
    train.
    """

    scores: Scores
    comparison: Comparison
    selected: NDArray[np.bool_]
    divisor: Floats
    offset: float
    own: Floats
    advantage: Floats
    state: NDArray[np.uint8]


def credit_trees(trees: Sequence[RolloutTree], plan: CreditPlan) -> list[RolloutTree]:
    """The trees of one step with `value`, `advantage`, `credit_state` and batch figures filled.

    Raises RewardRangeError. Trees matter to each other through the scales batch_std and batch_whiten alone.
    """
    scale = plan.credit.scale
    if scale.kind not in ("batch_std", "batch_whiten"):
        return [_filled(tree, credit_of(tree, plan)) for tree in trees]
    if not trees:
        return []
    compared = [_compared(tree, plan) for tree in trees]
    scores, comparisons, _ = zip(*compared, strict=True)
    weights = [_token_weights(one, selected, plan) for one, _, selected in compared]
    figures = batch_figures(scores, comparisons, scale, weights)
    return [
        _filled(tree.with_batch(figures.mean, figures.std), _finished(plan, figures, *parts))
        for tree, parts in zip(trees, compared, strict=True)
    ]


def credit_of(tree: RolloutTree, plan: CreditPlan) -> Credit:
    """The credit of one tree, scaled by the batch figures that it remembers. Raises RewardRangeError, and
    ValueError when it remembers none and the scale needs them.
    """
    if plan.credit.scale.kind in ("batch_std", "batch_whiten") and not math.isfinite(tree.batch_std):
        raise ValueError(
            f"Scale {plan.credit.scale.kind} needs figures of the whole batch, and this tree remembers none. "
            "Give credit to the batch first."
        )
    return _finished(plan, BatchFigures(tree.batch_mean, tree.batch_std), *_compared(tree, plan))


def _filled(tree: RolloutTree, credit: Credit) -> RolloutTree:
    return tree.with_credit(credit.scores.value, credit.advantage, credit.state)


def _compared(tree: RolloutTree, plan: CreditPlan) -> tuple[Scores, Comparison, NDArray[np.bool_]]:
    """Values, baseline and filter of one tree, and which leaves train."""
    credit = plan.credit
    refuse_rewards(tree, credit)
    scores = scores_of(tree, credit.backup)
    selected = selected_leaves(tree, plan)
    comparison = compare(
        scores,
        credit.baseline,
        budget=plan.budget,
        budgets=plan.budgets,
        is_trajectory=credit.spread != "node",
        selected=selected,
    )
    comparison = filtered(tree, comparison, credit.filter)
    if credit.leaves.kind == "some":
        trains = tree.sum_over_leaves(selected.astype(np.float64)) > 0
        is_left_out = ~trains & (comparison.state == CreditState.CREDITED)
        is_left_out |= scores.leaf & ~selected & np.isfinite(scores.reward)
        comparison.state[is_left_out] = CreditState.NOT_SELECTED
    return scores, comparison, selected


def _finished(
    plan: CreditPlan,
    batch: BatchFigures,
    scores: Scores,
    comparison: Comparison,
    selected: NDArray[np.bool_],
) -> Credit:
    """Scale and spread."""
    scale = plan.credit.scale
    divisor = divisors(scores, comparison, scale, batch)
    offset = batch.mean if scale.kind == "batch_whiten" else 0.0
    credited = comparison.state == CreditState.CREDITED
    own = np.where(credited, (comparison.amount - offset) / divisor, np.nan)
    advantage, state = own, comparison.state
    if plan.credit.spread == "leaf_mean":
        advantage, state = _mean_of_leaves(scores, own, state)
    return Credit(scores, comparison, selected, divisor, offset, own, advantage, state)


def _mean_of_leaves(
    scores: Scores, own: Floats, state: NDArray[np.uint8]
) -> tuple[Floats, NDArray[np.uint8]]:
    """Every segment takes the mean of the advantages of the credited leaves below it, every answer alike
    (TreeAdv, as we read it).
    """
    tree = scores.tree
    weight = np.where(np.isfinite(own), tree.copies, 0).astype(np.float64)
    advantage = divided(
        tree.sum_over_leaves(np.where(weight > 0, own * weight, 0.0)), tree.sum_over_leaves(weight)
    )
    inner = state == CreditState.PER_PATH
    new = state.copy()
    new[inner] = CreditState.CREDITED
    without = inner & ~np.isfinite(advantage)
    if without.any():
        new[without] = _why_none_below(scores, state)[without]
    advantage[new != CreditState.CREDITED] = np.nan
    return advantage, new


# Why a segment has no credit, where the leaves below have none for several reasons: the first of these.
_REASONS = (
    CreditState.DROPPED_BY_FILTER,
    CreditState.NOT_SELECTED,
    CreditState.ONLY_CHILD,
    CreditState.NO_REWARD,
)


def _why_none_below(scores: Scores, state: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[N] the first of `_REASONS` that a leaf at or below each node has; NO_REWARD without any."""
    found = np.full(len(state), np.uint8(CreditState.NO_REWARD))
    for reason in reversed(_REASONS):
        below = scores.tree.sum_over_leaves((scores.leaf & (state == reason)).astype(np.float64)) > 0
        found[below] = reason
    return found


def selected_leaves(tree: RolloutTree, plan: CreditPlan) -> NDArray[np.bool_]:
    """[N] leaves that train: all with a reward, or so many at random, of which at least one is correct if any
    leaf is. The choice is the same whenever the tree is looked at.
    """
    scored = np.isfinite(leaf_rewards(tree))
    choice = plan.credit.leaves
    if choice.kind == "all":
        return scored
    order = generator(plan.seed, "leaves", tree.step, tree.problem_id).random(tree.n_nodes)
    kept = np.zeros(tree.n_nodes, np.bool_)
    groups = tree.subgroup if choice.per == "tree" else np.zeros(tree.n_nodes, np.int32)
    for number in np.unique(groups[scored]).tolist():
        leaves = np.flatnonzero(scored & (groups == number))
        leaves = leaves[np.argsort(order[leaves], kind="stable")]
        chosen = leaves[: choice.count]
        correct = leaves[tree.verdict[leaves] == Verdict.CORRECT]
        if choice.keep_correct and len(correct) and correct[0] not in chosen:
            chosen = np.concatenate(([correct[0]], chosen[: choice.count - 1]))
        kept[chosen] = True
    return kept


def refuse_rewards(tree: RolloutTree, credit: CreditConfig) -> None:
    """Raise RewardRangeError when a reward is out of the range that the estimator is defined on."""
    what = next((part for part in (credit.scale.kind, credit.backup) if part in NEEDS_UNIT_REWARDS), None)
    if what is None:
        return
    rewards = leaf_rewards(tree)
    bad = np.flatnonzero((rewards < 0) | (rewards > 1))
    if len(bad):
        raise RewardRangeError(tree, int(bad[0]), what)


def _token_weights(scores: Scores, selected: NDArray[np.bool_], plan: CreditPlan) -> Floats:
    """[N] trained tokens that carry a node's own advantage, as the whitening counts them."""
    tree, scale = scores.tree, plan.credit.scale
    tokens = trained_token_counts(tree, plan.most_probability).astype(np.float64)
    if plan.credit.spread == "node":
        if scale.kind == "batch_whiten" and scale.count == "flat":
            return tokens * tree.sum_over_leaves(np.where(selected, tree.copies, 0).astype(np.float64))
        return tokens
    path: list[float] = tokens.tolist()
    for node, above in enumerate(tree.parent[1:].tolist(), start=1):
        path[node] += path[above]
    return np.where(scores.leaf, np.array(path) * tree.copies, 0.0)


def trained_token_counts(tree: RolloutTree, most_probability: float) -> NDArray[np.int64]:
    """[N] tokens of each segment that may train: sampled ones, with a probability below the bound (1:
    all)."""
    counts = tree.token_counts()
    if most_probability < 1:
        below = tree.logprobs < np.log(most_probability)
        total = np.concatenate(([0], np.cumsum(below)))
        counts = total[tree.token_offsets[1:]] - total[tree.token_offsets[:-1]]
    counts = np.where(tree.finish == FinishReason.GIVEN, 0, counts)
    counts[ROOT] = 0
    return counts
