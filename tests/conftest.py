"""The suite's own PostgreSQL and broker, started when the first test needs them, in a temporary data folder.

With ARBORIST_DATABASE_URL or ARBORIST_BROKER_URL set, those servers are used instead. Whatever a test starts
carries the session's mark, and a process that is left at the end makes the session fail.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from webapp.embedded import processes
from webapp.embedded.broker import BrokerServer
from webapp.embedded.folder import DataFolder
from webapp.embedded.postgres import PostgresServer

SESSION_VARIABLE = "ARBORIST_TEST_SESSION"
SESSION = secrets.token_hex(8)
START_SECONDS = 60.0
FOLDER = pytest.StashKey[DataFolder]()
LEFT = pytest.StashKey[list[int]]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    # A SIGTERM, as `timeout` sends it, ends the session as Ctrl-C does: with its servers stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if hands_out(config):
        return
    # The settings read the environment once, so all of it stands before Django is loaded.
    folder = DataFolder.at(tempfile.mkdtemp(prefix="arborist-tests-"))
    folder.prepare()
    config.stash[FOLDER] = folder
    os.environ["ARBORIST_DATA_DIR"] = str(folder.root)
    os.environ.setdefault("ARBORIST_DATABASE_URL", folder.database_url)
    os.environ.setdefault("ARBORIST_BROKER_URL", folder.broker_url)
    os.environ.setdefault("ARBORIST_SECRET_KEY", secrets.token_urlsafe(50))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ[SESSION_VARIABLE] = SESSION
    if not is_trainer_only(config):
        os.environ["DJANGO_SETTINGS_MODULE"] = "webapp.settings"
        import django

        django.setup()


def hands_out(config: pytest.Config) -> bool:
    """Whether this process runs no test itself but gives them to others, which have servers of their own."""
    return bool(getattr(config.option, "tx", None)) and not hasattr(config, "workerinput")


def is_trainer_only(config: pytest.Config) -> bool:
    """The trainer knows no Django; asked for alone, its tests run without one."""
    trainer = config.rootpath / "tests" / "trainer"
    wanted = [(config.invocation_params.dir / arg.partition("::")[0]).resolve() for arg in config.args]
    return all(path == trainer or trainer in path.parents for path in wanted)


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hands_out(config):
        config.stash[FOLDER].remove()


@pytest.hookimpl(trylast=True)  # after an early end (-x), fixtures are torn down in this hook, too
def pytest_sessionfinish(session: pytest.Session) -> None:
    if hands_out(session.config):
        left = session.config.stash.get(LEFT, [])
    else:
        left = [process.pid for process in processes.end_marked(SESSION, variable=SESSION_VARIABLE)]
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left"] = left
    elif left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        pids = ", ".join(map(str, left))
        print(f"\nERROR: tests left processes behind, ended now: {pids}")  # noqa: T201


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Of pytest-xdist, where tests are handed out: what a session left behind is told here."""
    left = getattr(node, "workeroutput", {}).get("left", [])
    node.config.stash.setdefault(LEFT, []).extend(left)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {}
    if not Path("/dev/nvidiactl").exists():
        missing["gpu"] = pytest.mark.skip(reason="no NVIDIA GPU")
    if find_chromium() is None:
        missing["browser"] = pytest.mark.skip(
            reason="no Chromium on the PATH; ARBORIST_CHROMIUM may name one"
        )
    for item in items:
        for name, skip in missing.items():
            if name in item.keywords:
                item.add_marker(skip)


def find_chromium() -> str | None:
    for name in (os.environ.get("ARBORIST_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"):
        if name and (found := shutil.which(name)):
            return found
    return None


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the browser that browser tests drive."""
    found = find_chromium()
    if found is None:
        pytest.skip("no Chromium on the PATH; ARBORIST_CHROMIUM may name one")
    return found


@pytest.fixture(scope="session")
def database_server(pytestconfig: pytest.Config) -> Iterator[str]:
    """A PostgreSQL that answers; yields its URL. Tests ask for `db` or `database_url` instead."""
    folder = pytestconfig.stash[FOLDER]
    if os.environ["ARBORIST_DATABASE_URL"] != folder.database_url:
        yield os.environ["ARBORIST_DATABASE_URL"]
        return
    # The machine does not crash during a test, and a killed server loses nothing without fsync.
    server = PostgresServer(folder, settings={"fsync": "off", "full_page_writes": "off"})
    server.prepare()
    child = server.start(SESSION)
    try:
        ready = processes.wait_until(lambda: server.is_ready() or not child.is_alive(), START_SECONDS)
        if not ready or not child.is_alive():
            pytest.exit(server.explain(), returncode=pytest.ExitCode.INTERNAL_ERROR)
        yield folder.database_url
    finally:
        server.stop(child)


@pytest.fixture(scope="session")
def broker_url(pytestconfig: pytest.Config) -> Iterator[str]:
    """The URL of a broker that answers."""
    folder = pytestconfig.stash[FOLDER]
    if os.environ["ARBORIST_BROKER_URL"] != folder.broker_url:
        yield os.environ["ARBORIST_BROKER_URL"]
        return
    server = BrokerServer(folder)
    child = server.start(SESSION)
    try:
        ready = processes.wait_until(lambda: server.is_ready() or not child.is_alive(), START_SECONDS)
        if not ready or not child.is_alive():
            pytest.exit(server.explain(), returncode=pytest.ExitCode.INTERNAL_ERROR)
        yield folder.broker_url
    finally:
        server.stop(child)


@pytest.fixture(scope="session")
def django_db_modify_db_settings(database_server: str) -> None:
    """pytest-django asks for this before it makes the test database, so the server starts just then."""


@pytest.fixture(scope="session")
def database_url(django_db_setup: None) -> str:
    """The URL of the test database, for processes that a test starts."""
    from django.db import connection

    settings = connection.settings_dict
    user = quote(settings["USER"] or "", safe="")
    password = f":{quote(settings['PASSWORD'], safe='')}" if settings["PASSWORD"] else ""
    query = f"host={quote(settings['HOST'], safe='')}"
    if settings["PORT"]:
        query += f"&port={settings['PORT']}"
    return f"postgresql://{user}{password}@/{quote(settings['NAME'], safe='')}?{query}"
