"""The samplers: which tree grows below a prompt, and the most that it can hold. Torch-free."""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from trainer.schema.section import Section, knob

MAX_NODES_PER_TREE: Final = 100_000


@dataclass(frozen=True, slots=True)
class TreeBounds:
    """The most that one tree can hold: segments, leaves, sampled tokens, tokens of its answers written out,
    and the longest answer in tokens. `per_depth`: segments at depth 1, 2, ...; empty where depth has no plan.
    """

    nodes: int
    leaves: int
    tokens: int
    flat_tokens: int
    answer_tokens: int
    per_depth: tuple[int, ...] = ()


CUTS: Final = ("min_p",)


def why_no_cut(name: str) -> str:
    """Why a setting that people look for in a sampler is not there, and what to do."""
    return (
        f"{name} may keep any number of tokens, and what each token was drawn from is kept for its ratio. "
        f"Leave {name} out; set top_k, and top_p if you like, or a lower temperature."
    )


Temperature = Annotated[
    float,
    Field(
        gt=0,
        le=2,
        title="Temperature",
        description="1 samples from the policy itself. The policy is trained at the same temperature.",
        json_schema_extra={"unit": "", "advanced": True},
    ),
]


TopKCut = Annotated[
    int,
    Field(
        ge=0,
        le=512,
        title="Top-k",
        description="Tokens are drawn from the k most likely ones; the policy is trained as drawing from "
        "just these (sampling mask), so that ratios stay right. 0: from all. Evaluations are not cut off.",
        json_schema_extra={"unit": "tokens", "advanced": True},
    ),
]
TopP = Annotated[
    float,
    Field(
        gt=0,
        le=1,
        title="Top-p",
        description="Of the k most likely tokens the fewest whose share of their probability reaches p. "
        "Needs top_k, which bounds what is remembered of every token.",
        json_schema_extra={"unit": "", "advanced": True},
    ),
]


class SamplerSection(Section):
    """What all samplers have in common: the distribution that tokens are drawn from."""

    temperature: Temperature = 1.0
    top_k: TopKCut = 0
    top_p: TopP = 1.0

    @model_validator(mode="after")
    def _top_p_is_bounded(self) -> Self:
        if self.top_p < 1 and not self.top_k:
            raise ValueError(
                f"top_p {self.top_p:g} needs top_k: what each token was drawn from is remembered, and "
                "without top_k that may be all of the vocabulary. Set top_k 1 to 512 (papers take 50 or "
                "100), or top_p 1."
            )
        return self


class FlatSampler(SamplerSection):
    """G independent answers per problem: a tree of depth one (GRPO and its relatives)."""

    kind: Literal["flat"] = "flat"
    group_size: int = knob(
        8, title="Group size", unit="answers", description="Answers sampled per problem (G).", ge=2, le=512
    )
    max_tokens: int = knob(
        96,
        title="Answer length",
        unit="tokens",
        description="An answer that has not ended after this many tokens is cut off and counts as truncated.",
        ge=1,
        le=32768,
    )
    merge: Literal["none", "newline"] = knob(
        "none",
        title="Merge equal prefixes",
        description="Cut the answers at line breaks and merge equal beginnings into one node each, so that "
        "equal states can be compared (step-grpo).",
        advanced=True,
    )
    budgets: tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...] = knob(
        (),
        title="Token budgets",
        unit="tokens",
        description="Announce a budget to each of so many equal subgroups of the answers (HBPO). Empty: "
        "none.",
        max_length=16,
        advanced=True,
    )
    budget_sentence: str = knob(
        "Answer in {budget} tokens.\n",
        title="Budget sentence",
        description="Follows the prompt; {budget} stands for the number.",
        max_length=500,
        advanced=True,
    )

    @model_validator(mode="after")
    def _budgets_fit(self) -> Self:
        if self.budgets and self.group_size % len(self.budgets):
            raise ValueError(
                f"group_size {self.group_size} does not divide into {len(self.budgets)} equal budget groups. "
                f"Use a multiple of {len(self.budgets)}."
            )
        if self.budgets and self.group_size < 2 * len(self.budgets):
            raise ValueError("Every budget needs two answers or more. Raise group_size.")
        if self.budgets and "{budget}" not in self.budget_sentence:
            raise ValueError("budget_sentence has no {budget} in it. Add it.")
        if self.budgets and self.merge != "none":
            raise ValueError("Answers to different budgets cannot be merged. Set merge to none.")
        return self

    @property
    def bounds(self) -> TreeBounds:
        tokens = self.group_size * self.max_tokens
        nodes = self.group_size + len(self.budgets)
        if self.merge == "newline":
            nodes = tokens
        return TreeBounds(nodes, self.group_size, tokens, tokens, self.max_tokens, (self.group_size,))


