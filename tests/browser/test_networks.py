"""A page at the other end of a bad network says so, and is right again as soon as the network is."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import Site, Watched, read_json, wait_for
from tests.browser.test_cuts import BACK_SECONDS, live
from tests.browser.test_watch import create_run, wait_for_steps
from tests.campaign.proxy import Loop, Proxy

pytestmark = pytest.mark.browser


@pytest.fixture
def network(site: Site) -> Iterator[Proxy]:
    """Between the browser and the site."""
    loop = Loop()
    proxy = Proxy(loop, 0, int(site.url.rpartition(":")[2]))
    yield proxy
    proxy.mend()
    loop.do(proxy.close())
    loop.end()


@pytest.fixture
def far_page(network: Proxy, browser: Browser, session_state: object) -> Iterator[Page]:
    context = browser.new_context(
        base_url=f"http://127.0.0.1:{network.port}",
        storage_state=session_state,  # type: ignore[arg-type]  # as Playwright gave it
    )
    yield context.new_page()
    context.close()


def test_a_page_at_a_dead_or_slow_line_says_so_and_costs_others_nothing(
    visit: Callable[..., Watched], network: Proxy, far_page: Page
) -> None:
    near = visit().page()
    run = create_run(near, "grpo-tiny", "over a bad network", training__steps="5000", seed="6")
    wait_for_steps(near, 1)
    far_page.goto(f"/r/{run}/")
    live(far_page)
    far_page.evaluate("window.notReloaded = true")
    words = far_page.locator("#live-state")

    # Half open: nothing comes, and nothing says that it is closed.
    network.is_stalled = True
    expect(words).to_have_text(re.compile(r"^Server silent for \d\d s · last data"), timeout=30_000)
    live(near)
    wait_for_steps(near, int(near.locator("#status-step").inner_text()) + 1)
    network.mend()
    wait_for(lambda: words.inner_text().startswith("Live"), BACK_SECONDS, "the page is live again")

    network.bytes_per_second = 1000
    began = time.monotonic()
    wait_for_steps(near, int(near.locator("#status-step").inner_text()) + 3)
    live(near)
    assert time.monotonic() - began < 60
    network.mend()

    path = f"/api/v1/runs/{run}"

    def is_right() -> bool:
        shown = int(far_page.locator("#status-step").inner_text())
        return (
            words.inner_text().startswith("Live")
            and shown >= int(read_json(near, f"/api/v1/runs/{run}")["step"]) - 1
        )

    wait_for(is_right, BACK_SECONDS, "the page is live and has caught up")
    assert far_page.evaluate("window.notReloaded")
    token = near.locator("input[name=csrfmiddlewaretoken]").first.input_value()
    near.request.post(f"{path}/stop", headers={"x-csrftoken": token}, data={})
