"""RunConfig: every knob of a run, with its bounds, unit and reason.

The one list of fields in Arborist (design decision "one config schema"): the browser form, the YAML file, the
API and the trainer all read this module. It holds no defaults for a whole algorithm; those are presets
(`presets.py`). Torch-free: a web process imports it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA_VERSION: Final = 1


class Section(BaseModel):
    """A frozen group of knobs that refuses unknown keys and non-finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_max_length=4096)


def knob(default: Any = ..., *, unit: str = "", advanced: bool = False, **constraints: Any) -> Any:
    """A pydantic field with what the form needs beside bounds: its unit, and whether it hides under
    "Advanced".

    `Any` because pydantic's own `Field` is typed so: the value is a default or a field description.
    """
    return Field(default, json_schema_extra={"unit": unit, "advanced": advanced}, **constraints)


# ---------------------------------------------------------------------------------------------------- model
# and data


class ModelConfig(Section):
    """The policy before its first step."""

    path: str = knob(
        "tiny-reasoner",
        title="Base model",
        description="`tiny-reasoner`, or a folder with config.json, tokenizer and safetensors weights.",
        min_length=1,
        max_length=1024,
    )


class ChainData(Section):
    """Generated arithmetic problems of so many operations; training and evaluation never share one."""

    kind: Literal["chain"] = "chain"
    operations: int = knob(
        5,
        title="Operations",
        unit="per problem",
        description="Length of the chain: how many sums a solution takes. The tiny reasoner knows 3 to 8.",
        ge=1,
        le=12,
    )


class JsonlData(Section):
    """Problems from a local JSONL file in GSM8K form: one object per line with `question` and `answer`."""

    kind: Literal["jsonl"] = "jsonl"
    path: str = knob(
        title="File",
        description="A JSONL file; `answer` ends with `#### ` and the reference answer.",
        min_length=1,
        max_length=1024,
    )
    evaluation_share: float = knob(
        0.1,
        title="Evaluation share",
        description="Share of the problems held out for evaluation, chosen by the hash of the question.",
        gt=0,
        lt=1,
        advanced=True,
    )


Data = Annotated[ChainData | JsonlData, Field(discriminator="kind")]


class Gsm8kVerifier(Section):
    """Compares the text after the last `#### ` with the reference answer; reward 1 if equal, else 0."""

    kind: Literal["gsm8k"] = "gsm8k"


Verifier = Gsm8kVerifier


# ----------------------------------------------------------------------------------------------------
# sampling


class FlatSampler(Section):
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
    temperature: float = knob(
        1.0,
        title="Temperature",
        description="1 samples from the policy itself. The policy is trained at the same temperature.",
        gt=0,
        le=2,
        advanced=True,
    )

    @property
    def branching(self) -> tuple[int, ...]:
        return (self.group_size,)

    @property
    def segment_tokens(self) -> tuple[int, ...]:
        return (self.max_tokens,)

    @property
    def split(self) -> str:
        return "none"