class SegmentTreeSampler(SamplerSection):
    """Every live segment gets continuations, level by level, down to `depth` (TreeRPO §3.1); with a width, as
    many as its share of the free places (TreePO §2.2)."""

    kind: Literal["segment_tree"] = "segment_tree"
    depth: int = knob(
        3, title="Depth", unit="levels", description="Segments from root to leaf (D).", ge=1, le=64
    )
    branching_per_depth: tuple[Annotated[int, Field(ge=1, le=64)], ...] = knob(
        (4, 2, 2),
        title="Branching",
        unit="children",
        description="Continuations of every segment (N): one number for all depths, or one per depth, as in "
        "4, 2, 2.",
        min_length=1,
        max_length=64,
    )
    segment_tokens_per_depth: tuple[Annotated[int, Field(ge=1, le=32768)], ...] = knob(
        (16, 16, 64),
        title="Segment length",
        unit="tokens",
        description="Most tokens of a segment (L): one number for all depths, or one per depth.",
        min_length=1,
        max_length=64,
    )
    split: Literal["newline", "none"] = knob(
        "newline",
        title="Split at",
        description="End a segment early at a line break, so that one segment is one line of reasoning. "
        "The last level never splits.",
    )
    max_width: int = knob(
        0,
        title="Width",
        unit="leaves",
        description="Most answers per tree (w); live paths share the free places. 0: no limit.",
        ge=0,
        le=4096,
        advanced=True,
    )
    root_branching_max: int = knob(
        0,
        title="Most root children",
        unit="children",
        description="The root gets a random number of children from its branching to this (TreePO's more "
        "init divergence). 0: always its branching. Needs a width.",
        ge=0,
        le=64,
        advanced=True,
    )
    transfer_budget: bool = knob(
        True,
        title="Transfer budget",
        description="Places of paths that ended go to the live ones. Needs a width.",
        advanced=True,
    )
    fallback: Literal["none", "random"] = knob(
        "none",
        title="Fallback",
        description="When all paths of a prompt ended before its width is reached: start again from a random "
        "earlier boundary of an ended answer (TreePO). Needs a width.",
        advanced=True,
    )
    repetition_window: int = knob(
        0,
        title="Repetition window",
        unit="letters",
        description="End a path when some window of so many letters comes too often in a segment (TreePO: "
        "32). 0: never.",
        ge=0,
        le=1000,
        advanced=True,
    )
    repetition_count: int = knob(
        8,
        title="Repetitions",
        unit="times",
        description="How often is too often.",
        ge=2,
        le=1000,
        advanced=True,
    )

    @model_validator(mode="after")
    def _lengths_fit_depth(self) -> Self:
        for label, values in (
            ("branching_per_depth", self.branching_per_depth),
            ("segment_tokens_per_depth", self.segment_tokens_per_depth),
        ):
            if len(values) not in (1, self.depth):
                raise ValueError(
                    f"{label} has {len(values)} numbers but depth is {self.depth}. "
                    f"Give one number for all depths, or exactly {self.depth}."
                )
        if max(self.branching) < 2:
            raise ValueError(
                "branching_per_depth is 1 all the way down, so no two siblings can be compared. Use 2 or "
                "more somewhere."
            )
        if not self.max_width and (self.root_branching_max or self.fallback != "none"):
            raise ValueError("root_branching_max and fallback need a width. Set max_width.")
        if self.root_branching_max and self.root_branching_max < self.branching[0]:
            raise ValueError(
                f"root_branching_max {self.root_branching_max} is less than the root's branching "
                f"{self.branching[0]}."
            )
        nodes = self.bounds.nodes
        if nodes > MAX_NODES_PER_TREE:
            raise ValueError(
                f"branching {list(self.branching)} makes up to {nodes:,} nodes per tree; at most "
                f"{MAX_NODES_PER_TREE:,} are allowed. Lower branching or depth."
            )
        return self

    @property
    def branching(self) -> tuple[int, ...]:
        """Children per node at depth 0, 1, ..., depth-1."""
        values = self.branching_per_depth
        return values * self.depth if len(values) == 1 else values

    @property
    def segment_tokens(self) -> tuple[int, ...]:
        """Most tokens of a segment at depth 1, 2, ..., depth."""
        values = self.segment_tokens_per_depth
        return values * self.depth if len(values) == 1 else values

    @property
    def bounds(self) -> TreeBounds:
        per_depth, width = [], 1
        for number, children in enumerate(self.branching):
            width *= max(children, self.root_branching_max) if number == 0 else children
            if self.max_width:
                width = min(width, self.max_width)
            per_depth.append(width)
        tokens = sum(n * length for n, length in zip(per_depth, self.segment_tokens, strict=True))
        answer = sum(self.segment_tokens)
        if self.fallback != "none":  # restarts may fill the width with answers of full length
            tokens = max(tokens, self.max_width * answer)
        return TreeBounds(sum(per_depth), width, tokens, width * answer, answer, tuple(per_depth))


