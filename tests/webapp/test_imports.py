"""Trees from a file become a run that says that it was imported, and every page of it works."""

from __future__ import annotations

import dataclasses
import io
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asgiref.sync import async_to_sync
from django.conf import settings
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import CommandError, call_command
from django.db.models.functions import Now
from django.test import Client

from tests.webapp.material import People, worked_tree
from tests.webapp.test_exports import asked, written
from trainer.tree_lines import Estimator, TreeLine, write_line
from webapp.accounts.models import ApiToken
from webapp.accounts.services import create_token
from webapp.errors import RequestError
from webapp.imports import files, services
from webapp.imports.admission import sender
from webapp.imports.models import Import
from webapp.imports.reading import import_trees
from webapp.imports.sweeper import sweep_imports
from webapp.limits import IMPORTS_AT_ONCE, MAX_IMPORT_ERRORS
from webapp.projects.models import Project
from webapp.runs.models import Event, Run
from webapp.runs.origin import how_made
from webapp.trees.models import StoredTree
from workers import imports as worker
from workers import jobs

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


def test_what_a_file_calls_its_run_is_kept_no_longer_than_a_name(run: Run, people: People) -> None:
    done = take(run.project, people, write_line(TreeLine("x" * 10_000, 0, None, worked_tree())))
    assert done.run.config["runs"] == ["x" * 120]


def test_bad_lines_leave_nothing_behind_and_are_named(run: Run, people: People) -> None:
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
        assert len(refused.value.errors) == 1
    with pytest.raises(RequestError, match="no visible letter"):
        take(run.project, people, good, name=" ")
    two = good.replace(b'"parent":1,', b'"parent":7,', 1).replace(b'"copies":1', b'"copies":-1')
    with pytest.raises(RequestError, match=r"cannot be used either\. Reading stopped there\.") as refused:
        take(run.project, people, two)
    told = [error["message"] for error in refused.value.errors]
    assert told[0].startswith("Line 1, node 3: parent 7")
    assert told[1] == "Line 2, node 3: copies is -1; expected a whole number from 0 to 2,147,483,647."
    assert len(told) == MAX_IMPORT_ERRORS
    assert (Run.objects.count(), StoredTree.objects.count(), Event.objects.count()) == before


# ------------------------------------------------------------------------------------------------- as a job


def upload(run: Run, people: People, content: bytes, name: str = "theirs") -> Import:
    file = SimpleUploadedFile("theirs.jsonl", content)
    return services.create_import(run.project, people.editor, file, name)


def claimed(asked: Import, *, leaves: bool = False) -> jobs.Held[Import]:
    held = worker.claim(asked.id, "worker-1", lambda: leaves)
    assert held is not None
    return held


def counts() -> tuple[int, int, int]:
    return Run.objects.count(), StoredTree.objects.count(), Event.objects.count()


