"""Pages as a whole: what they cost, what headers they carry, what they say when something is wrong."""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any
from urllib.parse import urlencode

import psycopg
import pytest
from django.core.cache import cache
from django.db import OperationalError, connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from psycopg_pool import PoolTimeout
from ruamel.yaml import YAML

from tests.webapp.material import People, add_metrics, add_tree, next_event, start, worked_tree
from tests.webapp.test_access import fill, page_routes
from trainer.config import RunConfig
from trainer.config_file import config_from_yaml
from trainer.metrics import METRICS
from webapp.errors import RequestError
from webapp.outages import outage_of
from webapp.projects.models import Membership, Project
from webapp.runs import services
from webapp.runs.models import Attempt, Run, RunStatus, Worker
from webapp.runs.panels import panels
from webapp.runs.querysets import resumes_of, run_states, runs_page, sparklines
from webapp.runs.words import idle_words
from webapp.trees.models import StoredTree

POLICY = {
    "default-src 'self'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' data:",
    "connect-src 'self'",
    "object-src 'none'",
    "base-uri 'none'",
    "frame-ancestors 'none'",
    "form-action 'self'",
    "require-trusted-types-for 'script'",
    "trusted-types arborist",
}


def queries(client: Client, path: str) -> int:
    with CaptureQueriesContext(connection) as captured:
        response = client.get(path)
    assert response.status_code == 200, path
    return len(captured)


def many_runs(project: Project, people: People, config: RunConfig, count: int) -> list[Run]:
    runs = []
    for number in range(count):
        run = services.create_run(project, people.editor, config, f"run {number}")
        start(run)
        for step in (1, 2, 3):
            add_metrics(run, step, {"reward/mean": 0.1 * step, "speed/step_seconds": 1.0})
        runs.append(run)
    return runs


# ------------------------------------------------------------------------------------------------ cost


@pytest.mark.parametrize("path", ["/p/lab/", "/api/v1/projects/lab/runs", "/p/", "/workers/"])
def test_list_pages_cost_the_same_however_long(
    path: str, project: Project, people: People, config: RunConfig
) -> None:
    client = people.client("viewer")
    runs = many_runs(project, people, config, 2)
    Worker.objects.create(name="w-0", queues="cpu", run=runs[0])
    few = queries(client, path)
    many_runs(project, people, config, 12)
    Worker.objects.create(name="w-1", queues="cpu", run=runs[1])
    assert queries(client, path) == few
    assert few <= 12


@pytest.mark.parametrize(
    "path",
    ["/r/{run}/", "/r/{run}/trees", "/r/{run}/config", "/r/{run}/events", "/t/{tree}/", "/t/{tree}/n/1.1"],
)
def test_run_pages_have_a_budget(path: str, run: Run, people: People) -> None:
    client = people.client("viewer")
    tree = StoredTree.objects.filter(run=run).order_by("-step").first()
    assert tree is not None
    address = path.format(run=run.id, tree=tree.id)
    queries(client, address)  # what is kept between requests is there now
    cache.clear()
    before = queries(client, address)
    for index in range(1, 12):
        add_tree(run, tree.step, worked_tree(tree.step, problem_id=f"p-{index}"), index)
    cache.clear()
    assert queries(client, address) == before
    assert before <= 24


def test_states_of_many_runs_cost_two_queries(project: Project, people: People, config: RunConfig) -> None:
    runs = [Run.objects.get(id=run.id) for run in many_runs(project, people, config, 8)]
    with CaptureQueriesContext(connection) as captured:
        states = run_states(runs)
    assert len(captured) == 2
    assert [state["id"] for state in states] == [run.id for run in runs]
    assert run_states([]) == []


# ------------------------------------------------------------------------------------------------ states


