"""Open trees by mouse and keyboard; what models wrote stays text; pages work without scripts."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Site, Watched, read_json
from tests.browser.plant import HOSTILE, HOSTILE_NAME
from trainer.config_file import config_from_yaml
from trainer.presets import PRESETS

pytestmark = pytest.mark.browser


def open_tree(page: Page, path: str) -> None:
    """Until the columns are there and the picture answers."""
    page.goto(path)
    expect(page.locator("#tree-layout[data-ready]")).to_be_visible()


def test_a_tree_is_opened_and_read_by_keyboard_alone(site: Site, page: Page) -> None:
    page.goto(f"/r/{site.planted['run']}/trees")
    expect(page.locator("#tree-list .tree-row")).to_have_count(1)
    page.keyboard.press("j")
    expect(page.locator("#tree-list .tree-link").first).to_be_focused()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"/t/\d+/$"))

    expect(page.locator("#tree-layout[data-ready]")).to_be_visible()
    page.locator("#icicle").focus()
    title = page.locator("#inspector .node-title")
    for key, node in [
        ("ArrowDown", "1"),
        ("ArrowRight", "2"),
        ("ArrowLeft", "1"),
        ("ArrowDown", "1.1"),
        ("End", "1.2"),
        ("n", "2.1"),
        ("ArrowUp", "2"),
        ("Home", "1"),
    ]:
        page.keyboard.press(key)
        expect(title).to_have_text(f"Node {node}")
    # Canvas, outline, reader, inspector and address show the same node.
    expect(page).to_have_url(re.compile(r"\?n=1$"))
    expect(page.locator(".segment-selected")).to_have_attribute("data-segment", "1")
    tree = page.get_by_role("tree")
    active = tree.get_attribute("aria-activedescendant")
    expect(page.locator(f"#{active}")).to_have_attribute(
        "aria-label", re.compile(r"^Node 1, value 0.50, 1 of 2 correct, advantage plus 1.33, \d+ tokens$")
    )
    expect(page.locator("#inspector")).to_contain_text("+1.333")
    expect(page.locator("#inspector")).to_contain_text("computed again: the same")


def test_a_deep_link_survives_a_reload_and_back_returns(site: Site, page: Page) -> None:
    tree = site.planted["tree"]
    open_tree(page, f"/t/{tree}/?n=1.2&view=outline&color=value")
    title = page.locator("#inspector .node-title")
    expect(title).to_have_text("Node 1.2")
    expect(page.get_by_role("treeitem", selected=True)).to_have_attribute("data-node", "4")
    expect(page.locator("#colour-choice")).to_have_value("value")
    page.get_by_role("treeitem", name=re.compile("^Node 2.1,")).click()
    expect(title).to_have_text("Node 2.1")
    page.reload()
    expect(title).to_have_text("Node 2.1")
    expect(page.get_by_role("tree")).to_be_visible()
    page.go_back()
    expect(title).to_have_text("Node 1.2")
    page.locator(".untaken a", has_text="1.1").click()
    expect(title).to_have_text("Node 1.1")


def test_the_outline_follows_the_tree_pattern(site: Site, page: Page) -> None:
    open_tree(page, f"/t/{site.planted['tree']}/?view=outline")
    tree = page.get_by_role("tree")
    tree.focus()
    selected = page.get_by_role("treeitem", selected=True)
    page.keyboard.press("ArrowDown")
    expect(selected).to_have_attribute("aria-label", re.compile("^Node 1,"))
    expect(selected).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("ArrowLeft")
    expect(selected).to_have_attribute("aria-expanded", "false")
    expect(page.get_by_role("treeitem")).to_have_count(5)
    page.keyboard.press("ArrowDown")
    expect(selected).to_have_attribute("aria-label", re.compile("^Node 2,"))
    page.keyboard.press("ArrowRight")
    expect(selected).to_have_attribute("aria-label", re.compile("^Node 2.1,"))
    expect(selected).to_have_attribute("aria-level", "3")


def test_the_icicle_paints_advantages_and_hatches_what_has_no_credit(site: Site, page: Page) -> None:
    open_tree(page, f"/t/{site.planted['tree']}/")
    canvas = page.locator("#icicle")
    box = canvas.bounding_box()
    assert box
    page.wait_for_timeout(300)
    # Row 1: node 1 has A = +4/3 (blue), node 2 has -4/3 (orange); below, 2.1 and 2.2 are dropped (hatch).
    colours = canvas.evaluate(
        """(canvas) => {
            const dpr = canvas.width / canvas.clientWidth, y = Math.round((26 + 4) * dpr);
            const row = canvas.getContext("2d").getImageData(0, y, canvas.width, 1).data;
            const at = (x) => [...row.slice(4 * Math.round(x * canvas.width)).slice(0, 4)];
            return {better: at(0.4), worse: at(0.9)};
        }"""
    )
    assert colours["better"][2] > colours["better"][0] + 60
    assert colours["worse"][0] > colours["worse"][2] + 60
    page.mouse.click(box["x"] + box["width"] * 0.9, box["y"] + 26 + 10)
    expect(page.locator("#inspector .node-title")).to_have_text("Node 2")
    page.mouse.click(box["x"] + box["width"] * 0.6, box["y"] + 2 * 26 + 10)
    expect(page.locator("#inspector .node-title")).to_have_text("Node 2.1")
    expect(page.locator("#inspector .no-credit")).to_have_text("no credit: filtered out")
    expect(page.locator("#colour-legend")).to_contain_text("no credit")
    expect(page.locator('[data-segment="2.1"]')).to_have_class(re.compile("segment-no-credit"))


def test_what_was_given_is_context_and_equal_answers_are_counted(site: Site, page: Page) -> None:
    """HBPO: the budgets' sentences were given; step-GRPO: a leaf stands for three equal answers."""
    open_tree(page, f"/t/{site.planted['budget_tree']}/?n=2.1")
    expect(page.locator("#inspector")).to_contain_text("budget 50 tokens")
    expect(page.locator("#inspector .ok")).to_contain_text("computed again: the same value and advantage")
    legend = page.locator("#colour-legend")
    expect(legend).to_contain_text("given")
    expect(legend).not_to_contain_text("no credit")
    expect(page.locator('[data-segment="2"]')).to_have_class("segment segment-prompt")
    # One tone along the edge of the sentence's box, where a hatch would have two.
    tones = page.locator("#icicle").evaluate(
        """(canvas) => {
            const dpr = canvas.width / canvas.clientWidth, y = Math.round((26 + 22) * dpr);
            const row = canvas.getContext("2d").getImageData(20 * dpr, y, 100 * dpr, 1).data;
            const tone = (_, i) => row.slice(4 * i, 4 * i + 4).join();
            return new Set(Array.from({length: row.length / 4}, tone)).size;
        }"""
    )
    assert tones == 1
    open_tree(page, f"/t/{site.planted['merged_tree']}/?n=2")
    expect(page.locator("#inspector .node-title")).to_contain_text("×3 equal answers")
    expect(page.locator("#icicle-hint")).to_contain_text("×3")
    page.keyboard.press("3")
    expect(page.locator("#outline-2 .outline-name")).to_contain_text("2 ×3")


