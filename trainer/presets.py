"""Named algorithms: each one choice per part, plus numbers. Nothing here runs; a preset is data.

Torch-free. "Tiny" presets fit the tiny reasoner and one CPU thread; their figures were measured with
`benchmarks/learning.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config import RunConfig
from trainer.schema.credit import (
    BernoulliVarianceScale,
    CreditConfig,
    GroupMeanBaseline,
    GroupStdScale,
    NoFilter,
    RangeFilter,
)
from trainer.schema.data import ChainData
from trainer.schema.sampler import FlatSampler, SegmentTreeSampler
from trainer.schema.training import TrainingConfig


@dataclass(frozen=True, slots=True)
class Preset:
    """A starting point for a run: `slug` names it in URLs and YAML, `formula` is what its run page shows."""

    slug: str
    title: str
    summary: str
    formula: str
    source: str
    config: RunConfig


_TREERPO = CreditConfig(
    backup="child_mean",
    baseline=GroupMeanBaseline(group="siblings"),
    scale=BernoulliVarianceScale(),
    spread="node",
    filter=RangeFilter(tau=0.1),
)
_GRPO = CreditConfig(
    backup="leaf_mean",
    baseline=GroupMeanBaseline(group="prompt"),
    scale=GroupStdScale(ddof=1, eps=1e-4),
    spread="trajectory",
    filter=NoFilter(),
)

PRESETS: dict[str, Preset] = {
    preset.slug: preset
    for preset in (
        Preset(
            slug="treerpo-tiny",
            title="TreeRPO · tiny",
            summary="Trees of reasoning lines; each line is compared with its siblings. Learns in a minute "
            "on one CPU core.",
            formula="A = (V − μ) / (μ(1 − μ)), μ = mean V of the siblings; groups with max V − min V ≤ τ are "
            "dropped",
            source="arXiv:2506.05183 eq. 4",
            config=RunConfig(
                preset="treerpo-tiny",
                data=ChainData(operations=5),
                sampler=SegmentTreeSampler(),
                credit=_TREERPO,
                training=TrainingConfig(problems_per_step=48, warmup_steps=10, microbatch_tokens=4096),
            ),
        ),
        Preset(
            slug="grpo-tiny",
            title="GRPO · tiny",
            summary="Eight independent answers per problem; each answer is compared with the group.",
            formula="A = (R − mean R) / (std R + ε) over the answers to one prompt",
            source="arXiv:2402.03300 §4.1.2",
            config=RunConfig(
                preset="grpo-tiny",
                data=ChainData(operations=5),
                sampler=FlatSampler(group_size=8, max_tokens=96),
                credit=_GRPO,
                training=TrainingConfig(problems_per_step=56, warmup_steps=10, microbatch_tokens=4096),
            ),
        ),
    )
}