def test_a_run_whose_steps_train_nothing_says_so_and_where_it_last_did(run: Run, people: People) -> None:
    start(run)

    def page() -> str:
        return people.client("viewer").get(f"/r/{run.id}/").content.decode()

    def table_tells() -> bool:
        table = people.client("viewer").get("/p/lab/").content.decode()
        (word,) = re.findall(r'<a [^>]*data-part="idle"[^>]*>! nothing trains</a>', table)
        return " hidden>" not in word

    for step, tokens, reward in (
        (1, 900.0, 0.3),
        (2, 40.0, 0.1),
        *((step, 0.0, 0.0) for step in range(3, 7)),
    ):
        add_metrics(run, step, {"policy/trained_tokens": tokens, "reward/mean": reward})
    assert "No token trained" not in page()  # four such steps may happen
    assert not table_tells()
    add_metrics(run, 7, {"policy/trained_tokens": 0.0, "reward/mean": 0.0})
    told = page()
    assert "No token trained in the last 5 steps: nothing that was sampled had credit to train on." in told
    assert "Mean reward was 0.10 in the first step and is 0.00 now. The policy has probably broken:" in told
    assert f'href="/r/{run.id}/trees?step=2"' in told
    assert table_tells()
    add_metrics(run, 8, {"policy/trained_tokens": 3.0, "reward/mean": 0.0})
    assert "No token trained" not in page()
    assert not table_tells()
    # Of a later attempt that goes over steps again, only the newest count.
    for step in range(9, 14):
        add_metrics(run, step, {"policy/trained_tokens": 0.0}, superseded=step == 9)
    assert not table_tells()
    add_metrics(run, 14, {"policy/trained_tokens": 0.0})
    assert table_tells()
    # Of the other ends.
    assert "always solved" in idle_words(5, 9, (0.4, 1.0))
    assert "Easier problems" in idle_words(5, None, (0.0, 0.0))


def test_the_header_counts_what_it_counts_and_tells_how_long_an_ended_run_took(
    run: Run, people: People
) -> None:
    start(run)
    Run.objects.filter(id=run.id).update(phase="sampling", phase_done=602, phase_total=1344)

    def page() -> str:
        return people.client("viewer").get(f"/r/{run.id}/").content.decode()

    assert "sampling 602 of 1,344 segments" in page()
    Run.objects.filter(id=run.id).update(phase="loading", phase_done=0, phase_total=1)
    assert 'data-state="phase">loading</span>' in page()
    now = datetime.now(UTC)
    for epoch, seconds in ((1, 50), (2, 20)):  # a pause between them is nobody's work
        begun = now - timedelta(hours=3 - epoch)
        Attempt.objects.create(
            run=run, epoch=epoch, owner="w", started_at=begun, ended_at=begun + timedelta(seconds=seconds)
        )
    assert "took" not in page().split('id="run-took"')[1].split("</span>")[0]
    Run.objects.filter(id=run.id).update(status="stopped", ended_at=now, lease_until=None, lease_owner="")
    ended = page()
    assert '<span class="secondary" hidden>ETA' in ended
    assert 'took <span class="figures">1 min 10 s</span>' in ended


def test_an_attempt_at_work_says_how_long_and_when_its_first_checkpoint_comes(
    run: Run, people: People
) -> None:
    begun = datetime.now(UTC) - timedelta(minutes=5)
    Attempt.objects.create(run=run, epoch=1, owner="worker-1", started_at=begun)
    page = people.client("viewer").get(f"/r/{run.id}/attempts").content.decode()
    assert re.search(r"5 min( \d s)? so far", page)
    assert "One is saved every 25 steps or once 10 minutes have passed since the last, and when" in page


