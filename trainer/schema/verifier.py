"""Which verifier judges an answer, and what it may take. Torch-free."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainer.schema.section import Section, knob


class _Verifier(Section):
    """Every verifier runs in a process that is ended when it takes too long or too much."""

    timeout_seconds: float = knob(
        2.0,
        title="Time limit",
        unit="s",
        description="A judgement that takes longer is ended and counts as a verifier error, not as wrong.",
        gt=0,
        le=600,
        advanced=True,
    )
    memory_mb: int = knob(
        512,
        title="Memory limit",
        unit="MB",
        description="A judgement that needs more is ended and counts as a verifier error, not as wrong.",
        ge=64,
        le=65536,
        advanced=True,
    )


class Gsm8kVerifier(_Verifier):
    """Compares the text after the last `#### ` with the reference answer; correct if equal."""

    kind: Literal["gsm8k"] = "gsm8k"


class BoxedVerifier(_Verifier):
    r"""Compares the last `\boxed{…}` with the reference answer as mathematics, through math-verify."""

    kind: Literal["boxed"] = "boxed"


class NumericVerifier(_Verifier):
    """Compares the last number of the answer with the reference number."""

    kind: Literal["numeric"] = "numeric"
    tolerance: float = knob(
        1e-6,
        title="Tolerance",
        description="Largest |difference| relative to max(1, |reference|).",
        ge=0,
        le=1,
    )


class ExactVerifier(_Verifier):
    """The whole answer, without blanks around it, must be the reference answer."""

    kind: Literal["exact"] = "exact"
    ignore_case: bool = knob(False, title="Ignore case", description="`Yes` equals `yes`.")


class RegexVerifier(_Verifier):
    """The last match of a regular expression (its first group, if it has one) must be the reference
    answer."""

    kind: Literal["regex"] = "regex"
    pattern: str = knob(
        r"answer is (\S+)",
        title="Pattern",
        description="A Python regular expression.",
        min_length=1,
        max_length=500,
    )

    @model_validator(mode="after")
    def _pattern_compiles(self) -> Self:
        try:
            re.compile(self.pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}.") from error
        return self


class PluginVerifier(_Verifier):
    """A verifier of your own, installed beside Arborist as an entry point of the group
    `arborist.verifiers`."""

    kind: Literal["plugin"] = "plugin"
    name: str = knob(
        title="Entry point",
        description="Its name. Code never comes from the browser.",
        pattern=r"^[A-Za-z0-9_.-]{1,100}$",
    )


Verifier = Annotated[
    Gsm8kVerifier | BoxedVerifier | NumericVerifier | ExactVerifier | RegexVerifier | PluginVerifier,
    Field(discriminator="kind"),
]
