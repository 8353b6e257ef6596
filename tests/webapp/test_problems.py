"""Problems over training, two trees side by side, all trees of a step: what pages say without a script."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from pytest_django import DjangoAssertNumQueries

from tests.webapp.material import People, add_tree, start, worked_tree
from trainer.config import RunConfig
from webapp.problems import querysets
from webapp.problems.querysets import choose_frames, history, problems_page, runs_with_problem, strip
from webapp.projects.models import Project
from webapp.runs import services
from webapp.runs.models import Run
from webapp.trees.models import StoredTree

HOSTILE = "a/b ?#%2F <i>x</i>\n\u202e"


@pytest.fixture
def client(people: People) -> Client:
    return people.client("viewer")


@pytest.fixture
def second(project: Project, people: People, config: RunConfig) -> Run:
    """Another run of the project, with one tree of the same problem and one of a hostile name."""
    run = services.create_run(project, people.editor, config, "second")
    start(run)
    add_tree(run, 5, worked_tree(5))
    add_tree(run, 5, worked_tree(5, problem_id=HOSTILE), index=1)
    return run


@pytest.fixture
def foreign(people: People, config: RunConfig) -> StoredTree:
    """A tree of the same problem in a project that our people are not in."""
    other = Project.objects.get(slug="elsewhere")
    run = services.create_run(other, people.stranger, config, "secret-run")
    return add_tree(run, 9, worked_tree(9, text="secret text"))


def text_of(response: Any) -> str:
    """What a reader sees: no tags, blanks as one."""
    html = re.sub(r"<(script|style).*?</\1>", " ", response.content.decode(), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


# ------------------------------------------------------------------------------------------------ list


def test_the_list_counts_trees_of_all_runs_of_the_project_and_of_no_other(
    project: Project, run: Run, second: Run, foreign: StoredTree
) -> None:
    rows, following, looked = problems_page(project)
    assert (following, looked) == (None, 2)
    by_id = {row["problem_id"]: row for row in rows}
    assert set(by_id) == {"p-1", HOSTILE}
    row = by_id["p-1"]
    assert (row["n_trees"], row["n_runs"], row["first"], row["last"], row["first_solved"]) == (3, 2, 1, 5, 1)
    assert (row["value"], row["n_correct"], row["answers"]) == (0.25, 1, 4)


def test_the_list_goes_on_where_a_page_ended_and_costs_the_same_for_more(
    project: Project, run: Run, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for place in range(7):
        for step in (3, 4):
            add_tree(run, step, worked_tree(step, problem_id=f"q-{place}"), index=place)
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        with django_assert_num_queries(5):
            rows, after, _ = problems_page(project, after=after, limit=3)
        seen += [row["problem_id"] for row in rows]
    assert seen == ["p-1", *(f"q-{place}" for place in range(7))]


def test_problems_stand_as_people_count_them(project: Project, run: Run, second: Run) -> None:
    longest = ("9" * 19, "8" * 200, "1a" * 100, "\N{DEVANAGARI DIGIT THREE}" * 200)
    ids = ["", "01", "1", "1.5", "1.10", "2", "10", "100", "p-02", "p-2", "p-10", "p-10b", "p-100", "q2r10"]
    for place, problem in enumerate(reversed([*ids[1:], *longest])):
        add_tree((run, second)[place % 2], 3, worked_tree(3, problem_id=problem), index=place)
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        rows, after, _ = problems_page(project, after=after, limit=3)
        seen += [row["problem_id"] for row in rows]
    assert len(seen) == len(set(seen)) == len(ids) - 1 + len(longest) + 2
    assert [one for one in seen if one in ids] == ids[1:]

    # The walk looks into its index, whatever the trees of a problem are.
    with connection.cursor() as cursor, CaptureQueriesContext(connection) as captured:
        problems_page(project, limit=3)
        (walk,) = [query["sql"] for query in captured if "RECURSIVE" in query["sql"]]
        cursor.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off")
        cursor.execute("EXPLAIN (ANALYZE, COSTS OFF) " + walk)
        plan = "\n".join(row[0] for row in cursor.fetchall())
    found = plan.partition("tree_problems_in_order")[2].partition("\n")[2].strip()
    assert found.startswith("Index Cond: ((run_id = r.id) AND (ROW("), plan


def test_words_filter_id_and_prompt_and_say_how_far_they_looked(
    project: Project, run: Run, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in range(6):
        add_tree(run, 3, worked_tree(3, problem_id=f"q-{place}"), index=place)
    rows, _, _ = problems_page(project, words="CAL Q-4")
    assert [row["problem_id"] for row in rows] == ["q-4"]
    assert problems_page(project, words="cal nobody")[0] == []
    rows, _, looked = problems_page(project, again=True)
    assert ([row["problem_id"] for row in rows], looked) == (["p-1"], 7)
    # A filtered page ends after so many problems and goes on from there.
    monkeypatch.setattr(querysets, "MAX_WALKED", 3)
    rows, after, looked = problems_page(project, words="q-4", limit=2)
    assert (rows, after, looked) == ([], "q-1", 3)
    rows, after, _ = problems_page(project, words="q-4", after="q-1", limit=2)
    assert [row["problem_id"] for row in rows] == ["q-4"]
    page = text_of(client.get("/p/lab/prompts/?q=%3Cb%3Enothing"))
    assert "holds “ &lt;b&gt;nothing ”" in page
    page = text_of(client.get("/p/lab/prompts/?again=1"))
    assert "q-4" not in page
    assert "p-1" in page


# ------------------------------------------------------------------------------------------------ one problem


def test_a_problem_is_shown_over_the_steps_of_every_run(
    run: Run, second: Run, foreign: StoredTree, client: Client
) -> None:
    response = client.get("/p/lab/prompts/p-1")
    page = text_of(response)
    assert "3 trees of 2 runs" in page
    assert "first solved at 1" in page
    assert "reload to see its newer trees" in page
    assert "secret" not in response.content.decode()
    mine = StoredTree.objects.filter(run__project=run.project, problem_id="p-1")
    for tree in mine:
        assert f'href="{reverse("tree-detail", args=[tree.id])}"' in response.content.decode()
    # Answers and first words are tables: 71 once in each of the first run's two trees, of eight answers.
    assert re.search(r"71 correct 2 25 % 1–2", page)
    assert re.search(r"45\+26=71 books\. 3 0\.50 1–5", page)


def test_a_problem_of_any_name_has_a_page(second: Run, client: Client) -> None:
    listed = client.get("/p/lab/prompts/").content.decode()
    (address,) = re.findall(r'href="(/p/lab/prompts/a[^"]*)"', listed)
    response = client.get(address)
    assert response.status_code == 200
    assert "<i>x</i>" not in response.content.decode()
    assert client.get("/p/lab/prompts/nobody").status_code == 404
    assert client.get("/p/lab/prompts/p%00").status_code == 404


def test_runs_and_steps_are_chosen_by_the_address(run: Run, second: Run, client: Client) -> None:
    assert "1 tree of 1 run." in text_of(client.get(f"/p/lab/prompts/p-1?runs={second.id}"))
    assert "1 tree of 2 runs" in text_of(client.get("/p/lab/prompts/p-1?from=2&to=4"))
    assert "lie between step 1 and 5" in text_of(client.get("/p/lab/prompts/p-1?from=70"))
    for wrong in ("runs=0", "runs=x", "from=-1", "to=x"):
        assert client.get(f"/p/lab/prompts/p-1?{wrong}").status_code == 404


def test_too_many_trees_are_thinned_and_the_page_says_so(
    run: Run, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(3, 21):
        add_tree(run, step, worked_tree(step))
    monkeypatch.setattr(querysets, "MAX_FRAMES", 6)
    (one,) = history(runs_with_problem(run.project, "p-1"), "p-1")
    choose_frames([one])
    steps = [frame["step"] for frame in one["frames"]]
    assert (len(steps), steps[0], steps[-1]) == (6, 1, 20)
    page = text_of(client.get("/p/lab/prompts/p-1"))
    assert "20 trees of 1 run; 6 are shown" in page
    assert "1–6 · 7–12 · 13–18 · 19–20" in page
    # What cannot be read is counted, not hidden.
    monkeypatch.setattr(querysets, "MAX_NODES", 20)
    assert "Of 4 of these trees answers and pictures are missing" in text_of(client.get("/p/lab/prompts/p-1"))


def test_a_damaged_tree_leaves_the_page_standing(run: Run, client: Client) -> None:
    StoredTree.objects.filter(run=run, step=1).update(payload=b"nothing")
    page = text_of(client.get("/p/lab/prompts/p-1"))
    assert "Of 1 of these trees answers and pictures are missing" in page
    assert "2 trees of 1 run" in page
    page = text_of(client.get(f"/r/{run.id}/trees/all?step=1&to=2"))
    assert "1 tree of 2: " in page
    assert "1 of them could not be read" in page
    assert "None of the 1 trees of step 1 could be read." in text_of(
        client.get(f"/r/{run.id}/trees/all?step=1")
    )


# ------------------------------------------------------------------------------------------------ strip


def test_a_trees_page_names_its_neighbours_in_the_order_of_steps(
    run: Run, second: Run, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    third = add_tree(run, 2, worked_tree(2), index=1)  # twice in one step
    first, middle = StoredTree.objects.filter(run=run).order_by("id")[:2]
    page = client.get(f"/t/{middle.id}/").content.decode()
    assert f'href="/t/{first.id}/" id="strip-previous"' in page
    assert f'href="/t/{third.id}/" id="strip-next"' in page
    assert "2 of 3" in page
    monkeypatch.setattr(querysets, "MAX_STRIP_CELLS", 2)
    found = strip(run, "p-1", third.id, 2, 1)
    assert found is not None
    assert [cell["id"] for cell in found["cells"]] == [middle.id, third.id]
    assert (found["place"], found["n"], found["next"]) == (3, 3, None)
    # Of the other run's one tree there is nothing to step to.
    alone = StoredTree.objects.get(run=second, problem_id="p-1")
    assert "the only tree of it in this run" in client.get(f"/t/{alone.id}/").content.decode()


# ------------------------------------------------------------------------------------------- side by side


def test_two_trees_stand_side_by_side_at_the_same_node(run: Run, client: Client) -> None:
    one, two = StoredTree.objects.filter(run=run).order_by("id")
    page = text_of(client.get(f"/t/{one.id}/beside/{two.id}/?n=1.1"))
    assert page.count("node 1.1") >= 2
    assert page.count("1.1 V 1.00 A +2.00 #### 71") == 2
    assert "2 4 0.25 50 % 1/2 4 0.25 50 % 1/2" in page  # the leaves of both, of four two have credit
    page = text_of(client.get(f"/t/{one.id}/beside/{two.id}/?n=1.1.7"))
    assert page.count("This tree has no node 1.1.7; this is the nearest one above it.") == 2
    pink = client.get(f"/t/{one.id}/beside/{two.id}/?color=pink")
    assert pink.context["color"] == "advantage"
    assert "color=pink, which there is not, so advantage is shown" in text_of(pink)


def test_both_trees_must_be_ones_own(run: Run, foreign: StoredTree, client: Client) -> None:
    mine = StoredTree.objects.filter(run=run).first()
    assert mine is not None
    assert client.get(f"/t/{mine.id}/beside/{foreign.id}/").status_code == 404
    assert client.get(f"/t/{foreign.id}/beside/{mine.id}/").status_code == 404
    assert client.get(f"/t/{mine.id}/beside/{mine.id}/").status_code == 200


def test_ticking_two_leads_to_them_and_any_other_number_says_what_to_do(run: Run, client: Client) -> None:
    response = client.get("/t/beside?tree=3&tree=5")
    assert (response.status_code, response["Location"]) == (302, "/t/3/beside/5/")
    for query in ("", "tree=3", "tree=3&tree=x", "tree=1&tree=2&tree=3"):
        response = client.get(f"/t/beside?{query}")
        assert response.status_code == 400
        assert "tick exactly two" in response.content.decode()


def test_a_damaged_tree_beside_a_sound_one(run: Run, client: Client) -> None:
    one, two = StoredTree.objects.filter(run=run).order_by("id")
    StoredTree.objects.filter(id=two.id).update(payload=b"nothing")
    response = client.get(f"/t/{one.id}/beside/{two.id}/")
    assert response.status_code == 422
    assert "This tree cannot be read" in response.content.decode()
    assert "45+26=71" not in text_of(response)  # the root's text is the prompt
    assert "Cal has 45 books" in text_of(response)


# ------------------------------------------------------------------------------------------------ all trees


def test_all_trees_of_a_step_and_of_a_range(run: Run, client: Client) -> None:
    page = text_of(client.get(f"/r/{run.id}/trees/all"))
    assert "1 tree. 7 nodes, 4 leaves." in page  # the newest step
    response = client.get(f"/r/{run.id}/trees/all?step=1&to=2")
    page = text_of(response)
    assert "2 trees. 14 nodes, 8 leaves." in page
    # Depth 2: six leaves of value 0, two of 1; half with credit; two of four groups are flat; no repeats.
    assert re.search(r" 2 6 2 8 0\.25 50 % 50 % 2/4 0 % 0/8", page)
    # A number leads to its nodes.
    (address,) = re.findall(
        r'href="(\?step=1&amp;to=2&amp;depth=2&amp;bin=9)#cell"', response.content.decode()
    )
    cell = client.get(f"/r/{run.id}/trees/all{address.replace('&amp;', '&')}")
    assert "2 nodes in 2 trees" in text_of(cell)
    for tree in StoredTree.objects.filter(run=run):
        assert f'href="/t/{tree.id}/?n=1.1"' in cell.content.decode()


def test_more_trees_than_a_page_may_read_are_left_out_and_told(
    run: Run, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(querysets, "MAX_NODES", 7)
    assert "1 tree of 2: only the first ones were read" in text_of(
        client.get(f"/r/{run.id}/trees/all?step=1&to=2")
    )


def test_steps_without_trees_and_addresses_that_are_none(run: Run, client: Client) -> None:
    assert "No trees were kept of step 77." in text_of(client.get(f"/r/{run.id}/trees/all?step=77"))
    for wrong in ("step=x", "depth=1", "depth=1&bin=11", "to=-1"):
        assert client.get(f"/r/{run.id}/trees/all?{wrong}").status_code == 404
    StoredTree.objects.filter(run=run).delete()
    assert "Trees appear here as soon as" in text_of(client.get(f"/r/{run.id}/trees/all"))


def test_problems_are_told_by_api_as_on_their_pages(
    run: Run, second: Run, foreign: Any, client: Client
) -> None:
    found = client.get("/api/v1/projects/lab/problems").json()
    assert {row["problem_id"] for row in found["problems"]} == {"p-1", HOSTILE}
    assert client.get("/api/v1/projects/lab/problems?q=zzz").json()["problems"] == []
    first = client.get("/api/v1/projects/lab/problems?limit=1").json()
    rest = client.get("/api/v1/projects/lab/problems", {"limit": 1, "after": first["next"]}).json()
    assert first["problems"] + rest["problems"] == found["problems"]
    one = client.get("/api/v1/projects/lab/problem?problem_id=p-1&from_step=2").json()
    assert [told["id"] for told in one["runs"]] == [second.id, run.id]
    assert [tree["step"] for told in one["runs"] for tree in told["trees"]] == [5, 2]
    assert foreign.run_id not in {told["id"] for told in one["runs"]}
    assert client.get("/api/v1/projects/lab/problem?problem_id=nowhere").status_code == 404
    assert client.get("/api/v1/projects/lab/problem", {"problem_id": "x" * 201}).status_code == 400