def test_the_eta_is_the_recent_wall_time_times_what_is_left(run: Run) -> None:
    """Steps 1 to 3 of 150 stand ten seconds apart; the last one was `now`, so 147 steps of 10 s are left."""
    now = datetime.now(UTC)
    for step in (1, 2, 3):
        run.events.filter(kind="metrics", step=step).update(at=now + timedelta(seconds=10 * (step - 3)))
    run.refresh_from_db()
    (state,) = run_states([run])
    assert state["eta_s"] == pytest.approx(1470, abs=5)
    assert (state["step"], state["steps_total"], state["worker"]) == (3, 150, "worker-1")
    assert state["latest"] == {
        "reward/mean": 0.3,
        "eval/pass1_sampled": 0.5,
        "eval/pass1_greedy": None,
        "credit/zero_variance_share": None,
        "speed/tokens_per_second": None,
    }
    assert 0 <= state["heartbeat_age_s"] < 60


def test_the_eta_does_not_shrink_while_nothing_is_done(run: Run) -> None:
    """The last step was ten minutes ago: 147 steps of 10 s are left, of which the next one is overdue."""
    now = datetime.now(UTC)
    for step in (1, 2, 3):
        run.events.filter(kind="metrics", step=step).update(at=now + timedelta(seconds=10 * (step - 3) - 600))
    run.refresh_from_db()
    assert run_states([run])[0]["eta_s"] == pytest.approx(1460, abs=0.1)


def test_a_resumed_run_has_no_eta_from_before_it_was_resumed_and_no_mark_at_step_0(run: Run) -> None:
    now = datetime.now(UTC)
    for step in (1, 2, 3):
        run.events.filter(kind="metrics", step=step).update(at=now + timedelta(seconds=10 * (step - 3)))
    assert run_states([run])[0]["eta_s"] is not None
    Attempt.objects.get_or_create(run=run, epoch=run.lease_epoch, defaults={"owner": "worker-1"})
    Run.objects.filter(id=run.id).update(lease_epoch=run.lease_epoch + 1)
    run.refresh_from_db()
    assert run_states([run])[0]["eta_s"] is None
    later = Attempt.objects.create(run=run, epoch=run.lease_epoch, owner="worker-2")
    assert resumes_of(run) == []
    Attempt.objects.filter(id=later.id).update(resumed_from_step=2)
    assert resumes_of(run) == [2]


def test_no_eta_without_two_steps_or_without_a_worker(
    project: Project, people: People, config: RunConfig
) -> None:
    run = services.create_run(project, people.editor, config, "x")
    start(run)
    add_metrics(run, 1, {"speed/step_seconds": 1.0})
    run.refresh_from_db()
    assert run_states([run])[0]["eta_s"] is None
    Run.objects.filter(id=run.id).update(status=RunStatus.QUEUED, lease_until=None)
    run.refresh_from_db()
    (state,) = run_states([run])
    assert (state["eta_s"], state["worker"], state["heartbeat_age_s"]) == (None, "", None)


def test_a_latest_value_that_is_not_finite_is_missing(run: Run) -> None:
    add_metrics(run, 4, {"reward/mean": float("nan")})
    run.refresh_from_db()
    assert run_states([run])[0]["latest"]["reward/mean"] is None


def test_sparklines_are_short_ordered_and_end_at_the_last_step(run: Run) -> None:
    assert sparklines([run.id]) == {run.id: [0.1, 0.2, 0.3]}
    for step in range(4, 200):
        add_metrics(run, step, {"reward/mean": float(step)})
    (spark,) = sparklines([run.id]).values()
    assert len(spark) <= 40
    assert spark == sorted(spark)
    assert spark[-1] == 199.0


