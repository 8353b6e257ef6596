"""`arborist` against a real server: the verbs, the errors, the exit statuses."""

from __future__ import annotations

import json
import re
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from django.db.models.functions import Now

from client.account import account
from client.cli import main
from client.errors import UnreachableError, UsageError
from client.server import Server
from client.words import duration, safe
from tests.workers.factories import make_run, make_user
from webapp.accounts.models import ApiToken
from webapp.accounts.services import create_token
from webapp.projects.models import ModelSource, Project
from webapp.runs.models import Checkpoint, Run, Worker

Scope = ApiToken.Scope


@pytest.fixture(autouse=True)
def _nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ARBORIST_URL", "ARBORIST_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ARBORIST_CONFIG", str(tmp_path / "config.toml"))


@pytest.fixture
def lab(transactional_db: None) -> Project:
    ModelSource.objects.create(slug="tiny-reasoner", name="Tiny reasoner", path="tiny-reasoner")
    return Project.objects.create(slug="lab", name="Lab")


@pytest.fixture
def arborist(
    lab: Project, live_server: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Call the command as an editor of the lab; returns (status, stdout, stderr)."""
    user = make_user("editor", lab)
    monkeypatch.setenv("ARBORIST_URL", live_server.url)
    monkeypatch.setenv("ARBORIST_TOKEN", create_token(user, "cli", Scope.WRITE, Scope.CONTROL))

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(arguments)
        found = capsys.readouterr()
        return status, found.out, found.err

    return call


def test_a_run_is_made_read_paused_resumed_stopped_and_retried(arborist: Any, tmp_path: Path) -> None:
    file = tmp_path / "short.yaml"
    file.write_text("preset: treerpo-tiny\n")
    status, out, _ = arborist("run", "create", "-f", str(file), "--set", "training.steps=7")
    run = Run.objects.get()
    assert (status, run.name, run.steps_total, run.project.slug) == (0, "short", 7, "lab")
    assert (f"run {run.id} short: queued" in out, f"/r/{run.id}/" in out) == (True, True)
    assert "short" in arborist("run", "ls")[1]
    assert "0/7" in arborist("run", "ls", "--status", "queued")[1]
    assert arborist("run", "ls", "--status", "running")[1] == "No runs.\n"
    assert "treerpo-tiny" in arborist("run", "show", str(run.id))[1]
    for verb, then in (("pause", "paused"), ("resume", "queued"), ("stop", "cancelled"), ("retry", "queued")):
        status, out, err = arborist("run", verb, str(run.id))
        run.refresh_from_db()
        assert (status, run.status, then in out) == (0, then, True), (verb, err)
    shown = json.loads(arborist("run", "show", str(run.id), "--json")[1])
    assert (shown["id"], shown["status"]) == (run.id, "queued")


def test_stop_now_is_a_stronger_wish(arborist: Any, lab: Project) -> None:
    run = make_run(lab, status="running", lease_until=Now(), lease_epoch=1)
    assert arborist("run", "stop", str(run.id), "--now")[0] == 0
    run.refresh_from_db()
    assert run.wish == "kill"


def test_fork_begins_with_the_newest_kept_checkpoint(
    arborist: Any, lab: Project, settings: Any, tmp_path: Path
) -> None:
    settings.DATA_DIR = tmp_path
    run = make_run(lab, status="failed", step=3, ended_at=Now())
    for step in (1, 2):
        path = f"attempt-1/checkpoints/step-{step}"
        Checkpoint.objects.create(run=run, epoch=1, step=step, seq=step, path=path, size_bytes=9)
        (tmp_path / "runs" / str(run.id) / path).mkdir(parents=True)
        (tmp_path / "runs" / str(run.id) / path / "manifest.json").write_text("{}")
    changes = ("--set", "training.steps=50", "--set", "training.learning_rate=1e-5")
    status, out, err = arborist("run", "fork", str(run.id), *changes)
    new = Run.objects.get(parent=run)
    assert (status, new.parent_step, new.steps_total) == (0, 2, 50), err
    assert new.config["training"]["learning_rate"] == 1e-5
    assert f"run {new.id} {run.name} fork: queued from step 2" in out
    assert arborist("run", "fork", str(run.id), "--step", "9")[2].endswith("Kept: 2, 1.\n")


def test_clone_has_the_config_of_the_run_and_begins_anew(arborist: Any, lab: Project) -> None:
    run = make_run(lab, status="failed", step=3, ended_at=Now())
    status, out, err = arborist("run", "clone", str(run.id), "--set", "seed=9")
    new = Run.objects.get(cloned_from=run)
    assert (status, new.seed, new.step, new.steps_total) == (0, 9, 0, run.steps_total), err
    assert f"run {new.id} {new.name}: queued" in out
    shown = arborist("run", "show", str(new.id))[1]
    assert f"config of run {run.id}\n" in shown
    assert re.search(r"by \S+, \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC\n", shown)


def test_watch_prints_what_moves_and_tells_the_end_by_its_status(arborist: Any, lab: Project) -> None:
    run = make_run(lab, status="failed", reason="Loss became NaN.", step=3, steps_total=9, ended_at=Now())
    status, out, _ = arborist("run", "watch", str(run.id), "--every", "0.01")
    assert status == 5
    assert out.splitlines() == [f"run {run.id} failed · step 3/9 · ETA -", "Loss became NaN."]
    Run.objects.filter(id=run.id).update(status="succeeded", reason="")
    status, out, _ = arborist("run", "watch", str(run.id), "--json")
    assert (status, json.loads(out)["status"]) == (0, "succeeded")


def test_queue_and_workers_as_text(arborist: Any, lab: Project) -> None:
    run = make_run(lab, priority=2)
    gpu = {"name": "NVIDIA H100", "memory_used_bytes": 2**30, "memory_bytes": 80 * 2**30}
    Worker.objects.create(name="w-1", queues="gpu", machine={"gpus": [gpu], "gpu_trouble": ""})
    queue = arborist("queue")[1]
    assert ("No worker serves queue cpu." in queue, run.name in queue) == (True, True)
    assert "NVIDIA H100 1.0 GB/80.0 GB" in arborist("workers")[1]
    assert json.loads(arborist("queue", "--json")[1])["classes"][0]["waiting"][0]["priority"] == 2


# ------------------------------------------------------------------------------------------------ errors


def test_refusals_come_in_the_servers_words(arborist: Any, lab: Project, tmp_path: Path) -> None:
    status, out, err = arborist("run", "show", "987654")
    assert (status, out, err) == (3, "", "arborist run: There is nothing here that you may see.\n")
    done = make_run(lab, status="succeeded", ended_at=Now())
    status, _, err = arborist("run", "pause", str(done.id))
    assert (status, "already ended" in err) == (3, True)
    file = tmp_path / "bad.yaml"
    file.write_text("training: {steps: many}\n")
    status, _, err = arborist("run", "create", "-f", str(file))
    assert (status, "training.steps" in err) == (2, True)
    assert arborist("run", "create", "-f", str(tmp_path / "none.yaml"))[0] == 2


def test_a_token_that_will_not_do_says_what_to_do(
    arborist: Any, lab: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(lab)
    monkeypatch.setenv("ARBORIST_TOKEN", create_token(make_user("editor", lab), "x", Scope.READ))
    status, _, err = arborist("run", "stop", str(run.id))
    assert (status, "needs the scope 'control'" in err) == (3, True)
    monkeypatch.setenv("ARBORIST_TOKEN", "arb_nonsense")
    status, _, err = arborist("queue")
    assert (status, "unknown, expired or revoked" in err, "arb_nonsense" in err) == (2, True, False)


def test_nothing_set_and_nobody_there(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert main(["queue"]) == 2
    assert "ARBORIST_URL and ARBORIST_TOKEN not set" in capsys.readouterr().err
    monkeypatch.setenv("ARBORIST_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("ARBORIST_TOKEN", "arb_x")
    with pytest.raises(UnreachableError, match="cannot be reached"):
        Server(account(), sleep=lambda _: None).get("/queue")


@pytest.mark.parametrize(
    "url",
    [
        "http://lab.example",
        "http://127.lab.example",
        "lab.example",
        "ftp://x",
        "https://a:b@x",
        "https://x/?a=1",
    ],
)
def test_addresses_that_would_give_the_token_away_are_refused(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("ARBORIST_URL", url)
    monkeypatch.setenv("ARBORIST_TOKEN", "arb_x")
    with pytest.raises(UsageError):
        account()


def test_a_config_file_must_be_private(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('url = "https://lab.example/"\ntoken = "arb_x"\nproject = "lab"\n')
    file.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        account()
    file.chmod(stat.S_IRUSR | stat.S_IWUSR)
    found = account()
    assert (found.url, found.token, found.project, "arb_x" in repr(found)) == (
        "https://lab.example", "arb_x", "lab", False,
    )  # fmt: skip


def test_the_token_of_the_file_goes_to_the_server_of_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "config.toml"
    file.write_text('url = "https://lab.example/"\ntoken = "arb_x"\n')
    file.chmod(0o600)
    monkeypatch.setenv("ARBORIST_URL", "https://lab.example")
    assert account().token == "arb_x"
    monkeypatch.setenv("ARBORIST_URL", "https://elsewhere.example")
    with pytest.raises(UsageError, match=r"is for https://lab\.example"):
        account()
    monkeypatch.setenv("ARBORIST_TOKEN", "arb_y")
    assert (account().url, account().token) == ("https://elsewhere.example", "arb_y")


@pytest.fixture
def stub() -> Iterator[Any]:
    """A server that answers as it is told: a list of (status, headers, body); it keeps what it was sent."""

    class Handler(BaseHTTPRequestHandler):
        answers: list[tuple[int, dict[str, str], bytes]] = []  # noqa: RUF012
        asked: list[str] = []  # noqa: RUF012

        def do_GET(self) -> None:
            self.asked.append(f"{self.command} {self.path}")
            status, headers, body = self.answers.pop(0)
            self.send_response(status)
            for name, value in ({"Content-Type": "application/json"} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Handler.url = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    yield Handler
    server.shutdown()
    server.server_close()


def client_of(stub: Any, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("ARBORIST_URL", stub.url)
    monkeypatch.setenv("ARBORIST_TOKEN", "arb_secret")
    return Server(account(), sleep=lambda _: None)


def test_redirects_are_not_followed(stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.answers[:] = [(302, {"Location": f"{stub.url}/elsewhere"}, b"")]
    with pytest.raises(UsageError, match="sends calls on"):
        client_of(stub, monkeypatch).get("/queue")
    assert stub.asked == ["GET /api/v1/queue"]


def test_a_reading_is_tried_again_and_an_order_only_when_it_was_not_taken(
    stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, busy, away = client_of(stub, monkeypatch), (429, {}, b"{}"), (503, {}, b"{}")
    stub.asked.clear()
    stub.answers[:] = [away, busy, (200, {}, b'{"a": 1}')]
    assert client.get("/x") == {"a": 1}
    stub.answers[:] = [busy, (200, {}, b"2")]
    assert client.post("/x") == 2
    stub.answers[:] = [away, (200, {}, b"3")]
    with pytest.raises(UnreachableError):
        client.post("/x")
    assert len(stub.asked) == 6


def test_what_is_printed_cannot_move_the_cursor() -> None:
    assert safe("a\x1b[2Jb\r\n\u202e") == "a\ufffd[2Jb\ufffd\ufffd\ufffd"
    assert [duration(value) for value in (None, 0, 59.6, 3600, 90061)] == [
        "-",
        "0 s",
        "1 min",
        "1 h",
        "1 d 1 h",
    ]


def test_whatever_answers_cannot_steer_the_terminal(
    stub: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A server's errors and addresses, too: who answers at an address need not be Arborist."""
    monkeypatch.setenv("ARBORIST_URL", stub.url)
    monkeypatch.setenv("ARBORIST_TOKEN", "arb_secret")
    hostile = "a\x1b[2J\u202eb"
    problem = json.dumps({"detail": hostile, "errors": [{"path": "x", "message": hostile}] * 2}).encode()
    made = json.dumps({"id": 1, "name": "x", "status": "queued", "url": f"/r/{hostile}"}).encode()
    kept = json.dumps([{"id": 1, "step": 2}]).encode()
    stub.answers[:] = [(409, {}, problem), (200, {}, kept), (201, {}, made)]
    main(["run", "pause", "1"])
    main(["run", "fork", "1", "--name", "x"])
    told = capsys.readouterr()
    assert (told.err.count("\ufffd[2J"), told.out.count("\ufffd[2J")) == (3, 1)
    assert not {"\x1b", "\u202e"} & set(told.out + told.err)
    assert len(told.err.splitlines()) == 3  # one for each error, as it is meant


def test_what_needs_no_server_still_works(capsys: Any) -> None:
    assert main(["tokens", "--branching", "2,2", "--segment", "4"]) == 0
    assert "nodes" in capsys.readouterr().out
