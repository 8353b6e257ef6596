from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from io import StringIO
from threading import Event, Lock

import pytest
from django.conf import settings
from django.contrib.auth.hashers import identify_hasher, make_password
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.db.models.functions import Now
from django.test import Client
from pytest_django import Settings

import webapp.settings
from tests.webapp.material import People
from webapp.accounts import limits as tries
from webapp.accounts.forms import LoginForm
from webapp.accounts.models import ApiToken, LoginLink, LoginTry, User
from webapp.accounts.services import create_login_link, create_token, sha256, use_login_link
from webapp.limits import LOGIN_FAILURES_PER_ACCOUNT, LOGIN_FAILURES_PER_ADDRESS, PASSWORD_CHECKS_AT_ONCE
from webapp.runs.models import Run

PASSWORD = "a quiet long password"


@pytest.fixture(autouse=True)
def _quick_hasher(settings: Settings) -> None:
    """Argon2 is slow on purpose, and these tests try hundreds of passwords."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture
def user(db: None) -> User:
    return User.objects.create_user("ada", password=PASSWORD)


def try_password(client: Client, name: str, password: str, address: str = "10.0.0.1") -> int:
    """200: the form again; 302: in."""
    return client.post("/login/", {"username": name, "password": password}, REMOTE_ADDR=address).status_code


# ------------------------------------------------------------------------------------------------ links


def test_a_login_link_works_once_and_only_by_post(user: User) -> None:
    path = create_login_link(user)
    client = Client()
    for _ in range(2):  # a prefetching browser does not burn it
        page = client.get(path)
        assert page.status_code == 200
        assert "_auth_user_id" not in client.session
    assert page.headers["Referrer-Policy"] == "same-origin"
    assert "no-store" in page.headers["Cache-Control"]
    assert client.post(path).status_code == 302
    assert client.session["_auth_user_id"] == str(user.id)
    again = Client().post(path)
    assert again.status_code == 410
    assert "was used already" in again.content.decode()
    assert Client().get(path).status_code == 410


def test_expired_and_unknown_links_say_so(user: User) -> None:
    path = create_login_link(user)
    LoginLink.objects.update(expires_at=Now() - timedelta(seconds=1))
    response = Client().post(path)
    assert (response.status_code, "too old" in response.content.decode()) == (410, True)
    unknown = Client().post("/login/nothing-like-it/")
    assert (unknown.status_code, "not known here" in unknown.content.decode()) == (410, True)


def test_a_deactivated_users_link_is_dead(user: User) -> None:
    path = create_login_link(user)
    User.objects.update(is_active=False)
    assert Client().post(path).status_code == 410


def test_the_database_holds_no_usable_secret(user: User) -> None:
    secret = create_login_link(user).split("/")[2]
    token = create_token(user, "x", ApiToken.Scope.READ)
    stored = [
        *LoginLink.objects.values_list("secret_sha256", flat=True),
        *ApiToken.objects.values_list("secret_sha256", flat=True),
    ]
    assert stored == [sha256(secret), sha256(token)]
    assert len(secret) >= 43  # 256 bits in base64
    assert len(token) >= 43
    assert ApiToken.objects.get().prefix == token[:12]


@pytest.mark.django_db(transaction=True)
def test_of_two_clicks_at_once_one_gets_in() -> None:
    """The second comes while the first has used the link but not committed: it waits, looks again, and is
    refused.
    """
    secret = create_login_link(User.objects.create_user("ada")).split("/")[2]
    used = Event()

    def first_click() -> bool:
        try:
            with transaction.atomic():
                user = use_login_link(secret)
                used.set()
                time.sleep(0.5)
                return user is not None
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(first_click)
        assert used.wait(30)
        second = use_login_link(secret)
        assert (first.result(), second) == (True, None)


def test_session_is_new_after_login_and_its_cookie_is_guarded(user: User) -> None:
    client = Client()
    client.get("/login/")
    planted = client.session
    planted["left"] = "by someone else"
    planted.save()
    before = planted.session_key
    client.cookies[settings.SESSION_COOKIE_NAME] = str(before)
    assert try_password(client, "ada", PASSWORD) == 302
    cookie = client.cookies[settings.SESSION_COOKIE_NAME]
    assert cookie.value != before
    assert (cookie["httponly"], cookie["samesite"]) == (True, "Lax")


def test_changing_the_password_ends_other_sessions(user: User) -> None:
    client = Client()
    try_password(client, "ada", PASSWORD)
    assert client.get("/p/").status_code == 200
    user.set_password("another quiet password")
    user.save()
    assert client.get("/p/").status_code == 302


def test_passwords_are_kept_as_argon2(settings: Settings) -> None:
    settings.PASSWORD_HASHERS = webapp.settings.PASSWORD_HASHERS
    assert identify_hasher(make_password(PASSWORD)).algorithm == "argon2"


def test_logout_is_a_post(user: User) -> None:
    client = Client()
    client.force_login(user)
    assert client.get("/logout/").status_code == 405
    assert client.post("/logout/").headers["Location"] == "/login/"
    assert client.get("/p/").status_code == 302


@pytest.mark.parametrize(
    "target", ["//evil.example", "https://evil.example/", "/\\evil.example", "javascript:alert(1)"]
)
def test_login_never_redirects_to_another_site(user: User, target: str) -> None:
    response = Client().post("/login/", {"username": "ada", "password": PASSWORD, "next": target})
    assert (response.status_code, response.headers["Location"]) == (302, "/")


def test_login_leads_back_to_the_page_that_was_asked_for(user: User) -> None:
    client = Client()
    refused = client.get("/workers/?a=1&b=2")
    assert refused.headers["Location"] == "/login/?next=/workers/%3Fa%3D1%26b%3D2"
    response = client.post("/login/", {"username": "ada", "password": PASSWORD, "next": "/workers/?a=1&b=2"})
    assert response.headers["Location"] == "/workers/?a=1&b=2"


# ------------------------------------------------------------------------------------------------ limits


def test_an_account_takes_five_wrong_passwords_and_no_more(user: User) -> None:
    client = Client()
    for number in range(LOGIN_FAILURES_PER_ACCOUNT):
        assert try_password(client, "ada", "wrong", f"10.0.0.{number}") == 200
    page = client.post("/login/", {"username": "ada", "password": PASSWORD}, REMOTE_ADDR="10.9.9.9")
    assert page.status_code == 200
    assert "Too many wrong passwords" in page.content.decode()
    assert "_auth_user_id" not in client.session
    # Letter case names the same account, and others are not affected.
    assert try_password(client, "ADA", PASSWORD, "10.9.9.9") == 200
    User.objects.create_user("ben", password=PASSWORD)
    assert try_password(Client(), "ben", PASSWORD, "10.9.9.9") == 302


def test_the_right_password_within_the_limit_forgets_the_wrong_ones(user: User) -> None:
    for _ in range(LOGIN_FAILURES_PER_ACCOUNT - 1):
        try_password(Client(), "ada", "wrong")
    assert try_password(Client(), "ada", PASSWORD) == 302
    assert LoginTry.objects.count() == 0


def test_an_address_takes_twenty_whatever_the_names(user: User) -> None:
    for number in range(LOGIN_FAILURES_PER_ADDRESS):
        assert try_password(Client(), f"name-{number}", "wrong", "10.0.0.7") == 200
    assert try_password(Client(), "ada", PASSWORD, "10.0.0.7") == 200
    assert try_password(Client(), "ada", PASSWORD, "10.0.0.8") == 302


def test_a_changing_forwarded_header_is_no_new_address(user: User) -> None:
    for number in range(LOGIN_FAILURES_PER_ADDRESS):
        Client().post(
            "/login/",
            {"username": f"name-{number}", "password": "wrong"},
            REMOTE_ADDR="10.0.0.7",
            headers={"X-Forwarded-For": f"1.2.3.{number}"},
        )
    assert try_password(Client(), "ada", PASSWORD, "10.0.0.7") == 200


def test_neighbours_in_one_ipv6_network_are_one_address(user: User) -> None:
    for number in range(LOGIN_FAILURES_PER_ADDRESS):
        try_password(Client(), f"name-{number}", "wrong", f"2001:db8:1:2::{number + 1:x}")
    assert try_password(Client(), "ada", PASSWORD, "2001:db8:1:2:ffff::1") == 200
    assert try_password(Client(), "ada", PASSWORD, "2001:db8:1:3::1") == 302


def test_the_window_passes(user: User) -> None:
    for _ in range(LOGIN_FAILURES_PER_ACCOUNT):
        try_password(Client(), "ada", "wrong")
    assert try_password(Client(), "ada", PASSWORD) == 200
    LoginTry.objects.update(at=Now() - timedelta(seconds=901))
    assert try_password(Client(), "ada", PASSWORD) == 302
    assert LoginTry.objects.count() == 0


@pytest.mark.django_db(transaction=True)
def test_many_tries_at_once_count_like_many_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    User.objects.create_user("ada", password=PASSWORD)
    looked = []

    def look(_user: User, password: str) -> bool:
        looked.append(password)
        return False

    monkeypatch.setattr(User, "check_password", look)

    def attempt(number: int) -> None:
        try:
            try_password(Client(), "ada", f"guess {number}")
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(attempt, range(24)))
    assert len(looked) <= LOGIN_FAILURES_PER_ACCOUNT


def test_unknown_and_inactive_users_get_the_same_answer(user: User) -> None:
    User.objects.create_user("gone", password=PASSWORD, is_active=False)

    def errors(name: str) -> list[str]:
        response = Client().post("/login/", {"username": name, "password": "wrong"})
        return list(response.context["form"].non_field_errors())

    assert errors("ada") == errors("gone") == errors("nobody-at-all")


def test_nul_in_a_name_is_refused_by_the_form(db: None) -> None:
    assert Client().post("/login/", {"username": "a\x00b", "password": "x"}).status_code == 200


# ------------------------------------------------------------------------------------------------ tokens


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_a_token_reads_and_needs_no_csrf(run: Run, people: People) -> None:
    token = create_token(people.editor, "cli", ApiToken.Scope.CONTROL)
    client = Client(enforce_csrf_checks=True)
    assert client.get(f"/api/v1/runs/{run.id}", headers=bearer(token)).status_code == 200
    assert client.post(f"/api/v1/runs/{run.id}/stop", headers=bearer(token)).status_code == 200
    assert ApiToken.objects.get().last_used_at is not None


def test_a_read_token_writes_nothing(run: Run, people: People) -> None:
    token = create_token(people.editor, "cli", ApiToken.Scope.READ)
    response = Client().post(f"/api/v1/runs/{run.id}/stop", headers=bearer(token))
    assert response.status_code == 403
    run.refresh_from_db()
    assert run.wish_at is None


def test_a_token_has_no_more_rights_than_its_user(run: Run, people: People) -> None:
    token = create_token(people.viewer, "cli", ApiToken.Scope.CONTROL)
    assert Client().post(f"/api/v1/runs/{run.id}/stop", headers=bearer(token)).status_code == 403
    stranger = create_token(people.stranger, "cli", ApiToken.Scope.WRITE)
    assert Client().get(f"/api/v1/runs/{run.id}", headers=bearer(stranger)).status_code == 404


def test_tokens_end_by_revoking_expiry_or_deactivation(people: People) -> None:
    client = Client()
    token = create_token(people.viewer, "cli", ApiToken.Scope.READ)
    assert client.get("/api/v1/projects", headers=bearer(token)).status_code == 200
    ApiToken.objects.update(expires_at=Now() - timedelta(seconds=1))
    assert client.get("/api/v1/projects", headers=bearer(token)).status_code == 401
    ApiToken.objects.update(expires_at=None)
    call_command("revoke_token", "viewer", token[:12], stdout=StringIO())
    refused = client.get("/api/v1/projects", headers=bearer(token))
    assert (refused.status_code, refused.headers["WWW-Authenticate"][:6]) == (401, "Bearer")
    ApiToken.objects.update(revoked_at=None)
    User.objects.filter(id=people.viewer.id).update(is_active=False)
    assert client.get("/api/v1/projects", headers=bearer(token)).status_code == 401


@pytest.mark.parametrize("header", ["Bearer nonsense", "Basic YTpi", "Bearer", "Bearer \ud83d", "x" * 5000])
def test_a_bad_token_is_401_even_with_a_good_session(people: People, header: str) -> None:
    client = people.client("viewer")
    header = header.encode("utf-8", "replace").decode("latin-1")
    assert client.get("/api/v1/projects", headers={"Authorization": header}).status_code == 401


def test_a_token_opens_no_page_and_not_by_query(run: Run, people: People) -> None:
    token = create_token(people.viewer, "cli", ApiToken.Scope.WRITE)
    assert Client().get(f"/r/{run.id}/", headers=bearer(token)).status_code == 302
    assert Client().get(f"/api/v1/runs/{run.id}?token={token}&key={token}").status_code == 401


def test_commands_print_what_works(people: People) -> None:
    out = StringIO()
    call_command("create_token", "viewer", "--scope", "read", stdout=out)
    assert Client().get("/api/v1/projects", headers=bearer(out.getvalue().strip())).status_code == 200
    out = StringIO()
    call_command("login_link", "viewer", stdout=out)
    assert Client().post(out.getvalue().strip()).status_code == 302
    out = StringIO()
    call_command("create_user", "cleo", "--project", "lab", "--role", "viewer", stdout=out)
    client = Client()
    client.post(out.getvalue().strip())
    assert client.get("/p/lab/").status_code == 200
    with pytest.raises(CommandError, match="no active user 'nobody'"):
        call_command("create_token", "nobody")
    with pytest.raises(CommandError, match="already exists"):
        call_command("create_user", "cleo")


def test_two_passwords_are_checked_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each check takes Argon2's 100 MB."""
    counted, most, now = Lock(), 0, 0

    def authenticate(*_args: object, **_credentials: object) -> None:
        nonlocal most, now
        with counted:
            now += 1
            most = max(most, now)
        time.sleep(0.1)
        with counted:
            now -= 1

    monkeypatch.setattr("django.contrib.auth.forms.authenticate", authenticate)
    monkeypatch.setattr(tries, "begin_try", lambda *_: tries.Try(1, "ada", refused=False, wait_seconds=0))

    def log_in(_: int) -> bool:
        return LoginForm(None, {"username": "ada", "password": "wrong"}).is_valid()

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(log_in, range(6))) == [False] * 6
    assert most == PASSWORD_CHECKS_AT_ONCE == 2
