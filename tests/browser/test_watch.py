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


REMEMBER_WORDS = """() => {
    const words = document.querySelector("#live-state");
    window.seen = [];
    const look = () => window.seen.push(words.textContent);
    new MutationObserver(look).observe(words, {childList: true, characterData: true, subtree: true});
}"""


def create_run(page: Page, preset: str, name: str, **fields: str) -> int:
    """Fill the form as a person does, and land on the run's page. Returns the run's id."""
    page.goto(f"/p/lab/new?preset={preset}")
    page.get_by_role("textbox", name="Name", exact=True).fill(name)
    for path, value in (SMALL | {key.replace("__", "."): value for key, value in fields.items()}).items():
        page.locator(f'[name="{path}"]').evaluate(
            "element => { const box = element.closest('details'); if (box) box.open = true; }"
        )
        page.locator(f'[name="{path}"]').fill(value)
    page.get_by_role("button", name="Queue run").click()
    page.wait_for_url(re.compile(r"/r/\d+/$"))
    found = re.search(r"/r/(\d+)/", page.url)
    assert found
    return int(found[1])


def drawn_steps(page: Page, panel: str = "reward/mean") -> list[int]:
    """Steps that the panel's chart holds, newest first, read from its table form: the newest 200."""
    card = page.locator(f'[data-panel="{panel}"]')
    button = card.get_by_role("button", name="Table")
    if button.get_attribute("aria-pressed") == "false":
        card.hover()
        button.click()
    heads = card.locator(".chart-table tbody th").all_inner_texts()
    return [int(re.sub(r"\D", "", head)) for head in heads]


def test_a_login_link_logs_in_once(site: Site, visit: Callable[..., Watched]) -> None:
    watched = visit(storage_state=None)
    watched.expect("status of 410")  # a used link, below
    page = watched.page()
    page.goto("/p/lab/")
    expect(page).to_have_url(re.compile("/login/"))
    page.goto(site.planted["second_login"])
    page.goto(site.planted["second_login"])  # opening it does not use it up
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Lab runs")).to_be_visible()
    page.get_by_text("ada").click()
    page.get_by_role("button", name="Log out").click()
    expect(page).to_have_url(re.compile("/login/"))
    page.goto(site.planted["second_login"])
    expect(page.get_by_role("heading", name="This link does not work any more")).to_be_visible()


def test_the_form_checks_while_typing_and_says_what_a_run_costs(page: Page) -> None:
    page.goto("/p/lab/new?preset=treerpo-tiny")
    cost = page.locator("#consequence")
    leaves = cost.locator("[data-estimate=leaves_per_tree]")
    expect(leaves).to_have_text("16")
    page.locator('[name="sampler.branching_per_depth"]').fill("4, 4, 4")
    expect(leaves).to_have_text("64")
    expect(cost.locator("[data-estimate=nodes_per_tree]")).to_have_text("84")
    expect(page.locator("#branching-preview")).to_have_attribute(
        "aria-label", "Shape of one tree: 4, then 16, then 64 nodes"
    )
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

    # Another kind of sampler has other fields, with that kind's defaults; what was typed elsewhere stays.
    page.locator('[name="training.steps"]').fill("77")
    page.locator('[name="sampler.depth"]').fill("2")
    page.locator('[name="sampler.kind"]').select_option("search_tree")
    expect(page.locator('[name="sampler.depth"]')).to_have_value("3")
    expect(page.locator('[name="training.steps"]')).to_have_value("77")
    expect(cost).to_contain_text("All are at most")
    expect(page.locator("#changes-count")).to_have_text("(2)")


def test_parts_inside_parts_are_switched_and_parts_that_do_not_fit_are_linked(page: Page) -> None:
    page.goto("/p/lab/new?preset=grpo-tiny")
    advanced = page.locator('[data-advanced="objective"]')
    advanced.locator("summary").click()
    page.locator('[name="objective.expert.kind"]').select_option("chord")
    expect(page.locator('[name="objective.expert.peak"]')).to_have_value("0.9")
    weights = page.locator("#field-objective-expert-token_weights")
    weights.check()
    expect(advanced).to_have_attribute("open", "")
    expect(page.locator("#changes-list")).to_contain_text("objective.expert.token_weights false → true")

    page.locator('[name="objective.kind"]').select_option("preference")
    problem = page.locator("#form-problems")
    expect(problem).to_contain_text("Set credit.baseline to none")
    problem.get_by_role("link", name="credit.baseline").click()
    expect(page.locator('[name="credit.baseline.kind"]')).to_be_focused()
    page.locator('[name="credit.baseline.kind"]').select_option("none")
    page.locator('[name="credit.scale.kind"]').select_option("none")
    page.locator('[name="credit.spread"]').select_option("node")
    expect(page.locator("#consequence")).to_contain_text("ready to queue")
    expect(problem).to_be_empty()


