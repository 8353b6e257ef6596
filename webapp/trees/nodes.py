"""One rollout tree for people and for the browser's canvas: columns, nodes, outline.

The numbers are the recorded ones; how a number came about is told by `trainer.explanation`, by the same
functions that trained.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from trainer.credit import CreditPlan
from trainer.explanation import explain
from trainer.intervals import wilson_interval
from trainer.tree import ROOT, CreditState, FinishReason, RolloutTree, Verdict
from webapp.errors import RequestError
from webapp.trees.models import StoredTree
from webapp.trees.words import CREDIT_WORDS, FINISH_WORDS

MAX_SIBLINGS = 200  # and members of a group, around the node
MAX_OUTLINE_ROWS = 2000
TEXT_START_LETTERS = 80
AGREES_WITHIN = 1e-6  # absolute and relative

# Nodes that are compared with nothing themselves.
NOT_COMPARED = (CreditState.NONE, CreditState.PER_PATH, CreditState.GIVEN, CreditState.NO_ADVANTAGE)


def read_tree(stored: StoredTree) -> RolloutTree:
    """The whole tree. Raises RequestError(422) with what is damaged."""
    try:
        return RolloutTree.from_payload(bytes(stored.payload))
    except ValueError as damage:
        raise RequestError(422, f"{damage} Its summary in the list of trees is still right.") from damage


# ------------------------------------------------------------------------------------------------ columns


def columns(tree: RolloutTree) -> bytes:
    """The columns that canvas and outline draw from, for typed arrays:

    uint32 header length · header JSON, padded with blanks · columns, each 4-byte aligned; all little-endian.
    Offsets count from the end of the header.
    """
    arrays: dict[str, NDArray[Any]] = {
        "parent": tree.parent.astype("<i4"),
        "n_leaves": tree.leaf_counts().astype("<i4"),
        "tokens": tree.token_counts().astype("<i4"),
        "copies": tree.copies.astype("<i4"),
        "visits": tree.visits.astype("<i4"),
        "value": tree.value.astype("<f4"),
        "advantage": tree.advantage.astype("<f4"),
        "entropy": _mean_per_node(tree, tree.entropies).astype("<f4"),
        "logprob": _mean_per_node(tree, tree.logprobs).astype("<f4"),
        "verdict": tree.verdict.astype("u1"),
        "finish": tree.finish.astype("u1"),
        "credit_state": tree.credit_state.astype("u1"),
    }
    listed, parts, offset = [], [], 0
    for name, array in arrays.items():
        raw = array.tobytes()
        raw += b"\0" * (-len(raw) % 4)
        dtype = {"<i4": "int32", "<f4": "float32", "|u1": "uint8"}[array.dtype.str]
        listed.append({"name": name, "dtype": dtype, "offset": offset, "length": tree.n_nodes})
        parts.append(raw)
        offset += len(raw)
    labels = {
        "verdict": [member.word for member in Verdict],
        "finish": [member.word for member in FinishReason],
        "credit_state": [member.word for member in CreditState],
        "credit": [CREDIT_WORDS[member] for member in CreditState],
    }
    header = json.dumps(
        {"n_nodes": tree.n_nodes, "columns": listed, "labels": labels, "names_from": "parent"},
        separators=(",", ":"),
    ).encode()
    header += b" " * (-len(header) % 4)
    return struct.pack("<I", len(header)) + header + b"".join(parts)


def _mean_per_node(tree: RolloutTree, per_token: NDArray[np.float32]) -> NDArray[np.float64]:
    """[N] mean of `per_token` [T] over each segment; NaN for a segment without tokens."""
    total = np.concatenate(([0.0], np.cumsum(per_token, dtype=np.float64)))
    counts = tree.token_counts()
    sums = total[tree.token_offsets[1:]] - total[tree.token_offsets[:-1]]
    means: NDArray[np.float64] = np.divide(sums, counts, out=np.full(tree.n_nodes, np.nan), where=counts > 0)
    return means


# ------------------------------------------------------------------------------------------------ one node


def find_node(tree: RolloutTree, name: str) -> int:
    """The node called `name`. Raises RequestError(404) naming the part that does not exist."""
    try:
        return tree.find(name)
    except KeyError as missing:
        raise RequestError(404, str(missing.args[0])[:300]) from missing


def node_json(tree: RolloutTree, node: int, plan: CreditPlan) -> dict[str, Any]:
    """Everything the inspector and the path reader show of one node. Missing numbers are None."""
    shape = _Shape(tree)
    leaves = shape.leaves_below(node)
    answers = leaves[tree.finish[leaves] != FinishReason.PRUNED]  # what a search gave up is no answer
    scored = leaves[np.isfinite(tree.reward[leaves])]
    n_scored = int(tree.copies[scored].sum())
    correct = leaves[tree.verdict[leaves] == Verdict.CORRECT]
    n_correct = int(tree.copies[correct].sum())
    audit = _audit(tree, node, plan)
    siblings = shape.siblings_near(node)
    return {
        "node": shape.name(node),
        "depth": len(tree.path(node)) - 1,
        "text": tree.texts[node],
        "tokens": int(tree.token_counts()[node]),
        "value": _number(tree.value[node]),
        "leaf_mean": _number(np.average(tree.reward[scored], weights=tree.copies[scored]))
        if n_scored
        else None,
        "n_leaves": len(leaves),
        "n_answers": int(tree.copies[answers].sum()),
        "n_given_up": len(leaves) - len(answers),
        "n_correct": n_correct,
        "n_scored": n_scored,
        "wilson": wilson_interval(n_correct, n_scored)
        if n_scored and _are_independent(tree, node, leaves)
        else None,
        "parent_value": None if node == ROOT else _number(tree.value[tree.parent[node]]),
        "advantage": _number(tree.advantage[node]),
        **_credit_words(tree, node),
        "verdict": Verdict(int(tree.verdict[node])).word,
        "finish": FinishReason(int(tree.finish[node])).word,
        "finish_words": FINISH_WORDS[FinishReason(int(tree.finish[node]))],
        "reward": _number(tree.reward[node]),
        "copies": int(tree.copies[node]),
        "visits": int(tree.visits[node]),
        "subgroup": _subgroup(tree, node, plan),
        "answer": tree.answers[node],
        "reference_answer": tree.reference_answer,
        "n_siblings": len(shape.siblings(node)),
        "is_compared": CreditState(int(tree.credit_state[node])) not in NOT_COMPARED,
        "group_is_siblings": {row["node"] for row in audit["group"]} == {shape.name(s) for s in siblings},
        "siblings": [
            {
                "node": shape.name(other),
                "value": _number(tree.value[other]),
                "advantage": _number(tree.advantage[other]),
                **_credit_words(tree, other),
                "text_start": text_start(tree.texts[other]),
                "n_leaves": int(shape.n_leaves[other]),
                "copies": int(tree.copies[other]),
                "visits": int(tree.visits[other]),
            }
            for other in siblings
        ],
        "audit": audit,
        "path": [
            {
                "node": shape.name(part),
                "text": tree.texts[part],
                "value": _number(tree.value[part]),
                "advantage": _number(tree.advantage[part]),
                **_credit_words(tree, part),
                "verdict": Verdict(int(tree.verdict[part])).word,
                "siblings": [
                    {"node": shape.name(other), "value": _number(tree.value[other])}
                    for other in shape.siblings_near(part)
                    if other != part
                ],
            }
            for part in tree.path(node)
        ],
        "leaf_path_suggestion": shape.name(_best_leaf(tree, leaves, node)),
    }


def _are_independent(tree: RolloutTree, node: int, leaves: NDArray[np.int64]) -> bool:
    """Whether the leaves below were each sampled from the node on its own: all are its children, none was
    given up. Leaves deeper down share text, so they tell less about the node than as many on their own.
    """
    return bool((tree.parent[leaves] == node).all() and (tree.finish[leaves] != FinishReason.PRUNED).all())


def _credit_words(tree: RolloutTree, node: int) -> dict[str, str]:
    state = CreditState(int(tree.credit_state[node]))
    return {"credit_state": state.word, "credit_words": CREDIT_WORDS[state]}


def _subgroup(tree: RolloutTree, node: int, plan: CreditPlan) -> str:
    """`budget 50 tokens`, or `tree 2 of 3`; "" where a problem has but one tree."""
    number, count = int(tree.subgroup[node]), int(tree.subgroup.max()) + 1
    if node == ROOT or count == 1:
        return ""
    if number < len(plan.budgets):
        return f"budget {plan.budgets[number]:,} tokens"
    return f"tree {number + 1} of {count}"


def _audit(tree: RolloutTree, node: int, plan: CreditPlan) -> dict[str, Any]:
    """How the trainer's own code explains the node, and whether it comes to what was recorded."""
    try:
        told = explain(tree, node, plan)
    except ValueError as error:  # rewards that this estimator refuses
        return {
            "formula": "", "substituted": "", "filter": "", "reason": str(error), "value_formula": "",
            "value_substituted": "", "group": [], "n_group": 0, "recomputed": None, "agrees": None,
            "value_recomputed": None, "value_agrees": None,
        }  # fmt: skip
    group = _near(told.group, [row.node for row in told.group].index(node) if told.group else 0)
    return {
        "formula": told.formula,
        "substituted": told.numbers,
        "filter": told.filter,
        "reason": told.reason,
        "value_formula": told.value_formula,
        "value_substituted": told.value_numbers,
        "group": [
            {
                "node": row.name,
                "value": _number(row.value),
                "advantage": _number(tree.advantage[row.node]),
                **_credit_words(tree, row.node),
                "weight": _number(row.weight),
                "in_group": row.in_group,
                "text_start": text_start(tree.texts[row.node]),
            }
            for row in group
        ],
        "n_group": len(told.group),
        "recomputed": _number(told.advantage),
        "agrees": _equal(told.advantage, tree.advantage[node]),
        "value_recomputed": _number(told.value),
        "value_agrees": _equal(told.value, tree.value[node]),
    }


