"""From credited trees to rows of tokens with loss weights: every trained segment's tokens stand in exactly
one row.

A row is a path from the root. Rows are chosen so that they cover all segments that carry weight (a path
cover); a segment shared by several rows has its weight in the first and only serves as context in the others.
Segments with nothing trained at or below them are in no row. Pure numpy; the loss that the weights make is in
`losses`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trainer.tree import CreditState, RolloutTree

Aggregate = Literal["token_mean", "sequence_mean"]
Spread = Literal["node", "trajectory"]


@dataclass(frozen=True, slots=True, eq=False)
class TrainingBatch:
    """What one optimiser update trains on: R rows, T tokens end to end.

    row_offsets   [R+1] int64    row r is tokens[row_offsets[r]:row_offsets[r+1]], prompt first
    tokens        [T] int32      ids
    old_logprobs  [T] float32    under the sampling policy; 0 in the prompt
    up, down      [T] float64    loss weights (`losses.clipped_policy_loss`), normaliser included; 0: no
    loss normaliser    what the sum of |A| was divided by: tokens (token_mean) or segments / answers
    (sequence_mean) unique_tokens tokens that carry a weight, each once
    """

    row_offsets: NDArray[np.int64]
    tokens: NDArray[np.int32]
    old_logprobs: NDArray[np.float32]
    up: NDArray[np.float64]
    down: NDArray[np.float64]
    normaliser: int
    unique_tokens: int

    @property
    def n_rows(self) -> int:
        return len(self.row_offsets) - 1


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """Rows padded on the right to one width. tokens [B, T] int64; rows, columns [M] int64 name the places
    with loss, and old_logprobs, up, down [M] float32 belong to them.
    """

    tokens: NDArray[np.int64]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    old_logprobs: NDArray[np.float32]
    up: NDArray[np.float32]
    down: NDArray[np.float32]


def segment_weights(
    tree: RolloutTree, spread: Spread, aggregate: Aggregate
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """[N] up and [N] down weight of every token of a segment, before the batch's normaliser, and this tree's
    part of it.

    Spread node: w max(A, 0) and w min(A, 0) of the segment's own advantage. Spread trajectory: the sums of
    these over all credited leaves below, so that a shared segment counts once per answer it stands in, as if
    the answers were written out. w is 1 for token_mean, 1 / tokens of the segment (or of the answer) for
    sequence_mean.
    """
    credited = tree.credit_state == CreditState.CREDITED
    tokens = tree.token_counts().astype(np.float64)
    tokens[0] = 0  # the prompt has no loss
    if spread == "trajectory":
        for node in range(1, tree.n_nodes):  # of a path up to here; a leaf's is its whole answer
            tokens[node] += tokens[tree.parent[node]]
    credited &= tokens > 0
    advantage = np.where(credited, tree.advantage, 0.0)
    if aggregate == "sequence_mean":
        advantage = np.divide(advantage, tokens, out=np.zeros_like(advantage), where=credited)
        normaliser = int(credited.sum())
    else:
        normaliser = int(tokens[credited].sum())
    up, down = np.maximum(advantage, 0.0), np.minimum(advantage, 0.0)
    if spread == "trajectory":
        up, down = tree.sum_over_leaves(up), tree.sum_over_leaves(down)
    return up, down, normaliser


def pack(trees: Sequence[RolloutTree], spread: Spread, aggregate: Aggregate) -> TrainingBatch:
    """The batch of these trees, whose credit is filled; no rows if none of them has any."""
    tokens: list[NDArray[np.int32]] = []
    logprobs: list[NDArray[np.float32]] = []
    up: list[NDArray[np.float64]] = []
    down: list[NDArray[np.float64]] = []
    lengths: list[int] = []
    normaliser = unique_tokens = 0
    for tree in trees:
        node_up, node_down, part = segment_weights(tree, spread, aggregate)
        normaliser += part
        counts = tree.token_counts()
        trained = (node_up != 0) | (node_down != 0)
        trained[0] = False
        unique_tokens += int(counts[trained].sum())
        for path, own in _path_cover(tree, trained):
            for node in path:
                part_of = slice(int(tree.token_offsets[node]), int(tree.token_offsets[node + 1]))
                tokens.append(tree.tokens[part_of])
                logprobs.append(tree.logprobs[part_of])
                weighs = node in own
                up.append(np.full(counts[node], node_up[node] if weighs else 0.0))
                down.append(np.full(counts[node], node_down[node] if weighs else 0.0))
            lengths.append(int(counts[path].sum()))
    divisor = max(normaliser, 1)
    return TrainingBatch(
        row_offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        tokens=np.concatenate(tokens) if tokens else np.empty(0, np.int32),
        old_logprobs=np.concatenate(logprobs) if tokens else np.empty(0, np.float32),
        up=np.concatenate(up) / divisor if tokens else np.empty(0),
        down=np.concatenate(down) / divisor if tokens else np.empty(0),
        normaliser=normaliser,
        unique_tokens=unique_tokens,
    )


def _path_cover(tree: RolloutTree, trained: NDArray[np.bool_]) -> list[tuple[list[int], set[int]]]:
    """The fewest root paths that hold every trained node: [(path, the trained nodes that are weighed in it)].

    One path ends at each trained node that has no trained node below it.
    """
    has_trained_below = np.zeros(tree.n_nodes, np.bool_)
    for node in range(tree.n_nodes - 1, 0, -1):
        if trained[node] or has_trained_below[node]:
            has_trained_below[tree.parent[node]] = True
    cover = []
    done: set[int] = set()
    for end in np.flatnonzero(trained & ~has_trained_below).tolist():
        path = tree.path(end)
        own = {node for node in path if trained[node] and node not in done}
        done |= own
        cover.append((path, own))
    return cover


def micro_batches(batch: TrainingBatch, max_tokens: int) -> list[MicroBatch]:
    """All rows, in groups of like length whose padded size is at most `max_tokens` (one row may be longer by
    itself).
    """
    lengths = np.diff(batch.row_offsets)
    groups: list[list[int]] = []
    for row in np.argsort(-lengths, kind="stable").tolist():
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= max_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [_padded(batch, group) for group in groups]


def _padded(batch: TrainingBatch, group: list[int]) -> MicroBatch:
    starts, ends = batch.row_offsets[group], batch.row_offsets[np.asarray(group) + 1]
    width = int((ends - starts).max())
    place = np.arange(width)
    filled = place < (ends - starts)[:, None]  # [B, T]
    source = np.where(filled, starts[:, None] + place, 0)  # [B, T] index into the batch's tokens
    weighted = filled & ((batch.up[source] != 0) | (batch.down[source] != 0))
    rows, columns = np.nonzero(weighted)
    at = source[rows, columns]
    return MicroBatch(
        tokens=np.where(filled, batch.tokens[source], 0).astype(np.int64),
        rows=rows,
        columns=columns,
        old_logprobs=batch.old_logprobs[at],
        up=batch.up[at].astype(np.float32),
        down=batch.down[at].astype(np.float32),
    )
