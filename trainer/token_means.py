"""Means over the tokens of each segment: what a picture of a tree shows of its tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainer.tree import FinishReason, RolloutTree

ROUNDING_NATS = 1e-3  # two float32 programs of one model differ by some 1e-5


def token_means(tree: RolloutTree, per_token: NDArray[np.float32]) -> NDArray[np.float64]:
    """[N] mean of `per_token` [T] over each segment; NaN for the prompt, given text and a segment without
    tokens.
    """
    known: NDArray[np.float64] | None = getattr(per_token, "means", None)  # of a column that is still packed
    if known is not None:
        return known
    counts = tree.token_counts()
    means = np.full(tree.n_nodes, np.nan)
    sampled = np.flatnonzero(counts[1:]) + 1
    if len(sampled):
        sums = np.add.reduceat(per_token, tree.token_offsets[sampled], dtype=np.float64)
        means[sampled] = sums / counts[sampled]
    # The zeros that are stored for what was given are no measurement.
    means[tree.finish == FinishReason.GIVEN] = np.nan
    return means


def mean_mismatch(tree: RolloutTree) -> NDArray[np.float64] | None:
    """[N] mean |sampling - policy logprob| of each segment's tokens that trained, nats; NaN where none did.
    None where the tree does not tell, or where no token is off by more than rounding: colours would show
    noise.
    """
    if tree.mismatch is None:
        return None
    known: NDArray[np.float64] | None = getattr(tree.mismatch, "means", None)
    if known is not None:
        return known if np.isfinite(known).any() else None
    away = np.abs(tree.mismatch.astype(np.float64))
    is_known = np.isfinite(away)
    if not (away[is_known] > ROUNDING_NATS).any():
        return None
    node_of = np.repeat(np.arange(tree.n_nodes), tree.token_counts())[is_known]
    counts = np.bincount(node_of, minlength=tree.n_nodes)
    sums = np.bincount(node_of, away[is_known], minlength=tree.n_nodes)
    means: NDArray[np.float64] = np.divide(sums, counts, out=np.full(tree.n_nodes, np.nan), where=counts > 0)
    return means
