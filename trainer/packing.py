"""From weighted trees to micro-batches: packed, every unique token once, or flat, every item written out.

Packed (`pack`): all trees of a micro-batch in depth-first order in one row; a token's position is its depth
in tokens, and it sees the tokens of its own path alone (`trainer.attention`). Segments with nothing that
trains at or below them are left out. Flat (`flatten`): one padded row per item, prompt first: what packing is
measured against, and what is computed where packing cannot win.

Both give the same `LossTokens`: which tokens carry a loss and how much (`losses`). Pure numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.loss_weights import Floats, Ints, TreeWeights
from trainer.tree import ROOT, Kept, RolloutTree


@dataclass(frozen=True, slots=True, eq=False)
class LossTokens:
    """M tokens with a loss, and what losses on whole items need of them.

    tree, place       [M] which tree of the update, and which of its tokens
    up, down, held    [M] weights of a ratio loss (`TreeWeights`), the first two times the token's importance;
                      0 where a token has none
    supervised        [M] weights of the cross-entropy
    sampled, old, reference  [M] logprobs: of the engine, of the policy before the update, of the reference
                      model; NaN where they were not asked for
    kept              [M, K] what each was drawn from, where its distribution was cut off; -1 behind its last
                      and for tokens that were drawn from all. None: all were
    group             [M] number of the token's segment within the batch, 0 .. S-1
    item_of, item_group      [E] item number and segment: which segments an item is made of
    item_up, item_down, item_held, item_length   [I] W max(A, 0), W min(A, 0), W, trained tokens
    chosen_of, chosen_group, rejected_of, rejected_group   segments of each pair's branches
    smoothing, pair_weight, chosen_length, rejected_length [P]
    """

    tree: Ints
    place: Ints
    up: Floats
    down: Floats
    held: Floats
    supervised: Floats
    sampled: Floats
    old: Floats
    reference: Floats
    group: Ints
    n_groups: int
    item_of: Ints
    item_group: Ints
    item_up: Floats
    item_down: Floats
    item_held: Floats
    item_length: Floats
    chosen_of: Ints
    chosen_group: Ints
    rejected_of: Ints
    rejected_group: Ints
    smoothing: Floats
    pair_weight: Floats
    chosen_length: Floats
    rejected_length: Floats
    kept: Ints | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """The packed row as runs: stretches of tokens without a fork. Run r is tokens start[r]:end[r] and goes on
    from run parent[r] (-1: a tree's beginning), which stands before it. path[r]: tokens before it on its
    path.
    """

    start: Ints
    end: Ints
    parent: Ints
    path: Ints


@dataclass(frozen=True, slots=True, eq=False)
class PackedBatch:
    """One row of U unique tokens.

    tokens, positions [U]; source [M] the place whose hidden state predicts loss token m; values_at [Q] places
    whose hidden state the value head reads, value_target, value_weight [Q].
    """

    tokens: Ints
    positions: Ints
    runs: Runs
    source: Ints
    target: Ints
    loss: LossTokens
    values_at: Ints
    value_target: Floats
    value_weight: Floats


@dataclass(frozen=True, slots=True, eq=False)
class FlatBatch:
    """Padded rows [B, T]; row, column [M] name the token that is predicted, value_row, value_column [Q] what
    the value head reads.
    """

    tokens: Ints
    row: Ints
    column: Ints
    loss: LossTokens
    value_row: Ints
    value_column: Ints
    value_target: Floats
    value_weight: Floats


class _Losses:
    """Collects segments, and makes the loss tokens of all of them at once: a call of numpy per segment is
    what would cost.
    """

    def __init__(
        self,
        weights: Sequence[TreeWeights],
        old: Sequence[Floats] | None,
        reference: Sequence[Floats] | None,
    ) -> None:
        self._weights, self._old, self._reference = weights, old, reference
        self.segments: list[tuple[int, int]] = []  # tree, node
        self.scales: list[tuple[float, float, float, float]] = []  # up, down, held, supervised
        self.items: dict[str, list[float]] = {name: [] for name in ("up", "down", "held", "length")}
        self.item_of: list[int] = []
        self.item_group: list[int] = []
        self.pairs: dict[str, list[float]] = {
            name: [] for name in ("smoothing", "weight", "chosen_length", "rejected_length")
        }
        self.chosen: list[tuple[int, int]] = []
        self.rejected: list[tuple[int, int]] = []

    def segment(self, tree: int, node: int, up: float, down: float, held: float, supervised: float) -> int:
        """The trained tokens of a segment become loss tokens of the next group. Returns its number."""
        self.segments.append((tree, node))
        self.scales.append((up, down, held, supervised))
        return len(self.segments) - 1

    def item(self, weights: TreeWeights, item: int, groups: Sequence[int]) -> None:
        whole, advantage = float(weights.whole[item]), float(weights.advantage[item])
        number = len(self.items["up"])
        self.items["up"].append(whole * max(advantage, 0.0))
        self.items["down"].append(whole * min(advantage, 0.0))
        self.items["held"].append(whole)
        self.items["length"].append(float(weights.length[item]))
        self.item_of += [number] * len(groups)
        self.item_group += groups

    def pair(
        self, weights: TreeWeights, smoothing: float, chosen: Sequence[int], rejected: Sequence[int],
        chosen_length: int, rejected_length: int,
    ) -> None:  # fmt: skip
        number = len(self.pairs["weight"])
        self.pairs["smoothing"].append(smoothing)
        self.pairs["weight"].append(weights.pair_weight)
        self.pairs["chosen_length"].append(max(chosen_length, 1))
        self.pairs["rejected_length"].append(max(rejected_length, 1))
        self.chosen += [(number, group) for group in chosen]
        self.rejected += [(number, group) for group in rejected]

    def done(self) -> tuple[LossTokens, Ints]:
        """All loss tokens, segment after segment, and the place [M] of each within its segment."""
        segments = np.array(self.segments, np.int64).reshape(-1, 2)
        used = np.unique(segments[:, 0]).tolist()
        trees = [self._weights[number].tree for number in used]
        begins = np.zeros(len(self._weights), np.int64)  # of a tree's tokens when those of all stand in a row
        begins[used] = np.cumsum([0, *(len(tree.tokens) for tree in trees)])[:-1]
        first, length = np.empty(len(segments), np.int64), np.empty(len(segments), np.int64)
        for number, tree in zip(used, trees, strict=True):
            mine = np.flatnonzero(segments[:, 0] == number)
            node = segments[mine, 1]
            first[mine] = tree.token_offsets[node]
            length[mine] = tree.token_offsets[node + 1] - tree.token_offsets[node]
        group, inside = ranges(length)
        trains = _in_a_row([self._weights[number].trains for number in used], np.bool_)
        trained = trains[begins[segments[group, 0]] + first[group] + inside]
        group, inside = group[trained], inside[trained]
        tree_of, place = segments[group, 0], first[group] + inside
        at = begins[tree_of] + place
        nothing = np.full(len(at), np.nan)

        def known(logprobs: Sequence[NDArray[Any]] | None) -> Floats:
            return nothing if logprobs is None else _in_a_row([logprobs[n] for n in used], np.float64)[at]

        scales = np.array(self.scales, np.float64).reshape(-1, 4)[group]
        if any(len(self._weights[number].correction) for number in used):
            scales[:, :2] *= _in_a_row([_correction(self._weights[n]) for n in used], np.float64)[at, None]
        chosen = np.array(self.chosen, np.int64).reshape(-1, 2)
        rejected = np.array(self.rejected, np.int64).reshape(-1, 2)
        tokens = LossTokens(
            tree=tree_of,
            place=place,
            up=scales[:, 0],
            down=scales[:, 1],
            held=scales[:, 2],
            supervised=scales[:, 3],
            sampled=known([weights.tree.logprobs for weights in self._weights]),
            old=known(self._old),
            reference=known(self._reference),
            group=group,
            n_groups=len(segments),
            item_of=np.array(self.item_of, np.int64),
            item_group=np.array(self.item_group, np.int64),
            item_up=np.array(self.items["up"]),
            item_down=np.array(self.items["down"]),
            item_held=np.array(self.items["held"]),
            item_length=np.array(self.items["length"]),
            chosen_of=chosen[:, 0],
            chosen_group=chosen[:, 1],
            rejected_of=rejected[:, 0],
            rejected_group=rejected[:, 1],
            smoothing=np.array(self.pairs["smoothing"]),
            pair_weight=np.array(self.pairs["weight"]),
            chosen_length=np.array(self.pairs["chosen_length"]),
            rejected_length=np.array(self.pairs["rejected_length"]),
            kept=_kept_at(trees, at),
        )
        return tokens, inside


def _kept_at(trees: Sequence[RolloutTree], at: Ints) -> Ints | None:
    """[M, K] of tokens `at` of all trees' tokens in a row, as `LossTokens` has it."""
    kept = Kept.joined([(tree.kept, len(tree.tokens)) for tree in trees])
    if kept is None:
        return None
    counts = kept.counts[at].astype(np.int64)
    first = (np.cumsum(kept.counts, dtype=np.int64) - kept.counts)[at]
    which, inside = ranges(counts)
    found = np.full((len(at), int(counts.max(initial=0))), -1, np.int64)
    found[which, inside] = kept.tokens[first[which] + inside]
    return found


def ranges(length: Ints) -> tuple[Ints, Ints]:
    """0 .. length[i] - 1 for every i, one after the other: which i, and which number of it; [sum of length]
    each.
    """
    which = np.repeat(np.arange(len(length)), length)
    return which, np.arange(len(which)) - np.repeat(np.cumsum(length) - length, length)


def _correction(weights: TreeWeights) -> Floats:
    """[T] importance weights of single tokens; 1 where there are none."""
    return weights.correction if len(weights.correction) else np.ones(len(weights.tree.tokens))


@cache
def idle_batch() -> PackedBatch:
    """A micro-batch of one token and no loss: what a rank computes while others have more to do."""
    loss, _ = _Losses([], None, None).done()
    none = np.empty(0, np.int64)
    return PackedBatch(
        tokens=np.zeros(1, np.int64),
        positions=np.zeros(1, np.int64),
        runs=Runs(*(np.array([number], np.int64) for number in (0, 1, -1, 0))),
        source=none,
        target=none,
        loss=loss,
        values_at=none,
        value_target=np.empty(0),
        value_weight=np.empty(0),
    )


def _in_a_row(parts: Sequence[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.empty(0, dtype)


# ------------------------------------------------------------------------------------------------ packed


def trained_nodes(weights: TreeWeights) -> NDArray[np.bool_]:
    """[N] segments that carry a loss of any kind."""
    tree = weights.tree
    trained = np.zeros(tree.n_nodes, np.bool_)
    if len(weights.end):
        trained |= weights.over_nodes((weights.token != 0).astype(np.float64)) > 0
    if len(weights.supervised):
        trained |= weights.supervised != 0
    for pair in weights.pairs:
        trained[list(pair.chosen + pair.rejected)] = True
    if len(weights.value_target):
        trained |= np.isfinite(weights.value_target)
    return trained


def without_idle_items(weights: TreeWeights, *, keeps_regularized: bool) -> TreeWeights:
    """The weights less the items whose advantage is 0, unless something else than the advantage trains
    them."""
    if keeps_regularized or not len(weights.end):
        return weights
    kept = weights.advantage != 0
    if kept.all():
        return weights
    return replace(
        weights,
        end=weights.end[kept],
        token=weights.token[kept],
        whole=weights.whole[kept],
        advantage=weights.advantage[kept],
        length=weights.length[kept],
    )


_Part = tuple[int, NDArray[np.bool_], NDArray[np.bool_]]  # tree, computed [N], weighed [N]


def pack(
    weights: Sequence[TreeWeights],
    most_tokens: int,
    *,
    with_items: bool = False,
    old: Sequence[Floats] | None = None,
    reference: Sequence[Floats] | None = None,
) -> list[PackedBatch]:
    """Micro-batches of whole trees, each of at most `most_tokens` unique tokens. A tree that is larger is
    split into parts of its answers; what the parts share is computed again as context, but weighed once.

    with_items: whether the loss looks at whole items. old, reference: per tree [T] logprobs. Trees with
    nothing to train are in no batch; one with pairs is not split, as a pair needs both of its branches.
    """
    parts: list[_Part] = []
    for number, own in enumerate(weights):
        trained = trained_nodes(own)
        if trained.any():
            parts += [(number, kept, fresh) for kept, fresh in _parts(own, trained, most_tokens)]
    batches: list[PackedBatch] = []
    waiting: list[_Part] = []
    size = 0
    for part in parts:
        tokens = int(weights[part[0]].tree.token_counts()[part[1]].sum())
        if waiting and size + tokens > most_tokens:
            batches.append(_packed(weights, waiting, old, reference, with_items=with_items))
            waiting, size = [], 0
        waiting.append(part)
        size += tokens
    if waiting:
        batches.append(_packed(weights, waiting, old, reference, with_items=with_items))
    return batches


def _parts(
    weights: TreeWeights, trained: NDArray[np.bool_], most_tokens: int
) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """[(computed [N], weighed [N])]: one part if the tree fits, else groups of its branches in depth-first
    order.
    """
    tree = weights.tree
    kept = trained.copy()
    for node in range(tree.n_nodes - 1, 0, -1):
        if kept[node]:
            kept[tree.parent[node]] = True
    counts = tree.token_counts()
    if weights.pairs or int(counts[kept].sum()) <= most_tokens:
        return [(kept, trained)]
    has_kept_child = np.zeros(tree.n_nodes, np.bool_)
    has_kept_child[tree.parent[np.flatnonzero(kept)[1:]]] = True
    ends = [node for node in _depth_first(tree.parent, kept) if not has_kept_child[node]]
    parts = []
    weighed = np.zeros(tree.n_nodes, np.bool_)
    here, size = np.zeros(tree.n_nodes, np.bool_), 0
    for end in ends:
        path = np.array(tree.path(end))
        new = path[~here[path]]
        if size and size + int(counts[new].sum()) > most_tokens:
            parts.append((here, here & trained & ~weighed))
            weighed |= here
            here, size = np.zeros(tree.n_nodes, np.bool_), 0
            new = path
        here[new] = True
        size += int(counts[new].sum())
    parts.append((here, here & trained & ~weighed))
    return parts


def _depth_first(parent: NDArray[np.int32], kept: NDArray[np.bool_]) -> list[int]:
    """The kept nodes, each before its children and these before its next sibling."""
    children: dict[int, list[int]] = {}
    for node in np.flatnonzero(kept).tolist():
        if node != ROOT:
            children.setdefault(int(parent[node]), []).append(node)
    order, waiting = [], [ROOT]
    while waiting:
        node = waiting.pop()
        order.append(node)
        waiting += reversed(children.get(node, []))
    return order


def _packed(
    weights: Sequence[TreeWeights],
    parts: Sequence[_Part],
    old: Sequence[Floats] | None,
    reference: Sequence[Floats] | None,
    *,
    with_items: bool,
) -> PackedBatch:
    losses = _Losses(weights, old, reference)
    tokens: list[Ints] = []
    positions: list[Ints] = []
    begins: list[int] = []  # of every segment with a loss: its first place, and the one that predicts it
    before_it: list[int] = []
    run_start: list[int] = []
    run_end: list[int] = []
    run_parent: list[int] = []
    run_path: list[int] = []
    values_at: list[int] = []
    value_target: list[float] = []
    value_weight: list[float] = []
    used = 0
    for number, kept, fresh in parts:
        own = weights[number]
        tree = own.tree
        n = tree.n_nodes
        supervised = own.supervised if len(own.supervised) else np.zeros(n)
        wanted = fresh & ((own.held != 0) | (supervised != 0))
        if with_items:
            wanted |= kept & (own.held != 0)
        for pair in own.pairs:
            wanted[list(pair.chosen + pair.rejected)] = True
        has_value = np.zeros(n, np.bool_)
        if len(own.value_target):
            has_value = fresh & np.isfinite(own.value_target)
        # Reading a number out of an array is slow, and this is done for every segment.
        lengths, parents = tree.token_counts().tolist(), tree.parent.tolist()
        kept_children = np.bincount(
            tree.parent[np.flatnonzero(kept & (np.arange(n) > 0))], minlength=n
        ).tolist()
        scales = np.stack((own.up, own.down, own.held, supervised), 1)
        scales[~fresh] = 0.0
        scale = scales.tolist()
        is_wanted, is_value = wanted.tolist(), has_value.tolist()
        last = [-1] * n  # packed place of each segment's last token, or of its nearest ancestor's with tokens
        depth = [0] * n  # tokens of the path up to and with the segment
        run_of = [-1] * n
        group_of: dict[int, int] = {}
        order = _depth_first(tree.parent, kept)
        for node in order:
            above, length = parents[node], lengths[node]
            before = 0 if node == ROOT else depth[above]
            depth[node] = before + length
            if (
                node != ROOT
                and kept_children[above] == 1
                and run_of[above] >= 0
                and run_end[run_of[above]] == used
            ):
                run_of[node] = run_of[above]
                run_end[run_of[node]] = used + length
            else:
                run_of[node] = len(run_start)
                run_start.append(used)
                run_end.append(used + length)
                run_parent.append(-1 if node == ROOT else run_of[above])
                run_path.append(before)
            last[node] = used + length - 1 if length else (last[above] if node != ROOT else -1)
            if is_wanted[node] and length:
                group_of[node] = losses.segment(number, node, *scale[node])
                begins.append(used)
                before_it.append(last[above])
            if is_value[node] and last[node] >= 0:
                values_at.append(last[node])
                value_target.append(float(own.value_target[node]))
                value_weight.append(own.value_weight)
            used += length
        nodes = np.array(order, np.int64)
        which, inside = ranges(tree.token_counts()[nodes].astype(np.int64))
        tokens.append(tree.tokens[tree.token_offsets[nodes][which] + inside].astype(np.int64))
        ends = np.array(depth, np.int64)[nodes] - tree.token_counts()[nodes]
        positions.append(ends[which] + inside)
        for item, end in enumerate(own.end.tolist()):
            if with_items and kept[end] and fresh[end]:
                losses.item(own, item, [group_of[node] for node in own.item_nodes(item) if node in group_of])
        for pair in own.pairs:
            sides = [[group_of[m] for m in side if m in group_of] for side in (pair.chosen, pair.rejected)]
            long = [sum(lengths[m] for m in side) for side in (pair.chosen, pair.rejected)]
            losses.pair(own, pair.smoothing, sides[0], sides[1], long[0], long[1])
    loss, inside = losses.done()
    target = np.array(begins, np.int64)[loss.group] + inside
    return PackedBatch(
        tokens=_in_a_row(tokens, np.int64),
        positions=_in_a_row(positions, np.int64),
        runs=Runs(*(np.array(column, np.int64) for column in (run_start, run_end, run_parent, run_path))),
        source=np.where(inside > 0, target - 1, np.array(before_it, np.int64)[loss.group]),
        target=target,
        loss=loss,
        values_at=np.array(values_at, np.int64),
        value_target=np.array(value_target),
        value_weight=np.array(value_weight),
    )


# ------------------------------------------------------------------------------------------------ flat


def flatten(
    weights: Sequence[TreeWeights],
    most_tokens: int,
    *,
    old: Sequence[Floats] | None = None,
    reference: Sequence[Floats] | None = None,
) -> list[FlatBatch]:
    """The same loss with every item written out: one row per answer or segment (with its path as context),
    per supervised branch, per pair's branch, per value. Rows of like length share a micro-batch of at most
    `most_tokens` padded tokens.
    """
    rows: list[_Row] = []
    for number, own in enumerate(weights):
        rows += _rows(number, own)
    rows.sort(key=lambda row: -row.length)
    groups: list[list[_Row]] = []
    for row in rows:
        if groups and (sum(r.rows for r in groups[-1]) + row.rows) * groups[-1][0].length <= most_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [_padded(weights, group, old, reference) for group in groups]


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """One item; a pair makes two rows of one batch. branches: root paths; own: which of their nodes weigh."""

    tree: int
    branches: tuple[tuple[int, ...], ...]
    own: tuple[frozenset[int], ...]
    length: int
    item: int = -1
    pair: int = -1
    supervised: bool = False
    value: int = -1

    @property
    def rows(self) -> int:
        return len(self.branches)


def _rows(number: int, weights: TreeWeights) -> list[_Row]:
    tree = weights.tree
    counts = tree.token_counts()
    rows = []

    def length(*paths: tuple[int, ...]) -> int:
        return max(int(counts[list(path)].sum()) for path in paths)

    for item, end in enumerate(weights.end.tolist()):
        path = tuple(tree.path(end))
        own = frozenset(weights.item_nodes(item))
        rows.append(_Row(number, (path,), (own,), length(path), item=item))
    if len(weights.supervised):
        done: set[int] = set()
        trained = weights.supervised != 0
        has_below = np.zeros(tree.n_nodes, np.bool_)
        for node in range(tree.n_nodes - 1, 0, -1):
            if trained[node] or has_below[node]:
                has_below[tree.parent[node]] = True
        for end in np.flatnonzero(trained & ~has_below).tolist():
            path = tuple(tree.path(end))
            own = frozenset(node for node in path if trained[node]) - done
            done |= own
            rows.append(_Row(number, (path,), (own,), length(path), supervised=True))
    for index, pair in enumerate(weights.pairs):
        paths = tuple(tuple(tree.path(side[-1])) for side in (pair.chosen, pair.rejected))
        sides = (frozenset(pair.chosen), frozenset(pair.rejected))
        rows.append(_Row(number, paths, sides, length(*paths), pair=index))
    if len(weights.value_target):
        for node in np.flatnonzero(np.isfinite(weights.value_target)).tolist():
            path = tuple(tree.path(node))
            if length(path):
                rows.append(_Row(number, (path,), (frozenset(),), length(path), value=node))
    return rows


def _padded(
    weights: Sequence[TreeWeights],
    rows: Sequence[_Row],
    old: Sequence[Floats] | None,
    reference: Sequence[Floats] | None,
) -> FlatBatch:
    losses = _Losses(weights, old, reference)
    width = max(row.length for row in rows)
    tokens = np.zeros((sum(row.rows for row in rows), width), np.int64)
    rows_of: list[int] = []  # of every segment with a loss: its row, and the column where it begins
    begins: list[int] = []
    values: list[tuple[int, int, float, float]] = []
    number = 0
    for row in rows:
        own = weights[row.tree]
        tree = own.tree
        groups: list[list[int]] = []
        lengths: list[int] = []
        for path, weighed in zip(row.branches, row.own, strict=True):
            column, trained = 0, 0
            mine: list[int] = []
            for node in path:
                part = tree.tokens[tree.token_offsets[node] : tree.token_offsets[node + 1]]
                tokens[number, column : column + len(part)] = part
                if node in weighed and len(part):
                    up = down = held = supervised = 0.0
                    if row.item >= 0:
                        weight, advantage = float(own.token[row.item]), float(own.advantage[row.item])
                        up, down, held = weight * max(advantage, 0.0), weight * min(advantage, 0.0), weight
                    if row.supervised:
                        supervised = float(own.supervised[node])
                    mine.append(losses.segment(row.tree, node, up, down, held, supervised))
                    first = tree.token_offsets[node]
                    trained += int(own.trains[first : first + len(part)].sum())
                    rows_of.append(number)
                    begins.append(column)
                column += len(part)
            groups.append(mine)
            lengths.append(trained)
            if row.value >= 0:
                values.append((number, column - 1, float(own.value_target[row.value]), own.value_weight))
            number += 1
        if row.item >= 0:
            losses.item(own, row.item, groups[0])
        if row.pair >= 0:
            losses.pair(own, own.pairs[row.pair].smoothing, groups[0], groups[1], lengths[0], lengths[1])
    loss, inside = losses.done()
    read = np.array(values, np.float64).reshape(-1, 4)
    return FlatBatch(
        tokens=tokens,
        row=np.array(rows_of, np.int64)[loss.group],
        column=np.array(begins, np.int64)[loss.group] + inside,
        loss=loss,
        value_row=read[:, 0].astype(np.int64),
        value_column=read[:, 1].astype(np.int64),
        value_target=read[:, 2],
        value_weight=read[:, 3],
    )
