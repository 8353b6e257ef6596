"""Modules of the site are imported inside: this file is read before Django is set up."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.live.page import Open, Page
    from webapp.accounts.models import User
    from webapp.projects.models import Project
    from webapp.runs.models import Run


@pytest.fixture(autouse=True)
def sockets_leave_no_connection(transactional_db: None) -> Iterator[None]:
    """The reading threads outlive a test; their connections must not, or the database cannot be dropped."""
    from asgiref.sync import SyncToAsync
    from django.db import connections

    from webapp.limits import SOCKET_READERS
    from webapp.live import reading

    yield
    SyncToAsync.single_thread_executor.submit(connections.close_all).result()
    gate = threading.Barrier(SOCKET_READERS)

    def close() -> None:
        gate.wait(5)
        connections.close_all()

    for done in [reading._threads.submit(close) for _ in range(SOCKET_READERS)]:
        done.result()


@pytest.fixture
def project(transactional_db: None) -> Project:
    from tests.workers.factories import make_project

    return make_project()


@pytest.fixture
def user(project: Project) -> User:
    from tests.workers.factories import make_user

    return make_user("viewer", project)


@pytest.fixture
def run(project: Project) -> Run:
    from tests.workers.factories import make_run

    return make_run(project)


@pytest.fixture
async def connect() -> AsyncIterator[Open]:
    """Opens sockets, and closes them at the end."""
    from tests.live.page import open_page
    from webapp.live.feeds import Hub

    pages: list[Page] = []

    async def opened(*arguments: Any, **options: Any) -> Page:
        pages.append(await open_page(*arguments, **options))
        return pages[-1]

    yield opened
    for page in pages:
        await page.leave()
    hub = Hub.here()
    assert (hub.runs, hub.projects, hub.is_listening) == ({}, {}, False)
