"""Growths: the algorithms that decide where a tree grows, apart from the engines that write its tokens.
Torch-free.

A growth is the tree of one problem while it is sampled: a state machine that asks for segments and is told
what was written, in whatever order an engine finishes them. Engines run it in two ways: in rounds, all
problems' requests in one batch (`local_engine`), or request by request as they end. A growth therefore waits
for others only where its algorithm says so, and gives the same tree for any order of completion.

It judges nothing (search asks the verifier it was given) and knows no weights.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.data import Problem
from trainer.seeding import ROOT_PATH
from trainer.tree import FinishReason, Kept, RolloutTree, sampled_tree

PROMPT: Final = 0  # the chain that every growth starts from
END: Final = -1  # as a request's `at`: behind the parent's last token


class TextDecoder(Protocol):
    """Token ids to text (`detokenizer.SegmentDecoder`)."""

    def texts(
        self, parent: Sequence[int] | NDArray[np.int32], segments: Sequence[Sequence[int]]
    ) -> list[str]:
        """Text of each node of a tree, "" for the root."""


class Vocabulary(Protocol):
    """What a growth may know of the policy: its tokens, not its weights. A `Policy` is one."""

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""

    @property
    def newline_tokens(self) -> NDArray[np.bool_]:
        """[V] True where a token's text has a line break."""

    @property
    def decoder(self) -> TextDecoder: ...

    def encode(self, prompt: str) -> list[int]:
        """Ids of a text."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What one tree grows from. `key` is the tree's own seed: all its random numbers derive from it."""

    problem: Problem
    prompt: Sequence[int]
    key: int
    step: int
    vocabulary: Vocabulary

    def text(self, tokens: Sequence[int]) -> str:
        """Text of a piece of an answer."""
        return self.vocabulary.decoder.texts((-1, 0), ((), tokens))[1]


class Keep(IntEnum):
    """What may go on from a finished segment, so that the engine keeps what it needs for that."""

    NOTHING = 0
    INSIDE = 1  # before some token of it: that start reads one token again
    END = 2  # also behind its last token, without reading any token again


class Request(NamedTuple):
    """Write one segment: go on from `parent`, before its token number `at`.

    chain        the segment's name, above 0, once per growth
    parent       the chain it goes on from; it was told, kept and not released. PROMPT: the prompt
    at           tokens of the parent that stay, 1 or more (END: all)
    most_tokens  where it is cut (FinishReason.LENGTH), forced tokens included
    path         64-bit name of its random stream (`seeding.child_paths`); token i takes number i of it
    greedy       take the most likely token, not a random one
    split        also end behind a token with a line break
    forced       its first tokens, put there instead of sampled; only the last of them can end the segment
    top          report so many most likely tokens, with probabilities at temperature 1, for every token
    value        report the value head's opinion of the path that ends here (unless by an end token); needs
                 keep END
    keep         what may go on from here
    is_given     all of it is forced and none the policy's choice, so that it does not count as sampled
    """

    chain: int
    parent: int = PROMPT
    at: int = END
    most_tokens: int = 1
    path: int = ROOT_PATH
    greedy: bool = False
    split: bool = False
    forced: tuple[int, ...] = ()
    top: int = 0
    value: bool = False
    keep: Keep = Keep.NOTHING
    is_given: bool = False


class Alternatives(NamedTuple):
    """The K most likely tokens at each place of a segment, in the distribution that was sampled from."""

    tokens: NDArray[np.int32]  # [n, K], the most likely first
    logprobs: NDArray[np.float16]  # [n, K] nats

    def cut(self, first: int, last: int) -> Alternatives:
        """Those of places first to last - 1."""
        return Alternatives(self.tokens[first:last], self.logprobs[first:last])


