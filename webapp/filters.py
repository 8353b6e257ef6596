"""The filter language of lists and of search: what somebody typed as terms, their canonical text, their `Q`.

    words "quoted phrase" key:value key:<n key:<=n key:>n key:a..b key:a..<b
    key:a,b key:none -key:v -word /pattern/

Terms are joined by *and*; the values of one term, with commas between them, by *or*; a minus sign leaves out
what matches. Who calls declares the keys (`Language`). Pure: nothing here asks the database, and text is only
ever data.
"""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_
from typing import Any, Literal, TypeAlias

from django.db.models import Q

MAX_LETTERS = 1000
MAX_TERMS = 40
MAX_VALUES = 100  # of one term
MAX_WHOLE = 2**53  # beyond it a number typed is not the number meant
NONE = "none"

_KEY = re.compile(r"([^\W\d][\w-]*):")
_BARE_COMPARISON = re.compile(r"([^\W\d][\w-]*)(<=|>=|<|>|=)(.*)", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?")
_COMPARISONS = ("<=", ">=", "<", ">")  # the longer ones first


class FilterError(ValueError):
    """A filter that cannot be read. `start:end` is the part at fault; `suggestion` is the whole filter,
    mended, or "".
    """

    def __init__(self, message: str, start: int, end: int, suggestion: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.start = start
        self.end = end
        self.suggestion = suggestion

    def as_dict(self) -> dict[str, Any]:
        return {
            "message": self.message,
            "start": self.start,
            "end": self.end,
            "suggestion": self.suggestion,
        }


# ------------------------------------------------------------------------------------------------ keys


@dataclass(frozen=True, slots=True)
class Field:
    """One key.

    number  compared, also in ranges; `whole`: without a fraction
    choice  one of `choices`: word -> the column's value, or a `Q` that says it in another way
    flag    yes or no
    text    `lookup` says how it is compared (`icontains`, `exact`, …)

    `column` is the ORM path, the name by itself; `nullable`: `key:none` finds where it is missing. `make`
    turns a term's tests into a `Q` where a column cannot say it. `label` is how pages call it.
    """

    name: str
    kind: Literal["number", "choice", "text", "flag"]
    help: str
    column: str = ""
    label: str = ""
    aliases: tuple[str, ...] = ()
    choices: Mapping[str, Any] = field(default_factory=dict)  # Any: whatever the column holds
    whole: bool = False
    nullable: bool = False
    lookup: str = "icontains"
    make: Callable[[Sequence[Test]], Q] | None = None

    @property
    def path(self) -> str:
        return self.column or self.name

    @property
    def example(self) -> str:
        """A term as somebody may type it."""
        value = {
            "number": ">=3" if self.whole else "<0.5",
            "choice": next(iter(self.choices), ""),
            "flag": "yes",
            "text": "…",
        }[self.kind]
        return f"{self.name}:{value}"


@dataclass(frozen=True, slots=True)
class Language:
    """The keys of one list. `words`: text by itself is allowed; `patterns`: `/…/` is a regular expression."""

    fields: Sequence[Field]
    words: bool = True
    patterns: bool = False

    def find(self, key: str) -> Field | None:
        key = key.lower()
        return next((one for one in self.fields if key == one.name or key in one.aliases), None)

    def nearest(self, key: str) -> str:
        names = [name for one in self.fields for name in (one.name, *one.aliases)]
        close = difflib.get_close_matches(key.lower(), names, 1)
        found = self.find(close[0]) if close else None
        return found.name if found else ""


# ------------------------------------------------------------------------------------------------ terms


@dataclass(frozen=True, slots=True)
class Equals:
    """A choice's word, yes or no, or text as it was typed."""

    value: str

    def text(self) -> str:
        return _quoted_value(self.value)


@dataclass(frozen=True, slots=True)
class Between:
    """A range of numbers; None: open. `low == high`: just that number."""

    low: float | None = None
    high: float | None = None
    with_low: bool = True
    with_high: bool = True

    def text(self) -> str:
        if self.low is not None and self.high is not None:
            if self.low == self.high:
                return _number_text(self.low)
            return f"{_number_text(self.low)}..{'' if self.with_high else '<'}{_number_text(self.high)}"
        if self.low is not None:
            return f"{'>=' if self.with_low else '>'}{_number_text(self.low)}"
        if self.high is not None:
            return f"{'<=' if self.with_high else '<'}{_number_text(self.high)}"
        raise ValueError("A range needs an end.")

    def holds(self, value: float) -> bool:
        above = self.low is None or value > self.low or (self.with_low and value == self.low)
        below = self.high is None or value < self.high or (self.with_high and value == self.high)
        return above and below


@dataclass(frozen=True, slots=True)
class Missing:
    """There is no value."""

    def text(self) -> str:
        return NONE


Test: TypeAlias = Equals | Between | Missing


@dataclass(frozen=True, slots=True)
class Words:
    """Text to find: one word, or several in this order."""

    value: str
    negated: bool = False
    start: int = field(default=0, compare=False)
    end: int = field(default=0, compare=False)

    def text(self) -> str:
        return _sign(self) + (_quote(self.value) if _needs_quotes(self.value) else self.value)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression to find, as typed between the slashes (`\\/` is a slash)."""

    value: str
    negated: bool = False
    start: int = field(default=0, compare=False)
    end: int = field(default=0, compare=False)

    def text(self) -> str:
        return f"{_sign(self)}/{self.value.replace('/', chr(92) + '/')}/"


@dataclass(frozen=True, slots=True)
class Term:
    """A key and the values it may have."""

    key: str
    tests: tuple[Test, ...]
    negated: bool = False
    start: int = field(default=0, compare=False)
    end: int = field(default=0, compare=False)

    def text(self) -> str:
        return f"{_sign(self)}{self.key}:{','.join(test.text() for test in self.tests)}"


Part: TypeAlias = Words | Pattern | Term


@dataclass(frozen=True, slots=True)
class Filter:
    """All terms, in the order typed. `text()` reads back as an equal filter."""

    parts: tuple[Part, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.parts)

    def __iter__(self) -> Iterator[Part]:
        return iter(self.parts)

    def text(self) -> str:
        return " ".join(part.text() for part in self.parts)

    @property
    def words(self) -> list[Words]:
        return [part for part in self.parts if isinstance(part, Words)]

    @property
    def patterns(self) -> list[Pattern]:
        return [part for part in self.parts if isinstance(part, Pattern)]

    @property
    def terms(self) -> list[Term]:
        return [part for part in self.parts if isinstance(part, Term)]

    def term(self, key: str) -> Term | None:
        """The first term of the key that asks for something."""
        return next((term for term in self.terms if term.key == key and not term.negated), None)

    def without(self, gone: Part) -> Filter:
        return replace(self, parts=tuple(part for part in self.parts if part is not gone))

    def with_term(self, key: str, *tests: Test) -> Filter:
        """The key's term becomes this one, in its place, or comes last. No tests: the term goes."""
        new = Term(key, tests)
        old = self.term(key)
        if not tests:
            return self if old is None else self.without(old)
        if old is None:
            return replace(self, parts=(*self.parts, new))
        return replace(self, parts=tuple(new if part is old else part for part in self.parts))

    def chips(self) -> list[dict[str, str]]:
        """Each part as pages show it, with the filter that is left when it is taken away."""
        return [
            {
                "text": part.text(),
                "key": part.key if isinstance(part, Term) else "",
                "without": self.without(part).text(),
            }
            for part in self.parts
        ]


# ------------------------------------------------------------------------------------------------ reading


def parse(text: str, language: Language) -> Filter:
    """The filter somebody typed. Raises FilterError."""
    return _Reader(text, language).read()


class _Reader:
    def __init__(self, text: str, language: Language) -> None:
        self.text = text
        self.language = language
        self.at = 0

    def fail(self, message: str, start: int, end: int, instead: str | None = None) -> FilterError:
        """`instead`: what would be right in the place of `start:end`."""
        mended = "" if instead is None else self.text[:start] + instead + self.text[end:]
        return FilterError(message, start, end, mended[:MAX_LETTERS])

    def read(self) -> Filter:
        text = self.text
        if len(text) > MAX_LETTERS:
            raise FilterError(
                f"This filter has {len(text):,} letters; at most {MAX_LETTERS:,} are read. Shorten it.",
                MAX_LETTERS,
                len(text),
            )
        for place, letter in enumerate(text):
            if unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\t\n\r":
                raise FilterError(
                    f"There is a control character (U+{ord(letter):04X}) at letter {place + 1}. Take it out.",
                    place,
                    place + 1,
                    # Never handed back: a page could not show it, nor the database hold it.
                    "".join(one for one in text if unicodedata.category(one) not in ("Cc", "Cs")),
                )
        parts: list[Part] = []
        while True:
            self._skip_space()
            if self.at >= len(text):
                return Filter(tuple(parts))
            if len(parts) == MAX_TERMS:
                raise self.fail(
                    f"There are more than {MAX_TERMS} terms. Take some away.", self.at, len(text), ""
                )
            parts.append(self._part())

    def _skip_space(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def _part(self) -> Part:
        start = self.at
        negated = self.text[start] == "-"
        if negated:
            self.at += 1
        if self.at >= len(self.text) or self.text[self.at].isspace():
            raise self.fail(
                "A minus sign leaves out what follows it, and nothing follows. To find the sign itself, "
                'write "-".',
                start,
                start + 1,
                '"-"',
            )
        if self.text[self.at] == '"':
            value = self._quoted("phrase")
            self._must_end(start)
            return self._words(value, negated, start)
        if self.text[self.at] == "/" and self.language.patterns and self.text.find("/", self.at + 1) > 0:
            return self._pattern(negated, start)
        key = _KEY.match(self.text, self.at)
        if key is not None:
            return self._term(key[1], negated, start)
        word = self._until_space()
        compared = _BARE_COMPARISON.fullmatch(word)
        known = self.language.find(compared[1]) if compared else None
        if compared and known:
            sign = "" if compared[2] == "=" else compared[2]
            raise self.fail(
                f"After the key {known.name} comes a colon.",
                start,
                self.at,
                f"{'-' if negated else ''}{known.name}:{sign}{compared[3]}",
            )
        return self._words(word, negated, start)

    def _until_space(self) -> str:
        start = self.at
        while self.at < len(self.text) and not self.text[self.at].isspace():
            self.at += 1
        return self.text[start : self.at]

    def _words(self, value: str, negated: bool, start: int) -> Words:
        if not self.language.words:
            names = ", ".join(one.name for one in self.language.fields)
            raise self.fail(f"Only keys are read here: {names}.", start, self.at, "")
        return Words(value, negated, start, self.at)

    def _quoted(self, what: str) -> str:
        """What stands between quotation marks; `\\"` and `\\\\` stand for themselves."""
        start = self.at
        found = []
        self.at += 1
        while self.at < len(self.text):
            letter = self.text[self.at]
            if letter == "\\" and self.text[self.at + 1 : self.at + 2] in ('"', "\\"):
                found.append(self.text[self.at + 1])
                self.at += 2
                continue
            self.at += 1
            if letter == '"':
                value = " ".join("".join(found).split())
                if not value:
                    raise self.fail("There is nothing between the quotation marks.", start, self.at, "")
                return value
            found.append(letter)
        raise self.fail(
            f'The {what} has no closing ".', start, len(self.text), self.text[start:].rstrip("\\ ") + '"'
        )

    def _must_end(self, start: int) -> None:
        """A closing mark ends a term."""
        if self.at < len(self.text) and not self.text[self.at].isspace():
            raise self.fail(
                "After the closing mark comes a space.", start, self.at + 1,
                f"{self.text[start : self.at]} {self.text[self.at]}",
            )  # fmt: skip

    def _pattern(self, negated: bool, start: int) -> Part:
        found = []
        at = self.at + 1
        while at < len(self.text) and self.text[at] != "/":
            if self.text[at] == "\\" and at + 1 < len(self.text):
                found.append("/" if self.text[at + 1] == "/" else self.text[at : at + 2])
                at += 2
                continue
            found.append(self.text[at])
            at += 1
        if at >= len(self.text):
            raise self.fail(
                "The pattern has no closing /.", start, len(self.text), f"{self.text[start:].rstrip()}/"
            )
        self.at = at + 1
        self._must_end(start)
        value = "".join(found)
        if not value:
            raise self.fail("There is nothing between the slashes.", start, self.at, "")
        return Pattern(value, negated, start, self.at)

    # ---- a key and its values

    def _term(self, key: str, negated: bool, start: int) -> Term:
        known = self.language.find(key)
        key_start = self.at
        if known is None:
            raise self._unknown_key(key, start)
        self.at += len(key) + 1
        tests: list[Test] = []
        while True:
            tests.append(self._test(known))
            if self.at >= len(self.text) or self.text[self.at] != ",":
                break
            self.at += 1
            if len(tests) == MAX_VALUES:
                raise self.fail(f"{known.name} has more than {MAX_VALUES} values.", key_start, self.at)
        self._must_end(start)
        return Term(known.name, tuple(dict.fromkeys(tests)), negated, start, self.at)

    def _unknown_key(self, key: str, start: int) -> FilterError:
        nearest = self.language.nearest(key)
        names = ", ".join(one.name for one in self.language.fields)
        where = start + (self.text[start] == "-")
        if nearest:
            return self.fail(
                f"There is no key {key}. Did you mean {nearest}? The keys: {names}.",
                where,
                where + len(key),
                nearest,
            )
        end = where
        while end < len(self.text) and not self.text[end].isspace():
            end += 1
        hint = " To find the text itself, put it in quotation marks." if self.language.words else ""
        quoted = _quote(self.text[where:end]) if self.language.words else None
        return self.fail(f"There is no key {key}. The keys: {names}.{hint}", where, end, quoted)

    def _test(self, known: Field) -> Test:
        start = self.at
        if self.text[start : start + 1] == '"':
            value, quoted = self._quoted("value"), True
        else:
            while self.at < len(self.text) and not self.text[self.at].isspace() and self.text[self.at] != ",":
                self.at += 1
            value, quoted = self.text[start : self.at], False
        if not value:
            raise self.fail(f"{known.name}: expects {_expected(known)} here.", start, self.at, None)
        lowered = value.lower()
        if known.nullable and not quoted and lowered == NONE and NONE not in known.choices:
            return Missing()
        if known.kind == "number":
            return self._range(known, value, start)
        if known.kind == "flag":
            return self._one_of(known, lowered, ("yes", "no"), start)
        if known.kind == "choice":
            return self._one_of(known, value, tuple(known.choices), start)
        return Equals(value)

    def _one_of(self, known: Field, value: str, words: Sequence[str], start: int) -> Equals:
        by_lower = {word.lower(): word for word in words}
        found = by_lower.get(value.lower())
        if found is not None:
            return Equals(found)
        close = difflib.get_close_matches(value.lower(), list(by_lower), 1)
        instead = by_lower[close[0]] if close else None
        hint = f" Did you mean {instead}?" if instead else ""
        raise self.fail(
            f"{known.name}: expects {_expected(known)}, not {value}.{hint}",
            start,
            self.at,
            None if instead is None else _quoted_value(instead),
        )

    def _range(self, known: Field, value: str, start: int) -> Between:
        for sign in _COMPARISONS:
            if value.startswith(sign):
                number = self._number(known, value[len(sign) :], start)
                included = "=" in sign
                if sign[0] == "<":
                    return Between(None, number, with_high=included)
                return Between(number, None, with_low=included)
        low_text, dots, high_text = value.partition("..")
        if not dots:
            number = self._number(known, value, start)
            return Between(number, number)
        with_high = not high_text.startswith("<")
        high_text = high_text.removeprefix("<")
        low = self._number(known, low_text, start) if low_text else None
        high = self._number(known, high_text, start) if high_text or not with_high else None
        if low is None and high is None:
            raise self.fail(f"{known.name}: this range has no end. Write {known.name}:a..b.", start, self.at)
        if low is not None and high is not None and low > high:
            raise self.fail(
                f"{known.name}: this range ends before it begins.",
                start,
                self.at,
                f"{_number_text(high)}..{_number_text(low)}",
            )
        if low is not None and low == high and not with_high:
            raise self.fail(f"{known.name}: this range holds no number.", start, self.at, _number_text(low))
        return Between(low, high, with_high=with_high)

    def _number(self, known: Field, text: str, start: int) -> float:
        cleaned = text.replace("\N{MINUS SIGN}", "-")
        number = float(cleaned) if _NUMBER.fullmatch(cleaned) and cleaned.isascii() else math.nan
        if not math.isfinite(number):
            raise self.fail(
                f"{known.name}: expects {_expected(known)}, not {text or 'nothing'}.", start, self.at
            )
        if known.whole and (number != int(number) or abs(number) > MAX_WHOLE):
            near = int(max(-MAX_WHOLE, min(MAX_WHOLE, round(number))))
            raise self.fail(
                f"{known.name} is a whole number, not {text}.", start, self.at,
                self.text[start : self.at].replace(text, str(near)),
            )  # fmt: skip
        return number + 0.0  # -0 is 0


def _expected(known: Field) -> str:
    if known.kind == "number":
        kind = "a whole number" if known.whole else "a number"
        none = ", or none" if known.nullable else ""
        return f"{kind}, as in {known.name}:5, {known.name}:<5 or {known.name}:2..5{none}"
    if known.kind == "flag":
        return "yes or no"
    if known.kind == "choice":
        words = list(known.choices)
        more = f" … ({len(words)} in all)" if len(words) > 12 else ""
        return "one of " + ", ".join(words[:12]) + more
    return "text"


# ------------------------------------------------------------------------------------------------ writing


def _sign(part: Part) -> str:
    return "-" if part.negated else ""


def _quote(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _needs_quotes(value: str) -> bool:
    return (
        not value
        or any(letter.isspace() for letter in value)
        or value[0] in '"-/'
        or _KEY.match(value) is not None
        or _BARE_COMPARISON.fullmatch(value) is not None
    )


def _quoted_value(value: str) -> str:
    plain = value and not any(letter.isspace() or letter in ',"' for letter in value)
    return value if plain and value.lower() != NONE else _quote(value)


def _number_text(number: float) -> str:
    whole = int(number) if abs(number) <= MAX_WHOLE and number == int(number) else None
    return str(whole) if whole is not None else repr(number)


# ------------------------------------------------------------------------------------------------ asking


def to_q(wanted: Filter, language: Language) -> Q:
    """The terms with keys as a `Q`. Words and patterns are the caller's: only it knows where text lies."""
    found = Q()
    for term in wanted.terms:
        known = language.find(term.key)
        if known is None:
            raise FilterError(f"There is no key {term.key}.", term.start, term.end)
        one = term_q(known, term.tests)
        found &= ~one if term.negated else one
    return found


def term_q(known: Field, tests: Sequence[Test]) -> Q:
    """Rows that pass one of the tests. A missing value passes none but `Missing`."""
    if known.make is not None:
        return known.make(tests)
    return reduce(or_, (_test_q(known, test) for test in tests))


def _test_q(known: Field, test: Test) -> Q:
    path = known.path
    if isinstance(test, Missing):
        return Q(**{f"{path}__isnull": True})
    if isinstance(test, Between):
        if test.low is not None and test.low == test.high:
            return Q(**{path: _exact(known, test.low)})
        found = Q()
        if test.low is not None:
            found &= Q(**{f"{path}__{'gte' if test.with_low else 'gt'}": _exact(known, test.low)})
        if test.high is not None:
            found &= Q(**{f"{path}__{'lte' if test.with_high else 'lt'}": _exact(known, test.high)})
        return found
    if known.kind == "flag":
        return Q(**{path: test.value == "yes"})
    if known.kind == "choice":
        stored = known.choices[test.value]
        return stored if isinstance(stored, Q) else Q(**{path: stored})
    return Q(**{f"{path}__{known.lookup}": test.value})


def _exact(known: Field, number: float) -> float | int:
    return int(number) if known.whole else number