def _equal(computed: float, recorded: float) -> bool:
    """Within 1e-6; two missing numbers are equal."""
    return bool(np.isclose(computed, recorded, rtol=AGREES_WITHIN, atol=AGREES_WITHIN, equal_nan=True))


T = TypeVar("T")


def _near(everyone: Sequence[T], at: int) -> Sequence[T]:
    """At most 200 of them, around place `at`."""
    start = max(min(at - MAX_SIBLINGS // 2, len(everyone) - MAX_SIBLINGS), 0)
    return everyone[start : start + MAX_SIBLINGS]


def _best_leaf(tree: RolloutTree, leaves: NDArray[np.int64], node: int) -> int:
    """The leaf at or below `node` with the highest value, the first of equals; `node` itself when there is
    none.
    """
    if not len(leaves):
        return node
    return int(leaves[np.argmax(np.nan_to_num(tree.value[leaves], nan=-np.inf))])


class _Shape:
    """A tree's children and names, worked out once."""

    def __init__(self, tree: RolloutTree) -> None:
        self.tree = tree
        self.counts = tree.child_counts()
        self.first = tree.first_children()
        self.n_leaves = tree.leaf_counts()
        self.leaf = tree.is_leaf()

    def siblings(self, node: int) -> range:
        """The children of the node's parent, itself included; none for the root."""
        if node == ROOT:
            return range(0)
        parent = int(self.tree.parent[node])
        start = int(self.first[parent])
        return range(start, start + int(self.counts[parent]))

    def siblings_near(self, node: int) -> Sequence[int]:
        """At most 200 of them, around the node."""
        everyone = self.siblings(node)
        return _near(everyone, node - everyone.start)

    def name(self, node: int) -> str:
        """As `RolloutTree.name`, without working the shape out again."""
        if node == ROOT:
            return "0"
        numbers = []
        while node != ROOT:
            parent = int(self.tree.parent[node])
            numbers.append(str(node - int(self.first[parent]) + 1))
            node = parent
        return ".".join(reversed(numbers))

    def leaves_below(self, node: int) -> NDArray[np.int64]:
        """Leaves at or below `node`. Breadth-first, so each level below is one range of nodes."""
        found = []
        start, stop = node, node + 1
        while start < stop:
            level = np.arange(start, stop)
            found.append(level[self.leaf[start:stop]])
            inner = level[self.counts[start:stop] > 0]
            if not len(inner):
                break
            start, stop = int(self.first[inner[0]]), int(self.first[inner[-1]] + self.counts[inner[-1]])
        return np.concatenate(found)


# ------------------------------------------------------------------------------------------------ outline


def outline(tree: RolloutTree, selected: int) -> tuple[list[dict[str, Any]], bool]:
    """The tree as rows to read, children under their parents: at most 2,000, and whether it was cut."""
    shape = _Shape(tree)
    tokens = tree.token_counts()
    rows: list[dict[str, Any]] = []
    waiting = [(ROOT, 0)]
    while waiting and len(rows) < MAX_OUTLINE_ROWS:
        node, depth = waiting.pop()
        rows.append(
            {
                "node": shape.name(node),
                "depth": depth,
                "text_start": text_start(tree.texts[node]),
                "value": _number(tree.value[node]),
                "advantage": _number(tree.advantage[node]),
                **_credit_words(tree, node),
                "verdict": Verdict(int(tree.verdict[node])).word,
                "copies": int(tree.copies[node]),
                "tokens": int(tokens[node]),
                "selected": node == selected,
            }
        )
        first, count = int(shape.first[node]), int(shape.counts[node])
        waiting.extend((child, depth + 1) for child in range(first + count - 1, first - 1, -1))
    return rows, tree.n_nodes > len(rows)


def text_start(text: str) -> str:
    """The first letters of a segment, on one line."""
    start = " ".join(text[: 2 * TEXT_START_LETTERS].split())
    return start if len(start) <= TEXT_START_LETTERS else start[: TEXT_START_LETTERS - 1] + "…"


def _number(value: Any) -> float | None:
    """A float, or None for NaN and infinity: numpy scalars in, JSON numbers out."""
    number = float(value)
    return number if math.isfinite(number) else None
