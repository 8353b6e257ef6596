"""Creating a run by API and by form: what is stored, and everything that is refused, in words."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from html.parser import HTMLParser
from importlib.metadata import EntryPoint
from typing import Any
from urllib.parse import quote

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test import Client

from tests.webapp.material import People
from trainer.config import RunConfig
from trainer.judges import PLUGINS
from trainer.presets import PRESETS
from trainer.schema.data import JsonlData
from webapp import broker
from webapp.accounts.models import User
from webapp.projects.access import Role
from webapp.projects.models import Dataset, Membership, ModelSource, Project
from webapp.runs import services
from webapp.runs.config_form import FormField
from webapp.runs.form_views import PLUGIN_GROUP
from webapp.runs.models import Event, Run, Worker

URL = "/api/v1/projects/lab/runs"


def post(client: Client, body: Any, content_type: str = "application/json") -> Any:
    data = body if isinstance(body, str | bytes) else json.dumps(body)
    return client.post(URL, data, content_type=content_type)


def whole(config: RunConfig, **changes: Any) -> dict[str, Any]:
    return {**config.model_dump(mode="json"), **changes}


# ------------------------------------------------------------------------------------------------ what is
# stored


def test_a_created_run_is_queued_with_its_first_event(people: People, config: RunConfig) -> None:
    response = post(people.client("editor"), {"name": "  trial  ", "config": whole(config, seed=7)})
    assert response.status_code == 201
    run = Run.objects.get(id=response.json()["id"])
    assert (run.name, run.status, run.seed, run.preset, run.queue) == (
        "trial",
        "queued",
        7,
        "treerpo-tiny",
        "cpu",
    )
    assert (run.steps_total, run.last_seq, run.created_by) == (config.training.steps, 1, people.editor)
    assert RunConfig.model_validate(run.config) == config.model_copy(update={"seed": 7})
    assert run.config_sha256 == RunConfig.model_validate(run.config).sha256()
    event = Event.objects.get(run=run)
    assert (event.seq, event.kind, event.body["status"], event.body["actor"]) == (
        1,
        "status",
        "queued",
        "editor",
    )
    assert response.json()["latest"]["reward/mean"] is None


def test_a_short_config_is_stored_complete(people: People) -> None:
    response = post(people.client("editor"), {"name": "short", "config": {"training": {"steps": 3}}})
    assert response.status_code == 201
    assert response.json()["config"]["sampler"]["branching_per_depth"] == [4, 2, 2]


@pytest.mark.django_db(transaction=True)
def test_the_worker_is_told_after_the_commit_and_a_dead_broker_does_not_matter(
    people: People, project: Project, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []

    def send(run_id: int, queue: str) -> bool:
        assert Run.objects.filter(id=run_id).exists()
        sent.append((run_id, queue, connection.in_atomic_block))
        raise OSError("no broker")

    monkeypatch.setattr(broker, "send_train_run", send)
    run = services.create_run(project, people.editor, config, "x")
    assert sent == [(run.id, "cpu", False)]


def test_colours_go_round(people: People, project: Project, config: RunConfig) -> None:
    colours = [services.create_run(project, people.editor, config, f"{n}").colour for n in range(12)]
    assert colours == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2]


# ------------------------------------------------------------------------------------------------ double
# clicks


def test_the_same_key_makes_one_run(people: People, config: RunConfig) -> None:
    client = people.client("editor")
    body = {"name": "once", "config": whole(config), "idempotency_key": "k-1"}
    first, second = post(client, body), post(client, body)
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json()["id"] == second.json()["id"]
    assert Run.objects.count() == 1
    other = post(client, {**body, "name": "another"})
    assert other.status_code == 409
    assert "new key" in other.json()["detail"]


@pytest.mark.django_db(transaction=True)
def test_twenty_clicks_at_once_make_one_run(config: RunConfig) -> None:
    ModelSource.objects.create(slug="tiny-reasoner", name="Tiny", path="tiny-reasoner")
    project = Project.objects.create(slug="lab", name="Lab")
    user = User.objects.create_user("ada")
    Membership.objects.create(project=project, user=user, role=Role.EDITOR)

    def click(_: int) -> int:
        try:
            return services.create_run(project, user, config, "double-click", "k").id
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(click, range(20)))) == 1
    run = Run.objects.get()
    assert (run.last_seq, Event.objects.filter(run=run).count()) == (1, 1)


@pytest.mark.parametrize("key", ["", "x" * 65, "a\nb"])
def test_unusable_keys_are_refused(people: People, config: RunConfig, key: str) -> None:
    response = post(people.client("editor"), {"name": "x", "config": whole(config), "idempotency_key": key})
    assert response.status_code == 400
    assert response.json()["errors"][0]["path"] == "idempotency_key"


# ------------------------------------------------------------------------------------------------ names

HOSTILE_NAMES = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{7*7}}{% debug %}${7*7}",
    "'; DROP TABLE runs;--",
    "evil\u202egpj.exe",
    "</script><!--",
    "a\u2028b",
    "ﷺ" * 40,
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_names_are_kept_and_shown_inert(people: People, config: RunConfig, name: str) -> None:
    client = people.client("editor")
    response = post(client, {"name": name, "config": whole(config)})
    assert response.status_code == 201
    assert response.json()["name"] == name
    run = Run.objects.get()
    assert run.name == name
    for path in (
        "/p/lab/",
        f"/r/{run.id}/",
        f"/r/{run.id}/trees",
        f"/r/{run.id}/config",
        f"/r/{run.id}/events",
        "/workers/",
        "/queue/",
    ):
        page = client.get(path)
        assert page.status_code == 200
        text = page.content.decode()
        for danger in ("<script>alert", "<img src=x", "</script><!--", "{% debug"):
            if danger in name and danger != "{% debug":
                assert danger not in text, path
        assert "49" not in text.split("<title>")[1].split("</title>")[0]
    assert client.get(f"/api/v1/runs/{run.id}").json()["name"] == name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a\u0000b", "NUL"),
        ("\u200b\u200b\u200b", "no visible"),
        ("   ", "no visible"),
        ("", "no visible"),
        ("x" * 121, "121 letters"),
        ("x" * 10_000, "10000 letters"),
        ("a\nb", "line break"),
    ],
)
def test_unreadable_names_are_refused(people: People, config: RunConfig, name: str, said: str) -> None:
    response = post(people.client("editor"), {"name": name, "config": whole(config)})
    assert response.status_code == 400
    assert said in response.json()["detail"]
    assert Run.objects.count() == 0


def test_the_longest_name_is_accepted(people: People, config: RunConfig) -> None:
    assert post(people.client("editor"), {"name": "x" * 120, "config": whole(config)}).status_code == 201


# ------------------------------------------------------------------------------------------------ bodies


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"name":"x","config":{"training":{"learning_rate":NaN}}}', "NaN is not JSON"),
        (b'{"name":"x","config":{"training":{"learning_rate":-Infinity}}}', "-Infinity is not JSON"),
        (b'{"name":"x","config":{"training":{"learning_rate":1e400}}}', "too large"),
        (b'{"name":"x","config":{"seed":1,"seed":2}}', "'seed' stands twice"),
        (b'{"name":"x","name":"y","config":{}}', "'name' stands twice"),
        (b'{"name":"x","config":{"seed":' + b"1" * 5000 + b"}}", "5000 digits"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"name":"\\ud800x","config":{}}', "surrogate"),
        (b'{"name":"x","config":{"model":{"path":"a\\u0000b"}}}', "NUL"),
        (b'{"name":"\xff\xfe","config":{}}', "not UTF-8"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b"{not json", "not JSON"),
        (b'{"name":"x"} trailing', "not JSON"),
        (b"[]", ""),
        (b"null", ""),
        (b'"x"', ""),
        (b"", ""),
        (b'{"name":["x"],"config":{}}', "name"),
        (b'{"name":"x","config":[]}', "config"),
        (b'{"name":"x","config":{},"owner":1,"status":"running","lease_epoch":99}', "owner"),
    ],
)
def test_bad_bodies_are_400_with_a_sentence(people: People, body: bytes, said: str) -> None:
    began = time.thread_time()
    response = post(people.client("editor"), body)
    assert response.status_code == 400, response.content[:300]
    assert said in response.json()["detail"]
    assert time.thread_time() - began < 1
    assert Run.objects.count() == 0


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
def test_other_content_types_are_415(people: People, config: RunConfig, content_type: str) -> None:
    response = post(people.client("editor"), {"name": "x", "config": whole(config)}, content_type)
    assert response.status_code == 415
    assert Run.objects.count() == 0


def test_json_with_a_charset_is_json(people: People, config: RunConfig) -> None:
    response = post(
        people.client("editor"), {"name": "x", "config": whole(config)}, "application/json; charset=utf-8"
    )
    assert response.status_code == 201


def test_a_body_over_the_limit_is_413(people: People) -> None:
    response = post(people.client("editor"), b'{"name":"' + b"a" * 1_000_000 + b'"}')
    assert response.status_code == 413


def test_method_override_headers_are_ignored(people: People, run: Run) -> None:
    response = people.client("editor").get(
        f"/api/v1/runs/{run.id}", headers={"X-HTTP-Method-Override": "DELETE"}
    )
    assert response.status_code == 200
    assert Run.objects.filter(id=run.id).exists()


# ------------------------------------------------------------------------------------------------ configs


@pytest.mark.parametrize(
    ("config", "path", "said"),
    [
        (
            {"training": {"learning_rate": -1}},
            "training.learning_rate",
            "-1. Use a number above 0 and up to 0.1.",
        ),
        ({"training": {"steps": 0}}, "training.steps", "from 1 to 1,000,000"),
        ({"training": {"steps": 1_000_001}}, "training.steps", "from 1 to 1,000,000"),
        ({"training": {"steps": "5"}}, "training.steps", "“5”"),
        ({"training": {"steps": 5.5}}, "training.steps", "5.5"),
        ({"training": {"steps": True}}, "training.steps", "true"),
        ({"seed": 18446744073709551616}, "seed", "from 0 to 2,147,483,647"),
        ({"sampler": {"kind": "segment_tree", "depth": 10**18}}, "sampler.depth", "from 1 to 64"),
        (
            {"sampler": {"kind": "beam"}},
            "sampler",
            "“beam”. Use one of: flat, segment_tree, fork_tree, lookahead, search_tree.",
        ),
        ({"sampler": {"kind": "flat", "depth": 3}}, "sampler.depth", "no setting 'depth'"),
        (
            {"sampler": {"kind": "segment_tree", "depth": 3, "branching_per_depth": [4, 2]}},
            "sampler",
            "branching_per_depth has 2 numbers but depth is 3",
        ),
        (
            {"sampler": {"kind": "segment_tree", "depth": 3, "branching_per_depth": [64]}},
            "sampler",
            "nodes per tree",
        ),
        ({"extra_engine_args": "--trust-remote-code"}, "extra_engine_args", "no setting"),
        ({"verifier": {"kind": '__import__("os").system("id")'}}, "verifier", "Use one of: gsm8k, boxed"),
        ({"schema_version": 1}, "schema_version", "2"),
        (
            {"credit": {"scale": {"kind": "bernoulli_variance"}, "filter": {"kind": "none"}}},
            "credit",
            "Set the filter",
        ),
        ({"credit": {"scale": {"kind": "group_std", "ddof": 2}}}, "credit.scale.ddof", "0, 1"),
        ({"training": None}, "training", "null"),
    ],
)
def test_configs_out_of_bounds_name_the_field(
    people: People, config: dict[str, Any], path: str, said: str
) -> None:
    response = post(people.client("editor"), {"name": "x", "config": config})
    assert response.status_code == 400
    found = {error["path"]: error["message"] for error in response.json()["errors"]}
    assert said in found[path]
    assert Run.objects.count() == 0
    checked = people.client("viewer").post(
        "/api/v1/configs/validate", json.dumps({"config": config}), content_type="application/json"
    )
    assert checked.status_code == 200
    assert checked.json()["valid"] is False
    assert checked.json()["errors"] == response.json()["errors"]


@pytest.mark.parametrize(
    "model",
    [
        "../../etc/passwd",
        "file:///etc/passwd",
        "http://169.254.169.254/latest/meta-data/",
        "org/repo-with-custom-code",
        "org/model; rm -rf /",
        "/",
    ],
)
def test_models_are_chosen_by_name_from_a_list(people: People, model: str) -> None:
    response = post(people.client("editor"), {"name": "x", "config": {"model": {"path": model}}})
    assert response.status_code == 400
    assert response.json()["errors"] == [
        {"path": "model.path", "message": f"There is no base model called {model!r}. Known: tiny-reasoner."}
    ]


def test_a_run_that_asks_for_more_than_any_worker_has_is_refused(people: People) -> None:
    def asked(queue: str, processes: int, engines: int = 0) -> tuple[int, str]:
        resources = {"queue": queue, "processes": processes, "engine_processes": engines}
        config = {"resources": resources}
        response = post(people.client("editor"), {"name": "x", "config": config})
        errors = response.json().get("errors")
        return response.status_code, errors[0]["message"] if errors else ""

    assert asked("gpu.4", 4)[0] == 201  # nobody serves the class yet, so it may wait
    gpus = [{"index": number} for number in range(2)]
    Worker.objects.create(name="a", queues="gpu.4", machine={"cpus": 64, "gpus": gpus[:1]})
    two = Worker.objects.create(name="b", queues="gpu.4,cpu", machine={"cpus": 8, "gpus": gpus})
    status, message = asked("gpu.4", 4)
    assert status == 400
    assert message == (
        "4 processes need a GPU each, and the largest of the 2 workers of class gpu.4 has 2. Set "
        "resources.processes 2, or start a worker on a larger machine."
    )
    assert asked("gpu.4", 2)[0] == 201
    assert asked("gpu.4", 1, engines=1)[0] == 201
    assert asked("gpu.4", 1, engines=3)[1].startswith(
        "The run's 4 processes, 3 of them engines, need a GPU each"
    )
    assert asked("cpu", 9)[1].startswith("9 processes need a processor each, and the only worker of class")
    Worker.objects.filter(id=two.id).update(machine={"gpus": [], "gpu_trouble": "it did not answer"})
    assert asked("gpu.4", 4)[0] == 201

    body = json.dumps({"config": {"resources": {"queue": "cpu", "processes": 9}}})
    Worker.objects.filter(id=two.id).update(machine={"cpus": 8})
    checked = people.client("editor").post("/api/v1/configs/validate", body, content_type="application/json")
    assert [error["path"] for error in checked.json()["errors"]] == ["resources.processes"]
    shown = people.client("editor").get("/p/lab/new?resources.processes=9").content.decode()
    assert "9 processes need a processor each" in shown

    run = Run.objects.filter(queue="gpu.4").latest("id")
    Run.objects.filter(id=run.id).update(status="cancelled", ended_at=Now())
    Worker.objects.update(machine={"cpus": 8, "gpus": gpus})
    retried = people.client("editor").post(f"/api/v1/runs/{run.id}/retry")
    assert retried.status_code == 400
    assert "has 2" in retried.json()["detail"]


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"kind": "parquet", "path": "/etc"}, "path"),
        ({"kind": "parquet", "path": "/data/ours.jsonl"}, "path"),  # theirs, but of another kind
        ({"kind": "datasets", "name": "someone/their-set"}, "name"),
        ({"kind": "datasets", "name": "/srv/private"}, "name"),
    ],
)
def test_no_kind_of_data_leads_out_of_the_project(
    people: People, project: Project, data: dict[str, str], field: str
) -> None:
    spec = JsonlData(path="/data/ours.jsonl").model_dump(mode="json")
    Dataset.objects.create(project=project, slug="o", name="Ours", spec=spec)
    response = post(people.client("editor"), {"name": "x", "config": {"data": data}})
    assert response.status_code == 400
    (error,) = response.json()["errors"]
    assert error["path"] == f"data.{field}"
    assert "is not a dataset of Lab" in error["message"]
    assert Run.objects.count() == 0


def test_data_must_be_a_dataset_of_this_project(people: People, project: Project) -> None:
    elsewhere = Project.objects.get(slug="elsewhere")
    theirs, ours = JsonlData(path="/data/theirs.jsonl"), JsonlData(path="/data/ours.jsonl")
    Dataset.objects.create(project=elsewhere, slug="t", name="Theirs", spec=theirs.model_dump(mode="json"))
    Dataset.objects.create(project=project, slug="o", name="Ours", spec=ours.model_dump(mode="json"))
    client = people.client("editor")
    for path in (theirs.path, "/etc/passwd", "ours.jsonl"):
        response = post(client, {"name": "x", "config": {"data": {"kind": "jsonl", "path": path}}})
        assert response.status_code == 400
        assert response.json()["errors"][0]["path"] == "data.path"
    assert (
        post(client, {"name": "x", "config": {"data": {"kind": "jsonl", "path": ours.path}}}).status_code
        == 201
    )


# ------------------------------------------------------------------------------------------------ the form


class SentForm(HTMLParser):
    """What a browser sends of a page's form: ticked boxes alone, line breaks as CR LF, and of a textarea all
    but the line break that its tag is followed by."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.values: dict[str, str] = {}  # of two with one name the last, as Django reads them
        self._select = self._textarea = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        name = given.get("name", "")
        if tag == "input" and name and (given["type"] != "checkbox" or "checked" in given):
            self.values[name] = given.get("value", "on")
        elif tag == "select":
            self._select = name
        elif tag == "option" and (self._select not in self.values or "selected" in given):
            self.values[self._select] = given["value"]
        elif tag == "textarea":
            self._textarea = name
            self.values[name] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea":
            text = self.values[self._textarea].removeprefix("\n")
            self.values[self._textarea] = text.replace("\n", "\r\n")
            self._textarea = ""

    def handle_data(self, data: str) -> None:
        if self._textarea:
            self.values[self._textarea] += data


