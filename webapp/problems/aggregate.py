"""All trees of a step at once: where their nodes lie by depth and value, which groups teach nothing, how
often siblings repeat each other. Pure numpy over `trainer.tree.RolloutTree`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.tree import ROOT, FinishReason, RolloutTree

N_BINS = 10
NO_VALUE = N_BINS  # the column of nodes below which nothing was scored
MAX_MERGED_NODES = 4000
MAX_MERGED_ROWS = 48
EQUAL_WITHIN = 1e-12  # as `trainer.summary.zero_variance_share`: equal but for rounding


@dataclass(frozen=True, slots=True)
class Bins:
    """Ten value bins of equal width from `low` to `high`; the last one holds its upper edge."""

    low: float = 0.0
    high: float = 1.0

    @classmethod
    def over(cls, low: float, high: float) -> Bins:
        """Bins that hold every value: 0 to 1, and further where rewards go further (-1 to 1 is the usual
        other). NaN or infinite ends count as absent.
        """
        low = low if math.isfinite(low) else 0.0
        high = high if math.isfinite(high) else 1.0
        return cls(min(low, -1.0) if low < 0 else 0.0, max(high, 1.0))

    def of(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """[N] bin of each value; `NO_VALUE` where there is none."""
        finite = np.isfinite(values)
        share = (np.where(finite, values, self.low) - self.low) / (self.high - self.low)
        # The small push keeps 0.3, which lies a rounding below 3/10 of the way, in the bin it names.
        found = np.clip(np.floor(share * N_BINS + 1e-9), 0, N_BINS - 1).astype(np.int64)
        return np.where(finite, found, NO_VALUE)

    def edges(self, place: int) -> tuple[float, float]:
        width = (self.high - self.low) / N_BINS
        return self.low + place * width, self.low + (place + 1) * width


@dataclass(slots=True)
class DepthRow:
    """One depth over all trees. Groups are the children of one node, counted at the children's depth."""

    depth: int
    bins: NDArray[np.int64] = field(default_factory=lambda: np.zeros(N_BINS + 1, np.int64))
    n_nodes: int = 0
    value_sum: float = 0.0  # a leaf as often as it was sampled
    value_times: int = 0
    n_credited: int = 0
    n_groups: int = 0  # two or more scored children
    n_flat: int = 0  # of those: all values are equal
    n_siblings: int = 0  # nodes in groups of two or more, a leaf as often as it was sampled
    n_repeats: int = 0  # of those: the same tokens as an earlier sibling

    @property
    def value_mean(self) -> float | None:
        return self.value_sum / self.value_times if self.value_times else None

    @property
    def flat_share(self) -> float | None:
        return self.n_flat / self.n_groups if self.n_groups else None

    @property
    def repeat_share(self) -> float | None:
        return self.n_repeats / self.n_siblings if self.n_siblings else None

    @property
    def credited_share(self) -> float | None:
        return self.n_credited / self.n_nodes if self.n_nodes else None


def by_depth(trees: Sequence[RolloutTree], bins: Bins) -> list[DepthRow]:
    """A row per depth from 0 (the prompts) to the deepest."""
    rows: list[DepthRow] = []
    for tree in trees:
        depths = tree.depths()
        deepest = int(depths.max())
        rows += [DepthRow(depth) for depth in range(len(rows), deepest + 1)]
        per_depth = partial(_per_depth, depths)
        cells = depths * (N_BINS + 1) + bins.of(tree.value)
        table = np.bincount(cells, minlength=(deepest + 1) * (N_BINS + 1)).reshape(-1, N_BINS + 1)
        valued = np.isfinite(tree.value)
        times = np.where(tree.is_leaf(), np.maximum(tree.copies, 1), 1).astype(np.float64)
        sums, counts = per_depth(valued, tree.value * times), per_depth(valued, times)
        credited = per_depth(np.isfinite(tree.advantage))
        groups, flat = _groups(tree)
        n_groups, n_flat = per_depth(groups), per_depth(flat)
        siblings, different = _siblings(tree)
        n_siblings, n_different = per_depth(siblings > 0, siblings), per_depth(different)
        for depth in range(deepest + 1):
            row = rows[depth]
            row.bins += table[depth]
            row.n_nodes += int(table[depth].sum())
            row.value_times += int(counts[depth])
            row.value_sum += float(sums[depth])
            row.n_credited += int(credited[depth])
            row.n_groups += int(n_groups[depth])
            row.n_flat += int(n_flat[depth])
            row.n_siblings += int(n_siblings[depth])
            row.n_repeats += int(n_siblings[depth] - n_different[depth])
    return rows


def _per_depth(
    depths: NDArray[np.int32], which: NDArray[np.bool_], weights: NDArray[np.float64] | None = None
) -> NDArray[Any]:
    """[depths] how many of the nodes `which` [N], or the sum of their `weights` [N]."""
    n = int(depths.max()) + 1
    return np.bincount(depths[which], None if weights is None else weights[which], minlength=n)


