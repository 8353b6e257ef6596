"""RolloutTree: the one columnar structure of a rollout tree, from the sampler to the browser.

A struct of numpy arrays, one row per node, breadth-first; node 0 is the root, which is the prompt. It is not
a policy, a verifier or an estimator: those fill its columns. Torch-free.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = 0


class FinishReason(IntEnum):
    """Why a segment ended."""

    NONE = 0  # the root
    EOS = 1  # the policy ended its answer
    SPLIT = 2  # the split rule cut here, children follow
    LENGTH = 3  # the segment's token limit, children follow unless it is the last level
    GIVEN = 4  # not sampled: text that was put there, such as a token budget; no loss
    FORK = 5  # cut where another segment forks off, children follow
    REPETITION = 6  # ended because it repeats itself
    PRUNED = 7  # given up by a search or lookahead; without reward

    @property
    def word(self) -> str:
        return self.name.lower()


class Verdict(IntEnum):
    """What the verifier said of a leaf. Only CORRECT and INCORRECT judge the answer itself."""

    NONE = 0  # not a leaf, or not verified yet
    CORRECT = 1
    INCORRECT = 2
    UNPARSED = 3  # no answer could be read: reward 0
    TRUNCATED = 4  # cut off before its end: reward 0
    ERROR = 5  # the verifier failed: no reward at all, so no credit

    @property
    def word(self) -> str:
        return self.name.lower()


class CreditState(IntEnum):
    """Why a node has, or has not, an advantage."""

    NONE = 0  # the root, or not computed yet
    CREDITED = 1
    DROPPED_BY_FILTER = 2  # its group's values differ too little
    ONLY_CHILD = 3  # nothing to be better than
    NO_REWARD = 4  # no scored leaf below it
    PER_PATH = 5  # inner segment under trajectory spread: its leaves carry the advantage
    NOT_SELECTED = 6  # a leaf that was not chosen to train
    GIVEN = 7  # not sampled
    NO_ADVANTAGE = 8  # the objective trains on pairs or verified answers, not on advantages

    @property
    def word(self) -> str:
        return self.name.lower()


# name -> (dtype, rows per node or token)
NODE_COLUMNS: Mapping[str, type] = {
    "parent": np.int32,
    "finish": np.uint8,
    "verdict": np.uint8,
    "copies": np.int32,
    "subgroup": np.int32,
    "visits": np.int32,
    "reward": np.float64,
    "value": np.float64,
    "advantage": np.float64,
    "credit_state": np.uint8,
}
TOKEN_COLUMNS: Mapping[str, type] = {"tokens": np.int32, "logprobs": np.float32, "entropies": np.float32}
# Columns that a tree may be without: name -> (dtype, has K numbers per token). Half precision is what people
# can see of them, in half the bytes.
OPTIONAL_COLUMNS: Mapping[str, tuple[type, bool]] = {
    "mismatch": (np.float16, False),
    "log_ratio": (np.float16, False),
    "clip": (np.uint8, False),
    "top_tokens": (np.int32, True),
    "top_logprobs": (np.float16, True),
}
MOST_TOP = 64  # alternatives per token that are read
# A large and wide tree is summed level by level, a small or deep one node by node.
LEVELWISE_FROM = 300
LEVELWISE_WIDTH = 50


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """What each of T tokens was drawn from, where the distribution was cut off (top-k, top-p): `counts` [T]
    int32 tokens were kept there, 0: all of the vocabulary; `tokens` [sum of counts] int32, token after token.
    """

    counts: NDArray[np.int32]
    tokens: NDArray[np.int32]

    @classmethod
    def of_rows(cls, rows: NDArray[np.int32]) -> Kept:
        """rows [T, K] of ids, -1 where there is none."""
        there = rows >= 0
        return cls(there.sum(1).astype(np.int32), rows[there])

    @classmethod
    def joined(cls, parts: Sequence[tuple[Kept | None, int]]) -> Kept | None:
        """Of stretches of tokens, one after another: each one's and its length. None if no one has any."""
        if all(part is None for part, _ in parts):
            return None
        return cls(
            np.concatenate(
                [np.zeros(length, np.int32) if part is None else part.counts for part, length in parts]
            ),
            np.concatenate([part.tokens for part, _ in parts if part is not None]),
        )

    def between(self, first: int, last: int) -> Kept:
        """Of tokens first to last - 1, as a slice."""
        counts, begin = self.counts[first:last], int(self.counts[:first].sum())
        return Kept(counts, self.tokens[begin : begin + int(counts.sum())])


