"""The fork tree: full answers first, then new answers that leave them in the middle (TreeRL's EPTree,
TreeAdv, Tree-GRPO). Torch-free.

(M, N, L, T): trees, forks, rounds, continuations. A forest of M trees hangs below the prompt; they do not
wait for each other, and `subgroup` numbers them from 0.

    1. Sample M full answers, one per tree.
    2. L times, in each tree: choose N fork points among all its answers, and sample T full answers from
       *before* the token at each point, up to what is left of the answer length.

Fork points, by score (M(1 + N L T) answers at most):

    surprisal   the tokens with the largest -log p of the sampled token (TreeRL calls it entropy)
    entropy     the tokens whose distribution has an entropy above a threshold, the largest first (TreeAdv)
    uniform     nodes drawn uniformly, with replacement, from the root and the pieces that line breaks cut an
                answer into, the last piece of each answer left out; the fork is behind the piece (Tree-GRPO)

Of surprisal and entropy, the first token of every answer's own part is left out (it stands at a fork
already), and so is a token that was forked before, so that a later round finds new points; ties go to the
answer that was asked for first, and to its earlier token. With all scores a path is not forked behind the
token that completes a `never_after` word, in capitals or not. A tree with no fork point left is done.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.sampling.growth import (
    PROMPT,
    Ground,
    Keep,
    Orders,
    Request,
    Segment,
    Steps,
    Stepwise,
    Strand,
    tree_of,
)
from trainer.schema.sampler import ForkTreeSampler
from trainer.seeding import ROOT_PATH, child_path, generator
from trainer.tree import RolloutTree


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer's own part. `first`: its tokens before that; `open`: so many of its own tokens may be forked
    before; `tokens`: of the whole answer."""

    segment: Segment
    first: int
    open: int
    tokens: list[int]


@dataclass(frozen=True, slots=True, order=True)
class ForkPoint:
    """Before token `at` of a chain's own tokens; of PROMPT: behind the prompt."""

    chain: int
    at: int


class ForkTreeGrowth(Stepwise):
    """`growth.Growth` of a forest of fork trees."""

    def __init__(self, ground: Ground, sampler: ForkTreeSampler) -> None:
        super().__init__(map(self._tree, range(sampler.trees)), sampler.bounds.leaves)
        self._ground, self._sampler = ground, sampler
        self._words = [word for word in map(str.strip, sampler.never_after.lower().split(",")) if word]
        self._strands: dict[int, Strand] = {}

    def _tree(self, number: int) -> Steps:
        """Tree `number`. Chains are named by their place in the forest, whichever tree is faster."""
        sampler = self._sampler
        per_round = sampler.forks * sampler.continuations
        name = 1 + number * (1 + sampler.rounds * per_round)
        path = child_path(ROOT_PATH, number)
        answers: dict[int, _Answer] = {}
        forked: set[ForkPoint] = set()
        (segment,) = yield Orders(
            [Request(chain=name, most_tokens=sampler.max_tokens, path=path, keep=Keep.INSIDE)]
        )
        self._keep(answers, segment, PROMPT, 0, number)
        for turn in range(sampler.rounds):
            points = self._points(answers, forked, number, turn)
            forked.update(points)
            starts: dict[int, ForkPoint] = {}
            requests = []
            for place, point in enumerate(points):
                for again in range(sampler.continuations):
                    index = turn * per_round + place * sampler.continuations + again
                    is_last = turn + 1 == sampler.rounds
                    starts[name + 1 + index] = point
                    requests.append(
                        Request(
                            chain=name + 1 + index,
                            parent=point.chain,
                            at=point.at if point.chain != PROMPT else -1,
                            most_tokens=sampler.max_tokens - self._above(answers, point),
                            path=child_path(path, index),
                            keep=Keep.NOTHING if is_last else Keep.INSIDE,
                        )
                    )
            if not requests:
                break
            segments = yield Orders(requests, list(answers) if turn + 1 == sampler.rounds else ())
            for segment in segments:
                point = starts[segment.chain]
                self._keep(answers, segment, point.chain, point.at, number)
        yield Orders(release=list(answers))

    def _keep(self, answers: dict[int, _Answer], segment: Segment, parent: int, at: int, tree: int) -> None:
        point = ForkPoint(parent, at)
        first = self._above(answers, point)
        above = [] if parent == PROMPT else answers[parent].tokens[:first]
        tokens = above + segment.tokens.tolist()
        open_tokens = min(len(tokens), self._first_complete(tokens)) - first
        answers[segment.chain] = _Answer(segment, first, open_tokens, tokens)
        self._strands[segment.chain] = segment.strand(parent, subgroup=tree)._replace(
            at=at if parent != PROMPT else -1
        )

    @staticmethod
    def _above(answers: dict[int, _Answer], point: ForkPoint) -> int:
        """Tokens of the answer before a point."""
        return 0 if point.chain == PROMPT else answers[point.chain].first + point.at

    def _first_complete(self, tokens: list[int]) -> int:
        """How many first tokens it takes to write one of the words; one more than there are if none is
        written.
        """
        if not self._words or not self._writes_a_word(tokens):
            return len(tokens) + 1
        low, high = 0, len(tokens)  # the first `low` tokens write none, the first `high` one
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._writes_a_word(tokens[:middle]) else (middle, high)
        return high

    def _writes_a_word(self, tokens: list[int]) -> bool:
        text = self._ground.text(tokens).lower()
        return any(word in text for word in self._words)

    def _points(
        self, answers: dict[int, _Answer], forked: set[ForkPoint], tree: int, turn: int
    ) -> list[ForkPoint]:
        """Up to N fork points of a tree."""
        score, forks = self._sampler.score, self._sampler.forks
        if score.kind == "uniform":
            nodes = [ForkPoint(PROMPT, 0)]
            for chain, answer in answers.items():
                newlines = self._ground.vocabulary.newline_tokens[answer.segment.tokens[: answer.open - 1]]
                nodes += [ForkPoint(chain, place) for place in (np.flatnonzero(newlines) + 1).tolist()]
            chance = generator(self._ground.key, "forks", tree, turn)
            return [nodes[index] for index in chance.integers(len(nodes), size=forks).tolist()]
        ranked: list[tuple[float, ForkPoint]] = []
        for chain, answer in answers.items():
            if score.kind == "surprisal":
                scores = -answer.segment.logprobs[: answer.open]
                chosen = list(range(1, len(scores)))
            else:
                scores = answer.segment.entropies[: answer.open]
                chosen = [at for at in range(1, len(scores)) if scores[at] > score.threshold]
            ranked += [(-float(scores[at]), ForkPoint(chain, at)) for at in chosen]
        ranked = [entry for entry in ranked if entry[1] not in forked]
        return [point for _, point in sorted(ranked)[:forks]]

    def tree(self) -> RolloutTree:
        return tree_of(self._ground, self._strands)
