"""What a list of trees sorts and filters by: one small summary per tree. Torch-free and pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.cliffs import value_cliff
from trainer.comparison import grpo_advantages, have_opposite_signs
from trainer.events import TreeSummary
from trainer.tree import ROOT, CreditState, FinishReason, RolloutTree, Verdict


def summarise(tree: RolloutTree) -> TreeSummary:
    """The numbers that lists sort by. Call it after verdicts and credit are filled."""
    leaf = tree.is_leaf()
    is_answer = leaf & (tree.finish != FinishReason.PRUNED)  # what a search gave up is no answer
    verdicts = np.bincount(tree.verdict[is_answer], tree.copies[is_answer], len(Verdict)).astype(np.int64)
    tokens = tree.token_counts()
    credited = tree.advantage[np.isfinite(tree.advantage)]
    sampled = _sampled_tokens(tree)
    entropies, logprobs = tree.entropies[sampled], tree.logprobs[sampled]
    cliff = value_cliff(tree)
    return TreeSummary(
        n_nodes=tree.n_nodes,
        n_leaves=int(leaf.sum()),
        n_answers=int(tree.copies[is_answer].sum()),
        n_given_up=int((leaf & ~is_answer).sum()),
        n_correct=int(verdicts[Verdict.CORRECT]),
        n_unparsed=int(verdicts[Verdict.UNPARSED]),
        n_truncated=int(verdicts[Verdict.TRUNCATED]),
        n_errors=int(verdicts[Verdict.ERROR]),
        depth=int(tree.depths().max()),
        tokens=int(tokens[1:].sum()),
        tokens_flat=int((tokens[1:] * tree.answer_counts()[1:]).sum()),
        value=float(tree.value[ROOT]),
        advantage_min=float(credited.min()) if len(credited) else math.nan,
        advantage_max=float(credited.max()) if len(credited) else math.nan,
        advantage_spread=float(credited.max() - credited.min()) if len(credited) else math.nan,
        zero_variance_share=zero_variance_share([tree]),
        mean_entropy=float(entropies.mean()) if len(entropies) else math.nan,
        max_entropy=float(entropies.max()) if len(entropies) else math.nan,
        mean_logprob=float(logprobs.mean()) if len(logprobs) else math.nan,
        cliff=math.nan if cliff is None else cliff.drop,
        cliff_node="" if cliff is None else tree.name(cliff.node),
        duplicate_share=duplicate_share(tree),
        grpo_flips=grpo_flips(tree),
    )


def _sampled_tokens(tree: RolloutTree) -> slice | NDArray[np.bool_]:
    """Which tokens the policy sampled: not the prompt, not given text."""
    if tree.n_nodes == 1:
        return slice(len(tree.tokens), None)
    below = slice(int(tree.token_offsets[1]), None)
    is_given = tree.finish == FinishReason.GIVEN
    if not is_given.any():
        return below
    sampled: NDArray[np.bool_] = np.repeat(~is_given, tree.token_counts())
    sampled[: below.start] = False
    return sampled


def zero_variance_share(trees: Sequence[RolloutTree]) -> float:
    """Share of sibling groups (two or more children) in which every scored child has the same value: they
    teach nothing, whatever the estimator. NaN if there is no such group.
    """
    groups = flat = 0
    for tree in trees:
        counts, first = tree.child_counts(), tree.first_children()
        for node in np.flatnonzero(counts > 1):
            values = tree.value[first[node] : first[node] + counts[node]]
            values = values[np.isfinite(values)]
            if len(values) < 2:
                continue
            groups += 1
            flat += bool(values.max() - values.min() <= 1e-12)  # equal but for rounding
    return flat / groups if groups else math.nan


def duplicate_share(tree: RolloutTree) -> float:
    """Share of sampled segments that repeat an earlier sibling token for token, of all that have a sibling.
    A leaf counts once for every answer that ended in it, so merged answers are repeats. Given text does not
    count. NaN where no segment has a sibling.
    """
    raw, ends = tree.tokens.tobytes(), (4 * tree.token_offsets).tolist()
    weights: list[int] = np.where(tree.finish == FinishReason.GIVEN, 0, np.maximum(tree.copies, 1)).tolist()
    parents: list[int] = tree.parent.tolist()
    siblings = np.bincount(tree.parent[1:], weights[1:], minlength=tree.n_nodes).tolist()
    seen: set[tuple[int, bytes]] = set()
    counted = 0
    for node in range(1, tree.n_nodes):
        if weights[node] and siblings[parents[node]] > 1:
            counted += weights[node]
            seen.add((parents[node], raw[ends[node] : ends[node + 1]]))
    return (counted - len(seen)) / counted if counted else math.nan


def grpo_flips(tree: RolloutTree) -> int | None:
    """How many credited segments plain GRPO on the leaves would push the other way: its advantage there has
    the opposite sign. None where no segment has both a credit and an advantage under GRPO.
    """
    credited = (tree.credit_state == CreditState.CREDITED) & np.isfinite(tree.advantage)
    if not credited.any():
        return None
    theirs = grpo_advantages(tree)
    compared = credited & np.isfinite(theirs)
    if not compared.any():
        return None
    return int(have_opposite_signs(tree.advantage[compared], theirs[compared]).sum())