def test_presets_are_found_by_typing_and_opened_by_key(page: Page) -> None:
    page.goto("/p/lab/new")
    picker = page.locator("#picker")
    expect(picker.get_by_role("link", name="TreeRPO", exact=True)).to_have_attribute("aria-current", "true")
    page.locator("#preset-filter").fill("mcts dpo")
    expect(picker.locator("[data-preset-text]:visible")).to_have_count(1)
    expect(picker.get_by_role("heading", name="Flat answers")).to_be_hidden()
    page.locator("#preset-filter").fill("nothing like it")
    expect(page.locator("#preset-none")).to_contain_text("nothing like it")
    page.locator("#preset-filter").fill("step-grpo+")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"preset=step-grpo%2B-tiny"))
    expect(page.locator(".preset-title")).to_have_text("step-GRPO+ · tiny")
    expect(page.locator("#consequence")).to_contain_text("ready to queue")


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


def wait_for_steps(page: Page, steps: int) -> None:
    def there() -> bool:
        word = page.locator("#run-head [data-state=word]").inner_text()
        reason = page.locator("#run-head [data-state=reason]").inner_text()
        assert word != "Failed", reason
        return int(page.locator("#status-step").inner_text()) >= steps

    wait_for(there, 90, f"step {steps}")


def test_a_run_is_created_and_watched_over_a_bad_line(page: Page) -> None:
    """Nobody touches the page and the socket is cut twice; the chart ends with exactly the stored points."""
    routes: list[WebSocketRoute] = []

    def pass_through(route: WebSocketRoute) -> None:
        route.connect_to_server()
        routes.append(route)

    page.route_web_socket(re.compile("/ws/v1"), pass_through)
    run = create_run(page, "grpo-tiny", "over a bad line", training__steps="10", seed="3")
    live = page.locator("#live-state")
    expect(live).to_have_text(re.compile("^(Live|Catching up)"))
    page.evaluate("window.notReloaded = true")
    for steps in (2, 5):
        wait_for_steps(page, steps)
        # The head tells a step at once, charts draw a frame or two later.
        wait_for(lambda steps=steps: len(drawn_steps(page)) >= steps, 5, "its points on the chart")
        page.evaluate(REMEMBER_WORDS)
        routes[-1].close(code=1011)
        told = "window.seen.some((text) => text.startsWith('Reconnecting'))"
        wait_for(lambda told=told: page.evaluate(told), 10, "Reconnecting is told")
    wait_for_steps(page, 10)
    expect(page.locator("#run-head [data-state=word]")).to_have_text("Succeeded", timeout=30_000)
    expect(live).to_have_text("Finished")
    expect(page.locator("#run-controls button")).to_have_count(0)
    wait_for(lambda: len(drawn_steps(page)) == 10, 10, "all points on the chart")
    assert len(routes) >= 3
    assert page.evaluate("window.notReloaded")

    stored = read_json(page, f"/api/v1/runs/{run}/metrics?names=reward/mean")["series"][0]
    shown = page.locator('[data-panel="reward/mean"] .chart-table tbody tr td').all_inner_texts()
    assert [float(text) for text in reversed(shown)] == pytest.approx(stored["value"], abs=6e-4)


