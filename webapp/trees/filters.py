"""What a list of trees can be filtered by, and the named combinations of filter and order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import or_
from typing import Any

from django.db import connection
from django.db.models import F, FloatField, Q, QuerySet
from django.db.models.functions import Cast, Coalesce, NullIf
from django.db.models.lookups import Exact, GreaterThan, GreaterThanOrEqual, IsNull, LessThan, LessThanOrEqual

from webapp.filters import Between, Field, Filter, Language, Missing, Test, Words, to_q
from webapp.runs.models import Run
from webapp.trees.models import StoredTree

ANSWERS = Coalesce(F("n_answers"), F("n_leaves"))
MAX_PROBLEMS = 10_000  # whose texts are looked through for a filter's words
DUPLICATED = 0.2  # share of repeated segments from which a tree is flagged


# The share of answers that are correct; NULL without an answer.
SOLVED = Cast(F("n_correct"), FloatField()) / NullIf(Cast(ANSWERS, FloatField()), 0.0)


def _tested(number: Any, tests: Sequence[Test]) -> Q:
    """Rows whose `number`, an expression, passes one of the tests."""

    def one(test: Test) -> Q:
        if isinstance(test, Missing):
            return Q(IsNull(number, True))
        if not isinstance(test, Between):
            raise TypeError(test)
        if test.low is not None and test.low == test.high:
            return Q(Exact(number, test.low))
        found = Q()
        if test.low is not None:
            found &= Q((GreaterThanOrEqual if test.with_low else GreaterThan)(number, test.low))
        if test.high is not None:
            found &= Q((LessThanOrEqual if test.with_high else LessThan)(number, test.high))
        return found

    return reduce(or_, map(one, tests))


# What a flag says of a tree; the same words stand in its row.
FLAGS: Mapping[str, Q] = {
    "cliff": Q(cliff__isnull=False),
    "dup": Q(duplicate_share__gte=DUPLICATED),
    "flips": Q(grpo_flips__gt=0),
    "errors": Q(n_errors__gt=0),
    "unparsed": Q(n_unparsed__gt=0),
    "truncated": Q(n_truncated__gt=0),
    "no-credit": Q(advantage_spread__isnull=True),
}

TREE_LANGUAGE = Language(
    fields=(
        Field("value", "number", "value of the root", nullable=True, aliases=("v",)),
        Field("solve", "number", "share of correct answers", nullable=True, make=partial(_tested, SOLVED)),
        Field("correct", "number", "correct answers", "n_correct", whole=True),
        Field("answers", "number", "sampled answers", whole=True, make=partial(_tested, ANSWERS)),
        Field(
            "spread", "number", "largest less smallest advantage; none: no credit", "advantage_spread",
            nullable=True,
        ),
        Field("cliff", "number", "the value cliff's drop, below 0", nullable=True, aliases=("drop",)),
        Field(
            "zero_var", "number", "share of sibling groups whose values are all equal", "zero_variance_share",
            nullable=True, aliases=("zerovar", "0-var"),
        ),
        Field("tokens", "number", "unique tokens sampled", whole=True),
        Field("nodes", "number", "nodes, the prompt included", "n_nodes", whole=True),
        Field("depth", "number", "levels below the prompt", whole=True),
        Field("entropy", "number", "mean entropy of the sampled tokens, nats", "mean_entropy", nullable=True),
        Field("max_entropy", "number", "largest entropy of a token, nats", nullable=True),
        Field(
            "logprob", "number", "mean log-probability of the sampled tokens, nats", "mean_logprob",
            nullable=True,
        ),
        Field(
            "duplicates", "number", "share of segments that repeat a sibling", "duplicate_share",
            nullable=True, aliases=("dup",),
        ),
        Field(
            "flips", "number", "segments that plain GRPO would push the other way", "grpo_flips", whole=True,
            nullable=True,
        ),
        Field("errors", "number", "answers at which the verifier failed", "n_errors", whole=True),
        Field("unparsed", "number", "answers that could not be read", "n_unparsed", whole=True),
        Field("truncated", "number", "answers cut off before their end", "n_truncated", whole=True),
        Field("step", "number", "training step", whole=True),
        Field("problem", "text", "the problem's id, whole", "problem_id", lookup="exact", aliases=("id",)),
        Field("flag", "choice", "what a row is marked with", choices=FLAGS, aliases=("is",)),
    )
)  # fmt: skip


def matching(trees: QuerySet[StoredTree], wanted: Filter, run: Run | None = None) -> QuerySet[StoredTree]:
    """The trees that pass the filter; free text is looked for in the problem, case ignored. `run`: the one
    run that all of them are of.
    """
    found = trees.filter(to_q(wanted, TREE_LANGUAGE)) if wanted.terms else trees
    if not wanted.words:
        return found
    problems = None if run is None else _problems_with(run, wanted.words)
    if problems is not None:
        return found.filter(problem_id__in=problems)
    for words in wanted.words:
        holds = Q(prompt__icontains=words.value)
        found = found.filter(~holds if words.negated else holds)
    return found


def _problems_with(run: Run, words: Sequence[Words]) -> list[str] | None:
    """The problems of a run whose text holds the words; None when it has too many to look at. A problem has
    one text, so it is read once and not in every tree: one probe of an index for each.
    """
    holds = " AND ".join(
        f"position(upper(%s) in upper(t.prompt)) {'= 0' if one.negated else '> 0'}" for one in words
    )
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            WITH RECURSIVE problem (id) AS (
                (SELECT problem_id FROM arborist_tree WHERE run_id = %s ORDER BY problem_id LIMIT 1)
                UNION ALL
                SELECT (
                    SELECT problem_id FROM arborist_tree
                    WHERE run_id = %s AND problem_id > problem.id ORDER BY problem_id LIMIT 1
                ) FROM problem WHERE problem.id IS NOT NULL
            ), looked_at AS (SELECT id FROM problem WHERE id IS NOT NULL LIMIT %s)
            SELECT looked_at.id, {holds} FROM looked_at
            CROSS JOIN LATERAL (
                SELECT prompt FROM arborist_tree WHERE run_id = %s AND problem_id = looked_at.id LIMIT 1
            ) t
            """,  # noqa: S608 (made of signs alone)
            [run.id, run.id, MAX_PROBLEMS + 1, *(one.value for one in words), run.id],
        )
        rows = cursor.fetchall()
    return None if len(rows) > MAX_PROBLEMS else [problem for problem, is_found in rows if is_found]


@dataclass(frozen=True, slots=True)
class Preset:
    """A filter and an order with a name. The order makes the index of its signal find the trees at once."""

    title: str
    filter: str
    sort: str
    help: str


PRESETS: Sequence[Preset] = (
    Preset("Most informative", "value:0.3..0.7", "-spread", "Values near one half, widest advantages first"),
    Preset("Value cliffs", "flag:cliff", "cliff", "Where answers start to fail, deepest drop first"),
    Preset("All wrong", "correct:0 answers:>0", "value", "No answer is correct"),
    Preset("All right", "solve:1", "-value", "Every answer is correct"),
    Preset("No credit", "spread:none", "spread", "No segment has an advantage: nothing is learned here"),
    Preset("Verifier trouble", "errors:>0", "-errors", "The verifier failed at some answers, most first"),
    Preset("Longest", "", "-tokens", "Most sampled tokens first"),
    Preset("Duplicated branches", f"duplicates:>={DUPLICATED}", "-duplicates", "Siblings that say the same"),
    Preset("Disagree with GRPO", "flips:>0", "-flips", "Segments that plain GRPO would push the other way"),
)