def test_the_runs_table_pages_by_key(project: Project, people: People, config: RunConfig) -> None:
    made = [run.id for run in many_runs(project, people, config, 5)]
    first, before = runs_page(project, None, 2)
    second, before_again = runs_page(project, before, 2)
    third, end = runs_page(project, before_again, 2)
    assert [row["id"] for row in (*first, *second, *third)] == made[::-1]
    assert end is None
    assert {"colour", "preset", "seed", "created_at", "url", "spark", "status"} <= set(first[0])
    # A run that is created meanwhile does not shift the pages.
    services.create_run(project, people.editor, config, "new")
    assert [row["id"] for row in runs_page(project, before, 2)[0]] == [row["id"] for row in second]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/p/lab/?before=x", 404),
        ("/p/lab/?before=-1", 404),
        ("/p/lab/?before=" + "9" * 30, 404),
        ("/p/lab/?before=1;select pg_sleep(5)", 404),
        ("/api/v1/projects/lab/runs?limit=1000000000", 400),
        ("/api/v1/projects/lab/runs?before=-1", 400),
        ("/api/v1/projects/lab/runs?before=1&limit=0", 400),
    ],
)
def test_hostile_page_numbers(project: Project, people: People, path: str, status: int) -> None:
    assert people.client("viewer").get(path).status_code == status


# ------------------------------------------------------------------------------------------------ headers


def test_every_page_carries_the_content_security_policy(run: Run, people: People) -> None:
    for name, route in page_routes().items():
        for role in ("anonymous", "editor"):
            response = people.client(role).get(fill(route, run))
            assert set(response.headers["Content-Security-Policy"].split("; ")) == POLICY, name
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Referrer-Policy"] == "same-origin"
            assert response.headers["X-Frame-Options"] == "DENY"
            assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    for path in ("/nothing", "/api/v1/projects"):
        assert set(people.client("editor").get(path).headers["Content-Security-Policy"].split("; ")) == POLICY


def test_pages_hold_no_inline_script_or_style(run: Run, people: People) -> None:
    for route in page_routes().values():
        page = people.client("editor").get(fill(route, run)).content.decode()
        for piece in page.split("<script")[1:]:
            tag = piece.split(">")[0]
            assert "src=" in tag or 'type="application/json"' in tag, tag
        assert " style=" not in page
        assert "<style" not in page
        assert " onclick=" not in page


@pytest.mark.parametrize(
    "path",
    [
        "/static/..%2f..%2f..%2fetc/passwd",
        "/static/%252e%252e%252f%252e%252e%252fetc/passwd",
        "/static/..\\..\\etc\\passwd",
        "/static/a;/../../../etc/passwd",
        "/static/../settings.py",
        "/artifacts/..%2f..%2f..%2fetc/passwd",
        "/static/",
    ],
)
def test_no_path_leads_out_of_the_static_files(people: People, path: str) -> None:
    for role in ("anonymous", "admin"):
        assert people.client(role).get(path).status_code == 404


def test_static_files_are_open_and_for_this_site_alone(db: None) -> None:
    response = Client().get("/static/css/base.css")
    assert response.status_code == 200
    assert "Access-Control-Allow-Origin" not in response.headers
    response.close()


def test_a_foreign_host_is_refused_and_not_echoed(db: None) -> None:
    response = Client().get("/login/", headers={"host": "evil.example"})
    assert response.status_code == 400
    assert "evil.example" not in response.content.decode()


# ------------------------------------------------------------------------------------------------ frame


def test_pages_of_no_project_keep_the_navigation_of_the_last_one(
    run: Run, people: People, project: Project
) -> None:
    other = Project.objects.create(slug="other", name="Other")
    secret = Project.objects.get(slug="elsewhere")
    client = people.client("viewer")

    def navigation(path: str) -> list[str]:
        page = client.get(path).content.decode()
        return re.findall(r'href="/p/([a-z]+)/prompts/"', page.partition('class="sections"')[2])

    assert navigation("/queue/") == ["lab"]  # the only one
    Membership.objects.create(project=other, user=people.viewer, role="viewer")
    assert navigation("/queue/") == []
    for path, slug in (("/p/other/", "other"), (f"/r/{run.id}/", "lab")):
        assert navigation(path) == [slug]
        for following in ("/queue/", "/workers/", "/exports/", "/settings/tokens/", "/nowhere/"):
            assert navigation(following) == [slug], following
        assert navigation("/p/") == []
    before = client.cookies["project"].value
    client.get("/api/v1/projects/other/runs")
    client.get("/p/elsewhere/")
    assert client.cookies["project"].value == before
    client.cookies["project"] = secret.slug  # whoever writes it learns nothing
    assert navigation("/queue/") == []
    client.cookies["project"] = "lab"
    client.post("/logout/")
    assert client.cookies["project"].value == ""