@pytest.mark.parametrize("scripts", [True, False], ids=["with scripts", "without"])
def test_hostile_text_is_shown_literally_everywhere(
    site: Site, visit: Callable[..., Watched], scripts: bool
) -> None:
    page = visit(java_script_enabled=scripts).page()
    run, tree = site.planted["run"], site.planted["tree"]
    pages = [
        "/p/lab/",
        f"/r/{run}/",
        f"/r/{run}/trees",
        f"/r/{run}/config",
        f"/r/{run}/events",
        f"/t/{tree}/?n=1.1",
        f"/t/{tree}/?n=1.1&view=outline",
        f"/t/{tree}/n/1.1",
        "/workers/",
        "/queue/",
        "/settings/tokens/",
    ]
    for path in pages:
        page.goto(path)
        if scripts:
            page.wait_for_timeout(400)
            assert page.evaluate("window.pwned") is None, path
        assert page.locator("img").count() == 0, path
        assert page.locator("main button[hx-post]").count() == 0, path
    page.goto(f"/t/{tree}/n/1.1")
    text = page.locator('[data-segment="1"] .text')
    if scripts:
        # What would turn letters round or hide is shown as a capsule.
        expect(text.locator(".capsule").first).to_have_text("U+202E")
        expect(text).to_contain_text("<img src=x onerror=\"window.pwned='img'\">")
    else:
        expect(text).to_have_text(re.sub(r"\s+", " ", HOSTILE).strip())
        assert text.evaluate("element => getComputedStyle(element).unicodeBidi") == "isolate"
    page.goto("/p/lab/")
    expect(page.locator(f"#run-{run} th")).to_contain_text("<b>bold</b>")
    assert "<img" in HOSTILE_NAME


