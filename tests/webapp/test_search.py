"""Search over nodes: against a slow filter in Python, across projects, after crashes and restarts, in
time.
"""

from __future__ import annotations

import random
import re
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from django.db import connection

from tests.webapp.material import MORNING, People, add_tree, next_event
from trainer.tree import CreditState, RolloutTree, Verdict, sampled_tree
from webapp.filters import Between, Equals, FilterError, Missing, Pattern, Term, Words, parse
from webapp.runs import services
from webapp.runs.models import Run
from webapp.search import finding, indexer
from webapp.search.models import IndexCursor, IndexedNode
from webapp.search.views import _trend
from webapp.trees.models import StoredTree

if TYPE_CHECKING:
    from trainer.config import RunConfig
    from webapp.filters import Part
    from webapp.projects.models import Project

WORDS = (
    "so",
    "the",
    "even",
    "divisors",
    "of",
    "45",
    "26",
    "71",
    "45+26=71",
    "total",
    "√2",
    "<b>x</b>",
    "don't",
    "then-therefore",
    "x_1",
)


def grown(rng: random.Random, step: int, problem: str) -> RolloutTree:
    """A tree of two levels with any texts, values, advantages and verdicts, some of them missing."""
    n = rng.randint(4, 9)
    parent = [-1, 0, 0, *sorted(rng.randint(1, 2) for _ in range(n - 3))]
    counts = [rng.randint(1, 90) for _ in range(n)]
    tree = sampled_tree(
        problem_id=problem,
        reference_answer="1",
        step=step,
        policy_version=0,
        parent=parent,
        segment_tokens=[[1] * count for count in counts],
        segment_logprobs=[[0.0] * count for count in counts],
        segment_entropies=[[0.0] * count for count in counts],
        finish=[0] * n,
        texts=["even divisors", *(" ".join(rng.choices(WORDS, k=rng.randint(1, 7))) for _ in range(n - 1))],
    )
    verdict = np.where(tree.is_leaf(), [rng.randint(0, 5) for _ in range(n)], 0).astype(np.uint8)
    advantage = np.array([rng.choice([np.nan, -12.0, -1.25, -1.0, -0.1, 0.0, 0.3, 2.5]) for _ in range(n)])
    value = np.array([rng.choice([np.nan, 0.0, 0.25, 1 / 3, 1.0]) for _ in range(n)])
    state = np.where(np.isnan(advantage), CreditState.DROPPED_BY_FILTER, CreditState.CREDITED)
    tree = tree.with_verdicts(verdict, np.full(n, np.nan), [""] * n)
    return tree.with_credit(value, advantage, state.astype(np.uint8))


