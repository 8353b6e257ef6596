"""Trees whose tokens are given as bytes, and one worked out to be read."""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from trainer.credit import credit_plan, credit_trees
from trainer.presets import PRESETS
from trainer.text import storable
from trainer.tree import FinishReason, RolloutTree, Verdict, sampled_tree

END = 9999


def of_bytes(parent: list[int], pieces: list[list[bytes]], *, ended: bool = False) -> RolloutTree:
    """A tree whose tokens are these bytes; its texts by the rule: what is complete at a segment's end."""
    ids: dict[bytes, int] = {}
    tokens = [[ids.setdefault(piece, len(ids)) for piece in segment] for segment in pieces]
    n = len(parent)
    inner = set(parent)
    texts: list[str] = []
    before: list[bytes] = []
    for node in range(n):
        path = (before[parent[node]] if node else b"") + b"".join(pieces[node])
        before.append(path)
        above = "" if node == 0 else path_text(before[parent[node]], is_last=False)
        texts.append(path_text(path, is_last=node not in inner)[len(above) :])
    finish = [FinishReason.NONE] + [
        FinishReason.SPLIT if node in inner else FinishReason.EOS if ended else FinishReason.LENGTH
        for node in range(1, n)
    ]
    if ended:
        tokens = [[*part, END] if node and node not in inner else part for node, part in enumerate(tokens)]
    tree = sampled_tree(
        problem_id="p", reference_answer="1", step=1, policy_version=0, parent=parent, segment_tokens=tokens,
        segment_logprobs=[[-0.5] * len(part) for part in tokens],
        segment_entropies=[[0.5] * len(part) for part in tokens],
        finish=finish, texts=[storable(text) for text in texts],
    )  # fmt: skip
    return tree.with_token_bytes({token: piece for piece, token in ids.items()} | {END: b"<|end|>"})


def path_text(path: bytes, *, is_last: bool) -> str:
    """All complete characters; at the very end the incomplete one, too, as what stands for it."""
    if is_last:
        return path.decode("utf-8", "replace")
    for cut in range(4):
        try:
            return path[: len(path) - cut].decode()
        except UnicodeDecodeError:
            continue
    return path.decode("utf-8", "replace")


def reading_tree(step: int = 1) -> RolloutTree:
    """Below 1: 1.1 with six right answers, 1.2 with six wrong ones, where the value falls; below 2 one of
    each. Word 3 of node 1.2 has the highest entropy of the tree, and two alternatives beside it.
    """
    texts = ["Count the even divisors of 360.\n"]
    texts += ["We factor $360 = 2^3 \\cdot 3^2 \\cdot 5$ first.\n", "List them <b>all</b>: \u202e2, 4.\n"]
    texts += [
        "Even ones: $3 \\cdot 3 \\cdot 2 = 18$.\n",
        "We must not take any power of 3.\n",
        "#### 18",
        "#### 24",
    ]
    parent = [-1, 0, 0, 1, 1, 2, 2, *[3] * 6, *[4] * 6]
    texts += ["#### 18"] * 6 + ["#### 6"] * 6
    words = [[word.encode() for word in re.findall(r"\s*\S+|\s+", text)] for text in texts]
    tree = of_bytes(parent, words, ended=True)
    n_tokens = len(tree.tokens)
    entropies, top = tree.entropies.copy(), np.full((n_tokens, 2), -1, np.int32)
    surprising = int(tree.token_offsets[4]) + 2
    entropies[surprising] = 2.5
    sampled = np.arange(n_tokens) >= tree.token_offsets[1]
    top[sampled, 0] = tree.tokens[sampled]
    top[sampled, 1] = tree.tokens[0]
    tree = dataclasses.replace(
        tree,
        step=step,
        problem_id="reading",
        reference_answer="18",
        entropies=entropies,
        top_tokens=top,
        top_logprobs=np.tile(np.array([[-0.5, -1.5]], np.float16), (n_tokens, 1)),
    )
    leaf = tree.is_leaf()
    right = np.array([text.endswith("18") for text in tree.texts]) & leaf
    verdict = np.where(leaf, np.where(right, Verdict.CORRECT, Verdict.INCORRECT), Verdict.NONE)
    answers = [
        text.removeprefix("#### ") if is_leaf else "" for text, is_leaf in zip(tree.texts, leaf, strict=True)
    ]
    tree = tree.with_verdicts(verdict.astype(np.uint8), np.where(leaf, right, np.nan), answers)
    (done,) = credit_trees([tree], credit_plan(PRESETS["treerpo-tiny"].config))
    return done