def test_pages_work_without_scripts(site: Site, visit: Callable[..., Watched]) -> None:
    watched = visit(java_script_enabled=False)
    watched.expect("status of 400")  # the refused form, below
    page = watched.page()
    run, tree = site.planted["run"], site.planted["tree"]
    page.goto("/p/lab/")
    expect(page.get_by_role("link", name="New run")).to_be_visible()
    page.goto(f"/r/{run}/")
    expect(page.locator("main")).to_contain_text("reward/mean")
    page.get_by_role("link", name="Trees", exact=True).click()
    page.locator("#step-input").fill("1")
    page.get_by_role("button", name="Show").click()
    expect(page.locator(".list-head")).to_contain_text("step 1")
    page.goto(f"/t/{tree}/")
    page.get_by_role("link", name="1.1", exact=True).first.click()
    expect(page).to_have_url(re.compile(rf"/t/{tree}/n/1.1$"))
    expect(page.locator("#inspector")).to_contain_text("Verifier")
    page.goto("/p/lab/new?preset=grpo-tiny")
    page.locator('[name="training.steps"]').fill("0")
    page.get_by_role("button", name="Queue run").click()
    expect(page.locator("#form-problem")).to_contain_text("training.steps")


def test_a_region_that_cannot_be_read_leaves_the_page_as_it_is(
    site: Site, visit: Callable[..., Watched]
) -> None:
    watched = visit()
    watched.expect("status of 500|Failed to load resource")
    page = watched.page()
    open_tree(page, f"/t/{site.planted['tree']}/?n=1")
    page.route(
        "**/n/1.1", lambda route: route.fulfill(status=500, content_type="text/html", body="<h1>broken</h1>")
    )
    page.locator("#icicle").focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#tree-problem")).to_contain_text("Node 1.1 could not be read")
    expect(page.locator("#inspector .node-title")).to_have_text("Node 1")
    # Logged out in another window: the answer is the login page, not a node.
    page.unroute("**/n/1.1")
    page.context.clear_cookies()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tree-problem")).to_contain_text("logged out")
    expect(page.locator("#inspector .node-title")).to_have_text("Node 1")


def test_the_theme_is_there_before_the_first_paint(page: Page) -> None:
    page.goto("/p/lab/")
    toggle = page.locator("#theme-toggle")
    toggle.click()
    toggle.click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    response = page.goto("/p/lab/")
    assert response
    assert '<html lang="en" data-theme="dark">' in response.text()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 20, 23)"


@pytest.mark.parametrize("width", [320, 1440])
def test_nothing_is_cut_off(site: Site, visit: Callable[..., Watched], width: int) -> None:
    page = visit(viewport={"width": width, "height": 800}).page()
    run, tree = site.planted["run"], site.planted["tree"]
    for path in [
        "/login/",
        "/p/",
        "/p/lab/",
        "/p/lab/new",
        f"/r/{run}/",
        f"/r/{run}/trees",
        f"/r/{run}/config",
        f"/r/{run}/events",
        f"/t/{tree}/?n=1",
        f"/t/{tree}/n/1",
        "/workers/",
        "/queue/",
        "/settings/tokens/",
    ]:
        page.goto(path)
        page.wait_for_timeout(150)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path


def test_a_config_is_copied_and_saved_as_the_same_file(site: Site, visit: Callable[..., Watched]) -> None:
    watched = visit(permissions=["clipboard-read", "clipboard-write"])
    page = watched.page()
    page.goto(f"/r/{site.planted['run']}/config")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    saved = download.value.path().read_text()
    assert config_from_yaml(saved) == PRESETS["treerpo-tiny"].config
    page.get_by_role("button", name="Copy YAML").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == saved
    watched.context.clear_permissions()
    page.reload()
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('denied')); }")
    page.get_by_role("button", name="Copy YAML").click()
    expect(page.get_by_role("button", name="Selected: copy it with the keyboard")).to_be_visible()
    assert page.evaluate("getSelection().toString()").strip() == saved.strip()


def test_every_picture_has_words_beside_it(site: Site, page: Page) -> None:
    page.goto(f"/r/{site.planted['run']}/")
    chart = page.locator('[data-panel="reward/mean"] .chart-box')
    expect(chart).to_have_attribute(
        "aria-label", re.compile(r"^Reward\. last 0\.500 at step 2\. Arrow keys read values\.$")
    )
    loss = page.locator('[data-panel="policy/loss"]')
    page.locator("summary", has_text="Policy").click()
    loss.hover()
    loss.get_by_role("button", name="Table").click()
    expect(loss.locator(".chart-table")).to_contain_text("1 values are not finite")
    row = read_json(page, f"/api/v1/runs/{site.planted['run']}/trees?step=2")["trees"][0]
    page.goto(f"/t/{row['id']}/")
    expect(page.locator("#icicle")).to_have_attribute(
        "aria-label", re.compile("7 nodes, 1 of 4 answers correct")
    )
