"""Value cliffs: the edge of a tree after which answers fail more often. Pure numpy, torch-free.

A cliff is told by correct and scored answers alone, so it means the same under every estimator and reward. It
is not an advantage: those are `trainer.credit`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.tree import ROOT, FinishReason, RolloutTree, Verdict

CREDIBLE_ABOVE = 0.9
_MOST_TERMS = 4096  # of the exact sum; a share of counts this large is all but normal
_STIRLING_FROM = 16  # below it log Gamma stands in a table; from it on the series is exact to 1e-15

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Edges:
    """Of the edge into each node, all [N]; NaN where nothing is compared.

    drop         p(node) - p(parent), in [-1, 1]: p is the share of correct ones among the scored answers at
                 or below; negative where fewer are correct
    probability  posterior probability that the drop is real, in (0, 1)
    """

    drop: Floats
    probability: Floats


@dataclass(frozen=True, slots=True)
class Cliff:
    """The edge from `parent` down to `node`; `drop` in [-1, 0), `probability` above 0.9."""

    node: int
    parent: int
    drop: float
    probability: float


def value_cliff(tree: RolloutTree) -> Cliff | None:
    """The edge with the largest drop of those whose drop is real with a probability above 0.9; the first of
    equals. None: no single edge explains the failures.

    Edges to a single answer are left out. One wrong answer among many right ones has the largest drop there
    can be, and explains no failure but its own.
    """
    correct, scored = tree.verdict == Verdict.CORRECT, np.isfinite(tree.reward)
    if not (correct & scored).any() or not (~correct & scored).any():
        return None  # most trees of a hard or an easy problem
    edges, answers = _edges(tree, falling_alone=True)
    is_credible = (edges.probability > CREDIBLE_ABOVE) & (answers > 1)
    if not is_credible.any():
        return None
    node = int(np.argmin(np.where(is_credible, edges.drop, np.inf)))
    return Cliff(node, int(tree.parent[node]), float(edges.drop[node]), float(edges.probability[node]))


def edges_of(tree: RolloutTree) -> Edges:
    """Drop and probability of every edge.

    A child's answers are also its parent's, so child and parent cannot be compared as if they were two
    samples. The child (s of n answers correct) is compared with the rest of the parent's answers (t of m):
    the next segments that were taken in its place.

        theta ~ Beta(1 + s, 1 + n - s),   rest ~ Beta(1 + t, 1 + m - t),   probability = P(theta < rest)

    p(node) - p(parent) = m / (n + m) * (s / n - t / m): the drop from the parent has the sign of what is
    compared. Merged answers count as often as they were sampled. Leaves that were given up, or that no
    verifier judged, do not count. Nothing is compared where child or rest has no answer left (an only child
    is as good as its parent), and no edge leads into given text, which the policy did not choose.

    The posterior takes answers as independent given the node. Those that part farther down share text, so it
    is somewhat too sure of itself; and it is per edge, not corrected for the number of edges looked at.
    """
    return _edges(tree, falling_alone=False)[0]


def _edges(tree: RolloutTree, *, falling_alone: bool) -> tuple[Edges, Floats]:
    """The edges, and [N] scored answers at or below. falling_alone: probabilities only of falling edges to
    several answers.
    """
    is_scored = np.isfinite(tree.reward) & (tree.finish != FinishReason.PRUNED)
    scored = tree.sum_over_leaves(np.where(is_scored, tree.copies, 0).astype(np.float64))
    correct = tree.sum_over_leaves(
        np.where(is_scored & (tree.verdict == Verdict.CORRECT), tree.copies, 0).astype(np.float64)
    )
    drop, probability = np.full(tree.n_nodes, np.nan), np.full(tree.n_nodes, np.nan)
    parent = np.maximum(tree.parent, ROOT)
    n, s = scored, correct
    m, t = scored[parent] - scored, correct[parent] - correct
    compared = (n > 0) & (m > 0) & (tree.finish != FinishReason.GIVEN)
    compared[ROOT] = False
    at = np.flatnonzero(compared)
    above = parent[at]
    drop[at] = correct[at] / scored[at] - correct[above] / scored[above]
    if falling_alone:
        at = at[(drop[at] < 0) & (n[at] > 1)]
        if not len(at):
            return Edges(drop, probability), scored
    probability[at] = probability_less(1 + s[at], 1 + n[at] - s[at], 1 + t[at], 1 + m[at] - t[at])
    return Edges(drop, probability), scored


def probability_less(a: Floats, b: Floats, c: Floats, d: Floats) -> Floats:
    """[N] P(X < Y) for X ~ Beta(a, b), Y ~ Beta(c, d), whole numbers of at least 1 [N].

        P(X < Y) = sum_{i < c} B(a + i, b + d) / ((d + i) B(1 + i, d) B(a, b))

    By symmetry any of the four may be the one summed over; the smallest is. Over a tree of L answers that is
    O(L log L) terms, as of two sides the smaller is walked. Exact to 1e-9; where even the smallest is above
    4096 both are taken as normal, which is within 3e-3 (within 1e-4 where the two are of like size).
    """
    given = np.stack([a, b, c, d])
    smallest = given.argmin(axis=0)
    # Which (a, b, c, d) has the smallest in the place of c, and whether the sum is then P(X < Y) or the rest.
    #   c: as it is    a: 1 - P(Y < X)    b: P(1 - Y < 1 - X)    d: 1 - P(1 - X < 1 - Y)
    order = np.array([[2, 3, 0, 1], [3, 2, 1, 0], [0, 1, 2, 3], [1, 0, 3, 2]])[smallest]  # [N, 4]
    a, b, c, d = (given[order[:, place], np.arange(len(a))] for place in range(4))
    found = np.empty(len(a))
    is_exact = c <= _MOST_TERMS
    found[is_exact] = _sum(a[is_exact], b[is_exact], c[is_exact], d[is_exact])
    is_large = ~is_exact
    found[is_large] = _normal(a[is_large], b[is_large], c[is_large], d[is_large])
    return np.clip(np.where((smallest == 0) | (smallest == 3), 1 - found, found), 0.0, 1.0)


def _sum(a: Floats, b: Floats, c: Floats, d: Floats) -> Floats:
    """[N] the sum over i < c, all terms of all sums in one array."""
    if not len(c):
        return np.zeros(0)
    counts = c.astype(np.int64)
    first = np.concatenate(([0], np.cumsum(counts)[:-1]))
    i = np.arange(int(counts.sum()), dtype=np.float64) - np.repeat(first, counts)
    constant = _log_gamma(a + b) - _log_gamma(a) - _log_gamma(b) - _log_gamma(d) + _log_gamma(b + d)
    # The gammas of B(a + i, b + d) / ((d + i) B(1 + i, d)) that depend on i.
    ai, di = np.repeat(a, counts) + i, np.repeat(d, counts) + i
    log_terms = (
        np.repeat(constant, counts)
        + _log_gamma(ai)
        - _log_gamma(ai + np.repeat(b + d, counts))
        + _log_gamma(di)
        - _log_gamma(1 + i)
    )
    return np.add.reduceat(np.exp(log_terms), first)


def _normal(a: Floats, b: Floats, c: Floats, d: Floats) -> Floats:
    """[N] P(X < Y) with both as normal."""
    mean = c / (c + d) - a / (a + b)
    variance = a * b / ((a + b) ** 2 * (a + b + 1)) + c * d / ((c + d) ** 2 * (c + d + 1))
    z = mean / np.sqrt(variance)
    return np.array([0.5 * math.erfc(-one / math.sqrt(2)) for one in z.tolist()])


_TABLE = np.array([math.lgamma(max(n, 1)) for n in range(_STIRLING_FROM)])


def _log_gamma(x: Floats) -> Floats:
    """log Gamma of whole numbers of at least 1: a table, then Stirling's series."""
    large = np.maximum(x, _STIRLING_FROM)
    inverse = 1 / large
    square = inverse * inverse
    series = inverse * (
        1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188)))
    )
    stirling = (large - 0.5) * np.log(large) - large + 0.5 * math.log(2 * math.pi) + series
    small = _TABLE[np.minimum(x, _STIRLING_FROM - 1).astype(np.int64)]
    found: Floats = np.where(x < _STIRLING_FROM, small, stirling)
    return found
