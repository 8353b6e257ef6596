"""Every estimator a second time: slow, one node at a time, answers written out, straight from the formulas.

Shares no code with `trainer.values`, `advantages` and `credit`, except which random leaves are chosen.
"""

from __future__ import annotations

import math
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from trainer.credit import CreditPlan
from trainer.schema.credit import BatchStdScale, BatchWhitenScale
from trainer.tree import FinishReason, RolloutTree, Verdict

Selected = NDArray[np.bool_]


def spread_of(values: list[float], ddof: int) -> float:
    """Standard deviation; 0 where it has no meaning."""
    rest = len(values) - ddof
    mean = fmean(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / rest) if rest > 0 else 0.0


def are_equal(values: list[float]) -> bool:
    return max(values) - min(values) < 1e-12


class SlowTree:
    """One tree's amounts by a plan: the value less its baseline, for the nodes that may train."""

    def __init__(self, tree: RolloutTree, plan: CreditPlan, selected: Selected) -> None:
        self.tree, self.plan, self.credit, self.selected = tree, plan, plan.credit, selected
        self.inner = range(1, tree.n_nodes)

    # ---- shape

    def children(self, node: int) -> list[int]:
        return [i for i in self.inner if self.tree.parent[i] == node]

    def leaves(self, node: int) -> list[int]:
        if node and not self.children(node):
            return [node]
        return [leaf for child in self.children(node) for leaf in self.leaves(child)]

    def is_leaf(self, node: int) -> bool:
        return node > 0 and not self.children(node)

    def is_given(self, node: int) -> bool:
        return bool(self.tree.finish[node] == FinishReason.GIVEN)

    def ancestors(self, node: int) -> list[int]:
        return self.tree.path(node)[:-1]

    def reward(self, leaf: int) -> float:
        return float(self.tree.reward[leaf]) if self.is_leaf(leaf) else math.nan

    def scored(self, node: int) -> list[int]:
        """Scored leaves at or below, each as often as answers ended in it."""
        return [
            leaf
            for leaf in self.leaves(node)
            if not math.isnan(self.reward(leaf))
            for _ in range(int(self.tree.copies[leaf]))
        ]

    def rewards(self, node: int) -> list[float]:
        return [self.reward(leaf) for leaf in self.scored(node)]

    # ---- values

    def value(self, node: int) -> float:
        """NaN where no leaf below is scored."""
        if not self.scored(node):
            return math.nan
        backup = self.credit.backup
        if backup == "quality":
            return self.quality(node)
        if self.is_leaf(node):
            return self.reward(node)
        if backup == "leaf_mean":
            return fmean(self.rewards(node))
        values = []
        for child in self.children(node):
            times = max(1, int(self.tree.visits[child]))
            if backup == "child_mean":
                times = int(self.tree.copies[child]) if self.is_leaf(child) else 1
            values += [self.value(child)] * times
        return fmean(v for v in values if not math.isnan(v))

    def reaches(self, node: int) -> bool:
        return any(reward > 0.5 for reward in self.rewards(node))

    def steps(self, node: int) -> int:
        """m of a node that reaches a correct leaf."""
        if self.is_leaf(node):
            return 1
        return 1 + min(self.steps(child) for child in self.children(node) if self.reaches(child))

    def quality(self, node: int) -> float:
        if node == 0 or not self.reaches(0):
            return 0.0
        above = self.quality(int(self.tree.parent[node]))
        if self.reaches(node):
            return max(0.0, above + (1 - above) / self.steps(node))
        nearest = next(a for a in reversed(self.ancestors(node)) if self.reaches(a))
        return max(0.0, above - (1 - above) / self.steps(nearest))

    # ---- groups

    def compared(self, node: int) -> float:
        """What is held against the baseline."""
        baseline = self.credit.baseline
        if baseline.kind == "state":
            return fmean(self.rewards(node)) if self.scored(node) else math.nan
        compares_answers = baseline.kind in ("log_avg_exp", "tree_and_prompt", "budget") or (
            baseline.kind == "ancestor_mean" and self.credit.spread != "node"
        )
        if baseline.kind in ("group_mean", "leave_one_out"):
            compares_answers = baseline.group != "siblings"
        return self.reward(node) if compares_answers else self.value(node)

    def siblings(self, node: int) -> list[float]:
        """Compared values of the node's sampled siblings and its own, each as often as it counts."""
        parent = int(self.tree.parent[node])
        values = []
        for child in self.children(parent):
            if not self.is_given(child):
                times = int(self.tree.copies[child]) if self.is_leaf(child) else 1
                if self.credit.baseline.kind == "state":
                    times = len(self.scored(child))
                values += [self.compared(child)] * times
        return [v for v in values if not math.isnan(v)]

    def answers(self, kind: str, node: int) -> list[float]:
        """Rewards of all answers of the node's prompt, or of its tree of the forest."""
        number = self.tree.subgroup[node]
        return [
            self.reward(leaf)
            for leaf in self.scored(0)
            if kind == "prompt" or self.tree.subgroup[leaf] == number
        ]

    def group(self, node: int) -> list[float]:
        baseline = self.credit.baseline
        if baseline.kind in ("group_mean", "leave_one_out") and baseline.group != "siblings":
            return self.answers(baseline.group, node)
        return self.answers("prompt", node) if baseline.kind == "log_avg_exp" else self.siblings(node)

    # ---- amounts

    def amount(self, node: int) -> float | None:
        """V less its baseline; None where there is nothing to train."""
        baseline, value = self.credit.baseline, self.compared(node)
        if self.is_given(node) or math.isnan(value) or baseline.kind == "none":
            return None
        parent = int(self.tree.parent[node])
        if baseline.kind in ("group_mean", "leave_one_out", "log_avg_exp"):
            group = self.group(node)
            if len(group) == 1:
                return value if baseline.single == "reward" else None
            if baseline.kind == "group_mean":
                return value - fmean(group) - baseline.shift
            if baseline.kind == "leave_one_out":
                others = list(group)
                others.remove(min(group, key=lambda other: abs(other - value)))
                return value - fmean(others)
            return value - baseline.tau * math.log(fmean(math.exp(r / baseline.tau) for r in group))
        if baseline.kind == "parent_value":
            return value - self.value(parent)
        if baseline.kind == "ancestor_mean":
            return self.over_ancestors(node, value)
        if baseline.kind == "root_and_parent":
            if baseline.form == "code":
                return self.released_difference(node) + self.released(node)
            return (value - self.value(0)) + (value - self.value(parent))
        if baseline.kind == "tree_and_prompt":
            kinds = ("tree", "prompt") if baseline.parts == "both" else (baseline.parts,)
            return math.fsum(
                self.standard(value, self.answers(kind, node), baseline.ddof, baseline.eps) for kind in kinds
            )
        if baseline.kind == "budget":
            assert self.plan.budget is not None
            budget, most = self.plan.budgets[self.tree.subgroup[node]], self.plan.budget.max_tokens
            best = self.plan.budget.beta * math.cos(math.pi * budget / (2 * most))
            z = self.standard(value, self.answers("prompt", node), baseline.ddof, baseline.eps)
            return fmean(self.answers("tree", node)) - best + z
        assert baseline.kind == "state"
        peers, everyone = self.siblings(node), self.rewards(0)
        step = None if are_equal(peers) else (value - fmean(peers)) / (spread_of(peers, 0) + baseline.eps)
        if not baseline.global_term:
            return step
        if are_equal(everyone):
            return None
        return (step or 0.0) + (value - fmean(everyone)) / (spread_of(everyone, 0) + baseline.eps)

    @staticmethod
    def standard(value: float, group: list[float], ddof: int, eps: float) -> float:
        if len(group) == 1:
            return value / (1 + eps)
        return 0.0 if are_equal(group) else (value - fmean(group)) / (spread_of(group, ddof) + eps)

    def over_ancestors(self, node: int, value: float) -> float:
        assert self.credit.baseline.kind == "ancestor_mean"
        terms, weights = [], []
        for above in self.ancestors(node):
            size = len(self.scored(above))
            if self.credit.spread == "node":
                base = self.value(above)
            else:
                if above and size == 1:
                    continue
                base = fmean(self.rewards(above))
            terms.append(value - base)
            weights.append(float(size) if self.credit.baseline.weights == "size" else 1.0)
        return math.fsum(t * w for t, w in zip(terms, weights, strict=True)) / math.fsum(weights)

    def released(self, node: int) -> float:
        """v(n) of TreeRL's code."""
        if node == 0:
            return 0.0
        everyone = self.rewards(0)
        below = self.rewards(node)
        if len(everyone) == 1 or not below:
            return 0.0
        left_out = [r - (math.fsum(everyone) - r) / (len(everyone) - 1) for r in below]
        chosen = sum(bool(self.selected[leaf]) for leaf in self.scored(node))
        return math.fsum(left_out) / math.sqrt(max(chosen, 1)) / len(below)

    def released_difference(self, node: int) -> float:
        if node == 0:
            return 0.0
        parent = int(self.tree.parent[node])
        change = self.released(node) - self.released(parent)
        return self.released_difference(parent) if abs(change) < 1e-8 else change

    # ---- what may train

    def kept(self) -> dict[int, float]:
        """{node: amount} after filter and choice of leaves; of leaves alone, but under spread node."""
        found = {}
        for node in self.inner:
            if self.credit.spread != "node" and not self.is_leaf(node):
                continue
            amount = self.amount(node)
            if amount is None or self.is_filtered(node, amount):
                continue
            if self.credit.leaves.kind == "some" and not any(self.selected[i] for i in self.leaves(node)):
                continue
            found[node] = amount
        return found

    def is_filtered(self, node: int, amount: float) -> bool:
        rule = self.credit.filter
        if rule.kind == "nonzero":
            return abs(amount) < 1e-12
        if rule.kind == "zero_variance":
            if rule.equal == "verdict":
                right = [bool(self.tree.verdict[leaf] == Verdict.CORRECT) for leaf in self.scored(0)]
                return len(set(right)) < 2
            return are_equal(self.rewards(0))
        if rule.kind == "range":
            group = self.group(node)
            return max(group) - min(group) < rule.tau + 1e-12
        return False

    def divisor(self, node: int) -> float:
        """Of the scales that look at one tree."""
        scale = self.credit.scale
        if scale.kind == "group_std":
            group = self.group(node)
            return (1.0 if are_equal(group) else spread_of(group, scale.ddof)) + scale.eps
        if scale.kind == "bernoulli_variance":
            mean = fmean(self.group(node))
            return mean * (1 - mean)
        return math.sqrt(len(self.scored(node))) if scale.kind == "inverse_sqrt_leaves" else 1.0

    # ---- tokens

    def trained_tokens(self, node: int) -> int:
        if node == 0 or self.is_given(node):
            return 0
        first, end = self.tree.token_offsets[node], self.tree.token_offsets[node + 1]
        return sum(math.exp(lp) < self.plan.most_probability or self.plan.most_probability == 1
                   for lp in self.tree.logprobs[first:end].tolist())  # fmt: skip

    def tokens_with(self, node: int) -> int:
        """Trained tokens that carry the node's amount, as a whitening counts them."""
        scale = self.credit.scale
        assert isinstance(scale, BatchWhitenScale)
        if self.credit.spread != "node":
            length = sum(self.trained_tokens(part) for part in self.tree.path(node))
            return length * int(self.tree.copies[node])
        if scale.count == "once":
            return self.trained_tokens(node)
        return self.trained_tokens(node) * sum(bool(self.selected[leaf]) for leaf in self.scored(node))