class SurprisalForks(Section):
    """Fork before the tokens with the largest -log p (TreeRL's EPTree, which calls it entropy)."""

    kind: Literal["surprisal"] = "surprisal"


class EntropyForks(Section):
    """Fork before tokens whose distribution has an entropy above a threshold, the largest first (TreeAdv)."""

    kind: Literal["entropy"] = "entropy"
    threshold: float = knob(
        0.5,
        title="Entropy threshold",
        unit="nats",
        description="The paper's value is not known.",
        ge=0,
        le=20,
    )


class UniformForks(Section):
    """Fork at line breaks chosen uniformly, with replacement, among the root and all inner nodes
    (Tree-GRPO)."""

    kind: Literal["uniform"] = "uniform"


class ForkTreeSampler(SamplerSection):
    """M full answers per problem; then, in each of so many rounds, N fork points per tree and T full
    continuations from each (TreeRL §3, Tree-GRPO, TreeAdv)."""

    kind: Literal["fork_tree"] = "fork_tree"
    score: Annotated[SurprisalForks | EntropyForks | UniformForks, Field(discriminator="kind")] = knob(
        SurprisalForks(), title="Fork at", description="How fork points are chosen."
    )
    trees: int = knob(
        4, title="First answers (M)", unit="answers", description="One tree grows from each.", ge=1, le=512
    )
    rounds: int = knob(1, title="Rounds (L)", unit="rounds", description="Of forking.", ge=1, le=64)
    forks: int = knob(
        2, title="Forks (N)", unit="per tree", description="Fork points per round and tree.", ge=1, le=64
    )
    continuations: int = knob(
        1,
        title="Continuations (T)",
        unit="per fork",
        description="New answers from each fork point.",
        ge=1,
        le=64,
    )
    max_tokens: int = knob(
        96,
        title="Answer length",
        unit="tokens",
        description="An answer that has not ended after this many tokens is cut off and counts as truncated.",
        ge=1,
        le=32768,
    )
    never_after: str = knob(
        "####",
        title="Never fork after",
        description="Comma-separated words; behind the token that completes one a path is not forked "
        "(TreeRL: conclusion, answer). Empty: anywhere.",
        max_length=500,
        advanced=True,
    )

    @property
    def bounds(self) -> TreeBounds:
        leaves = self.trees * (1 + self.rounds * self.forks * self.continuations)
        tokens = leaves * self.max_tokens
        # Every fork cuts one segment in two and adds its continuations.
        nodes = leaves + self.trees * self.rounds * self.forks
        return TreeBounds(nodes, leaves, tokens, tokens, self.max_tokens)


