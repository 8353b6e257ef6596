"""Nodes of one tree beside each other: the children of a node, and any two nodes."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.cliffs import probability_less
from trainer.intervals import difference_interval, wilson_interval
from trainer.tree import ROOT, FinishReason, RolloutTree, Verdict
from webapp.trees.nodes import are_independent, credit_words, number_of, piece, visible
from webapp.trees.opened import OpenTree
from webapp.trees.word_diff import Piece, is_cut, word_diff

MOST_COLUMNS = 24
SAME_SHARE = 0.95  # siblings that share so many of their tokens stand in one column
MOST_COMPARED = (
    20_000  # pairs of siblings whose tokens are compared; beyond them only equal ones share a column
)
MOST_NAMED = 40  # siblings named in one column
MOST_ANSWERS = 40
SORTS = ("value", "order")


# ------------------------------------------------------------------------------------------------ siblings


def siblings_json(opened: OpenTree, node: int, sort: str) -> dict[str, Any]:
    """The siblings of a node, itself included, in columns; for the root, its children. `sort`: of `SORTS`."""
    tree = opened.tree
    parent = ROOT if node == ROOT else int(tree.parent[node])
    everyone = list(opened.children(parent))
    stacks = _stacked(tree, everyone)
    if sort == "value":
        stacks.sort(key=lambda stack: -np.nan_to_num(tree.value[stack[0]], nan=-np.inf))
    shown = stacks[:MOST_COLUMNS]
    firsts = [stack[0] for stack in shown]
    start = _common_tokens(tree, firsts)
    common = _common_text([tree.texts[first] for first in firsts])
    return {
        "parent": opened.name(parent),
        "parent_value": number_of(tree.value[parent]),
        "sort": sort,
        "n_siblings": len(everyone),
        "n_columns": len(stacks),
        "common": tree.texts[firsts[0]][:common] if firsts else "",
        "common_tokens": start,
        "alternatives": _alternatives(tree, firsts, start),
        "columns": [_column(opened, stack, node, common, start) for stack in shown],
    }


def _alternatives(tree: RolloutTree, nodes: list[int], start: int) -> list[dict[str, Any]]:
    """The most likely tokens where the nodes part: one distribution, as all that stands before is the same.
    Empty where they were not recorded.
    """
    if tree.top_tokens is None or tree.top_logprobs is None:
        return []
    places = [int(tree.token_offsets[node]) + start for node in nodes]
    place = next(
        (at for at, node in zip(places, nodes, strict=True) if at < tree.token_offsets[node + 1]), None
    )
    if place is None:
        return []
    return [
        {"text": visible(piece(tree.token_bytes, token) or f"#{token}"), "probability": math.exp(logprob)}
        for token, logprob in zip(
            tree.top_tokens[place].tolist(), tree.top_logprobs[place].astype(float).tolist(), strict=True
        )
        if token >= 0
    ]


def _column(opened: OpenTree, stack: list[int], node: int, common: int, start: int) -> dict[str, Any]:
    tree, first = opened.tree, stack[0]
    leaves = opened.leaves_below(first)
    word, rest = _first_word(tree.texts[first][common:])
    place = int(tree.token_offsets[first]) + start
    # What is stored for given text is no measurement.
    has_token = place < int(tree.token_offsets[first + 1]) and tree.finish[first] != FinishReason.GIVEN
    share = share_correct(opened, first)
    return {
        "node": opened.name(first),
        "selected": node in stack,
        # The same text may have come to something else: what followed it is its own.
        "others": [
            {
                "node": opened.name(other),
                "value": number_of(tree.value[other]),
                "advantage": number_of(tree.advantage[other]),
                **credit_words(tree, other),
            }
            for other in stack[1 : 1 + MOST_NAMED]
        ],
        "n_others": len(stack) - 1,
        "value": number_of(tree.value[first]),
        "advantage": number_of(tree.advantage[first]),
        **credit_words(tree, first),
        "wilson": wilson_interval(*share) if share else None,
        "tokens": int(tree.token_offsets[first + 1] - tree.token_offsets[first]),
        "n_leaves": len(leaves),
        "verdicts": verdict_mix(tree, leaves),
        "first_word": word,
        "rest": rest,
        "probability": number_of(math.exp(min(float(tree.logprobs[place]), 0.0))) if has_token else None,
        "entropy": number_of(tree.entropies[place]) if has_token else None,
    }


def _stacked(tree: RolloutTree, nodes: list[int]) -> list[list[int]]:
    """Nodes whose tokens are the same but for a twentieth, the first of each stack in sampling order.

    A node may have very many children, so pairs are compared up to a limit.
    """
    stacks: list[tuple[list[int], NDArray[np.int32]]] = []
    known: dict[bytes, list[int]] = {}
    left = MOST_COMPARED
    for node in nodes:
        tokens = tree.tokens[tree.token_offsets[node] : tree.token_offsets[node + 1]]
        key = tokens.tobytes()
        stack = known.get(key)
        if stack is None:
            tried = stacks[:left]
            place = next((at for at, (_, like) in enumerate(tried) if _is_same(tokens, like)), None)
            left -= len(tried) if place is None else place + 1
            stack = [] if place is None else tried[place][0]
            if place is None:
                stacks.append((stack, tokens))
            known[key] = stack
        stack.append(node)
    return [stack for stack, _ in stacks]


def _is_same(a: NDArray[np.int32], b: NDArray[np.int32]) -> bool:
    """Whether what they share at both ends is nearly all of the longer one."""
    longer, shorter = max(len(a), len(b)), min(len(a), len(b))
    if shorter < SAME_SHARE * longer:
        return False
    if longer == 0:
        return True
    head = _equal_run(a[:shorter], b[:shorter])
    tail = _equal_run(a[::-1][: shorter - head], b[::-1][: shorter - head])
    return head + tail >= SAME_SHARE * longer


def _equal_run(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    differ = np.flatnonzero(a != b)
    return int(differ[0]) if len(differ) else len(a)


def _common_tokens(tree: RolloutTree, nodes: list[int]) -> int:
    """How many tokens all of them begin with."""
    if not nodes:
        return 0
    parts = [tree.tokens[tree.token_offsets[node] : tree.token_offsets[node + 1]] for node in nodes]
    shortest = min(map(len, parts))
    return min(_equal_run(parts[0][:shortest], part[:shortest]) for part in parts)


def _common_text(texts: list[str]) -> int:
    """Letters that all texts begin with, back to the beginning of a word; 0 for a single text."""
    if len(texts) < 2:
        return 0
    first, last = min(texts), max(texts)
    length = next((i for i, (x, y) in enumerate(zip(first, last, strict=False)) if x != y), len(first))
    while 0 < length < len(last) and last[length - 1].isalnum() and _goes_on(texts, length):
        length -= 1
    return length


def _goes_on(texts: list[str], length: int) -> bool:
    """Whether cutting here would cut a word in two, in any of the texts."""
    return any(length < len(text) and text[length].isalnum() for text in texts)


def _first_word(text: str) -> tuple[str, str]:
    found = re.match(r"\s*(?:\w+|[^\w\s])", text)
    return (found[0], text[found.end() :]) if found else ("", text)


def verdict_mix(tree: RolloutTree, leaves: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Answers by verdict, those that occur, with their place along a bar."""
    counts = np.bincount(tree.verdict[leaves], weights=tree.copies[leaves], minlength=len(Verdict))
    counts[Verdict.NONE] = 0
    shares = 100 * counts / max(counts.sum(), 1)
    starts = np.cumsum(shares) - shares
    return [
        {
            "verdict": verdict.word,
            "n": int(counts[verdict]),
            "x": f"{starts[verdict]:.2f}%",
            "width": f"{shares[verdict]:.2f}%",
        }
        for verdict in Verdict
        if counts[verdict]
    ]