def slow_credit(
    trees: list[RolloutTree], plan: CreditPlan, selected: list[Selected]
) -> list[dict[int, float]]:
    """{node: A} of every tree; a node that is missing has no credit."""
    slow = [SlowTree(tree, plan, chosen) for tree, chosen in zip(trees, selected, strict=True)]
    kept = [one.kept() for one in slow]
    scale = plan.credit.scale
    mean, divisor = 0.0, None
    if isinstance(scale, BatchStdScale):
        of = [
            one.reward(leaf) if scale.std_of == "raw" else one.amount(leaf)
            for one in slow
            for leaf in one.scored(0)
        ]
        values = [value for value in of if value is not None]
        std = spread_of(values, scale.ddof) if values else 0.0
        divisor = (std if std > 1e-12 else 1.0) + scale.eps
    elif isinstance(scale, BatchWhitenScale):
        tokens = [
            amount
            for one, own in zip(slow, kept, strict=True)
            for node, amount in own.items()
            for _ in range(one.tokens_with(node))
        ]
        mean = fmean(tokens) if tokens else 0.0
        std = spread_of(tokens, scale.ddof) if tokens else 0.0
        divisor = (std if std > 1e-12 else 1.0) + scale.eps
    found = []
    for one, own in zip(slow, kept, strict=True):
        scaled = {node: (a - mean) / (divisor or one.divisor(node)) for node, a in own.items()}
        found.append(_spread_out(one, scaled) if plan.credit.spread == "leaf_mean" else scaled)
    return found


def _spread_out(one: SlowTree, own: dict[int, float]) -> dict[int, float]:
    """Every sampled segment takes the mean of the credited answers below it."""
    found = {}
    for node in one.inner:
        below = [own[leaf] for leaf in one.scored(node) if leaf in own]
        if below and not one.is_given(node):
            found[node] = fmean(below)
    return found
