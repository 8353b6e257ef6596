"""Exports as pages and API show them: asked for, counted, watched, fetched by whoever may."""

from __future__ import annotations

import csv
import io
import json
import os
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db.models.functions import Now
from django.test import Client

from tests.webapp.material import People, add_tree, worked_tree
from webapp.errors import RequestError
from webapp.exports import files, services
from webapp.exports.found import Found
from webapp.exports.kinds import TreesExport, read_parameters
from webapp.exports.models import Export, ExportStatus
from webapp.exports.selection import read_selection
from webapp.exports.sweeper import sweep_exports
from webapp.limits import EXPORTS_AT_ONCE, JOB_ATTEMPTS
from webapp.projects.models import Project
from webapp.runs.models import Run
from webapp.search import indexer
from workers import exports as worker
from workers import jobs


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, settings: Any) -> None:
    settings.EXPORT_DIR = tmp_path / "exports"
    settings.BROKER_URL = ""


def asked(run: Run, people: People, kind: str = "trees", **parameters: Any) -> Export:
    selection = read_selection(parameters.pop("selection", {"runs": [run.id]}))
    return services.create_export(run.project, people.viewer, selection, read_parameters(kind, parameters))


def written(export: Export) -> bytes:
    """Worked off by a worker, as the task does it."""
    held = worker.claim(export.id, "worker-1", lambda: False)
    assert held is not None
    worker.work_off(held)
    export.refresh_from_db()
    assert export.status == "succeeded", export.reason
    return files.path_of(export).read_bytes()


def body(response: Any) -> bytes:
    with warnings.catch_warnings():  # the test client reads it all at once
        warnings.simplefilter("ignore")
        return b"".join(response)


def test_a_trees_file_holds_every_tree_of_the_selection_in_order(run: Run, people: People) -> None:
    add_tree(run, 3, worked_tree(3, problem_id="p-9"), index=4)
    export = asked(run, people, selection={"runs": [run.id], "from_step": 2})
    lines = [json.loads(line) for line in written(export).splitlines()]
    assert [(line["step"], line["index"], line["problem_id"]) for line in lines] == [
        (2, 0, "p-1"),
        (3, 4, "p-9"),
    ]
    assert lines[0]["run"] == "first"
    assert lines[0]["estimator"]["preset"] == "treerpo-tiny"
    assert (export.total, export.done, export.rows, export.left_out) == (2, 2, 2, {})
    assert export.size_bytes == files.path_of(export).stat().st_size
    assert list(files.folder().iterdir()) == [files.path_of(export)]
    assert export.title == "first, steps 2 to last"


def test_a_selection_is_filtered_as_the_list_of_trees_is(run: Run, people: People) -> None:
    add_tree(run, 3, worked_tree(3, problem_id="p-9"))
    chosen = {"runs": [run.id], "q": "problem:p-9"}
    assert [
        json.loads(line)["step"] for line in written(asked(run, people, selection=chosen)).splitlines()
    ] == [3]
    chosen["q"] = "books value:0..1"  # words of the problem, and a number
    assert len(written(asked(run, people, selection=chosen)).splitlines()) == 3
    client = people.client("viewer")
    listed = client.get(f"/r/{run.id}/trees?step=3&q=problem:p-9").content.decode()
    assert f"/p/lab/export?run={run.id}&from=3&to=3&amp;q=problem%3Ap-9" in listed.replace(
        "&amp;from", "&from"
    ).replace("&amp;to", "&to")
    page = client.get(f"/p/lab/export?run={run.id}&q=problm:p-9").content.decode()
    assert 'class="field-error"' in page
    with pytest.raises(RequestError, match="q: "):
        asked(run, people, selection={"runs": [run.id], "q": "value:>>1"})


def test_what_is_superseded_damaged_or_gone_is_left_out_and_counted(run: Run, people: People) -> None:
    run.trees.filter(step=1).update(superseded=True)
    add_tree(run, 3, worked_tree(3))
    run.trees.filter(step=3).update(payload=b"torn")
    export = asked(run, people)
    assert [json.loads(line)["step"] for line in written(export).splitlines()] == [2]
    assert export.left_out == {"damaged trees": 1}
    assert (export.rows, export.total) == (1, 2)