def form_values(client: Client, preset: str) -> dict[str, str]:
    """What a browser would send back if nobody touched the form."""
    page = client.get("/p/lab/new", {"preset": preset})
    assert page.status_code == 200
    for section in page.context["sections"]:
        for field in (*section.fields, *section.advanced):
            assert not field.changed
    values = SentForm(page.content.decode()).values
    del values["csrfmiddlewaretoken"]
    return values


@pytest.mark.parametrize("preset", PRESETS)
def test_an_untouched_form_gives_the_preset(people: People, preset: str) -> None:
    client = people.client("editor")
    response = client.post("/p/lab/new", form_values(client, preset))
    run = Run.objects.get()
    assert (response.status_code, response.headers["Location"]) == (302, f"/r/{run.id}/")
    assert RunConfig.model_validate(run.config) == PRESETS[preset].config


def test_what_was_typed_is_what_runs(people: People) -> None:
    client = people.client("editor")
    values = form_values(client, "treerpo-tiny") | {
        "name": "wide",
        "seed": "9",
        "sampler.depth": "2",
        "sampler.branching_per_depth": "8 4",
        "sampler.segment_tokens_per_depth": "32, 64",
        "training.steps": " 12 ",
        "training.learning_rate": "1e-4",
    }
    assert client.post("/p/lab/new", values).status_code == 302
    config = RunConfig.model_validate(Run.objects.get().config)
    assert config.sampler.branching == (8, 4)
    assert config.sampler.segment_tokens == (32, 64)
    assert (config.seed, config.training.steps, config.training.learning_rate) == (9, 12, 1e-4)


