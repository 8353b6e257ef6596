"""What trains, and how much: from credited trees to weights of answers, segments and tokens. Pure numpy.

An *item* is what a loss is defined on: a whole answer (spread trajectory or leaf_mean's leaves) or a segment
(spread node). Everything else follows from items: a token that stands in several items carries the sums of
their weights, which is exactly the loss of the items written out (`algorithms.md` §5.4's identity):

    sum_i w_i min(r A_i, clip(r) A_i) = up min(r, 1 + high) + down max(r, 1 - low)
    up = sum_i w_i max(A_i, 0),  down = sum_i w_i min(A_i, 0)     over the items through the token

Normalisers count items as they would be counted written out, copies included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trainer.schema.objective import Objective, PolicyObjective, PreferenceObjective, SupervisedObjective
from trainer.tree import ROOT, CreditState, FinishReason, RolloutTree, Verdict

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
EMPTY: Floats = np.empty(0)
NONE: Ints = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Pair:
    """A preference: the segments of the better and of the worse branch, and the label's smoothing s."""

    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    smoothing: float


@dataclass(frozen=True, slots=True, eq=False)
class TreeWeights:
    """One tree's part of an update, normalised over the whole update.

    trains      [T] tokens that may carry a loss (sampled, unsure enough)
    end         [K] the node at which item k ends; `is_path`: an item is the whole path, else the node alone
    token       [K] w_k, weight of each of its tokens
    whole       [K] W_k, weight of the item as a whole (ratios of whole answers, regularizers on them)
    advantage   [K] A_k
    length      [K] trained tokens of the item
    supervised  [N] weight of the cross-entropy of each trained token of a segment
    correction  [T] importance weight of each token by itself (`trainer.importance`); empty: 1 everywhere
    pairs, pair_weight   preference pairs, each of this weight
    value_target [N] what the value head should say at a segment's end, NaN for nothing; value_weight: of each
    """

    tree: RolloutTree
    trains: NDArray[np.bool_]
    is_path: bool = True
    end: Ints = field(default_factory=lambda: NONE)
    token: Floats = field(default_factory=lambda: EMPTY)
    whole: Floats = field(default_factory=lambda: EMPTY)
    advantage: Floats = field(default_factory=lambda: EMPTY)
    length: Floats = field(default_factory=lambda: EMPTY)
    supervised: Floats = field(default_factory=lambda: EMPTY)
    correction: Floats = field(default_factory=lambda: EMPTY)
    pairs: tuple[Pair, ...] = ()
    pair_weight: float = 0.0
    value_target: Floats = field(default_factory=lambda: EMPTY)
    value_weight: float = 0.0

    def left_out(self) -> TreeWeights:
        """The tree in its place, with nothing to train on."""
        return TreeWeights(tree=self.tree, trains=self.trains)

    def over_nodes(self, per_item: Floats) -> Floats:
        """[N] sum of `per_item` [K] over the items that a segment is part of."""
        total = np.zeros(self.tree.n_nodes)
        np.add.at(total, self.end, per_item)
        if self.is_path:
            parent = self.tree.parent
            for node in range(self.tree.n_nodes - 1, 0, -1):
                total[parent[node]] += total[node]
        total[ROOT] = 0.0
        return total

    @property
    def up(self) -> Floats:
        """[N] sum of w max(A, 0) over the items through a segment."""
        return self.over_nodes(self.token * np.maximum(self.advantage, 0.0))

    @property
    def down(self) -> Floats:
        """[N] sum of w min(A, 0)."""
        return self.over_nodes(self.token * np.minimum(self.advantage, 0.0))

    @property
    def held(self) -> Floats:
        """[N] sum of w: how much a token's regularizer and entropy count."""
        return self.over_nodes(self.token)

    def item_nodes(self, item: int) -> list[int]:
        """Segments of an item, the root left out."""
        end = int(self.end[item])
        return self.tree.path(end)[1:] if self.is_path else [end]


