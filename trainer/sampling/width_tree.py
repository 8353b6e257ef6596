"""The width-capped segment tree (TreePO, arXiv:2508.17445 §2.2): so many answers per prompt, whose places go
to the paths that are still alive. Torch-free.

w: width; branching[d], segment_tokens[d] as in `segment_tree`; D levels. Rounds are those of one prompt.

    1. Queue the prompt branching[0] times; with a root range, uniformly often from branching[0] to its
       maximum.
    2. Write one segment for all that is queued.
    3. A segment ends its path if the policy ended its answer, if it stands at level D, or if it repeats
       itself, looked at in this order; else the path is active.
    4. Active paths are continued B times in all,
           B = max(active, min(w - finished, b * finished in this round + b * active)),
       where b is the branching (its sum over the paths where depths differ); without budget transfer the
       first b term is left out. Each gets B // active of them, the last one also the remainder.
    5. With fallback, if no path is active and fewer than w are finished: take the answers that the policy
       ended, in random order; of each go back to a uniformly random earlier boundary (the prompt is one) and
       queue that boundary branching times, until the free places are used. If no answer was ended by the
       policy, queue the prompt.
    6. Stop when nothing is queued. All finished paths are leaves, truncated and repeating ones too.

The released code counts boundaries in tokens; here they are segment ends, which is the same for segments cut
by length.
"""

from __future__ import annotations

from dataclasses import dataclass

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
from trainer.sampling.segment_tree import repeats_itself
from trainer.schema.sampler import SegmentTreeSampler
from trainer.seeding import ROOT_PATH, child_path, generator
from trainer.tree import FinishReason, RolloutTree


@dataclass(slots=True)
class _Node:
    parent: int
    depth: int
    path: int
    children: int = 0


def shared(budget: int, active: int) -> list[int]:
    """How often each active path goes on: evenly, at least once, the remainder to the last."""
    each = max(1, budget // active)
    return [each] * (active - 1) + [max(1, budget - each * (active - 1))]


class WidthTreeGrowth(Stepwise):
    """`growth.Growth` of a width-capped tree."""

    def __init__(self, ground: Ground, sampler: SegmentTreeSampler) -> None:
        super().__init__([self._rounds()], sampler.bounds.nodes)
        self._ground, self._sampler = ground, sampler
        self._nodes = {PROMPT: _Node(PROMPT, 0, ROOT_PATH)}
        self._strands: dict[int, Strand] = {}

    def _rounds(self) -> Steps:
        sampler, width = self._sampler, self._sampler.max_width
        fallbacks, finished = 0, 0
        complete: list[int] = []  # answers that the policy ended
        queue = self._continued(PROMPT, min(self._root_branching(), width))
        ended_here: list[int] = [PROMPT]
        while queue:
            release = [] if sampler.fallback != "none" else ended_here
            segments = yield Orders(queue, release)
            active = []
            allowance = 0
            for segment in segments:
                node = self._nodes[segment.chain]
                finish = self._finish(segment, node.depth)
                self._strands[segment.chain] = segment.strand(node.parent, finish)
                is_active = finish in (FinishReason.SPLIT, FinishReason.LENGTH) and node.depth < sampler.depth
                if is_active:
                    active.append(segment.chain)
                else:
                    finished += 1
                if finish == FinishReason.EOS:
                    complete.append(segment.chain)
                if is_active or sampler.transfer_budget:
                    allowance += self._branching_at(node.depth)
            ended_here = [segment.chain for segment in segments]
            queue = []
            if active:
                budget = max(len(active), min(width - finished, allowance))
                for chain, times in zip(active, shared(budget, len(active)), strict=True):
                    queue += self._continued(chain, times)
            elif finished < width and sampler.fallback == "random":
                queue = self._fallen_back(complete, width - finished, fallbacks)
                fallbacks += 1

    def _fallen_back(self, complete: list[int], places: int, number: int) -> list[Request]:
        chance = generator(self._ground.key, "fallback", number)
        queue: list[Request] = []
        for index in chance.permutation(len(complete)).tolist():
            chain = complete[index]
            for _ in range(self._nodes[chain].depth - int(chance.integers(self._nodes[chain].depth))):
                chain = self._nodes[chain].parent
            times = min(self._branching_at(self._nodes[chain].depth), places - len(queue))
            queue += self._continued(chain, times)
        if not complete:
            queue = self._continued(PROMPT, min(self._branching_at(0), places))
        return queue

    def _root_branching(self) -> int:
        least, most = self._sampler.branching[0], self._sampler.root_branching_max
        if not most:
            return least
        return int(generator(self._ground.key, "root branching").integers(least, most + 1))

    def _branching_at(self, depth: int) -> int:
        """Continuations of a node at this depth; those of the last inner level for a leaf below it."""
        return self._sampler.branching[min(depth, self._sampler.depth - 1)]

    def _finish(self, segment: Segment, depth: int) -> int:
        sampler = self._sampler
        if segment.finish == FinishReason.EOS or depth == sampler.depth or not sampler.repetition_window:
            return segment.finish
        text = self._ground.text(segment.tokens.tolist())
        if repeats_itself(text, sampler.repetition_window, sampler.repetition_count):
            return FinishReason.REPETITION
        return segment.finish

    def _continued(self, chain: int, times: int) -> list[Request]:
        node, sampler = self._nodes[chain], self._sampler
        is_last = node.depth + 1 == sampler.depth
        requests = []
        for _ in range(times):
            name, path = len(self._nodes), child_path(node.path, node.children)
            node.children += 1
            self._nodes[name] = _Node(chain, node.depth + 1, path)
            requests.append(
                Request(
                    chain=name,
                    parent=chain,
                    most_tokens=sampler.segment_tokens[node.depth],
                    path=path,
                    split=sampler.split == "newline" and not is_last,
                    keep=Keep.NOTHING if is_last else Keep.END,
                )
            )
        return requests

    def tree(self) -> RolloutTree:
        return tree_of(self._ground, self._strands)