class LookaheadSampler(SamplerSection):
    """LATR (arXiv:2510.24302): every branch goes on with its most likely token; where the runner-up is nearly
    as likely a new branch opens; branches that look like their parent some tokens later are dropped; then all
    are finished by ordinary sampling."""

    kind: Literal["lookahead"] = "lookahead"
    group_size: int = knob(8, title="Answers (k)", unit="answers", description="Per problem.", ge=2, le=512)
    max_tokens: int = knob(
        96,
        title="Answer length",
        unit="tokens",
        description="An answer that has not ended after this many tokens is cut off and counts as truncated.",
        ge=1,
        le=32768,
    )
    candidates: int = knob(
        2, title="Candidates (m)", unit="tokens", description="Most likely tokens that may fork.", ge=2, le=16
    )
    min_probability: float = knob(
        0.05,
        title="Least probability",
        description="A fork's token must be likelier than this (tau_abs).",
        ge=0,
        lt=1,
    )
    max_gap: float = knob(
        0.95,
        title="Largest gap",
        description="P(best) - P(fork) must be less than this (tau_rel).",
        gt=0,
        le=1,
    )
    overflow: Literal["probability", "rank"] = knob(
        "probability",
        title="Forks that do not fit",
        description="Who gets the free places. probability: the most likely tokens (paper). rank: "
        "second-best tokens before third-best, then earlier branches (released code).",
        advanced=True,
    )
    windows: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = knob(
        (4, 8),
        title="Lookahead windows",
        unit="tokens",
        description="After so many tokens a branch is compared with its parent.",
        min_length=1,
        max_length=16,
    )
    similarity: Literal["edit", "suffix_match", "rouge_l"] = knob(
        "edit",
        title="Similarity",
        description="edit: drop below the threshold of edit distance / window; suffix_match and "
        "rouge_l: drop above it.",
        advanced=True,
    )
    threshold: float = knob(0.4, title="Prune threshold", description="Of the similarity.", ge=0, le=1)
    tree_tokens: int = knob(
        48, title="Tree phase", unit="tokens", description="Most tokens of the forking phase.", ge=1, le=32768
    )
    tree_share: float = knob(
        1.0,
        title="Tree share (eta)",
        description="Share of the answers that come from the tree at step 1.",
        ge=0,
        le=1,
    )
    tree_share_decay: float = knob(
        0.99,
        title="Tree share decay (gamma)",
        unit="per step",
        description="eta_i = eta gamma^i (paper). 1: no annealing. Not used with a table.",
        gt=0,
        le=1,
        advanced=True,
    )
    tree_share_steps: tuple[Annotated[int, Field(ge=0)], ...] = knob(
        (),
        title="Tree share table: steps",
        unit="steps",
        description="Steps from which on eta is multiplied by the table's share instead of gamma^i (released "
        "code: 0, 10, 20, 80, 200). Empty: no table.",
        max_length=64,
        advanced=True,
    )
    tree_share_values: tuple[Annotated[float, Field(ge=0, le=1)], ...] = knob(
        (),
        title="Tree share table: shares",
        description="One for each of its steps (released code: 1, 0.75, 0.5, 0.25, 0).",
        max_length=64,
        advanced=True,
    )

    @model_validator(mode="after")
    def _table_is_whole(self) -> Self:
        steps = self.tree_share_steps
        if len(steps) != len(self.tree_share_values):
            raise ValueError(
                f"tree_share_steps has {len(steps)} entries and tree_share_values "
                f"{len(self.tree_share_values)}. Give one share for each step."
            )
        if steps and (steps[0] > 1 or any(b <= a for a, b in itertools.pairwise(steps))):
            raise ValueError("tree_share_steps must rise and begin at 0 or 1: every step needs a share.")
        return self

    def tree_share_at(self, step: int) -> float:
        """eta of a step, counted from 1: eta gamma^(step - 1), or eta times the table's share."""
        if not self.tree_share_steps:
            return self.tree_share * self.tree_share_decay ** max(step - 1, 0)
        at = bisect.bisect_right(self.tree_share_steps, max(step, 1)) - 1
        return self.tree_share * self.tree_share_values[at]

    @property
    def bounds(self) -> TreeBounds:
        tokens = self.group_size * self.max_tokens
        return TreeBounds(2 * self.group_size, self.group_size, tokens, tokens, self.max_tokens)


