"""Trees from a file become a run that says that it was imported, and every page of it works."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import CommandError, call_command

from tests.webapp.material import People, worked_tree
from tests.webapp.test_exports import asked, written
from trainer.tree_lines import Estimator, TreeLine, write_line
from webapp.errors import RequestError
from webapp.exports.importing import import_trees
from webapp.projects.models import Project
from webapp.runs.models import Event, Run
from webapp.runs.origin import how_made
from webapp.trees.models import StoredTree

TREERPO = Estimator("treerpo-tiny", 1, "A = …")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, settings: Any) -> None:
    settings.EXPORT_DIR = tmp_path / "exports"
    settings.BROKER_URL = ""


def lines(*trees: Any, estimator: Estimator | None = TREERPO) -> bytes:
    return b"".join(write_line(TreeLine("theirs", n, estimator, tree)) for n, tree in enumerate(trees))


def take(project: Project, people: People, content: bytes, name: str = "theirs") -> Any:
    return import_trees(project, people.editor, io.BytesIO(content), name=name, file="theirs.jsonl")


def test_export_import_export_gives_the_same_bytes(run: Run, people: People) -> None:
    content = written(asked(run, people))
    done = take(run.project, people, content, name="first")
    assert (done.trees, done.nodes, done.steps, done.problems, done.agrees) == (2, 14, 2, 1, True)
    assert written(asked(done.run, people)) == content
    imported, original = (
        list(StoredTree.objects.filter(run=one).order_by("step").values()) for one in (done.run, run)
    )
    same = set(imported[0]) - {"id", "run_id", "seq", "epoch", "payload"}
    assert [{key: row[key] for key in same} for row in imported] == [
        {key: row[key] for key in same} for row in original
    ]


def test_every_page_of_an_imported_run_says_so_and_works(run: Run, people: People) -> None:
    no_tokens = dataclasses.replace(
        worked_tree(5),
        logprobs=np.full(10, np.nan, np.float32),
        entropies=np.full(10, np.nan, np.float32),
        advantage=np.full(7, np.nan),
        credit_state=np.zeros(7, np.uint8),
    )
    done = take(run.project, people, lines(worked_tree(4), no_tokens, estimator=None))
    assert (done.agrees, done.disagreement, how_made(done.run).plan) == (False, "", None)
    client = people.client("viewer")
    base, (first, second) = f"/r/{done.run.id}/", done.run.trees.order_by("step")
    pages = {path: client.get(base + path).content.decode() for path in ("", "trees", "config", "events")}
    assert all(">imported<" in page for page in pages.values())
    assert "Imported trees have no curves" in pages[""]
    assert "theirs.jsonl" in pages["config"]
    assert "the file names none" in pages["config"]
    assert "Imported from theirs.jsonl: 2 trees." in pages["events"]
    assert ">imported<" in client.get("/p/lab/").content.decode()
    for tree in (first, second):
        for path in ("", "?n=1.1", "n/1", "siblings?n=1", "estimators?n=1", "diff?a=1&b=2"):
            response = client.get(f"/t/{tree.id}/{path}")
            assert response.status_code == 200, path
        page = client.get(f"/t/{tree.id}/?n=1").content.decode()
        assert "the estimator that made their numbers is not known here" in page
        assert "computed again" not in page
        for path in (
            "",
            "/columns",
            "/nodes/1",
            "/nodes/1/audit",
            "/nodes/1/estimators",
            "/estimators",
            "/paths/1.1/tokens",
        ):
            assert client.get(f"/api/v1/trees/{tree.id}{path}").status_code == 200, path
    assert client.get(f"/api/v1/runs/{done.run.id}").json()["origin"] == "imported"
    assert client.get(f"/api/v1/trees/{first.id}").json()["estimator"] is None
    # Given numbers are shown as they are; missing ones are missing.
    assert client.get(f"/api/v1/trees/{first.id}/nodes/1").json()["advantage"] == pytest.approx(4 / 3)
    assert client.get(f"/api/v1/trees/{second.id}/nodes/1").json()["advantage"] is None
    assert written(asked(done.run, people, "page", selection={"trees": [second.id]}))
    assert people.client("editor").post(f"{base}control", {"action": "stop"}).status_code == 302
    done.run.refresh_from_db()
    assert done.run.wish_at is None


def test_the_audit_is_there_where_the_file_names_a_preset_that_comes_to_its_numbers(
    run: Run, people: People
) -> None:
    client = people.client("viewer")
    good = take(run.project, people, lines(worked_tree(), worked_tree(2)))
    tree = good.run.trees.first()
    assert client.get(f"/api/v1/trees/{tree.id}/nodes/1/audit").json()["agrees"] is True
    assert "TreeRPO" in client.get(f"/r/{good.run.id}/").content.decode()

    other = worked_tree(2)
    advantage = other.advantage.copy()
    advantage[1] = 1.25
    bad = take(run.project, people, lines(worked_tree(), dataclasses.replace(other, advantage=advantage)))
    told = "Step 2, p-1: Node 1: its advantage is 1.25, computed 1.33333."
    assert (bad.agrees, bad.disagreement, bad.run.preset) == (False, told, "")
    audit = client.get(f"/api/v1/trees/{bad.run.trees.first().id}/nodes/1/audit").json()
    assert audit["agrees"] is None
    assert told in client.get(f"/r/{bad.run.id}/config").content.decode()


def test_a_bad_line_leaves_nothing_behind_and_is_named(run: Run, people: People) -> None:
    before = (Run.objects.count(), StoredTree.objects.count(), Event.objects.count())
    good = lines(*[worked_tree(step) for step in range(1, 61)])  # more than one batch
    for content, message in (
        (good + b'{"format": "arborist.tree"', "Line 61 is no JSON"),
        (good.replace(b'"parent":1,', b'"parent":7,', 1), "Line 1, node 3: parent 7 is no node"),
        (b"", "The file holds no tree"),
        (b"\n \n", "The file holds no tree"),
    ):
        with pytest.raises(RequestError, match=message) as refused:
            take(run.project, people, content)
        assert "Nothing was imported." in refused.value.detail
    with pytest.raises(RequestError, match="no visible letter"):
        take(run.project, people, good, name=" ")
    assert (Run.objects.count(), StoredTree.objects.count(), Event.objects.count()) == before


def test_the_form_is_for_editors_and_tells_what_came_of_it(run: Run, people: People) -> None:
    content = lines(worked_tree(3, text="<img src=x onerror=alert(1)>"))
    client = people.client("editor")
    sent = {"file": SimpleUploadedFile("<b>their</b>.jsonl", content), "name": ""}
    response = client.post("/p/lab/import", sent)
    imported = Run.objects.latest("id")
    assert response.headers["Location"] == f"/r/{imported.id}/trees"
    assert (imported.origin, imported.name) == ("imported", "b>.jsonl".removesuffix(".jsonl"))
    page = client.get(response.headers["Location"]).content.decode()
    assert "1 tree with 7 nodes, of 1 step and 1 problem." in page
    refused = client.post("/p/lab/import", {"file": SimpleUploadedFile("x.jsonl", b"{}"), "name": "n"})
    assert refused.status_code == 400
    assert "Line 1: &quot;format&quot; is None" in refused.content.decode()
    assert client.post("/p/lab/import", {"name": "n"}).status_code == 400
    assert people.client("viewer").post("/p/lab/import", sent).status_code == 403


def test_the_command_imports_a_file_and_says_what_came_of_it(
    run: Run, people: People, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "theirs.jsonl"
    source.write_bytes(lines(worked_tree(7)))
    call_command("import_trees", str(source), project="lab", run="from elsewhere")
    assert "Computed again with treerpo-tiny, every value and advantage agrees." in capsys.readouterr().out
    assert Run.objects.latest("id").created_by == people.admin
    source.write_bytes(b"\xff\n")
    with pytest.raises(CommandError, match="Line 1 is not UTF-8"):
        call_command("import_trees", str(source), project="lab")
    with pytest.raises(CommandError, match="no project 'none'"):
        call_command("import_trees", str(source), project="none")