# ------------------------------------------------------------------------------------------------ tabs


def test_the_config_tab_shows_yaml_that_is_the_config_and_gives_it_as_a_file(
    run: Run, people: People, config: RunConfig
) -> None:
    client = people.client("viewer")
    page = client.get(f"/r/{run.id}/config")
    text = page.context["config_yaml"]
    assert RunConfig.model_validate(YAML(typ="safe").load(StringIO(text))) == config
    assert text.index("preset:") < text.index("sampler:") < text.index("training:")
    Run.objects.filter(id=run.id).update(name='../<b>x"\u202e é: 1')
    file = client.get(f"/r/{run.id}/config.yaml")
    assert file["Content-Disposition"] == f'attachment; filename="bx-e-1-{run.id}.yaml"'
    assert file["Content-Type"] == "application/yaml; charset=utf-8"
    assert config_from_yaml(file.content.decode()) == config
    assert f'href="/r/{run.id}/config.yaml"' in page.content.decode()
    # Of another version it is shown as it was stored.
    Run.objects.filter(id=run.id).update(config=run.config | {"schema_version": 99})
    assert "schema_version: 99" in client.get(f"/r/{run.id}/config.yaml").content.decode()
    assert "stored by another version of Arborist" in client.get(f"/r/{run.id}/config").content.decode()
    Run.objects.filter(id=run.id).update(origin="imported", status="succeeded", ended_at=datetime.now(UTC))
    assert client.get(f"/r/{run.id}/config.yaml").status_code == 404


def test_the_events_tab_tells_what_happened_and_pages(run: Run, people: People) -> None:
    next_event(
        run,
        "started",
        0,
        {"step": 0, "device": "cpu", "engine": "local", "parameters": 321_000, "resumed_from": None},
    )
    next_event(run, "log", 1, {"level": "warning", "message": "<b>hot</b>"})
    next_event(run, "checkpoint", 1, {"path": "step-1", "bytes": 1234})
    next_event(run, "finished", 3, {"outcome": "stopped", "reason": "Stopped by editor."})
    page = people.client("viewer").get(f"/r/{run.id}/events")
    told = [(event["kind"], event["message"]) for event in page.context["events"]]
    assert told == [
        ("status", "Queued. Waiting for a worker."),
        ("started", "Training starts after step 0 on cpu with local, 321,000 parameters."),
        ("log", "<b>hot</b>"),
        ("checkpoint", "Saved step-1 (1,234 bytes)."),
        ("finished", "The trainer stopped. Stopped by editor."),
    ]
    assert "<b>hot" not in page.content.decode()
    seq = page.context["events"][1]["seq"]
    rest = people.client("viewer").get(f"/r/{run.id}/events?after={seq}")
    assert [event["kind"] for event in rest.context["events"]] == ["log", "checkpoint", "finished"]


def test_api_events_are_whole_and_in_order(run: Run, people: People) -> None:
    client = people.client("viewer")
    answer = client.get(f"/api/v1/runs/{run.id}/events").json()
    assert [event["seq"] for event in answer["events"]] == list(range(1, run.last_seq + 1))
    by_kind = {event["kind"]: event for event in answer["events"]}
    assert by_kind["metrics"]["values"] == {
        "reward/mean": 0.3,
        "speed/step_seconds": 2.0,
        "eval/pass1_sampled": 0.5,
    }
    assert by_kind["tree"]["tree"]["n_nodes"] == 7
    some = client.get(f"/api/v1/runs/{run.id}/events?after=2&limit=3").json()
    assert [event["seq"] for event in some["events"]] == [3, 4, 5]


