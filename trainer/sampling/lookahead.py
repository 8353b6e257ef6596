"""Lookahead tree-based rollouts (LATR, arXiv:2510.24302): branches open where the policy hesitates, and close
again where they come to the same. Torch-free.

k answers; eta_i = eta gamma^(i - 1) at step i (released code: a table); k_t = round(k eta_i) of them come
from the tree, the others are ordinary samples. P is the policy's distribution at temperature 1. Per prompt,
token step by token step:

    1. One branch: the prompt.
    2. Every live branch goes on with its most likely token c*.
    3. Forks: each other token c of its m most likely opens a new branch, which goes on with c, if
       P[c] > tau_abs and P[c*] - P[c] < tau_rel. When there are more than the free places (k_t less the
       branches there are, ended ones too): the most likely ones (paper), or by rank, then by branch (code).
    4. Lookahead: a branch that now has exactly r tokens of its own, r one of the windows, is compared with
       the last r tokens of the branch it left. Too similar: it is removed with all its descendants. Pairs in
       which either has ended are not compared; the first branch is never removed.
    5. The tree phase ends when k_t branches are there and none has fewer tokens than the largest window, when
       all of them have ended, or after `tree_tokens` steps.
    6. Every branch is finished by ordinary sampling. Places that are still free go to the first branch: it is
       finished once more for each (the released code copies its start); if it has ended already, its answer
       counts so many times more (`copies`).

The released code ends the tree phase for a whole batch at 98 % of its places; here every prompt stands for
itself, so that a tree does not depend on the others. The shared starts are greedy, not sampled, and the loss
treats them as the policy's own, as in the paper.

A step needs the next token of every live branch. Branches are written greedily `chunk` tokens ahead and the
steps are gone through afterwards, token by token, so the chunk changes the number of rounds, not the tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from trainer.edit_distance import edit_distance
from trainer.sampling.growth import (
    END,
    PROMPT,
    Ground,
    Keep,
    Orders,
    Request,
    Segment,
    Steps,
    Stepwise,
    Strand,
    alternatives_of,
    tree_of,
)
from trainer.schema.sampler import LookaheadSampler
from trainer.seeding import ROOT_PATH, child_path
from trainer.tree import FinishReason, Kept, RolloutTree

CHUNK = 8


def suffix_match(a: Sequence[int], b: Sequence[int]) -> float:
    """Longest end of one that stands somewhere in the other, over their common length."""

    def longest(end: Sequence[int], text: Sequence[int]) -> int:
        sizes = range(len(end), 0, -1)
        runs = {n: {tuple(text[i : i + n]) for i in range(len(text) - n + 1)} for n in sizes}
        return next((n for n in sizes if tuple(end[-n:]) in runs[n]), 0)

    return max(longest(a, b), longest(b, a)) / len(a)


def rouge_l(a: Sequence[int], b: Sequence[int]) -> float:
    """Harmonic mean of longest common subsequence / length over both."""
    row = [0] * (len(b) + 1)
    for left in a:
        diagonal = 0
        for j, right in enumerate(b, 1):
            diagonal, row[j] = row[j], diagonal + 1 if left == right else max(row[j], row[j - 1])
    return 2 * row[-1] / (len(a) + len(b))


def is_too_similar(sampler: LookaheadSampler, a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether two windows of one length are alike."""
    if sampler.similarity == "edit":
        return edit_distance(a, b) / len(a) < sampler.threshold
    similarity = suffix_match if sampler.similarity == "suffix_match" else rouge_l
    return similarity(a, b) > sampler.threshold


