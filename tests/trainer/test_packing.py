from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.trees import T1, T2, Nested, credit_tree, nested_trees, tree_of
from trainer.packing import TrainingBatch, micro_batches, pack
from trainer.presets import PRESETS
from trainer.schema.credit import CreditConfig, RangeFilter
from trainer.tree import CreditState, RolloutTree

TREERPO = PRESETS["treerpo-tiny"].config.credit
GRPO = PRESETS["grpo-tiny"].config.credit
Aggregate = Literal["token_mean", "sequence_mean"]
AGGREGATES = st.sampled_from(["token_mean", "sequence_mean"])


def credited(nested: Nested, config: CreditConfig, lengths: int | list[int] = 2) -> RolloutTree:
    return credit_tree(tree_of(nested, tokens_per_segment=lengths), config)


def weights_of_rows(batch: TrainingBatch) -> list[list[float]]:
    total = batch.up + batch.down
    return [total[a:b].tolist() for a, b in zip(batch.row_offsets, batch.row_offsets[1:], strict=False)]


def test_t1_trains_each_segment_once_in_as_few_rows_as_possible() -> None:
    tree = credited(T1, TREERPO)
    batch = pack([tree], "node", "token_mean")
    # Credited: A, B, a1, a2; b1, b2 are dropped. Rows: prompt A a1, prompt A a2 (A only as context), prompt
    # B. 8 tokens with loss: weights A/8 with A = 4/3, -4/3, 2, -2.
    a, b, one = 4 / 3 / 8, -4 / 3 / 8, 2 / 8
    rows = weights_of_rows(batch)
    assert sorted(map(len, rows)) == [5, 7, 7]
    assert [pytest.approx([0, 0, 0, b, b])] == [row for row in rows if len(row) == 5]
    assert [pytest.approx([0, 0, 0, a, a, one, one]), pytest.approx([0, 0, 0, 0, 0, -one, -one])] == [
        row for row in rows if len(row) == 7
    ]
    assert batch.normaliser == 8
    assert batch.unique_tokens == 8


def test_sequence_mean_weighs_every_segment_alike() -> None:
    tree = credited([1, 0], TREERPO, lengths=[1, 4])
    batch = pack([tree], "node", "sequence_mean")
    # Two segments: weight 1/2 each, spread over 1 and 4 tokens; A = 2 and -2.
    assert sorted(weights_of_rows(batch)) == [[0, 0, 0, -0.25, -0.25, -0.25, -0.25], [0, 0, 0, 1.0]]
    assert batch.normaliser == 2


def test_nothing_with_credit_makes_no_row() -> None:
    batch = pack([credited([[1, 1], [1, 1]], TREERPO)], "node", "token_mean")
    assert batch.n_rows == 0
    assert batch.unique_tokens == 0
    assert micro_batches(batch, 100) == []


def test_zero_advantage_counts_in_the_normaliser_and_costs_no_row() -> None:
    # GRPO: an all-equal prompt has A = 0; its tokens are part of the token mean, as the formula says.
    equal, mixed = credited([1, 1], GRPO), credited([1, 0], GRPO)
    batch = pack([equal, mixed], "trajectory", "token_mean")
    assert batch.normaliser == 8
    assert batch.n_rows == 2
    assert batch.unique_tokens == 4


def node_weights(
    tree: RolloutTree, batch: TrainingBatch, rows: list[list[float]]
) -> dict[tuple[int, ...], float]:
    """Sum of weights per token path, to see which token each weight stands on."""
    found: dict[tuple[int, ...], float] = {}
    for row, start in zip(rows, batch.row_offsets, strict=False):
        for place, weight in enumerate(row):
            if weight:
                key = tuple(batch.tokens[start : start + place + 1].tolist())
                assert key not in found, "a token's weight stands in two rows"
                found[key] = weight
    return found


