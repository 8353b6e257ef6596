"""What somebody types into a filter: read, written back, refused with a place and a way out."""

from __future__ import annotations

from typing import Any

import pytest
from django.db.models import Q
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from webapp.filters import (
    MAX_LETTERS,
    MAX_TERMS,
    MAX_VALUES,
    Between,
    Equals,
    Field,
    Filter,
    FilterError,
    Language,
    Missing,
    Part,
    Pattern,
    Term,
    Words,
    parse,
    to_q,
)

FIELDS = (
    Field("adv", "number", "advantage", column="advantage", aliases=("advantage",), nullable=True),
    Field("depth", "number", "depth", whole=True),
    Field("verdict", "choice", "verdict", choices={"correct": 1, "incorrect": 2, "odd": Q(depth=7)}),
    Field("leaf", "flag", "is a leaf", column="is_leaf"),
    Field("problem", "text", "problem", column="problem_id"),
)
LANGUAGE = Language(FIELDS, patterns=True)


def test_every_form_of_term_is_read() -> None:
    text = (
        'even "even  divisors" -odd -"no way" adv:<-1 depth:>=3 adv:\N{MINUS SIGN}0.5..1e3 '
        'verdict:Correct,odd leaf:no adv:1..<2 -problem:p-1,"a,b" adv:none depth:..4 /\\d+\\/\\d/ ADVANTAGE:0'
    )
    assert parse(text, LANGUAGE).parts == (
        Words("even"),
        Words("even divisors"),
        Words("odd", negated=True),
        Words("no way", negated=True),
        Term("adv", (Between(None, -1, with_high=False),)),
        Term("depth", (Between(3, None),)),
        Term("adv", (Between(-0.5, 1000),)),
        Term("verdict", (Equals("correct"), Equals("odd"))),
        Term("leaf", (Equals("no"),)),
        Term("adv", (Between(1, 2, with_high=False),)),
        Term("problem", (Equals("p-1"), Equals("a,b")), negated=True),
        Term("adv", (Missing(),)),
        Term("depth", (Between(None, 4),)),
        Pattern(r"\d+/\d"),
        Term("adv", (Between(0, 0),)),
    )


