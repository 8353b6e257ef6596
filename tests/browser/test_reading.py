"""Reading a path: tokens, formulas, where it went wrong, siblings, differences, on `reading_tree`."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Site, Watched
from tests.browser.test_trees import open_tree

pytestmark = pytest.mark.browser


def test_tokens_are_shaded_told_and_read_by_keyboard(site: Site, page: Page) -> None:
    open_tree(page, f"/t/{site.planted['reading_tree']}/?n=1.2")
    text = page.locator('#reader [data-segment="1.2"] .text')
    token = text.locator(".tok")
    expect(token).to_have_count(9)  # eight words and a line break
    # One token after the other is the text; the formula of another segment is plain text.
    expect(text).to_have_text("We must not take any power of 3.")
    expect(page.locator('#reader [data-segment="1"] .text')).to_contain_text("$360 = 2^3")
    for shade in ("advantage", "entropy"):
        page.keyboard.press("e")
        expect(page.locator("#reader-shade")).to_have_value(shade)
    expect(page).to_have_url(re.compile("shade=entropy"))
    expect(text.locator(".tok-marked")).to_have_text("not")
    expect(page.locator("#shade-legend")).to_contain_text("99th percentile")

    card = page.locator("#token-card")
    token.nth(2).hover()
    expect(card).to_contain_text("60.7 %")
    expect(card).to_contain_text("2.500 nats")
    alternatives = card.locator(".alternatives tr")
    expect(alternatives).to_have_count(2)
    expect(alternatives.first).to_contain_text(re.compile("·not.*60.7 %.*sampled"))
    expect(alternatives.last).to_contain_text("22.3 %")

    page.mouse.move(5, 5)
    text.focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    expect(token.nth(1)).to_have_class(re.compile("tok-active"))
    expect(card).to_contain_text("·must")
    page.keyboard.press("Escape")
    expect(card).to_be_hidden()
    # The end of an answer leaves no text; raw shows it.
    page.goto(f"/t/{site.planted['reading_tree']}/?n=1.1.1&raw=1&shade=mask")
    last = page.locator('#reader [data-segment="1.1.1"] .text')
    expect(last.locator(".capsule-token").last).to_have_text("<|end|>")
    # The highest entropy of a segment leads to its token.
    page.goto(f"/t/{site.planted['reading_tree']}/n/1.2")
    page.locator("#inspector summary", has_text="Tokens").click()
    page.get_by_role("link", name="token 3").click()
    expect(page.locator(".tok-active")).to_have_text("not")


def test_formulas_are_typeset_on_request_and_nothing_else(site: Site, page: Page) -> None:
    open_tree(page, f"/t/{site.planted['reading_tree']}/?n=1.1")
    formula = page.locator('#reader [data-segment="1"] .katex')
    expect(formula).to_have_count(0)
    page.keyboard.press("m")
    expect(formula).to_have_count(1)
    expect(formula.locator(".mord").first).to_be_visible()
    expect(page).to_have_url(re.compile("math=1"))
    page.keyboard.press("m")
    expect(formula).to_have_count(0)
    expect(page.locator('#reader [data-segment="1"] .text')).to_contain_text(
        "$360 = 2^3 \\cdot 3^2 \\cdot 5$"
    )
    # What a model wrote stays text, hidden characters are capsules, with tokens as without.
    page.goto(f"/t/{site.planted['reading_tree']}/n/2")
    wild = page.locator('#reader [data-segment="2"] .text')
    expect(wild.locator(".tok").first).to_be_visible()
    expect(wild).to_contain_text("<b>all</b>")
    expect(wild.locator(".capsule")).to_have_text("U+202E")


def test_the_way_to_where_it_went_wrong_and_back_along_the_siblings(site: Site, page: Page) -> None:
    open_tree(page, f"/t/{site.planted['reading_tree']}/?n=2")
    page.keyboard.press("w")
    expect(page.locator("#inspector .node-title")).to_have_text("Node 1.2")
    expect(page.locator(".cliff-mark")).to_contain_text("50 % → 0 % here")
    # From an answer below it: the same answer below the sibling.
    page.goto(f"/t/{site.planted['reading_tree']}/?n=1.2.4")
    expect(page.locator("#tree-layout[data-ready]")).to_be_visible()
    page.locator("#untaken-2 a[data-swap]").first.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#inspector .node-title")).to_have_text("Node 1.1.4")
    expect(page.locator("#inspector")).to_contain_text("computed again: the same")


def test_siblings_and_differences_are_a_key_away(site: Site, page: Page) -> None:
    open_tree(page, f"/t/{site.planted['reading_tree']}/?n=1.2")
    page.keyboard.press("d")
    expect(page.locator("#mark-note")).to_contain_text("1.2 is marked")
    page.locator("#icicle").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#inspector .node-title")).to_have_text("Node 1.1")
    page.keyboard.press("d")
    expect(page).to_have_url(re.compile(r"/diff\?a=1\.2&b=1\.1$"))
    expect(page.locator(".gap-facts")).to_contain_text("−1.000")
    expect(page.locator("del").first).to_contain_text("We must not take")
    page.go_back()
    expect(page.locator("#tree-layout[data-ready]")).to_be_visible()
    page.keyboard.press("s")
    expect(page).to_have_url(re.compile(r"/siblings\?n=1\.1$"))
    expect(page.locator(".column-card")).to_have_count(2)
    expect(page.locator(".column-card").first).to_contain_text("p 0.61")


@pytest.mark.parametrize("width", [320, 1440])
def test_pages_about_nodes_fit_and_work_without_scripts(
    site: Site, visit: Callable[..., Watched], width: int
) -> None:
    page = visit(viewport={"width": width, "height": 800}, java_script_enabled=False).page()
    tree = site.planted["reading_tree"]
    for path in ("n/1.2", "siblings?n=1.2", "diff?a=1.2&b=2.1", "estimators?n=1.2&under=grpo"):
        page.goto(f"/t/{tree}/{path}")
        expect(page.locator("h1")).to_be_visible()
        sizes = page.locator("html").evaluate("element => [element.scrollWidth, innerWidth]")
        assert sizes[0] <= width, path
    page.goto(f"/t/{tree}/n/1.2")
    expect(page.locator("#cliff-link")).to_contain_text("Where did it go wrong?")
