"""The list of a run's trees by keyboard, live, filtered, narrow, and without scripts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.browser.conftest import REPOSITORY, Site, Watched
from tests.browser.test_trees import open_tree

pytestmark = [pytest.mark.browser, pytest.mark.process]


@dataclass
class Growing:
    """A run at work: `step(n)` finishes a step of three trees."""

    run: int
    input: IO[str]
    output: IO[str]

    def step(self, number: int) -> None:
        self.tell(str(number))

    def sampling(self, step: int, **trees: list[tuple[int, int]]) -> None:
        """Trees of the step under way: (parent, tokens) of each segment; 0 tokens: being written."""
        told = [
            {
                "problem_id": name.replace("_", "-"),
                "parent": [-1, *(parent for parent, _ in segments)],
                "tokens": [5, *(tokens for _, tokens in segments)],
                "finish": [0, *(int(tokens > 0) for _, tokens in segments)],
            }
            for name, segments in trees.items()
        ]
        self.tell(json.dumps({"step": step, "trees": told}))

    def tell(self, line: str) -> None:
        self.input.write(f"{line}\n")
        self.input.flush()
        assert self.output.readline() == "ok\n"


@pytest.fixture
def growing(site: Site) -> Iterator[Growing]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.browser.grow"],
        cwd=REPOSITORY,
        env=os.environ | {"ARBORIST_DATABASE_URL": site.database_url},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    yield Growing(int(process.stdout.readline()), process.stdin, process.stdout)
    process.stdin.close()
    assert process.wait(30) == 0


def test_the_list_is_chosen_sorted_and_filtered_in_the_address(
    site: Site, visit: Callable[..., Watched]
) -> None:
    watched = visit()
    watched.expect("status of 400")
    page = watched.page()
    page.goto(f"/r/{site.planted['run']}/trees")
    shown = page.locator("#tree-list")
    expect(shown).to_have_attribute("data-step", "2")
    page.locator("#step-bar").focus()
    page.keyboard.press("ArrowLeft")
    expect(shown).to_have_attribute("data-step", "1")
    expect(page).to_have_url(re.compile(r"\?step=1$"))
    expect(page.locator("#step-bar")).to_have_attribute("aria-valuenow", "1")
    page.locator("#sort-spread").click()
    expect(page).to_have_url(re.compile(r"\?step=1&sort=-spread$"))
    expect(page.locator("#sort-spread")).to_be_focused()
    expect(page.locator("#step-bar-shade")).to_have_text("shaded by mean A-spread, 4.00 to 5.00")
    page.locator("#sort-spread").click()
    expect(page).to_have_url(re.compile(r"sort=spread$"))
    page.get_by_role("link", name="All steps").click()
    expect(page.locator(".tree-row")).to_have_count(2)
    page.keyboard.press("/")
    page.keyboard.type("tokens:>5 fisnds")
    page.keyboard.press("Enter")
    expect(shown).to_contain_text("0 of 2 match.")
    page.locator("#tree-q").fill("tokns:>5")
    page.keyboard.press("Enter")
    expect(page.locator("#filter-error mark")).to_have_text("tokns")
    expect(page.locator("#tree-q")).to_have_value("tokns:>5")
    # What was there stays, and the address with it.
    expect(page.locator("#filter-error")).to_contain_text("The trees below are as before.")
    expect(shown).to_contain_text("0 of 2 match.")
    expect(page).to_have_url(re.compile("fisnds"))
    page.get_by_role("link", name="tokens:>5").click()
    expect(page.locator(".chip")).to_have_count(1)
    expect(page.locator(".tree-row")).to_have_count(2)
    page.go_back()
    expect(shown).to_contain_text("0 of 2 match.")
    page.get_by_role("link", name="Clear filter", exact=True).click()
    expect(page).to_have_url(re.compile(r"\?scope=all&sort=spread$"))
    expect(page.locator(".tree-row")).to_have_count(2)


def test_a_live_list_follows_but_never_under_the_pointer_or_the_focus(growing: Growing, page: Page) -> None:
    growing.step(1)
    page.goto(f"/r/{growing.run}/trees")
    shown = page.locator("#tree-list")
    expect(page.locator("#follow")).to_be_checked()
    expect(page.locator("#live-words, .live-state").first).to_contain_text("Live")
    page.mouse.move(5, 5)
    growing.step(2)
    expect(shown).to_have_attribute("data-step", "2")
    expect(page).to_have_url(re.compile(r"/trees$"))
    # j and k move, and what has the focus stays.
    page.keyboard.press("j")
    page.keyboard.press("j")
    expect(page.locator(".tree-link").nth(1)).to_be_focused()
    page.keyboard.press("k")
    expect(page.locator(".tree-link").nth(0)).to_be_focused()
    page.keyboard.press("/")
    expect(page.locator("#tree-q")).to_be_focused()
    page.keyboard.type("not sent")
    page.keyboard.press("Escape")
    expect(page.locator(".tree-link").nth(0)).to_be_focused()
    expect(page.locator("#tree-q")).to_have_value("")
    growing.step(3)
    offer = shown.get_by_role("button", name="step 3 is there · show")
    expect(offer).to_be_visible()
    expect(shown).to_have_attribute("data-step", "2")
    expect(page.locator(".tree-link").nth(0)).to_be_focused()
    # What somebody types while the list moves on is kept.
    page.locator("#tree-q").fill("half a fil")
    growing.step(4)
    expect(shown).to_have_attribute("data-step", "4")
    expect(page.locator("#tree-q")).to_have_value("half a fil")
    # A step chosen stays.
    page.keyboard.press("Escape")
    page.locator("#step-back").click()
    expect(shown).to_have_attribute("data-step", "3")
    expect(page.locator("#follow")).not_to_be_checked()
    growing.step(5)
    expect(page.locator("#step-bar")).to_have_attribute("aria-valuemax", "5")
    expect(shown).to_have_attribute("data-step", "3")
    page.locator("#follow").check()
    expect(shown).to_have_attribute("data-step", "5")
    page.locator("body").press("j")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"/t/\d+/$"))
    # Who came by keyboard is in the picture, and walks on.
    expect(page.locator("#icicle")).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(page).to_have_url(re.compile(r"/t/\d+/\?n=1$"))
    page.keyboard.press("a")
    expect(page.locator("#note-text")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#icicle")).to_be_focused()


def test_a_note_that_is_begun_while_its_node_is_on_its_way_keeps_the_focus(
    site: Site, visit: Callable[..., Watched]
) -> None:
    page = visit().page()
    open_tree(page, f"/t/{site.planted['tree']}/")
    held: list[Route] = []
    page.route(re.compile("/n/1$"), lambda route: held.append(route))
    page.locator("#icicle").focus()
    with page.expect_request(re.compile("/n/1$")):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("a")
    expect(page.locator("#note-text")).to_be_focused()
    held[0].continue_()
    expect(page.locator("#inspector").get_by_role("heading", name="Node 1", exact=True)).to_be_visible()
    expect(page.locator("#note-text")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#icicle")).to_be_focused()


def test_the_list_works_without_scripts_and_narrow(site: Site, visit: Callable[..., Watched]) -> None:
    watched = visit(java_script_enabled=False, viewport={"width": 320, "height": 800})
    watched.expect("status of 400")
    page = watched.page()
    run = site.planted["run"]
    for query in ("", "?scope=all&q=value:0.25", "?from=1&to=2&q=vlaue:1"):
        page.goto(f"/r/{run}/trees{query}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 320, query
    page.goto(f"/r/{run}/trees")
    page.get_by_role("link", name="Value cliffs").click()
    expect(page.locator(".chip")).to_have_text(re.compile("flag:cliff"))
    page.get_by_role("link", name="clear filter", exact=True).click()
    page.get_by_role("link", name="All steps").click()
    expect(page.locator(".tree-row")).to_have_count(2)
    page.locator("#tree-q").fill("step:1")
    page.get_by_role("button", name="Filter").click()
    expect(page.locator(".tree-row")).to_have_count(1)
    expect(page.locator(".list-head")).to_have_text("1 of 2 trees of all steps matches")


def first_box(page: Page, canvas: Locator, row: int) -> bytes:
    """A picture of the first segment below the prompt; the sampler plans at most four of them."""
    box = canvas.bounding_box()
    assert box
    return page.screenshot(
        clip={"x": box["x"], "y": box["y"], "width": box["width"] // 4 - 6, "height": row - 2}
    )


def test_a_growing_tree_keeps_its_places_and_becomes_the_recorded_one(
    growing: Growing, visit: Callable[..., Watched]
) -> None:
    watched = visit()
    watched.expect("status of 404")  # of the tree that is not there
    page = watched.page()
    growing.step(1)
    growing.sampling(2, p_2_0=[(0, 7), (0, 0)], p_2_1=[(0, 0)])
    page.goto(f"/r/{growing.run}/trees")
    strip = page.locator("#growing")
    expect(strip).to_contain_text("Step 2 as it grows: sampling 1 of 9 segments")
    first = strip.locator("li").first
    expect(first).to_contain_text("1 segment · 1 being written · 12 tokens so far")
    before, box = first_box(page, first.locator("canvas"), 14), first.bounding_box()
    growing.sampling(2, p_2_0=[(0, 7), (0, 9), (0, 0), (1, 4)], p_2_1=[(0, 0)])
    expect(first).to_contain_text("3 segments · 1 being written · 25 tokens so far")
    # Room was kept for what the sampler plans: what was there stands where it stood.
    assert first_box(page, first.locator("canvas"), 14) == before
    assert first.bounding_box() == box
    first.get_by_role("link", name="p-2-0").click()
    address = page.url
    assert address.endswith(f"/r/{growing.run}/growing?step=2&problem=p-2-0")
    expect(page.locator("#growing-words")).to_have_text("3 segments · 1 being written · 25 tokens so far")
    canvas = page.locator("#growing-canvas")
    before = first_box(page, canvas, 26)
    growing.sampling(2, p_2_0=[(0, 7), (0, 9), (0, 6), (1, 4), (2, 0)])
    expect(page.locator("#growing-words")).to_have_text("4 segments · 1 being written · 31 tokens so far")
    assert first_box(page, canvas, 26) == before
    # Nothing moves under the pointer: what comes next is offered.
    canvas.hover()
    growing.step(2)
    over = page.get_by_role("link", name="This step is over: open the tree")
    expect(over).to_be_visible()
    assert page.url == address
    over.click()
    expect(page.locator("#tree-layout[data-ready]")).to_be_visible()
    expect(page.locator("h1")).to_have_text("2·p-2-0")
    page.goto(address.replace("p-2-0", "p-9"))
    expect(page.get_by_text("No tree of this problem was recorded at step 2")).to_be_visible()


def test_a_problem_of_a_run_at_work_brings_newer_trees_or_offers_them(growing: Growing, page: Page) -> None:
    growing.step(1)
    page.goto("/p/lab/prompts/again?runs=" + str(growing.run))
    expect(page.locator("#problem-history[data-ready]")).to_be_visible()
    expect(page.locator("#newer")).to_contain_text("newer trees appear here")
    page.mouse.move(5, 5)
    growing.step(2)
    expect(page.locator("#step-now")).to_have_text("step 2")
    expect(page.locator(".frame")).to_have_count(2)
    expect(page.locator(".frame-now")).to_have_attribute("data-step", "2")
    # Keys work once, not once for each time that the page was made anew.
    page.keyboard.press("[")
    expect(page.locator("#step-now")).to_have_text("step 1")
    # Who looks at another step is left there.
    growing.step(3)
    offer = page.get_by_role("button", name="Show 1 newer tree")
    expect(offer).to_be_visible()
    expect(page.locator(".frame")).to_have_count(2)
    expect(page.locator("#step-now")).to_have_text("step 1")
    offer.click()
    expect(page.locator(".frame")).to_have_count(3)
    expect(page.locator("#step-now")).to_have_text("step 1")
    expect(page.locator("#step-slider")).to_be_focused()
