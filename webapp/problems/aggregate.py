"""All trees of a step at once: where their nodes lie by depth and value, which groups teach nothing, how
often siblings repeat each other. Pure numpy over `trainer.tree.RolloutTree`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

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
    value_sum: float = 0.0
    n_valued: int = 0
    n_credited: int = 0
    n_groups: int = 0  # two or more scored children
    n_flat: int = 0  # of those: all values are equal
    n_siblings: int = 0  # nodes in groups of two or more, a leaf as often as it was sampled
    n_repeats: int = 0  # of those: the same tokens as an earlier sibling

    @property
    def value_mean(self) -> float | None:
        return self.value_sum / self.n_valued if self.n_valued else None

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
        counts, first = tree.child_counts(), tree.first_children()
        cells = depths * (N_BINS + 1) + bins.of(tree.value)
        table = np.bincount(cells, minlength=(deepest + 1) * (N_BINS + 1)).reshape(-1, N_BINS + 1)
        valued, credited = np.isfinite(tree.value), np.isfinite(tree.advantage)
        sums = np.bincount(depths[valued], tree.value[valued], minlength=deepest + 1)
        n_credited = np.bincount(depths[credited], minlength=deepest + 1)
        for row, of_bins, value_sum, with_credit in zip(rows, table, sums, n_credited, strict=False):
            row.bins += of_bins
            row.n_nodes += int(of_bins.sum())
            row.n_valued += int(of_bins[:NO_VALUE].sum())
            row.value_sum += float(value_sum)
            row.n_credited += int(with_credit)
        for node in np.flatnonzero(counts):
            children = slice(int(first[node]), int(first[node] + counts[node]))
            row = rows[int(depths[node]) + 1]
            values = tree.value[children]
            values = values[np.isfinite(values)]
            if len(values) >= 2:
                row.n_groups += 1
                row.n_flat += bool(values.max() - values.min() <= EQUAL_WITHIN)
            sampled, different = _repeats(tree, children)
            if sampled >= 2:
                row.n_siblings += sampled
                row.n_repeats += sampled - different
    return rows


def _repeats(tree: RolloutTree, children: slice) -> tuple[int, int]:
    """How many segments were sampled as these children (a merged leaf as often as it was, given text not),
    and how many of them are different, token by token. As `trainer.summary.duplicate_share`.
    """
    offsets = tree.token_offsets
    sampled = np.arange(children.start, children.stop)
    sampled = sampled[tree.finish[children] != FinishReason.GIVEN]
    texts = {tree.tokens[offsets[child] : offsets[child + 1]].tobytes() for child in sampled}
    return int(np.maximum(tree.copies[sampled], 1).sum()), len(texts)


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
    ways: dict[tuple[int, ...], list[int]] = {}
    for tree in trees:
        places = bins.of(tree.value)
        below = np.maximum(tree.answer_counts(), 1)
        n_drawn = int(np.searchsorted(tree.depths(), most_rows))  # breadth-first
        way: list[tuple[int, ...]] = [()] * n_drawn
        for node in range(n_drawn):
            up = () if node == ROOT else way[int(tree.parent[node])]
            way[node] = (*up, int(places[node]))
            there = ways.setdefault(way[node], [0, 0])
            there[0] += int(below[node])
            there[1] += 1
    # Level by level: a level that does not fit is left out, and so are those below it.
    order: list[tuple[int, ...]] = []
    depth = 1
    while level := [way for way in ways if len(way) == depth]:
        if len(order) + len(level) > most:
            break
        order += level
        depth += 1
    rank = {NO_VALUE: N_BINS} | {place: N_BINS - 1 - place for place in range(N_BINS)}
    order.sort(key=lambda way: (len(way), [rank[place] for place in way]))
    index = {way: place for place, way in enumerate(order, 1)} | {(): 0}
    return Merged(
        parent=[-1, *(index[way[:-1]] for way in order)],
        bin=[-1, *(way[-1] for way in order)],
        leaves=[sum(ways[way][0] for way in order if len(way) == 1), *(ways[way][0] for way in order)],
        nodes=[sum(ways[way][1] for way in order if len(way) == 1), *(ways[way][1] for way in order)],
        n_left_out=sum(tree.n_nodes for tree in trees) - sum(ways[way][1] for way in order),
    )


def nodes_in(tree: RolloutTree, bins: Bins, depth: int, place: int) -> list[int]:
    """The nodes of one cell of the table, in sampling order."""
    return np.flatnonzero((tree.depths() == depth) & (bins.of(tree.value) == place)).tolist()
