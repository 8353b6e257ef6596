from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from webapp.embedded import smoke
from webapp.embedded.errors import EmbeddedError
from webapp.embedded.folder import DataFolder
from webapp.embedded.smoke import Client, Figures

GOOD = Figures(
    run=1,
    status="stopped",
    steps=5,
    reward_first=0.3,
    reward_last=0.4,
    pass1_first=0.31,
    pass1_last=0.35,
    trees=40,
    nodes=400,
    events=60,
    seconds=30.0,
)


def test_the_last_line_has_exactly_the_promised_keys() -> None:
    promised = "run status steps reward_first reward_last pass1_first pass1_last trees nodes events seconds"
    assert " ".join(json.loads(GOOD.as_json())) == promised


def test_a_good_run_is_good() -> None:
    assert GOOD.what_is_wrong(5) == []


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (replace(GOOD, steps=4), "the run made 4 steps and not 5"),
        (replace(GOOD, status="failed"), "the run ended as 'failed' and not as 'stopped'"),
        (replace(GOOD, status="running"), "the run ended as 'running' and not as 'stopped'"),
        (replace(GOOD, trees=0, nodes=0), "0 trees with 0 nodes were stored"),
        (replace(GOOD, reward_last=None), "no reward was recorded"),
        (replace(GOOD, pass1_first=None), "no evaluation was recorded"),
    ],
)
def test_each_thing_that_is_wrong_is_said(bad: Figures, sentence: str) -> None:
    assert bad.what_is_wrong(5) == [sentence]


class Api(BaseHTTPRequestHandler):
    """Answers as the API does, in the little that is asked here."""

    run: ClassVar = {
        "id": 7,
        "status": "running",
        "step": 0,
        "counts": {"trees": 2, "nodes": 9, "events": 11},
    }
    metrics: ClassVar = {"series": [{"name": "reward/mean", "value": [0.25, None, 0.5]}]}

    def do_GET(self) -> None:
        if self.headers["Authorization"] != "Bearer right":
            self.answer(401, {"detail": "This token is not known."})
        elif self.path.startswith("/api/v1/runs/7/metrics?"):
            self.answer(200, self.metrics)
        else:
            self.answer(200, self.run)
            # Each look finds the run one step further.
            type(self).run = self.run | {"step": int(str(self.run["step"])) + 1}

    def answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Api) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_figures_are_first_and_last_finite_values_of_each_series(url: str) -> None:
    figures = smoke.read_figures(Client(url, "right"), 7, 12.34)
    assert (figures.reward_first, figures.reward_last) == (0.25, 0.5)
    assert (figures.pass1_first, figures.pass1_last) == (None, None)
    assert (figures.trees, figures.nodes, figures.events, figures.seconds) == (2, 9, 11, 12.3)


def test_waiting_ends_when_the_steps_are_there(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke, "POLL_SECONDS", 0.0)
    seen: list[int] = []
    before = int(str(Api.run["step"]))
    client = Client(url, "right")
    smoke.wait_for_steps(client, 7, before + 3, 30.0, look=lambda run: seen.append(run["step"]) or False)
    assert seen == [before, before + 1, before + 2, before + 3]


def test_a_refusal_is_told_in_the_servers_own_words(url: str) -> None:
    with pytest.raises(EmbeddedError, match=r"GET /runs/7 was answered with 401: .*This token is not known"):
        Client(url, "wrong").get("/runs/7")


def test_a_server_that_is_away_is_told_too() -> None:
    with pytest.raises(EmbeddedError, match=r"GET /runs/7 was not answered"):
        Client("http://127.0.0.1:1", "right").get("/runs/7")


def test_a_socket_that_is_left_is_found(tmp_path: Path) -> None:
    folder = DataFolder.at(tmp_path / "data")
    folder.root.mkdir()
    assert smoke.what_is_left(folder) == []
    path = folder.root / "left.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
        assert smoke.what_is_left(folder) == [f"socket {path}", f"socket file {path}"]
    assert smoke.what_is_left(folder) == [f"socket file {path}"]
