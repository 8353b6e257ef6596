"""An answer and the expected one as a verifier compares them: what stands behind "equal" and "not equal".

For people who ask why a verdict is what it is; training never asks. It runs in the child processes of
`verifier_pool`, as `judges` does: reading mathematics may take for ever.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from trainer import judges
from trainer.judges import Judge

MAX_FORM_LETTERS: Final = 500  # of one that is told
FORMS: Final = "forms"
"""What such a judge says in the place of a verdict."""


def forms_called(kind: str, settings: Mapping[str, Any]) -> Judge:
    """Says (FORMS, JSON of [answer, expected]) of an answer, each at most MAX_FORM_LETTERS long; "" where
    nothing could be read, None where the rule keeps it to itself. Raises ValueError as `judge_called`.
    """
    judges.judge_called(kind, settings)

    def say(text: str, _has_ended: bool, reference: str) -> tuple[str, str]:
        return FORMS, json.dumps([_bounded(form) for form in _forms(kind, settings, text, reference)])

    return say


def _forms(
    kind: str, settings: Mapping[str, Any], text: str, reference: str
) -> tuple[str | None, str | None]:
    if kind == "gsm8k":
        return judges.canonical(judges.marked(text)), judges.canonical(reference)
    if kind == "regex":
        found = judges.last_match(text, judges.compiled(str(settings["pattern"])))
        return judges.canonical(found), judges.canonical(reference)
    if kind == "boxed":
        return mathematics(judges.last_boxed(text) or ""), mathematics(
            judges.last_boxed(reference) or reference
        )
    if kind == "numeric":
        return plain_number(judges.last_number(text)), plain_number(judges.last_number(reference))
    if kind == "exact":
        folds = bool(settings["ignore_case"])
        return judges.stripped(text, folds), judges.stripped(reference, folds)
    return None, None  # a plug-in


def mathematics(expression: str) -> str:
    """What math-verify reads in it; of what it cannot read, and of what is compared as text alone, the text
    without blanks.
    """
    text = judges.canonical(expression)
    if judges.is_plain_number(text) or len(expression) > judges.MAX_MATH_LETTERS:
        return text
    found = judges.parsed(expression)
    return str(found[0]) if found else "".join(text.split())


def plain_number(number: str) -> str:
    """`1,250.0` → `1250`, without rounding; huge ones keep their exponent."""
    try:
        value = Decimal(number.replace(",", ""))
    except InvalidOperation:
        return ""
    return f"{value.normalize():f}" if abs(value.adjusted()) < judges.MAX_NUMBER_LETTERS else str(value)


def _bounded(form: str | None) -> str | None:
    if form is None or len(form) <= MAX_FORM_LETTERS:
        return form
    return form[: MAX_FORM_LETTERS - 1] + "…"