class Segment(NamedTuple):
    """A finished request. logprobs and entropies in nats, under the sampling policy at the plan's temperature
    (forced and greedy tokens too). finish: EOS, SPLIT or LENGTH. value: 0 to 1, NaN where not asked for.
    kept: of each token what it was drawn from, where the plan cuts the distribution off."""

    chain: int
    tokens: NDArray[np.int32]  # [n]
    logprobs: NDArray[np.float32]  # [n]
    entropies: NDArray[np.float32]  # [n]
    finish: int
    top_ids: NDArray[np.int32] | None = None  # [n, m], the most likely first
    top_probs: NDArray[np.float32] | None = None  # [n, m]
    value: float = float("nan")
    alternatives: Alternatives | None = None
    kept: Kept | None = None

    def strand(self, parent: int, finish: int | None = None, *, subgroup: int = 0) -> Strand:
        """The segment as a piece of the finished tree, behind all of `parent`."""
        return Strand(
            parent,
            END,
            self.tokens,
            self.logprobs,
            self.entropies,
            self.finish if finish is None else finish,
            subgroup=subgroup,
            alternatives=self.alternatives,
            kept=self.kept,
        )


class Orders(NamedTuple):
    """What a growth wants now. `release`: chains that no later request names. `cancel`: requests whose answer
    is not wanted any more; an engine that has it ready drops it."""

    requests: Sequence[Request] = ()
    release: Sequence[int] = ()
    cancel: Sequence[int] = ()


class Growth(Protocol):
    """One problem's tree as it grows. It is grown when nothing it asked for is outstanding."""

    @property
    def total(self) -> int:
        """Segments it expects to take, for progress."""

    @property
    def done(self) -> int:
        """How many of them are settled."""

    def begin(self) -> Orders:
        """The first orders."""

    def take(self, segments: Sequence[Segment]) -> Orders:
        """Some of what was asked for, in any order; and what is wanted next."""

    def tree(self) -> RolloutTree:
        """The grown tree: not verified, no credit."""


# ---------------------------------------------------------------------------------- growths that wait

Steps = Generator[Orders, list[Segment], None]
"""Asks for segments, sleeps until all of them are there, and goes on with them in the order of asking. One
that yields orders without a request goes on at once with []."""


class Stepwise:
    """A growth made of `Steps` that do not wait for each other. Subclasses give the steps and the tree."""

    def __init__(self, steps: Iterable[Steps], total: int) -> None:
        self.total, self.done = total, 0
        self._steps = list(steps)
        self._waiting: list[dict[int, Segment | None]] = [{} for _ in self._steps]
        self._owner: dict[int, int] = {}  # of each outstanding chain, which of the steps asked

    def begin(self) -> Orders:
        return _joined([self._resume(number) for number in range(len(self._steps))])

    def take(self, segments: Sequence[Segment]) -> Orders:
        ready = {}
        for segment in segments:
            number = self._owner.pop(segment.chain)
            waiting = self._waiting[number]
            waiting[segment.chain] = segment
            self.done = min(self.done + 1, self.total)
            if None not in waiting.values():
                ready[number] = True
        return _joined([self._resume(number) for number in ready])

    def _resume(self, number: int) -> Orders:
        steps, waiting = self._steps[number], self._waiting[number]
        given: list[Orders] = []
        while True:
            told = [segment for segment in waiting.values() if segment is not None]
            try:
                orders = steps.send(told) if given or told else next(steps)
            except StopIteration:
                break
            given.append(orders)
            waiting.clear()
            waiting.update(dict.fromkeys(request.chain for request in orders.requests))
            self._owner |= dict.fromkeys(waiting, number)
            if waiting:
                break
        if not self._owner:
            self.done = self.total
        return _joined(given)


def _joined(parts: Sequence[Orders]) -> Orders:
    if len(parts) == 1:
        return parts[0]
    return Orders(
        [x for part in parts for x in part.requests],
        [x for part in parts for x in part.release],
        [x for part in parts for x in part.cancel],
    )


# ------------------------------------------------------------------------------- from chains to a tree


class Strand(NamedTuple):
    """Tokens that hang together in the finished tree: they follow the first `at` tokens of strand `parent`
    (END: all of them). Where other strands leave it, the strand is cut into nodes."""

    parent: int
    at: int
    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    entropies: NDArray[np.float32]
    finish: int
    copies: int = 1
    subgroup: int = 0
    visits: int = 0
    alternatives: Alternatives | None = None
    kept: Kept | None = None