def test_boxes_and_texts_with_line_breaks_come_through_a_browser_as_they_are(people: People) -> None:
    client = people.client("editor")
    values = form_values(client, "hbpo-tiny")
    assert values["sampler.budget_sentence"] == "{budget}\r\n"
    assert (values["checkpoint.keep_best"], values["objective.mask_truncated"]) == ("true", "false")
    values |= {
        "sampler.budget_sentence": "\r\n  Use {budget} tokens.\r\n\r\n",
        "sampler.budgets": "",
        "reward.shaping.kind": "none",
        "credit.baseline.kind": "group_mean",
        "credit.baseline.group": "prompt",
        "credit.baseline.single": "none",
        "credit.baseline.shift": "0",
        "checkpoint.keep_best": "false",
        "objective.mask_truncated": "true",
    }
    assert client.post("/p/lab/new", values).status_code == 302
    config = RunConfig.model_validate(Run.objects.get().config)
    assert config.sampler.model_dump()["budget_sentence"] == "\n  Use {budget} tokens.\n\n"
    assert config.sampler.model_dump()["budgets"] == ()
    assert config.checkpoint.keep_best is False
    assert config.objective.model_dump()["mask_truncated"] is True


def test_a_box_that_was_not_in_the_form_is_asked_for_and_not_taken_as_empty(people: People) -> None:
    client = people.client("editor")
    values = form_values(client, "treerpo-tiny")
    del values["checkpoint.keep_best"]
    page = client.post("/p/lab/new", values)
    assert page.status_code == 400
    assert [path for path, _, _ in page.context["errors"]] == ["checkpoint.keep_best"]


