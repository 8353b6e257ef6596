"""Nodes that match a filter, newest first, a page at a time; and how many there are, by step, run, depth, …

The first page reads back from the newest nodes in slices of blocks (65,536 rows, marked in the index), each
slice as wide as the time allows. In a slice one bitmap of the index answers words and marks together. A
common word is found in the first slice, a rare one after a few quick looks; and when the time is up the page
says how far back it has looked. Nothing is counted for it.

Counts come from a sample where there are many matches: one node of 16 and one of 256 bear a mark, by chance.
"""

from __future__ import annotations

import difflib
import math
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from operator import or_
from typing import Any

from django.core.exceptions import EmptyResultSet
from django.db import DataError, OperationalError, connection, transaction
from django.db.models import BooleanField, Exists, F, OuterRef, Q, QuerySet
from django.db.models.expressions import RawSQL
from django.db.models.functions import Coalesce
from psycopg.errors import InvalidRegularExpression, QueryCanceled

from webapp.errors import RequestError
from webapp.filters import (
    Between,
    Equals,
    Field,
    Filter,
    FilterError,
    Language,
    Missing,
    Pattern,
    Term,
    Test,
    parse,
    term_q,
)
from webapp.limits import (
    SEARCH_COUNTED,
    SEARCH_PAGE,
    SEARCH_PATTERN_NODES,
    SEARCH_PATTERN_SECONDS,
    SEARCH_SECONDS,
    SEARCH_STATEMENT_SECONDS,
)
from webapp.notes.models import Note
from webapp.projects.models import Project
from webapp.runs.models import Run
from webapp.search.indexer import INDEXED
from webapp.search.marks import (
    BLOCK_BITS,
    CREDIT_STATES,
    MAX_MARKS,
    SAMPLES,
    VERDICTS,
    any_of,
    quoted,
    term_marks,
)
from webapp.search.models import IndexedNode, IndexedPart
from webapp.search.snippets import MAX_WORD_BYTES, WORD
from webapp.trees.models import StoredTree

SLICE_SECONDS = 0.12  # a slice is as wide as is likely to take this long ...
GROWTH = (2.0, 8.0)  # ... but so many times as wide as the last, unless that one took longer
WIDEST = 24  # blocks named in one query; beyond it the rest of the index is read at once
MOST = 2**40  # more blocks than there are
SCOPE = ("run", "step", "problem")  # what a share is a share of: all nodes there
FEW = 60  # matches in the smaller sample up to which it is tried to count all of them
ALL_READ = 200_000  # nodes that are gone through one by one to be counted
MAX_STRETCHES = 100
MAX_BARS = 48
MAX_NOTED = 200  # notes that one term may find nodes by