def skip_ids(n: int) -> None:
    """As if other nodes had come between: the next ones lie `n` further on."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT setval(s, nextval(s) + %s) FROM pg_get_serial_sequence(%s, 'id') AS s",
            [n, "arborist_search_node"],
        )


# ---- the slow, obvious search


def words_of(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def holds(part: Part, node: dict[str, Any]) -> bool:
    if isinstance(part, Words):
        wanted, there = words_of(part.value), words_of(node["text"])
        found = any(there[i : i + len(wanted)] == wanted for i in range(len(there)))
    elif isinstance(part, Pattern):
        found = re.search(part.value, node["text"]) is not None
    else:
        found = any(_passes(part, test, node) for test in part.tests)
    return found != part.negated


def _passes(term: Term, test: Any, node: dict[str, Any]) -> bool:
    value = node[term.key]
    if isinstance(test, Between):
        return not np.isnan(value) and test.holds(value)
    if isinstance(test, Missing):
        return bool(np.isnan(value))
    assert isinstance(test, Equals)
    return bool(value == test.value)


def slow_search(trees: list[StoredTree], text: str) -> list[tuple[int, str]]:
    """(tree, node) of the matches, the newest tree first."""
    wanted = parse(text, finding.LANGUAGE)
    found = []
    for stored in trees:
        tree = RolloutTree.from_payload(bytes(stored.payload))
        for i in range(1, tree.n_nodes):
            verdict, state = Verdict(int(tree.verdict[i])), CreditState(int(tree.credit_state[i]))
            node = {
                "text": tree.texts[i],
                "adv": tree.advantage[i],
                "value": tree.value[i],
                "depth": len(tree.path(i)) - 1,
                "step": stored.step,
                "tokens": int(tree.token_counts()[i]),
                "verdict": verdict.word if verdict else "inner",
                "credit": state.word,
                "problem": stored.problem_id,
                "run": stored.run.name,
            }
            if all(holds(part, node) for part in wanted):
                found.append((stored.id, tree.name(i)))
    return found[::-1]


QUESTIONS = [
    "", "even", '"even divisors"', '"divisors even" -45', "71", '"45+26"', "x", "dont", "don t", "√2",
    "THEREFORE",
    "adv:<-1", "adv:<=-1", "adv:-1.25..-0.1", "-adv:<0", "adv:none", "-adv:none", "adv:<-11 even", "adv:0",
    "value:0.25,1", "value:>0.3 value:<0.9", "depth:2", "depth:>=2 -verdict:inner,error", "step:2..3",
    "step:>64",
    "tokens:33..64", "tokens:>80 the", "verdict:correct", "verdict:incorrect,error total", "credit:credited",
    "run:first", "-run:first", "run:first,second of", "problem:p-1", "-problem:p-1 step:1", r"/\d\+\d/",
    r"/(?i)EVEN +d/ adv:>0", r"-/[a-z]/ depth:1", "even /x/ -so",
]  # fmt: skip

EMPTY = {"dont"}


@pytest.fixture
def planted(project: Project, people: People, config: RunConfig) -> list[StoredTree]:
    """Trees of two runs, in the order they were made, over several blocks of the index."""
    rng = random.Random(7)
    runs = [services.create_run(project, people.editor, config, name) for name in ("first", "second")]
    made = []
    for step in (1, 2, 3, 70):
        for run in runs:
            made += [add_tree(run, step, grown(rng, step, f"p-{i}"), i) for i in range(3)]
        indexer.index_all()
        skip_ids(90_000 * step)
    return made


def test_search_finds_what_a_slow_search_finds_page_by_page(
    planted: list[StoredTree], project: Project
) -> None:
    for text in QUESTIONS:
        expected = slow_search(planted, text)
        assert expected or text in EMPTY, f"{text} asks for nothing that is there"
        found: list[tuple[int, str]] = []
        before = None
        while True:
            page = finding.find(finding.ask(project, text), before=before, limit=10)
            found += [(node["tree_id"], node["path"]) for node in page.nodes]
            before = page.before
            if before is None:
                break
            assert page.nodes, text
        assert found == expected, text
        asked = finding.ask(project, text)
        if not asked.patterns:
            tally = finding.tally(project, asked)
            assert tally is not None
            assert (tally.n, tally.every) == (len(expected), 1), text
            assert sum(bar.matches for bar in tally.bars) == sum(n for *_, n in tally.runs) == len(expected)


def test_the_sample_stands_for_all(
    planted: list[StoredTree], project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each node bears its marks by chance; what is counted is multiplied back."""
    monkeypatch.setattr(finding, "SEARCH_COUNTED", 5)
    monkeypatch.setattr(finding, "FEW", 0)
    rng = random.Random(1)
    run = planted[0].run
    for i in range(300):
        add_tree(run, 4, grown(rng, 4, "p-9"), i)
    indexer.index_all()
    tally = finding.tally(project, finding.ask(project, "problem:p-9"))
    assert tally is not None
    n = IndexedNode.objects.filter(problem="p-9").count()
    assert tally.every in finding.SAMPLES
    assert tally.n == pytest.approx(n, abs=6 * (n * tally.every) ** 0.5)
    assert tally.n % tally.every == 0
    bar = next(bar for bar in tally.bars if bar.low <= 4 <= bar.high)
    assert bar.matches == tally.n


# ---- the index


def snapshot() -> list[tuple[Any, ...]]:
    return list(
        IndexedNode.objects.order_by("tree_id", "path").values_list("tree_id", "path", "text", "advantage")
    )


def test_a_crash_while_indexing_repeats_nothing_and_leaves_nothing_out(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer, "SEARCH_BATCH_NODES", 1)  # a tree at a time
    assert indexer.index_once() == 6
    real = indexer._copy

    def crash(*args: Any) -> Any:
        real(*args)
        raise RuntimeError("killed between the rows and the cursor")

    monkeypatch.setattr(indexer, "_copy", crash)
    with pytest.raises(RuntimeError):
        indexer.index_once()
    monkeypatch.setattr(indexer, "_copy", real)
    assert IndexedNode.objects.count() == 6
    assert indexer.index_all() == 6
    before = snapshot()
    assert len(before) == len(set(before)) == 12
    assert indexer.index_all() == 0
    assert indexer.is_caught_up()
    assert IndexCursor.objects.get(run=run).nodes == 12

    indexer.forget_all()
    assert indexer.index_all() == 12
    assert snapshot() == before


def test_trees_that_a_restart_hid_leave_the_index(run: Run) -> None:
    indexer.index_all()
    hidden, kept = run.trees.order_by("-seq")
    # As the recorder does it: the event that an attempt started, and the trees after its checkpoint
    # superseded.
    next_event(run, "started", 1, {})
    StoredTree.objects.filter(id=hidden.id).update(superseded=True)
    # Until the indexer comes round they are not shown.
    page = finding.find(finding.ask(run.project, ""))
    assert {node["tree_id"] for node in page.nodes} == {kept.id}
    indexer.index_all()
    assert set(IndexedNode.objects.values_list("tree_id", flat=True)) == {kept.id}
    assert IndexCursor.objects.get(run=run).nodes == 6


