"""One problem is played over training, two of its trees stand side by side; without scripts it is read."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Site, Watched

pytestmark = pytest.mark.browser


def test_a_problem_is_played_and_two_of_its_trees_stand_side_by_side(site: Site, page: Page) -> None:
    page.goto(f"/t/{site.planted['tree']}/?color=value")
    expect(page.locator("#tree-layout[data-ready]")).to_be_visible()
    page.keyboard.press("[")
    expect(page.locator("h1")).to_have_text("1·<i>p-1</i>")
    expect(page).to_have_url(re.compile(r"\?color=value$"))
    page.get_by_role("link", name="This problem over training").click()
    expect(page.locator("#problem-history[data-ready]")).to_be_visible()
    expect(page.locator("h1")).to_have_text("<i>p-1</i>")
    expect(page.locator("#step-now")).to_have_text("step 2")

    # Keys step; playing starts over from the end and stops there by itself.
    page.keyboard.press("[")
    expect(page.locator("#step-now")).to_have_text("step 1")
    expect(page).to_have_url(re.compile(r"\?at=1$"))
    expect(page.locator(".frame-now")).to_have_attribute("data-step", "1")
    page.keyboard.press(" ")
    expect(page.locator("#step-now")).to_have_text("step 2")
    expect(page.locator("#play")).to_have_text("Play")
    expect(page).not_to_have_url(re.compile("at="))

    side_by_side = page.get_by_role("button", name="Side by side")
    expect(side_by_side).to_be_disabled()
    for box in page.locator("#film-form input[type=checkbox]").all():
        box.check()
    side_by_side.click()
    expect(page.locator("#beside[data-ready]")).to_be_visible()
    expect(page).to_have_url(re.compile(rf"/t/\d+/beside/{site.planted['tree']}/$"))

    # What is selected in one is selected in the other, in its text, and in the address.
    left, right = page.locator(".beside-canvas canvas").all()
    left.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    readers = page.locator(".beside-reader h2")
    expect(readers).to_have_text([re.compile(r"^Step 1 · node 1\.1"), re.compile(r"^Step 2 · node 1\.1")])
    expect(right).to_have_attribute("aria-description", re.compile(r"^Node 1\.1, value 1\.00"))
    expect(page).to_have_url(re.compile(r"\?n=1\.1$"))
    right.focus()
    page.keyboard.press("ArrowRight")
    expect(left).to_have_attribute("aria-description", re.compile(r"^Node 1\.2, "))
    assert page.evaluate("window.pwned") is None


def test_less_motion_means_no_playing(site: Site, visit: Callable[..., Watched]) -> None:
    page = visit(reduced_motion="reduce").page()
    page.goto("/p/lab/prompts/%3Ci%3Ep-1%3C/i%3E?at=1")
    expect(page.locator("#problem-history[data-ready]")).to_be_visible()
    expect(page.locator("#play")).to_be_disabled()
    page.keyboard.press(" ")
    page.keyboard.press("]")
    expect(page.locator("#step-now")).to_have_text("step 2")


def test_without_scripts_the_same_pages_are_read(site: Site, visit: Callable[..., Watched]) -> None:
    page = visit(java_script_enabled=False).page()
    page.goto("/p/lab/prompts/")
    page.get_by_role("link", name="<i>p-1</i>").click()
    expect(page.locator(".player")).to_be_hidden()
    expect(page.get_by_role("region", name="Final answers of")).to_contain_text("72")
    for box in page.get_by_role("checkbox").all():
        box.check()
    page.get_by_role("button", name="Side by side").click()
    expect(page.get_by_role("region", name="Both trees by depth")).to_be_visible()
    page.get_by_role("link", name=re.compile("^1 V 0.50")).first.click()
    expect(page.locator(".beside-reader h2").first).to_contain_text("node 1")
    page.goto(f"/r/{site.planted['run']}/trees/all")
    page.get_by_role("link", name="Depth 2, value from 0.9: 1 nodes").click()
    expect(page.get_by_role("region", name="Nodes of this cell")).to_contain_text("1.1")
