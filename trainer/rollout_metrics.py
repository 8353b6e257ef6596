"""Metrics of one step's credited trees. Names and formulas: `metrics.py`. Torch-free and pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trainer.summary import zero_variance_share
from trainer.tree import CreditState, FinishReason, RolloutTree, Verdict


def rollout_metrics(trees: Sequence[RolloutTree]) -> dict[str, float]:
    """`reward/`, `sampling/`, `tree/`, `credit/` and `policy/entropy` of these trees; NaN where nothing was
    counted. An answer that was sampled several times (merged samples) counts as often; a branch that a search
    gave up is no answer.
    """
    rewards, correct, leaves, answer_tokens = [], [], 0, 0
    verdicts = np.zeros(len(Verdict), np.int64)
    unique = credited = 0
    entropy = 0.0
    magnitudes: list[float] = []
    for tree in trees:
        is_answer = tree.is_leaf() & (tree.finish != FinishReason.PRUNED)
        copies = np.where(is_answer, tree.copies, 0)
        scored = is_answer & np.isfinite(tree.reward)
        if scored.any():
            rewards.append(float(np.average(tree.reward[scored], weights=copies[scored])))
            is_correct = tree.verdict[scored] == Verdict.CORRECT
            correct.append(float(np.average(is_correct, weights=copies[scored])))
        verdicts += np.bincount(tree.verdict, copies, minlength=len(Verdict)).astype(np.int64)
        leaves += int(copies.sum())
        tokens = tree.token_counts()
        tokens[0] = 0
        unique += int(tokens.sum())
        answer_tokens += int((tokens * tree.sum_over_leaves(copies.astype(np.float64))).sum())
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
