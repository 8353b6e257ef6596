"""Exports in a browser: chosen, watched, fetched from a real worker; and a tree's page, opened offline."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import Site, Watched
from tests.browser.plant import HOSTILE

pytestmark = [pytest.mark.browser, pytest.mark.process]


def fetched(page: Page, path: Path) -> Path:
    """The newest export, once its worker has written it."""
    row = page.locator("#exports tbody tr").first
    expect(row).to_have_attribute("data-status", "succeeded", timeout=60_000)
    with page.expect_download() as download:
        row.get_by_role("link", name="Download").click()
    download.value.save_as(path)
    return path


def test_an_export_is_chosen_previewed_written_by_a_worker_and_saved(
    page: Page, site: Site, tmp_path: Path
) -> None:
    page.goto(f"/r/{site.planted['run']}/trees")
    page.get_by_role("link", name="Export…").click()
    expect(page.locator(".counts")).to_contain_text("1 tree")
    page.get_by_label("From step").fill("")
    expect(page.locator(".counts")).to_contain_text("2 trees")
    page.locator('.kind:has(input[value="pairs"])').click()
    expect(page.get_by_label("Value gap, at least")).to_have_value("0.5")
    page.get_by_label("Value gap, at least").fill("many")
    expect(page.get_by_role("alert")).to_contain_text("Value gap, at least")
    page.get_by_label("Value gap, at least").fill("1")
    expect(page.locator(".sample-rows > li")).to_have_count(2)
    assert "kind=pairs" in page.url
    assert "gap=1" in page.url
    expect(page.locator(".sample-rows")).to_contain_text("onerror")
    page.go_back()  # the kind chosen before
    expect(page.locator('.kind input[value="trees"]')).to_be_checked()
    page.go_forward()
    expect(page.locator('.kind input[value="pairs"]')).to_be_checked()
    page.get_by_role("button", name="Export preference pairs of 2 trees").click()
    page.wait_for_url("**/exports/")
    rows = fetched(page, tmp_path / "pairs.jsonl").read_text().splitlines()
    assert [json.loads(row)["chosen"] for row in rows] == ["#### 71"] * 2
    assert HOSTILE in json.loads(rows[0])["prompt"]
    page.get_by_role("button", name="Delete the file").first.click()
    expect(page.locator("#exports tbody tr").first).to_have_attribute("data-status", "expired")
    assert page.evaluate("window.pwned") is None


def test_the_page_of_a_tree_opens_offline_runs_nothing_and_shows_text_as_it_is(
    page: Page, site: Site, browser: Browser, tmp_path: Path
) -> None:
    page.goto(f"/t/{site.planted['tree']}/")
    page.get_by_role("link", name="Export…").click()
    expect(page.locator('.kind input[value="page"]')).to_be_checked()
    page.get_by_role("button", name="Export page of 1 tree").click()
    page.wait_for_url("**/exports/")
    path = fetched(page, tmp_path / "tree.html")

    context = browser.new_context(offline=True, viewport={"width": 1100, "height": 900})
    asked: list[str] = []
    problems: list[str] = []
    alone = context.new_page()
    alone.on("request", lambda request: asked.append(request.url))
    alone.on("console", lambda message: problems.append(message.text))
    alone.on("pageerror", lambda error: problems.append(str(error)))
    alone.goto(path.as_uri())
    assert asked == [path.as_uri()]
    assert problems == []
    assert alone.evaluate("window.pwned") is None
    assert alone.locator("script, img, button, link, form, iframe").count() == 0
    shown = alone.locator("pre").filter(has_text="onerror").first.inner_text()
    assert "<img src=x onerror=\"window.pwned='img'\"> <script>window.pwned='script'</script>" in shown
    assert "U+202Egnirts" in shown
    assert "</textarea> ${alert(1)}" in shown
    # Its own style applies, and nothing else could.
    assert alone.locator("summary").first.evaluate("e => getComputedStyle(e).display") == "flex"
    alone.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<img id=x src=data:, onerror=window.pwned=1>')"
    )
    alone.evaluate(
        "document.head.append(Object.assign(document.createElement('style'), {textContent: '*{float:left}'}))"
    )
    assert alone.evaluate("window.pwned") is None
    assert alone.locator("h1").evaluate("e => getComputedStyle(e).float") == "none"
    for node in ("1", "1.1", "1.2", "2", "2.1", "2.2"):
        expect(alone.locator("summary .name").get_by_text(node, exact=True)).to_be_visible()
    expect(alone.locator(".audit").first).to_contain_text("A")
    context.close()


def test_trees_are_imported_and_the_pages_of_the_run_cope(
    tmp_path: Path, visit: Callable[..., Watched]
) -> None:
    page = visit().page()
    nodes: list[dict[str, Any]] = [
        {"parent": None, "text": "2 + 2 ="},
        {"parent": 0, "text": " 4", "tokens": [1, 2], "verdict": "correct", "reward": 1, "value": 1},
        {"parent": 0, "text": " 5", "verdict": "incorrect", "reward": 0, "value": 0, "advantage": -0.5},
    ]
    line = {"format": "arborist.tree", "version": 1, "problem_id": "<i>p</i>", "step": 3, "nodes": nodes}
    source = tmp_path / "theirs.jsonl"
    source.write_text(json.dumps(line) + "\n{}\n")
    page.goto("/p/lab/")
    page.get_by_role("link", name="Import trees…").click()
    row = page.locator("#imports tbody tr").first
    page.get_by_label("File").set_input_files(source)
    page.get_by_role("button", name="Import", exact=True).click()
    expect(row).to_have_attribute("data-status", "failed", timeout=60_000)
    expect(row.locator(".refused-lines")).to_contain_text('Line 2: "format" is None')
    source.write_text(json.dumps(line) + "\n")
    page.get_by_label("File").set_input_files(source)
    page.get_by_role("button", name="Import", exact=True).click()
    expect(row).to_have_attribute("data-status", "succeeded", timeout=60_000)
    expect(row).to_contain_text("1 tree with 3 nodes")
    row.get_by_role("link", name="Open its trees").click()
    page.wait_for_url("**/r/*/trees")
    run = page.url.removesuffix("trees")
    page.locator(".tree-link").first.click()
    page.wait_for_url("**/t/*/**")
    page.goto(f"{page.url.partition('?')[0]}?n=1")
    expect(page.locator("#inspector")).to_contain_text(
        "the estimator that made their numbers is not known here"
    )
    page.goto(run)
    expect(page.get_by_role("heading", name="Imported trees have no curves")).to_be_visible()
    page.goto("/p/lab/")
    expect(page.locator("td[data-cell=step]").get_by_text("imported").first).to_be_visible()
