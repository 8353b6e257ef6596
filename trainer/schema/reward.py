"""From a verdict to the reward of a leaf. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainer.schema.section import Section, knob


class NoShaping(Section):
    """The reward is what the verdict says."""

    kind: Literal["none"] = "none"


class OverlongShaping(Section):
    """Soft penalty near the length limit: min(0, (max - buffer - length) / buffer) * factor (DAPO §3.4)."""

    kind: Literal["overlong"] = "overlong"
    max_tokens: int = knob(
        96,
        title="Longest answer",
        unit="tokens",
        description="Where the penalty is complete.",
        ge=2,
        le=1_000_000,
    )
    buffer_tokens: int = knob(
        24,
        title="Buffer",
        unit="tokens",
        description="The penalty grows over the last so many tokens.",
        ge=1,
        le=1_000_000,
    )
    factor: float = knob(
        1.0, title="Penalty", description="At the longest answer.", gt=0, le=10, advanced=True
    )

    @model_validator(mode="after")
    def _buffer_fits(self) -> Self:
        if self.buffer_tokens >= self.max_tokens:
            raise ValueError(
                f"buffer_tokens {self.buffer_tokens} must be smaller than max_tokens {self.max_tokens}."
            )
        return self


class BudgetShaping(Section):
    """HBPO's reward by token budget b: correct within it beta cos(pi b / 2 L), beyond it
    beta cos(pi length / 2 L) - alpha |length - b|; wrong or longer than L: 0 (arXiv:2507.15844 §3)."""

    kind: Literal["budget"] = "budget"
    max_tokens: int = knob(
        96, title="Longest answer (L)", unit="tokens", description="Longer answers get 0.", ge=2, le=1_000_000
    )
    beta: float = knob(
        1.0, title="Beta", description="Reward scale. The paper's value is not known.", gt=0, le=10
    )
    alpha: float = knob(
        0.001,
        title="Alpha",
        unit="per token",
        description="Cost of a token over budget. The paper's value is not known.",
        ge=0,
        le=10,
    )


class RewardConfig(Section):
    """From a verdict to the reward of a leaf. A verifier error has no reward at all."""

    correct: float = knob(
        1.0, title="Correct", description="Reward of a correct answer.", ge=-10, le=10, advanced=True
    )
    incorrect: float = knob(
        0.0,
        title="Incorrect",
        description="Reward of a wrong, unreadable or cut-off answer.",
        ge=-10,
        le=10,
        advanced=True,
    )
    shaping: Annotated[NoShaping | OverlongShaping | BudgetShaping, Field(discriminator="kind")] = knob(
        NoShaping(), title="Shaping", description="What is added to it or put in its place.", advanced=True
    )
    kl_coefficient: float = knob(
        0.0,
        title="KL in reward",
        description="This much times log(policy / reference), summed over the answer, is taken off its "
        "reward (RLOO). 0: none.",
        ge=0,
        le=10,
        advanced=True,
    )

    @model_validator(mode="after")
    def _correct_is_better(self) -> Self:
        if self.correct <= self.incorrect:
            raise ValueError(
                f"reward.correct {self.correct:g} must be more than reward.incorrect {self.incorrect:g}."
            )
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and greatest reward that a leaf can get (KL not counted)."""
        if self.shaping.kind == "overlong":
            return self.incorrect - self.shaping.factor, self.correct
        if self.shaping.kind == "budget":
            return min(0.0, -self.shaping.alpha * self.shaping.max_tokens), self.shaping.beta
        return self.incorrect, self.correct