def share_correct(opened: OpenTree, node: int) -> tuple[int, int] | None:
    """Correct and scored answers of a node, where an interval from them is honest; else None."""
    tree, leaves = opened.tree, opened.leaves_below(node)
    correct, scored = counts_of(tree, leaves)
    return (correct, scored) if scored and are_independent(tree, node, leaves) else None


def counts_of(tree: RolloutTree, leaves: NDArray[np.int64]) -> tuple[int, int]:
    """Correct answers among these leaves, and those that were scored; merged ones as often as sampled."""
    scored = leaves[np.isfinite(tree.reward[leaves]) & (tree.finish[leaves] != FinishReason.PRUNED)]
    correct = scored[tree.verdict[scored] == Verdict.CORRECT]
    return int(tree.copies[correct].sum()), int(tree.copies[scored].sum())


# ------------------------------------------------------------------------------------------------ two nodes


def diff_json(opened: OpenTree, a: int, b: int) -> dict[str, Any]:
    """Two nodes: what their paths share, where they part, how the words differ, what became of them."""
    tree = opened.tree
    paths = tree.path(a), tree.path(b)
    shared = 0
    while shared < min(map(len, paths)) and paths[0][shared] == paths[1][shared]:
        shared += 1
    rest = [path[shared:] for path in paths]
    texts = ["".join(tree.texts[node] for node in nodes) for nodes in rest]
    pieces = word_diff(*texts)
    above = paths[0][shared - 1]
    return {
        "above": opened.name(above),
        "shared": [{"node": opened.name(node), "text": tree.texts[node]} for node in paths[0][:shared]],
        "shared_letters": sum(len(tree.texts[node]) for node in paths[0][:shared]),
        "is_cut": any(map(is_cut, texts)),
        "sides": [
            _side(opened, node, nodes, side) for node, nodes, side in zip((a, b), rest, pieces, strict=True)
        ],
        "gap": _gap(opened, a, b),
        "answers": _answers(opened, a, b),
    }