def test_a_run_is_seen_from_the_table_laid_over_another_and_stopped(
    site: Site, page: Page, visit: Callable[..., Watched]
) -> None:
    table = visit().page()
    table.goto("/p/lab/")
    expect(table.locator("#live-state")).to_have_text(re.compile("^Live"))
    run = create_run(page, "treerpo-tiny", "to be stopped", training__steps="5000")

    # A new run does not push rows about; it is offered.
    table.get_by_role("link", name="1 new run · show").click()
    row = table.locator(f"#run-{run}")
    expect(row).to_contain_text("to be stopped")
    wait_for_steps(page, 2)
    expect(row).to_have_attribute("data-status", "running")
    figures = row.locator("[data-cell=step] .figures")
    before = figures.inner_text()
    wait_for(lambda: figures.inner_text() != before, 30, "the row's step moves")

    table.get_by_label("Select to be stopped").check()
    table.locator(f"#run-{site.planted['run']} .pick input").check()
    table.get_by_role("link", name="Overlay").click()
    expect(table).to_have_url(re.compile(rf"/r/{run}/\?with={site.planted['run']}$"))
    table.get_by_role("link", name="Overlay other runs…").click()
    expect(table.locator("#selection-count")).to_have_text("2 selected")  # those that are there already
    table.get_by_role("link", name="Overlay", exact=True).click()
    legend = table.get_by_role("list", name="Runs in these charts")
    expect(legend.get_by_role("listitem")).to_have_count(2)
    panel = table.locator('[data-panel="reward/mean"]')
    expect(panel.locator(".reading")).to_have_count(2)
    # The overlay is as live as the page of one run.
    shown = panel.locator(".readout").inner_text()
    wait_for(lambda: panel.locator(".readout").inner_text() != shown, 30, "the overlaid curves move")
    legend.get_by_role("button", name=re.compile("^Show <b>bold")).click()
    expect(panel.locator(".reading")).to_have_count(1)
    expect(table).to_have_url(re.compile(rf"hide={site.planted['run']}"))
    table.reload()
    expect(panel.locator(".reading")).to_have_count(1)

    word, wish = page.locator("#run-head [data-state=word]"), page.locator("#run-wish")
    page.evaluate("window.notReloaded = true")
    page.get_by_role("button", name="Pause", exact=True).click()
    expect(wish).to_contain_text(re.compile("^Pause requested by ada .* ago · (waiting|acknowledged)"))
    expect(word).to_have_text("Paused", timeout=30_000)
    expect(page.locator("#run-outcome")).to_contain_text("Resume goes on from step")
    expect(wish).to_be_hidden()
    page.get_by_role("button", name="Resume", exact=True).click()
    expect(word).to_have_text("Running", timeout=60_000)

    stop = page.locator("#run-controls summary").first
    stop.click()
    sure = page.get_by_role("button", name="Stop this run")
    expect(page.locator("#run-controls")).to_contain_text("Everything it made is kept")
    sure.press("Escape")
    expect(stop).to_be_focused()
    expect(sure).to_be_hidden()
    stop.click()
    sure.click()
    expect(word).to_have_text("Stopped", timeout=30_000)
    expect(page.get_by_role("button", name="Retry")).to_be_visible()
    assert page.evaluate("window.notReloaded")
    said = read_json(page, f"/api/v1/runs/{run}")
    assert said["status"] == "stopped"
    assert said["counts"]["trees"] > 0
    page.goto(f"/r/{run}/events")
    expect(page.locator("#events-table")).to_contain_text("ada")
    expect(table.locator("#run-head [data-state=word]")).to_have_text("Stopped")


def test_chart_state_lives_in_the_address(site: Site, page: Page) -> None:
    run = site.planted["run"]
    page.goto(f"/r/{run}/?x=tokens&sm=0.20")
    expect(page.locator('#x-axis input[value="tokens"]')).to_be_checked()
    expect(page.locator("#smoothing-value")).to_have_text("0.20")
    page.locator("#x-axis label", has_text="step").click()
    expect(page).to_have_url(re.compile(r"/\?sm=0.20$"))
    chart = page.locator('[data-panel="reward/mean"] .chart-box')
    chart.focus()
    readout = page.locator('[data-panel="reward/mean"] .readout')
    expect(readout).to_contain_text("step 20")  # drawn anew over steps
    page.keyboard.press("Home")
    expect(readout).to_contain_text("step 1")
    page.keyboard.press("ArrowRight")
    expect(readout).to_contain_text("step 2")


def test_a_fork_begins_with_what_it_came_from_and_a_clone_anew(page: Page) -> None:
    create_run(page, "grpo-tiny", "stem", training__steps="1", checkpoint__every_steps="1")
    expect(page.locator("#live-state")).to_have_text("Finished", timeout=60_000)
    page.get_by_role("link", name="Fork…").click()
    expect(page.locator("#section-model")).to_contain_text("Tiny reasoner")
    expect(page.locator('[name="model.path"]')).to_have_count(0)
    page.locator('[name="training.steps"]').fill("1")
    expect(page.locator("#field-training-steps-note")).to_contain_text("Use more than 1.")
    page.locator('[name="training.steps"]').fill("9")
    expect(page.locator("#consequence")).to_contain_text("ready to queue")
    page.get_by_role("button", name="Queue the fork").click()
    # Its first step is still to come; what it goes on from is there.
    expect(page.locator("#run-legend")).to_contain_text("up to step 1")
    chart = page.locator('[data-panel="reward/mean"] .chart-box')
    expect(chart).to_have_attribute("aria-label", re.compile(r"stem \S+ at step 1"))
    page.get_by_role("button", name="Show stem up to step 1").click()
    expect(chart).not_to_have_attribute("aria-label", re.compile("stem [0-9]"))
    page.get_by_role("link", name="Clone…").click()
    expect(page.get_by_role("textbox", name="Name", exact=True)).to_have_value("stem fork 2")
    expect(page.locator("#start")).to_contain_text("begins with the base model")
    expect(page.locator("#changes-list")).to_have_text("None: exactly its settings.")