def test_a_text_that_is_too_long_is_refused_and_not_cut(people: People) -> None:
    client = people.client("editor")
    values = form_values(client, "hbpo-tiny") | {"sampler.budget_sentence": "{budget}" + "x" * 5000}
    page = client.post("/p/lab/new", values)
    assert page.status_code == 400
    assert [path for path, _, _ in page.context["errors"]] == ["sampler.budget_sentence"]


def test_rules_across_sections_are_told_at_the_top_with_links(people: People) -> None:
    client = people.client("editor")
    values = form_values(client, "treerpo-tiny") | {"reward.incorrect": "-1"}
    page = client.post("/p/lab/new", values)
    assert page.status_code == 400
    (error,) = page.context["general"]
    links = dict(piece for piece in error["pieces"] if piece[1])
    assert links["credit.scale"] == "field-credit-scale-kind"
    assert links["reward.correct"] == "field-reward-correct"
    assert "".join(text for text, _ in error["pieces"]) == page.context["errors"][0][1]
    html = page.content.decode()
    assert '<a href="#field-credit-scale-kind">credit.scale</a>' in html
    # Of one section, names are taken inside it.
    values |= {"reward.incorrect": "0", "credit.filter.kind": "none"}
    (error,) = client.get("/p/lab/new", values).context["general"]
    assert ("filter", "field-credit-filter-kind") in error["pieces"]


