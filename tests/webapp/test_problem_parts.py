"""What became of a problem, and all trees of a step: the pure parts, against numbers worked by hand."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest

from tests.webapp.material import worked_tree
from tests.webapp.test_trees import grown
from trainer.edit_distance import edit_distance
from trainer.summary import duplicate_share, zero_variance_share
from trainer.tree import FinishReason, RolloutTree, Verdict, sampled_tree
from webapp.problems.aggregate import MAX_MERGED_ROWS, N_BINS, NO_VALUE, Bins, by_depth, merge, nodes_in
from webapp.problems.history import (
    Answer,
    Opening,
    answers_of,
    bands,
    clusters,
    opening,
    openings_of,
    reads_alike,
    spread,
    turning_points,
)
from webapp.problems.views import nearest_node, points, top_rows

# ------------------------------------------------------------------------------------------------ answers


def test_answers_are_counted_by_what_the_verifier_read() -> None:
    """Leaves 71 ✓, 72 ✕, 1 ✕, and one cut off."""
    assert answers_of(worked_tree()) == Counter(
        {
            Answer("71", "correct"): 1,
            Answer("72", "incorrect"): 1,
            Answer("1", "incorrect"): 1,
            Answer("", "truncated"): 1,
        }
    )


def test_a_merged_leaf_counts_as_often_as_it_was_sampled_and_a_given_up_one_never() -> None:
    tree = sampled_tree(
        problem_id="p", reference_answer="7", step=1, policy_version=0, parent=[-1, 0, 0],
        segment_tokens=[[1], [2], [3]], segment_logprobs=[[0.0], [-1.0], [-1.0]],
        segment_entropies=[[0.0], [1.0], [1.0]],
        finish=[0, FinishReason.EOS, FinishReason.PRUNED], texts=["q", "#### 7", "hm"], copies=[0, 5, 1],
    )  # fmt: skip
    verdicts = np.array([0, Verdict.CORRECT, 0], np.uint8)
    tree = tree.with_verdicts(verdicts, np.array([np.nan, 1, np.nan]), ["", "7", ""])
    assert answers_of(tree) == Counter({Answer("7", "correct"): 5})


def test_bands_hold_every_answer_once() -> None:
    a, b, c = Answer("1", "correct"), Answer("2", "incorrect"), Answer("3", "incorrect")
    found = bands([Counter({a: 1, b: 3}), Counter({b: 2, c: 1}), Counter({a: 4})], most=2)
    # b and a are the most frequent (5 each); the correct one stands first, c is left for the others.
    assert [(band.answer, band.counts) for band in found] == [
        (a, (1, 0, 4)),
        (b, (3, 2, 0)),
        (None, (0, 1, 0)),
    ]
    assert bands([Counter({a: 1})]) == bands([Counter({a: 1})], most=1)  # no empty band of others


# ------------------------------------------------------------------------------------------------ openings


def test_openings_are_the_first_words_of_the_first_line_that_has_any() -> None:
    assert opening("\n  \n one two  three four five six seven eight nine\nten") == (
        "one two three four five six seven eight"
    )
    assert opening("x" * 100) == "x" * 80
    assert opening("") == ""
    found = openings_of(worked_tree(text="45+26=71 books.\n"))
    assert [(one.text, one.value, one.count) for one in found] == [
        ("45+26=71 books.", 0.5, 1),
        ("no", 0.0, 1),
    ]


def test_what_was_given_is_no_opening_but_what_follows_it_is() -> None:
    tree = sampled_tree(
        problem_id="p", reference_answer="7", step=1, policy_version=0, parent=[-1, 0, 1, 2],
        segment_tokens=[[1]] * 4, segment_logprobs=[[0.0]] * 4, segment_entropies=[[0.0]] * 4,
        finish=[0, FinishReason.GIVEN, FinishReason.SPLIT, FinishReason.EOS],
        texts=["q", "Budget: 50.", "Well then", "#### 7"],
    )  # fmt: skip
    assert [one.text for one in openings_of(tree)] == ["Well then"]


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("First, we factor 360 as", "First we factor 360 as", True),  # a comma is no difference
        ("we first factor 360 as follows so and", "we then factor 360 as follows so and", True),  # 1 of 8
        ("a b c d", "a b x y", False),  # 2 of 4
        ("29-9=20 pens.", "29-9=21 pens.", False),  # another number
        ("so we first add 360 and then go on", "so we first add 361 and then go on", False),  # also here
        ("29-9=20 pens.", "29-9=20 pens", True),
        ("29-9=20 pens.", "29-9=20 coins.", False),  # 1 of 2 words
        ("", "", True),
        ("", "x", False),
    ],
)
def test_openings_read_alike(one: str, other: str, alike: bool) -> None:
    assert reads_alike(one, other) is alike
    assert reads_alike(other, one) is alike


def test_edit_distance_by_hand() -> None:
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == 3
    assert edit_distance("abc", "abc") == 0


def test_clusters_keep_every_opening_and_their_mean_value() -> None:
    often, rare, other = "so we add 3 and 4 up", "so we add 3 and 4 then", "no"
    frames = [
        [Opening(often, 1.0, 2), Opening(rare, 0.0, 1)],
        [Opening(often, 0.5, 1), Opening(other, math.nan, 1)],
    ]
    found, n = clusters(frames)
    assert n == 2
    assert [(one.text, one.others, one.counts) for one in found] == [
        (often, ((rare, 1),), (3, 1)),
        (other, (), (0, 1)),
    ]
    assert found[0].value_mean == pytest.approx((2 * 1.0 + 0.0 + 0.5) / 4)
    assert math.isnan(found[1].value_mean)
    assert clusters(frames, most=1) == (found[:1], 2)  # the others are counted, not shown
    assert clusters([]) == ([], 0)


# ----------------------------------------------------------------------------------------- turning points


def test_turning_points_by_hand() -> None:
    shares = [(0, 4), (1, 4), (3, 4), (4, 4), (1, 4), (4, 4)]
    assert [(turn.place, turn.words) for turn in turning_points(shares)] == [
        (1, "first solved"),
        (3, "first solved every time"),
        (4, "fell most, from 4 of 4 to 1 of 4"),
    ]
    assert turning_points([(0, 4), (0, 0)]) == []
    assert [turn.words for turn in turning_points([(5, 8), (4, 8)])] == ["first solved"]  # fell by an eighth


def test_frames_are_thinned_evenly_and_keep_what_matters() -> None:
    assert spread(5, 9) == [0, 1, 2, 3, 4]
    chosen = spread(1000, 11, keep=[333])
    assert len(chosen) == 11
    assert {0, 333, 999} <= set(chosen)
    assert max(np.diff(chosen)) <= 250
    assert spread(100, 2, keep=[5, 6, 7]) == [0, 99]


def test_curves_have_one_point_per_step() -> None:
    rows = [
        {"step": 1, "value": 0.5, "n_correct": 1, "answers": 4},
        {"step": 1, "value": 1.0, "n_correct": 4, "answers": 4},
        {"step": 2, "value": None, "n_correct": 0, "answers": 0},
    ]
    assert points(rows) == [
        {"step": 1, "value": 0.75, "solved": 5 / 8},
        {"step": 2, "value": None, "solved": None},
    ]


# ------------------------------------------------------------------------------------------------ all trees


def test_bins_have_their_lower_edge_and_the_last_one_both() -> None:
    bins = Bins()
    values = np.array([0.0, 0.1, 0.3, 0.7, 0.999, 1.0, np.nan])
    assert bins.of(values).tolist() == [0, 1, 3, 7, 9, 9, NO_VALUE]
    assert Bins.over(-0.25, 0.5) == Bins(-1.0, 1.0)
    assert Bins.over(math.nan, math.nan) == Bins(0.0, 1.0)
    assert Bins.over(-1, 1).of(np.array([-1.0, 0.0, 1.0])).tolist() == [0, 5, 9]
    low, high = bins.edges(3)
    assert (low, high) == pytest.approx((0.3, 0.4))


def test_depth_rows_of_the_worked_tree() -> None:
    """0: V 1/4 · 1, 2: V 1/2, 0 · leaves 1, 0 | 0, 0. The group of leaves below node 2 is flat."""
    root, middle, leaves = by_depth([worked_tree()], Bins())
    assert root.bins.tolist() == [0, 0, 1, *[0] * 8]
    assert (root.n_nodes, root.value_mean, root.n_groups) == (1, 0.25, 0)
    assert middle.bins.tolist() == [1, 0, 0, 0, 0, 1, *[0] * 5]
    assert (middle.n_groups, middle.n_flat, middle.n_credited) == (1, 0, 2)
    assert leaves.bins.tolist() == [3, *[0] * 8, 1, 0]
    assert (leaves.n_groups, leaves.n_flat, leaves.n_credited) == (2, 1, 2)
    assert (leaves.n_siblings, leaves.n_repeats) == (4, 0)


def test_a_merged_answer_counts_as_often_as_it_was_sampled() -> None:
    """Leaves of values 1, 0, 0, 0, the first sampled five times: (5 + 0 + 0 + 0) / 8."""
    tree = worked_tree()
    copies = tree.copies.copy()
    copies[3] = 5
    _, middle, leaves = by_depth([dataclasses.replace(tree, copies=copies)], Bins())
    assert leaves.value_mean == 5 / 8
    assert middle.value_mean == 0.25


def test_flat_groups_by_depth_sum_up_to_the_trainers_own_share() -> None:
    trees = [worked_tree(), worked_tree(2), grown([-1, 0, 0, 0, 1, 1, 2, 2, 3, 3])]
    rows = by_depth(trees, Bins())
    share = sum(row.n_flat for row in rows) / sum(row.n_groups for row in rows)
    assert share == pytest.approx(zero_variance_share(trees))


def test_siblings_with_the_same_tokens_are_duplicates() -> None:
    tree = _star(tokens=[[5, 6], [5, 6], [5], [5, 6]])
    row = by_depth([tree], Bins())[1]
    assert (row.n_siblings, row.n_repeats, row.repeat_share) == (4, 2, 0.5)
    # Merged: one leaf stands for three equal answers.
    merged = by_depth([_star(tokens=[[5, 6], [5]], copies=[0, 3, 1])], Bins())[1]
    assert (merged.n_siblings, merged.n_repeats) == (4, 2)
    assert duplicate_share(tree) == row.repeat_share  # the trainer counts them in the same way


def _star(tokens: list[list[int]], copies: list[int] | None = None) -> RolloutTree:
    n = len(tokens) + 1
    floats = [[0.0], *([0.0] * len(part) for part in tokens)]
    return sampled_tree(
        problem_id="p", reference_answer="1", step=1, policy_version=0, parent=[-1] + [0] * (n - 1),
        segment_tokens=[[1], *tokens], segment_logprobs=floats, segment_entropies=floats,
        finish=[0] + [1] * (n - 1), texts=["t"] * n, copies=copies,
    )  # fmt: skip


def test_trees_laid_over_each_other() -> None:
    """Two worked trees: prompts in bin 2; below them bin 5 (2 answers each) and bin 0; below bin 5 one in bin
    9 and one in bin 0, below bin 0 two in bin 0. Highest bins first.
    """
    merged = merge([worked_tree(), worked_tree(2)], Bins())
    assert merged.parent == [-1, 0, 1, 1, 2, 2, 3]
    assert merged.bin == [-1, 2, 5, 0, 9, 0, 0]
    assert merged.leaves == [8, 8, 4, 4, 2, 2, 4]
    assert merged.nodes == [2, 2, 2, 2, 2, 2, 4]
    assert merged.n_left_out == 0
    # Three rows do not fit in four nodes: the deepest is left out, and counted.
    for cut in (
        merge([worked_tree(), worked_tree(2)], Bins(), most=4),
        merge([worked_tree(), worked_tree(2)], Bins(), most_rows=2),
    ):
        assert cut.parent == [-1, 0, 1, 1]
        assert cut.n_left_out == 8


def test_laying_trees_over_each_other_agrees_with_a_slow_obvious_way() -> None:
    """Ways as tuples of bins, one node after the other."""
    rng = np.random.default_rng(4)
    trees = []
    for n in (1, 2, 30, 200):
        parents = np.sort([int(rng.integers(0, node)) for node in range(1, n)])
        trees.append(grown([-1, *np.minimum(parents, np.arange(n - 1)).tolist()]))
    ways: Counter[tuple[int, ...]] = Counter()
    leaves: Counter[tuple[int, ...]] = Counter()
    for tree in trees:
        places, counts = Bins().of(tree.value), np.maximum(tree.answer_counts(), 1)
        for node in range(tree.n_nodes):
            way = tuple(int(places[above]) for above in tree.path(node))
            ways[way] += 1
            leaves[way] += int(counts[node])
    merged = merge(trees, Bins())
    found: list[tuple[int, ...]] = [()]
    for parent, place in zip(merged.parent[1:], merged.bin[1:], strict=True):
        found.append((*found[parent], place))
    assert merged.n_left_out == 0
    assert dict(zip(found[1:], merged.nodes[1:], strict=True)) == ways
    assert dict(zip(found[1:], merged.leaves[1:], strict=True)) == leaves
    # By depth, then by parent, then the highest value first and no value last.
    order = [
        (len(way), parent, way[-1] == NO_VALUE, -way[-1])
        for way, parent in zip(found, merged.parent, strict=True)
        if way
    ]
    assert order == sorted(order)


def test_a_tree_as_deep_as_it_has_nodes_is_counted_in_no_time() -> None:
    """Ten thousand nodes one below the other: quadratic work would be a hundred million numbers."""
    tree = grown([-1, *range(9_999)])
    rows = by_depth([tree], Bins())
    assert len(rows) == 10_000
    assert all(row.n_nodes == 1 for row in rows)
    assert len(merge([tree], Bins()).parent) == MAX_MERGED_ROWS + 1


def test_a_cell_leads_to_its_nodes() -> None:
    tree = worked_tree()
    rows = by_depth([tree], Bins())
    for row in rows:
        for place in range(N_BINS + 1):
            assert len(nodes_in(tree, Bins(), row.depth, place)) == row.bins[place]
    assert [tree.name(node) for node in nodes_in(tree, Bins(), 2, 9)] == ["1.1"]


def test_a_path_that_is_not_there_leads_to_the_nearest_node_above() -> None:
    tree = worked_tree()
    assert nearest_node(tree, "1.2") == (tree.find("1.2"), True)
    assert nearest_node(tree, "1.7.3") == (tree.find("1"), False)
    assert nearest_node(tree, "nonsense") == (0, False)


def test_a_large_tree_is_drawn_by_its_first_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven nodes, three rows: the first two hold three nodes, each end as wide as the two leaves below."""
    monkeypatch.setattr("webapp.problems.views.ICICLE_MAX_NODES", 6)
    drawn = top_rows(worked_tree())
    assert drawn is not None
    assert (drawn["parent"], drawn["copies"], drawn["rows_left_out"]) == ([-1, 0, 0], [0, 2, 2], 1)
    assert drawn["advantage"] == [None, 1.3333, -1.3333]
    monkeypatch.setattr("webapp.problems.views.ICICLE_MAX_NODES", 7)
    whole = top_rows(worked_tree())
    assert whole is not None
    assert len(whole["parent"]) == 7
    monkeypatch.setattr("webapp.problems.views.ICICLE_MAX_NODES", 2)
    assert top_rows(worked_tree()) is None
