"""Branch here, with the stack's own worker: asked for by keyboard, read as it comes, there after a reload."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Site, Watched
from tests.browser.plant import HOSTILE
from tests.browser.test_trees import open_tree

pytestmark = pytest.mark.browser
SAMPLED_MILLISECONDS = 180_000  # a process with torch starts first


def test_continuations_are_asked_for_and_read_by_keyboard_alone(
    site: Site, visit: Callable[..., Watched]
) -> None:
    tree = site.planted["tree"]
    watched = visit()
    watched.expect(r"status of 400.*/branch\)")  # the mistake below
    page = watched.page()
    open_tree(page, f"/t/{tree}/?n=1")
    page.keyboard.press("b")
    dialog = page.get_by_role("dialog", name="Branch from node 1")
    beginning = dialog.get_by_label("The answer so far")
    expect(beginning).to_be_focused()
    # The policy's text is text, in a form too.
    assert beginning.input_value() == HOSTILE
    assert page.evaluate("window.pwned") is None
    expect(dialog).to_contain_text("The checkpoint of v1 was not kept. Nearest that can be sampled: v0.")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()

    page.keyboard.press("b")
    expect(beginning).to_be_focused()
    beginning.fill("45+26=")
    dialog.get_by_label("Continuations").fill("65")
    dialog.get_by_label("Max tokens").fill("8")
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("alert")).to_have_text("n is 65; ask for 1 to 64 continuations.")
    assert beginning.input_value() == "45+26="
    dialog.get_by_label("Continuations").fill("5")
    dialog.get_by_label("Max tokens").press("Enter")
    expect(dialog).to_be_hidden()

    # In every view of the tree they hang from their node, and are counted nowhere.
    mark = page.locator("#outline-1 .outline-probes")
    expect(mark).to_have_text("◇ 1 probe")
    expect(page.locator("#icicle")).to_have_attribute("aria-description", re.compile("1 probe$"))
    expect(page.locator("#outline-box [role=treeitem]")).to_have_count(7)
    probes = page.locator("#probes")
    expect(probes).to_contain_text("edited beginning")
    expect(probes.locator(".probe-pending")).to_have_count(5)
    expect(probes.locator(".probe-cell")).to_have_count(5, timeout=SAMPLED_MILLISECONDS)
    expect(probes.locator(".probe-result")).to_contain_text("/5 ✓ from here at v0")
    # One of them is read at a time.
    expect(probes.locator(".continuation:visible")).to_have_count(1)
    probes.locator(".probe-cell").first.focus()
    page.keyboard.press("End")
    expect(probes.locator(".probe-cell").last).to_be_focused()
    expect(probes.locator(".continuation:visible .continuation-name")).to_have_text("5")
    expect(page).to_have_url(re.compile(r"[?&]probe=\d+\.4$"))

    # They belong to their node, and stay.
    page.reload()
    expect(mark).to_have_text("◇ 1 probe")
    expect(probes.locator(".probe-cell")).to_have_count(5)
    expect(probes.locator(".continuation:visible .continuation-name")).to_have_text("5")
    expect(page.locator("#inspector")).to_contain_text("1 probe")
    # The lane below the tree: a click reads the continuation that it is on.
    lane = page.locator("#icicle").bounding_box()
    assert lane is not None
    page.locator("#icicle").click(position={"x": 30, "y": lane["height"] - 27})
    expect(page).to_have_url(re.compile(r"[?&]probe=\d+\.1$"))
    expect(probes.locator(".continuation:visible .continuation-name")).to_have_text("2")
    open_tree(page, f"/t/{tree}/?n=2")
    expect(probes.locator(".probe-cell")).to_have_count(0)
    probes.get_by_role("link", name="1", exact=True).click()
    expect(probes.locator(".probe-cell")).to_have_count(5)

    plain = visit(java_script_enabled=False).page()
    plain.goto(f"/t/{tree}/branch?n=1")
    expect(plain.locator(".continuation:visible")).to_have_count(5)
    expect(plain.get_by_role("button", name="Sample")).to_be_visible()
