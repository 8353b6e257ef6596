"""Search by mouse and keyboard: facets, a saved view, a note; hostile text; and without scripts."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Site, Watched, read_json, wait_for

pytestmark = pytest.mark.browser


def wait_for_index(site: Site, page: Page) -> None:
    """The sweeper's process indexes what was planted."""
    page.goto("/p/lab/search")
    wait_for(
        lambda: any(
            node["tree"] == site.planted["tree"]
            for node in read_json(page, "/api/v1/projects/lab/search?q=pwned&limit=100")["nodes"]
        ),
        60,
        "the planted trees are indexed",
    )


def test_a_search_is_narrowed_by_facets_saved_and_opened(site: Site, page: Page) -> None:
    wait_for_index(site, page)
    box = page.get_by_role("searchbox", name="Search in nodes")
    page.keyboard.press("/")
    expect(box).to_be_focused()
    box.fill("71")
    box.press("Enter")
    counts = page.locator("#counts")
    expect(counts.get_by_role("heading", name=re.compile(r"^\d+ matches$"))).to_be_visible()
    before = page.locator(".hit").count()
    # A facet narrows, and Back widens again.
    counts.get_by_role("link", name=re.compile("^correct")).click()
    expect(page.locator(".chip", has_text="verdict:correct")).to_be_visible()
    expect(page.locator(".hit .verdict-correct").first).to_be_visible()
    assert 0 < page.locator(".hit").count() < before
    # Steps are a facet as well.
    page.locator(".histogram a").first.click()
    expect(page.locator(".chip", has_text="step:1")).to_be_visible()
    page.get_by_label("Name of the view").fill("right & 71")
    page.get_by_role("button", name="Save view").click()
    expect(page.get_by_text("Saved as right & 71.")).to_be_visible()
    page.goto("/p/lab/views/")
    page.get_by_role("link", name="right & 71").click()
    expect(page.locator(".chip", has_text="step:1")).to_be_visible()
    page.wait_for_load_state()  # the scripts that hear keys have run then
    page.keyboard.press("j")
    expect(page.locator(".hit-link").first).to_be_focused()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"/t/\d+/\?n=[\d.]+$"))
    expect(page.locator("#inspector .verdict-correct").first).to_be_visible()


def test_hostile_text_is_marked_and_stays_text(site: Site, page: Page) -> None:
    wait_for_index(site, page)
    page.goto("/p/lab/search?q=pwned+step:2")
    hit = page.locator(".hit", has_text="onerror").first
    expect(hit.locator("mark").first).to_have_text("pwned")
    expect(hit.locator(".hit-text")).to_contain_text("<img src=x onerror=\"window.pwned='img'\">")
    expect(hit.locator(".capsule").first).to_have_text("U+202E")
    assert page.evaluate("window.pwned") is None
    assert page.locator(".hit-text img, .hit-text script").count() == 0


def test_a_note_is_written_beside_a_node_by_keyboard(site: Site, page: Page) -> None:
    page.goto(f"/t/{site.planted['tree']}/?n=1.2")
    expect(page.locator("#tree-layout[data-ready]")).to_be_visible()
    page.keyboard.press("a")
    text = page.locator("#note-text")
    expect(text).to_be_focused()
    text.fill("<b>wrong</b> sum")
    page.get_by_label("Tags").fill("off-by-one")
    page.get_by_role("button", name="Add to node 1.2").click()
    note = page.locator("#notes .note", has_text="<b>wrong</b> sum")
    expect(note).to_be_visible()
    expect(page).to_have_url(re.compile(r"\?n=1\.2#note-\d+$"))
    page.goto("/p/lab/notes/")
    page.get_by_role("link", name=re.compile("off-by-one")).first.click()
    expect(page.locator(".note-list li")).to_have_count(1)
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_text("The note is removed.")).to_be_visible()


def test_search_is_readable_without_scripts_and_narrow(site: Site, visit: Callable[..., Watched]) -> None:
    watched = visit(java_script_enabled=False, viewport={"width": 320, "height": 800})
    page = watched.page()
    wait_for_index(site, page)
    page.get_by_role("searchbox").fill("71")
    page.get_by_role("button", name="Search", exact=True).click()
    expect(page.locator(".hit").first).to_be_visible()
    page.get_by_role("link", name=re.compile("Count the matches")).click()
    expect(page.locator(".facet").first).to_be_visible()
    watched.expect("400")
    page.goto("/p/lab/search?q=dpth:3")
    page.get_by_role("link", name="depth:3").click()
    expect(page.locator(".chip", has_text="depth:3")).to_be_visible()
