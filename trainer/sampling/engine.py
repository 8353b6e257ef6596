"""The Engine protocol: problems in, rollout trees out, with logprobs under the sampling policy. Torch-free.

An engine samples; it does not judge answers (`trainer.verifiers`) and gives no credit (`trainer.credit`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from trainer.data import Problem
from trainer.schema.sampler import Sampler
from trainer.tree import RolloutTree


class SamplingStopped(Exception):  # noqa: N818  # an orderly end, not an error
    """`should_stop` said so; the unfinished trees are given up."""


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """The shape of a tree.

    branching[d]: children of a node at depth d. segment_tokens[d]: most tokens of a segment at depth d + 1. A
    node that ended with EOS, or at the last level, is a leaf. temperature 0 takes the most likely token.
    """

    branching: tuple[int, ...]
    segment_tokens: tuple[int, ...]
    split_at_newline: bool
    temperature: float

    def __post_init__(self) -> None:
        if not self.branching or len(self.branching) != len(self.segment_tokens):
            raise ValueError(
                f"branching has {len(self.branching)} levels and segment_tokens {len(self.segment_tokens)}; "
                f"give one number "
                "for every level to both."
            )
        if min(self.branching) < 1 or min(self.segment_tokens) < 1 or self.temperature < 0:
            raise ValueError(
                f"{self} has a number below its least: branching 1, segment_tokens 1, temperature 0."
            )

    @property
    def depth(self) -> int:
        return len(self.branching)

    @property
    def most_nodes(self) -> int:
        """Segments of a tree in which no answer ends early."""
        nodes, width = 0, 1
        for children in self.branching:
            width *= children
            nodes += width
        return nodes

    @property
    def most_tokens(self) -> int:
        """Longest answer."""
        return sum(self.segment_tokens)


def plan_from_config(sampler: Sampler) -> SamplingPlan:
    """The plan of a run's training trees."""
    if sampler.kind == "flat":
        return SamplingPlan((sampler.group_size,), (sampler.max_tokens,), False, sampler.temperature)
    if sampler.kind != "segment_tree":
        raise NotImplementedError(sampler.kind)
    return SamplingPlan(
        branching=sampler.branching,
        segment_tokens=sampler.segment_tokens,
        split_at_newline=sampler.split == "newline",
        temperature=sampler.temperature,
    )


class Engine(Protocol):
    """Samples trees from the policy whose weights it was last given."""

    @property
    def name(self) -> str: ...

    def sync(self) -> None:
        """Take over the policy's weights as they are now."""

    def sample(
        self,
        problems: Sequence[Problem],
        plan: SamplingPlan,
        *,
        seed: int,
        step: int,
        should_stop: Callable[[], bool],
        on_progress: Callable[[int, int], None],
    ) -> list[RolloutTree]:
        """One tree per problem, in their order; not verified, no credit.

        A tree depends on (seed, step, its problem, how often that problem came earlier in `problems`) and the
        weights, not on the other problems (up to rounding in the last bits of logits). `on_progress(done,
        total)` counts nodes. Raises SamplingStopped soon (well under a second of work) after `should_stop()`
        turns true, and FloatingPointError when the policy's logits are not finite.
        """