def test_a_damaged_tree_is_left_out_and_the_rest_is_found(run: Run) -> None:
    StoredTree.objects.filter(run=run, step=1).update(payload=b"broken")
    assert indexer.index_all() == 6
    assert finding.behind(run.project) == []


def test_the_page_knows_how_far_the_index_is(run: Run) -> None:
    assert [(one["id"], one["indexed_step"]) for one in finding.behind(run.project)] == [(run.id, None)]
    indexer.index_all()
    next_event(run, "metrics", 3, {})  # no tree: nothing to wait for
    assert finding.behind(run.project) == []
    from tests.webapp.material import worked_tree

    add_tree(run, 3, worked_tree(3))
    assert [one["indexed_step"] for one in finding.behind(run.project)] == [2]


def test_a_run_that_trains_is_indexed_only_while_somebody_searches(run: Run, people: People) -> None:
    assert run.is_active
    assert indexer.index_all(only_wanted=True) == 0
    people.client("viewer").get("/p/lab/search")
    assert indexer.index_all(only_wanted=True) == 12
    indexer.forget_all()
    with connection.cursor() as cursor:
        cursor.execute("UPDATE arborist_search_demand SET asked_at = asked_at - interval '16 minutes'")
    assert indexer.index_all(only_wanted=True) == 0
    Run.objects.filter(id=run.id).update(status="succeeded", ended_at=MORNING, lease_until=None)
    assert indexer.index_all(only_wanted=True) == 12


# ---- what is asked


@pytest.mark.parametrize(
    ("text", "told", "suggestion"),
    [
        ("run:frist", "no run frist in this project. Did you mean first?", "run:first"),
        ('even "+"', "no letter or digit", r"even /\+/"),
        ("run:999", "no run 999", ""),
        ("①²", "no letter or digit", "/①²/"),
        ("数" * 700, "too long to be indexed", ""),
    ],
)
def test_a_question_that_names_nothing_says_so(
    run: Run, project: Project, text: str, told: str, suggestion: str
) -> None:
    with pytest.raises(FilterError, match=re.escape(told)) as refused:
        finding.ask(project, text)
    assert refused.value.suggestion == suggestion


def test_a_run_of_another_project_is_no_run_here(run: Run, people: People, config: RunConfig) -> None:
    from webapp.projects.models import Project

    elsewhere = Project.objects.get(slug="elsewhere")
    other = services.create_run(elsewhere, people.stranger, config, "theirs")
    add_tree(other, 1, grown(random.Random(1), 1, "p-1"))
    indexer.index_all()
    for text in (f"run:{other.id}", "run:theirs"):
        with pytest.raises(FilterError, match="no run"):
            finding.ask(run.project, text)
    found = finding.find(finding.ask(run.project, ""), limit=1000)
    assert {node["run_id"] for node in found.nodes} == {run.id}


def test_a_pattern_ends_in_time_and_a_wrong_one_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(1)
    tree = grown(rng, 5, "p-1")
    long = RolloutTree.from_payload(tree.to_payload())
    object.__setattr__(long, "texts", ("", *["a" * 6000 + "b"] * (tree.n_nodes - 1)))
    add_tree(run, 5, long)
    indexer.index_all()
    monkeypatch.setattr(finding, "SEARCH_PATTERN_SECONDS", 0.5)
    began = time.monotonic()
    # Back-references make this one try every length at every place.
    page = finding.find(finding.ask(run.project, r"/(a+)(a+)(a+)\1\2\3b$/"))
    assert time.monotonic() - began < 20  # unbounded it would take hours
    assert page.stopped
    assert page.before is not None
    with pytest.raises(FilterError, match="no regular expression") as refused:
        finding.find(finding.ask(run.project, "even /(/"))
    assert (refused.value.start, refused.value.end) == (5, 8)


@pytest.mark.parametrize("advantage", [None, -2.5, -2.0, -1.0, -0.25, 0.0, 0.25, 1.0, 1.5, 2.0, 3.0])
def test_every_advantage_is_counted_once(advantage: float | None) -> None:
    assert sum(finding._passes(test, advantage) for test in finding.ADVANTAGES) == 1


@pytest.mark.parametrize(
    ("every", "matches", "word"),
    [
        (1, (8, 5, 13), "more frequent"),  # all were counted: 8 and 13 are what there is
        (256, (8, 5, 13), "about as frequent"),  # so few of a sample differ by chance
        (256, (80, 50, 130), "more frequent"),
        (256, (130, 50, 80), "less frequent"),
        (1, (100, 100, 110), "about as frequent"),
    ],
)
def test_a_trend_is_told_where_it_is_more_than_chance(
    every: int, matches: tuple[int, int, int], word: str
) -> None:
    bars = [finding.Bar(n, n, every * count, every * 1000) for n, count in enumerate(matches)]
    n = every * sum(matches)
    told = _trend(finding.Tally(n, every, every, bars, runs=[], depths=[], verdicts=[], advantages=[]))
    assert told is not None
    assert told["word"] == word