def test_the_run_page_offers_overlays_only_of_visible_runs(
    run: Run, people: People, project: Project, config: RunConfig
) -> None:
    other = services.create_run(project, people.editor, config, "second")
    elsewhere = services.create_run(Project.objects.get(slug="elsewhere"), people.stranger, config, "unseen")
    page = people.client("viewer").get(f"/r/{run.id}/?with={other.id},{elsewhere.id},{run.id},x,{2**70}")
    assert [(one["id"], one["name"]) for one in page.context["overlay_runs"]] == [(other.id, "second")]
    assert "unseen" not in page.content.decode()


def test_panels_show_every_metric_once_with_the_six_first() -> None:
    made = panels()
    assert [panel["metrics"][0] for panel in made[:6]] == [
        "reward/mean",
        "eval/pass1_sampled",
        "sampling/response_tokens",
        "policy/entropy",
        "speed/tokens_per_second",
        "credit/zero_variance_share",
    ]
    assert [panel["pinned"] for panel in made] == [True] * 6 + [False] * (len(made) - 6)
    at_four = next(panel for panel in made if panel["metrics"] == ["eval/pass_at_4"])
    assert at_four["bands"] == {"eval/pass_at_4": ["eval/pass_at_4_low", "eval/pass_at_4_high"]}
    names = [name for panel in made for name in panel["metrics"]]
    names += [name for panel in made for band in panel["bands"].values() for name in band]
    assert sorted(names) == sorted(METRICS)


def test_the_front_door_leads_to_the_only_project(people: People, project: Project) -> None:
    assert people.client("viewer").get("/").headers["Location"] == "/p/lab/"
    Project.objects.create(slug="two", name="Two").memberships.create(user=people.viewer, role="viewer")
    assert people.client("viewer").get("/").headers["Location"] == "/p/"


def test_projects_are_listed_with_counts_and_role(run: Run, people: People) -> None:
    (row,) = people.client("editor").get("/p/").context["projects"]
    assert (row.slug, row.role, row.n_runs, row.n_active) == ("lab", "editor", 1, 1)


def test_the_theme_comes_from_a_cookie_of_two_values(people: People, project: Project) -> None:
    client = people.client("viewer")
    for value, shown in (("dark", "dark"), ("light", "light"), ('"><script>', ""), ("", "")):
        client.cookies["theme"] = value
        assert client.get("/p/lab/").context["shell"]["theme"] == shown


# ------------------------------------------------------------------------------------------------ when
# something is wrong


