"""API tokens: the settings page that makes and ends them, and what each scope opens."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.test import Client

from tests.webapp.material import People
from tests.webapp.test_access import API, fill
from webapp.accounts.models import ApiToken, User
from webapp.accounts.services import create_login_link, create_token, use_login_link
from webapp.limits import LOGIN_FAILURES_PER_ACCOUNT, TOKENS_PER_USER
from webapp.live.access import user_of_session
from webapp.projects.access import Role
from webapp.projects.models import Membership, Project
from webapp.runs.models import Run

Scope = ApiToken.Scope
PASSWORD = "correct horse battery staple"
CONTROLS = (
    "/stop", "/stop-now", "/pause", "/resume", "/retry", "/priority", "/drain", "/undrain", "/limits",
)  # fmt: skip


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def call(secret: str, method: str, path: str, body: Any = None) -> Any:
    return Client(enforce_csrf_checks=True).generic(
        method, path, json.dumps(body or {}), content_type="application/json", headers=bearer(secret)
    )


def new_token(client: Client, **more: Any) -> Any:
    return client.post("/settings/tokens/", {"name": "laptop", "days": "30"} | more)


# ------------------------------------------------------------------------------------------------ the page


def test_a_token_is_made_shown_once_and_revoked_at_once(run: Run, people: People) -> None:
    client = people.client("editor")
    page = new_token(client, control="1")
    secret = page.context["secret"]
    assert (secret[:4], len(secret) >= 47, secret in page.content.decode()) == ("arb_", True, True)
    assert "no-store" in page.headers["Cache-Control"]
    again = client.get("/settings/tokens/").content.decode()
    assert (secret in again, secret[:12] in again, "read, control" in again) == (False, True, True)
    token = ApiToken.objects.get()
    assert (token.scopes, token.expires_at is not None) == (["read", "control"], True)
    assert call(secret, "GET", f"/api/v1/runs/{run.id}").status_code == 200
    client.post(f"/settings/tokens/{token.id}/revoke")
    assert call(secret, "GET", f"/api/v1/runs/{run.id}").status_code == 401


def test_the_page_needs_a_csrf_token_and_revokes_nobody_elses(people: People) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(people.editor)
    assert new_token(client).status_code == 403
    create_token(people.viewer, "x", Scope.READ)
    token = ApiToken.objects.get()
    assert people.client("editor").post(f"/settings/tokens/{token.id}/revoke").status_code == 404
    token.refresh_from_db()
    assert token.revoked_at is None


def test_who_has_a_password_makes_a_token_with_it_alone_and_every_token_ends(people: People) -> None:
    people.editor.set_password("a long enough secret")
    people.editor.save()
    client = people.client("editor")
    for wrong in ({}, {"password": "another long secret"}):
        page = new_token(client, **wrong)
        assert (page.status_code, "not your password" in page.content.decode()) == (400, True)
    assert not ApiToken.objects.exists()
    assert new_token(client, password="a long enough secret", days="0").status_code == 400
    assert new_token(client, password="a long enough secret", days="365").status_code == 200
    assert ApiToken.objects.get().expires_at is not None
    for _ in range(LOGIN_FAILURES_PER_ACCOUNT + 1):
        page = new_token(client, password="guess")
    assert "Too many wrong passwords" in page.content.decode()
    chosen = people.client("viewer").get("/settings/tokens/").content.decode()
    assert '<option value="90" selected>' in chosen


@pytest.mark.parametrize(
    "wrong", [{"name": ""}, {"name": "x" * 81}, {"name": "a\u202eb"}, {"days": "1"}, {"project": "elsewhere"}]
)
def test_what_is_wrong_with_a_token_stands_beside_the_field(people: People, wrong: dict[str, str]) -> None:
    page = new_token(people.client("editor"), **wrong)
    assert (page.status_code, "field-error" in page.content.decode()) == (400, True)
    assert not ApiToken.objects.exists()


def test_nobody_keeps_more_tokens_than_the_limit(people: People) -> None:
    for _ in range(TOKENS_PER_USER):
        create_token(people.editor, "x", Scope.READ)
    client = people.client("editor")
    assert new_token(client).status_code == 400
    client.post(f"/settings/tokens/{ApiToken.objects.latest('id').id}/revoke")
    assert new_token(client).status_code == 200


# ------------------------------------------------------------------------------------------------ scopes


def test_each_operation_asks_for_one_scope(run: Run, people: People) -> None:
    """Every operation of the API with a token of each scope alone: it is refused unless it is the one."""
    secrets = {scope: create_token(people.viewer, "x", scope) for scope in Scope}
    for operation in API:
        method, _, route = operation.partition(" ")
        needed = "read" if method == "GET" else "control" if route.endswith(CONTROLS) else "write"
        for scope, secret in secrets.items():
            answer = call(secret, method, fill(route, run))
            refused = answer.status_code == 403 and "this needs the scope" in answer.json()["detail"]
            assert refused == (needed not in ("read", scope)), f"{operation}, {scope}: {answer.status_code}"
            assert answer.status_code != 401


def test_a_token_of_one_project_knows_no_other(run: Run, people: People) -> None:
    other = Project.objects.get(slug="elsewhere")
    Membership.objects.create(project=other, user=people.editor, role=Role.ADMIN)
    bound = create_token(people.editor, "x", Scope.WRITE, Scope.CONTROL, project_id=other.id)
    assert [one["slug"] for one in call(bound, "GET", "/api/v1/projects").json()] == ["elsewhere"]
    for method, path in (("GET", ""), ("POST", "/stop")):
        assert call(bound, method, f"/api/v1/runs/{run.id}{path}").status_code == 404
    assert call(bound, "POST", "/api/v1/projects/lab/runs", {"name": "x", "config": {}}).status_code == 404
    free = create_token(people.editor, "x", Scope.READ)
    assert len(call(free, "GET", "/api/v1/projects").json()) == 2


def test_calls_by_token_and_by_cookie_count_together(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webapp.api.API_CALLS", 4)
    secret = create_token(people.stranger, "x", Scope.READ)
    client = people.client("stranger")
    found = [client.get("/api/v1/projects").status_code for _ in range(2)]
    found += [call(secret, "GET", "/api/v1/projects").status_code for _ in range(3)]
    assert found == [200, 200, 200, 200, 429]


# ------------------------------------------------------------------------------------------------ password


@pytest.fixture
def ada(people: People) -> User:
    people.editor.set_password(PASSWORD)
    people.editor.save()
    return people.editor


def change(client: Client, old: str = PASSWORD, new: str = "another horse entirely", **more: str) -> Any:
    return client.post("/settings/password/", {"old": old, "new": new, "again": new} | more)


@pytest.mark.parametrize("revoke", [True, False])
def test_a_changed_password_ends_the_other_sessions_and_by_choice_the_tokens(
    ada: User, people: People, revoke: bool
) -> None:
    mine, stolen = people.client("editor"), people.client("editor")
    stolen_key = stolen.cookies["arborist-session"].value
    secret, link = create_token(ada, "x", Scope.READ), create_login_link(ada).split("/")[2]
    assert user_of_session(stolen_key) == ada
    assert change(mine, **({"revoke": "1"} if revoke else {})).status_code == 302
    assert mine.get("/settings/tokens/").status_code == 200
    assert stolen.get("/settings/tokens/").status_code == 302
    assert user_of_session(stolen_key) is None  # a socket of it ends within 10 s
    assert use_login_link(link) is None
    assert call(secret, "GET", "/api/v1/projects").status_code == (401 if revoke else 200)
    ada.refresh_from_db()
    assert ada.check_password("another horse entirely")


@pytest.mark.parametrize(
    "sent", [{"old": "wrong"}, {"old": ""}, {"new": "short"}, {"new": "password123456"}, {"again": "other"}]
)
def test_a_password_that_will_not_do_changes_nothing(ada: User, people: People, sent: dict[str, str]) -> None:
    page = change(people.client("editor"), **sent)
    assert (page.status_code, "field-error" in page.content.decode()) == (400, True)
    ada.refresh_from_db()
    assert ada.check_password(PASSWORD)


def test_guessing_the_old_password_is_limited_as_logins_are(ada: User, people: People) -> None:
    client = people.client("editor")
    for _ in range(5):
        change(client, old="wrong")
    assert "Too many wrong passwords" in change(client).content.decode()


def test_who_came_by_a_link_may_choose_a_first_password(people: People) -> None:
    people.viewer.set_unusable_password()
    people.viewer.save()
    client = people.client("viewer")
    assert change(client, old="").status_code == 302
    people.viewer.refresh_from_db()
    assert people.viewer.check_password("another horse entirely")
