"""Create a run in the browser, watch it learn, lay two runs over each other, stop one."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, WebSocketRoute, expect

from tests.browser.conftest import Site, Watched, read_json, wait_for

pytestmark = pytest.mark.browser

# One worker takes one run at a time, and a step of this size takes a fraction of a second.
SMALL = {"training.problems_per_step": "4", "evaluation.problems": "8", "evaluation.every_steps": "2"}


def create_run(page: Page, preset: str, name: str, **fields: str) -> int:
    """Fill the form as a person does, and land on the run's page. Returns the run's id."""
    page.goto(f"/p/lab/new?preset={preset}")
    page.get_by_label("Name").fill(name)
    for path, value in (SMALL | {key.replace("__", "."): value for key, value in fields.items()}).items():
        page.locator(f'[name="{path}"]').evaluate("element => { const box = element.closest('details'); if (box) box.open = true; }")
        page.locator(f'[name="{path}"]').fill(value)
    page.get_by_role("button", name="Queue run").click()
    page.wait_for_url(re.compile(r"/r/\d+/$"))
    found = re.search(r"/r/(\d+)/", page.url)
    assert found
    return int(found[1])


def drawn_points(page: Page, panel: str = "reward/mean") -> int:
    """Points of the first line that the panel's chart holds, read from its table form."""
    card = page.locator(f'[data-panel="{panel}"]')
    button = card.get_by_role("button", name="Table")
    if button.get_attribute("aria-pressed") == "false":
        card.hover()
        button.click()
    return card.locator(".chart-table tbody tr").count()


def test_a_login_link_logs_in_once(site: Site, visit: Callable[..., Watched]) -> None:
    page = visit(storage_state=None).page()
    page.goto("/p/lab/")
    expect(page).to_have_url(re.compile("/login/"))
    page.goto(site.planted["second_login"])
    page.goto(site.planted["second_login"])  # opening it does not use it up
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Lab runs")).to_be_visible()
    page.get_by_text("ada").click()
    page.get_by_role("button", name="Log out").click()
    page.goto(site.planted["second_login"])
    expect(page.get_by_role("heading", name="This link does not work any more")).to_be_visible()


def test_the_form_checks_while_typing_and_says_what_a_run_costs(page: Page) -> None:
    page.goto("/p/lab/new?preset=treerpo-tiny")
    cost = page.locator("#consequence")
    expect(cost).to_contain_text("Leaves per tree16")
    page.locator('[name="sampler.branching_per_depth"]').fill("4, 4, 4")
    expect(cost).to_contain_text("Leaves per tree64")
    expect(cost).to_contain_text("Nodes per tree84")
    expect(page.locator("#changes-list")).to_contain_text("sampler.branching_per_depth 4, 2, 2 → 4, 4, 4")

    page.locator('[name="training.learning_rate"]').fill("7")
    wrong = page.locator('[data-path="training.learning_rate"]')
    expect(wrong.locator(".field-error")).to_contain_text("0.1")
    expect(wrong.locator("input")).to_have_attribute("aria-invalid", "true")
    expect(wrong.locator("input")).to_be_focused()
    expect(cost).to_contain_text("1 thing to change")

    wrong.get_by_role("button", name=re.compile("Reset")).click()
    expect(wrong.locator(".field-error")).to_be_hidden()
    expect(cost).to_contain_text("ready to queue")

    # Another kind of sampler has other fields; what was typed elsewhere stays.
    page.locator('[name="training.steps"]').fill("77")
    page.locator('[name="sampler.kind"]').select_option("flat")
    expect(page.locator('[name="sampler.group_size"]')).to_be_visible()
    expect(page.locator('[name="training.steps"]')).to_have_value("77")


def test_a_refused_form_leads_to_what_is_wrong(visit: Callable[..., Watched]) -> None:
    watched = visit()
    watched.expect("status of 400")
    page = watched.page()
    page.goto("/p/lab/new?preset=grpo-tiny")
    page.locator('[name="training.steps"]').fill("none")
    page.get_by_role("button", name="Queue run").click()
    problem = page.locator("#form-problem")
    expect(problem).to_be_focused()
    expect(problem).to_contain_text("training.steps")
    problem.get_by_role("link").click()
    expect(page.locator('[name="training.steps"]')).to_be_focused()
    expect(page.locator('[name="training.steps"]')).to_have_value("none")


