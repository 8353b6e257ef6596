"""Trees for tests: from nested lists, at random, and a slow, obvious version of the estimators to compare
with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from trainer import explanation
from trainer.credit import CreditPlan, credit_trees
from trainer.explanation import Explanation
from trainer.schema.credit import CreditConfig
from trainer.tree import FinishReason, RolloutTree, Verdict, sampled_tree

Nested = Any  # a reward (leaf), or a list of children

T1: Nested = [[1, 0], [0, 0]]
T2: Nested = [1, [0, 1, 0]]


def tree_of(
    nested: Nested,
    *,
    tokens_per_segment: int | Sequence[int] = 2,
    prompt_tokens: int = 3,
    problem_id: str = "p",
) -> RolloutTree:
    """A verified tree, breadth-first, from nested lists of leaf rewards. NaN: the verifier failed there."""
    parent, kinds = [-1], [nested]
    node = 0
    while node < len(kinds):
        if isinstance(kinds[node], list):
            for child in kinds[node]:
                parent.append(node)
                kinds.append(child)
        node += 1
    n = len(parent)
    counts = (
        [tokens_per_segment] * (n - 1) if isinstance(tokens_per_segment, int) else list(tokens_per_segment)
    )
    counts = [prompt_tokens, *counts]
    rng = np.random.default_rng(n)
    is_leaf = [not isinstance(kind, list) for kind in kinds]
    tree = sampled_tree(
        problem_id=problem_id,
        reference_answer="1",
        step=1,
        policy_version=0,
        parent=parent,
        segment_tokens=[rng.integers(2, 50, count) for count in counts],
        segment_logprobs=[np.zeros(counts[0])] + [-rng.random(count) for count in counts[1:]],
        segment_entropies=[np.zeros(counts[0])] + [rng.random(count) for count in counts[1:]],
        finish=[FinishReason.NONE]
        + [FinishReason.EOS if leaf else FinishReason.SPLIT for leaf in is_leaf[1:]],
        texts=[f"s{i}" for i in range(n)],
    )
    reward = np.array([float(kind) if leaf else math.nan for kind, leaf in zip(kinds, is_leaf, strict=True)])
    reward[0] = math.nan
    verdict = np.where(reward > 0, Verdict.CORRECT, Verdict.INCORRECT).astype(np.uint8)
    verdict[~np.array(is_leaf)] = Verdict.NONE
    verdict[np.array(is_leaf) & np.isnan(reward)] = Verdict.ERROR
    return tree.with_verdicts(verdict, reward, [""] * n)


def nested_trees(
    max_children: int = 4, max_leaves: int = 24, allow_errors: bool = True
) -> st.SearchStrategy[Nested]:
    """Random nested lists with a list at the top."""
    rewards = st.sampled_from([0, 1, 1, 0, math.nan] if allow_errors else [0, 1])
    inner = st.recursive(
        rewards, lambda below: st.lists(below, min_size=1, max_size=max_children), max_leaves=max_leaves
    )
    return st.lists(inner, min_size=1, max_size=max_children)


def credit_tree(tree: RolloutTree, config: CreditConfig, **plan: Any) -> RolloutTree:
    """One tree as a batch of its own. `plan`: further fields of CreditPlan."""
    return credit_trees([tree], CreditPlan(config, **plan))[0]


def explain(tree: RolloutTree, node: int, config: CreditConfig, **plan: Any) -> Explanation:
    return explanation.explain(tree, node, CreditPlan(config, **plan))


# ---------------------------------------------------------------------------------------------------- slow
# versions


def children_of(tree: RolloutTree, node: int) -> list[int]:
    return [i for i in range(1, tree.n_nodes) if tree.parent[i] == node]


def leaves_below(tree: RolloutTree, node: int) -> list[int]:
    children = children_of(tree, node)
    return [node] if not children else [leaf for child in children for leaf in leaves_below(tree, child)]


def slow_value(tree: RolloutTree, node: int, backup: str) -> float:
    """Recursive, straight from the definition."""
    children = children_of(tree, node)
    if not children:
        return float(tree.reward[node])
    if backup == "leaf_mean":
        values = [float(tree.reward[leaf]) for leaf in leaves_below(tree, node)]
    else:
        values = [slow_value(tree, child, backup) for child in children]
    values = [v for v in values if not math.isnan(v)]
    return math.fsum(values) / len(values) if values else math.nan


def slow_treerpo(tree: RolloutTree, node: int, tau: float) -> float:
    """arXiv:2506.05183 §3.2-3.3 for one node, NaN without credit."""
    mine = slow_value(tree, node, "child_mean")
    group = [slow_value(tree, c, "child_mean") for c in children_of(tree, int(tree.parent[node]))]
    group = [v for v in group if not math.isnan(v)]
    if math.isnan(mine) or len(group) < 2 or max(group) - min(group) <= tau:
        return math.nan
    mu = math.fsum(group) / len(group)
    return (mine - mu) / (mu * (1 - mu))


def slow_grpo(tree: RolloutTree, leaf: int, ddof: int, eps: float) -> float:
    """arXiv:2402.03300 §4.1.2 for one leaf, NaN without credit."""
    rewards = [float(tree.reward[i]) for i in leaves_below(tree, 0)]
    rewards = [r for r in rewards if not math.isnan(r)]
    if math.isnan(tree.reward[leaf]) or len(rewards) < 2:
        return math.nan
    mean = math.fsum(rewards) / len(rewards)
    std = math.sqrt(math.fsum((r - mean) ** 2 for r in rewards) / (len(rewards) - ddof))
    return 0.0 if std == 0 else (float(tree.reward[leaf]) - mean) / (std + eps)