@pytest.mark.parametrize(
    ("text", "place", "told", "suggestion"),
    [
        ("dpth:3 x", "dpth", "no key dpth. Did you mean depth?", "depth:3 x"),
        ("a -advantge:3", "advantge", "Did you mean adv?", "a -adv:3"),
        ("see http://x y", "http://x", "put it in quotation marks", 'see "http://x" y'),
        ("verdict:incorect", "incorect", "one of correct, incorrect, odd, not incorect", "verdict:incorrect"),
        ("leaf:perhaps", "perhaps", "expects yes or no", ""),
        ("depth:2.5", "2.5", "whole number", "depth:2"),
        ("depth:<x", "<x", "expects a whole number", ""),
        ("adv:1..0", "1..0", "ends before it begins", "adv:0..1"),
        ("adv:1..<1", "1..<1", "holds no number", "adv:1"),
        ("adv:1..<", "1..<", "expects a number", ""),
        ("adv:1e999", "1e999", "expects a number", ""),
        ("adv:nan", "nan", "expects a number", ""),
        ("adv:", "", "expects a number", ""),
        ("adv:1,", "", "expects a number", ""),
        ("adv<-1", "adv<-1", "comes a colon", "adv:<-1"),
        ('"open', '"open', 'no closing "', '"open"'),
        ('problem:"a"b', 'problem:"a"b', "comes a space", 'problem:"a" b'),
        ('x "" y', '""', "nothing between", "x  y"),
        ("3 - 2", "-", "nothing follows", '3 "-" 2'),
        ("a\x00b", "\x00", "control character (U+0000)", "ab"),
        ("a\ud800", "\ud800", "control character", "a"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place_and_a_way_out(
    text: str, place: str, told: str, suggestion: str
) -> None:
    with pytest.raises(FilterError) as refused:
        parse(text, LANGUAGE)
    error = refused.value
    assert (text[error.start : error.end], error.suggestion) == (place, suggestion)
    assert told in error.message
    if suggestion:
        parse(suggestion, LANGUAGE)


@pytest.mark.parametrize(
    "text",
    [
        "a" * (MAX_LETTERS + 1),
        "a " * (MAX_TERMS + 1),
        "depth:" + ",".join(str(n) for n in range(MAX_VALUES + 1)),
    ],
)
def test_a_filter_is_bounded(text: str) -> None:
    with pytest.raises(FilterError, match=r"more than|at most"):
        parse(text, LANGUAGE)


def test_without_words_only_keys_are_read() -> None:
    with pytest.raises(FilterError, match="Only keys are read here: adv, depth"):
        parse("even", Language(FIELDS, words=False))
    assert parse("/a/", Language(FIELDS)).parts == (Words("/a/"),)


def test_chips_take_one_term_away_and_a_facet_replaces_its_own() -> None:
    found = parse('even depth:1 -adv:<0 "a b"', LANGUAGE)
    assert [(chip["text"], chip["without"]) for chip in found.chips()] == [
        ("even", 'depth:1 -adv:<0 "a b"'),
        ("depth:1", 'even -adv:<0 "a b"'),
        ("-adv:<0", 'even depth:1 "a b"'),
        ('"a b"', "even depth:1 -adv:<0"),
    ]
    assert found.with_term("depth", Between(2, 2)).text() == 'even depth:2 -adv:<0 "a b"'
    # A term that leaves out is no choice of a facet.
    assert found.with_term("adv", Between(0, None)).text() == 'even depth:1 -adv:<0 "a b" adv:>=0'
    assert found.with_term("depth").text() == 'even -adv:<0 "a b"'


def test_terms_become_a_query() -> None:
    def q(text: str) -> Q:
        return to_q(parse(text, LANGUAGE), LANGUAGE)

    assert q("adv:<-1 even") == Q(advantage__lt=-1.0)
    assert q("-depth:3,5..") == ~(Q(depth=3) | Q(depth__gte=5))
    assert q("verdict:incorrect,odd") == Q(verdict=2) | Q(depth=7)
    assert q("leaf:yes problem:x") == Q(is_leaf=True) & Q(problem_id__icontains="x")
    assert q("adv:none") == Q(advantage__isnull=True)


# ---- whatever is typed

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine

_text = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=12)
_phrase = _text.map(lambda text: " ".join(text.split())).filter(bool)
_numbers = st.floats(-1e9, 1e9).map(lambda number: number + 0.0)
_wholes = st.integers(-(10**9), 10**9).map(float)


def _ranges(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[Between]:
    ends = st.tuples(numbers, numbers).map(sorted)
    closed = ends.map(lambda pair: Between(*pair))
    half_open = ends.filter(lambda pair: pair[0] < pair[1]).map(lambda pair: Between(*pair, with_high=False))
    above = st.builds(Between, numbers, st.none(), st.booleans())
    below = st.builds(Between, st.none(), numbers, st.just(value=True), st.booleans())
    return closed | half_open | above | below


def _term(key: str, tests: st.SearchStrategy[Any]) -> st.SearchStrategy[Part]:
    several = st.lists(tests, min_size=1, max_size=4, unique=True).map(tuple)
    return st.builds(Term, st.just(key), several, st.booleans())


_parts = (
    st.builds(Words, _phrase, st.booleans())
    | st.builds(Pattern, _text.filter(lambda text: "\\" not in text and not text[0].isspace()), st.booleans())
    | _term("adv", _ranges(_numbers) | st.just(Missing()))
    | _term("depth", _ranges(_wholes))
    | _term("verdict", st.sampled_from([Equals("correct"), Equals("odd")]))
    | _term("problem", st.builds(Equals, _phrase))
)


@unhurried
@given(st.lists(_parts, max_size=6).map(tuple))
def test_any_filter_reads_back_from_its_text(parts: tuple[Part, ...]) -> None:
    wanted = Filter(parts)
    assert parse(wanted.text(), LANGUAGE) == wanted


@unhurried
@given(st.text(st.characters() | st.sampled_from(' "-:/\\,.<>=adv0'), max_size=60))
def test_whatever_is_typed_is_a_filter_or_a_refusal_inside_the_text(text: str) -> None:
    try:
        found = parse(text, LANGUAGE)
    except FilterError as error:
        assert 0 <= error.start <= error.end <= len(text)  # noqa: PT017 (most texts are no refusal)
    else:
        assert parse(found.text(), LANGUAGE) == found


@unhurried
@given(_ranges(_numbers), _numbers)
def test_a_range_means_the_same_in_python_and_in_its_query(tests: Between, value: float) -> None:
    q = to_q(Filter((Term("adv", (tests,)),)), LANGUAGE)
    compare = {
        "lt": float.__lt__,
        "lte": float.__le__,
        "gt": float.__gt__,
        "gte": float.__ge__,
        "eq": float.__eq__,
    }
    asked = all(
        compare[path.partition("__")[2] or "eq"](value, limit)
        for path, limit in (child for child in q.children if isinstance(child, tuple))
    )
    assert asked == tests.holds(value)
