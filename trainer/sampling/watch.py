"""The first few trees of a batch while they grow, for people who look on. It changes nothing that is sampled.
Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trainer.events import GrowingTree
from trainer.sampling.growth import PROMPT, Request, Segment
from trainer.tree import FinishReason, RolloutTree

MOST_TREES = 6
MOST_NODES = 200  # of each


@dataclass(slots=True)
class _Sketch:
    """Nodes in the order in which they were asked for; `node_of`: by chain."""

    problem_id: str
    node_of: dict[int, int] = field(default_factory=lambda: {PROMPT: 0})
    parent: list[int] = field(default_factory=lambda: [-1])
    tokens: list[int] = field(default_factory=lambda: [0])
    finish: list[int] = field(default_factory=lambda: [int(FinishReason.NONE)])


class GrowthWatch:
    """An engine tells it what it was asked for and what it has written. A segment hangs below all of the one
    that it goes on from, also where it leaves it before its end: it is a sketch, not yet the tree.
    """

    def __init__(self) -> None:
        self._sketches: dict[int, _Sketch] = {}
        self._verdicts: dict[int, list[int]] = {}

    def asked(self, number: int, problem_id: str, request: Request) -> None:
        """A segment of tree `number` of the batch is about to be written."""
        self.begin(number, problem_id, request.chain, request.parent)

    def wrote(self, number: int, segment: Segment) -> None:
        """It is written."""
        self.end(number, segment.chain, len(segment.tokens), segment.finish)

    def begin(self, number: int, problem_id: str, chain: int, parent: int) -> bool:
        """As `asked`, of a chain below another; whether there was room for it."""
        if number not in self._sketches and len(self._sketches) == MOST_TREES:
            return False
        sketch = self._sketches.setdefault(number, _Sketch(problem_id))
        above = sketch.node_of.get(parent)
        if above is None or len(sketch.parent) == MOST_NODES:
            return False
        sketch.node_of[chain] = len(sketch.parent)
        sketch.parent.append(above)
        sketch.tokens.append(0)
        sketch.finish.append(int(FinishReason.NONE))
        return True

    def end(self, number: int, chain: int, tokens: int, finish: int) -> bool:
        """As `wrote`; whether it is one that there was room for."""
        sketch = self._sketches.get(number)
        node = None if sketch is None else sketch.node_of.get(chain)
        if sketch is None or node is None:
            return False
        sketch.tokens[node], sketch.finish[node] = tokens, finish
        return True

    def judged(self, trees: Sequence[RolloutTree]) -> None:
        """All of the batch's trees, verified. A sketch that became another tree keeps no verdicts."""
        for number, sketch in self._sketches.items():
            drawn, tree = _breadth_first(sketch, []), trees[number]
            tokens = [0, *tree.token_counts()[1:].tolist()]  # the prompt was not written
            if (drawn.parent, drawn.tokens) == (tree.parent.tolist(), tokens):
                self._verdicts[number] = tree.verdict.tolist()

    def trees(self) -> list[GrowingTree]:
        """The sketches as they are now."""
        return [
            _breadth_first(sketch, self._verdicts.get(number, []))
            for number, sketch in self._sketches.items()
        ]


def _breadth_first(sketch: _Sketch, verdict: list[int]) -> GrowingTree:
    children: list[list[int]] = [[] for _ in sketch.parent]
    for node, parent in enumerate(sketch.parent[1:], 1):
        children[parent].append(node)
    order = [0]
    for node in order:  # grows as it is walked
        order += children[node]
    place = {node: number for number, node in enumerate(order)}
    return GrowingTree(
        problem_id=sketch.problem_id[:200],
        parent=[-1, *(place[sketch.parent[node]] for node in order[1:])],
        tokens=[sketch.tokens[node] for node in order],
        finish=[sketch.finish[node] for node in order],
        verdict=verdict,
    )
