"""Full trees of a given shape with random rewards, and what computing them takes. For measuring training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trainer.packing import FlatBatch, PackedBatch
from trainer.tree import FinishReason, RolloutTree, Verdict, sampled_tree

PROMPT = 24


@dataclass(frozen=True, slots=True)
class Shape:
    """branching per depth, tokens per segment at each depth, problems of a batch."""

    name: str
    branching: tuple[int, ...]
    tokens: tuple[int, ...]
    problems: int


def full_tree(shape: Shape, number: int, vocabulary: int) -> RolloutTree:
    """No answer ends early but in the ragged shape; every other leaf is right, so every group has credit."""
    rng = np.random.default_rng(number)
    parent, depth = [-1], [0]
    ragged = shape.name.startswith("ragged")
    node = 0
    while node < len(parent):
        if depth[node] < len(shape.branching) and not (ragged and node and rng.random() < 0.06):
            for _ in range(shape.branching[depth[node]]):
                parent.append(node)
                depth.append(depth[node] + 1)
        node += 1
    counts = [PROMPT, *(shape.tokens[d - 1] for d in depth[1:])]
    tree = sampled_tree(
        problem_id=f"{number}",
        reference_answer="",
        step=1,
        policy_version=0,
        parent=parent,
        segment_tokens=[rng.integers(2, vocabulary, count) for count in counts],
        segment_logprobs=[np.full(count, -1.0) for count in counts],
        segment_entropies=[np.zeros(count) for count in counts],
        finish=[FinishReason.NONE] + [FinishReason.LENGTH] * (len(parent) - 1),
        texts=[""] * len(parent),
    )
    leaf = tree.is_leaf()
    reward = np.where(leaf, rng.random(len(parent)) < 0.5, np.nan).astype(np.float64)
    verdict = np.where(leaf, np.where(reward > 0, Verdict.CORRECT, Verdict.INCORRECT), Verdict.NONE)
    return tree.with_verdicts(verdict.astype(np.uint8), reward, [""] * len(parent))


def multiplications(model: Any, batches: Sequence[PackedBatch | FlatBatch]) -> int:
    """Of one pass forward: every token through the linear layers, every query-key pair of its path twice."""
    config = model.config
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_pair = 2 * config.num_hidden_layers * config.num_attention_heads * head
    total = 0
    for batch in batches:
        if isinstance(batch, PackedBatch):
            tokens, pairs = len(batch.tokens), int((batch.positions + 1).sum())
        else:
            rows, width = batch.tokens.shape
            tokens, pairs = rows * width, rows * width * (width + 1) // 2
        total += tokens * linear + pairs * per_pair
    return total