def test_a_fault_shows_an_id_that_the_log_has_and_nothing_else(
    run: Run, people: People, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the canary in the traceback")

    monkeypatch.setattr("webapp.runs.api.run_detail", broken)
    monkeypatch.setattr("webapp.runs.views.told_events", broken)
    client = people.client("viewer")
    client.raise_request_exception = False
    with caplog.at_level(logging.ERROR):
        answer = client.get(f"/api/v1/runs/{run.id}")
        page = client.get(f"/r/{run.id}/events")
    assert (answer.status_code, page.status_code) == (500, 500)
    assert answer.json()["id"] in caplog.text
    assert "canary" not in answer.content.decode() + page.content.decode()
    assert "the canary in the traceback" in caplog.text
    assert re.search("[0-9a-f]{12}", page.content.decode())[0] in caplog.text  # type: ignore[index]


def test_a_slow_statement_is_503_and_not_a_fault(
    run: Run, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: Any, **__: Any) -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL statement_timeout = 20")
            cursor.execute("SELECT pg_sleep(2)")

    monkeypatch.setattr("webapp.runs.api.run_detail", slow)
    monkeypatch.setattr("webapp.runs.views.told_events", slow)
    client = people.client("viewer")
    client.raise_request_exception = False
    answer, page = client.get(f"/api/v1/runs/{run.id}"), client.get(f"/r/{run.id}/events")
    assert (answer.status_code, page.status_code) == (503, 503)
    assert answer.json()["detail"].startswith("The database did not answer within 5 s")
    assert "The database took too long" in page.content.decode()
    assert answer.headers["Retry-After"] == page.headers["Retry-After"] == "5"


FORM = "application/x-www-form-urlencoded"


def test_a_form_that_met_an_outage_can_be_sent_again_and_holds_no_secret(
    run: Run, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise OperationalError("no route to the database")

    monkeypatch.setattr("webapp.runs.form_views.get_project", away)
    monkeypatch.setattr("webapp.accounts.forms.LoginForm.clean", away)
    client = people.client("editor")
    client.raise_request_exception = False
    page = client.post("/p/lab/new", urlencode({"name": "<b>mine</b>", "training.steps": "7"}), FORM)
    assert page.status_code == 503
    assert '<form method="post" action="/p/lab/new">' in page.content.decode()
    assert 'name="name" value="&lt;b&gt;mine&lt;/b&gt;"' in page.content.decode()
    assert "http-equiv" not in page.content.decode()  # a page that was sent is not asked for by itself
    login = Client(raise_request_exception=False).post(
        "/login/", urlencode({"username": "a", "password": "canary"}), FORM
    )
    assert login.status_code == 503
    assert "canary" not in login.content.decode()
    # Its fields are called by other names.
    monkeypatch.setattr("webapp.accounts.forms.PasswordForm.clean", away)
    typed = {"old": "canary of old", "new": "canary of new", "again": "canary of new"}
    password = client.post("/settings/password/", urlencode(typed), FORM)
    assert (password.status_code, "canary" in password.content.decode()) == (503, False)
    # What another site sends is not shown in our page.
    strict = Client(enforce_csrf_checks=True, raise_request_exception=False)
    strict.cookies = client.cookies
    assert "canary" not in strict.post("/p/lab/new", "name=canary", FORM).content.decode()


@pytest.mark.parametrize(
    ("cause", "word"),
    [
        (psycopg.errors.QueryCanceled(), "too slow"),
        (psycopg.errors.LockNotAvailable(), "too slow"),
        (psycopg.errors.TooManyConnections(), "busy"),
        (PoolTimeout(), "busy"),  # the server is there
        (psycopg.errors.DiskFull(), "full"),
        (psycopg.errors.DeadlockDetected(), "crossed"),
        (psycopg.OperationalError("connection refused"), "unreachable"),
        (psycopg.errors.AdminShutdown(), "unreachable"),
    ],
)
def test_outages_are_told_apart(db: None, cause: psycopg.Error, word: str) -> None:
    error = OperationalError("as Django wraps it")
    error.__cause__ = cause
    found = outage_of(error)
    assert found is not None
    assert found.word == word
    assert outage_of(ValueError()) is None


def test_healthz_tells_strangers_one_word(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Client().get("/healthz").json() == {"status": "ok"}

    class Gone:
        def cursor(self) -> None:
            from django.db import OperationalError

            raise OperationalError("secret address of the database")

    monkeypatch.setattr("webapp.views.connection", Gone())
    response = Client().get("/healthz")
    assert (response.status_code, response.json()) == (503, {"status": "database unreachable"})
    assert response["Retry-After"] == "5"


def test_calls_over_the_rate_are_429(
    people: People, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webapp.api.API_CALLS", 10)
    client, other = people.client("viewer"), people.client("editor")
    codes = [client.get("/api/v1/presets").status_code for _ in range(12)]
    assert codes == [200] * 10 + [429] * 2
    refused = client.get("/api/v1/presets")
    assert refused.headers["Retry-After"] == "1"
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert other.get("/api/v1/presets").status_code == 200


def test_request_errors_carry_their_sentence() -> None:
    error = RequestError(409, "No.", [{"path": "x", "message": "No."}])
    assert (str(error), error.status, error.errors) == ("No.", 409, [{"path": "x", "message": "No."}])