class SegmentTreeSampler(Section):
    """Every live segment gets `branching` continuations, level by level, down to `depth` (TreeRPO §3.1)."""

    kind: Literal["segment_tree"] = "segment_tree"
    depth: int = knob(
        3, title="Depth", unit="levels", description="Segments from root to leaf (D).", ge=1, le=16
    )
    branching_per_depth: tuple[Annotated[int, Field(ge=1, le=64)], ...] = knob(
        (4, 2, 2),
        title="Branching",
        unit="children",
        description="Continuations of every segment (N): one number for all depths, or one per depth, as in "
        "4, 2, 2.",
        min_length=1,
        max_length=16,
    )
    segment_tokens_per_depth: tuple[Annotated[int, Field(ge=1, le=32768)], ...] = knob(
        (16, 16, 64),
        title="Segment length",
        unit="tokens",
        description="Most tokens of a segment (L): one number for all depths, or one per depth.",
        min_length=1,
        max_length=16,
    )
    split: Literal["newline", "none"] = knob(
        "newline",
        title="Split at",
        description="End a segment early at a line break, so that one segment is one line of reasoning. "
        "The last level never splits.",
    )
    temperature: float = knob(
        1.0,
        title="Temperature",
        description="1 samples from the policy itself. The policy is trained at the same temperature.",
        gt=0,
        le=2,
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
                "branching is 1 at every depth, so no two siblings can be compared. Use 2 or more somewhere."
            )
        nodes, width = 0, 1
        for children in self.branching:
            width *= children
            nodes += width
        if nodes > MAX_NODES_PER_TREE:
            raise ValueError(
                f"branching {list(self.branching)} makes up to {nodes:,} nodes per tree; at most "
                f"{MAX_NODES_PER_TREE:,} "
                "are allowed. Lower branching or depth."
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


MAX_NODES_PER_TREE = 100_000
Sampler = Annotated[FlatSampler | SegmentTreeSampler, Field(discriminator="kind")]


# ---------------------------------------------------------------------------------------------------- credit


class NoScale(Section):
    """A = V - mu."""

    kind: Literal["none"] = "none"


class GroupStdScale(Section):
    """A = (V - mu) / (std + eps), the group's standard deviation (GRPO)."""

    kind: Literal["group_std"] = "group_std"
    ddof: Literal[0, 1] = knob(
        1, title="Degrees of freedom", description="1 divides by n-1 (verl, TRL), 0 by n.", advanced=True
    )
    eps: float = knob(
        1e-4, title="Epsilon", description="Added to the standard deviation.", ge=0, le=1, advanced=True
    )


class BernoulliVarianceScale(Section):
    """A = (V - mu) / (mu (1 - mu)): the Bernoulli variance, not its root (TreeRPO eq. 4)."""

    kind: Literal["bernoulli_variance"] = "bernoulli_variance"


Scale = Annotated[NoScale | GroupStdScale | BernoulliVarianceScale, Field(discriminator="kind")]


class NoFilter(Section):
    """Every group trains; the advantages of an all-equal group are 0, so it pushes nowhere."""

    kind: Literal["none"] = "none"


class RangeFilter(Section):
    """A group trains only if max V - min V > tau (TreeRPO §3.3)."""

    kind: Literal["range"] = "range"
    tau: float = knob(
        0.1,
        title="Range filter (tau)",
        description="Groups whose values differ by no more than this are dropped.",
        ge=0,
        lt=1,
    )


GroupFilter = Annotated[NoFilter | RangeFilter, Field(discriminator="kind")]


class CreditConfig(Section):
    """From leaf rewards to one advantage per segment: value backup, baseline group, scale, spread, filter."""

    backup: Literal["child_mean", "leaf_mean"] = knob(
        "child_mean",
        title="Value backup",
        description="Value of a segment: mean over its children (TreeRPO), or over all leaves below it.",
    )
    group: Literal["siblings", "prompt"] = knob(
        "siblings",
        title="Baseline group",
        description="What a segment is compared with: its siblings, or all leaves of the prompt (GRPO).",
    )
    scale: Scale = knob(
        BernoulliVarianceScale(), title="Scale", description="What the centred value is divided by."
    )
    spread: Literal["node", "trajectory"] = knob(
        "node",
        title="Spread",
        description="Which tokens get an advantage: each segment its own, or the whole path that of its "
        "leaf.",
    )
    filter: GroupFilter = knob(
        RangeFilter(), title="Group filter", description="Groups that are left out of training."
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.scale.kind == "bernoulli_variance" and self.filter.kind != "range":
            raise ValueError(
                "scale bernoulli_variance divides by mu(1 - mu), which is 0 for an all-equal group. Set the "
                "filter to `range`."
            )
        if (self.spread == "node") != (self.group == "siblings"):
            raise ValueError(
                f"spread {self.spread} with baseline group {self.group} is not defined. "
                "Use siblings with node, or prompt with trajectory."
            )
        return self


# ---------------------------------------------------------------------------------------------------- update
# and rest


class ObjectiveConfig(Section):
    """PPO-clip on token ratios: min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)."""

    clip_low: float = knob(
        0.2,
        title="Clip low",
        description="Ratios below 1 minus this stop pulling down.",
        gt=0,
        lt=1,
        advanced=True,
    )
    clip_high: float = knob(
        0.2,
        title="Clip high",
        description="Ratios above 1 plus this stop pushing up.",
        gt=0,
        le=10,
        advanced=True,
    )
    aggregate: Literal["token_mean", "sequence_mean"] = knob(
        "token_mean",
        title="Loss mean",
        description="Mean over all trained tokens of the batch, or first over each segment (or answer), then "
        "over those.",
        advanced=True,
    )


class TrainingConfig(Section):
    """Steps and the optimiser (AdamW)."""

    steps: int = knob(
        150, title="Steps", unit="steps", description="Sample-and-update rounds.", ge=1, le=1_000_000
    )
    problems_per_step: int = knob(
        48,
        title="Problems per step",
        unit="trees",
        description="One tree is sampled for each.",
        ge=1,
        le=4096,
    )
    learning_rate: float = knob(3e-4, title="Learning rate", description="Peak, after warm-up.", gt=0, le=0.1)
    warmup_steps: int = knob(
        0,
        title="Warm-up",
        unit="steps",
        description="Linear rise of the learning rate.",
        ge=0,
        le=100_000,
        advanced=True,
    )
    weight_decay: float = knob(
        0.0, title="Weight decay", description="AdamW's decoupled decay.", ge=0, le=1, advanced=True
    )
    max_grad_norm: float = knob(
        1.0,
        title="Gradient clip",
        description="Gradients above this norm are scaled down.",
        gt=0,
        le=1000,
        advanced=True,
    )
    updates_per_step: int = knob(
        1,
        title="Updates per step",
        unit="updates",
        description="Optimiser steps per sampled batch; with 1 training is exactly on-policy and nothing "
        "clips.",
        ge=1,
        le=64,
        advanced=True,
    )
    microbatch_tokens: int = knob(
        32768,
        title="Micro-batch",
        unit="tokens",
        description="Padded tokens per forward pass. Lower it when memory is short; results change only by "
        "rounding.",
        ge=64,
        le=10_000_000,
        advanced=True,
    )


class EvaluationConfig(Section):
    """Held-out accuracy, greedy and sampled, with Wilson intervals."""

    every_steps: int = knob(
        10,
        title="Evaluate every",
        unit="steps",
        description="Also before the first step and after the last. 0: only those two.",
        ge=0,
        le=1_000_000,
    )
    problems: int = knob(
        128,
        title="Evaluation problems",
        unit="problems",
        description="Held out; the same ones every time.",
        ge=1,
        le=100_000,
    )


class CheckpointConfig(Section):
    """What is kept to continue from."""

    every_steps: int = knob(
        25,
        title="Checkpoint every",
        unit="steps",
        description="Also at the end and when stopped. 0: only then.",
        ge=0,
        le=1_000_000,
        advanced=True,
    )
    keep_last: int = knob(
        3,
        title="Keep",
        unit="checkpoints",
        description="Older ones are deleted.",
        ge=1,
        le=1000,
        advanced=True,
    )


class RecordingConfig(Section):
    """What is stored for looking at; never changes training."""

    trees_per_step: int = knob(
        48,
        title="Trees kept",
        unit="per step",
        description="Trees stored of each step, the first ones of the batch. 0: none.",
        ge=0,
        le=4096,
        advanced=True,
    )


class ResourceConfig(Section):
    """Where the run is queued."""

    queue: Literal["cpu", "gpu"] = knob(
        "cpu", title="Worker queue", description="Which workers may take the run.", advanced=True
    )


class RunConfig(Section):
    """A complete run. A launched run stores exactly this, and it never changes again."""

    schema_version: Literal[1] = SCHEMA_VERSION
    preset: str = knob(
        "treerpo-tiny",
        title="Preset",
        description="The preset this config started from.",
        pattern=r"^[a-z0-9-]{1,64}$",
    )
    seed: int = knob(
        1,
        title="Seed",
        description="Same seed, same machine: same numbers, bit for bit (CPU).",
        ge=0,
        le=2**31 - 1,
    )
    model: ModelConfig = ModelConfig()
    data: Data = ChainData()
    verifier: Verifier = Gsm8kVerifier()
    sampler: Sampler = SegmentTreeSampler()
    credit: CreditConfig = CreditConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    recording: RecordingConfig = RecordingConfig()
    resources: ResourceConfig = ResourceConfig()

    @model_validator(mode="after")
    def _batch_is_bounded(self) -> Self:
        leaves = self.training.problems_per_step
        for children in self.sampler.branching:
            leaves *= children
        tokens = leaves * sum(self.sampler.segment_tokens)
        if tokens > MAX_TOKENS_PER_STEP:
            raise ValueError(
                f"one step could sample {tokens:,} tokens ({leaves:,} leaves); at most "
                f"{MAX_TOKENS_PER_STEP:,} are allowed. "
                "Lower training.problems_per_step, the branching or the segment length."
            )
        return self

    def sha256(self) -> str:
        """Hash of the canonical JSON: equal configs, equal hash."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


MAX_TOKENS_PER_STEP = 500_000_000
