"""Who gets in where: every route of every app and every API operation, for every role. A new one without a
row here fails.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from tests.webapp.material import People
from webapp.accounts.models import ApiToken, User
from webapp.api import api
from webapp.exports.models import Export
from webapp.imports.models import Import
from webapp.notes.models import Note
from webapp.probes.models import Probe
from webapp.projects.models import Project
from webapp.runs.models import Run, Worker
from webapp.saved.models import SavedView
from webapp.trees.models import StoredTree
from webapp.verifications.models import Verification

ROLES = ("anonymous", "stranger", "viewer", "editor")

# What each role gets: a page's route name -> method, then one status per role of ROLES.
PAGES = {
    "home": ("GET", 302, 302, 302, 302),
    "projects": ("GET", 302, 200, 200, 200),
    "healthz": ("GET", 200, 200, 200, 200),
    "login": ("GET", 200, 200, 200, 200),
    "login-link": ("GET", 410, 410, 410, 410),
    "logout": ("POST", 302, 302, 302, 302),
    "settings": ("GET", 302, 302, 302, 302),
    "tokens": ("GET", 302, 200, 200, 200),
    "token-revoke": ("POST", 302, 404, 404, 302),  # it is the editor's
    "password": ("GET", 302, 200, 200, 200),
    "run-list": ("GET", 302, 404, 200, 200),
    "run-new": ("GET", 302, 404, 403, 200),
    "run-detail": ("GET", 302, 404, 200, 200),
    "run-config": ("GET", 302, 404, 200, 200),
    "run-config-file": ("GET", 302, 404, 200, 200),
    "run-events": ("GET", 302, 404, 200, 200),
    "run-trees": ("GET", 302, 404, 200, 200),
    "growing-tree": ("GET", 302, 404, 404, 404),  # the page of a tree that is not there
    "queue": ("GET", 302, 200, 200, 200),
    "queue-priority": ("POST", 302, 404, 403, 403),  # it is the admins'
    "queue-cancel": ("POST", 302, 404, 403, 302),
    "queue-limits": ("POST", 302, 404, 403, 403),
    "workers": ("GET", 302, 200, 200, 200),
    "worker-detail": ("GET", 302, 200, 200, 200),
    "worker-drain": ("POST", 302, 403, 403, 403),  # it is the operators'
    "worker-undrain": ("POST", 302, 403, 403, 403),
    "run-attempts": ("GET", 302, 404, 200, 200),
    "run-system": ("GET", 302, 404, 200, 200),
    "run-control": ("POST", 302, 404, 403, 302),
    "run-fork": ("GET", 302, 404, 403, 302),
    "problem-list": ("GET", 302, 404, 200, 200),
    "problem-history": ("GET", 302, 404, 200, 200),
    "all-trees": ("GET", 302, 404, 200, 200),
    "trees-beside": ("GET", 302, 404, 200, 200),
    "trees-beside-chosen": ("GET", 302, 400, 400, 400),  # it reads nothing
    "export-new": ("GET", 302, 404, 200, 200),
    "trees-import": ("GET", 302, 404, 403, 200),
    "import-cancel": ("POST", 302, 404, 403, 302),
    "export-list": ("GET", 302, 200, 200, 200),
    "export-file": ("GET", 302, 404, 404, 404),  # it has none yet
    "export-cancel": ("POST", 302, 404, 302, 403),  # it is the viewer's
    "export-delete": ("POST", 302, 404, 302, 403),
    "tree-detail": ("GET", 302, 404, 200, 200),
    "node-page": ("GET", 302, 404, 200, 200),
    "node-siblings": ("GET", 302, 404, 200, 200),
    "node-estimators": ("GET", 302, 404, 200, 200),
    "node-diff": ("GET", 302, 404, 200, 200),
    "branch": ("GET", 302, 404, 200, 200),
    "probe-cancel": ("POST", 302, 404, 403, 302),
    "node-verify": ("POST", 302, 404, 403, 302),
    "search": ("GET", 302, 404, 200, 200),
    "view-list": ("GET", 302, 404, 200, 200),
    "view-save": ("POST", 302, 404, 302, 302),  # nothing was sent, which the next page says
    "view-alert": ("POST", 302, 404, 403, 302),  # it is the editor's
    "view-remove": ("POST", 302, 404, 403, 302),
    "note-list": ("GET", 302, 404, 200, 200),
    "note-new": ("GET", 302, 404, 200, 200),
    "note-edit": ("GET", 302, 404, 200, 200),
    "note-remove": ("POST", 302, 404, 403, 302),
}
OPEN = {"healthz", "login", "login-link"}

API = {
    "GET /api/v1/projects": (401, 200, 200, 200),
    "GET /api/v1/projects/{slug}/problems": (401, 404, 200, 200),
    "GET /api/v1/projects/{slug}/problem": (401, 404, 200, 200),
    "GET /api/v1/projects/{slug}/problem/runs": (401, 404, 200, 200),
    "GET /api/v1/projects/{slug}/runs": (401, 404, 200, 200),
    "POST /api/v1/projects/{slug}/runs": (401, 404, 403, 201),
    "GET /api/v1/runs/{run_id}": (401, 404, 200, 200),
    "POST /api/v1/runs/{run_id}/pause": (401, 404, 403, 200),
    "POST /api/v1/runs/{run_id}/resume": (401, 404, 403, 409),
    "POST /api/v1/runs/{run_id}/stop": (401, 404, 403, 200),
    "POST /api/v1/runs/{run_id}/stop-now": (401, 404, 403, 200),
    "POST /api/v1/runs/{run_id}/retry": (401, 404, 403, 409),
    "POST /api/v1/runs/{run_id}/priority": (401, 404, 403, 403),
    "GET /api/v1/queue": (401, 200, 200, 200),
    "GET /api/v1/projects/{slug}/limits": (401, 404, 200, 200),
    "POST /api/v1/projects/{slug}/limits": (401, 404, 403, 403),
    "GET /api/v1/workers": (401, 200, 200, 200),
    "GET /api/v1/workers/{worker_id}": (401, 200, 200, 200),
    "POST /api/v1/workers/{worker_id}/drain": (401, 403, 403, 403),
    "POST /api/v1/workers/{worker_id}/undrain": (401, 403, 403, 403),
    "GET /api/v1/runs/{run_id}/checkpoints": (401, 404, 200, 200),
    "POST /api/v1/runs/{run_id}/fork": (401, 404, 403, 409),
    "POST /api/v1/runs/{run_id}/clone": (401, 404, 403, 201),
    "GET /api/v1/runs/{run_id}/metrics": (401, 404, 200, 200),
    "GET /api/v1/runs/{run_id}/events": (401, 404, 200, 200),
    "GET /api/v1/runs/{run_id}/news": (401, 404, 200, 200),
    "GET /api/v1/runs/{run_id}/steps": (401, 404, 200, 200),
    "GET /api/v1/runs/{run_id}/trees": (401, 404, 200, 200),
    "GET /api/v1/runs/{run_id}/icicles": (401, 404, 200, 200),
    "GET /api/v1/runs/{run_id}/growing": (401, 404, 200, 200),
    "GET /api/v1/trees/{tree_id}": (401, 404, 200, 200),
    "GET /api/v1/trees/{tree_id}/columns": (401, 404, 200, 200),
    "GET /api/v1/trees/{tree_id}/texts": (401, 404, 200, 200),
    "GET /api/v1/trees/{tree_id}/find": (401, 404, 200, 200),
    "GET /api/v1/trees/{tree_id}/difference": (401, 404, 200, 200),
    "GET /api/v1/trees/{tree_id}/nodes/{name}": (401, 404, 200, 200),
    "GET /api/v1/trees/{tree_id}/nodes/{name}/audit": (401, 404, 200, 200),
    "GET /api/v1/trees/{tree_id}/nodes/{name}/estimators": (401, 404, 200, 200),
    "GET /api/v1/trees/{tree_id}/estimators": (401, 404, 200, 200),
    "POST /api/v1/projects/{slug}/exports": (401, 404, 201, 201),
    "POST /api/v1/projects/{slug}/exports/preview": (401, 404, 200, 200),
    "POST /api/v1/projects/{slug}/imports": (401, 404, 403, 400),  # without a file
    "GET /api/v1/projects/{slug}/imports": (401, 404, 200, 200),
    "GET /api/v1/imports/{import_id}": (401, 404, 200, 200),
    "POST /api/v1/imports/{import_id}/cancel": (401, 404, 403, 200),
    "GET /api/v1/exports": (401, 200, 200, 200),
    "GET /api/v1/exports/{export_id}": (401, 404, 200, 200),
    "GET /api/v1/exports/{export_id}/file": (401, 404, 409, 409),
    "POST /api/v1/exports/{export_id}/cancel": (401, 404, 200, 403),
    "POST /api/v1/exports/{export_id}/delete": (401, 404, 200, 403),
    "POST /api/v1/trees/{tree_id}/nodes/{name}/branch": (401, 404, 403, 201),
    "GET /api/v1/trees/{tree_id}/nodes/{name}/probes": (401, 404, 200, 200),
    "GET /api/v1/probes/{probe_id}": (401, 404, 200, 200),
    "GET /api/v1/probes/{probe_id}/continuations/{number}": (401, 404, 404, 404),
    "POST /api/v1/probes/{probe_id}/cancel": (401, 404, 403, 200),
    "POST /api/v1/trees/{tree_id}/nodes/{name}/verifications": (401, 404, 403, 201),
    "GET /api/v1/trees/{tree_id}/nodes/{name}/verifications": (401, 404, 200, 200),
    "GET /api/v1/verifications/{verification_id}": (401, 404, 200, 200),
    "GET /api/v1/trees/{tree_id}/paths/{name}/tokens": (401, 404, 200, 200),
    "GET /api/v1/projects/{slug}/search": (401, 404, 200, 200),
    "GET /api/v1/projects/{slug}/search/counts": (401, 404, 200, 200),
    "GET /api/v1/projects/{slug}/views": (401, 404, 200, 200),
    "POST /api/v1/projects/{slug}/views": (401, 404, 201, 201),
    "PATCH /api/v1/projects/{slug}/views/{view_id}": (401, 404, 403, 200),  # it is the editor's
    "DELETE /api/v1/projects/{slug}/views/{view_id}": (401, 404, 403, 204),
    "GET /api/v1/projects/{slug}/notes": (401, 404, 200, 200),
    "GET /api/v1/trees/{tree_id}/notes": (401, 404, 200, 200),
    "POST /api/v1/trees/{tree_id}/notes": (401, 404, 403, 201),
    "PATCH /api/v1/notes/{note_id}": (401, 404, 403, 200),
    "DELETE /api/v1/notes/{note_id}": (401, 404, 403, 204),
    "POST /api/v1/configs/validate": (401, 200, 200, 200),
    "GET /api/v1/presets": (401, 200, 200, 200),
    "GET /api/v1/metrics": (401, 200, 200, 200),
}


def routes(patterns: list[Any] | None = None, before: str = "") -> Iterator[tuple[str, str]]:
    """(name, route) of every pattern that Django can resolve, whichever app brought it."""
    for pattern in get_resolver().url_patterns if patterns is None else patterns:
        if isinstance(pattern, URLResolver):
            yield from routes(pattern.url_patterns, before + str(pattern.pattern))
        elif isinstance(pattern, URLPattern):
            yield pattern.name or "", "/" + before + str(pattern.pattern)


def fill(route: str, run: Run) -> str:
    tree = StoredTree.objects.filter(run=run).order_by("id").first()
    assert tree is not None
    export = Export.objects.filter(project=run.project).first() or Export.objects.create(
        project=run.project,
        created_by=User.objects.get(username="viewer"),
        kind="trees",
        parameters={},
        selection={"runs": [run.id]},
    )
    asked, _ = Import.objects.get_or_create(
        project=run.project,
        defaults={
            "created_by": run.created_by, "run_name": "theirs", "file": "f", "upload": "", "size_bytes": 1
        },
    )  # fmt: skip
    probe, _ = Probe.objects.get_or_create(
        tree=tree,
        defaults={
            "created_by": run.created_by, "node": "1", "policy_version": 0, "n": 1, "temperature": 1.0,
            "max_tokens": 1, "seed": 1, "queue": "probes.cpu",
        },
    )  # fmt: skip
    verification, _ = Verification.objects.get_or_create(
        tree=tree,
        defaults={
            "created_by": run.created_by, "node": "1.1", "verifier": {"kind": "gsm8k"}, "is_own": False
        },
    )  # fmt: skip
    note, _ = Note.objects.get_or_create(
        tree=tree, defaults={"project": run.project, "author": run.created_by, "text": "a note"}
    )
    view, _ = SavedView.objects.get_or_create(
        project=run.project,
        defaults={"owner": run.created_by, "name": "a view", "page": "search", "query": "q=a"},
    )
    token = ApiToken.objects.filter(user__username="editor").first() or ApiToken.objects.create(
        user=User.objects.get(username="editor"), name="a token", prefix="arb_", secret_sha256="0" * 64
    )
    worker, _ = Worker.objects.get_or_create(name="w-1", defaults={"queues": "cpu"})
    values = {
        "int:worker_id": worker.id,
        "worker_id": worker.id,
        "int:token_id": token.id,
        "int:note_id": note.id,
        "note_id": note.id,
        "int:view_id": view.id,
        "view_id": view.id,
        "int:probe_id": probe.id,
        "probe_id": probe.id,
        "int:verification_id": verification.id,
        "verification_id": verification.id,
        "int:number": 0,
        "number": 0,
        "slug:slug": run.project.slug,
        "int:run_id": run.id,
        "int:tree_id": tree.id,
        "int:other_id": tree.id,
        "problem:problem": tree.problem_id,
        "int:import_id": asked.id,
        "import_id": asked.id,
        "int:export_id": export.id,
        "export_id": export.id,
        "str:name": "1.1",
        "str:secret": "x",
        "name": "1.1",
        "run_id": run.id,
        "tree_id": tree.id,
        "slug": run.project.slug,
    }
    for name, value in values.items():
        route = route.replace(f"<{name}>", str(value)).replace(f"{{{name}}}", str(value))
    assert "<" not in route, f"no value for {route}"
    assert "{" not in route, f"no value for {route}"
    return route


def page_routes() -> dict[str, str]:
    return {name: route for name, route in routes() if not route.startswith("/api/")}


def test_every_page_has_a_row_here() -> None:
    assert set(page_routes()) == set(PAGES)


def test_every_api_operation_has_a_row_here() -> None:
    schema = api.get_openapi_schema()
    operations = {f"{method.upper()} {path}" for path, item in schema["paths"].items() for method in item}
    assert operations == set(API)


@pytest.mark.parametrize("name", PAGES)
def test_page_by_role(name: str, run: Run, people: People) -> None:
    method, *expected = PAGES[name]
    path = fill(page_routes()[name], run)
    found = [people.client(role).generic(method, path).status_code for role in ROLES]
    assert found == expected


# What some operations cannot do without.
QUERIES = {
    "icicles": "?trees=1", "texts": "?blocks=0", "find": "?q=books", "difference": "?under=grpo",
    "problem": "?problem_id=p-1", "runs": "?problem_id=p-1", "search": "?q=books", "counts": "?q=books",
}  # fmt: skip


@pytest.mark.parametrize("operation", API)
def test_api_operation_by_role(operation: str, run: Run, people: People, config: Any) -> None:
    method, _, route = operation.partition(" ")
    path = fill(route, run) + QUERIES.get(route.rpartition("/")[2], "")
    body = (
        json.dumps({"name": "x", "config": config.model_dump(mode="json")}) if "projects" in route else "{}"
    )
    if "/exports" in route:
        body = json.dumps({"kind": "trees", "selection": {"runs": [run.id]}})
    if route.endswith("/branch"):
        path, body = path.replace("1.1", "1"), json.dumps({"n": 1, "max_tokens": 4})
    if route.endswith("/views"):
        body = json.dumps({"name": "new", "page": "search", "query": "q=books"})
    if "/views/" in route:
        body = json.dumps({"seen": True})
    if "/notes" in route:
        body = json.dumps({"text": "new", "tags": []})
    if route.endswith("/priority"):
        body = json.dumps({"move": "top"})
    if route.endswith("/limits"):
        body = json.dumps({"limits": {"all": 2}})
    if route.endswith("/fork"):
        body = json.dumps({"name": "new", "checkpoint": 1})
    if "validate" in route:
        body = json.dumps({"config": {}})
    found = []
    for role in ROLES:
        response = people.client(role).generic(method, path, body, content_type="application/json")
        found.append(response.status_code)
        if response.status_code >= 400:
            assert response.headers["Content-Type"] == "application/problem+json"
            assert response.json()["status"] == response.status_code
            assert response.json()["detail"]
    assert tuple(found) == API[operation]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
def test_strangers_to_the_site_get_nothing_by_any_method(method: str, run: Run) -> None:
    client = Client()
    for name, route in routes():
        if name not in OPEN:
            status = client.generic(method, fill(route, run)).status_code
            assert status in (302, 401, 403, 404), f"{method} {route} answered {status}"


def test_unknown_addresses_are_404_with_a_page_and_problem_json(people: People) -> None:
    client = people.client("viewer")
    assert client.get("/nothing/here").status_code == 404
    response = client.get("/api/v1/nothing")
    assert (response.status_code, response.headers["Content-Type"]) == (404, "application/problem+json")


def test_a_foreign_run_answers_like_one_that_does_not_exist(run: Run, people: People) -> None:
    client = people.client("stranger")
    foreign, missing = client.get(f"/api/v1/runs/{run.id}"), client.get("/api/v1/runs/987654321")
    assert foreign.status_code == missing.status_code == 404
    assert foreign.content == missing.content


def test_ids_beyond_the_database_are_404(people: People) -> None:
    client = people.client("viewer")
    for number in ("0", str(2**63), "9" * 30):
        for path in (f"/r/{number}/", f"/t/{number}/", f"/api/v1/runs/{number}", f"/api/v1/trees/{number}"):
            assert client.get(path).status_code == 404, path


def test_a_member_who_was_removed_or_deactivated_sees_nothing(run: Run, people: People) -> None:
    client = people.client("editor")
    assert client.get(f"/r/{run.id}/").status_code == 200
    people.editor.memberships.all().delete()
    assert client.get(f"/r/{run.id}/").status_code == 404
    viewer = people.client("viewer")
    people.viewer.is_active = False
    people.viewer.save()
    assert viewer.get(f"/r/{run.id}/").status_code == 302


def test_superusers_need_a_membership_too(run: Run, people: People) -> None:
    people.stranger.is_superuser = people.stranger.is_staff = True
    people.stranger.save()
    assert people.client("stranger").get(f"/r/{run.id}/").status_code == 404


def test_nobody_sees_runs_of_others_on_shared_pages(run: Run, people: People, project: Project) -> None:
    client = people.client("stranger")
    for path in ("/p/", "/workers/", "/queue/", "/api/v1/projects", "/api/v1/queue", "/api/v1/workers"):
        page = client.get(path).content.decode()
        assert f"/r/{run.id}/" not in page
        assert project.slug not in page.replace("label", "")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_cookie_writes_need_the_csrf_token(method: str, run: Run, people: People, config: Any) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(people.editor)
    body = json.dumps({"name": "x", "config": config.model_dump(mode="json")})
    before = Run.objects.count()
    for name, route in routes():
        if name in ("login", "login-link", "healthz"):
            continue
        response = client.generic(method, fill(route, run), body, content_type="application/json")
        assert response.status_code in (403, 404, 405), f"{method} {route}: {response.status_code}"
    assert Run.objects.count() == before
    run.refresh_from_db()
    assert run.wish_at is None


def test_csrf_token_from_the_cookie_lets_a_write_through(run: Run, people: People) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(people.editor)
    client.get(f"/r/{run.id}/")
    token = client.cookies["csrftoken"].value
    response = client.post(
        f"/api/v1/runs/{run.id}/stop", "{}", content_type="application/json", headers={"X-CSRFToken": token}
    )
    assert response.status_code == 200