def test_the_picker_lists_every_preset_once_and_marks_the_chosen_one(people: People) -> None:
    page = people.client("editor").get("/p/lab/new", {"preset": "step-grpo+-tiny"})
    groups = page.context["preset_groups"]
    listed = [slug for g in groups for row in g.rows for slug in (row.first, *(s for _, s in row.others))]
    assert sorted(listed) == sorted(PRESETS)
    assert [row.name for g in groups for row in g.rows if row.current] == ["step-GRPO+"]
    html = page.content.decode()
    for slug in PRESETS:
        assert f'href="?preset={quote(slug)}"' in html
    picker = html[html.index('id="picker"') : html.index('id="run-form"')]
    assert picker.count('aria-current="true"') == 1
    assert PRESETS["step-grpo+-tiny"].formula in unescape(html)


def test_a_double_click_on_the_form_makes_one_run(people: People) -> None:
    client = people.client("editor")
    values = form_values(client, "treerpo-tiny")
    assert (
        client.post("/p/lab/new", values).headers["Location"]
        == client.post("/p/lab/new", values).headers["Location"]
    )
    assert Run.objects.count() == 1


def test_errors_come_back_beside_the_fields_and_keep_what_was_typed(people: People) -> None:
    client = people.client("editor")
    values = form_values(client, "treerpo-tiny") | {
        "name": "\u200b",
        "training.steps": "many",
        "training.learning_rate": "NaN",
        "sampler.branching_per_depth": "4, 0, 2",
    }
    page = client.post("/p/lab/new", values)
    assert page.status_code == 400
    fields = {
        field.path: field
        for section in page.context["sections"]
        for field in (*section.fields, *section.advanced)
    }
    assert fields["training.steps"].value == "many"
    assert fields["training.steps"].error == "steps is “many”. Use a whole number from 1 to 1,000,000."
    assert "not a finite number" in fields["training.learning_rate"].error
    assert (
        fields["sampler.branching_per_depth"].error
        == "number 2 of branching_per_depth is “0”. Use a whole number from 1 to 64."
    )
    assert fields["sampler.depth"].error == ""
    listed = {path: field_id for path, _, field_id in page.context["errors"]}
    assert listed["training.steps"] == "field-training-steps"
    assert listed["sampler.branching_per_depth.1"] == "field-sampler-branching_per_depth"
    assert page.context["estimate"] is None
    assert Run.objects.count() == 0


