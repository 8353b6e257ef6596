"""Tokens of a tree by its shape alone, before anything is sampled: an upper bound with no early stop.

    nodes at depth d    n_d = b_1 ... b_d, at most the width
    sampled             unique U = sum n_d L_d;  flattened F = leaves * (L_1 + ... + L_D)
    trained             packed P + U;  flattened leaves * (P + sum L);  per node sum_d n_d (P + path_d)
    attention pairs     packed T(P) + sum_d n_d [T(P + path_d) - T(P + path_{d-1})];
                        flattened leaves * T(P + sum L);  T(x) = x (x + 1) / 2

P: prompt tokens; path_d = L_1 + ... + L_d. Of a fork tree, whose forks are where the policy puts them, what
is expected if fork points are uniform over an answer. Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

MOST_NODES: Final = 10**15


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Of one tree. `sampling_ratio` F / U, `saving` 1 - U / F; `training_ratio` and `per_node_ratio` against
    packed; `attention_ratio` of query-key pairs. `is_expected`: a mean over fork points, rounded.
    """

    nodes: int
    leaves: int
    sampled_unique: int
    sampled_flat: int
    sampling_ratio: float
    saving: float
    trained_packed: int
    trained_flat: int
    training_ratio: float
    trained_per_node: int
    per_node_ratio: float
    attention_packed: int
    attention_flat: int
    attention_ratio: float
    is_expected: bool = False

    def as_dict(self) -> dict[str, int | float]:
        return asdict(self)


def count_tokens(
    branching: Sequence[int], segment_tokens: Sequence[int], prompt_tokens: int = 0, width: int = 0
) -> TokenCounts:
    """branching[d], segment_tokens[d]: children of a node at depth d, and their length; width 0: no limit.

    Raises ValueError when the lists do not fit or a number is below 1 (prompt: 0).
    """
    if not branching or len(branching) != len(segment_tokens):
        raise ValueError(
            f"branching has {len(branching)} depths and segment {len(segment_tokens)}. Give one number to "
            "both for every depth."
        )
    if min(*branching, *segment_tokens) < 1 or prompt_tokens < 0 or width < 0:
        raise ValueError("Every number must be 1 or more (prompt and width: 0 or more).")
    unique = nodes = per_node = 0
    path, here = prompt_tokens, 1
    pairs = _triangle(prompt_tokens)
    for children, length in zip(branching, segment_tokens, strict=True):
        here = min(here * children, width) if width else here * children
        nodes += here
        if nodes > MOST_NODES:
            raise ValueError(
                f"That tree has more than {MOST_NODES:,} nodes. Lower the branching, or set a width."
            )
        unique += here * length
        pairs += here * (_triangle(path + length) - _triangle(path))
        path += length
        per_node += here * path
    answer = sum(segment_tokens)
    return _counts(
        nodes=nodes,
        leaves=here,
        unique=unique,
        prompt=prompt_tokens,
        answer=answer,
        per_node=per_node,
        pairs=pairs,
    )


def count_fork_tokens(
    trees: int, forks: int, continuations: int, answer_tokens: int, prompt_tokens: int = 0
) -> TokenCounts:
    """Of `trees` full answers with `forks` fork points each, in all, and new answers from every point
    (TreeRL, Tree-GRPO). With u uniform in [0, 1] a new answer has (1 - u) of an answer's tokens:

        U = T (trees + trees forks continuations / 2)

    Exact for one round of forking; later rounds also fork the new answers, which begin later.
    Raises ValueError when a number is below 1 (prompt: 0).
    """
    if min(trees, forks, continuations, answer_tokens) < 1 or prompt_tokens < 0:
        raise ValueError("Every number must be 1 or more (prompt: 0 or more).")
    cuts = trees * forks
    new = cuts * continuations
    p, t = prompt_tokens, answer_tokens
    above = (p * p + p * t + t * t / 3 + p + t / 2) / 2  # mean of T(P + u T)
    pairs = _triangle(p) + trees * (_triangle(p + t) - _triangle(p)) + new * (_triangle(p + t) - above)
    return _counts(
        nodes=trees + new + cuts,  # a fork point cuts a segment in two
        leaves=trees + new,
        unique=round(t * (trees + new / 2)),
        prompt=p,
        answer=t,
        per_node=round((trees + new) * (p + t) + cuts * (p + t / 2)),
        pairs=round(pairs),
        is_expected=True,
    )


def _counts(
    *,
    nodes: int,
    leaves: int,
    unique: int,
    prompt: int,
    answer: int,
    per_node: int,
    pairs: int,
    is_expected: bool = False,
) -> TokenCounts:
    flat = leaves * answer
    trained_flat = leaves * (prompt + answer)
    attention_flat = leaves * _triangle(prompt + answer)
    return TokenCounts(
        nodes=nodes,
        leaves=leaves,
        sampled_unique=unique,
        sampled_flat=flat,
        sampling_ratio=flat / unique,
        saving=1 - unique / flat,
        trained_packed=prompt + unique,
        trained_flat=trained_flat,
        training_ratio=trained_flat / (prompt + unique),
        trained_per_node=per_node,
        per_node_ratio=per_node / (prompt + unique),
        attention_packed=pairs,
        attention_flat=attention_flat,
        attention_ratio=attention_flat / pairs,
        is_expected=is_expected,
    )


def _triangle(tokens: int) -> int:
    return tokens * (tokens + 1) // 2
