"""From leaf rewards to one value and one advantage per segment: the one function of all estimators.

The trainer, the node inspector, `arborist credit` and anything else that shows an advantage call this module.
Values: `values`; baselines, filters and scales: `advantages`; the same in words: `explanation`. Pure and
torch-free.

A leaf without reward (the verifier failed) is in no mean and gets no credit. What has no credit has the
advantage NaN, never 0, and `CreditState` says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trainer.advantages import BatchFigures, Comparison, batch_figures, compare, divisors, filtered
from trainer.config import RunConfig
from trainer.schema.credit import CreditConfig
from trainer.schema.reward import BudgetShaping
from trainer.seeding import generator
from trainer.tree import ROOT, CreditState, FinishReason, RolloutTree, Verdict
from trainer.values import Floats, backed_up_values, divided, leaf_rewards

NEEDS_UNIT_REWARDS = ("bernoulli_variance", "quality")


class RewardRangeError(ValueError):
    """The Bernoulli variance mu (1 - mu), and the quality value, need rewards in [0, 1]."""


@dataclass(frozen=True, slots=True)
class CreditPlan:
    """All that decides credit. budget, budgets: of HBPO alone. most_probability: tokens sampled with at least
    this probability do not train and do not count in a whitening. seed: of the choice of leaves.
    """

    credit: CreditConfig
    budget: BudgetShaping | None = None
    budgets: tuple[int, ...] = ()
    most_probability: float = 1.0
    seed: int = field(default=0)


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
    """One tree's credit with what made it: A = (amount - offset) / divisor where `comparison` carries it; the
    spread then gives `advantage` [N] (NaN: none) and `state` [N]. `selected` [N]: leaves that train.
    """

    comparison: Comparison
    divisor: Floats
    offset: float
    own: Floats
    advantage: Floats
    state: NDArray[np.uint8]
    selected: NDArray[np.bool_]


def credit_trees(trees: Sequence[RolloutTree], plan: CreditPlan) -> list[RolloutTree]:
    """The trees of one step with `value`, `advantage`, `credit_state` and batch figures filled.

    Raises RewardRangeError. Trees matter to each other through the scales batch_std and batch_whiten alone.
    """
    if plan.credit.scale.kind not in ("batch_std", "batch_whiten"):
        return [_filled(tree, credit_of(tree, plan)) for tree in trees]
    if not trees:
        return []
    compared = [_compared(tree, plan) for tree in trees]
    comparisons = [comparison for comparison, _ in compared]
    weights = [_token_weights(tree, plan) for tree in trees]
    figures = batch_figures(trees, comparisons, plan.credit.scale, weights)
    noted = [tree.with_batch(figures.mean, figures.std) for tree in trees]
    return [
        _filled(tree, _finished(tree, plan, comparison, selected))
        for tree, (comparison, selected) in zip(noted, compared, strict=True)
    ]


def credit_of(tree: RolloutTree, plan: CreditPlan) -> Credit:
    """The credit of one tree, scaled by the batch figures that it remembers. Raises RewardRangeError."""
    return _finished(tree, plan, *_compared(tree, plan))


def _filled(tree: RolloutTree, credit: Credit) -> RolloutTree:
    return tree.with_credit(credit.comparison.value, credit.advantage, credit.state)


def _compared(tree: RolloutTree, plan: CreditPlan) -> tuple[Comparison, NDArray[np.bool_]]:
    """Values, baseline and filter of one tree, and which leaves train."""
    credit = plan.credit
    refuse_rewards(tree, credit)
    selected = selected_leaves(tree, plan)
    comparison = compare(
        tree,
        backed_up_values(tree, credit.backup),
        credit.baseline,
        budget=plan.budget,
        budgets=plan.budgets,
        is_trajectory=credit.spread != "node",
        selected=selected,
    )
    tau = credit.filter.tau if credit.filter.kind == "range" else 0.0
    state = filtered(tree, comparison, credit.filter.kind, tau)
    if credit.leaves.kind == "some":
        trains = tree.sum_over_leaves(selected.astype(np.float64)) > 0
        state[(state == CreditState.CREDITED) & ~trains] = CreditState.NOT_SELECTED
    return Comparison(
        comparison.value, comparison.amount, comparison.baseline, comparison.group, comparison.weight, state
    ), selected


def _finished(
    tree: RolloutTree, plan: CreditPlan, comparison: Comparison, selected: NDArray[np.bool_]
) -> Credit:
    """Scale and spread."""
    figures = BatchFigures(tree.batch_mean, tree.batch_std)
    divisor, offset = divisors(tree, comparison, plan.credit.scale, figures)
    credited = comparison.state == CreditState.CREDITED
    own = np.where(credited, (comparison.amount - offset) / divisor, np.nan)
    if plan.credit.spread == "leaf_mean":
        advantage, state = _mean_of_leaves(tree, own, comparison.state)
    else:
        advantage, state = own, comparison.state
    return Credit(comparison, divisor, offset, own, advantage, state, selected)


def _mean_of_leaves(
    tree: RolloutTree, own: Floats, state: NDArray[np.uint8]
) -> tuple[Floats, NDArray[np.uint8]]:
    """Every segment takes the mean of the advantages of the credited leaves below it (TreeAdv, as we read
    it)."""
    weight = np.where(np.isfinite(own), tree.copies, 0).astype(np.float64)
    advantage = divided(
        tree.sum_over_leaves(np.where(weight > 0, own * weight, 0.0)), tree.sum_over_leaves(weight)
    )
    new = state.copy()
    inner = state == CreditState.PER_PATH
    below = _states_below(tree, state)
    new[inner] = np.where(np.isfinite(advantage[inner]), np.uint8(CreditState.CREDITED), below[inner])
    for kept in (ROOT, *np.flatnonzero(tree.finish == FinishReason.GIVEN).tolist()):
        advantage[kept] = np.nan
    return advantage, new


def _states_below(tree: RolloutTree, state: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[N] the state of some leaf below each node: why none of them has credit, where none has."""
    found = state.copy()
    for node in range(tree.n_nodes - 1, 0, -1):
        found[tree.parent[node]] = found[node]
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
        raise RewardRangeError(
            f"Problem {tree.problem_id}, node {tree.name(int(bad[0]))}, has a reward of {rewards[bad[0]]:g}; "
            f"{what} needs rewards from 0 to 1. Choose another part in its place, or rewards of 0 to 1."
        )


def _token_weights(tree: RolloutTree, plan: CreditPlan) -> Floats:
    """[N] trained tokens that carry a node's own advantage, as the whitening counts them."""
    tokens = trained_token_counts(tree, plan.most_probability).astype(np.float64)
    scale = plan.credit.scale
    if plan.credit.spread == "node":
        once = scale.kind != "batch_whiten" or scale.count == "once"
        return tokens * (1 if once else tree.answer_counts())
    path = tokens.copy()
    for node in range(1, tree.n_nodes):
        path[node] += path[tree.parent[node]]
    return np.where(tree.is_leaf(), path * tree.copies, 0.0)


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