def test_a_new_run_is_offered_a_name_that_is_free(people: People) -> None:
    client = people.client("editor")
    for expected in ("treerpo-tiny-1", "treerpo-tiny-2"):
        values = form_values(client, "treerpo-tiny")
        assert values["name"] == expected
        client.post("/p/lab/new", values)
    assert form_values(client, "grpo-tiny")["name"] == "grpo-tiny-1"


def test_a_rule_about_several_knobs_links_the_one_to_change(people: People) -> None:
    client = people.client("editor")
    values = form_values(client, "treerpo-tiny") | {"sampler.branching_per_depth": "1, 1, 1"}
    page = client.post("/p/lab/new", values).content.decode()
    summary = page[page.index("to change before this run can start") :].split("</div>")[0]
    assert 'href="#field-sampler-branching_per_depth"' in summary
    assert 'href="#field-sampler-depth"' not in summary


def test_a_name_nobody_can_read_comes_back_at_its_field(people: People) -> None:
    client = people.client("editor")
    page = client.post("/p/lab/new", form_values(client, "treerpo-tiny") | {"name": "\u200b"})
    assert page.status_code == 400
    assert "no visible letter" in page.context["own_fields"][0].error


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_values_come_back_inert(people: People, name: str) -> None:
    client = people.client("editor")
    page = client.post(
        "/p/lab/new", form_values(client, "treerpo-tiny") | {"name": name, "training.steps": name}
    )
    assert page.status_code == 400
    text = page.content.decode()
    for danger in ("<script>alert", "<img src=x", "</script><!--"):
        assert danger not in text


