from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.trees import Nested, leaves_below, nested_trees, tree_of
from trainer.cliffs import edges_of, probability_less, value_cliff
from trainer.tree import FinishReason, RolloutTree


def less(a: int, b: int, c: int, d: int) -> float:
    return float(probability_less(*(np.array([float(x)]) for x in (a, b, c, d)))[0])


def test_hand_worked_probabilities() -> None:
    # X ~ Beta(1, 2) has P(X < y) = 1 - (1 - y)^2, so P(X < Y) = 1 - E[(1 - Y)^2],
    # and E[(1 - Y)^2] = d (d + 1) / ((c + d) (c + d + 1)).
    assert less(1, 2, 8, 1) == pytest.approx(1 - 2 / 90, abs=1e-12)
    assert less(1, 2, 4, 5) == pytest.approx(1 - 30 / 90, abs=1e-12)
    assert less(1, 1, 1, 1) == pytest.approx(0.5, abs=1e-12)
    assert less(3, 5, 3, 5) == pytest.approx(0.5, abs=1e-12)
    # X ~ Beta(a, 1) has P(X < y) = y^a: E[Y^2] for Y ~ Beta(1, 1) is 1/3.
    assert less(2, 1, 1, 1) == pytest.approx(1 / 3, abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(*[st.integers(1, 60)] * 4)
def test_the_sum_is_the_integral(a: int, b: int, c: int, d: int) -> None:
    # P(X < Y) = integral of f_X(x) P(Y > x), both as polynomials of the order statistics, by Gauss-Legendre.
    points, weights = np.polynomial.legendre.leggauss(120)
    x = (points + 1) / 2
    log_x = (
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + (a - 1) * np.log(x) + (b - 1) * np.log1p(-x)
    )
    n = c + d - 1  # P(Y > x) = P(Binomial(n, x) < c)
    above = sum(math.comb(n, k) * x**k * (1 - x) ** (n - k) for k in range(c))
    assert less(a, b, c, d) == pytest.approx(float((weights / 2 * np.exp(log_x) * above).sum()), abs=1e-9)


def test_large_counts_are_normal_to_three_digits() -> None:
    # One below the bound of the exact sum beside one above it.
    exact, normal = less(4090, 4200, 4150, 4100), less(40900, 42000, 41500, 41000)
    assert exact == pytest.approx(
        0.5 * math.erfc(-(4150 / 8250 - 4090 / 8290) / math.sqrt(2 * (0.25 / 8250 + 0.25 / 8290))), abs=1e-3
    )
    assert exact < normal < 1


#      0            12 answers: 1 has 0 of 4, 2 has 4 of 4, 3 has 3 of 4
#    / | \          p(0) = 7/12, p(1) = 0, rest of 1: 7 of 8
#   1  2  3          (3.4, one wrong answer, falls further and is credible, but is one answer)
CLIFF: Nested = [[0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]]


def test_a_hand_worked_cliff() -> None:
    found = value_cliff(tree_of(CLIFF))
    assert found is not None
    assert (found.node, found.parent) == (1, 0)
    assert found.drop == pytest.approx(-7 / 12)
    # theta ~ Beta(1, 5): P(theta < y) = 1 - (1 - y)^5; rest ~ Beta(8, 2): E[(1 - Y)^5] = (2...6) / (10...14).
    assert found.probability == pytest.approx(1 - math.prod(range(2, 7)) / math.prod(range(10, 15)))


def test_without_a_credible_drop_there_is_no_cliff() -> None:
    assert value_cliff(tree_of([[1, 0], [0, 0]])) is None  # P = 5/6 at most: too few answers
    assert value_cliff(tree_of([[0, 0], [0, 0]])) is None
    assert value_cliff(tree_of([[0, 0, 0, 0, 0, 0]])) is None  # an only child: the same answers as its parent
    assert value_cliff(tree_of([0, 1, 1, 1, 1, 1, 1, 1])) is None  # one wrong answer explains itself alone


def with_leaves(tree: RolloutTree, **columns: np.ndarray) -> RolloutTree:
    return dataclasses.replace(tree, **columns)


def test_copies_count_and_leaves_without_a_verdict_do_not() -> None:
    tree = tree_of([0, 1, 1])
    assert value_cliff(tree) is None  # Beta(1, 2) below Beta(3, 1): 1 - 2/20 = 0.9, which is not above 0.9
    merged = with_leaves(tree, copies=np.array([0, 3, 1, 1], np.int32))
    found = value_cliff(merged)
    assert found is not None
    assert found.node == 1
    assert found.drop == pytest.approx(-2 / 5)
    # The same answers written out, one of them given up and one that the verifier failed on.
    flat = tree_of([0, 0, 0, 1, 1, 0, math.nan])
    flat = with_leaves(
        flat,
        finish=np.where(np.arange(8) == 6, FinishReason.PRUNED, flat.finish).astype(np.uint8),
        reward=np.where(np.arange(8) == 6, np.nan, flat.reward),
    )
    edges = edges_of(flat)
    assert np.isnan(edges.drop[[0, 6, 7]]).all()
    assert np.isnan(edges.probability[[0, 6, 7]]).all()
    assert edges.drop[1] == pytest.approx(-2 / 5)


def test_given_text_is_no_cliff() -> None:
    tree = tree_of(CLIFF)
    given_text = with_leaves(
        tree, finish=np.where(np.arange(16) == 1, FinishReason.GIVEN, tree.finish).astype(np.uint8)
    )
    found = value_cliff(given_text)
    assert found is None or found.node != 1


@given(nested_trees())
def test_edges_equal_the_slow_version(nested: Nested) -> None:
    tree = tree_of(nested)
    edges = edges_of(tree)
    assert math.isnan(edges.drop[0])
    for node in range(1, tree.n_nodes):
        mine = [leaf for leaf in leaves_below(tree, node) if not math.isnan(tree.reward[leaf])]
        all_above = [
            leaf for leaf in leaves_below(tree, int(tree.parent[node])) if not math.isnan(tree.reward[leaf])
        ]
        rest = [leaf for leaf in all_above if leaf not in mine]
        if not mine or not rest:
            assert math.isnan(edges.drop[node])
            continue
        s, t = sum(tree.reward[mine] == 1), sum(tree.reward[rest] == 1)
        assert edges.drop[node] == pytest.approx(s / len(mine) - (s + t) / len(all_above))
        assert edges.probability[node] == pytest.approx(
            less(1 + s, 1 + len(mine) - s, 1 + t, 1 + len(rest) - t)
        )
