"""The Engine protocol: problems in, rollout trees out, with logprobs under the sampling policy. Torch-free.

An engine samples; it does not judge answers (`trainer.verifiers`) and gives no credit (`trainer.credit`).
Where a tree grows is decided by its `growth.Growth`, which every engine runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from trainer.data import Problem
from trainer.events import Occupancy
from trainer.guards import MemoryBesideError, OutOfRoomError
from trainer.sampling.flat import FlatGrowth
from trainer.sampling.fork_tree import ForkTreeGrowth
from trainer.sampling.growth import Ground, Growth, Vocabulary
from trainer.sampling.lookahead import LookaheadGrowth
from trainer.sampling.search_tree import SearchTreeGrowth
from trainer.sampling.segment_tree import SegmentTreeGrowth
from trainer.sampling.watch import GrowthWatch
from trainer.sampling.width_tree import WidthTreeGrowth
from trainer.schema.sampler import Sampler
from trainer.seeding import named_seed
from trainer.tree import RolloutTree
from trainer.verifiers import JudgeAnswer, JudgingStopped


class SamplingStopped(Exception):  # noqa: N818  # an orderly end, not an error
    """`should_stop` said so; the unfinished trees are given up."""


class EngineError(ValueError):
    """The engine cannot be had, or failed; the message says why and what to do."""


# What ends sampling on one of several ranks, and then on all of them for the same reason (`Ranks.together`).
ENDS: Final = (
    SamplingStopped,
    JudgingStopped,
    FloatingPointError,
    OutOfRoomError,
    MemoryBesideError,
    EngineError,
    ValueError,
)
# Of ranks that are one engine what all find alike, or what comes after the last token. One that fails alone
# leaves the others in the middle of a token, where they hear of nothing: it ends at once, and so do they.
SHARED_ENDS: Final = (SamplingStopped, JudgingStopped, FloatingPointError)

Attempt = Callable[[Callable[[], list[RolloutTree]]], list[RolloutTree]]


def attempt_once(sample: Callable[[], list[RolloutTree]]) -> list[RolloutTree]:
    """An `Attempt` that lets fail what fails; another one may try again with less at once."""
    return sample()


@dataclass(frozen=True, slots=True)
class Cut:
    """Tokens are drawn from the `top_k` most likely ones, and of these from the fewest whose share of their
    mass reaches `top_p` (0 to 1). Probabilities of what is kept are scaled up to 1.
    """

    top_k: int
    top_p: float = 1.0


class Plan(Protocol):
    """Which trees to grow."""

    @property
    def temperature(self) -> float:
        """Of sampling; the policy is trained at the same. 0: the most likely token always."""

    @property
    def cut(self) -> Cut | None:
        """What of the distribution is sampled from; None: all of it."""

    @property
    def most_tokens(self) -> int:
        """Longest answer."""

    @property
    def most_positions(self) -> int:
        """Most tokens that follow the prompt: an answer, and what is put before it."""

    def growth(self, ground: Ground) -> Growth:
        """A new tree."""


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """The shape of a segment tree; with one level, of so many independent answers.

    branching[d]: children of a node at depth d. segment_tokens[d]: most tokens of a segment at depth d + 1. A
    node that ended with EOS, or at the last level, is a leaf. temperature 0 takes the most likely token.
    """

    branching: tuple[int, ...]
    segment_tokens: tuple[int, ...]
    split_at_newline: bool
    temperature: float
    cut: Cut | None = None

    def __post_init__(self) -> None:
        if not self.branching or len(self.branching) != len(self.segment_tokens):
            raise ValueError(
                f"branching has {len(self.branching)} levels and segment_tokens {len(self.segment_tokens)}; "
                "give one number for every level to both."
            )
        if min(self.branching) < 1 or min(self.segment_tokens) < 1 or self.temperature < 0:
            raise ValueError(
                f"{self} has a number below its least: branching 1, segment_tokens 1, temperature 0."
            )

    @property
    def depth(self) -> int:
        return len(self.branching)

    @property
    def most_tokens(self) -> int:
        """Longest answer."""
        return sum(self.segment_tokens)

    @property
    def most_positions(self) -> int:
        return self.most_tokens

    def growth(self, ground: Ground) -> Growth:
        return SegmentTreeGrowth(
            ground,
            self.branching,
            self.segment_tokens,
            split=self.split_at_newline,
            greedy=self.temperature == 0,
        )


@dataclass(frozen=True, slots=True)
class SamplerPlan:
    """The trees of a sampler. `judge`: the verifier, for samplers that ask it while they sample."""

    sampler: Sampler
    judge: JudgeAnswer | None = None

    @property
    def temperature(self) -> float:
        return self.sampler.temperature

    @property
    def cut(self) -> Cut | None:
        return Cut(self.sampler.top_k, self.sampler.top_p) if self.sampler.top_k else None

    @property
    def most_tokens(self) -> int:
        return self.sampler.bounds.answer_tokens

    @property
    def most_positions(self) -> int:
        given = 0
        if self.sampler.kind == "flat" and self.sampler.budgets:
            # A token of text is a byte or more.
            sentence = self.sampler.budget_sentence
            given = max(
                len(sentence.replace("{budget}", str(budget)).encode()) for budget in self.sampler.budgets
            )
        return self.most_tokens + given

    def growth(self, ground: Ground) -> Growth:
        sampler = self.sampler
        if sampler.kind == "flat":
            return FlatGrowth(ground, sampler)
        if sampler.kind == "segment_tree" and sampler.max_width:
            return WidthTreeGrowth(ground, sampler)
        if sampler.kind == "segment_tree":
            return SegmentTreeGrowth(
                ground,
                sampler.branching,
                sampler.segment_tokens,
                split=sampler.split == "newline",
                repetition=(sampler.repetition_window, sampler.repetition_count),
            )
        if sampler.kind == "fork_tree":
            return ForkTreeGrowth(ground, sampler)
        if sampler.kind == "lookahead":
            return LookaheadGrowth(ground, sampler)
        if self.judge is None:
            raise ValueError("A search asks the verifier while it samples: make its plan with a judge.")
        return SearchTreeGrowth(ground, sampler, self.judge)


def plan_from_config(sampler: Sampler, judge: JudgeAnswer | None = None) -> SamplerPlan:
    """The plan of a run's training trees."""
    return SamplerPlan(sampler, judge)


