"""Whatever is cut off, the page says so, takes no wish it could not pass on, and comes back by itself."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import Page, expect

from tests.browser.conftest import Site, Watched, read_json, wait_for
from tests.browser.test_watch import create_run, drawn_steps, wait_for_steps
from webapp.embedded import processes
from webapp.embedded.folder import DataFolder
from webapp.embedded.processes import Identity

pytestmark = pytest.mark.browser

BACK_SECONDS = 10  # from the server's first answer to the page's true state


def pid_of(site: Site, name: str) -> int:
    """Of a part of the stack, which may be on its way back from the test before."""
    found: dict[str, Identity] = {}

    def is_there() -> bool:
        found.update(processes.read_record(DataFolder.at(site.folder).processes))
        return name in found

    wait_for(is_there, 30, f"the {name} runs")
    return found[name].pid


@contextmanager
def away(site: Site, name: str, how: signal.Signals) -> Iterator[None]:
    """One part of the stack is killed and stays away, for the supervisor is held."""
    pid = pid_of(site, name)
    os.kill(site.supervisor, signal.SIGSTOP)
    try:
        os.kill(pid, how)
        yield
    finally:
        os.kill(site.supervisor, signal.SIGCONT)


@contextmanager
def frozen(site: Site, name: str) -> Iterator[None]:
    pid = pid_of(site, name)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def answers(page: Page) -> bool:
    try:
        return page.request.get("/healthz", timeout=2000).ok
    except PlaywrightError:  # connection refused
        return False


@pytest.fixture
def watched(visit: Callable[..., Watched]) -> Watched:
    """The console tells of each request and socket that failed; these tests are about that."""
    found = visit()
    found.expect("Failed to load resource|WebSocket connection to|net::ERR")
    return found


@pytest.fixture(scope="module")
def running(site: Site, session_state: object, browser: object) -> Iterator[int]:
    """A run that goes on through all of these tests."""
    context = browser.new_context(base_url=site.url, storage_state=session_state)  # type: ignore[attr-defined]
    page = context.new_page()
    run = create_run(page, "grpo-tiny", "through all cuts", training__steps="5000", seed="5")
    wait_for_steps(page, 1)
    yield run
    token = page.locator("input[name=csrfmiddlewaretoken]").first.input_value()
    page.request.post(f"/api/v1/runs/{run}/stop", headers={"x-csrftoken": token}, data={})
    context.close()


def live(page: Page) -> None:
    expect(page.locator("#live-state")).to_have_text(re.compile("^Live"), timeout=30_000)


def test_page_outlives_the_site(site: Site, watched: Watched, running: int) -> None:
    page = watched.page()
    page.goto(f"/r/{running}/")
    live(page)
    page.evaluate("window.notReloaded = true")
    words = page.locator("#live-state")
    with away(site, "web", signal.SIGKILL):
        expect(words).to_have_text(re.compile(r"^Reconnecting · last data \d\d:\d\d:\d\d$"))
        # A control is refused with a reason, and does not wait to be sent.
        page.get_by_role("button", name="Pause", exact=True).click()
        expect(page.locator("#run-wish")).to_contain_text("Nothing was sent or queued")
        time.sleep(5)
        expect(words).to_have_text(re.compile("^Reconnecting"))
    wait_for(lambda: answers(page), 30, "the site answers")
    back = time.monotonic()
    wait_for(lambda: words.inner_text().startswith("Live"), BACK_SECONDS, "the page is live again")
    steps = int(page.locator("#status-step").inner_text())
    wait_for_steps(page, steps + 1)
    assert page.evaluate("window.notReloaded")
    assert read_json(page, f"/api/v1/runs/{running}")["status"] == "running"
    assert time.monotonic() - back < 60


def test_page_outlives_a_frozen_site(site: Site, watched: Watched, running: int) -> None:
    page = watched.page()
    page.goto(f"/r/{running}/")
    live(page)
    words = page.locator("#live-state")
    with frozen(site, "web"):
        expect(words).to_have_text(re.compile("^Server silent for 1[2-9] s · last data"), timeout=25_000)
        expect(words).to_have_text(re.compile("^Server silent for 3[0-9] s · last data"), timeout=25_000)
    wait_for(lambda: words.inner_text().startswith("Live"), BACK_SECONDS, "the page is live again")


def test_pages_outlive_the_database(site: Site, watched: Watched, running: int) -> None:
    page, form, other = watched.page(), watched.page(), watched.page()
    page.goto(f"/r/{running}/")
    live(page)
    form.goto("/p/lab/new?preset=grpo-tiny")
    form.get_by_role("textbox", name="Name", exact=True).fill("typed before the outage")
    words = page.locator("#live-state")
    with away(site, "database", signal.SIGQUIT):  # PostgreSQL's immediate stop
        expect(words).to_have_text(re.compile(r"^Database unreachable · last data \d\d:\d\d:\d\d$"))
        refused = other.goto(f"/r/{running}/events")
        assert refused is not None
        assert (refused.status, refused.headers["retry-after"]) == (503, "5")
        expect(other.get_by_role("heading", name="Database unreachable")).to_be_visible()
        form.get_by_role("button", name="Queue run").click()
        expect(form.get_by_role("alert").filter(has_text="Not sent")).to_contain_text(
            "what you typed is still here"
        )
        expect(form.get_by_role("textbox", name="Name", exact=True)).to_have_value("typed before the outage")
        page.get_by_role("button", name="Pause", exact=True).click()
        expect(page.locator("#run-wish")).to_contain_text("The database is unreachable")
    wait_for(lambda: answers(page), 30, "the database answers")
    wait_for(lambda: words.inner_text().startswith("Live"), BACK_SECONDS, "the page is live again")
    expect(other.locator("#events-table")).to_be_visible(timeout=1000 * BACK_SECONDS)
    steps = int(page.locator("#status-step").inner_text())
    wait_for_steps(page, steps + 1)

    def all_drawn() -> bool:
        drawn = drawn_steps(page)
        return drawn[0] >= steps and drawn == list(range(drawn[0], max(drawn[0] - 200, 0), -1))

    wait_for(all_drawn, 15, "what was trained meanwhile is on the chart")
    assert read_json(page, f"/api/v1/runs/{running}")["attempts"][-1]["outcome"] == ""


def take_all_connections(site: Site, taken: list[psycopg.Connection[Any]]) -> None:
    while True:
        try:
            taken.append(psycopg.connect(site.database_url, autocommit=True))
        except psycopg.OperationalError:
            return


def test_held_locks_and_used_up_connections_are_said_and_pass(
    site: Site, watched: Watched, running: int
) -> None:
    page = watched.page()
    page.goto(f"/r/{running}/")
    live(page)
    with psycopg.connect(site.database_url) as session:
        session.execute("LOCK TABLE arborist_run IN ACCESS EXCLUSIVE MODE")
        began = time.monotonic()
        said = page.request.get(f"/api/v1/runs/{running}", timeout=20_000)
        assert said.status == 503
        assert "within 5 s" in said.json()["detail"]
        assert time.monotonic() - began < 15
        expect(page.locator("#live-state")).to_have_text(re.compile("^Database unreachable"), timeout=25_000)
        session.rollback()
    wait_for(lambda: page.locator("#live-state").inner_text().startswith("Live"), BACK_SECONDS, "live again")
    taken: list[psycopg.Connection[Any]] = []
    try:
        said = None
        for _ in range(5):  # the site may be faster to take a connection that was just freed
            take_all_connections(site, taken)
            taken[0].execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'arborist'"
            )
            take_all_connections(site, taken)
            said = page.request.get("/p/lab/", timeout=20_000)
            if said.status == 503:
                break
        assert said is not None
        assert (said.status, said.headers["retry-after"]) == (503, "5")
        assert "The database is busy" in said.text()
    finally:
        for session in taken:
            session.close()
    wait_for(lambda: page.request.get("/p/lab/", timeout=20_000).ok, BACK_SECONDS, "pages again")


def test_a_paused_view_stays_and_then_jumps(watched: Watched, running: int) -> None:
    page = watched.page()
    page.goto(f"/r/{running}/")
    live(page)
    page.keyboard.press(".")
    words = page.locator("#live-state")
    expect(words).to_have_text(re.compile("^Paused by you"))
    shown = page.locator("#status-step").inner_text()
    expect(words).to_have_text(re.compile(r"^Paused by you · \+[2-9]\d* steps$"), timeout=60_000)
    assert page.locator("#status-step").inner_text() == shown
    page.get_by_role("button", name="Resume view").click()
    expect(page.locator("#status-step")).not_to_have_text(shown, timeout=2000)
    live(page)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_runs_are_created_without_a_broker(
    site: Site, watched: Watched, running: int, how: signal.Signals
) -> None:
    page = watched.page()
    table = watched.page()
    table.goto("/p/lab/")
    live(table)
    config = read_json(page, f"/api/v1/runs/{running}")["config"]
    config["training"]["steps"] = 1
    token = table.locator("input[name=csrfmiddlewaretoken]").first.input_value()
    cut = frozen(site, "broker") if how == signal.SIGSTOP else away(site, "broker", how)
    with cut:
        began = time.monotonic()
        said = table.request.post(
            "/api/v1/projects/lab/runs",
            headers={"x-csrftoken": token},
            data={"name": f"without a broker {how.name}", "config": config},
        )
        assert said.status == 201, said.text()
        assert time.monotonic() - began < 2.5
        began = time.monotonic()
        assert table.request.get("/workers/").ok
        assert time.monotonic() - began < 2.5
        live(table)
        expect(table.get_by_text("1 new run")).to_be_visible()
    assert said.json()["status"] == "queued"