def test_a_change_of_kind_shows_its_fields_before_anything_runs(people: People) -> None:
    client = people.client("editor")
    values = form_values(client, "treerpo-tiny") | {"sampler.kind": "flat"}
    page = client.post("/p/lab/new", values)
    assert page.status_code == 400
    assert {path for path, _, _ in page.context["errors"]} == {
        "sampler.group_size",
        "sampler.max_tokens",
        "sampler.merge",
        "sampler.budgets",
        "sampler.budget_sentence",
    }
    assert Run.objects.count() == 0
    shown = {f.path: f.value for s in page.context["sections"] for f in (*s.fields, *s.advanced)}
    assert "sampler.depth" not in shown
    # Flat answers have no siblings; TreeRPO's credit over them is a tree of depth one, which is allowed.
    assert client.post("/p/lab/new", values | shown | {"sampler.group_size": "5"}).status_code == 302
    assert Run.objects.get().config["sampler"] == {
        "kind": "flat",
        "group_size": 5,
        "max_tokens": 96,
        "merge": "none",
        "budgets": [],
        "budget_sentence": "Answer in {budget} tokens.\n",
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
    }


def test_the_address_fills_the_form(people: People) -> None:
    page = people.client("editor").get(
        "/p/lab/new?preset=treerpo-tiny&training.steps=20&sampler.kind=flat&sampler.group_size=3"
    )
    fields = {f.path: f for s in page.context["sections"] for f in (*s.fields, *s.advanced)}
    assert (fields["training.steps"].value, fields["training.steps"].changed) == ("20", True)
    assert fields["sampler.group_size"].value == "3"
    assert page.context["estimate"]["leaves_per_tree"] == 3
    assert page.context["errors"] == []


def test_verifiers_of_ones_own_are_offered_where_they_are_installed(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = people.client("editor")
    assert PLUGIN_GROUP == PLUGINS

    def fields() -> dict[str, FormField]:
        page = client.get("/p/lab/new?verifier.kind=plugin")
        return {f.path: f for s in page.context["sections"] for f in (*s.fields, *s.advanced)}

    assert "plugin" not in [kind for kind, _ in fields()["verifier.kind"].choices]
    assert fields()["verifier.kind"].value == "gsm8k"
    mine = EntryPoint("mine", "somewhere:judge", "arborist.verifiers")
    monkeypatch.setattr("webapp.runs.form_views.entry_points", lambda **_: [mine])
    assert fields()["verifier.kind"].value == "plugin"
    assert list(fields()["verifier.name"].choices) == [("mine", "mine")]


def test_unknown_presets_are_404(people: People) -> None:
    assert people.client("editor").get("/p/lab/new?preset=nothing").status_code == 404


def test_datasets_are_offered_by_name(people: People, project: Project) -> None:
    client = people.client("editor")
    page = client.get("/p/lab/new?data.kind=jsonl")
    kinds = next(f for s in page.context["sections"] for f in s.fields if f.path == "data.kind")
    assert [value for value, _ in kinds.choices] == ["chain", "graph"]
    spec = JsonlData(path="/data/ours.jsonl").model_dump(mode="json")
    Dataset.objects.create(project=project, slug="o", name="Ours", spec=spec)
    page = client.get("/p/lab/new?data.kind=jsonl&data.path=/data/ours.jsonl")
    field = next(f for s in page.context["sections"] for f in s.fields if f.path == "data.path")
    assert list(field.choices) == [("/data/ours.jsonl", "Ours")]