def test_a_lost_worker_is_replaced_and_nothing_is_imported_twice(
    run: Run, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webapp.lost_jobs.JOB_LEASE_SECONDS", 0)  # the database has just started
    runs, trees, _ = counts()
    asked = upload(run, people, lines(worked_tree(), worked_tree(2)))
    first = claimed(asked)
    assert worker.claim(asked.id, "worker-2", lambda: False) is None
    Import.objects.update(lease_until=Now() - timedelta(seconds=1))
    sweep_imports()
    second = claimed(asked)
    assert "begun anew" in people.client("editor").get("/p/lab/import").content.decode()
    worker.work_off(first)  # it read all lines, and its transaction is refused
    assert counts()[:2] == (runs, trees)
    assert list(files.folder().iterdir())
    worker.work_off(second)
    asked.refresh_from_db()
    assert (asked.status, asked.trees, asked.attempts) == ("succeeded", 2, 2)
    assert asked.run is not None
    assert asked.report.startswith(f"Run {asked.run.id}: 2 trees with 14 nodes")
    assert counts()[:2] == (runs + 1, trees + 2)
    assert list(files.folder().iterdir()) == []
    assert worker.claim(asked.id, "worker-3", lambda: False) is None  # a message that came twice


def test_a_cancelled_import_stores_nothing(run: Run, people: People) -> None:
    before = counts()
    asked = upload(run, people, lines(worked_tree()))
    held = claimed(asked)
    services.cancel(asked, people.editor)
    services.cancel(asked, people.editor)  # twice changes nothing
    worker.work_off(held)
    asked.refresh_from_db()
    assert (asked.status, asked.run, asked.trees) == ("cancelled", None, 0)
    assert counts() == before
    done = upload(run, people, lines(worked_tree()))
    worker.work_off(claimed(done))
    with pytest.raises(RequestError, match="has already ended"):
        services.cancel(done, people.editor)


@pytest.mark.parametrize("moment", ["before it began", "while it read"])
def test_an_import_that_is_deleted_with_its_project_ends_quietly(
    run: Run, people: People, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    held = claimed(upload(run, people, lines(worked_tree())))
    if moment == "before it began":
        run.project.delete()
    else:
        monkeypatch.setattr(jobs, "REPORT_SECONDS", 0)
        monkeypatch.setattr(held, "told_to_leave", lambda: bool(Project.objects.all().delete()) and False)
    worker.work_off(held)
    assert counts() == (0, 0, 0)


def test_a_worker_that_leaves_gives_it_back_and_lines_that_cannot_be_used_are_kept_to_be_read(
    run: Run, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "REPORT_SECONDS", 0)
    asked = upload(run, people, lines(worked_tree(), worked_tree(2)) + b'{}\n{"format": 3}\n')
    worker.work_off(claimed(asked, leaves=True))
    asked.refresh_from_db()
    assert (asked.status, asked.attempts) == ("queued", 0)
    worker.work_off(claimed(asked))
    asked.refresh_from_db()
    assert (asked.status, asked.trees, asked.run) == ("failed", 2, None)  # it told of two trees on the way
    assert [message[:20] for message in asked.errors] == ['Line 3: "format" is ', 'Line 4: "format" is ']
    assert list(files.folder().iterdir()) == []
    gone = upload(run, people, lines(worked_tree()))
    files.delete(gone.upload)
    worker.work_off(claimed(gone))
    gone.refresh_from_db()
    assert (gone.status, gone.reason) == ("failed", "The uploaded file is gone. Upload it again.")


def test_one_user_may_not_fill_the_queue_and_uploads_that_nobody_needs_go(run: Run, people: People) -> None:
    content = lines(worked_tree())
    for _ in range(IMPORTS_AT_ONCE):
        upload(run, people, content)
    with pytest.raises(RequestError, match="Wait for one, or cancel one"):
        upload(run, people, content)
    kept = sorted(files.folder().iterdir())
    assert len(kept) == IMPORTS_AT_ONCE, "what was refused is not kept"
    for path in kept:
        os.utime(path, (1, 1))
    Import.objects.order_by("id").first().delete()  # type: ignore[union-attr]
    sweep_imports()
    assert len(list(files.folder().iterdir())) == IMPORTS_AT_ONCE - 1


def test_the_page_is_for_editors_and_tells_what_came_of_it(run: Run, people: People) -> None:
    content = lines(worked_tree(3, text="<img src=x onerror=alert(1)>"))
    client = people.client("editor")
    sent = {"file": SimpleUploadedFile("<b>their</b>.jsonl", content), "name": ""}
    response = client.post("/p/lab/import", sent)
    assert response.headers["Location"] == "/p/lab/import"
    asked = Import.objects.get()
    worker.work_off(claimed(asked))
    imported = Run.objects.latest("id")
    assert (imported.origin, imported.name) == ("imported", "b>.jsonl".removesuffix(".jsonl"))
    page = client.get("/p/lab/import").content.decode()
    assert "1 tree with 7 nodes, of 1 step and 1 problem." in page
    assert f"/r/{imported.id}/trees" in page
    bad = upload(run, people, b'{"format": "<script>"}\n')
    worker.work_off(claimed(bad))
    assert (
        "Line 1: &quot;format&quot; is &#x27;&lt;script&gt;&#x27;"
        in client.get("/p/lab/import").content.decode()
    )
    for refused in ({"name": "n"}, {"file": SimpleUploadedFile("x.jsonl", b""), "name": "n"}):
        assert client.post("/p/lab/import", refused).status_code == 400
    assert people.client("viewer").post("/p/lab/import", sent).status_code == 403


def test_the_api_uploads_watches_and_cancels(run: Run, people: People) -> None:
    client = people.client("editor")
    sent = {"file": SimpleUploadedFile("theirs.jsonl", lines(worked_tree())), "name": "by API"}
    response = client.post("/api/v1/projects/lab/imports", sent)
    assert response.status_code == 201, response.content
    asked = response.json()
    assert (asked["status"], asked["run_name"], asked["run"]) == ("queued", "by API", None)
    worker.work_off(claimed(Import.objects.get()))
    done = client.get(f"/api/v1/imports/{asked['id']}").json()
    assert (done["status"], done["run"]) == ("succeeded", Run.objects.latest("id").id)
    assert client.get("/api/v1/projects/lab/imports").json()["imports"] == [done]
    assert client.post(f"/api/v1/imports/{asked['id']}/cancel").status_code == 409


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


@pytest.mark.django_db(transaction=True)
def test_a_file_is_taken_from_known_users_alone(client: Client, people: People) -> None:
    """Asked before a byte of it is read."""

    def whose(**headers: str) -> int | None:
        given = [(name.encode(), value.encode()) for name, value in headers.items()]
        return async_to_sync(sender)({"headers": given})

    assert whose() is None
    assert whose(cookie="sessionid=made-up; other") is None
    assert whose(authorization="Bearer made-up") is None
    client.force_login(people.editor)
    session = client.cookies[settings.SESSION_COOKIE_NAME].value
    assert whose(cookie=f"a=b; {settings.SESSION_COOKIE_NAME}={session}") == people.editor.id
    token = create_token(people.editor, "cli", ApiToken.Scope.WRITE)
    assert whose(authorization=f"Bearer {token}") == people.editor.id
    assert whose(authorization=token, cookie=f"{settings.SESSION_COOKIE_NAME}={session}") is None
    client.logout()
    assert whose(cookie=f"{settings.SESSION_COOKIE_NAME}={session}") is None
