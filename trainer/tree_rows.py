"""A tree as rows for other programs: nodes, preference pairs, labels of steps, answers to train on.

Every number is a recorded one; nothing is estimated here. Rows begin with the columns of `where`, which says
whose tree it is. What cannot become a row is counted in `left_out`, by reason. Pure and torch-free.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trainer.tree import ROOT, CreditState, FinishReason, RolloutTree, Verdict

Where = Mapping[str, Any]  # the columns that say whose tree it is: run, step, index, ...
Row = dict[str, Any]

MOST_PAIRS_TRIED: Final = 1000  # of one group

# The columns that `node_rows` adds, with the kind of each: how CSV and Parquet write them.
NODE_COLUMNS: Final[Mapping[str, type]] = {
    "node": str,
    "parent": str,
    "depth": int,
    "text": str,
    "tokens": int,
    "n_leaves": int,
    "n_answers": int,
    "n_correct": int,
    "value": float,
    "advantage": float,
    "credit_state": str,
    "reward": float,
    "verdict": str,
    "answer": str,
    "finish": str,
    "mean_logprob": float,
    "mean_entropy": float,
    "max_entropy": float,
    "mean_mismatch": float,
    "copies": int,
    "visits": int,
    "subgroup": int,
}


def node_rows(tree: RolloutTree, where: Where, only: Container[str] | None = None) -> Iterator[Row]:
    """Every node, the prompt included, or those with the names `only`, in breadth-first order. None: no such
    number.
    """
    names = node_names(tree)
    depths, leaves, answers = tree.depths(), tree.leaf_counts(), tree.answer_counts()
    correct = tree.sum_over_leaves(np.where(tree.verdict == Verdict.CORRECT, tree.copies, 0).astype(float))
    offsets = tree.token_offsets.tolist()
    for node in range(tree.n_nodes):
        if only is not None and names[node] not in only:
            continue
        own = slice(offsets[node], offsets[node + 1])
        sampled = node != ROOT and tree.finish[node] != FinishReason.GIVEN and own.stop > own.start
        yield {
            **where,
            "node": names[node],
            "parent": "" if node == ROOT else names[int(tree.parent[node])],
            "depth": int(depths[node]),
            "text": tree.texts[node],
            "tokens": own.stop - own.start,
            "n_leaves": int(leaves[node]),
            "n_answers": int(answers[node]),
            "n_correct": int(correct[node]),
            "value": _number(tree.value[node]),
            "advantage": _number(tree.advantage[node]),
            "credit_state": CreditState(int(tree.credit_state[node])).word,
            "reward": _number(tree.reward[node]),
            "verdict": Verdict(int(tree.verdict[node])).word,
            "answer": tree.answers[node],
            "finish": FinishReason(int(tree.finish[node])).word,
            "mean_logprob": _number(tree.logprobs[own].mean(dtype=np.float64)) if sampled else None,
            "mean_entropy": _number(tree.entropies[own].mean(dtype=np.float64)) if sampled else None,
            "max_entropy": _number(tree.entropies[own].max()) if sampled else None,
            "mean_mismatch": _mean_known(tree.mismatch[own]) if tree.mismatch is not None else None,
            "copies": int(tree.copies[node]),
            "visits": int(tree.visits[node]),
            "subgroup": int(tree.subgroup[node]),
        }


def preference_pairs(
    tree: RolloutTree, where: Where, *, gap: float, answers: int, most: int, left_out: Counter[str]
) -> Iterator[Row]:
    """Siblings whose values differ by `gap` or more, each with at least `answers` scored answers at or below
    it: the better one is `chosen`, the other `rejected`, and `prompt` is all that both continue.

    At most `most` pairs of one group, the widest first; of equal ones, the first sampled.
    """
    names = node_names(tree)
    scored = tree.sum_over_leaves(np.where(np.isfinite(tree.reward), tree.copies, 0).astype(float))
    counts, first = tree.child_counts(), tree.first_children()
    usable = np.isfinite(tree.value) & (tree.finish != FinishReason.GIVEN) & (scored >= answers)
    for parent in np.flatnonzero(counts > 1).tolist():
        children = np.arange(first[parent], first[parent] + counts[parent])
        left_out["siblings with too few scored answers"] += int((~usable[children]).sum())
        prefix, taken = "", 0
        for better, worse in _widest(tree.value, children[usable[children]], gap):
            if taken == most:
                left_out["groups with further pairs"] += 1
                break
            if tree.texts[better] == tree.texts[worse]:
                left_out["siblings of equal text"] += 1
                continue
            taken += 1
            prefix = prefix or "".join(tree.texts[part] for part in tree.path(parent))
            yield {
                **where,
                "prompt": prefix,
                "chosen": tree.texts[better],
                "rejected": tree.texts[worse],
                "gap": float(tree.value[better] - tree.value[worse]),
                "chosen_node": names[better],
                "rejected_node": names[worse],
                "chosen_value": float(tree.value[better]),
                "rejected_value": float(tree.value[worse]),
                "chosen_answers": int(scored[better]),
                "rejected_answers": int(scored[worse]),
            }


def _widest(value: NDArray[np.float64], children: NDArray[np.int64], gap: float) -> Iterator[tuple[int, int]]:
    """(better, worse) of two children that are `gap` apart, the widest first; of a thousand pairs at most."""
    if not len(children):
        return
    worst_first = children[np.argsort(value[children], kind="stable")].tolist()
    best_first = children[np.argsort(-value[children], kind="stable")].tolist()

    def entry(better: int, worse: int) -> tuple[float, int, int]:
        return (float(value[worst_first[worse]] - value[best_first[better]]), better, worse)

    # Both lists are sorted, so after a pair come those that step on in one of them.
    waiting, seen = [entry(0, 0)], {(0, 0)}
    for _ in range(MOST_PAIRS_TRIED):
        if not waiting:
            return
        negative, better, worse = heapq.heappop(waiting)
        if -negative < gap or negative == 0:
            return
        yield best_first[better], worst_first[worse]
        for following in ((better + 1, worse), (better, worse + 1)):
            if max(following) < len(children) and following not in seen:
                seen.add(following)
                heapq.heappush(waiting, entry(*following))


def step_labels(
    tree: RolloutTree, where: Where, *, threshold: float, left_out: Counter[str]
) -> Iterator[Row]:
    """Every answer as steps with the value of each, and whether that is at least `threshold`.

    A step is a segment; what was given, not sampled, is read with the prompt or with the step before it.
    """
    names = node_names(tree)
    for leaf in np.flatnonzero(tree.is_leaf()).tolist():
        prompt, steps = _split(tree, leaf)
        values = [float(tree.value[node]) for node, _ in steps]
        if not steps:
            left_out["answers without text"] += 1
        elif not all(map(math.isfinite, values)):
            left_out["answers with a step without value"] += 1
        else:
            yield {
                **where,
                "prompt": prompt,
                "completions": [text for _, text in steps],
                "labels": [value >= threshold for value in values],
                "values": values,
                "nodes": [names[node] for node, _ in steps],
                "leaf": names[leaf],
                "verdict": Verdict(int(tree.verdict[leaf])).word,
                "copies": int(tree.copies[leaf]),
            }


class BestAnswers:
    """The best correct answers to one problem as chats, each text once: those of the highest reward, of equal
    ones the newest policy's, then the shortest. Never holds more than `most` of them and one tree's.
    """

    def __init__(self, most: int, left_out: Counter[str]) -> None:
        self.most = most
        self.left_out = left_out
        self._found: dict[str, tuple[tuple[float, int, int], Row]] = {}

    def add(self, tree: RolloutTree, where: Where) -> None:
        names, tokens = node_names(tree), tree.token_counts()
        for leaf in np.flatnonzero(tree.is_leaf() & (tree.verdict == Verdict.CORRECT)).tolist():
            prompt, steps = _split(tree, leaf)
            answer = "".join(text for _, text in steps)
            if not answer.strip():
                self.left_out["answers without text"] += 1
                continue
            length = int(tokens[tree.path(leaf)[1:]].sum())
            reward = float(np.nan_to_num(tree.reward[leaf], nan=-np.inf))
            rank = (-reward, -tree.policy_version, length)
            if answer in self._found:  # equal texts are equal whatever tree they stand in; the best is kept
                self.left_out["answers of equal text"] += 1
                if rank >= self._found[answer][0]:
                    continue
            row = {
                **where,
                "messages": [
                    {"role": "user", "content": prompt},
                    {"role": "assistant", "content": answer},
                ],
                "node": names[leaf],
                "value": _number(tree.value[leaf]),
                "reward": _number(tree.reward[leaf]),
                "tokens": length,
            }
            self._found[answer] = (rank, row)
        ranked = sorted(self._found.items(), key=lambda item: item[1][0])
        self.left_out["further answers to a problem"] += max(len(ranked) - self.most, 0)
        self._found = dict(ranked[: self.most])

    def rows(self) -> list[Row]:
        """The best first."""
        return [row for _, row in self._found.values()]


def _split(tree: RolloutTree, leaf: int) -> tuple[str, list[tuple[int, str]]]:
    """A path as the text that was there, and (node, text) of each segment that was sampled. Text given later
    on belongs to the step before it, and segments without text are no steps.
    """
    prompt = tree.texts[ROOT]
    steps: list[tuple[int, str]] = []
    for node in tree.path(leaf)[1:]:
        text = tree.texts[node]
        if tree.finish[node] == FinishReason.GIVEN:
            if steps:
                steps[-1] = (steps[-1][0], steps[-1][1] + text)
            else:
                prompt += text
        elif text:
            steps.append((node, text))
    return prompt, steps


def node_names(tree: RolloutTree) -> list[str]:
    """[N] `RolloutTree.name` of every node, in one pass."""
    parent: Sequence[int] = tree.parent.tolist()
    first: Sequence[int] = tree.first_children().tolist()
    names = ["0"] * tree.n_nodes
    for node in range(1, tree.n_nodes):
        above, number = parent[node], str(node - first[parent[node]] + 1)
        names[node] = number if above == ROOT else f"{names[above]}.{number}"
    return names


def _mean_known(numbers: NDArray[np.float16]) -> float | None:
    """Of tokens that trained; None where none did."""
    known = numbers[np.isfinite(numbers)].astype(np.float64)
    return float(known.mean()) if len(known) else None


def _number(value: Any) -> float | None:
    """A float, or None for NaN. `Any`: numpy scalars."""
    number = float(value)
    return number if math.isfinite(number) else None