def trained_tokens(tree: RolloutTree, most_probability: float) -> NDArray[np.bool_]:
    """[T] sampled tokens whose probability was below the bound (1: all)."""
    sampled: NDArray[np.bool_] = np.repeat(_is_sampled(tree), tree.token_counts())
    if most_probability < 1:
        sampled &= tree.logprobs < math.log(most_probability)
    return sampled


def _is_sampled(tree: RolloutTree) -> NDArray[np.bool_]:
    is_sampled: NDArray[np.bool_] = tree.finish != FinishReason.GIVEN
    is_sampled[ROOT] = False
    return is_sampled


def trained_counts(tree: RolloutTree, objective: Objective, trains: NDArray[np.bool_]) -> Ints:
    """[N] as `count_trained`. Where no token of a sampled segment is masked, none has to be looked at: a huge
    tree has millions.
    """
    if not isinstance(objective, PolicyObjective) or objective.max_token_probability == 1:
        return np.where(_is_sampled(tree), tree.token_counts(), 0)
    return count_trained(tree, trains)


def count_trained(tree: RolloutTree, trains: NDArray[np.bool_]) -> Ints:
    """[N] trained tokens of each segment."""
    total = np.zeros(len(trains) + 1, np.int32)  # half the memory of int64: of a huge tree that is felt
    np.cumsum(trains, out=total[1:])
    return np.diff(total[tree.token_offsets]).astype(np.int64)


def weigh(trees: Sequence[RolloutTree], objective: Objective, spread: str) -> list[TreeWeights]:
    """What one update trains on; trees in their order, also those with nothing to train."""
    if isinstance(objective, PolicyObjective):
        return _policy_weights(trees, objective, spread)
    if isinstance(objective, PreferenceObjective):
        return _preference_weights(trees, objective)
    return _supervised_weights(trees, objective)


# ------------------------------------------------------------------------------------------------ policy


def _policy_weights(
    trees: Sequence[RolloutTree], objective: PolicyObjective, spread: str
) -> list[TreeWeights]:
    """Items are credited leaves, or credited segments under spread node or leaf_mean.

        token_mean      w = c / sum c |o|          W = c |o| / sum c |o|
        sequence_mean   w = c / (|o| sum c)        W = c / sum c
        fixed_length    w = c / (L sum c)          W = c |o| / (L sum c)

    c: how often the item counts (copies of a leaf; answers through a segment, or 1); |o| its trained tokens.
    """
    is_path = spread == "trajectory"
    found = []
    for tree in trees:
        trains = trained_tokens(tree, objective.max_token_probability)
        own = trained_counts(tree, objective, trains)
        length = own.copy()
        if is_path:
            for node in range(1, tree.n_nodes):
                length[node] += length[tree.parent[node]]
        items = (tree.credit_state == CreditState.CREDITED) & (length > 0)
        if is_path:
            items &= tree.is_leaf()
        if objective.mask_truncated:
            cut = tree.is_leaf() & (tree.verdict == Verdict.TRUNCATED)
            items &= ~cut
        if is_path:
            times = tree.copies.astype(np.float64)
        elif objective.segment_weight == "answers":
            times = tree.sum_over_leaves(np.where(_is_answer(tree), tree.copies, 0).astype(np.float64))
        else:
            times = np.ones(tree.n_nodes)
        end = np.flatnonzero(items)
        found.append((tree, trains, end, np.maximum(times[end], 1.0), length[end].astype(np.float64)))
    items_in_all = sum(float(count.sum()) for _, _, _, count, _ in found)
    tokens_in_all = sum(float((count * length).sum()) for _, _, _, count, length in found)
    if objective.aggregate == "token_mean":
        divisor = max(tokens_in_all, 1.0)
    elif objective.aggregate == "sequence_mean":
        divisor = max(items_in_all, 1.0)
    else:
        divisor = max(items_in_all, 1.0) * objective.fixed_length
    weights = []
    for tree, trains, end, count, lengths in found:
        per_token = count / (lengths if objective.aggregate == "sequence_mean" else 1.0) / divisor
        weights.append(
            TreeWeights(
                tree=tree,
                trains=trains,
                is_path=is_path,
                end=end,
                token=per_token,
                whole=per_token * lengths,
                advantage=tree.advantage[end],
                length=lengths,
            )
        )
    return weights


