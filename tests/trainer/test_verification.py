"""How both sides were compared, and that telling it can never change a verdict."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.answer_forms import MAX_FORM_LETTERS
from trainer.schema.verifier import (
    BoxedVerifier,
    ExactVerifier,
    Gsm8kVerifier,
    NumericVerifier,
    RegexVerifier,
)
from trainer.tree import Verdict
from trainer.verification import verify_again


@pytest.mark.process
@pytest.mark.parametrize(
    ("config", "text", "reference", "normalised", "expected"),
    [
        (Gsm8kVerifier(), "so #### +1,250.0.", "1250", "1250", "1250"),
        (Gsm8kVerifier(), "no mark", "1250", "", "1250"),
        (NumericVerifier(), "about 3.10e2 m", "1e999", "310", "1E+999"),
        (ExactVerifier(ignore_case=True), " Yes\n", "YES", "yes", "yes"),
        (RegexVerifier(pattern=r"is (\S+)"), "it is 7.0", "7", "7", "7"),
        (BoxedVerifier(), r"\boxed{\frac{2}{4}}", r"\boxed{0.50}", "1/2", "0.5"),
        (Gsm8kVerifier(), "#### " + "x" * 900, "1", "x" * (MAX_FORM_LETTERS - 1) + "…", "1"),
    ],
)
def test_what_was_compared(config: Any, text: str, reference: str, normalised: str, expected: str) -> None:
    found = verify_again(config, (text, True, reference))
    assert (found.normalised, found.expected, found.words) == (normalised, expected, "")
    assert 0 <= found.seconds < config.timeout_seconds


@pytest.mark.process
def test_a_form_that_takes_for_ever_leaves_the_verdict() -> None:
    """Equal as text, so it is correct at once; reading it as mathematics nobody can wait for."""
    nested = r"\boxed{" + 60 * "(" + "x" + 60 * ")" + "}"
    found = verify_again(BoxedVerifier(timeout_seconds=0.5), (nested, True, nested))
    assert (found.verdict, found.normalised) == (Verdict.CORRECT, None)
    assert found.words == "How it was compared: it took longer than 0.5 s and was ended."