@given(nested_trees(), st.integers(0, 2**16), AGGREGATES)
def test_every_credited_token_is_weighed_exactly_once(
    nested: Nested, seed: int, aggregate: Aggregate
) -> None:
    tree = tree_of(nested)
    lengths = np.random.default_rng(seed).integers(1, 5, tree.n_nodes - 1).tolist()
    tree = credited(nested, TREERPO, lengths)
    # Distinct ids, so that a path names its node.
    object.__setattr__(tree, "tokens", np.arange(len(tree.tokens), dtype=np.int32))
    batch = pack([tree], "node", aggregate)
    found = node_weights(tree, batch, weights_of_rows(batch))
    by_token = {path[-1]: weight for path, weight in found.items()}
    counts = tree.token_counts()
    is_credited = (tree.credit_state == CreditState.CREDITED) & (counts > 0)
    for node in range(1, tree.n_nodes):
        for token in range(tree.token_offsets[node], tree.token_offsets[node + 1]):
            if is_credited[node] and tree.advantage[node] != 0:
                w = (
                    1 / counts[is_credited].sum()
                    if aggregate == "token_mean"
                    else 1 / (counts[node] * is_credited.sum())
                )
                assert by_token.pop(token) == pytest.approx(w * tree.advantage[node])
    assert by_token == {}
    # The weights sum to the mean |A| over what is averaged: tokens, or segments.
    expected = 0.0
    if is_credited.any():
        over = counts[is_credited] if aggregate == "token_mean" else None
        expected = float(np.average(np.abs(tree.advantage[is_credited]), weights=over))
    assert float(np.abs(batch.up + batch.down).sum()) == pytest.approx(expected)
    # Every row is a whole path from the prompt.
    for start, end in zip(batch.row_offsets, batch.row_offsets[1:], strict=False):
        row = batch.tokens[start:end].tolist()
        assert any(
            row
            == [t for n in tree.path(node) for t in range(tree.token_offsets[n], tree.token_offsets[n + 1])]
            for node in range(1, tree.n_nodes)
        )


@given(nested_trees(), st.integers(0, 2**16), AGGREGATES)
def test_trajectory_spread_equals_the_answers_written_out(
    nested: Nested, seed: int, aggregate: Aggregate
) -> None:
    tree = tree_of(nested)
    lengths = np.random.default_rng(seed).integers(1, 5, tree.n_nodes - 1).tolist()
    tree = credited(nested, GRPO, lengths)
    object.__setattr__(tree, "tokens", np.arange(len(tree.tokens), dtype=np.int32))
    batch = pack([tree], "trajectory", aggregate)
    up: dict[int, float] = {}
    down: dict[int, float] = {}
    leaves = np.flatnonzero(tree.credit_state == CreditState.CREDITED)
    sizes = {leaf: sum(int(tree.token_counts()[n]) for n in tree.path(leaf)[1:]) for leaf in leaves.tolist()}
    for leaf in leaves.tolist():
        w = 1 / sum(sizes.values()) if aggregate == "token_mean" else 1 / (len(sizes) * sizes[leaf])
        for node in tree.path(leaf)[1:]:
            for token in range(tree.token_offsets[node], tree.token_offsets[node + 1]):
                up[token] = up.get(token, 0) + w * max(tree.advantage[leaf], 0)
                down[token] = down.get(token, 0) + w * min(tree.advantage[leaf], 0)
    for slow, fast in ((up, batch.up), (down, batch.down)):
        got = {int(t): float(v) for t, v in zip(batch.tokens, fast, strict=True) if v}
        assert got == pytest.approx({t: v for t, v in slow.items() if v})
        assert int(np.count_nonzero(fast)) == len(got)


@given(st.lists(nested_trees(max_leaves=8), max_size=5), st.integers(1, 60))
def test_micro_batches_hold_every_row_once_within_the_limit(forest: list[Nested], limit: int) -> None:
    trees = [credited(nested, TREERPO.model_copy(update={"filter": RangeFilter(tau=0)})) for nested in forest]
    batch = pack(trees, "node", "token_mean")
    parts = micro_batches(batch, limit)
    assert sum(len(part.tokens) for part in parts) == batch.n_rows
    for part in parts:
        assert part.tokens.size <= limit or len(part.tokens) == 1
        assert (part.columns >= 1).all()
    assert math.fsum(v for part in parts for v in part.up.tolist()) == pytest.approx(batch.up.sum(), abs=1e-6)
    assert sum(len(part.rows) for part in parts) == batch.unique_tokens
    # A place in a micro-batch holds the token, the logprob and the weight of one place of the batch.
    key = sorted(zip(batch.tokens.tolist(), batch.old_logprobs.tolist(), strict=True))
    seen = [
        (int(part.tokens[r, c]), float(lp))
        for part in parts
        for r, c, lp in zip(part.rows, part.columns, part.old_logprobs, strict=True)
    ]
    assert set(seen) <= set(key)


def test_a_row_keeps_its_tokens_when_padded() -> None:
    batch = pack([credited(T2, TREERPO)], "node", "token_mean")
    rows = [
        batch.tokens[a:b].tolist() for a, b in zip(batch.row_offsets, batch.row_offsets[1:], strict=False)
    ]
    (part,) = micro_batches(batch, 1000)
    padded = [
        row[:length]
        for row, length in zip(part.tokens.tolist(), sorted(map(len, rows), reverse=True), strict=True)
    ]
    assert sorted(padded) == sorted(rows)
