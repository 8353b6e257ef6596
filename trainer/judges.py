"""The rules of the verifiers: from an answer's text to correct, incorrect, unparsed or truncated.

This module runs in the child processes of `verifier_pool`, so it imports hardly anything, and nothing heavy
before it is asked for. Model text is compared, never evaluated; what may still take for ever (a mathematics
library, a regular expression, somebody's plug-in) is ended from outside.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, Final

ANSWER_MARK: Final = "#### "
BOXED: Final = "\\boxed"
MAX_ANSWER_LETTERS: Final = 200  # of the answer that is kept for people
MAX_NUMBER_LETTERS: Final = 64
MAX_MATH_LETTERS: Final = 2000
PLUGINS: Final = "arborist.verifiers"

Said = tuple[str, str]
"""(correct, incorrect, unparsed or truncated; the answer that was read, "" if none was)."""

Judge = Callable[[str, bool, str], Said]
"""(text of the answer without the prompt, whether the policy ended it, reference answer) -> Said."""


def judge_called(kind: str, settings: Mapping[str, Any]) -> Judge:
    """The rule of a verifier; `settings` are its knobs as JSON. Raises ValueError when it cannot be had."""
    if kind == "gsm8k":
        return gsm8k
    if kind == "boxed":
        return boxed
    if kind == "numeric":
        tolerance = float(settings["tolerance"])
        return lambda text, ended, reference: numeric(text, ended, reference, tolerance)
    if kind == "exact":
        folds = bool(settings["ignore_case"])
        return lambda text, ended, reference: exact(text, ended, reference, ignore_case=folds)
    if kind == "regex":
        pattern = compiled(str(settings["pattern"]))
        return lambda text, ended, reference: matched(text, ended, reference, pattern)
    if kind == "plugin":
        return plugin(str(settings["name"]))
    raise ValueError(f"There is no verifier {kind!r}.")


def _told(answer: str, has_ended: bool, is_correct: Callable[[], bool]) -> Said:
    """What every rule has in common: cut off before wrong, unreadable before wrong."""
    shown = answer.strip()[:MAX_ANSWER_LETTERS]
    if not has_ended:
        return "truncated", shown
    if not shown:
        return "unparsed", ""
    return ("correct" if is_correct() else "incorrect"), shown


def gsm8k(text: str, has_ended: bool, reference: str) -> Said:
    """Correct iff the policy ended the answer and what follows its last `#### ` equals the reference: the
    same text after `normalised`, or the same decimal number (7, 7.0 and 7.00 are one; no rounding).
    """
    answer = marked(text)
    return _told(answer, has_ended, lambda: are_equal(answer, reference))


def marked(text: str) -> str:
    """What follows the last `#### `; "" without one."""
    _, mark, answer = text.rpartition(ANSWER_MARK)
    return answer if mark else ""


def boxed(text: str, has_ended: bool, reference: str) -> Said:
    r"""Correct iff the last `\boxed{…}` equals the reference (boxed or not) as mathematics (math-verify)."""
    answer = last_boxed(text)
    expected = last_boxed(reference)
    return _told(
        answer or "", has_ended, lambda: are_same_mathematics(answer or "", expected or reference.strip())
    )


_BRACES: Final = re.compile(r"\\\\|\\[{}]|\\boxed\s*\{|[{}]")


def last_boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{…}` whose braces close; None without one. Linear in the length."""
    opened: list[int] = []  # where the content of each open brace begins; negative: it is no box
    best: tuple[int, int] | None = None
    for match in _BRACES.finditer(text):
        brace = match[0]
        if brace.startswith("\\boxed"):
            opened.append(match.end())
        elif brace == "{":
            opened.append(-1)
        elif brace == "}" and opened:
            start = opened.pop()
            if start >= 0 and (best is None or start > best[0]):
                best = (start, match.start())
    return None if best is None else text[best[0] : best[1]]


@lru_cache(4096)  # the answers to one question are mostly the same few
def are_same_mathematics(answer: str, reference: str) -> bool:
    """Whether two expressions are equal: as text, as numbers, or for math-verify. Very long ones are
    compared as text alone.
    """
    if are_equal(answer, reference) or "".join(answer.split()) == "".join(reference.split()):
        return True
    if max(len(answer), len(reference)) > MAX_MATH_LETTERS:
        return False
    from math_verify import verify

    gold, found = parsed(reference), parsed(answer)
    return bool(gold and found and verify(gold, found, timeout_seconds=0))


def parsed(expression: str) -> list[Any]:
    """What math-verify reads in LaTeX: sympy's expression, then the text; [] when it cannot read it."""
    import logging

    from math_verify import LatexExtractionConfig, parse

    # It warns on every call that its own timeouts are off: ours are on.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    # Its own timeouts need signals, which do not work everywhere; a process is ended from outside instead.
    # As LaTeX alone: its other way of reading hands text to sympy, which evaluates it as Python, and takes
    # what LaTeX cannot read for the first number in it (0.\overline{3} for 0).
    found: list[Any] = parse(f"${expression}$", (LatexExtractionConfig(),), parsing_timeout=0)
    return found