@dataclass(slots=True, eq=False)
class _Branch:
    """Greedy tokens from token step `birth` on; `opened_with`: the token that it took there, -1 for the first
    branch. `pieces`: what is written of it, and the token step at which each piece starts.
    """

    parent: _Branch | None
    birth: int
    opened_with: int = -1
    pieces: list[tuple[int, Segment]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    best: list[tuple[list[int], list[float]]] = field(default_factory=list)  # per token: ids, probabilities
    ending: Segment | None = None  # sampled behind the tree phase
    copies: int = 1

    @property
    def known(self) -> int:
        """Token steps that are written."""
        return self.birth + len(self.tokens)

    @property
    def is_written(self) -> bool:
        """Whether its end is written."""
        return bool(self.pieces) and self.pieces[-1][1].finish == FinishReason.EOS

    def has_ended(self, steps: int) -> bool:
        """Whether its end stands within the first `steps` token steps."""
        return self.is_written and self.known <= steps

    def place(self, steps: int) -> tuple[int, int]:
        """(chain, how many of its tokens) are the first `steps` tokens of the path, some of them its own."""
        first, segment = next(piece for piece in reversed(self.pieces) if piece[0] < steps)
        return segment.chain, END if steps == first + len(segment.tokens) else steps - first


class LookaheadGrowth(Stepwise):
    """`growth.Growth` of a lookahead tree."""

    def __init__(self, ground: Ground, sampler: LookaheadSampler, chunk: int = CHUNK) -> None:
        self._ground, self._sampler, self._chunk = ground, sampler, chunk
        self._width = round(sampler.group_size * sampler.tree_share_at(ground.step))
        self._ordinary = sampler.group_size - self._width
        self._limit = min(sampler.tree_tokens, sampler.max_tokens)
        self._next = self._ordinary + 1
        self._steps_taken = 0
        self._branches: list[_Branch] = []  # live, in the order of opening
        self._filled: list[Segment] = []  # further endings of the first branch
        self._answers: list[Segment] = []  # ordinary ones
        parts = ([self._grow()] if self._width else []) + ([self._sample()] if self._ordinary else [])
        super().__init__(parts, sampler.group_size)

    def _sample(self) -> Steps:
        """The ordinary answers."""
        self._answers = yield Orders(
            [
                Request(chain=n, most_tokens=self._sampler.max_tokens, path=child_path(ROOT_PATH, n))
                for n in range(1, self._ordinary + 1)
            ]
        )

    def _grow(self) -> Steps:
        """The tree phase, and the endings of its branches."""
        self._branches = [_Branch(None, 0)]
        windows = self._sampler.windows
        steps = 0
        while True:
            while late := [b for b in self._branches if b.known <= steps and not b.is_written]:
                self._learn(late, (yield Orders([self._further(branch, self._chunk) for branch in late])))
            self._branches += self._forks(steps)
            steps += 1
            removed = self._alike(steps)
            self._branches = [branch for branch in self._branches if branch not in removed]
            if removed:
                yield Orders(release=[piece.chain for branch in removed for _, piece in branch.pieces])
            ended = [branch.has_ended(steps) or self._opened_with_end(branch) for branch in self._branches]
            is_full = len(self._branches) >= self._width
            is_old = all(steps - branch.birth >= max(windows) for branch in self._branches)
            if all(ended) or (is_full and is_old) or steps == self._limit:
                break
        # What was opened at the last step has its first token yet to be written.
        if late := [branch for branch in self._branches if branch.known < steps and not branch.is_written]:
            self._learn(late, (yield Orders([self._further(branch, 1) for branch in late])))
        self._steps_taken = steps
        yield from self._finish(steps)

    def _finish(self, steps: int) -> Steps:
        """Sample the endings of all live branches, and of the first one for the places that are free."""
        first = self._branches[0]
        free = self._width - len(self._branches)
        left = self._sampler.max_tokens - steps
        if first.has_ended(steps) or not left:
            first.copies += free
            free = 0
        live = [branch for branch in self._branches if not branch.has_ended(steps)] if left else []
        path = child_path(ROOT_PATH, 0)
        requests = []
        for number, branch in enumerate([*live, *[first] * free]):
            parent, at = branch.place(steps)
            requests.append(
                Request(
                    chain=self._next + number,
                    parent=parent,
                    at=at,
                    most_tokens=left,
                    path=child_path(path, number),
                )
            )
        chains = [piece.chain for branch in self._branches for _, piece in branch.pieces]
        segments = yield Orders(requests, chains)
        for branch, segment in zip(live, segments, strict=False):
            branch.ending = segment
        self._filled = segments[len(live) :]

    def _further(self, branch: _Branch, most: int) -> Request:
        """A request for the next tokens of a branch."""
        parent, at = PROMPT, END
        forced: tuple[int, ...] = ()
        if branch.pieces:
            parent = branch.pieces[-1][1].chain
        elif branch.parent is not None:
            if branch.birth:
                parent, at = branch.parent.place(branch.birth)
            forced = (branch.opened_with,)
        self._next += 1
        return Request(
            chain=self._next - 1,
            parent=parent,
            at=at,
            most_tokens=max(1, min(most, self._limit - branch.known)),
            greedy=True,
            forced=forced,
            top=self._sampler.candidates,
            keep=Keep.END,
        )

    def _learn(self, branches: list[_Branch], segments: list[Segment]) -> None:
        for branch, segment in zip(branches, segments, strict=True):
            assert segment.top_ids is not None and segment.top_probs is not None  # noqa: S101, PT018  # asked for
            branch.pieces.append((branch.known, segment))
            branch.tokens += segment.tokens.tolist()
            branch.best += zip(segment.top_ids.tolist(), segment.top_probs.tolist(), strict=True)

    def _forks(self, step: int) -> list[_Branch]:
        """The branches that open at a token step (from 0), as many as there are free places."""
        sampler = self._sampler
        candidates = []  # (rank, branch, probability, token)
        for index, branch in enumerate(self._branches):
            if branch.known <= step:
                continue  # it has ended
            token = branch.tokens[step - branch.birth]
            ids, probabilities = branch.best[step - branch.birth]
            for rank, (other, chance) in enumerate(zip(ids, probabilities, strict=True)):
                is_close = probabilities[0] - chance < sampler.max_gap
                if other != token and chance > sampler.min_probability and is_close:
                    candidates.append((rank, index, chance, other))
        if sampler.overflow == "probability":
            candidates.sort(key=lambda found: (-found[2], found[1], found[0]))
        else:
            candidates.sort()
        chosen = candidates[: max(self._width - len(self._branches), 0)]
        chosen.sort(key=lambda found: (found[1], found[0]))
        return [_Branch(self._branches[index], step, token) for _, index, _, token in chosen]

    def _alike(self, steps: int) -> list[_Branch]:
        """Branches that are too like the one they left, and their descendants; `steps` are taken."""
        removed: list[_Branch] = []
        for branch in self._branches:  # parents come first
            parent = branch.parent
            if parent is None:
                continue
            size = steps - branch.birth
            is_alike = False
            if size in self._sampler.windows and branch.known >= steps and parent.known >= steps:
                # One token is never like the other: it was chosen to differ.
                own, other = branch.tokens[:size], parent.tokens[branch.birth - parent.birth :][:size]
                has_end = any(one.has_ended(steps) for one in (branch, parent))
                is_alike = size > 1 and not has_end and is_too_similar(self._sampler, own, other)
            if is_alike or parent in removed:
                removed.append(branch)
        return removed

    def _opened_with_end(self, branch: _Branch) -> bool:
        return branch.opened_with in self._ground.vocabulary.end_ids

    # ---- the tree

    def tree(self) -> RolloutTree:
        steps = self._steps_taken
        strands: dict[int, Strand] = {}
        names: dict[int, int] = {}
        for name, branch in enumerate(self._branches, 1):
            names[id(branch)] = name
            parent, at = (PROMPT, END) if branch.parent is None else (names[id(branch.parent)], 0)
            if branch.parent is not None:
                at = branch.birth - branch.parent.birth
            strand = _strand_of(branch, steps)._replace(parent=parent, at=at, copies=branch.copies)
            strands[name] = strand
        for name, segment in enumerate(self._filled, len(strands) + 1):
            strands[name] = segment.strand(1)._replace(at=steps)
        for name, segment in enumerate(self._answers, len(strands) + 1):
            strands[name] = segment.strand(PROMPT)
        return tree_of(self._ground, strands)


def _strand_of(branch: _Branch, steps: int) -> Strand:
    """The greedy tokens of the tree phase and what was sampled behind them."""
    parts = [piece for _, piece in branch.pieces]
    finish = parts[-1].finish if branch.has_ended(steps) else int(FinishReason.LENGTH)
    greedy = steps - branch.birth
    tokens = np.concatenate([part.tokens for part in parts])[:greedy]
    logprobs = np.concatenate([part.logprobs for part in parts])[:greedy]
    entropies = np.concatenate([part.entropies for part in parts])[:greedy]
    alternatives = alternatives_of([(part.alternatives, len(part.tokens)) for part in parts])
    alternatives = None if alternatives is None else alternatives.cut(0, greedy)
    kept = Kept.joined([(part.kept, len(part.tokens)) for part in parts])
    kept = None if kept is None else kept.between(0, greedy)
    if branch.ending is not None:
        finish = branch.ending.finish
        alternatives = alternatives_of(
            [(alternatives, len(tokens)), (branch.ending.alternatives, len(branch.ending.tokens))]
        )
        kept = Kept.joined([(kept, len(tokens)), (branch.ending.kept, len(branch.ending.tokens))])
        tokens = np.concatenate([tokens, branch.ending.tokens])
        logprobs = np.concatenate([logprobs, branch.ending.logprobs])
        entropies = np.concatenate([entropies, branch.ending.entropies])
    return Strand(PROMPT, END, tokens, logprobs, entropies, finish, alternatives=alternatives, kept=kept)
