"""The three views of a tree, by keyboard, by address, and for those who cannot see them."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Site, Watched
from tests.browser.test_trees import open_tree

pytestmark = pytest.mark.browser
WHOLE = "?n=2.1&view=graph&color=value&order=value&zoom=2&find=%23%23%23%23"


def test_every_view_is_walked_by_the_same_keys(site: Site, page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    open_tree(page, f"/t/{site.planted['tree']}/")
    assert sum("/columns?" in url for url in asked) == 1, "what the head asks for early is what is used"
    title = page.locator("#inspector .node-title")
    page.keyboard.press("2")
    expect(page.locator("#tree-layout[data-graph]")).to_be_visible()
    page.locator("#graph").focus()
    for key, node in [("ArrowDown", "1"), ("ArrowDown", "1.1"), ("ArrowRight", "1.2"), ("ArrowUp", "1")]:
        page.keyboard.press(key)
        expect(title).to_have_text(f"Node {node}")
    expect(page).to_have_url(re.compile(r"\?n=1&view=graph$|\?view=graph&n=1$"))
    page.keyboard.press("1")
    page.locator("#icicle").focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"zoom=1"))
    page.keyboard.press("Backspace")
    expect(page).not_to_have_url(re.compile("zoom"))
    page.keyboard.press("v")
    expect(page.locator("#colour-choice")).to_have_value("value")
    expect(page.locator("#colour-legend")).to_contain_text("all values")
    # Typing letters is typing.
    page.keyboard.press("/")
    page.keyboard.type("v72")
    expect(page.locator("#find-words")).to_have_text("not in this tree")
    expect(page.locator("#colour-choice")).to_have_value("value")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    keys = page.get_by_role("dialog")
    expect(keys).to_contain_text("next, previous leaf of the same verdict")
    page.keyboard.press("v")
    page.keyboard.press("Escape")
    expect(keys).to_be_hidden()
    expect(page.locator("#colour-choice")).to_have_value("value")


def test_back_undoes_what_was_chosen_and_forward_does_it_again(site: Site, page: Page) -> None:
    open_tree(page, f"/t/{site.planted['tree']}/")
    colour, width = page.locator("#colour-choice"), page.locator("#width-choice")
    colour.select_option("value")
    width.select_option("tokens")
    page.locator("#colour-legend [role=slider]").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    expect(page).to_have_url(re.compile("range="))
    page.locator("#icicle").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("zoom=1"))
    page.keyboard.press("2")
    expect(page.locator("#graph")).to_be_visible()
    page.go_back()
    expect(page.locator("#icicle")).to_be_visible()
    expect(page).to_have_url(re.compile("zoom=1"))
    page.go_back()
    expect(page).not_to_have_url(re.compile("zoom="))
    page.go_back()
    expect(page.locator("#inspector .node-title")).to_have_text("Node 0")
    expect(page).to_have_url(re.compile("range="))
    page.go_back()
    expect(page).not_to_have_url(re.compile("range="))
    expect(width).to_have_value("tokens")
    page.go_back()
    expect(width).to_have_value("leaves")
    expect(colour).to_have_value("value")
    page.go_back()
    expect(colour).to_have_value("advantage")
    for _ in range(6):
        page.go_forward()
    expect(page.locator("#graph")).to_be_visible()
    expect(colour).to_have_value("value")
    expect(width).to_have_value("tokens")
    expect(page).to_have_url(re.compile("zoom=1"))


def test_forced_colours_reach_the_canvas(visit: Callable[..., Watched], site: Site) -> None:
    """What is no data is drawn in the reader's own colours: the prompt's box as the page's ground."""
    page = visit(forced_colors="active").page()
    open_tree(page, f"/t/{site.planted['tree']}/")
    pixel = """(canvas) => {
        const { width } = canvas;
        return [...canvas.getContext("2d").getImageData(width - 20, 12, 1, 1).data].join();
    }"""
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor").removeprefix("rgb(").rstrip(")")
    assert page.locator("#icicle").evaluate(pixel) == f"{ground.replace(' ', '')},255"


def test_an_address_brings_back_the_whole_view(site: Site, visit: Callable[..., Watched]) -> None:
    watched = visit()
    watched.expect("status of 422")  # HBPO is not defined on this tree, and the legend says why
    page = watched.page()
    tree = site.planted["tree"]
    open_tree(page, f"/t/{tree}/{WHOLE}")
    expect(page.locator("#tree-layout[data-graph]")).to_be_visible()
    expect(page.locator("#graph")).to_be_visible()
    for choice, value in [("colour", "value"), ("order", "value"), ("width", "leaves")]:
        expect(page.locator(f"#{choice}-choice")).to_have_value(value)
    expect(page.locator("#find-words")).to_have_text("4 of 4 nodes")
    page.locator("#find-next").click()
    expect(page.locator("#find-words")).to_have_text("1 of 4 nodes")
    page.keyboard.press("3")
    expect(page.locator(".outline-found")).to_have_count(4)
    page.keyboard.press("1")
    for choice, value in [("width", "tokens"), ("colour", "difference")]:
        page.locator(f"#{choice}-choice").select_option(value)
    expect(page.locator("#colour-legend")).to_contain_text("98th percentile")
    # What is not defined on the tree is not offered; an address from elsewhere is told why.
    expect(page.locator("#estimator-choice option[value=hbpo]")).to_be_disabled()
    page.goto(f"{page.url}&under=hbpo")
    expect(page.locator("#colour-legend")).to_contain_text("without any")
    address = page.url
    for part in ("width=tokens", "color=difference", "under=hbpo", "order=value", "find="):
        assert part in address
    page.reload()
    expect(page.locator("#estimator-choice")).to_have_value("hbpo")
    expect(page.locator("#colour-legend")).to_contain_text("without any")
    page.locator("#colour-choice").select_option("advantage")
    bar = page.get_by_role("slider")
    before = bar.get_attribute("aria-valuetext")
    bar.press("ArrowRight")
    expect(bar).to_have_attribute("aria-valuetext", re.compile("chosen by hand"))
    expect(page).to_have_url(re.compile("range="))
    bar.dblclick()
    expect(bar).to_have_attribute("aria-valuetext", before or "")
    expect(page).not_to_have_url(re.compile("range="))


def test_panes_fold_away_and_stay_folded(site: Site, page: Page) -> None:
    open_tree(page, f"/t/{site.planted['tree']}/")
    page.keyboard.press(">")
    expect(page.locator("#inspector")).to_be_hidden()
    page.reload()
    expect(page.locator("#tree-layout[data-ready]")).to_be_visible()
    expect(page.locator("#inspector")).to_be_hidden()
    page.locator("#toggle-inspector").click()
    expect(page.locator("#inspector")).to_be_visible()
