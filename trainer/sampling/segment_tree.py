"""The plain segment tree: every segment that has not ended gets its level's number of children (TreeRPO §3.1,
SPO-tree); a flat sample is a tree of depth one. Torch-free.

    1. Sample branching[0] segments from the prompt.
    2. A segment is a leaf if the policy ended its answer, if it stands at the last level, or if it repeats
       itself (when a repetition window is given).
    3. Any other segment at depth d gets branching[d] continuations, as soon as it is there.

A segment at depth d + 1 has at most segment_tokens[d] tokens; with the newline rule it also ends behind a
line break, except at the last level. Nothing waits: a tree has no rounds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from trainer.sampling.growth import PROMPT, Ground, Keep, Orders, Request, Segment, Strand, tree_of
from trainer.seeding import ROOT_PATH, child_path
from trainer.tree import FinishReason, RolloutTree


def repeats_itself(text: str, window: int, count: int) -> bool:
    """Whether some `window` letters of the text come `count` times or more; overlaps count (TreePO's stop
    rule: 32 letters, 8 times). window 0: never."""
    if not window or len(text) < window + count - 1:
        return False
    seen = Counter(text[first : first + window] for first in range(len(text) - window + 1))
    return max(seen.values()) >= count


class SegmentTreeGrowth:
    """`growth.Growth` of a plain segment tree.

    branching[d]: children of a node at depth d; segment_tokens[d]: most tokens of a segment at depth d + 1.
    """

    def __init__(
        self,
        ground: Ground,
        branching: Sequence[int],
        segment_tokens: Sequence[int],
        *,
        split: bool,
        greedy: bool = False,
        repetition: tuple[int, int] = (0, 0),
    ) -> None:
        self._ground, self._branching, self._segment_tokens = ground, branching, segment_tokens
        self._split, self._greedy, self._repetition = split, greedy, repetition
        self._strands: dict[int, Strand] = {}
        self._asked: dict[int, tuple[int, int, int]] = {}  # chain -> its parent, depth and path
        self._next = 1
        # Nodes of a full subtree whose top stands at depth d: what an early end settles at once.
        self._subtree = [1] * (len(branching) + 1)
        for depth in range(len(branching) - 1, -1, -1):
            self._subtree[depth] = 1 + branching[depth] * self._subtree[depth + 1]
        self.total, self.done = self._subtree[0] - 1, 0

    def begin(self) -> Orders:
        return Orders(self._children(PROMPT, 0, ROOT_PATH), (PROMPT,))

    def take(self, segments: Sequence[Segment]) -> Orders:
        requests: list[Request] = []
        release = []
        window, count = self._repetition
        for segment in segments:
            parent, depth, path = self._asked.pop(segment.chain)
            finish = segment.finish
            is_over = finish == FinishReason.EOS or depth == len(self._branching)
            if not is_over and window:
                is_over = repeats_itself(self._ground.text(segment.tokens.tolist()), window, count)
                finish = FinishReason.REPETITION if is_over else finish
            self._strands[segment.chain] = segment.strand(parent, finish)
            self.done += self._subtree[depth] if is_over else 1
            if not is_over:
                requests += self._children(segment.chain, depth, path)
            if depth < len(self._branching):
                release.append(segment.chain)
        return Orders(requests, release)

    def _children(self, parent: int, depth: int, path: int) -> list[Request]:
        """Requests for the segments below a node at `depth`."""
        is_last = depth + 1 == len(self._branching)
        requests = []
        for number in range(self._branching[depth]):
            below = child_path(path, number)
            self._asked[self._next] = (parent, depth + 1, below)
            requests.append(
                Request(
                    chain=self._next,
                    parent=parent,
                    most_tokens=self._segment_tokens[depth],
                    path=below,
                    greedy=self._greedy,
                    split=self._split and not is_last,
                    keep=Keep.NOTHING if is_last else Keep.END,
                )
            )
            self._next += 1
        return requests

    def tree(self) -> RolloutTree:
        return tree_of(self._ground, self._strands)