def _groups(tree: RolloutTree) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """[N], [N] true at the first child of a group with two scored children or more, and of those whose values
    are all equal. As `trainer.summary.zero_variance_share`.
    """
    groups, flat = np.zeros(tree.n_nodes, np.bool_), np.zeros(tree.n_nodes, np.bool_)
    if tree.n_nodes > 1:
        starts = 1 + np.flatnonzero(np.diff(tree.parent[1:], prepend=-1))  # children are contiguous
        values = tree.value
        scored = np.add.reduceat(np.isfinite(values).astype(np.int64), starts)
        values = np.where(np.isfinite(values), values, np.nan)
        spread = np.fmax.reduceat(values, starts) - np.fmin.reduceat(values, starts)
        groups[starts] = scored >= 2
        flat[starts] = (scored >= 2) & (spread <= EQUAL_WITHIN)
    return groups, flat


def _siblings(tree: RolloutTree) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """[N] how many sampled segments with a sibling a node stands for: a merged leaf as often as it was
    sampled, given text not at all; [N] true where no earlier sibling has the same tokens. As
    `trainer.summary.duplicate_share`.
    """
    weights = np.where(tree.finish == FinishReason.GIVEN, 0.0, np.maximum(tree.copies, 1))
    weights[ROOT] = 0
    of_group = np.bincount(tree.parent[1:], weights[1:], minlength=tree.n_nodes)
    weights[1:][of_group[tree.parent[1:]] < 2] = 0
    different = np.zeros(tree.n_nodes, np.bool_)
    raw, ends = tree.tokens.tobytes(), (tree.tokens.itemsize * tree.token_offsets).tolist()
    parents: list[int] = tree.parent.tolist()
    seen: set[tuple[int, bytes]] = set()
    for node in np.flatnonzero(weights).tolist():
        text = (parents[node], raw[ends[node] : ends[node + 1]])
        different[node] = text not in seen
        seen.add(text)
    return weights, different


@dataclass(frozen=True, slots=True)
class Merged:
    """All trees laid over each other: nodes that came the same way through the value bins are one.

    Breadth-first like a rollout tree, node 0 stands above the prompts. `parent` [M]; `bin` [M] (-1 at node
    0); `leaves` [M] below, a merged one as often as it was sampled; `nodes` [M] how many nodes were laid
    together. `n_left_out`: nodes of the rows that a too wide or too deep picture left out.
    """

    parent: list[int]
    bin: list[int]
    leaves: list[int]
    nodes: list[int]
    n_left_out: int


def merge(
    trees: Sequence[RolloutTree],
    bins: Bins,
    most: int = MAX_MERGED_NODES,
    most_rows: int = MAX_MERGED_ROWS,
) -> Merged:
    """Children stand in the order of their bins, the highest values first; what has no value is last."""
    # Of every tree: where each row starts, the bin as its place from the left, leaves below, and the way of
    # each node: its number in the merged row. In the next row ways differ by (way of the parent, place).
    shapes = [
        (
            tree,
            np.searchsorted(tree.depths(), np.arange(most_rows + 1)),
            np.where((places := bins.of(tree.value)) == NO_VALUE, N_BINS, N_BINS - 1 - places),
            np.maximum(tree.answer_counts(), 1),
            np.zeros(tree.n_nodes, np.int64),
        )
        for tree in trees
    ]
    merged = Merged([-1], [-1], [0], [0], 0)
    above = 0  # the first node of the row above, in the merged tree
    for row in range(most_rows):
        parts = [slice(int(starts[row]), int(starts[row + 1])) for _, starts, *_ in shapes]
        keys = [
            (way[tree.parent[part]] if row else 0) * (N_BINS + 1) + place[part]
            for part, (tree, _, place, _, way) in zip(parts, shapes, strict=True)
        ]
        found, number = np.unique(np.concatenate([*keys, np.empty(0, np.int64)]), return_inverse=True)
        if not len(found) or len(merged.parent) - 1 + len(found) > most:
            break
        below = np.concatenate(
            [leaves[part] for part, (_, _, _, leaves, _) in zip(parts, shapes, strict=True)]
        )
        done = 0
        for part, (*_, way) in zip(parts, shapes, strict=True):
            way[part] = number[done : done + part.stop - part.start]
            done += part.stop - part.start
        place = found % (N_BINS + 1)
        first = len(merged.parent)
        merged.parent.extend((above + found // (N_BINS + 1)).tolist())
        merged.bin.extend(np.where(place == N_BINS, NO_VALUE, N_BINS - 1 - place).tolist())
        merged.leaves.extend(np.bincount(number, below).astype(np.int64).tolist())
        merged.nodes.extend(np.bincount(number).tolist())
        above = first
    n_prompts = merged.parent.count(0)
    merged.leaves[0] = sum(merged.leaves[1 : n_prompts + 1])
    merged.nodes[0] = sum(merged.nodes[1 : n_prompts + 1])
    drawn = sum(merged.nodes[1:])
    return replace(merged, n_left_out=sum(tree.n_nodes for tree in trees) - drawn)


def nodes_in(tree: RolloutTree, bins: Bins, depth: int, place: int) -> list[int]:
    """The nodes of one cell of the table, in sampling order."""
    return np.flatnonzero((tree.depths() == depth) & (bins.of(tree.value) == place)).tolist()