def _is_answer(tree: RolloutTree) -> NDArray[np.bool_]:
    """[N] leaves whose path would be trained, written out: those with a reward that were not left out."""
    left_out = (tree.credit_state == CreditState.NOT_SELECTED) | (tree.credit_state == CreditState.NO_REWARD)
    trained: NDArray[np.bool_] = tree.is_leaf() & ~left_out
    return trained


# ------------------------------------------------------------------------------------------------ pairs


def _preference_weights(trees: Sequence[RolloutTree], objective: PreferenceObjective) -> list[TreeWeights]:
    pairs = [preference_pairs(tree, objective) for tree in trees]
    each = 1 / max(sum(map(len, pairs)), 1)
    return [
        TreeWeights(tree=tree, trains=trained_tokens(tree, 1.0), pairs=own, pair_weight=each)
        for tree, own in zip(trees, pairs, strict=True)
    ]


def preference_pairs(tree: RolloutTree, objective: PreferenceObjective) -> tuple[Pair, ...]:
    """One pair of every node whose children differ in value: the best against the worst (or second best), the
    widest gaps first (MCTS-DPO). A child that has a single child goes on into it, and so on down.

        s = min(1 - 1 / (1 + N_l / max(1, N_w)), 0.5)        N_w, N_l: visits of the chosen, of the rejected
    """
    counts, first = tree.child_counts(), tree.first_children()
    found: list[tuple[float, Pair]] = []
    for node in np.flatnonzero(counts > 1).tolist():
        children = np.arange(first[node], first[node] + counts[node])
        children = children[np.isfinite(tree.value[children]) & (tree.finish[children] != FinishReason.GIVEN)]
        if len(children) < 2:
            continue
        # Best first; of equals the more visited, then the likelier.
        likely = np.array([_mean_logprob(tree, int(child)) for child in children])
        order = np.lexsort((-likely, -tree.visits[children], -tree.value[children]))
        best = int(children[order[0]])
        worst = int(children[order[-1 if objective.rejected == "worst" else 1]])
        gap = float(tree.value[best] - tree.value[worst])
        if gap <= max(objective.min_gap, 1e-12):
            continue
        smoothing = 0.0
        if objective.smoothing == "visits":
            won, lost = max(1, int(tree.visits[best])), int(tree.visits[worst])
            smoothing = min(1 - 1 / (1 + lost / won), 0.5)
        found.append((gap, Pair(_chain(tree, best), _chain(tree, worst), smoothing)))
    found.sort(key=lambda pair: -pair[0])
    return tuple(pair for _, pair in found[: objective.max_pairs])


def _mean_logprob(tree: RolloutTree, node: int) -> float:
    part = tree.logprobs[tree.token_offsets[node] : tree.token_offsets[node + 1]]
    return float(part.mean()) if len(part) else 0.0


def _chain(tree: RolloutTree, node: int) -> tuple[int, ...]:
    """The node, and what follows as long as there is one child only."""
    counts, first = tree.child_counts(), tree.first_children()
    nodes = [node]
    while counts[nodes[-1]] == 1:
        nodes.append(int(first[nodes[-1]]))
    return tuple(nodes)


# ------------------------------------------------------------------------------------------------ supervised


