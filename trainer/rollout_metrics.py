"""Metrics of one step's credited trees. Names and formulas: `metrics.py`. Torch-free and pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trainer.tree import CreditState, RolloutTree, Verdict, zero_variance_share


def rollout_metrics(trees: Sequence[RolloutTree]) -> dict[str, float]:
    """`reward/`, `sampling/`, `tree/`, `credit/` and `policy/entropy` of these trees; NaN where nothing was
    counted.
    """
    rewards, correct, leaves, answer_tokens = [], [], 0, 0
    verdicts = np.zeros(len(Verdict), np.int64)
    unique = credited = 0
    entropy = 0.0
    magnitudes: list[float] = []
    for tree in trees:
        is_leaf = tree.is_leaf()
        scored = is_leaf & np.isfinite(tree.reward)
        if scored.any():
            rewards.append(float(tree.reward[scored].mean()))
            correct.append(float((tree.verdict[scored] == Verdict.CORRECT).mean()))
        verdicts += np.bincount(tree.verdict[is_leaf], minlength=len(Verdict))
        leaves += int(is_leaf.sum())
        tokens = tree.token_counts()
        tokens[0] = 0
        unique += int(tokens.sum())
        answer_tokens += int((tokens * tree.leaf_counts()).sum())
        entropy += float(tree.entropies[tree.token_offsets[1] :].sum()) if tree.n_nodes > 1 else 0.0
        carries = _carries_credit(tree)
        credited += int(tokens[carries].sum())
        magnitudes.extend(np.abs(tree.advantage[tree.credit_state == CreditState.CREDITED]).tolist())
    return {
        "reward/mean": _mean(rewards),
        "reward/pass1": _mean(correct),
        "sampling/response_tokens": _share(answer_tokens, leaves),
        "sampling/truncated_share": _share(verdicts[Verdict.TRUNCATED], leaves),
        "sampling/unparsed_share": _share(verdicts[Verdict.UNPARSED], leaves),
        "sampling/error_share": _share(verdicts[Verdict.ERROR], leaves),
        "tree/unique_tokens": float(unique),
        "tree/flat_tokens": float(answer_tokens),
        "tree/leaves": _share(leaves, len(trees)),
        "credit/zero_variance_share": zero_variance_share(trees),
        "credit/credited_share": _share(credited, unique),
        "credit/advantage_mean_abs": _mean(magnitudes),
        "policy/entropy": _share(entropy, unique),
    }


def _carries_credit(tree: RolloutTree) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """[N] whether a segment's tokens get any push: its own advantage, or under trajectory spread a leaf's
    below, is not 0.
    """
    pushes = np.where(np.isfinite(tree.advantage), np.abs(tree.advantage), 0.0)
    if (tree.credit_state == CreditState.PER_PATH).any():
        pushes = tree.sum_over_leaves(pushes)
    carries: np.ndarray[tuple[int], np.dtype[np.bool_]] = pushes > 0
    return carries


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _share(part: float, whole: int) -> float:
    return float(part) / whole if whole else math.nan
