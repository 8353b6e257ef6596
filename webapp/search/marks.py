"""Marks: lexemes that stand for a node's columns in the index, so that one bitmap answers text and filters.

The database function `arborist_search_marks` (migration 0001) writes them, and this module names the ones a
filter asks for. A mark may cover more than the filter does; the columns then decide. A term has few marks or
none: an index scan goes through the nodes of every mark that is joined by *or*. Words of text hold no
punctuation, so none of them begins with `#`.
"""

from __future__ import annotations

from collections.abc import Iterable

from trainer.tree import CreditState, Verdict
from webapp.filters import Equals, Missing, Term, Test

BLOCK_BITS = 16  # 65,536 rows share a `#b` mark, by id
MAX_MARKS = 4  # of one term; what needs more is left to its column
# What filters call them -> what is stored.
VERDICTS = {word.word: int(word) for word in Verdict if word} | {"inner": int(Verdict.NONE)}
CREDIT_STATES = {word.word: int(word) for word in CreditState if word} | {"pending": int(CreditState.NONE)}
SAMPLES = {16: "#x4", 256: "#x8"}  # every 16th and every 256th node, by chance
# A node has the mark of every limit that it reaches.
ADVANTAGES = (1, 2, 3, 4, 6, 8)  # `#ag2`: at least 2; `#al2`: at most -2
TOKENS = (128, 256, 512, 1024, 2048, 4096)
DEPTHS = (8, 16, 32, 64)


def term_marks(term: Term) -> list[str] | None:
    """Marks of which every node that passes the term has one; None: there are none, or too many."""
    if term.negated or len(term.tests) > MAX_MARKS:
        return None
    found = []
    for test in term.tests:
        mark = _mark(term.key, test)
        if mark is None:
            return None
        found.append(mark)
    return list(dict.fromkeys(found))


def _mark(key: str, test: Test) -> str | None:
    if isinstance(test, Missing):
        return {"adv": "#an", "value": "#wn"}.get(key)
    if isinstance(test, Equals):
        if key == "verdict":
            return f"#v{VERDICTS[test.value]}"
        if key == "credit":
            return f"#c{CREDIT_STATES[test.value]}"
        # No problem's name is longer, and a lexeme has its limit.
        return f"#q{test.value}" if key == "problem" and len(test.value) <= 200 else None
    prefix, limits = {"adv": ("#ag", ADVANTAGES), "tokens": ("#k", TOKENS), "depth": ("#d", DEPTHS)}.get(
        key, ("", ())
    )
    reached = _reached(test.low, limits)
    if reached:
        return f"{prefix}{reached}"
    reached = _reached(None if test.high is None else -test.high, limits) if key == "adv" else 0
    return f"#al{reached}" if reached else None


def _reached(number: float | None, limits: tuple[int, ...]) -> int:
    """The highest of the limits that a number reaches; 0: none."""
    return max((limit for limit in limits if number is not None and number >= limit), default=0)


def any_of(marks: Iterable[str]) -> str:
    """A tsquery's text: one of the marks."""
    return "(" + " | ".join(quoted(mark) for mark in marks) + ")"


def quoted(lexeme: str) -> str:
    return "'" + lexeme.replace("\\", "\\\\").replace("'", "''") + "'"
