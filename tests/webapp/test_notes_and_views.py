"""The page of a search; saved views; notes and tags: what is shown, who may do what, and that text
stays text.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from tests.webapp.material import People, add_tree, worked_tree
from webapp.notes.models import Note
from webapp.saved.alerts import MOST_ALERTS, look_for_news
from webapp.saved.models import SavedView
from webapp.search import finding, indexer

if TYPE_CHECKING:
    from django.test import Client

    from webapp.projects.models import Project
    from webapp.runs.models import Run

HOSTILE = "<img src=x onerror=alert(1)> \u202e </textarea> 45+26"


def send(client: Client, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    call = getattr(client, method)
    return call(path, json.dumps(body or {}), content_type="application/json")


@pytest.fixture
def indexed(run: Run) -> Run:
    add_tree(run, 3, worked_tree(3, text=HOSTILE, problem_id="<i>p</i>"))
    indexer.index_all()
    return run


# ---- the page of a search


def test_the_page_shows_marks_around_escaped_text_and_works_without_scripts(
    indexed: Run, people: People
) -> None:
    viewer = people.client("viewer")
    page = viewer.get("/p/lab/search", {"q": '"45 26" depth:1'})
    html = page.content.decode()
    assert html.count("<mark data-model-text>45+26</mark>") == 3
    assert "<img src=x" not in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in html
    tree = indexed.trees.get(step=3)
    assert f'href="/t/{tree.id}/?n=1"' in html
    # Chips take a term away; counts are a link.
    assert f'href="/p/lab/search?q={quote("depth:1", safe="").replace("%20", "+")}"' in html
    counted = viewer.get("/p/lab/search", {"q": '"45 26"', "counts": "1"}).content.decode()
    assert '<h2><span class="figures">3</span> matches</h2>' in counted
    assert 'href="/p/lab/search?q=%2245+26%22+verdict%3Ainner&amp;counts=1"' in counted


def test_the_page_of_a_wrong_filter_shows_the_place_and_a_way_out(indexed: Run, people: People) -> None:
    page = people.client("viewer").get("/p/lab/search", {"q": "even dpth:<3"})
    assert page.status_code == 400
    html = page.content.decode()
    assert '<mark class="wrong" data-model-text>dpth</mark>' in html
    assert 'href="/p/lab/search?q=even+depth%3A%3C3"' in html


def test_the_empty_page_gives_examples_that_can_be_read(project: Project, people: People) -> None:
    html = people.client("viewer").get("/p/lab/search").content.decode()
    for query, _ in finding.EXAMPLES:
        finding.ask(project, query)
    assert html.count("<dt>") == len(finding.EXAMPLES)


def test_the_api_finds_and_counts(indexed: Run, people: People) -> None:
    viewer = people.client("viewer")
    first = viewer.get("/api/v1/projects/lab/search", {"q": "71 depth:1..2", "limit": 2}).json()
    assert [(node["step"], node["node"]) for node in first["nodes"]] == [(3, "1.1"), (2, "1.1")]
    assert first["nodes"][0]["text"][slice(*first["nodes"][0]["marks"][0])] == "71"
    rest = viewer.get("/api/v1/projects/lab/search", {"q": "71 depth:1..2", "before": first["before"]}).json()
    assert [(node["step"], node["node"]) for node in rest["nodes"]] == [(2, "1"), (1, "1.1"), (1, "1")]
    assert rest["complete"] is True
    counts = viewer.get("/api/v1/projects/lab/search/counts", {"q": "71 depth:1..2"}).json()
    assert (counts["n"], counts["every"]) == (5, 1)
    wrong = viewer.get("/api/v1/projects/lab/search", {"q": "dpth:3"})
    assert wrong.status_code == 400
    assert wrong.json()["errors"][0]["suggestion"] == "depth:3"


@pytest.mark.parametrize("path", ["search?q=a", "search", "views/", "notes/"])
def test_pages_of_another_project_are_not_there(indexed: Run, people: People, path: str) -> None:
    assert people.client("stranger").get(f"/p/lab/{path}").status_code == 404
    api = path.rstrip("/") if path != "search" else "search/counts?q=a"
    assert people.client("stranger").get(f"/api/v1/projects/lab/{api}").status_code == 404


# ---- saved views


def test_a_saved_view_leads_back_to_where_it_was_saved(indexed: Run, people: People) -> None:
    viewer = people.client("viewer")
    query = "q=71+depth%3A1&counts=1&before=9"
    done = viewer.post("/p/lab/views/new", {"name": " my  view ", "page": "search", "query": query})
    assert done.url == "/p/lab/search?q=71+depth%3A1"
    (view,) = viewer.get("/api/v1/projects/lab/views").json()
    assert (view["name"], view["url"], view["owner"]) == ("my view", done.url, "viewer")
    assert done.url.replace("&", "&amp;") in viewer.get("/p/lab/search").content.decode()
    trees = send(
        viewer, "post", "/api/v1/projects/lab/views",
        {"name": "trees", "page": "trees", "query": "?step=2&sort=value", "run": indexed.id},
    )  # fmt: skip
    assert trees.json()["url"] == f"/r/{indexed.id}/trees?step=2&sort=value"


def test_a_saved_search_tells_its_owner_alone_of_new_matches(indexed: Run, people: People) -> None:
    viewer, editor = people.client("viewer"), people.client("editor")
    viewer.post(
        "/p/lab/views/new", {"name": "71", "page": "search", "query": "q=71+depth:1..2", "alert": "on"}
    )
    address = f"/api/v1/projects/lab/views/{SavedView.objects.get().id}"

    def news() -> tuple[int | None, bool]:
        look_for_news()
        (view,) = viewer.get("/api/v1/projects/lab/views").json()
        return view["new_matches"], b"news-count" in viewer.get("/p/lab/").content

    assert news() == (0, False)  # what was there when it was saved is no news
    add_tree(indexed, 5, worked_tree(5))
    indexer.index_all()
    searched = viewer.get("/api/v1/projects/lab/search", {"q": "71 depth:1..2 step:5"}).json()
    found = len(searched["nodes"])
    assert found
    assert news() == (found, True)
    assert f"{found} new" in viewer.get("/p/lab/views/").content.decode()
    assert b"news-count" not in editor.get("/p/lab/").content
    assert send(editor, "patch", address, {"seen": True}).status_code == 403
    assert send(viewer, "patch", address, {"seen": True}).json()["new_matches"] == 0
    assert news() == (0, False)
    assert send(viewer, "patch", address, {"alert": False}).json()["new_matches"] is None


def test_a_person_has_a_few_alerts(indexed: Run, people: People) -> None:
    viewer = people.client("viewer")
    body = {"page": "search", "query": "q=71", "alert": True}
    codes = [
        send(viewer, "post", "/api/v1/projects/lab/views", body | {"name": str(n)}).status_code
        for n in range(MOST_ALERTS + 1)
    ]
    assert codes == [201] * MOST_ALERTS + [409]
    assert SavedView.objects.count() == MOST_ALERTS


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "  "}, "needs a name"),
        ({"page": "elsewhere"}, "cannot be saved"),
        ({"page": "trees"}, "belongs to a run"),
        ({"query": ""}, "nothing to save"),
        ({"query": "q=" + "é" * 3000}, "longer than"),
        ({"name": "taken"}, "already have a view"),
    ],
)
def test_a_view_that_cannot_be_saved_says_why(
    project: Project, people: People, change: dict[str, str], told: str
) -> None:
    SavedView.objects.create(project=project, owner=people.viewer, name="taken", page="search", query="q=a")
    body = {"name": "new", "page": "search", "query": "q=a"} | change
    refused = send(people.client("viewer"), "post", "/api/v1/projects/lab/views", body)
    assert refused.status_code in (400, 409)
    assert told in refused.json()["detail"]


def test_a_view_never_leaves_its_page(project: Project, people: People) -> None:
    """Whatever the stored text is: it is encoded again."""
    SavedView.objects.create(
        project=project, owner=people.viewer, name="x", page="search", query='q=a#"><script>&//evil'
    )
    html = people.client("editor").get("/p/lab/views/").content.decode()
    assert 'href="/p/lab/search?q=a%23%22%3E%3Cscript%3E&amp;%2F%2Fevil="' in html


def test_owners_remove_their_views_and_admins_any(project: Project, people: People) -> None:
    def made() -> int:
        return SavedView.objects.create(
            project=project, owner=people.viewer, name="x", page="search", query="q=a"
        ).id

    view = made()
    assert send(people.client("editor"), "delete", f"/api/v1/projects/lab/views/{view}").status_code == 403
    assert send(people.client("stranger"), "delete", f"/api/v1/projects/lab/views/{view}").status_code == 404
    assert send(people.client("viewer"), "delete", f"/api/v1/projects/lab/views/{view}").status_code == 204
    people.client("admin").post(f"/p/lab/views/{made()}/remove")
    assert not SavedView.objects.exists()


# ---- notes and tags


def test_a_note_is_written_read_changed_and_removed(indexed: Run, people: People) -> None:
    tree = indexed.trees.get(step=2)
    editor, viewer = people.client("editor"), people.client("viewer")
    sent = {"n": "2.1", "text": HOSTILE + "\r\nmore", "tags": "#Off-by-one, units units"}
    done = editor.post(f"/t/{tree.id}/notes/new", sent)
    note = Note.objects.get()
    assert done.url == f"/t/{tree.id}/?n=2.1#note-{note.id}"
    assert (note.path, note.tags) == ("2.1", ["off-by-one", "units"])
    for page in (f"/t/{tree.id}/?n=2.1", f"/t/{tree.id}/n/2.1", "/p/lab/notes/"):
        html = viewer.get(page).content.decode()
        assert "&lt;img src=x onerror=alert(1)&gt;" in html
        assert "<img src=x" not in html
    elsewhere = viewer.get(f"/t/{tree.id}/n/2").content.decode()
    assert "off-by-one" not in elsewhere
    assert f'Also beside <a href="/t/{tree.id}/n/2.1" data-go="2.1">' in elsewhere
    assert f"/notes/{note.id}/edit" not in viewer.get(f"/t/{tree.id}/n/2.1").content.decode()

    editor.post(f"/notes/{note.id}/edit", {"text": "better", "tags": "units"})
    (shown,) = viewer.get(f"/api/v1/trees/{tree.id}/notes").json()
    assert (shown["text"], shown["tags"], shown["edited_at"] is None) == ("better", ["units"], False)
    assert send(editor, "delete", f"/api/v1/notes/{note.id}").status_code == 204
    assert not Note.objects.exists()


def test_who_may_write_change_and_remove_notes(indexed: Run, people: People) -> None:
    tree = indexed.trees.get(step=2)
    api = f"/api/v1/trees/{tree.id}/notes"
    asked = {"node": "1", "text": "a", "tags": []}
    codes = {
        name: send(people.client(name), "post", api, asked).status_code
        for name in ("viewer", "editor", "admin", "stranger")
    }
    assert codes == {"viewer": 403, "editor": 201, "admin": 201, "stranger": 404}
    editors, admins = Note.objects.order_by("id")
    changed = {"text": "b", "tags": []}
    assert send(people.client("editor"), "patch", f"/api/v1/notes/{admins.id}", changed).status_code == 403
    assert send(people.client("admin"), "patch", f"/api/v1/notes/{editors.id}", changed).status_code == 403
    assert send(people.client("stranger"), "patch", f"/api/v1/notes/{editors.id}", changed).status_code == 404
    assert send(people.client("editor"), "delete", f"/api/v1/notes/{admins.id}").status_code == 403
    assert send(people.client("admin"), "delete", f"/api/v1/notes/{editors.id}").status_code == 204


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ({"text": " ", "tags": ""}, "needs a text, or a tag"),
        ({"text": "a" * 4001, "tags": ""}, "at most 4,000"),
        ({"text": "kept", "tags": "<b>"}, "is no tag"),
        ({"text": "kept", "tags": " ".join(f"t{n}" for n in range(11))}, "at most 10 tags"),
        ({"text": "kept", "tags": "", "n": "9.9"}, "no node"),
    ],
)
def test_a_refused_note_keeps_what_was_typed(
    indexed: Run, people: People, sent: dict[str, str], told: str
) -> None:
    tree = indexed.trees.get(step=2)
    page = people.client("editor").post(f"/t/{tree.id}/notes/new", {"n": "1"} | sent)
    assert 400 <= page.status_code < 500
    html = page.content.decode()
    assert told in html
    assert sent["text"].strip() in html
    assert not Note.objects.exists()


def test_a_node_whose_name_no_database_holds_has_no_notes(run: Run, people: People) -> None:
    tree = run.trees.get(step=2)
    found = people.client("viewer").get(f"/api/v1/trees/{tree.id}/notes?node=1%00")
    assert (found.status_code, found.json()) == (200, [])


def test_notes_are_filtered_and_found_from_the_search(indexed: Run, people: People) -> None:
    first, second = indexed.trees.filter(step__lt=3).order_by("step")
    for tree, path, text, tags in (
        (first, "1.1", "the sum is right", ["sum"]),
        (second, "0", "the whole tree", ["whole"]),
        (second, "2", "a wrong unit", ["sum", "units"]),
    ):
        Note.objects.create(
            project=indexed.project, tree=tree, path=path, text=text, tags=tags, author=people.editor
        )
    viewer = people.client("viewer")

    def listed(query: str) -> list[str]:
        found = viewer.get("/api/v1/projects/lab/notes", {"q": query}).json()["notes"]
        return [note["node"] for note in found]

    assert listed("") == ["2", "0", "1.1"]
    assert listed("tag:sum") == ["2", "1.1"]
    assert listed("tag:sum -unit") == ["1.1"]
    assert listed("units") == ["2"]
    assert listed(f"step:{second.step} author:editor edited:no") == ["2", "0"]

    def found(query: str) -> list[tuple[int, str]]:
        page = finding.find(finding.ask(indexed.project, query))
        return [(node["step"], node["path"]) for node in page.nodes]

    assert found("tag:sum") == [(2, "2"), (1, "1.1")]
    assert found("note:sum") == [(1, "1.1")]
    assert found("tag:whole depth:1") == [(2, "2"), (2, "1")]
    assert found("tag:sum,whole -tag:units depth:2 71") == [(2, "1.1"), (1, "1.1")]
    assert found("tag:nothing") == []
