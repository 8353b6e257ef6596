"""One real stack and one browser for all tests of this package: database, broker, web, sweeper and worker, as
`make up` starts them, on a temporary data folder and a free port.

A page that wrote an error to the console, broke the content security policy or asked another origin for
anything makes its test fail, whatever else it showed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    expect,
    sync_playwright,
)

REPOSITORY = Path(__file__).resolve().parents[2]
START_SECONDS = 120
STOP_SECONDS = 45
# Two cores that train, serve and render at once are slow at times; a page that is wrong stays wrong.
expect.set_options(timeout=15_000)
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# The policy's violations are told to the document; the console's wording for them differs between releases.
TELL_VIOLATIONS = """
    document.addEventListener("securitypolicyviolation", (event) => {
        const where = `${event.sourceFile}:${event.lineNumber}`;
        console.error(`policy violation: ${event.violatedDirective} ${event.blockedURI} ${where}`);
    });
"""


@dataclass(frozen=True)
class Site:
    url: str
    planted: dict[str, Any]
    database_url: str
    folder: Path
    supervisor: int  # its pid


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="package")
def site() -> Iterator[Site]:
    folder = Path(tempfile.mkdtemp(prefix="arborist-browser-"))
    port = _free_port()
    env = os.environ | {
        "ARBORIST_DATA_DIR": str(folder),
        # Empty: the stack runs its own.
        "ARBORIST_DATABASE_URL": "",
        "ARBORIST_BROKER_URL": "",
        "ARBORIST_SECRET_KEY": "browser-tests-only-" + "0" * 40,
    }
    log = folder / "up.log"
    with log.open("wb") as output:
        stack = subprocess.Popen(
            [sys.executable, "manage.py", "up", "--port", str(port), "--quiet-logs"],
            cwd=REPOSITORY,
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        started = lambda: "Arborist is up" in log.read_text(errors="replace")  # noqa: E731
        wait_for(lambda: started() or stack.poll() is not None, START_SECONDS)
        assert stack.poll() is None, f"the stack did not start:\n{log.read_text(errors='replace')}"
        planted = subprocess.run(
            [sys.executable, "-m", "tests.browser.plant"],
            cwd=REPOSITORY,
            env=env | {"ARBORIST_DATABASE_URL": _database_url(folder)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert planted.returncode == 0, planted.stderr
        yield Site(
            f"http://127.0.0.1:{port}", json.loads(planted.stdout), _database_url(folder), folder, stack.pid
        )
    finally:
        stack.send_signal(signal.SIGINT)
        try:
            stack.wait(STOP_SECONDS)
        finally:
            if stack.poll() is None:
                stack.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _database_url(folder: Path) -> str:
    from webapp.embedded.folder import DataFolder

    return DataFolder.at(folder).database_url


def wait_for(condition: Callable[[], object], seconds: float, what: str = "") -> None:
    """Look ten times a second until it is true. Fails the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what or condition}"
        time.sleep(0.1)


@pytest.fixture(scope="package")
def browser(chromium: str) -> Iterator[Browser]:
    # Package scope: while Playwright's loop is there, tests that run a loop of their own could not.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@dataclass
class Watched:
    """A browser context whose pages may not complain."""

    context: BrowserContext
    origin: str
    problems: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def page(self) -> Page:
        page = self.context.new_page()
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.problems.append(f"{page.url}: {error}"))
        page.on("request", self._request)
        return page

    def expect(self, pattern: str) -> None:
        """A complaint that this test is about."""
        self.expected.append(pattern)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"{message.type}: {message.text} ({message.location.get('url')})")

    def _request(self, request: Request) -> None:
        if not request.url.startswith((self.origin, "data:")):
            self.problems.append(f"asked another origin: {request.url}")

    def unexpected(self) -> list[str]:
        return [found for found in self.problems if not any(re.search(one, found) for one in self.expected)]


@pytest.fixture(scope="package")
def session_state(site: Site, browser: Browser) -> Any:
    """Logged in once, by link."""
    context = browser.new_context(base_url=site.url)
    page = context.new_page()
    page.goto(site.planted["login"])
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/p/lab/")
    state = context.storage_state()
    context.close()
    return state


@pytest.fixture
def visit(site: Site, browser: Browser, session_state: Any) -> Iterator[Callable[..., Watched]]:
    """`visit()` is a logged-in context; keyword arguments are Playwright's."""
    opened: list[Watched] = []

    def open_context(**options: Any) -> Watched:
        viewport = {"width": 1280, "height": 900}
        options = {"base_url": site.url, "storage_state": session_state, "viewport": viewport} | options
        context = browser.new_context(**options)
        context.set_default_timeout(20_000)
        context.add_init_script(TELL_VIOLATIONS)
        watched = Watched(context, site.url)
        opened.append(watched)
        return watched

    yield open_context
    for watched in opened:
        watched.context.close()
    assert [problem for watched in opened for problem in watched.unexpected()] == []


@pytest.fixture
def page(visit: Callable[..., Watched]) -> Page:
    return visit().page()


def read_json(page: Page, path: str) -> Any:
    """What the API says, with the page's own session."""
    response = page.request.get(path)
    assert response.ok, f"{path}: {response.status} {response.text()}"
    return response.json()