KEYS = (
    Field("adv", "number", "advantage", column="advantage", aliases=("advantage", "a"), nullable=True),
    Field("value", "number", "value, from 0 to 1 where rewards are", aliases=("v",), nullable=True),
    Field("depth", "number", "segments below the prompt", whole=True),
    Field("step", "number", "step of training", whole=True),
    Field("tokens", "number", "tokens of the segment", whole=True),
    Field("verdict", "choice", "what the verifier said of a leaf", choices=VERDICTS),
    Field(
        "credit",
        "choice",
        "why it has an advantage, or none",
        column="credit_state",
        choices=CREDIT_STATES,
    ),
    Field("run", "text", "a run's name or number", column="run_id"),
    Field("problem", "text", "a problem's name, whole", lookup="exact"),
    Field("tag", "text", "a tag of the node or of its tree"),
    Field("note", "text", "text in a note beside the node or its tree"),
)  # fmt: skip
LANGUAGE = Language(KEYS, patterns=True)
EXAMPLES = (
    ('"even divisors"', "two words, one after the other"),
    ("therefore adv:<-1 depth:>=3", "a word where it cost much"),
    ("verdict:incorrect value:none", "wrong answers without a value"),
    ("45 26 -71", "numbers are words; a minus sign leaves out"),
    (r"/(\d+) *\+ *\1\b/ step:300..412", "a regular expression: a number added to itself"),
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A filter, ready to be looked for: the rows that pass its terms, the index's part, the patterns."""

    wanted: Filter
    rows: QuerySet[IndexedNode]
    places: QuerySet[IndexedPart]  # where nodes of the scope are
    marks: tuple[str, ...]  # tsqueries, as text, that hold of every match
    scope: tuple[str, ...]  # those of them that say where, not what
    scope_rows: QuerySet[IndexedNode]
    words: tuple[str, ...]
    left_out: tuple[str, ...]
    patterns: tuple[Pattern, ...]

    @property
    def by_key(self) -> bool:
        """The index of words and marks has nothing to say; rows are gone through by id."""
        return not (self.marks or self.words or self.left_out)

    @property
    def widest(self) -> int:
        """Blocks of a slice beyond which the whole rest is read at once: only where the index knows it to be
        few.
        """
        return WIDEST if self.marks or self.words else MOST


@dataclass(frozen=True, slots=True)
class Page:
    """Matches, newest first. `before` reads on where `is_complete` is False. `stopped`: the time or the
    nodes of a pattern were used up; `looked` says how many nodes that is, of `n_nodes` in the runs and steps
    asked for.
    """

    nodes: list[dict[str, Any]]  # Any: columns of the index, of the tree and of its run
    before: int | None
    is_complete: bool
    stopped: bool
    looked: int
    n_nodes: int


def ask(project: Project, text: str) -> Asked:
    """Reads the filter and finds the runs it names. Raises FilterError."""
    wanted = parse(text, LANGUAGE)
    for words in wanted.words:
        if any(len(word.encode()) > MAX_WORD_BYTES for word in WORD.findall(words.value)):
            raise FilterError(
                "This word is too long to be indexed. A regular expression finds parts of it.",
                words.start,
                words.end,
            )
        if not WORD.search(words.value):
            raise FilterError(
                f"There is no letter or digit in {words.value}. Text is matched by words; a regular "
                "expression finds signs.",
                words.start,
                words.end,
                text[: words.start] + Pattern(re.escape(words.value)).text() + text[words.end :],
            )
    marks: list[str] = []
    scope: list[str] = []
    rows = scope_rows = IndexedNode.objects.filter(project_id=project.id)
    places = IndexedPart.objects.filter(run__project=project)
    for term in wanted.terms:
        known = LANGUAGE.find(term.key)
        if known is None:
            continue
        if term.key == "run":
            ids = _runs_named(project, term, text)
            holds = Q(run_id__in=ids)
            names = None if term.negated or len(ids) > MAX_MARKS else [f"#r{run_id}" for run_id in ids]
            places = places.filter(~holds if term.negated else holds)
        elif term.key in ("tag", "note"):
            holds, names = _noted(project, term)
        else:
            holds = term_q(known, term.tests)
            names = term_marks(term)
            if term.key == "step" and not term.negated:
                places = places.filter(_steps_meet(term))
        holds = ~holds if term.negated else holds
        rows = rows.filter(holds)
        if names is not None:
            marks.append(any_of(names))
        if term.key in SCOPE:
            scope_rows = scope_rows.filter(holds)
            scope += marks[-1:] if names is not None else []
    return Asked(
        wanted,
        rows,
        places,
        tuple(marks),
        tuple(scope),
        scope_rows,
        tuple(one.value for one in wanted.words if not one.negated),
        tuple(one.value for one in wanted.words if one.negated),
        tuple(wanted.patterns),
    )


def _noted(project: Project, term: Term) -> tuple[Q, list[str] | None]:
    """Nodes beside which such a note stands, and all nodes of a tree beside whose root one stands; and their
    trees' marks.
    """
    said = Q()
    for test in term.tests:
        if isinstance(test, Equals):
            tagged = Q(tags__contains=[test.value.lower().lstrip("#")])
            said |= tagged if term.key == "tag" else Q(text__icontains=test.value)
    notes = Note.objects.filter(said, project=project).order_by("-id").values_list("tree_id", "path")
    places = list(notes[: MAX_NOTED + 1])
    if len(places) > MAX_NOTED:
        raise FilterError(
            f"More than {MAX_NOTED} notes match {term.text()}. Narrow it, or look on the page of notes.",
            term.start,
            term.end,
        )
    trees = {tree for tree, path in places if path == "0"}
    holds = Q(tree_id__in=trees)
    for tree, path in places:
        if tree not in trees:
            holds |= Q(tree_id=tree, path=path)
    return holds, None if term.negated or not places else [
        f"#t{tree}" for tree in {tree for tree, _ in places}
    ]


def _steps_meet(term: Term) -> Q:
    """Parts that hold some of the steps."""
    found = Q()
    for test in term.tests:
        if isinstance(test, Between):
            low = Q() if test.low is None else Q(last_step__gte=int(test.low))
            high = Q() if test.high is None else Q(first_step__lte=int(test.high))
            found |= low & high
    return found


def _runs_named(project: Project, term: Term, text: str) -> list[int]:
    """By name or number."""
    found: list[int] = []
    for test in term.tests:
        name = test.value if isinstance(test, Equals) else ""
        by_name = Q(name=name)
        if name.isascii() and name.isdecimal() and len(name) <= 18:
            by_name |= Q(id=int(name))
        ids = list(Run.objects.filter(by_name, project=project).values_list("id", flat=True)[:100])
        if not ids:
            names = list(
                Run.objects.filter(project=project).order_by("-id").values_list("name", flat=True)[:1000]
            )
            near = difflib.get_close_matches(name, names, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            instead = Term("run", (Equals(near[0]),), term.negated).text() if near else ""
            mended = text[: term.start] + instead + text[term.end :] if near else ""
            raise FilterError(f"There is no run {name} in this project.{hint}", term.start, term.end, mended)
        found += ids
    return found


# ------------------------------------------------------------------------------------------------ one page


@contextmanager
def _looking(seconds: float, *, by_key: bool = False) -> Iterator[None]:
    """A transaction whose every statement ends in time, and that reads through the index of words and marks:
    the planner cannot know that they belong together. `by_key`: through the table's key instead.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            "SELECT set_config('statement_timeout', %s, true), set_config('enable_seqscan', 'off', true), "
            "set_config('enable_indexscan', %s, true), set_config('work_mem', '32MB', true)",
            [f"{math.ceil(1000 * seconds)}ms", "on" if by_key else "off"],
        )
        yield


def _matching(asked: Asked, *more: str, only_scope: bool = False) -> QuerySet[IndexedNode]:
    """Rows whose words and marks are as asked, and that bear `more`."""
    marks = (*(asked.scope if only_scope else asked.marks), *more)
    sql, params = [], []
    if marks:
        sql, params = ["%s::tsquery"], [" & ".join(marks)]
    if not only_scope:
        sql += ["arborist_search_phrase(%s)"] * len(asked.words)
        sql += ["!! arborist_search_phrase(%s)"] * len(asked.left_out)
        params += [*asked.words, *asked.left_out]
    rows = asked.scope_rows if only_scope else asked.rows
    if not sql:
        return rows
    return rows.filter(RawSQL(f"{INDEXED} @@ ({' && '.join(sql)})", params, BooleanField()))  # noqa: S611 (our own text)


def find(asked: Asked, *, before: int | None = None, after: int = 0, limit: int = SEARCH_PAGE) -> Page:
    """The newest matches with ids below `before` and above `after`. Raises FilterError for a pattern the
    database cannot read.
    """
    named = asked.places.filter(last_id__gt=after).values_list("first_id", "last_id")
    places = [(max(first, after + 1), last) for first, last in named]
    highest = top = max((last for _, last in places), default=0)
    if before is not None:
        top = min(top, before - 1)
    start = top
    bottom = min((first for first, _ in places), default=1)
    found = {
        block for first, last in places for block in range(first >> BLOCK_BITS, (last >> BLOCK_BITS) + 1)
    }
    blocks = sorted(found, reverse=True)
    kept: list[dict[str, Any]] = []
    left = SEARCH_PATTERN_NODES  # nodes that a pattern may still be held against
    width, stopped = 1, False
    began = time.monotonic()
    deadline = began + (SEARCH_PATTERN_SECONDS if asked.patterns else SEARCH_SECONDS)
    while len(kept) <= limit:
        blocks = [block for block in blocks if block <= top >> BLOCK_BITS]
        if not blocks or top < bottom:
            break
        if left <= 0 or began > deadline:
            stopped = True
            break
        width = len(blocks) if width > asked.widest else min(width, WIDEST)
        here = blocks[:width]
        lowest = here[-1] << BLOCK_BITS
        ids = (
            max(lowest, min(first for first, last in places if last >= lowest)),
            max(min(last, top) for first, last in places if first <= top),
        )
        try:
            if asked.patterns:
                rows, through, held = _slice_by_pattern(asked, here, ids, limit + 1, left, deadline)
                left -= held
            else:
                rows, through = _slice(asked, here, ids, limit + 1)
        except OperationalError as error:
            if not isinstance(error.__cause__, QueryCanceled):
                raise
            stopped = True
            break
        kept += _with_trees(rows)
        top = through - 1
        began, took = time.monotonic(), time.monotonic() - began
        factor = SLICE_SECONDS / max(took, 1e-4)
        width = max(1, int(width * (min(max(factor, GROWTH[0]), GROWTH[1]) if factor > 1 else factor)))
    more = len(kept) > limit
    if more:
        kept = kept[:limit]
        top = kept[-1]["id"] - 1
    is_complete = not more and not stopped
    return Page(
        kept,
        None if is_complete else top + 1,
        is_complete=is_complete,
        stopped=stopped and not more,
        looked=_nodes_between(places, top + 1, start)
        if not is_complete
        else _nodes_between(places, 0, start),
        n_nodes=_nodes_between(places, 0, highest),
    )


def _nodes_between(places: Sequence[tuple[int, int]], low: int, high: int) -> int:
    """Nodes of these parts with ids `low..high`."""
    return sum(max(0, min(last, high) - max(first, low) + 1) for first, last in places)


# They take a processor of the database each, so few at once in one process.
_patterns = threading.BoundedSemaphore(2)
_SHOWN = (
    "id", "run_id", "tree_id", "step", "value", "advantage", "tokens", "depth", "verdict", "credit_state",
    "path", "text",
)  # fmt: skip


def _between(asked: Asked, blocks: Sequence[int], ids: tuple[int, int]) -> QuerySet[IndexedNode]:
    """Matches with these ids, which lie in these blocks, newest first. Of many blocks the index is not told:
    it would go through all their nodes.
    """
    named = [any_of(f"#b{block}" for block in blocks)]
    if asked.by_key or len(blocks) > asked.widest:
        named = []
    return _matching(asked, *named).filter(id__gte=ids[0], id__lte=ids[1]).order_by("-id")


def _slice(
    asked: Asked, blocks: Sequence[int], ids: tuple[int, int], limit: int
) -> tuple[list[dict[str, Any]], int]:
    """At most `limit` matches with these ids, and the lowest id that was looked at."""
    with _looking(SEARCH_STATEMENT_SECONDS, by_key=asked.by_key):
        found = list(_between(asked, blocks, ids).values(*_SHOWN)[:limit])
    return found, found[-1]["id"] if len(found) == limit else ids[0]


def _slice_by_pattern(
    asked: Asked, blocks: Sequence[int], ids: tuple[int, int], limit: int, left: int, deadline: float
) -> tuple[list[dict[str, Any]], int, int]:
    """The same, of at most `left` nodes that pass everything but the patterns, which are held against their
    texts; and of how many.
    """
    rows = _between(asked, blocks, ids)
    try:
        inner, inner_params = rows.values("id", "text")[:left].query.sql_with_params()
    except EmptyResultSet:
        return [], ids[0], 0
    left_seconds = max(deadline - time.monotonic(), 0.05)
    holds = " AND ".join(f"text {'!~' if one.negated else '~'} %s" for one in asked.patterns)
    if not _patterns.acquire(timeout=left_seconds):
        raise RequestError(503, "Other regular expressions are being looked for. Try again in a moment.")
    try:
        with _looking(left_seconds, by_key=asked.by_key), connection.cursor() as cursor:
            cursor.execute(
                f"WITH tried AS MATERIALIZED ({inner}) "  # noqa: S608 (all of it our own)
                "SELECT (SELECT count(*) FROM tried), (SELECT min(id) FROM tried), "
                f"ARRAY(SELECT id FROM tried WHERE {holds} ORDER BY id DESC LIMIT %s)",
                [*inner_params, *(one.value for one in asked.patterns), limit],
            )
            held, lowest, matched = cursor.fetchone()
            found = {row["id"]: row for row in IndexedNode.objects.filter(id__in=matched).values(*_SHOWN)}
            for one in asked.patterns[:1]:
                if not one.negated and matched:
                    cursor.execute(
                        "SELECT id, regexp_instr(text, %s) - 1, regexp_instr(text, %s, 1, 1, 1) - 1 "
                        "FROM arborist_search_node WHERE id = ANY(%s)",
                        [one.value, one.value, matched],
                    )
                    for node_id, begin, end in cursor.fetchall():
                        found[node_id]["hit"] = (begin, end)
    except DataError as error:
        if not isinstance(error.__cause__, InvalidRegularExpression):
            raise
        raise FilterError(
            f"This is no regular expression: {str(error.__cause__).partition('expression: ')[2] or error}.",
            asked.patterns[0].start,
            asked.patterns[0].end,
        ) from error
    finally:
        _patterns.release()
    through = ids[0]
    if len(matched) == limit:
        through = matched[-1]
    elif held == left:
        through = lowest
    return [found[node_id] for node_id in matched if node_id in found], through, held


def _with_trees(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows whose tree is there, with what is shown of tree and run. What an attempt hid is gone. One
    query.
    """
    ids = {row["tree_id"] for row in rows}
    if not ids:
        return []
    trees = StoredTree.objects.filter(id__in=ids, superseded=False).values(
        "id", "problem_id", "n_nodes", run_name=F("run__name"), colour=F("run__colour")
    )
    by_id: dict[int, dict[str, Any]] = {tree["id"]: {**tree} for tree in trees}
    return [{**by_id[row["tree_id"]], **row} for row in rows if row["tree_id"] in by_id]


# ------------------------------------------------------------------------------------------------ how many


@dataclass(frozen=True, slots=True)
class Bar:
    """Steps `low..high`: matches, and nodes in all, both as far as they are known."""

    low: int
    high: int
    matches: float
    nodes: float

    @property
    def share(self) -> float | None:
        return min(self.matches / self.nodes, 1.0) if self.nodes else None


@dataclass(frozen=True, slots=True)
class Tally:
    """Matches in all and by step, run, depth, verdict and advantage. `every` is 1 when all were counted;
    else one node in `every` was, and the counts are multiples.
    """

    n: int
    every: int
    share_every: int
    bars: list[Bar]
    runs: list[tuple[int, str, int, int]]  # id, name, colour, matches
    depths: list[tuple[int, int]]
    verdicts: list[tuple[str, int]]
    advantages: list[tuple[Test, int]]


ADVANTAGES: tuple[Test, ...] = (
    Between(None, -2, with_high=False),
    *(Between(low, high, with_high=False) for low, high in pairwise((-2, -1, -0.25, 0.25, 1, 2))),
    Between(2, None),
    Missing(),
)  # every advantage passes just one
_COUNTED = ("run_id", "step", "depth", "verdict", "advantage")


def tally(project: Project, asked: Asked) -> Tally | None:
    """None: it took too long. Patterns are not counted: the filter must have none."""
    places = list(asked.places.values_list("first_id", "last_id"))
    try:
        rows, every = _sampled(asked, places, only_scope=False)
        scope, share_every = _sampled(asked, places, only_scope=True)
    except OperationalError as error:
        if not isinstance(error.__cause__, QueryCanceled):
            raise
        return None
    found = Counter(row[0] for row in rows)
    names = Run.objects.filter(id__in=found, project=project).values_list("id", "name", "colour")
    words = {number: word for word, number in VERDICTS.items()}
    return Tally(
        n=len(rows) * every,
        every=every,
        share_every=share_every,
        bars=_bars([row[1] for row in rows], every, [row[1] for row in scope], share_every),
        runs=sorted(
            ((run, name, colour, found[run] * every) for run, name, colour in names), key=lambda row: -row[3]
        ),
        depths=sorted((depth, n * every) for depth, n in Counter(row[2] for row in rows).items()),
        verdicts=[
            (words[verdict], n * every) for verdict, n in sorted(Counter(row[3] for row in rows).items())
        ],
        advantages=[
            (test, n * every) for test in ADVANTAGES if (n := sum(_passes(test, row[4]) for row in rows))
        ],
    )


def _passes(test: Test, number: float | None) -> bool:
    if number is None or not isinstance(test, Between):
        return number is None and isinstance(test, Missing)
    return test.holds(number)


def _sampled(
    asked: Asked, places: Sequence[tuple[int, int]], *, only_scope: bool
) -> tuple[list[tuple[Any, ...]], int]:
    """All rows where they are few, else those of a sample, and one in how many it is. Raises OperationalError
    when it takes too long.
    """
    n_nodes = _nodes_between(places, 0, MOST)
    if not n_nodes:
        return [], 1
    columns = _COUNTED if not only_scope else ("run_id", "step")
    has_index = bool(asked.scope) if only_scope else bool(asked.marks or asked.words)
    here = _in_ranges(places)

    def read(*marks: str, limit: int | None = None, seconds: float = SEARCH_STATEMENT_SECONDS) -> list[Any]:
        rows = _matching(asked, *marks, only_scope=only_scope).filter(here).values_list(*columns)
        with _looking(seconds, by_key=not marks and not has_index):
            return list(rows[:limit] if limit else rows)

    every = max(SAMPLES)
    if n_nodes > SEARCH_COUNTED:
        rough = read(quoted(SAMPLES[every]))
        # Without the index a larger sample would mean to go through most of the table.
        if len(rough) > 16 * FEW or (not has_index and n_nodes > ALL_READ):
            return rough, every
        if len(rough) > FEW:
            return read(quoted(SAMPLES[16])), 16
    try:
        rows = read(limit=SEARCH_COUNTED + 1, seconds=SEARCH_STATEMENT_SECONDS / 2)
    except OperationalError as error:
        if not isinstance(error.__cause__, QueryCanceled):
            raise
        rows = []
    else:
        if len(rows) <= SEARCH_COUNTED:
            return rows, 1
    return read(quoted(SAMPLES[16])), 16


def _in_ranges(places: Sequence[tuple[int, int]]) -> Q:
    """Ids of the places, where they are few stretches; else whatever lies between the first and the last."""
    stretches: list[list[int]] = []
    for first, last in sorted(places):
        if stretches and first <= stretches[-1][1] + 1:
            stretches[-1][1] = max(stretches[-1][1], last)
        else:
            stretches.append([first, last])
    if len(stretches) > MAX_STRETCHES:
        stretches = [[stretches[0][0], max(last for _, last in stretches)]]
    return reduce(or_, (Q(id__gte=first, id__lte=last) for first, last in stretches))


def _bars(steps: Sequence[int], every: int, all_steps: Sequence[int], all_every: int) -> list[Bar]:
    """At most 48 bars over the steps there are nodes of, of a round width."""
    seen = [*all_steps, *steps]
    if not seen:
        return []
    first, last = min(seen), max(seen)
    width = 1
    while (last // width) - (first // width) + 1 > MAX_BARS:
        width = width * 5 // 2 if str(width)[0] == "2" else width * 2  # 1, 2, 5, 10, 20, …
    matches, nodes = (Counter(step // width for step in some) for some in (steps, all_steps))
    return [
        Bar(place * width, place * width + width - 1, matches[place] * every, nodes[place] * all_every)
        for place in range(first // width, last // width + 1)
    ]


# ------------------------------------------------------------------------------------------------ how far


def behind(project: Project) -> list[dict[str, Any]]:
    """The runs whose newest trees are not indexed: `id, name, step` (of the index, or None). One query."""
    newer = StoredTree.objects.filter(run=OuterRef("pk"), superseded=False)
    waiting = Run.objects.filter(project=project).exclude(search_cursor__seq__gte=F("last_seq"))
    waiting = waiting.annotate(indexed_step=F("search_cursor__step"))
    waiting = waiting.filter(Exists(newer.filter(seq__gt=Coalesce(OuterRef("search_cursor__seq"), 0))))
    rows = waiting.order_by("-id").values("id", "name", "step", "indexed_step")[:20]
    return [{**row} for row in rows]