@dataclass(frozen=True, slots=True)
class Spent:
    """What an engine has spent since it was made; the difference of two says what a call took.

    sampled     tokens drawn from the policy, whether or not they stand in a tree
    given       tokens put there instead of sampled (budgets)
    reread      tokens read a second time, because something starts inside a segment: one per such start
    """

    sampled: int = 0
    given: int = 0
    reread: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.sampled + other.sampled, self.given + other.given, self.reread + other.reread)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.sampled - other.sampled, self.given - other.given, self.reread - other.reread)


@dataclass(frozen=True, slots=True)
class TopK:
    """How many most likely tokens to keep beside each sampled one, and of what share of the trees."""

    count: int = 0
    share: float = 1.0

    def of(self, key: int) -> int:
        """Of the tree with this key (`Ground.key`, 64 random bits)."""
        return self.count if key < self.share * 2.0**64 else 0


NO_ALTERNATIVES = TopK()


@dataclass(frozen=True, slots=True)
class Helper:
    """A process that works for this one, up to its last answer: CPU seconds that it has spent, and the memory
    that it held at most (`parallel.memory_bytes`).
    """

    cpu_seconds: float = 0.0
    memory_bytes: int = 0


@dataclass(slots=True)
class EngineFigures:
    """What an engine did in one call of `sample`, and is at just now."""

    steps: int = 0
    sequences: int = 0  # written at the same time, summed over steps
    most_kv_use: float = 0.0  # share of the key-value memory
    prefix_tokens: int = 0  # of all requests
    read_tokens: int = 0  # of them computed, not found in the cache
    most_read: int = 0  # of one continuation
    cancelled: int = 0
    running: int = 0
    waiting: int = 0
    kv_use: float = 0.0

    def at_work(self, running: int, waiting: int, kv_use: float) -> None:
        """A step in which so many segments are written."""
        self.steps += 1
        self.sequences += running
        self.running, self.waiting, self.kv_use = running, waiting, kv_use
        self.most_kv_use = max(self.most_kv_use, kv_use)

    @classmethod
    def of_all(cls, parts: Sequence[EngineFigures]) -> EngineFigures:
        """Of engines that work side by side on one batch: of one it is the same."""
        return cls(
            steps=max((part.steps for part in parts), default=0),
            sequences=sum(part.sequences for part in parts),
            most_kv_use=max((part.most_kv_use for part in parts), default=0.0),
            prefix_tokens=sum(part.prefix_tokens for part in parts),
            read_tokens=sum(part.read_tokens for part in parts),
            most_read=max((part.most_read for part in parts), default=0),
            cancelled=sum(part.cancelled for part in parts),
            running=sum(part.running for part in parts),
            waiting=sum(part.waiting for part in parts),
            kv_use=sum(part.kv_use for part in parts) / max(len(parts), 1),
        )

    @property
    def cached_share(self) -> float:
        return 1 - self.read_tokens / max(self.prefix_tokens, 1)

    def metrics(self) -> dict[str, float]:
        """By metric name."""
        return {
            "engine/sequences": self.sequences / max(self.steps, 1),
            "engine/kv_use": self.most_kv_use,
            "engine/cached_share": self.cached_share,
            "engine/most_read_again": float(self.most_read),
        }

    def occupancy(self) -> Occupancy:
        return Occupancy(
            running=self.running,
            waiting=self.waiting,
            kv_use=self.kv_use,
            cached_share=min(max(self.cached_share, 0.0), 1.0),
        )


