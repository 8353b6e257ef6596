"""Monte Carlo tree search over segments, steered by the verifier (MCTS-DPO, ReST-MCTS*). Torch-free.

A node is a segment at depth 1 to D; it is terminal if the policy ended its answer there or if it stands at
depth D, where a segment completes the answer. Expanding a node samples `expand` segments below it; equal ones
count once. A terminal node is scored by the verifier, any other one by one sampled completion that the
verifier judges (rollout), or by the value head of the policy (value_head). Completions only score: they are
no part of the tree, though they are sampled. A node that is not terminal and has no children at the end is
PRUNED: it has no reward. `visits` holds N.

PUCT (MCTS-DPO, arXiv:2405.00451). score: +1 or -1 by the verifier, 2 v - 1 for a value v of 0 to 1; 0 of the
prompt. r = score - score of the parent; at first Q = V(parent) + r and V = 0.

    One iteration from a node: until a terminal is reached, expand the node if it has no children, and go to
        argmax over children of  Q + w p sqrt(N_parent) / (1 + N),   p = exp(sum log p(token) / length^lambda)
    N counts each node that is gone to. Then, from the end of the path to its start,
        V = sum max(1, N_c) Q_c / sum max(1, N_c) over the children c,    Q = r + V.
    `iterations` of them, four times as many at the prompt, make a decision: commit to the child with the
    largest (N, Q, V), and go on from there, until a terminal is committed.

The released code backs up after every expansion as well, which counts a fresh path more than once; here an
iteration counts once.

UCT (MCTS* of ReST-MCTS*, arXiv:2406.03816). V: 1 or 0 by the verifier, or the value.

    One iteration: from the prompt go to argmax over children of  V + c sqrt(2 ln N_parent / N),  V + 1 where
    N = 0, until a node without children. A terminal one with V >= stop_value ends the search. One that is not
    terminal is expanded, and from its best child `roll_forward` segments are sampled, one after the other,
    with the largest value seen, M:   V <- (1 - alpha) V + alpha M,   N <- 1.
    Then on the path, from its end:   N <- N + 1,   V = sum N_c V_c / sum N_c over the children c.

There the value model's V >= stop_value ends the search at any node; here the node must be terminal, so that
the search ends with an answer. Ties go to the first child instead of a random one. Where the verifier failed
on an answer, its node keeps the score of its parent: it says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from functools import partial

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
from trainer.schema.sampler import PuctSelect, SearchTreeSampler, UctSelect
from trainer.seeding import ROOT_PATH, child_path
from trainer.tree import FinishReason, RolloutTree
from trainer.verifiers import JudgeAnswer, Verifier

AT_THE_PROMPT = 4  # times as many iterations


@dataclass(slots=True, eq=False)
class SearchNode:
    """A segment of a search. score, visits (N), q and v are those of the module's docstring; prior: p."""

    chain: int
    path: int
    parent: SearchNode | None = None
    segment: Segment | None = None
    tokens: list[int] = field(default_factory=list)  # of the answer so far
    depth: int = 0
    is_terminal: bool = False
    score: float = 0.0
    prior: float = 1.0
    visits: int = 0
    q: float = 0.0
    v: float = 0.0
    children: list[SearchNode] = field(default_factory=list)

    @property
    def gain(self) -> float:
        """r: what the segment adds to its parent's score."""
        return self.score - self.parent.score if self.parent is not None else 0.0


