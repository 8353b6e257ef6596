"""An answer judged again, with the stack's own worker: by keyboard, beside what was recorded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Request, expect

from tests.browser.conftest import Site, Watched
from tests.browser.test_accessible import AXE, serious
from tests.browser.test_trees import open_tree

pytestmark = pytest.mark.browser
JUDGED_MILLISECONDS = 60_000


def test_an_answer_is_judged_again_by_keyboard_alone(site: Site, visit: Callable[..., Watched]) -> None:
    watched = visit(color_scheme="light")
    watched.expect(r"status of 400.*/verifications\)")  # the mistake below
    page = watched.page()
    asked: list[Request] = []
    page.on("request", lambda request: asked.append(request) if request.method == "POST" else None)
    open_tree(page, f"/t/{site.planted['tree']}/?n=1.1")
    expect(page.locator("#verifier-part[data-ready]")).to_be_visible()
    newest = page.locator(".verification").first
    page.locator("#verify-again").press("Enter")
    expect(newest).to_contain_text("Again GSM8K")
    # What is typed meanwhile stays when the result comes.
    page.locator("#verify-with").press("Enter")
    page.get_by_label("Verifier", exact=True).select_option("numeric")
    tolerance = page.get_by_label("Tolerance")
    tolerance.fill("2")
    expect(newest).to_contain_text("The same as recorded.", timeout=JUDGED_MILLISECONDS)
    tolerance.press("Enter")
    expect(page.locator("#verify-problem")).to_have_text("tolerance is “2”. Use a number from 0 to 1.")
    assert len(asked) == 2

    page.get_by_label("Verifier", exact=True).select_option("exact")
    expect(tolerance).to_be_hidden()
    page.get_by_role("button", name="Verify", exact=True).press("Enter")
    expect(page.locator("#verify-with")).to_be_focused()
    expect(newest).to_contain_text("Differs. Recorded: correct; now: incorrect.", timeout=JUDGED_MILLISECONDS)
    # The policy's text is text here, too.
    expect(newest.locator("[data-model-text]").first).to_contain_text("<img src=x onerror=")
    assert page.evaluate("window.pwned") is None
    page.get_by_text("1 earlier").click()
    expect(page.locator(".verification:visible")).to_have_count(2)
    if AXE.exists():
        assert serious(page) == []
    # Of another node nothing of it is shown.
    open_tree(page, f"/t/{site.planted['tree']}/?n=1")
    expect(page.locator("#verifier-part")).to_have_count(0)

    plain = visit(java_script_enabled=False).page()
    plain.goto(f"/t/{site.planted['tree']}/n/1.1")
    plain.get_by_role("button", name="Verify again").click()
    expect(plain.locator(".verification").first).to_contain_text("Again GSM8K")