def _side(opened: OpenTree, node: int, nodes: list[int], pieces: list[Piece]) -> dict[str, Any]:
    tree = opened.tree
    leaves = opened.leaves_below(node)
    correct, scored = counts_of(tree, leaves)
    share = share_correct(opened, node)
    return {
        "node": opened.name(node),
        "value": number_of(tree.value[node]),
        "advantage": number_of(tree.advantage[node]),
        **credit_words(tree, node),
        "n_correct": correct,
        "n_scored": scored,
        "wilson": wilson_interval(*share) if share else None,
        "verdicts": verdict_mix(tree, leaves),
        "segments": _by_segment(opened, nodes, pieces),
    }


def _by_segment(opened: OpenTree, nodes: list[int], pieces: list[Piece]) -> list[dict[str, Any]]:
    """The pieces of a path, cut where its segments end."""
    waiting = list(reversed(pieces))
    segments = []
    for node in nodes:
        left, mine = len(opened.tree.texts[node]), []
        while left and waiting:
            piece = waiting.pop()
            mine.append(Piece(piece.text[:left], piece.is_common))
            if len(piece.text) > left:
                waiting.append(Piece(piece.text[left:], piece.is_common))
            left -= len(mine[-1].text)
        value = number_of(opened.tree.value[node])
        segments.append({"node": opened.name(node), "value": value, "pieces": mine})
        if left:  # comparing stopped here
            break
    return segments


def _gap(opened: OpenTree, a: int, b: int) -> dict[str, Any]:
    """Value and share of correct answers of `a` less those of `b`. The interval, and the probability that `a`
    is the better one, only where the two have no answers in common.
    """
    tree = opened.tree
    sides = [opened.leaves_below(node) for node in (a, b)]
    (c, n), (d, m) = (counts_of(tree, leaves) for leaves in sides)
    is_apart = not np.intersect1d(sides[0], sides[1]).size
    both = [share_correct(opened, node) for node in (a, b)]
    is_better = None
    if is_apart and n and m:
        betas = ([1.0 + d], [1.0 + m - d], [1.0 + c], [1.0 + n - c])
        is_better = float(probability_less(*(np.array(one) for one in betas))[0])
    return {
        "value": number_of(float(tree.value[a]) - float(tree.value[b])),
        "share": c / n - d / m if n and m else None,
        "interval": difference_interval(*both[0], *both[1]) if is_apart and both[0] and both[1] else None,
        "probability": is_better,
        "is_apart": is_apart,
    }


def _answers(opened: OpenTree, a: int, b: int) -> dict[str, Any]:
    """Answers below either node, paired: what each came to and how often. The most frequent first."""
    tree = opened.tree
    counts: list[Counter[tuple[str, int]]] = []
    for node in (a, b):
        found: Counter[tuple[str, int]] = Counter()
        for leaf in opened.leaves_below(node).tolist():
            found[tree.answers[leaf], int(tree.verdict[leaf])] += int(tree.copies[leaf])
        counts.append(found)
    either = sorted(counts[0] | counts[1], key=lambda key: (-(counts[0][key] + counts[1][key]), key))
    return {
        "rows": [
            {
                "answer": answer,
                "verdict": Verdict(verdict).word,
                "a": counts[0][answer, verdict],
                "b": counts[1][answer, verdict],
            }
            for answer, verdict in either[:MOST_ANSWERS]
        ],
        "n": len(either),
    }
