"""Settings come from the environment and refuse nonsense aloud; web processes get a pool, others do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SHOW = """
import json
from django.conf import settings
db = settings.DATABASES["default"]
print(json.dumps({
    "pool": db["OPTIONS"].get("pool"), "age": db["CONN_MAX_AGE"], "options": db["OPTIONS"]["options"],
    "host": db["HOST"], "user": db["USER"], "name": db["NAME"], "password": db["PASSWORD"],
    "hosts": settings.ALLOWED_HOSTS, "cookie": settings.SESSION_COOKIE_NAME,
    "secure": settings.SESSION_COOKIE_SECURE, "bind": settings.BIND_ADDRESS,
    "debug": settings.DEBUG, "hsts": settings.SECURE_HSTS_SECONDS,
}))
"""


def settings_with(tmp_path: Path, *arguments: str, **environment: str) -> Any:
    """The settings as a fresh process reads them; a string is what it said when it refused."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ARBORIST_")}
    clean |= {"ARBORIST_DATA_DIR": str(tmp_path), "DJANGO_SETTINGS_MODULE": "webapp.settings", **environment}
    argv = [sys.executable, "-c", SHOW, *arguments]
    ended = subprocess.run(
        argv, cwd=REPOSITORY, env=clean, capture_output=True, text=True, timeout=60, check=False
    )
    return json.loads(ended.stdout) if ended.returncode == 0 else ended.stderr


def test_a_fresh_clone_runs_with_no_environment(tmp_path: Path) -> None:
    found = settings_with(tmp_path)
    assert (found["bind"], found["debug"], found["pool"], found["age"]) == ("127.0.0.1", False, None, 60)
    assert found["hosts"] == ["127.0.0.1", "localhost", "[::1]"]
    assert found["options"].endswith("statement_timeout=0s")


def test_a_database_url_is_taken_apart(tmp_path: Path) -> None:
    found = settings_with(tmp_path, ARBORIST_DATABASE_URL="postgresql://me:p%40ss@db.example:5433/lab")
    assert (found["user"], found["password"], found["host"], found["name"]) == (
        "me",
        "p@ss",
        "db.example",
        "lab",
    )
    found = settings_with(tmp_path, ARBORIST_DATABASE_URL="postgresql://me@/lab?host=/run/pg")
    assert (found["host"], found["name"]) == ("/run/pg", "lab")


def test_web_processes_pool_and_limit(tmp_path: Path) -> None:
    found = settings_with(tmp_path, ARBORIST_DATABASE_POOL="7", ARBORIST_STATEMENT_SECONDS="5")
    assert (found["pool"]["max_size"], found["age"]) == (7, 0)
    assert "statement_timeout=5s" in found["options"]


def test_https_makes_cookies_secure(tmp_path: Path) -> None:
    found = settings_with(tmp_path, ARBORIST_HTTPS="1")
    assert (found["cookie"], found["secure"], found["hsts"]) == ("__Host-session", True, 31_536_000)


def test_check_deploy_is_clean(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ARBORIST_")}
    environment |= {
        "ARBORIST_DATA_DIR": str(tmp_path),
        "ARBORIST_HTTPS": "1",
        "ARBORIST_ALLOWED_HOSTS": "a.example",
    }
    environment["ARBORIST_SECRET_KEY"] = "".join(chr(33 + n) for n in range(60))
    argv = [sys.executable, "manage.py", "check", "--deploy", "--fail-level", "WARNING"]
    ended = subprocess.run(
        argv, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_where_the_site_listens_is_read_from_uvicorns_options(tmp_path: Path) -> None:
    assert settings_with(tmp_path, "--host", "10.0.0.2")["bind"] == "10.0.0.2"
    assert settings_with(tmp_path, "--host=::1")["bind"] == "::1"
    assert settings_with(tmp_path, ARBORIST_BIND="10.0.0.1")["bind"] == "10.0.0.1"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ARBORIST_DEBUG": "maybe"}, "ARBORIST_DEBUG='maybe' is not a yes or no"),
        ({"ARBORIST_DATABASE_URL": "mysql://x/y"}, "Arborist needs PostgreSQL"),
        ({"ARBORIST_DATABASE_POOL": "-3"}, "ARBORIST_DATABASE_POOL='-3' is not a whole number"),
    ],
)
def test_nonsense_is_refused(tmp_path: Path, environment: dict[str, str], said: str) -> None:
    assert said in settings_with(tmp_path, **environment)