NUMBER: Final = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d{1,3})?", re.ASCII)


def numeric(text: str, has_ended: bool, reference: str, tolerance: float) -> Said:
    """Correct iff the last number of the answer is the reference's, within tolerance * max(1,
    |reference|)."""
    answer, expected = last_number(text), last_number(reference)
    if not expected:
        raise ValueError(f"The reference answer {reference[:60]!r} holds no number.")

    def is_close() -> bool:
        try:
            mine, theirs = Decimal(answer.replace(",", "")), Decimal(expected.replace(",", ""))
        except InvalidOperation:
            return False
        return abs(mine - theirs) <= Decimal(tolerance) * max(Decimal(1), abs(theirs))

    return _told(answer, has_ended, is_close)


def last_number(text: str) -> str:
    """The last number near the end of a text, as it is written; "" without one."""
    found = [match for match in NUMBER.findall(text[-20_000:]) if any(letter.isdigit() for letter in match)]
    return found[-1] if found else ""


def exact(text: str, has_ended: bool, reference: str, *, ignore_case: bool) -> Said:
    """Correct iff the whole answer, without blanks around it, is the reference."""
    mine, theirs = stripped(text, ignore_case), stripped(reference, ignore_case)
    return _told(text, has_ended, lambda: mine == theirs)


def stripped(text: str, ignore_case: bool) -> str:
    """Without blanks around it; with one case alone where that is ignored."""
    return text.strip().casefold() if ignore_case else text.strip()


def compiled(pattern: str) -> re.Pattern[str]:
    """Raises ValueError naming what is wrong with it."""
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}.") from error


def matched(text: str, has_ended: bool, reference: str, pattern: re.Pattern[str]) -> Said:
    """Correct iff the last match (its first group, if the pattern has one) equals the reference."""
    answer = last_match(text, pattern)
    return _told(answer, has_ended, lambda: are_equal(answer, reference))


def last_match(text: str, pattern: re.Pattern[str]) -> str:
    """The last match, or its first group if the pattern has one; "" without a match."""
    last = None
    for match in pattern.finditer(text):
        last = match
    return "" if last is None else (last[1] if pattern.groups else last[0]) or ""


def plugin(name: str) -> Judge:
    """An installed entry point of the group `arborist.verifiers`: a function (text, has_ended, reference) ->
    bool, or -> (verdict, answer). Raises ValueError when there is none of that name.
    """
    from importlib.metadata import entry_points

    known = entry_points(group=PLUGINS)
    found = [entry for entry in known if entry.name == name]
    if not found:
        names = ", ".join(sorted(entry.name for entry in known)) or "none"
        raise ValueError(
            f"There is no verifier plug-in {name!r}. Installed are: {names}. Install a package with an "
            f"entry point of that name in the group {PLUGINS} on every worker."
        )
    function = found[0].load()

    def judge(text: str, has_ended: bool, reference: str) -> Said:
        said = function(text, has_ended, reference)
        if isinstance(said, bool):
            return _told(text, has_ended, lambda: said)
        verdict, answer = said
        if verdict not in ("correct", "incorrect", "unparsed", "truncated"):
            raise ValueError(
                f"The plug-in said {verdict!r}; expected correct, incorrect, unparsed or truncated."
            )
        return verdict, str(answer)[:MAX_ANSWER_LETTERS]

    return judge


# ------------------------------------------------------------------------------------------------ equality


def are_equal(answer: str, reference: str) -> bool:
    """Whether two answers are the same text or the same number."""
    left, right = normalised(answer), normalised(reference)
    if left == right:
        return True
    first, second = _number(left), _number(right)
    return first is not None and first == second


_THOUSANDS: Final = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d*)?", re.ASCII)


def normalised(answer: str) -> str:
    """Without blanks around it, one trailing period, a leading plus, and the thousands separators of a
    number."""
    answer = answer.strip().removesuffix(".").rstrip()
    if len(answer) > 4 * MAX_NUMBER_LETTERS:
        return answer
    plain = answer.replace(",", "") if _THOUSANDS.fullmatch(answer) else answer
    plain = plain.removeprefix("+")
    return plain if is_plain_number(plain) else answer


def canonical(answer: str) -> str:
    """One text for all answers that are equal: 7, 7.0 and +7 are `7`."""
    plain = normalised(answer)
    number = _number(plain)
    return plain if number is None else f"{number.normalize():f}"


def is_plain_number(text: str) -> bool:
    whole, _, fraction = text.removeprefix("-").partition(".")
    digits = whole + fraction
    return len(text) <= MAX_NUMBER_LETTERS and digits.isascii() and digits.isdecimal()


def _number(text: str) -> Decimal | None:
    return Decimal(text) if is_plain_number(text) else None