@dataclass(frozen=True, slots=True, eq=False)
class RolloutTree:
    """All segments sampled for one problem in one step.

    N nodes breadth-first (`parent` never falls, `parent[i] < i`, so children are contiguous), T tokens. Node
    i's tokens are `tokens[token_offsets[i]:token_offsets[i+1]]`; the root's are the prompt's.

        parent         [N] int32    -1 for the root
        token_offsets  [N+1] int64
        tokens         [T] int32    ids
        logprobs       [T] float32  of the sampled token under the sampling policy, nats; 0 in the prompt
        entropies      [T] float32  of that distribution, nats; 0 in the prompt
        finish         [N] uint8    FinishReason
        verdict        [N] uint8    Verdict, NONE at inner nodes
        copies         [N] int32    of a leaf, how many sampled answers ended in just this one (merged
                                    samplers; else 1); 0 at inner nodes
        subgroup       [N] int32    which tree of a forest (Tree-GRPO), or which token budget (HBPO), a node
                                    belongs to; 0 where there is but one
        visits         [N] int32    of a search; 0 elsewhere
        reward         [N] float64  of a scored leaf, shaped (`trainer.rewards`); NaN elsewhere
        value          [N] float64  backed up by the run's estimator; NaN where no leaf below was scored
        advantage      [N] float64  NaN: no credit, never 0
        credit_state   [N] uint8    CreditState
        texts          N strings    decoded segments; the root's is the prompt
        answers        N strings    what the verifier read at a leaf; "" elsewhere

    `batch_mean`, `batch_std`: statistics of the step's whole batch that its credit was scaled by; NaN where
    the credit of a tree depends on itself alone.

    What not every tree has (None, NaN or empty where it has not):

        temperature    of sampling
        stream         seed of its random numbers, 64 bits: `sampling.growth.Ground.key`
        mismatch       [T] float16  sampling less policy logprob, nats, before the update; NaN where the token
                       did not train
        loss_share     its part of the step's loss: the pull of its tokens (`loss_weights.pull`) as a share of
                       the pull of all trained tokens of the step; NaN where that is not defined
        update, updates  which of the step's updates trained it, and how many there were; 0: not known
        log_ratio      [T] float16  log(policy at that update / policy before the step), nats; NaN where the
                       token did not train. None where the step has one update: both are the same
        clip           [T] uint8    `clipping.Clip`; None likewise
        top_tokens     [T, K] int32    the K most likely tokens there, the most likely first; -1 in the prompt
                       and in given text
        top_logprobs   [T, K] float16  theirs, in the distribution that was sampled from, nats
        kept           what each token was drawn from, where the distribution was cut off; training needs it,
                       and it is not stored
        token_bytes    id -> text of a token alone, UTF-8, for every id above; a character may be split over
                       tokens
    """

    problem_id: str
    reference_answer: str
    step: int
    policy_version: int
    parent: NDArray[np.int32]
    token_offsets: NDArray[np.int64]
    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    entropies: NDArray[np.float32]
    finish: NDArray[np.uint8]
    verdict: NDArray[np.uint8]
    copies: NDArray[np.int32]
    subgroup: NDArray[np.int32]
    visits: NDArray[np.int32]
    reward: NDArray[np.float64]
    value: NDArray[np.float64]
    advantage: NDArray[np.float64]
    credit_state: NDArray[np.uint8]
    texts: tuple[str, ...]
    answers: tuple[str, ...]
    batch_mean: float = math.nan
    batch_std: float = math.nan
    temperature: float = math.nan
    stream: int | None = None
    mismatch: NDArray[np.float16] | None = None
    update: int = 0
    updates: int = 0
    log_ratio: NDArray[np.float16] | None = None
    clip: NDArray[np.uint8] | None = None
    loss_share: float = math.nan
    top_tokens: NDArray[np.int32] | None = None
    top_logprobs: NDArray[np.float16] | None = None
    kept: Kept | None = None
    token_bytes: Mapping[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.parent)
        if n == 0 or self.parent[0] != -1:
            raise ValueError("A tree starts with its root: parent[0] must be -1.")
        rest = self.parent[1:]
        if n > 1:
            bad = np.flatnonzero((rest < 0) | (rest >= np.arange(1, n)))
            if len(bad):
                node = int(bad[0]) + 1
                raise ValueError(
                    f"Node {node} has parent {int(self.parent[node])}; a parent must be an earlier node, and "
                    f"only node 0 is a root."
                )
            if np.any(np.diff(rest) < 0):
                raise ValueError(
                    "Nodes must be breadth-first: `parent` may never fall from one node to the next."
                )
        for name in NODE_COLUMNS:
            if len(getattr(self, name)) != n:
                raise ValueError(
                    f"Column {name} has {len(getattr(self, name))} rows; the tree has {n} nodes."
                )
        for name, words in (("finish", FinishReason), ("verdict", Verdict), ("credit_state", CreditState)):
            column = getattr(self, name)
            if n and not (column.min() >= 0 and column.max() < len(words)):
                node = int(np.flatnonzero((column < 0) | (column >= len(words)))[0])
                raise ValueError(
                    f"Node {node} has {name} {int(column[node])}; expected 0 to {len(words) - 1}."
                )
        if len(self.texts) != n or len(self.answers) != n:
            raise ValueError(f"{len(self.texts)} texts and {len(self.answers)} answers for {n} nodes.")
        offsets = self.token_offsets
        if (
            len(offsets) != n + 1
            or offsets[0] != 0
            or np.any(np.diff(offsets) < 0)
            or offsets[-1] != len(self.tokens)
        ):
            raise ValueError(f"token_offsets must rise from 0 to {len(self.tokens)} in {n + 1} numbers.")
        for name in TOKEN_COLUMNS:
            if len(getattr(self, name)) != len(self.tokens):
                raise ValueError(
                    f"Column {name} has {len(getattr(self, name))} rows for {len(self.tokens)} tokens."
                )
        for name, (_, is_wide) in OPTIONAL_COLUMNS.items():
            optional = getattr(self, name)
            if optional is not None and optional.shape[:1] != (len(self.tokens),):
                raise ValueError(f"Column {name} has {len(optional)} rows for {len(self.tokens)} tokens.")
            if (
                optional is not None
                and is_wide
                and not (optional.ndim == 2 and optional.shape[1] <= MOST_TOP)
            ):
                raise ValueError(f"Column {name} must have 1 to {MOST_TOP} numbers per token.")
        if (self.top_tokens is None) != (self.top_logprobs is None) or (
            self.top_tokens is not None
            and self.top_logprobs is not None
            and self.top_tokens.shape != self.top_logprobs.shape
        ):
            raise ValueError("top_tokens and top_logprobs must go together, and be of one shape.")
        if self.kept is not None and (
            len(self.kept.counts) != len(self.tokens)
            or np.any(self.kept.counts < 0)
            or int(self.kept.counts.sum()) != len(self.kept.tokens)
        ):
            raise ValueError("kept must have a count for every token, and as many ids as they add up to.")

    @property
    def policy_logprobs(self) -> NDArray[np.float32] | None:
        """[T] logprobs by the policy before the update, nats; NaN where a token did not train. None: not
        known. To the half precision of `mismatch`.
        """
        return None if self.mismatch is None else self.logprobs - self.mismatch.astype(np.float32)

    # ---- shape

    @property
    def n_nodes(self) -> int:
        return len(self.parent)

    def token_counts(self) -> NDArray[np.int64]:
        """[N] tokens of each segment; the root's is the prompt's length."""
        return np.diff(self.token_offsets)

    def child_counts(self) -> NDArray[np.int64]:
        """[N] number of children."""
        return np.bincount(self.parent[1:], minlength=self.n_nodes).astype(np.int64)

    def first_children(self) -> NDArray[np.int64]:
        """[N] index of the first child; of a leaf, where it would stand. Children are `first .. first + count
        - 1`.
        """
        return 1 + np.concatenate(([0], np.cumsum(self.child_counts())[:-1]))

    def is_leaf(self) -> NDArray[np.bool_]:
        """[N] True where a node has no children. A tree of a root alone has no leaf: nothing was sampled."""
        leaf: NDArray[np.bool_] = self.child_counts() == 0
        leaf[ROOT] = False
        return leaf

    def levels(self) -> list[int]:
        """[D+2] where each depth starts: nodes of depth d are `levels[d] .. levels[d + 1] - 1`."""
        starts = [0, 1]
        while starts[-1] < self.n_nodes:
            # `parent` never falls: a level ends where the children of the one above do.
            starts.append(int(np.searchsorted(self.parent, starts[-1])))
        return starts

    def wide_levels(self) -> list[int]:
        """`levels`, where it is worth going through them one by one; else none."""
        levels = self.levels() if self.n_nodes > LEVELWISE_FROM else []
        return levels if len(levels) * LEVELWISE_WIDTH <= self.n_nodes else []

    def depths(self) -> NDArray[np.int32]:
        """[N] 0 at the root."""
        starts = np.array(self.levels())
        return np.repeat(np.arange(len(starts) - 1, dtype=np.int32), np.diff(starts))

    def leaf_counts(self) -> NDArray[np.int64]:
        """[N] leaves at or below each node; 1 at a leaf."""
        return self.sum_over_leaves(np.ones(self.n_nodes)).astype(np.int64)

    def answer_counts(self) -> NDArray[np.int64]:
        """[N] sampled answers through each node: like `leaf_counts`, but a leaf counts its copies."""
        return self.sum_over_leaves(self.copies.astype(np.float64)).astype(np.int64)

    def sum_over_leaves(self, per_leaf: NDArray[np.float64]) -> NDArray[np.float64]:
        """[N] sum of `per_leaf` [N] over the leaves at or below each node. Children are added from the last
        to the first, so equal trees give equal bits.
        """
        total: NDArray[np.float64] = np.where(self.is_leaf(), per_leaf, 0.0)
        levels = self.wide_levels()
        if not levels:
            sums: list[float] = total.tolist()
            parent: list[int] = self.parent.tolist()  # lists: numpy is slow at one number at a time
            for node in range(self.n_nodes - 1, 0, -1):
                sums[parent[node]] += sums[node]
            return np.array(sums)
        for start, stop in zip(levels[-2:0:-1], levels[:1:-1], strict=True):
            np.add.at(total, self.parent[start:stop][::-1], total[start:stop][::-1])  # in this order
        return total

    def path(self, node: int) -> list[int]:
        """Nodes from the root to `node`, both included."""
        nodes = [node]
        while nodes[-1] != ROOT:
            nodes.append(int(self.parent[nodes[-1]]))
        return nodes[::-1]

    def name(self, node: int) -> str:
        """Child numbers from the root, counted from 1: `2.1.3`. The root is `0`."""
        if node == ROOT:
            return "0"
        # `parent` never falls, so the first child of a node stands where its number first appears there.
        path = self.path(node)
        firsts = np.searchsorted(self.parent, path[:-1])
        return ".".join(str(child - int(first) + 1) for child, first in zip(path[1:], firsts, strict=True))

    def find(self, name: str) -> int:
        """The node called `name`. Raises KeyError with the part that does not exist."""
        node = ROOT
        if name in ("", "0"):
            return node
        counts, first = self.child_counts(), self.first_children()
        for depth, part in enumerate(name.split(".")):
            if (
                not part.isascii()
                or not part.isdecimal()
                or len(part) > 9
                or not 1 <= int(part) <= counts[node]
            ):
                above = ".".join(name.split(".")[:depth]) or "the root"
                raise KeyError(
                    f"There is no node {name!r}: {above} has {int(counts[node])} children, not {part!r}."
                )
            node = int(first[node]) + int(part) - 1
        return node

    # ---- filling columns

    def with_batch(self, mean: float, std: float) -> RolloutTree:
        """A copy that remembers the batch statistics its credit was scaled by."""
        return dataclasses.replace(self, batch_mean=mean, batch_std=std)

    def with_verdicts(
        self, verdict: NDArray[np.uint8], reward: NDArray[np.float64], answers: Sequence[str]
    ) -> RolloutTree:
        """A copy with the verifier's columns filled. [N], [N], N."""
        return dataclasses.replace(self, verdict=verdict, reward=reward, answers=tuple(answers))

    def with_credit(
        self, value: NDArray[np.float64], advantage: NDArray[np.float64], credit_state: NDArray[np.uint8]
    ) -> RolloutTree:
        """A copy with the estimator's columns filled. [N] each."""
        return dataclasses.replace(self, value=value, advantage=advantage, credit_state=credit_state)

    def with_sampling(self, temperature: float) -> RolloutTree:
        """A copy that remembers how it was sampled."""
        return dataclasses.replace(self, temperature=temperature)

    def sampled_by(self, policy_version: int) -> RolloutTree:
        """A copy that names the policy that sampled it: all of its segments."""
        return dataclasses.replace(self, policy_version=policy_version)

    def with_training(self, mismatch: NDArray[np.float16] | None, loss_share: float) -> RolloutTree:
        """A copy that remembers what the update that it trained found. [T]."""
        return dataclasses.replace(self, mismatch=mismatch, loss_share=loss_share)

    def with_clips(
        self,
        update: int,
        updates: int,
        log_ratio: NDArray[np.float16] | None,
        clip: NDArray[np.uint8] | None,
    ) -> RolloutTree:
        """A copy that remembers the ratios of the update that it trained in, and what was clipped. [T]."""
        return dataclasses.replace(self, update=update, updates=updates, log_ratio=log_ratio, clip=clip)

    def with_token_bytes(self, token_bytes: Mapping[int, bytes]) -> RolloutTree:
        """A copy that brings the texts of its tokens along."""
        return dataclasses.replace(self, token_bytes=token_bytes)

    def without_kept(self) -> RolloutTree:
        """A copy for the eye: what its tokens were drawn from is for training alone."""
        return self if self.kept is None else dataclasses.replace(self, kept=None)

    def token_ids(self) -> list[int]:
        """Every id that stands in it, alternatives included, each once, rising."""
        ids = np.unique(self.tokens)
        if self.top_tokens is not None:
            ids = np.union1d(ids, self.top_tokens[self.top_tokens >= 0])
        return [int(token) for token in ids]

    # ---- payload

    def to_payload(self) -> bytes:
        """See `trainer.payload`."""
        from trainer.payload import pack

        return pack(self)

    @classmethod
    def from_payload(cls, payload: bytes) -> RolloutTree:
        """The tree back, all of it. Raises ValueError naming the damage; never trusts a length."""
        from trainer.payload import unpack

        return unpack(payload)


