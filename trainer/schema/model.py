"""The policy's knobs: base model and what of it is trained. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.schema.section import Section, knob


class FullWeights(Section):
    """All weights of the policy are trained."""

    kind: Literal["full"] = "full"


class LoraAdapter(Section):
    """Only low-rank updates of the linear layers are trained (LoRA, arXiv:2106.09685)."""

    kind: Literal["lora"] = "lora"
    rank: int = knob(16, title="LoRA rank", description="Rank of each update.", ge=1, le=1024)
    alpha: int = knob(
        32,
        title="LoRA alpha",
        description="The update is scaled by alpha / rank.",
        ge=1,
        le=4096,
        advanced=True,
    )


class ModelConfig(Section):
    """The policy before its first step."""

    path: str = knob(
        "tiny-reasoner",
        title="Base model",
        description="`tiny-reasoner`, or a folder with config.json, tokenizer and safetensors weights.",
        min_length=1,
        max_length=1024,
    )
    adapter: Annotated[FullWeights | LoraAdapter, Field(discriminator="kind")] = knob(
        FullWeights(), title="Trained weights", description="What the optimiser may change.", advanced=True
    )
