"""The demo without a browser: is there a run that learns, trees that were stored, and nothing left
afterwards?

The figures come out of the database through the HTTP API, with a bearer token, as any client would read them.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from webapp.embedded import processes
from webapp.embedded.errors import EmbeddedError
from webapp.embedded.folder import DataFolder
from webapp.embedded.postgres import PostgresServer

POLL_SECONDS = 0.5
ENDED = ("succeeded", "stopped", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Figures:
    """What `make smoke` prints, as JSON, in its last line."""

    run: int
    status: str
    steps: int
    reward_first: float | None
    reward_last: float | None
    pass1_first: float | None
    pass1_last: float | None
    trees: int
    nodes: int
    events: int
    seconds: float

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    def what_is_wrong(self, steps_wanted: int) -> list[str]:
        """One sentence for each thing that should be otherwise."""
        wrong = []
        if self.steps < steps_wanted:
            wrong.append(f"the run made {self.steps} steps and not {steps_wanted}")
        if self.status not in ("stopped", "succeeded"):
            wrong.append(f"the run ended as {self.status!r} and not as 'stopped'")
        if self.trees < 1 or self.nodes <= self.trees:
            wrong.append(f"{self.trees} trees with {self.nodes} nodes were stored")
        if self.reward_first is None or self.reward_last is None:
            wrong.append("no reward was recorded")
        if self.pass1_first is None:
            wrong.append("no evaluation was recorded")
        return wrong


@dataclass(frozen=True, slots=True)
class Client:
    """The few calls that are needed here. Raises EmbeddedError with the server's own words."""

    url: str
    token: str

    def get(self, path: str) -> Any:  # JSON
        return self._call("GET", path)

    def post(self, path: str) -> Any:  # JSON
        return self._call("POST", path)

    def _call(self, method: str, path: str) -> Any:
        request = urllib.request.Request(  # noqa: S310 (an http URL that we made)
            f"{self.url}/api/v1{path}",
            method=method,
            data=b"{}" if method == "POST" else None,
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            text = error.read(2000).decode("utf-8", errors="replace")
            raise EmbeddedError(f"{method} {path} was answered with {error.code}: {text}") from error
        except OSError as error:
            raise EmbeddedError(f"{method} {path} was not answered: {error}") from error


def wait_for_steps(
    client: Client, run_id: int, steps: int, seconds: float, *, look: Callable[[Any], bool]
) -> None:
    """Until the run has so many steps or has ended, or the time is over. `look` sees each state on the way
    and says whether to give up.
    """
    _wait(client, run_id, seconds, look, lambda run: run["step"] >= steps or run["status"] in ENDED)


def wait_for_end(client: Client, run_id: int, seconds: float, *, look: Callable[[Any], bool]) -> None:
    """Until the run has ended, or the time is over."""
    _wait(client, run_id, seconds, look, lambda run: run["status"] in ENDED)


def _wait(
    client: Client, run_id: int, seconds: float, look: Callable[[Any], bool], done: Callable[[Any], bool]
) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        run = client.get(f"/runs/{run_id}")
        if look(run) or done(run):
            return
        time.sleep(POLL_SECONDS)


def read_figures(client: Client, run_id: int, seconds: float) -> Figures:
    """The run's figures as the API gives them; `seconds` is how long the whole took."""
    run = client.get(f"/runs/{run_id}")
    answer = client.get(f"/runs/{run_id}/metrics?names=reward/mean,eval/pass1_sampled")
    values = {series["name"]: [v for v in series["value"] if v is not None] for series in answer["series"]}
    reward, pass1 = values.get("reward/mean", []), values.get("eval/pass1_sampled", [])
    return Figures(
        run=run["id"],
        status=run["status"],
        steps=run["step"],
        reward_first=reward[0] if reward else None,
        reward_last=reward[-1] if reward else None,
        pass1_first=pass1[0] if pass1 else None,
        pass1_last=pass1[-1] if pass1 else None,
        trees=run["counts"]["trees"],
        nodes=run["counts"]["nodes"],
        events=run["counts"]["events"],
        seconds=round(seconds, 1),
    )


def what_is_left(folder: DataFolder) -> list[str]:
    """Processes and sockets of a stack that has stopped, in words. There should be none."""
    left = [f"process {process.pid}" for process in processes.marked(folder.digest)]
    left += [f"database process {process.pid}" for process in PostgresServer(folder).backends()]
    # Every bound unix socket of the machine, the path last.
    for line in Path("/proc/net/unix").read_text(encoding="utf-8", errors="replace").splitlines():
        path = line.split(maxsplit=7)[-1]
        if path.startswith((f"{folder.root}/", f"{folder.side}/")):
            left.append(f"socket {path}")
    left += [f"socket file {path}" for path in folder.root.rglob("*") if path.is_socket()]
    return left