def single_copies(parent: NDArray[np.int32]) -> NDArray[np.int32]:
    """[N] 1 at leaves, 0 elsewhere. Parents that are no parents are left to the tree's own check."""
    inner = np.zeros(len(parent), np.bool_)
    inner[parent[(parent >= 0) & (parent < len(parent))]] = True
    inner[:1] = True
    return (~inner).astype(np.int32)


def sampled_tree(
    *,
    problem_id: str,
    reference_answer: str,
    step: int,
    policy_version: int,
    parent: Sequence[int] | NDArray[np.int32],
    segment_tokens: Sequence[Sequence[int] | NDArray[np.integer[Any]]],
    segment_logprobs: Sequence[Sequence[float] | NDArray[np.floating[Any]]],
    segment_entropies: Sequence[Sequence[float] | NDArray[np.floating[Any]]],
    finish: Sequence[int] | NDArray[np.uint8],
    texts: Sequence[str],
    copies: Sequence[int] | NDArray[np.int32] | None = None,
    subgroup: Sequence[int] | NDArray[np.int32] | None = None,
    visits: Sequence[int] | NDArray[np.int32] | None = None,
    stream: int | None = None,
    top_tokens: NDArray[np.int32] | None = None,
    top_logprobs: NDArray[np.float16] | None = None,
    kept: Kept | None = None,
) -> RolloutTree:
    """A tree straight from a sampler: not verified, no credit. Row i of every argument is node i, row 0 the
    prompt. `copies` None: every leaf once. top_tokens, top_logprobs: [T, K] of all tokens, one after another.
    """
    n = len(parent)
    parents = np.asarray(parent, np.int32)
    counts = [len(tokens) for tokens in segment_tokens]
    return RolloutTree(
        problem_id=problem_id,
        reference_answer=reference_answer,
        step=step,
        policy_version=policy_version,
        parent=parents,
        token_offsets=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        tokens=np.concatenate([np.asarray(x, np.int32) for x in segment_tokens]),
        logprobs=np.concatenate([np.asarray(x, np.float32) for x in segment_logprobs]),
        entropies=np.concatenate([np.asarray(x, np.float32) for x in segment_entropies]),
        finish=np.asarray(finish, np.uint8),
        verdict=np.zeros(n, np.uint8),
        copies=single_copies(parents) if copies is None else np.asarray(copies, np.int32),
        subgroup=np.zeros(n, np.int32) if subgroup is None else np.asarray(subgroup, np.int32),
        visits=np.zeros(n, np.int32) if visits is None else np.asarray(visits, np.int32),
        reward=np.full(n, np.nan),
        value=np.full(n, np.nan),
        advantage=np.full(n, np.nan),
        credit_state=np.zeros(n, np.uint8),
        texts=tuple(texts),
        answers=("",) * n,
        stream=stream,
        top_tokens=top_tokens,
        top_logprobs=top_logprobs,
        kept=kept,
    )