def test_a_csv_cell_that_a_spreadsheet_would_run_is_text(run: Run, people: People) -> None:
    run.trees.all().delete()
    for index, text in enumerate(['=HYPERLINK("http://x","y")', "+1", "-1+2", "@x", "\tx", "\rx", "＝1"]):
        add_tree(run, 1, worked_tree(text=text), index=index)
    import csv
    import io

    content = written(asked(run, people, "nodes")).decode()
    rows = list(csv.DictReader(io.StringIO(content, newline="")))
    assert len(rows) == 49
    texts = [row["text"] for row in rows if row["node"] == "1"]
    assert all(text.startswith("'") for text in texts)
    assert texts[0] == '\'=HYPERLINK("http://x","y")'
    # Numbers stay numbers, and what is missing is empty, not 0.
    negative = next(row for row in rows if row["node"] == "2")
    assert float(negative["advantage"]) == pytest.approx(-4 / 3)
    assert next(row for row in rows if row["node"] == "2.1")["advantage"] == ""


def test_parquet_has_the_same_rows_with_types(run: Run, people: People) -> None:
    import io

    import pyarrow.parquet

    table = pyarrow.parquet.read_table(io.BytesIO(written(asked(run, people, "nodes", format="parquet"))))
    rows = table.to_pylist()
    assert len(rows) == 14
    assert rows[1]["advantage"] == pytest.approx(4 / 3)
    assert rows[0]["advantage"] is None
    assert str(table.schema.field("value").type) == "double"


def test_pairs_labels_and_chats_are_the_rows_that_trl_reads(run: Run, people: People) -> None:
    (pair, _) = (json.loads(line) for line in written(asked(run, people, "pairs", gap=1.0)).splitlines())
    prompt, step = "Cal has 45 books. Finds 26. How many?\n", "45+26=71 books.\n"
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (prompt + step, "#### 71", "#### 72")
    labels = [json.loads(line) for line in written(asked(run, people, "labels")).splitlines()]
    assert (labels[0]["prompt"], labels[0]["completions"]) == (prompt, [step, "#### 71"])
    assert labels[0]["labels"] == [True, True]
    run.trees.filter(step=1).update(problem_id="p-0")
    # Two problems: each has its own best answers.
    chats = [json.loads(line) for line in written(asked(run, people, "chats")).splitlines()]
    assert [(row["problem_id"], row["step"], row["node"]) for row in chats] == [
        ("p-0", 1, "1.1"),
        ("p-1", 2, "1.1"),
    ]
    assert chats[0]["messages"][1] == {"role": "assistant", "content": step + "#### 71"}


