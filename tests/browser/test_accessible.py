"""Every page, read by axe in both themes: nothing serious. `make js`, part of `make check`, installs axe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Site, Watched

AXE = Path(__file__).resolve().parents[2] / "node_modules/axe-core/axe.min.js"
PROBLEM = "%3Ci%3Ep-1%3C%2Fi%3E"
PAGES = [
    "/p/",
    "/p/lab/",
    "/p/lab/new?preset=treerpo-tiny",
    "/p/lab/prompts/",
    f"/p/lab/prompts/{PROBLEM}",
    "/p/lab/search?q=window",
    "/p/lab/views/",
    "/p/lab/notes/",
    "/p/lab/export?run={run}",
    "/p/lab/import",
    "/exports/",
    "/r/{run}/",
    "/r/{run}/trees",
    "/r/{run}/trees/all",
    "/r/{run}/config",
    "/r/{run}/events",
    "/r/{run}/attempts",
    "/r/{run}/system",
    "/t/{tree}/n/1",
    "/t/{tree}/siblings?n=1",
    "/t/{tree}/diff?a=1&b=2",
    "/t/{tree}/estimators",
    "/t/{tree}/branch?n=1",
    "/t/{tree}/notes/new?n=1",
    "/t/{reading_tree}/n/1.1",
    "/t/{tree}/beside/{reading_tree}/",
    "/queue/",
    "/workers/",
    "/settings/tokens/",
    "/settings/password/",
]
# A row of the outline is called "Node 2.1, value 0.38, …"; what is seen of it is "2.1" and numbers.
SPOKEN_ROWS = {"label-content-name-mismatch": {"enabled": False}}
SERIOUS = """async ({ only, rules }) => {
    const { violations } = await axe.run(only ? { runOnly: only } : { rules });
    return violations
        .filter(({ impact }) => impact === "serious" || impact === "critical")
        .flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.html.slice(0, 160)}`));
}"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: make js"),
]


def serious(page: Page, *, spoken_rows: bool = False) -> list[str]:
    """What axe finds in the light theme, and of its colours in the dark one, where nothing else differs."""
    page.evaluate(AXE.read_text())
    found: list[str] = page.evaluate(SERIOUS, {"only": None, "rules": SPOKEN_ROWS if spoken_rows else {}})
    page.emulate_media(color_scheme="dark")
    found += [f"dark: {one}" for one in page.evaluate(SERIOUS, {"only": ["color-contrast"]})]
    page.emulate_media(color_scheme="light")
    return found


def test_axe_finds_nothing_serious_on_any_page(site: Site, visit: Callable[..., Watched]) -> None:
    page = visit(color_scheme="light").page()
    found = {}
    for path in PAGES:
        response = page.goto(path.format(**site.planted))
        assert response is not None
        assert response.ok, path
        found[path] = serious(page)
    assert {path: what for path, what in found.items() if what} == {}


@pytest.mark.parametrize("view", ["icicle", "graph", "outline"])
def test_axe_finds_nothing_serious_in_any_view_of_a_tree(
    site: Site, visit: Callable[..., Watched], view: str
) -> None:
    page = visit(color_scheme="light").page()
    page.goto(f"/t/{site.planted['tree']}/?n=2.1&view={view}")
    expect(page.locator("#tree-layout[data-ready]")).to_be_visible()
    if view == "graph":
        expect(page.locator("#tree-layout[data-graph]")).to_be_visible()
    assert serious(page, spoken_rows=view == "outline") == []