class SearchTreeGrowth(Stepwise):
    """`growth.Growth` of a searched tree."""

    def __init__(self, ground: Ground, sampler: SearchTreeSampler, judge: JudgeAnswer) -> None:
        self._ground, self._sampler, self._judge = ground, sampler, judge
        self._root = SearchNode(PROMPT, ROOT_PATH)
        self._nodes: list[SearchNode] = []
        self._next = 1
        select = sampler.select
        steps = self._puct(select) if select.kind == "puct" else self._uct(select)
        super().__init__([steps], sampler.bounds.nodes)

    # ---- PUCT

    def _puct(self, select: PuctSelect) -> Steps:
        top = self._root
        while not top.is_terminal:
            for _ in range(self._sampler.iterations * (AT_THE_PROMPT if top is self._root else 1)):
                yield from self._iterate(top, select)
            top = committed(top.children)

    def _iterate(self, top: SearchNode, select: PuctSelect) -> Steps:
        path = [top]
        top.visits += 1
        while not path[-1].is_terminal:
            node = path[-1]
            if not node.children:
                yield from self._expand(node)
                for child in node.children:
                    child.q = node.v + child.gain
                    child.prior = _prior(child, select.length_power)
            path.append(max(node.children, key=partial(puct, parent=node, weight=select.weight)))
            path[-1].visits += 1
        for node in reversed(path):
            if node.children:
                weights = [max(1, child.visits) for child in node.children]
                total = sum(weight * child.q for weight, child in zip(weights, node.children, strict=True))
                node.v = total / sum(weights)
            node.q = node.gain + node.v

    # ---- UCT

    def _uct(self, select: UctSelect) -> Steps:
        for _ in range(self._sampler.iterations):
            node = self._root
            while node.children:
                node = uct_best(node, select.weight)
            if node.is_terminal:
                if node.v >= select.stop_value:
                    return
            else:
                yield from self._expand(node)
                for child in node.children:
                    child.v = child.score
                rolled = uct_best(node, select.weight)
                seen = yield from self._roll_forward(rolled, select.roll_forward)
                rolled.v = (1 - select.roll_share) * rolled.v + select.roll_share * seen
                rolled.visits += 1
            upward: SearchNode | None = node
            while upward is not None:
                upward.visits += 1
                visits = sum(child.visits for child in upward.children)
                if visits:
                    upward.v = sum(child.visits * child.v for child in upward.children) / visits
                upward = upward.parent

    def _roll_forward(self, node: SearchNode, most: int) -> Generator[Orders, list[Segment], float]:
        """The largest value on a sampled way of up to so many segments from a node; 0 if it goes nowhere, its
        own value if it is terminal.
        """
        if node.is_terminal:
            return node.v
        seen, passed = 0.0, []
        for _ in range(most):
            # Number 0 to expand - 1 are its children, `expand` is its completion.
            (segment,) = yield Orders([self._below(node, child_path(node.path, self._sampler.expand + 1))])
            passed.append(segment.chain)
            node = self._child(node, segment, child_path(node.path, self._sampler.expand + 1))
            yield from self._score([node])
            seen = max(seen, node.score)
            if node.is_terminal:
                break
        yield Orders(release=passed)
        return seen

    # ---- both

    def _expand(self, node: SearchNode) -> Steps:
        """Give a node its children, scored."""
        paths = [child_path(node.path, number) for number in range(self._sampler.expand)]
        segments = yield Orders([self._below(node, path) for path in paths])
        seen: set[bytes] = set()
        twice = []
        for segment, path in zip(segments, paths, strict=True):
            if segment.tokens.tobytes() in seen:
                twice.append(segment.chain)
                continue
            seen.add(segment.tokens.tobytes())
            node.children.append(self._child(node, segment, path))
        self._nodes += node.children
        yield from self._score(node.children)
        # Nothing starts at this node again: its children are there.
        yield Orders(release=[node.chain, *twice, *(c.chain for c in node.children if c.is_terminal)])

    def _below(self, node: SearchNode, path: int) -> Request:
        sampler = self._sampler
        is_last = node.depth + 1 == sampler.depth
        self._next += 1
        return Request(
            chain=self._next - 1,
            parent=node.chain,
            most_tokens=sampler.last_tokens if is_last else sampler.segment_tokens,
            path=path,
            split=sampler.split == "newline" and not is_last,
            value=sampler.evaluator == "value_head" and not is_last,
            keep=Keep.NOTHING if is_last else Keep.END,
        )

    def _child(self, parent: SearchNode, segment: Segment, path: int) -> SearchNode:
        depth = parent.depth + 1
        return SearchNode(
            chain=segment.chain,
            path=path,
            parent=parent,
            segment=segment,
            tokens=parent.tokens + segment.tokens.tolist(),
            depth=depth,
            is_terminal=segment.finish == FinishReason.EOS or depth == self._sampler.depth,
        )

    def _score(self, nodes: Sequence[SearchNode]) -> Steps:
        """Score nodes that are new."""
        answers = [(node, node.tokens, node.segment.finish) for node in nodes if node.segment]
        if self._sampler.evaluator == "rollout":
            going = [node for node in nodes if not node.is_terminal]
            requests = []
            for node in going:
                self._next += 1
                requests.append(
                    Request(
                        chain=self._next - 1,
                        parent=node.chain,
                        most_tokens=self._sampler.bounds.answer_tokens - len(node.tokens),
                        path=child_path(node.path, self._sampler.expand),
                    )
                )
            segments = (yield Orders(requests)) if requests else []
            completed = {
                id(node): (node.tokens + segment.tokens.tolist(), segment.finish)
                for node, segment in zip(going, segments, strict=True)
            }
            answers = [(node, *completed.get(id(node), (tokens, finish))) for node, tokens, finish in answers]
        else:
            for node in nodes:
                if node.segment is not None and not node.is_terminal:
                    node.score = self._scaled(node.segment.value)
            answers = [answer for answer in answers if answer[0].is_terminal]
        for (node, _, _), reward in zip(answers, self._rewards(answers), strict=True):
            if math.isnan(reward):
                node.score = node.parent.score if node.parent is not None else 0.0
            else:
                node.score = self._scaled(reward)

    def _rewards(self, answers: Sequence[tuple[SearchNode, list[int], int]]) -> list[float]:
        """1 or 0 of each answer, NaN where the verifier failed."""
        reference = self._ground.problem.reference_answer
        asked = [
            (self._ground.text(tokens), finish == FinishReason.EOS, reference)
            for _, tokens, finish in answers
        ]
        if isinstance(self._judge, Verifier):
            return [found.reward for found in self._judge.judge_many(asked)]
        return [self._judge(*answer).reward for answer in asked]

    def _scaled(self, value: float) -> float:
        return 2 * value - 1 if self._sampler.select.kind == "puct" else value

    def tree(self) -> RolloutTree:
        strands: dict[int, Strand] = {}
        for node in self._nodes:
            assert node.segment is not None and node.parent is not None  # noqa: S101, PT018  # not the root
            is_open = not node.is_terminal and not node.children
            finish = FinishReason.PRUNED if is_open else node.segment.finish
            strands[node.chain] = node.segment.strand(node.parent.chain, finish)._replace(visits=node.visits)
        return tree_of(self._ground, strands, root_visits=self._root.visits)


def committed(children: Sequence[SearchNode]) -> SearchNode:
    """The child that a decision of PUCT falls on."""
    return max(children, key=lambda child: (child.visits, child.q, child.v))


def _prior(node: SearchNode, length_power: float) -> float:
    logprobs = node.segment.logprobs if node.segment is not None else ()
    return math.exp(float(sum(logprobs)) / len(logprobs) ** length_power)


def puct(node: SearchNode, parent: SearchNode, weight: float) -> float:
    """Q + w p sqrt(N_parent) / (1 + N)."""
    return node.q + weight * node.prior * math.sqrt(parent.visits) / (1 + node.visits)


def uct_best(node: SearchNode, weight: float) -> SearchNode:
    """The child with the largest V + c sqrt(2 ln N_parent / N); V + 1 where N = 0."""

    def bound(child: SearchNode) -> float:
        if not child.visits:
            return child.v + 1
        return child.v + weight * math.sqrt(2 * math.log(node.visits) / child.visits)

    return max(node.children, key=bound)