def test_a_worker_that_was_lost_is_replaced_and_writes_nothing_more(
    run: Run, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webapp.lost_jobs.JOB_LEASE_SECONDS", 0)  # the database has just started
    export = asked(run, people)
    first = worker.claim(export.id, "worker-1", lambda: False)
    assert first is not None
    assert worker.claim(export.id, "worker-2", lambda: False) is None
    sweep_exports()
    assert Export.objects.get().status == "running"  # its lease is good
    Export.objects.update(lease_until=Now() - timedelta(seconds=1))
    sweep_exports()
    assert Export.objects.get().status == "queued"
    second = worker.claim(export.id, "worker-2", lambda: False)
    assert second is not None
    worker.work_off(first)  # it was only slow, and has no say any more
    assert Export.objects.get().status == "running"
    worker.work_off(second)
    export.refresh_from_db()
    assert (export.status, export.attempts, export.rows) == ("succeeded", 2, 2)
    assert len(list(files.folder().iterdir())) == 1

    again = asked(run, people)
    for _ in range(JOB_ATTEMPTS):
        assert worker.claim(again.id, "worker-1", lambda: False) is not None
        Export.objects.filter(id=again.id).update(lease_until=Now() - timedelta(seconds=1))
        sweep_exports()
    again.refresh_from_db()
    assert again.status == "failed"
    assert f"was lost {JOB_ATTEMPTS} times" in again.reason


def test_a_cancelled_export_ends_while_it_is_written(
    run: Run, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "REPORT_SECONDS", 0)
    export = asked(run, people)
    held = worker.claim(export.id, "worker-1", lambda: False)
    assert held is not None
    services.cancel(export, people.viewer)
    worker.work_off(held)
    export.refresh_from_db()
    assert (export.status, export.reason, export.file) == ("cancelled", "Cancelled by viewer.", "")
    assert list(files.folder().iterdir()) == []
    services.cancel(export, people.viewer)  # twice changes nothing
    done = asked(run, people)
    written(done)
    with pytest.raises(RequestError, match="has already ended"):
        services.cancel(done, people.viewer)


def test_a_worker_that_is_told_to_leave_gives_it_back(
    run: Run, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "REPORT_SECONDS", 0)
    export = asked(run, people)
    held = worker.claim(export.id, "worker-1", lambda: True)
    assert held is not None
    worker.work_off(held)
    export.refresh_from_db()
    assert (export.status, export.attempts) == ("queued", 0)
    assert written(export)


def test_a_full_disk_and_a_file_too_large_are_told_in_a_sentence(
    run: Run, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "MAX_EXPORT_BYTES", 100)
    export = asked(run, people)
    held = worker.claim(export.id, "worker-1", lambda: False)
    assert held is not None
    worker.work_off(held)
    export.refresh_from_db()
    assert export.status == "failed"
    assert "grew beyond 100 bytes after 1 of 2 trees" in export.reason
    assert list(files.folder().iterdir()) == []


def test_a_single_tree_cannot_fill_the_disk(
    run: Run, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "MAX_EXPORT_BYTES", 1)
    rows = []
    real = worker.Csv.write
    monkeypatch.setattr(worker.Csv, "write", lambda self, row: rows.append(row) or real(self, row))
    export = asked(run, people, "nodes")
    held = worker.claim(export.id, "worker-1", lambda: False)
    assert held is not None
    worker.work_off(held)
    export.refresh_from_db()
    assert (export.status, len(rows)) == ("failed", 1)  # of the tree's seven


def test_a_preview_ends_in_time_within_a_tree(
    run: Run, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webapp.exports.preview.PREVIEW_SECONDS", -1.0)
    page = people.client("viewer").get(f"/p/lab/export?run={run.id}&kind=labels").content.decode()
    assert 'give more than <strong class="figures">1</strong>' in page


def test_files_go_after_their_time_and_so_do_those_that_nobody_knows(run: Run, people: People) -> None:
    export = asked(run, people)
    written(export)
    path = files.path_of(export)
    orphan, young = files.folder() / "9-1-x.jsonl.part", files.folder() / "9-2-x.jsonl.part"
    for stray in (orphan, young):
        stray.write_bytes(b"half")
    os.utime(orphan, (time.time() - 7200, time.time() - 7200))
    os.utime(path, (time.time() - 7200, time.time() - 7200))
    sweep_exports()
    assert (path.exists(), orphan.exists(), young.exists()) == (True, False, True)
    Export.objects.update(expires_at=Now() - timedelta(seconds=1))
    sweep_exports()
    export.refresh_from_db()
    assert (export.status, export.file, export.reason) == (
        "expired",
        "",
        "Its file was deleted after 7 days.",
    )


def test_one_user_may_not_fill_the_queue(run: Run, people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(EXPORTS_AT_ONCE):
        asked(run, people)
    with pytest.raises(RequestError, match="are not finished"):
        asked(run, people)
    Export.objects.update(status=ExportStatus.CANCELLED, ended_at=Now())
    monkeypatch.setattr(services, "MAX_EXPORT_BYTES_PER_USER", 1)
    written(asked(run, people))
    with pytest.raises(RequestError, match="Delete some of them"):
        asked(run, people)


@pytest.mark.parametrize(
    ("selection", "status", "message"),
    [
        ({}, 400, "Name a run or a tree"),
        ({"runs": [-1]}, 400, "by their numbers"),
        ({"runs": ["1"]}, 400, "valid integer"),
        ({"runs": [2**64]}, 400, "by their numbers"),
        ({"runs": [1], "from_step": 2**70}, 400, "from_step: "),
        ({"runs": [10**9]}, 404, "no run 1000000000"),
        ({"trees": [10**9]}, 404, "Not all of these trees"),
        ({"runs": [1], "from_step": 3, "to_step": 2}, 400, "Turn them round"),
        ({"runs": [1], "extra": 1}, 400, "Extra inputs"),
    ],
)  # fmt: skip
def test_a_selection_that_is_none_is_refused(
    selection: Any, status: int, message: str, project: Project, people: People
) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        services.create_export(project, people.viewer, read_selection(selection), TreesExport())
    assert refused.value.status == status


def test_runs_and_trees_of_another_project_do_not_exist(run: Run, people: People) -> None:
    client = people.client("stranger")
    tree = run.trees.get(step=1)
    for query in (f"run={run.id}", f"tree={tree.id}"):
        assert client.get(f"/p/elsewhere/export?{query}").status_code == 404
    for selection in ({"runs": [run.id]}, {"trees": [tree.id]}):
        for path in ("/api/v1/projects/elsewhere/exports", "/api/v1/projects/elsewhere/exports/preview"):
            sent = {"kind": "trees", "selection": selection}
            response = client.post(path, json.dumps(sent), content_type="application/json")
            assert response.status_code == 404
    assert not Export.objects.exists()


def test_the_page_counts_shows_three_rows_and_starts(run: Run, people: People) -> None:
    client = people.client("viewer")
    page = client.get(f"/p/lab/export?run={run.id}&kind=pairs&gap=1").content.decode()
    assert '<strong class="figures">2</strong> pairs' in page
    assert page.count("<dt>chosen</dt>") == 2
    assert "Export preference pairs of 2 trees" in page
    page = client.get(f"/p/lab/export?run={run.id}&kind=nodes").content.decode()
    assert '<strong class="figures">14</strong> nodes' in page
    assert page.count("<dt>mean_entropy</dt>") == 3
    page = client.get(f"/p/lab/export?run={run.id}&kind=pairs&gap=much").content.decode()
    assert 'aria-invalid="true"' in page
    assert "Value gap, at least:" in page
    assert "No tree matches" in client.get(f"/p/lab/export?run={run.id}&from=99").content.decode()
    assert "Name a run or a tree" in client.get("/p/lab/export").content.decode()
    assert client.get(f"/p/lab/export?run={run.id}&kind=none").status_code == 404
    assert "A page shows one tree" in client.get(f"/p/lab/export?run={run.id}&kind=page").content.decode()

    response = client.post("/p/lab/export", {"run": str(run.id), "kind": "pairs", "gap": "1"})
    assert response.headers["Location"] == "/exports/"
    export = Export.objects.get()
    assert export.parameters == {"gap": 1.0, "answers": 1, "most": 1}
    listed = client.get("/exports/").content.decode()
    assert "Queued" in listed
    assert f"/exports/{export.id}/cancel" in listed
    written(export)
    listed = client.get("/exports/").content.decode()
    assert f"/exports/{export.id}/file" in listed
    assert "No exports yet" in people.client("editor").get("/exports/").content.decode()


def test_what_a_search_finds_is_exported_node_by_node_or_as_whole_trees(
    run: Run, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_tree(run, 3, worked_tree(3, problem_id="p-9", text="an unusual wombat"), index=4)
    indexer.index_all()
    monkeypatch.setattr("webapp.exports.found.NODES_AT_ONCE", 2)  # several pages of the search
    wanted = {"search": "verdict:incorrect step:2..3"}
    found = list(csv.DictReader(io.StringIO(written(asked(run, people, "nodes", selection=wanted)).decode())))
    every = list(csv.DictReader(io.StringIO(written(asked(run, people, "nodes")).decode())))
    assert found == [row for row in every if row["verdict"] == "incorrect" and row["step"] in ("2", "3")]
    assert len(found) > 2
    trees = written(asked(run, people, "trees", selection={"search": "wombat"})).splitlines()
    assert [json.loads(line)["problem_id"] for line in trees] == ["p-9"]

    client = people.client("viewer")
    page = client.get("/p/lab/export?search=verdict:incorrect+step:2..3").content.decode()
    assert f'<strong class="figures">{len(found)}</strong> nodes' in page
    assert "/p/lab/export?search=wombat" in client.get("/p/lab/search?q=wombat").content.decode()
    assert "There is no run x" in client.get("/p/lab/export?search=run:x").content.decode()
    assert "No node matches" in client.get("/p/lab/export?search=walrus").content.decode()
    with pytest.raises(RequestError, match="nothing to export"):
        asked(run, people, "nodes", selection={"search": "walrus"})
    with pytest.raises(RequestError, match="says itself which runs"):
        asked(run, people, "nodes", selection={"search": "wombat", "runs": [run.id]})
    # Another project's search finds nothing of this one.
    elsewhere = people.client("stranger").get("/p/elsewhere/export?search=wombat").content.decode()
    assert "No node matches" in elsewhere

    many = asked(run, people, "nodes", selection={"search": "depth:>=0"})
    monkeypatch.setattr("workers.exports.look", lambda *_, **__: Found({}, 3, is_complete=False))
    held = worker.claim(many.id, "worker-1", lambda: False)
    assert held is not None
    worker.work_off(held)
    many.refresh_from_db()
    assert (many.status, many.reason.endswith("nodes match. Narrow the search.")) == ("failed", True)


def test_a_file_is_for_members_and_is_saved_not_shown(
    run: Run, people: People, django_capture_on_commit_callbacks: Any
) -> None:
    tree = run.trees.get(step=1)
    run.name = '../"../x\r\ny'
    run.save()
    export = asked(run, people, "page", selection={"trees": [tree.id]})
    path = f"/exports/{export.id}/file"
    assert people.client("viewer").get(path).status_code == 404  # not yet
    content = written(export)
    response = people.client("editor").get(path)
    assert body(response) == content
    assert (
        response.headers["Content-Disposition"]
        == f'attachment; filename="x-y-step-1-p-1-page-{export.id}.html"'
    )
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Content-Security-Policy"] == "sandbox; default-src 'none'"
    assert response.headers["Content-Type"] == "application/octet-stream"
    assert int(response.headers["Content-Length"]) == len(content)
    for api in ("", "/api/v1"):
        assert people.client("stranger").get(api + path).status_code == 404
    assert body(people.client("viewer").get("/api/v1" + path)) == content
    # Others may fetch it, and not delete it.
    for verb in ("delete", "cancel"):
        assert people.client("editor").post(f"/exports/{export.id}/{verb}").status_code == 403
    people.viewer.memberships.all().delete()
    assert people.client("viewer").get(path).status_code == 404
    with django_capture_on_commit_callbacks(execute=True):
        assert people.client("admin").post(f"/exports/{export.id}/delete").status_code == 302
    assert people.client("admin").get(path).status_code == 404
    assert list(files.folder().iterdir()) == []


def test_the_api_asks_watches_and_cancels(run: Run, people: People) -> None:
    client: Client = people.client("viewer")
    sent = {"kind": "labels", "selection": {"runs": [run.id]}, "parameters": {"threshold": 0.25}}
    shown = client.post(
        "/api/v1/projects/lab/exports/preview", json.dumps(sent), content_type="application/json"
    )
    assert (shown.json()["n_trees"], shown.json()["rows_read"], len(shown.json()["rows"])) == (2, 8, 3)
    made = client.post("/api/v1/projects/lab/exports", json.dumps(sent), content_type="application/json")
    assert (made.status_code, made.json()["status"]) == (201, "queued")
    number = made.json()["id"]
    assert client.get(f"/api/v1/exports/{number}/file").status_code == 409
    assert [one["id"] for one in client.get("/api/v1/exports").json()["exports"]] == [number]
    cancelled = client.post(f"/api/v1/exports/{number}/cancel", "{}", content_type="application/json")
    assert cancelled.json()["status"] == "cancelled"
    sent["parameters"] = {"threshold": "0.25"}
    wrong = client.post("/api/v1/projects/lab/exports", json.dumps(sent), content_type="application/json")
    assert (wrong.status_code, wrong.json()["errors"][0]["path"]) == (400, "threshold")