def test_two_runs_are_created_watched_and_laid_over_each_other(page: Page) -> None:
    first = create_run(page, "grpo-tiny", "grpo first", training__steps="6", seed="3")
    live = page.locator("#live-state")
    expect(live).to_have_text(re.compile("^(Live|Catching up|Finished)"), timeout=20_000)
    # Points arrive while nobody touches the page.
    marker = "window.notReloaded = true"
    page.evaluate(marker)
    wait_for(lambda: drawn_points(page) >= 3, 60, "three steps on the chart")
    expect(page.locator("#run-head [data-state=word]")).to_have_text("Succeeded", timeout=60_000)
    expect(live).to_have_text("Finished")
    wait_for(lambda: drawn_points(page) == 6, 10, "all six steps on the chart")
    assert page.evaluate("window.notReloaded")
    expect(page.locator("#status-step")).to_have_text("6")
    expect(page.locator("#stop-form")).to_be_hidden()

    stored = read_json(page, f"/api/v1/runs/{first}/metrics?names=reward/mean")["series"][0]
    shown = page.locator('[data-panel="reward/mean"] .chart-table tbody tr td').all_inner_texts()
    assert [float(text) for text in reversed(shown)] == pytest.approx(stored["value"], abs=6e-4)

    second = create_run(page, "treerpo-tiny", "treerpo second", training__steps="5", seed="4", sampler__branching_per_depth="2, 2, 2")
    expect(page.locator("#run-head [data-state=word]")).to_have_text("Succeeded", timeout=60_000)

    page.goto("/p/lab/")
    page.get_by_label("Select treerpo second").check()
    page.get_by_label("Select grpo first").check()
    page.get_by_role("link", name="Overlay").click()
    expect(page).to_have_url(re.compile(rf"/r/{second}/\?with={first}$"))
    legend = page.get_by_role("list", name="Runs in these charts")
    expect(legend.get_by_role("listitem")).to_have_count(2)
    panel = page.locator('[data-panel="reward/mean"]')
    expect(panel.locator(".reading")).to_have_count(2)
    expect(panel.locator(".readout")).to_contain_text("grpo first")
    legend.get_by_role("button", name="Show grpo first").click()
    expect(panel.locator(".reading")).to_have_count(1)
    expect(page).to_have_url(re.compile(rf"hide={first}"))
    page.reload()
    expect(panel.locator(".reading")).to_have_count(1)


def test_a_run_is_stopped_from_its_page_and_keeps_what_it_made(page: Page) -> None:
    run = create_run(page, "treerpo-tiny", "to be stopped", training__steps="5000")
    wait_for(lambda: int(page.locator("#status-step").inner_text()) >= 2, 60, "two steps")
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator(".stop-question")).to_contain_text("Everything it made is kept")
    page.get_by_role("button", name="Keep running").click()
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_focused()
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_role("button", name="Stop this run").click()
    expect(page.locator("[data-state=stop]")).to_contain_text(re.compile("requested|stopping"))
    expect(page.locator("#run-head [data-state=word]")).to_have_text("Stopped", timeout=12_000)
    said = read_json(page, f"/api/v1/runs/{run}")
    assert said["status"] == "stopped"
    assert said["counts"]["trees"] > 0
    page.goto(f"/r/{run}/events")
    expect(page.locator("#events-table")).to_contain_text("ada")


def test_the_runs_table_is_live(page: Page, visit: Callable[..., Watched]) -> None:
    page.goto("/p/lab/")
    expect(page.locator("#live-state")).to_have_text(re.compile("^Live"))
    other = visit().page()
    run = create_run(other, "grpo-tiny", "seen from the table", training__steps="5000")
    # A new run does not push rows about; it is offered.
    page.get_by_role("link", name="1 new run · show").click()
    row = page.locator(f"#run-{run}")
    expect(row).to_contain_text("seen from the table")
    wait_for(lambda: row.get_attribute("data-status") == "running", 40, "the row says running")
    before = row.locator("[data-cell=step] .figures").inner_text()
    wait_for(lambda: row.locator("[data-cell=step] .figures").inner_text() != before, 30, "the row's step moves")
    other.get_by_role("button", name="Stop", exact=True).click()
    other.get_by_role("button", name="Stop this run").click()
    expect(row.locator("[data-cell=status]")).to_contain_text("Stopped", timeout=15_000)


def test_a_lost_connection_is_told_and_made_good_without_gap(page: Page) -> None:
    """The socket is cut twice; the chart ends with exactly the stored points."""
    routes: list[WebSocketRoute] = []

    def pass_through(route: WebSocketRoute) -> None:
        route.connect_to_server()
        routes.append(route)

    page.route_web_socket(re.compile("/ws/v1"), pass_through)
    run = create_run(page, "grpo-tiny", "over a bad line", training__steps="12")
    live = page.locator("#live-state")
    for wanted in (2, 5):
        wait_for(lambda wanted=wanted: int(page.locator("#status-step").inner_text()) >= wanted, 60, f"step {wanted}")
        page.evaluate("window.seen = []; new MutationObserver(() => window.seen.push(document.querySelector('#live-state').textContent)).observe(document.querySelector('#live-state'), {childList: true, characterData: true, subtree: true})")
        routes[-1].close(code=1011)
        wait_for(lambda: page.evaluate("window.seen.some((text) => text.startsWith('Reconnecting'))"), 10, "Reconnecting is told")
    expect(live).to_have_text("Finished", timeout=60_000)
    wait_for(lambda: drawn_points(page) == 12, 10, "all points")
    assert len(routes) >= 3
    stored = read_json(page, f"/api/v1/runs/{run}/metrics?names=reward/mean")["series"][0]
    shown = page.locator('[data-panel="reward/mean"] .chart-table tbody tr td').all_inner_texts()
    assert [float(text) for text in reversed(shown)] == pytest.approx(stored["value"], abs=6e-4)


def test_chart_state_lives_in_the_address(site: Site, page: Page) -> None:
    run = site.planted["run"]
    page.goto(f"/r/{run}/?x=tokens&sm=0.20")
    expect(page.locator('#x-axis input[value="tokens"]')).to_be_checked()
    expect(page.locator("#smoothing-value")).to_have_text("0.20")
    page.locator('#x-axis label', has_text="step").click()
    expect(page).to_have_url(re.compile(r"/\?sm=0.20$"))
    chart = page.locator('[data-panel="reward/mean"] .chart-box')
    chart.focus()
    page.keyboard.press("Home")
    readout = page.locator('[data-panel="reward/mean"] .readout')
    expect(readout).to_contain_text("step 1")
    page.keyboard.press("ArrowRight")
    expect(readout).to_contain_text("step 2")
