"""Lists of a run's trees: pages by key, scope, order, filter, counts, steps; the page and the API."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tests.webapp.material import People, add_tree, worked_tree
from trainer.summary import summarise
from trainer.tree import RolloutTree
from webapp.filters import FilterError
from webapp.runs.models import Run, RunStatus
from webapp.trees import querysets
from webapp.trees.filters import FLAGS, PRESETS
from webapp.trees.lists import ListAddress, flags_of, read_filter
from webapp.trees.models import StoredTree, summary_columns
from webapp.trees.querysets import (
    SORTS,
    Scope,
    count_up_to,
    icicles_of,
    newest_step,
    steps_beside,
    steps_with_trees,
    tree_row,
    trees_in,
    trees_page,
)


@pytest.fixture
def client(people: People) -> Client:
    return people.client("viewer")


def plant(run: Run, changes: list[dict[str, Any]]) -> list[StoredTree]:
    """One tree for each; its summary is the worked tree's but for the changes."""
    tree = worked_tree()
    usual = {
        "run": run, "epoch": 1, "step": 5, "index": 0, "problem_id": "p", "prompt": "How many books?",
        "payload": tree.to_payload(), **summary_columns(summarise(tree)),
    }  # fmt: skip
    first = StoredTree.objects.filter(run=run).order_by("-seq").values_list("seq", flat=True).first() or 0
    made = [StoredTree(**{**usual, "seq": first + 1 + n, "index": n, **one}) for n, one in enumerate(changes)]
    return StoredTree.objects.bulk_create(made)


@pytest.fixture
def forest(run: Run) -> list[StoredTree]:
    """Sixty trees of steps 3 to 8 with ties and missing values in every signal, some superseded."""
    StoredTree.objects.filter(run=run).delete()
    chance = random.Random(7)
    return plant(
        run,
        [
            {
                "step": 3 + n // 10,
                "superseded": n % 11 == 5,
                "value": chance.choice([None, 0.0, 0.5, 0.5, 1.0]),
                "advantage_spread": chance.choice([None, 1.5, 3.0]),
                "cliff": chance.choice([None, None, -0.5, -0.25]),
                "zero_variance_share": chance.choice([None, 0.0, 1.0]),
                "tokens": chance.choice([3, 3, 900]),
                "n_nodes": chance.choice([7, 8]),
                "depth": chance.choice([1, 2, 3]),
                "mean_entropy": chance.choice([None, 0.25]),
                "duplicate_share": chance.choice([None, 0.0, 0.5]),
                "n_errors": chance.choice([0, 0, 2]),
                "grpo_flips": chance.choice([None, 0, 4]),
            }
            for n in range(60)
        ],
    )


def pages(run: Run, scope: Scope, sort: str, limit: int, q: str = "") -> Iterator[dict[str, Any]]:
    after = None
    while True:
        rows, after = trees_page(run, scope, read_filter(q), sort=sort, after=after, limit=limit)
        assert len(rows) == limit or after is None
        yield from rows
        if after is None:
            return


def plain(trees: list[StoredTree], sort: str) -> list[int]:
    """The same order, the obvious way."""
    columns = (*SORTS[sort.removeprefix("-")].columns, "id")
    signal = columns[-2]
    there = [tree for tree in trees if getattr(tree, signal) is not None]
    missing = [tree for tree in trees if getattr(tree, signal) is None]
    for part in (there, missing):
        part.sort(key=lambda tree: [getattr(tree, name) or 0 for name in columns], reverse=sort[0] == "-")
    return [tree.id for tree in there + missing]


@pytest.mark.parametrize("scope", [Scope(), Scope(4, 6), Scope.of_step(7), Scope(None, 3), Scope(8)])
def test_pages_by_key_are_the_plain_order_cut_in_pieces(
    run: Run, forest: list[StoredTree], scope: Scope
) -> None:
    kept = [
        tree
        for tree in forest
        if not tree.superseded and (scope.first or 0) <= tree.step <= (scope.last or 99)
    ]
    for name in SORTS:
        for sort in (name, f"-{name}"):
            assert [row["id"] for row in pages(run, scope, sort, 7)] == plain(kept, sort), sort
    assert [row["id"] for row in pages(run, scope, "-value", 1)] == plain(kept, "-value")