class PuctSelect(Section):
    """Q + w p sqrt(N_parent) / (1 + N), p = exp(sum log p / length^lambda) (MCTS-DPO)."""

    kind: Literal["puct"] = "puct"
    weight: float = knob(1.0, title="Exploration (w)", description="Weight of the prior term.", ge=0, le=100)
    length_power: float = knob(
        1.25,
        title="Prior length power (lambda)",
        description="Length penalty of the prior.",
        ge=0,
        le=4,
        advanced=True,
    )


class UctSelect(Section):
    """V + c sqrt(2 ln N_parent / N), unvisited: V + 1 (ReST-MCTS*)."""

    kind: Literal["uct"] = "uct"
    weight: float = knob(0.7, title="Exploration (c)", description="Weight of the visit term.", ge=0, le=100)
    roll_forward: int = knob(
        3,
        title="Roll forward",
        unit="segments",
        description="Greedy steps from the best new child.",
        ge=0,
        le=16,
    )
    roll_share: float = knob(
        0.5,
        title="Roll share (alpha)",
        description="V becomes (1 - alpha) V + alpha max V seen.",
        ge=0,
        le=1,
        advanced=True,
    )
    stop_value: float = knob(
        0.9,
        title="Stop value",
        description="The search ends when a value reaches this.",
        gt=0,
        le=1,
        advanced=True,
    )


class SearchTreeSampler(SamplerSection):
    """Monte Carlo tree search over segments. Unlike all other samplers it asks the verifier while it
    samples."""

    kind: Literal["search_tree"] = "search_tree"
    select: Annotated[PuctSelect | UctSelect, Field(discriminator="kind")] = knob(
        PuctSelect(), title="Selection", description="Which node is expanded next."
    )
    iterations: int = knob(
        16,
        title="Iterations",
        unit="per decision",
        description="Expansions before a segment is committed (puct), or in all (uct).",
        ge=1,
        le=4096,
    )
    expand: int = knob(
        3,
        title="Children",
        unit="children",
        description="Segments sampled when a node is expanded; equal ones count once.",
        ge=2,
        le=64,
    )
    depth: int = knob(
        3, title="Depth", unit="levels", description="The last level completes the answer.", ge=2, le=64
    )
    segment_tokens: int = knob(
        16,
        title="Segment length",
        unit="tokens",
        description="Most tokens of a segment that is not the last.",
        ge=1,
        le=32768,
    )
    last_tokens: int = knob(
        64,
        title="Last segment",
        unit="tokens",
        description="Most tokens of a segment of the last level.",
        ge=1,
        le=32768,
    )
    split: Literal["newline", "none"] = knob(
        "newline", title="Split at", description="End a segment early at a line break."
    )
    evaluator: Literal["rollout", "value_head"] = knob(
        "rollout",
        title="Node score",
        description="rollout: one sampled completion is verified. value_head: the value model, which is "
        "trained with the policy. (MCTS-DPO's own self-evaluation needs a model that can judge itself.)",
    )

    @property
    def bounds(self) -> TreeBounds:
        # Each node is expanded once, so the full tree bounds the nodes, however many iterations there are.
        per_depth = [min(self.expand**level, MAX_NODES_PER_TREE) for level in range(1, self.depth + 1)]
        most = self.iterations * self.expand if self.select.kind == "uct" else MAX_NODES_PER_TREE
        nodes = min(sum(per_depth), most, MAX_NODES_PER_TREE)
        leaves = min(per_depth[-1], nodes)
        answer = (self.depth - 1) * self.segment_tokens + self.last_tokens
        # Completions and ways forward that only score are not part of the tree, but they are sampled.
        tokens = nodes * max(self.segment_tokens, self.last_tokens)
        if self.evaluator == "rollout":
            tokens += nodes * answer
        if self.select.kind == "uct":
            way = self.segment_tokens + (answer if self.evaluator == "rollout" else 0)
            tokens += self.iterations * self.select.roll_forward * way
        return TreeBounds(nodes, leaves, tokens, leaves * answer, answer)


Sampler = Annotated[
    FlatSampler | SegmentTreeSampler | ForkTreeSampler | LookaheadSampler | SearchTreeSampler,
    Field(discriminator="kind"),
]