def tree_of(ground: Ground, strands: Mapping[int, Strand], root_visits: int = 0) -> RolloutTree:
    """The rollout tree of these strands, named by numbers above 0; PROMPT is the root.

    A strand that others leave before its token k is cut there, and its earlier piece ends with
    FinishReason.FORK. Among the children of a place the strand's own next piece comes first, then the strands
    that start there in the order of their names, so the tree does not depend on the order of completion.
    """
    starting: dict[
        tuple[int, int], list[int]
    ] = {}  # (strand, its tokens above the place) -> who starts there
    cuts: dict[int, set[int]] = {}
    for name in sorted(strands):
        parent, at = _place(strands, strands[name].parent, strands[name].at)
        starting.setdefault((parent, at), []).append(name)
        if parent != PROMPT and at < len(strands[parent].tokens):
            cuts.setdefault(parent, set()).add(at)
    prompt = np.asarray(ground.prompt, np.int32)
    zeros = np.zeros(len(prompt), np.float32)
    parent_of, finish = [-1], [int(FinishReason.NONE)]
    tokens: list[NDArray[np.int32]] = [prompt]
    logprobs, entropies = [zeros], [zeros]
    copies, subgroup, visits = [0], [0], [root_visits]
    alternatives: list[Alternatives | None] = [None]
    kept: list[Kept | None] = [None]
    ends = [(PROMPT, 0)]  # of each node, the place behind it: a strand, and its tokens above
    node = 0
    while node < len(ends):
        name, start = ends[node]
        below = starting.get((name, start), ())
        if name != PROMPT and start < len(strands[name].tokens):
            below = (name, *below)
        for child in below:
            strand, first = strands[child], start if child == name else 0
            last = len(strand.tokens)
            if child in cuts:
                last = min((cut for cut in cuts[child] if cut > first), default=last)
            is_whole = last == len(strand.tokens)
            parent_of.append(node)
            finish.append(strand.finish if is_whole else int(FinishReason.FORK))
            tokens.append(strand.tokens[first:last])
            logprobs.append(strand.logprobs[first:last])
            entropies.append(strand.entropies[first:last])
            own = strand.alternatives
            alternatives.append(None if own is None else own.cut(first, last))
            kept.append(None if strand.kept is None else strand.kept.between(first, last))
            copies.append(strand.copies)
            subgroup.append(strand.subgroup)
            visits.append(strand.visits)
            ends.append((child, last))
        if below:
            copies[node] = 0
        node += 1
    top = alternatives_of([(part, len(x)) for part, x in zip(alternatives, tokens, strict=True)])
    texts = ground.vocabulary.decoder.texts(parent_of, [x.tolist() for x in tokens])
    return sampled_tree(
        problem_id=ground.problem.problem_id,
        reference_answer=ground.problem.reference_answer,
        step=ground.step,
        policy_version=max(ground.step - 1, 0),
        parent=parent_of,
        segment_tokens=tokens,
        segment_logprobs=logprobs,
        segment_entropies=entropies,
        finish=finish,
        texts=[ground.problem.prompt, *texts[1:]],
        copies=copies,
        subgroup=subgroup,
        visits=visits,
        stream=ground.key,
        top_tokens=None if top is None else top.tokens,
        top_logprobs=None if top is None else top.logprobs,
        kept=Kept.joined([(part, len(x)) for part, x in zip(kept, tokens, strict=True)]),
    )


def alternatives_of(parts: Sequence[tuple[Alternatives | None, int]]) -> Alternatives | None:
    """Those of stretches of tokens, one after another: each stretch's and its length. -1 and NaN where one
    has none; None where none has any.
    """
    width = max((part.tokens.shape[1] for part, _ in parts if part is not None), default=0)
    if not width:
        return None
    count = sum(length for _, length in parts)
    joined = Alternatives(np.full((count, width), -1, np.int32), np.full((count, width), np.nan, np.float16))
    first = 0
    for part, length in parts:
        if part is not None:
            joined.tokens[first : first + length], joined.logprobs[first : first + length] = part
        first += length
    return joined


def _place(strands: Mapping[int, Strand], parent: int, at: int) -> tuple[int, int]:
    """(strand, tokens of it above) with at least one of its own tokens above, or (PROMPT, 0)."""
    if at == END and parent != PROMPT:
        at = len(strands[parent].tokens)
    while parent != PROMPT and at == 0:
        parent, at = strands[parent].parent, strands[parent].at
        if at == END and parent != PROMPT:
            at = len(strands[parent].tokens)
    return (parent, at) if parent != PROMPT else (PROMPT, 0)