def test_a_filtered_list_pages_likewise(run: Run, forest: list[StoredTree]) -> None:
    kept = [tree for tree in forest if not tree.superseded and tree.tokens == 3 and tree.value != 0.5]
    assert 5 < len(kept) < 40
    found = [row["id"] for row in pages(run, Scope(), "-spread", 4, "tokens:<10 -value:0.5")]
    assert found == plain(kept, "-spread")


def test_a_page_goes_on_after_a_tree_that_was_superseded_meanwhile(
    run: Run, forest: list[StoredTree]
) -> None:
    whole = [row["id"] for row in pages(run, Scope(), "value", 200)]
    StoredTree.objects.filter(id=whole[9]).update(superseded=True)
    rows, _ = trees_page(run, Scope(), sort="value", after=whole[9], limit=5)
    assert [row["id"] for row in rows] == whole[10:15]


def test_no_order_sorts_a_whole_run(run: Run) -> None:
    """Each order of all steps is read along its index: the plan holds no sort of more than ties."""
    plant(run, [{"step": n // 5, "value": n / 700, "advantage_spread": n / 9} for n in range(700)])
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE arborist_tree")
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute("SET LOCAL enable_bitmapscan = off")
    for name in SORTS:
        for sort in (name, f"-{name}"):
            with CaptureQueriesContext(connection) as asked:
                _, after = trees_page(run, Scope(), sort=sort, limit=50)
                trees_page(run, Scope(), sort=sort, after=after, limit=50)
            for query in asked:
                if not query["sql"].startswith("SELECT") or "LIMIT" not in query["sql"]:
                    continue
                with connection.cursor() as cursor:
                    cursor.execute("EXPLAIN " + query["sql"])
                    plan = "\n".join(line for (line,) in cursor.fetchall())
                assert "Sort Key" not in plan or "Presorted Key" in plan, (sort, plan)


# ------------------------------------------------------------------------------------------------ filters


@pytest.mark.parametrize(
    ("q", "found"),
    [
        ("", "abcd"),
        ("value:0.5", "b"),
        ("value:none", "c"),
        ("value:<1", "ab"),
        ("solve:0.5..1", "bd"),
        ("solve:none", "c"),
        ("-solve:none", "abd"),
        ("answers:4", "ad"),
        ("flag:dup", "d"),
        ("-flag:dup", "abc"),
        ("flag:no-credit", "c"),
        ("flag:errors,cliff", "ab"),
        ("problem:p-7", "a"),
        ("marbles", "b"),
        ('-marbles "50% of_"', "c"),
        ("many -marbles -%", "ad"),
        ("step:6", "d"),
    ],
)
def test_filters(run: Run, client: Client, q: str, found: str) -> None:
    StoredTree.objects.filter(run=run).delete()
    made = plant(
        run,
        [
            {"problem_id": "p-7", "value": 0.0, "n_correct": 0, "n_errors": 1},
            {
                "problem_id": "p-8", "prompt": "Red Marbles", "value": 0.5, "n_correct": 2, "n_answers": 3,
                "cliff": -0.5,
            },
            {
                "value": None, "advantage_spread": None, "n_answers": 0, "n_correct": 0,
                "prompt": "What is 50% of_x", "problem_id": "p-9",
            },
            # Copies counted: two of four are right, though there are but three leaves.
            {"step": 6, "value": 1.0, "n_answers": 4, "n_leaves": 3, "n_correct": 2, "duplicate_share": 0.2},
        ],
    )  # fmt: skip
    names = {tree.id: name for tree, name in zip(made, "abcd", strict=True)}
    answer = client.get(f"/api/v1/runs/{run.id}/trees", {"q": q})
    assert "".join(sorted(names[row["id"]] for row in answer.json()["trees"])) == found
    page = client.get(f"/r/{run.id}/trees", {"q": q, "scope": "all"})
    assert page.context["count"]["n"] == len(found)


def test_words_are_looked_for_in_every_problem_once_or_tree_by_tree(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    StoredTree.objects.filter(run=run).delete()
    texts = {"a": "Red (50%) marbles", "b": "blue marbles", "c": "Blue BOOKS"}
    made = plant(run, [{"problem_id": f"p-{n % 3}", "prompt": texts["abc"[n % 3]]} for n in range(9)])
    for most in (10_000, 2):
        monkeypatch.setattr("webapp.trees.filters.MAX_PROBLEMS", most)
        for q, kept in {
            "marbles": {0, 1}, "(50%)": {0}, "blue -books": {1}, "red books": set(), "-x": {0, 1, 2}
        }.items():  # fmt: skip
            found = {row["id"] for row in pages(run, Scope(), "value", 50, q)}
            assert found == {tree.id for n, tree in enumerate(made) if n % 3 in kept}, (most, q)


def test_every_preset_and_flag_can_be_asked(run: Run, client: Client) -> None:
    for preset in PRESETS:
        page = client.get(f"/r/{run.id}/trees", {"q": preset.filter, "sort": preset.sort, "scope": "all"})
        assert page.status_code == 200
        assert [one["title"] for one in page.context["presets"] if one["is_current"]] == [preset.title]
    for flag in FLAGS:
        assert client.get(f"/api/v1/runs/{run.id}/trees", {"q": f"flag:{flag}"}).status_code == 200


def test_a_filter_that_cannot_be_read_shows_where_and_a_way_out(run: Run, client: Client) -> None:
    page = client.get(f"/r/{run.id}/trees", {"q": "<b>x depht:3", "sort": "-value"})
    assert page.status_code == 400
    content = page.content.decode()
    assert "There is no key depht. Did you mean depth?" in content
    assert "<code>&lt;b&gt;x <mark>depht</mark>:3</code>" in content
    assert 'value="&lt;b&gt;x depht:3"' in content
    assert "sort=-value&amp;q=%3Cb%3Ex%20depth%3A3" in content
    answer = client.get(f"/api/v1/runs/{run.id}/trees", {"q": "<b>x depht:3"})
    assert answer.status_code == 400
    (error,) = answer.json()["errors"]
    assert (error["path"], error["start"], error["end"], error["suggestion"]) == (
        "q",
        "5",
        "10",
        "<b>x depth:3",
    )
    with pytest.raises(FilterError):
        read_filter("value:")


def test_a_filter_that_takes_too_long_says_what_to_do(
    run: Run, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(querysets, "LIST_MILLISECONDS", 1)
    monkeypatch.setattr(querysets, "COUNT_MILLISECONDS", 1)
    slow = StoredTree.objects.extra(where=["pg_sleep(0.2) IS NOT NULL"])
    assert count_up_to(slow) is None
    monkeypatch.setattr("webapp.trees.lists.trees_in", lambda *_: slow)
    page = client.get(f"/r/{run.id}/trees")
    assert page.status_code == 503
    assert "Ask for fewer steps" in page.content.decode()


@pytest.mark.parametrize(
    "sort", ["-created_at;select pg_sleep(5)", "run__created_by__password", "payload", "--value", "advantage"]
)
def test_other_sorts_are_refused(run: Run, client: Client, sort: str) -> None:
    response = client.get(f"/api/v1/runs/{run.id}/trees", {"step": "1", "sort": sort})
    assert response.status_code == 400
    assert "Use one of: index, value" in response.json()["detail"]
    page = client.get(f"/r/{run.id}/trees", {"step": "1", "sort": sort})
    assert page.status_code == 400
    assert "Use one of: index, value" in page.content.decode()


@pytest.mark.parametrize(
    "query", ["step=x", "step=-1", "after=x", "step=" + "9" * 40, "scope=both", "after=999999", "from=1.5"]
)
def test_addresses_that_name_nothing_are_refused_with_a_sentence(
    run: Run, client: Client, query: str
) -> None:
    page = client.get(f"/r/{run.id}/trees?{query}")
    assert page.status_code == 400
    assert "Trees of the newest step" in page.content.decode()


def test_a_cursor_of_another_run_is_refused(run: Run, client: Client, project: Any, people: People) -> None:
    from webapp.runs.services import create_run

    other = create_run(project, people.editor, worked_config(), "other")
    foreign = add_tree(other, 1, worked_tree())
    assert client.get(f"/api/v1/runs/{run.id}/trees?after={foreign.id}").status_code == 400
    assert client.get(f"/api/v1/runs/{run.id}/icicles?trees={foreign.id}").json()["icicles"] == {}


def worked_config() -> Any:
    from trainer.presets import PRESETS as METHODS

    return METHODS["treerpo-tiny"].config


# ------------------------------------------------------------------------------------------------ counts


def test_counts_are_exact_up_to_a_limit(run: Run, forest: list[StoredTree]) -> None:
    kept = sum(not tree.superseded for tree in forest)
    assert count_up_to(trees_in(run, Scope())) == kept
    assert count_up_to(trees_in(run, Scope()), kept) == kept
    assert count_up_to(trees_in(run, Scope()), kept - 1) == kept  # one more than asked for
    assert count_up_to(trees_in(run, Scope()), 7) == 8


def test_the_page_says_what_is_left_out(
    run: Run, forest: list[StoredTree], client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def head(query: str) -> str:
        text = client.get(f"/r/{run.id}/trees?{query}").content.decode()
        return " ".join(
            text.partition('<p class="list-head secondary"><span>')[2].partition("</span>")[0].split()
        )

    assert head("scope=all") == "55 trees of all steps"
    assert head("from=4&to=5") == "18 trees of steps 4 to 5"
    assert head("from=5&to=4") == "18 trees of steps 4 to 5"
    assert head("step=7&q=tokens:<0") == "0 of 9 trees of step 7 match"
    assert "Clear filter" in client.get(f"/r/{run.id}/trees?q=tokens:<0").content.decode()
    monkeypatch.setattr(querysets, "MAX_COUNT", 20)
    monkeypatch.setattr("webapp.trees.lists.MAX_COUNT", 20)
    monkeypatch.setattr("webapp.trees.lists.PAGE_SIZE", 10)
    monkeypatch.setattr("webapp.trees.lists.count_up_to", lambda trees: count_up_to(trees, 20))
    assert head("scope=all") == "20+ trees of all steps"


# ------------------------------------------------------------------------------------------------ steps


def test_steps_carry_the_mean_of_the_signal_that_the_list_is_sorted_by(run: Run) -> None:
    StoredTree.objects.filter(run=run).delete()
    plant(
        run,
        [
            {"step": 3, "value": 0.5, "cliff": None},
            {"step": 3, "value": 1.0, "cliff": -0.5},
            {"step": 3, "value": 0.0, "superseded": True},
            {"step": 9, "value": None, "cliff": None},
        ],
    )
    assert steps_with_trees(run) == [
        {"step": 3, "n_trees": 2, "mean": 0.75},
        {"step": 9, "n_trees": 1, "mean": None},
    ]
    assert steps_with_trees(run, "-cliff")[0]["mean"] == -0.5
    assert (steps_beside(run, 3), steps_beside(run, 5), steps_beside(run, 9)) == (
        (None, 9),
        (3, 9),
        (3, None),
    )


def test_a_long_run_is_told_in_six_hundred_cells(run: Run) -> None:
    plant(run, [{"step": step, "value": step / 2503} for step in range(3, 2503)])
    cells = steps_with_trees(run)
    assert 300 < len(cells) <= 600
    steps = [cell["step"] for cell in cells]
    assert steps == sorted(set(steps))
    assert cells[-1]["mean"] == pytest.approx(steps[-1] / 2503)


def test_the_newest_step_of_a_run_at_work_is_one_it_finished(run: Run) -> None:
    assert newest_step(run) == 2
    plant(run, [{"step": 4}])
    assert (run.step, newest_step(run)) == (3, 2)
    run.step = 4
    assert newest_step(run) == 4
    run.step = 0  # nothing is finished: what there is
    assert newest_step(run) == 4
    run.status, run.step = RunStatus.FAILED, 3
    assert newest_step(run) == 4


def test_a_run_without_trees_says_when_they_come(run: Run, client: Client) -> None:
    StoredTree.objects.all().delete()
    assert steps_with_trees(run) == []
    page = client.get(f"/r/{run.id}/trees")
    assert "Trees appear when step 4 finishes sampling." in page.content.decode()
    Run.objects.filter(id=run.id).update(
        status="failed", ended_at="2026-01-02T00:00:00Z", reason="No memory."
    )
    assert "ended without storing a tree. No memory." in client.get(f"/r/{run.id}/trees").content.decode()


# ------------------------------------------------------------------------------------------------ rows


def test_rows_carry_the_summary(run: Run, client: Client) -> None:
    (row,) = client.get(f"/api/v1/runs/{run.id}/trees?step=1").json()["trees"]
    assert (row["n_nodes"], row["n_leaves"], row["n_answers"], row["n_correct"], row["depth"]) == (
        7,
        4,
        4,
        1,
        2,
    )
    assert (row["value"], row["tokens"], row["zero_variance_share"]) == (0.25, 7, pytest.approx(1 / 3))
    assert "icicle" not in row
    content = client.get(f"/r/{run.id}/trees?step=1").content.decode()
    assert "1/4 ✓" in content
    assert "1 ⋯" in content


def test_flags_name_what_is_remarkable() -> None:
    plain_row = {
        "advantage_spread": 2.0, "duplicate_share": 0.1, "grpo_flips": 0, "n_errors": 0, "n_unparsed": 0,
        "n_truncated": 0,
    }  # fmt: skip
    assert flags_of(plain_row) == []
    row = {**plain_row, "advantage_spread": None, "duplicate_share": 0.4, "grpo_flips": 1, "n_errors": 2}
    assert [flag["word"] for flag in flags_of(row)] == ["no credit", "dup 40 %", "1 flip", "2 !"]
    assert flags_of(row, has_advantages=False)[0]["word"] == "dup 40 %"


def test_an_older_tree_has_as_many_answers_as_leaves(run: Run) -> None:
    (tree,) = plant(run, [{"n_answers": None}])
    assert tree_row(tree)["n_answers"] == 4


# ------------------------------------------------------------------------------------------------ miniatures


def star(children: int) -> RolloutTree:
    from tests.trainer.trees import tree_of

    return tree_of([1] * children)


def test_miniatures_are_of_small_trees(run: Run, client: Client) -> None:
    small = StoredTree.objects.get(run=run, step=1)
    large = add_tree(run, 9, star(500))
    drawn = client.get(f"/api/v1/runs/{run.id}/icicles?trees={small.id},{large.id}").json()["icicles"]
    assert drawn[str(large.id)] is None
    icicle = drawn[str(small.id)]
    assert icicle["parent"] == [-1, 0, 0, 1, 1, 2, 2]
    assert icicle["advantage"] == [None, 1.3333, -1.3333, 2.0, -2.0, None, None]
    assert icicle["verdict"] == [0, 0, 0, 1, 2, 2, 4]
    (row,) = client.get(f"/api/v1/runs/{run.id}/trees?step=1&icicles=true").json()["trees"]
    assert row["icicle"] == icicle
    for wrong in ("", "x", "1," * 100 + "1", "-1"):
        assert client.get(f"/api/v1/runs/{run.id}/icicles", {"trees": wrong}).status_code == 400


def test_a_list_reads_no_payload_and_its_pictures_only_small_ones(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [add_tree(run, 9, tree) for tree in (star(3), star(querysets.ICICLE_MAX_NODES), star(20))]
    sizes = [len(bytes(tree.payload)) for tree in made]
    read: list[int] = []

    def from_payload(payload: bytes) -> RolloutTree:
        read.append(len(payload))
        return worked_tree()

    monkeypatch.setattr(RolloutTree, "from_payload", from_payload)
    monkeypatch.setattr(querysets, "ICICLE_MAX_BYTES", sizes[0])
    with CaptureQueriesContext(connection) as asked:
        trees_page(run, Scope.of_step(9))
    assert not any('"payload"' in query["sql"] for query in asked)
    with CaptureQueriesContext(connection) as asked:
        drawn = icicles_of(StoredTree.objects.filter(step=9))
    assert [drawn[tree.id] is not None for tree in made] == [True, False, False]
    assert (len(asked), read) == (1, [sizes[0]])


# ------------------------------------------------------------------------------------------------ page, API


def test_the_trees_tab_opens_at_the_newest_step(run: Run, client: Client) -> None:
    page = client.get(f"/r/{run.id}/trees")
    assert (page.context["step"], page.context["address"].sort, len(page.context["rows"])) == (2, "index", 1)
    assert [cell["step"] for cell in page.context["steps"]] == [1, 2]


def test_the_list_works_by_links_alone(
    run: Run, forest: list[StoredTree], client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webapp.trees.lists.PAGE_SIZE", 20)
    page = client.get(f"/r/{run.id}/trees?scope=all&q=tokens:<10&sort=-value")
    found = [row["id"] for row in page.context["rows"]]
    while page.context["next"]:
        page = client.get(f"/r/{run.id}/trees{page.context['next']}")
        found += [row["id"] for row in page.context["rows"]]
    kept = [tree for tree in forest if not tree.superseded and tree.tokens == 3]
    assert found == plain(kept, "-value")
    spread = next(sort for sort in page.context["sorts"] if sort["name"] == "spread")
    assert spread["href"] == "?scope=all&sort=-spread&q=tokens%3A%3C10"
    value = next(sort for sort in page.context["sorts"] if sort["name"] == "value")
    assert (value["direction"], value["href"]) == ("descending", "?scope=all&sort=value&q=tokens%3A%3C10")
    assert page.context["chips"][0]["href"] == "?scope=all&sort=-value"


def test_an_address_is_read_and_written_alike() -> None:
    for query in ("?", "?step=4&sort=-value&q=a%20b", "?from=2&to=9", "?from=2", "?scope=all&after=7"):
        pairs = [part.split("=") for part in query[1:].split("&") if part]
        from urllib.parse import unquote

        address = ListAddress.read({name: unquote(value) for name, value in pairs})
        assert address.query(after=address.after) == query


def test_what_has_not_changed_is_not_sent_again(run: Run, client: Client) -> None:
    for path in (f"/api/v1/runs/{run.id}/trees?step=1", f"/api/v1/runs/{run.id}/steps"):
        first = client.get(path)
        again = client.get(path, headers={"If-None-Match": first["ETag"]})
        assert (again.status_code, again.content) == (304, b"")
        other = client.get(path + ("&sort=value" if "?" in path else "?sort=cliff"))
        assert other["ETag"] != first["ETag"]
    add_tree(run, 1, worked_tree(), index=1)
    changed = client.get(path, headers={"If-None-Match": first["ETag"]})
    assert changed.status_code == 200


def test_the_page_costs_a_fixed_number_of_queries(run: Run, forest: list[StoredTree], client: Client) -> None:
    counts = []
    for query in ("step=3", "scope=all", "scope=all&sort=-value"):
        with CaptureQueriesContext(connection) as asked:
            client.get(f"/r/{run.id}/trees?{query}")
        counts.append(sum(q["sql"].startswith(("SELECT", "WITH", "\n")) for q in asked))
    assert max(counts) <= 24


def test_what_would_do_nothing_is_not_offered(run: Run, client: Client) -> None:
    """`follow` waits for steps to come; a view that cannot be read is not to be saved."""
    page = client.get(f"/r/{run.id}/trees?q=solve:1").content.decode()
    assert 'class="follow" data-script hidden' in page
    assert 'class="save-form"' in page
    assert 'class="save-form"' not in client.get(f"/r/{run.id}/trees?q=solve:%22").content.decode()
    Run.objects.filter(id=run.id).update(status="succeeded", ended_at=timezone.now())
    assert 'class="follow" hidden' in client.get(f"/r/{run.id}/trees").content.decode()