def _supervised_weights(trees: Sequence[RolloutTree], objective: SupervisedObjective) -> list[TreeWeights]:
    chosen = [_correct_paths(tree, objective.max_answers) for tree in trees]
    trains = [trained_tokens(tree, 1.0) for tree in trees]
    tokens = sum(
        int(count_trained(tree, may)[nodes].sum())
        for tree, may, nodes in zip(trees, trains, chosen, strict=True)
    )
    values = [np.where(tree.finish == FinishReason.GIVEN, np.nan, tree.value) for tree in trees]
    nodes_in_all = sum(int(np.isfinite(value).sum()) for value in values)
    weights = []
    for tree, may, nodes, value in zip(trees, trains, chosen, values, strict=True):
        per_node = np.zeros(tree.n_nodes)
        per_node[nodes] = objective.policy_weight / max(tokens, 1)
        weights.append(
            TreeWeights(
                tree=tree,
                trains=may,
                supervised=per_node,
                value_target=value if objective.value_weight else EMPTY,
                value_weight=objective.value_weight / max(nodes_in_all, 1),
            )
        )
    return weights


def _correct_paths(tree: RolloutTree, most: int) -> Ints:
    """Segments of the first correct answers, each once."""
    leaves = np.flatnonzero(tree.is_leaf() & (tree.verdict == Verdict.CORRECT))[:most]
    nodes = sorted({node for leaf in leaves.tolist() for node in tree.path(leaf)[1:]})
    return np.array(nodes, np.int64)


def pull(weights: TreeWeights, objective: Objective, trained: Ints | Floats | None = None) -> Floats:
    """[N] size of what the log-probabilities of a segment's trained tokens are multiplied by in the gradient
    of the objective, summed over them, where the policy still is the one that sampled: every ratio is 1.

        policy        |sum of w A| over the items through a token; W in the place of w for ratios of whole
                      answers
        supervised    the weight of the cross-entropy
        preference    pair_weight for both branches of each pair, times 1 - 2 s under dpo, over the branch's
                      trained tokens to the length power: as where policy and reference still are the same

    Regularizers, the entropy bonus and the value head do not count. trained: [N] `count_trained`, if it is at
    hand.
    """
    if len(weights.correction):  # token by token
        total = np.append(0.0, np.cumsum(weights.correction * weights.trains))
        trained = np.diff(total[weights.tree.token_offsets])
    elif trained is None:
        trained = count_trained(weights.tree, weights.trains)
    per_token = np.zeros(weights.tree.n_nodes)
    if isinstance(objective, PolicyObjective):
        of_item = weights.whole if objective.ratio == "sequence" else weights.token
        per_token = np.abs(weights.over_nodes(of_item * weights.advantage))
    elif isinstance(objective, PreferenceObjective):
        for pair in weights.pairs:
            size = weights.pair_weight * (1 - 2 * pair.smoothing if objective.loss == "dpo" else 1)
            for segments in (list(pair.chosen), list(pair.rejected)):
                per_token[segments] += size / max(int(trained[segments].sum()), 1) ** objective.length_power
    else:
        per_token = weights.supervised
    return per_token * trained


def every_answer(tree: RolloutTree) -> TreeWeights:
    """Every token of every answer, for measuring alone."""
    end = np.flatnonzero(tree.is_leaf())
    ones = np.ones(len(end))
    return TreeWeights(
        tree=tree,
        trains=trained_tokens(tree, 1.0),
        end=end,
        token=ones,
        whole=ones,
        advantage=ones,
        length=ones,
    )


def expert_weights(trees: Sequence[RolloutTree], mu: float) -> list[TreeWeights]:
    """Worked solutions as trees of one segment: mu * cross-entropy, mean over all their tokens (CHORD)."""
    tokens = sum(int(tree.token_counts()[1:].sum()) for tree in trees)
    return [
        TreeWeights(
            tree=tree,
            trains=trained_tokens(tree, 1.0),
            supervised=np.concatenate(([0.0], np.full(tree.n_nodes - 1, mu / max(tokens, 1)))),
        )
        for tree in trees
    ]


def expert_share(step: int, peak: float, valley: float, warmup: int, decay: int) -> float:
    """CHORD's mu at step 1, 2, ...: from 0 to peak, then by a cosine to valley, then valley."""
    done = step - 1
    if done < warmup:
        return peak * done / warmup
    if done - warmup < decay:
        return valley + (peak - valley) * (1 + math.cos(math.pi * (done - warmup) / decay)) / 2
    return valley