def ends_together(engine: Engine) -> tuple[type[Exception], ...]:
    """What all ranks say to one another of how they sampled."""
    return SHARED_ENDS if engine.is_shared else ENDS


class Engine(Protocol):
    """Samples trees from the policy whose weights it was last given."""

    @property
    def name(self) -> str: ...

    @property
    def is_shared(self) -> bool:
        """Whether all ranks of a run are one engine. Then all call `sample` together, each with its own
        problems, of which there may be none, and none of them alone can try anything again.
        """

    @property
    def spent(self) -> Spent:
        """What it has spent so far on the trees that were asked for here."""

    def sync(self) -> None:
        """Take over the policy's weights as they are now."""

    def rest(self) -> None:
        """Nothing is sampled for a while: what memory it can spare until then is the trainer's."""

    def halve_rows(self) -> tuple[int, int]:
        """From now on write at most half as many segments at once as so far: (before, now)."""

    def figures(self) -> dict[str, float]:
        """Metrics of the last call of `sample`; none if the engine has none of its own."""

    def occupancy(self) -> Occupancy | None:
        """What it is at just now; asked for by `on_progress`, in the thread that samples. None: not known."""

    def versions(self) -> dict[str, str]:
        """Versions of packages that it needs besides the trainer's."""

    def helpers(self) -> Sequence[Helper]:
        """Processes of its own; none if it samples in this one."""

    def close(self) -> None:
        """Give back what it holds. It is not used afterwards."""

    def sample(
        self,
        problems: Sequence[Problem],
        plan: Plan,
        *,
        seed: int,
        step: int,
        should_stop: Callable[[], bool],
        on_progress: Callable[[int, int], None],
        top_k: TopK = NO_ALTERNATIVES,
        watch: GrowthWatch | None = None,
    ) -> list[RolloutTree]:
        """One tree per problem, in their order; not verified, no credit. `top_k` and `watch` change no token.

        A tree depends on (seed, step, its problem, how often that problem came earlier in `problems`) and the
        weights, not on the other problems (up to rounding in the last bits of logits). `on_progress(done,
        total)` counts segments. Raises SamplingStopped soon (well under a second of work) after
        `should_stop()` turns true, and FloatingPointError when the policy's logits are not finite.
        """


def grounds(
    problems: Sequence[Problem],
    prompts: Sequence[Sequence[int]],
    vocabulary: Vocabulary,
    seed: int,
    step: int,
) -> list[Ground]:
    """What each problem's tree grows from; a problem that comes twice in a batch has two trees."""
    seen: Counter[str] = Counter()
    found = []
    for problem, prompt in zip(problems, prompts, strict=True):
        key = named_seed(seed, "tree", step, problem.problem_id, seen[problem.problem_id])
        seen[problem.problem_id] += 1
        found.append(Ground(problem, prompt, key, step, vocabulary))
    return found
