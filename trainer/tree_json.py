"""Trees as JSON, for `arborist credit`: parents, leaf rewards, token counts, in any numbering of nodes.

    {"trees": [{"parents": [-1, 0, 0, …], "leaf_rewards": {"3": 1, …}, "token_counts": {"1": 12, …}}]}

A flat group is a star. Optional: "copies" (how many answers ended in a leaf), "visits" (of a search), "given"
(nodes that were not sampled), "subgroup" (which tree of a forest, or which token budget; left out, the trees
of a forest are the branches of the root, and a star is one tree), "correct" (whether a leaf is right; left
out, those with a reward above 0 are). Torch-free.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from trainer.tree import FinishReason, RolloutTree, Verdict, sampled_tree

MOST_TREES: Final = 10_000
MOST_NODES: Final = 1_000_000
MOST_TOKENS: Final = 10_000_000
MOST_REWARD: Final = 1e6
MOST_COUNT: Final = 2**31 - 1
KEYS: Final = ("parents", "leaf_rewards", "token_counts", "subgroup", "copies", "visits", "given", "correct")


class TreeJsonError(ValueError):
    """A tree that cannot be used; the message names tree and node."""


@dataclass(frozen=True, slots=True, eq=False)
class NumberedTree:
    """`tree` is breadth-first; the file calls node i of it `names[i]`. has_verdicts: the file said which
    leaves are right, else that is a guess by their rewards.
    """

    tree: RolloutTree
    names: list[str]
    has_verdicts: bool = False


def read_trees(document: Any) -> list[NumberedTree]:
    """The trees of a document. `Any`: whatever JSON held. Raises TreeJsonError."""
    if not isinstance(document, dict) or not isinstance(document.get("trees"), list):
        raise TreeJsonError('Expected an object with a list "trees".')
    trees = document["trees"]
    if len(trees) > MOST_TREES:
        raise TreeJsonError(f"{len(trees):,} trees; at most {MOST_TREES:,} are read at once.")
    return [_read(number, given) for number, given in enumerate(trees)]


def _read(number: int, given: Any) -> NumberedTree:
    where = f"Tree {number}"
    if not isinstance(given, dict):
        raise TreeJsonError(f"{where} is no object.")
    if unknown := sorted(set(given) - set(KEYS)):
        raise TreeJsonError(f"{where} has an unknown key {unknown[0]!r}. Known are {', '.join(KEYS)}.")
    parents = given.get("parents")
    if not isinstance(parents, list) or not parents:
        raise TreeJsonError(f'{where} needs "parents", a list with -1 for the root.')
    if len(parents) > MOST_NODES:
        raise TreeJsonError(f"{where} has {len(parents):,} nodes; at most {MOST_NODES:,}.")
    order = breadth_first(where, parents)
    place = {name: index for index, name in enumerate(order)}
    children = np.bincount([p for p in parents if p >= 0], minlength=len(parents))
    rewards = _numbers(where, given, "leaf_rewards", len(parents), math.nan, MOST_REWARD, allows_null=True)
    named = {int(key) for key in given.get("leaf_rewards", {})}
    for node in sorted(named):
        if children[node]:
            raise TreeJsonError(f"{where}, node {node}: it has children, so it has no reward of its own.")
        if parents[node] < 0:
            raise TreeJsonError(f"{where}, node {node}: the root is the prompt, which has no reward.")
    for node in range(len(parents)):
        if not children[node] and parents[node] >= 0 and node not in named:
            raise TreeJsonError(
                f"{where}, node {node}: a leaf without a reward. Give it one in leaf_rewards, or null if its "
                "verifier failed."
            )
    counts = _whole(where, given, "token_counts", len(parents), 1, least=0)
    if sum(counts) > MOST_TOKENS:
        raise TreeJsonError(f"{where} has {sum(counts):,} tokens; at most {MOST_TOKENS:,}.")
    copies = _whole(where, given, "copies", len(parents), 1, least=1)
    for node in sorted(map(int, given.get("copies", {}))):
        if children[node]:
            raise TreeJsonError(
                f"{where}, node {node}: it has children, so its answers are those of the leaves below. Give "
                "copies of leaves alone."
            )
    subgroup = _whole(where, given, "subgroup", len(parents), 0, least=0)
    if "subgroup" not in given:
        _number_branches(parents, order, subgroup)
    visits = _whole(where, given, "visits", len(parents), 0, least=0)
    are_given = given.get("given", [])
    if not isinstance(are_given, list):
        raise TreeJsonError(f'{where}: "given" must be a list of nodes.')
    given_nodes = {_node(where, "given", node, len(parents)) for node in are_given}
    finish = [
        FinishReason.NONE
        if parents[node] < 0
        else FinishReason.GIVEN
        if node in given_nodes
        else FinishReason.SPLIT
        if children[node]
        else FinishReason.EOS
        for node in order
    ]
    lengths = [counts[node] for node in order]
    tree = sampled_tree(
        problem_id=f"tree {number}",
        reference_answer="",
        step=0,
        policy_version=0,
        parent=[-1 if parents[node] < 0 else place[parents[node]] for node in order],
        segment_tokens=[np.zeros(n, np.int32) for n in lengths],
        segment_logprobs=[np.full(n, -1.0, np.float32) for n in lengths],
        segment_entropies=[np.zeros(n, np.float32) for n in lengths],
        finish=finish,
        texts=[""] * len(order),
        copies=[0 if children[node] or parents[node] < 0 else copies[node] for node in order],
        subgroup=[subgroup[node] for node in order],
        visits=[visits[node] for node in order],
    )
    reward = np.array([rewards[node] for node in order])
    said = _correct(where, given, len(parents))
    is_right = np.array([said.get(node, rewards[node] > 0) for node in order])
    verdict = np.where(is_right, Verdict.CORRECT, Verdict.INCORRECT).astype(np.uint8)
    verdict[np.isnan(reward)] = Verdict.ERROR
    verdict[~tree.is_leaf()] = Verdict.NONE
    has_verdicts = all(node in said for node in named if not math.isnan(rewards[node]))
    return NumberedTree(
        tree.with_verdicts(verdict, reward, [""] * len(order)), [*map(str, order)], has_verdicts
    )


def _correct(where: str, given: Mapping[str, Any], n: int) -> dict[int, bool]:
    """{node: whether its answer is right}."""
    mapping = given.get("correct", {})
    if not isinstance(mapping, dict):
        raise TreeJsonError(f'{where}: "correct" must be an object from node to true or false.')
    said = {}
    for name, value in mapping.items():
        node = _node(where, "correct", name, n)
        if not isinstance(value, bool):
            raise TreeJsonError(f"{where}, node {node}: correct is {reprlib.repr(value)}, not true or false.")
        said[node] = value
    return said


def _number_branches(parents: list[int], order: list[int], subgroup: list[int]) -> None:
    """Every branch of the root is a tree of its own, numbered from 0; a star is one tree."""
    root = order[0]
    branches = {node: number for number, node in enumerate(n for n in order if parents[n] == root)}
    if len(order) == len(branches) + 1:
        return
    for node in order[1:]:
        subgroup[node] = branches[node] if node in branches else subgroup[parents[node]]


def breadth_first(where: str, parents: list[Any]) -> list[int]:
    """Nodes from the root on, siblings in the file's order. Refuses what is no tree, naming the node after
    `where`. `Any`: whatever JSON held. Raises TreeJsonError.
    """
    n = len(parents)
    for node, parent in enumerate(parents):
        if not isinstance(parent, int) or isinstance(parent, bool) or not -1 <= parent < n:
            raise TreeJsonError(
                f"{where}, node {node}: parent {reprlib.repr(parent)} is no node; expected -1 to {n - 1}."
            )
    roots = [node for node, parent in enumerate(parents) if parent == -1]
    if len(roots) != 1:
        found = "no root" if not roots else f"two roots, nodes {roots[0]} and {roots[1]}"
        raise TreeJsonError(f"{where} has {found}; exactly one node has the parent -1.")
    children: list[list[int]] = [[] for _ in range(n)]
    for node, parent in enumerate(parents):
        if parent >= 0:
            children[parent].append(node)
    order = [roots[0]]
    for node in order:
        order.extend(children[node])
    if len(order) < n:
        lost = min(set(range(n)) - set(order))
        raise TreeJsonError(f"{where}, node {lost}: it is part of a cycle and never reaches the root.")
    return order


def _numbers(
    where: str,
    given: Mapping[str, Any],
    key: str,
    n: int,
    default: float,
    most: float,
    *,
    allows_null: bool = False,
) -> list[float]:
    """[n] the numbers of a mapping from node to number, each of a size of at most `most`."""
    mapping = given.get(key, {})
    if not isinstance(mapping, dict):
        raise TreeJsonError(f'{where}: "{key}" must be an object from node to number.')
    values = [default] * n
    for name, value in mapping.items():
        node = _node(where, key, name, n)
        if value is None and allows_null:
            continue
        # Not `isfinite`: it turns an int into a float, which may be too large for one.
        if isinstance(value, bool) or not isinstance(value, int | float) or not -most <= value <= most:
            raise TreeJsonError(
                f"{where}, node {node}: {key} is {reprlib.repr(value)}; expected a number from "
                f"{-most:,.0f} to {most:,.0f}."
            )
        values[node] = float(value)
    return values


def _whole(where: str, given: Mapping[str, Any], key: str, n: int, default: int, *, least: int) -> list[int]:
    values = _numbers(where, given, key, n, default, MOST_COUNT)
    for node, value in enumerate(values):
        if value != int(value) or value < least:
            raise TreeJsonError(
                f"{where}, node {node}: {key} is {value:g}; expected a whole number from {least}."
            )
    return [int(value) for value in values]


def _node(where: str, key: str, name: Any, n: int) -> int:
    text = str(name)
    # Just as JSON would write the number, so that no node has two names.
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and str(int(text)) == text):
        raise TreeJsonError(f"{where}: {key} names node {text[:20]!r}, which is no whole number from 0.")
    if int(text) >= n:
        raise TreeJsonError(f"{where}: {key} names node {text!r}; there are nodes 0 to {n - 1}.")
    return int(text)
