"""The whole stack with real processes, as `make up` starts it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from webapp.embedded import processes, smoke
from webapp.embedded.errors import EmbeddedError
from webapp.embedded.folder import DataFolder
from webapp.embedded.postgres import PostgresServer
from webapp.embedded.processes import Identity
from webapp.embedded.stack import HOST, TOGETHER_SECONDS, Interrupts, choose_port, is_alarming

pytestmark = pytest.mark.process

REPOSITORY = Path(__file__).resolve().parents[2]
UP_SECONDS = 90.0


class Up:
    """A running `manage.py up` or `demo`, and what it has said so far."""

    def __init__(self, folder: DataFolder, *arguments: str, env: dict[str, str] | None = None) -> None:
        ours = ("ARBORIST_DATABASE_URL", "ARBORIST_BROKER_URL", "ARBORIST_SECRET_KEY")
        base = {name: value for name, value in os.environ.items() if name not in ours}
        base |= {"ARBORIST_DATA_DIR": str(folder.root), "PYTHONUNBUFFERED": "1"} | (env or {})
        self.folder = folder
        self.output = Path(tempfile.mkstemp(prefix="arborist-up-")[1])
        with self.output.open("wb") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "manage.py", *arguments],
                cwd=REPOSITORY,
                env=base,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, pattern: str, seconds: float = UP_SECONDS) -> re.Match[str]:
        deadline = time.monotonic() + seconds
        while (found := re.search(pattern, self.said())) is None:
            assert self.popen.poll() is None, f"it ended and said:\n{self.said()}"
            assert time.monotonic() < deadline, f"not said within {seconds} s: {pattern}\n{self.said()}"
            time.sleep(0.05)
        return found

    def wait_until_up(self) -> int:
        """Returns the port."""
        return int(self.wait_for(r"Arborist is up: http://127\.0\.0\.1:(\d+)")[1])

    def ends(self, seconds: float = 60.0) -> int:
        return self.popen.wait(seconds)

    def children(self) -> dict[str, Identity]:
        record = processes.read_record(self.folder.processes)
        return dict(record)


@pytest.fixture
def folder() -> Iterator[DataFolder]:
    above = Path(tempfile.mkdtemp(prefix="arborist-stack-"))
    above.chmod(0o711)
    folder = DataFolder.at(above / "data")
    try:
        yield folder
    finally:
        processes.end_marked(folder.digest)
        PostgresServer(folder).end_leftovers()
        folder.remove()
        above.rmdir()


@contextmanager
def started(folder: DataFolder, *arguments: str, env: dict[str, str] | None = None) -> Iterator[Up]:
    up = Up(folder, *arguments, env=env)
    try:
        yield up
    finally:
        if up.popen.poll() is None:
            up.popen.kill()
            up.popen.wait()
        up.output.unlink()


def status_of(port: int) -> int | None:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()


def soon(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    return processes.wait_until(condition, seconds)


def test_it_comes_up_heals_itself_and_leaves_nothing_behind(folder: DataFolder) -> None:
    with started(folder, "up") as up:
        port = up.wait_until_up()
        assert status_of(port) == 200
        children = up.children()
        assert list(children) == ["database", "broker", "web", "sweeper", "worker", "exporter", "prober"]

        # On this machine only: the one TCP port is on the loopback, everything else is a socket file.
        listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=False).stdout
        ours = [
            line
            for line in listening.splitlines()
            if any(f"pid={identity.pid}," in line for identity in children.values())
        ]
        assert [line.split()[3] for line in ours] in ([f"{HOST}:{port}"], [])  # [] where there is no `ss`

        # A second supervisor is refused in one sentence that names the first.
        with started(folder, "up") as second:
            assert second.ends() == 1
            (sentence,) = second.said().strip().splitlines()
            assert sentence.startswith(f"CommandError: Arborist is already running on {folder.root} (process")
            assert f"process {up.popen.pid}, http://127.0.0.1:{port}" in sentence

        # Each part is started again when it dies.
        for name in ("web", "sweeper", "worker", "exporter", "prober", "broker", "database"):
            before = up.children()[name]
            os.kill(before.pid, signal.SIGKILL)
            up.wait_for(f"the {name} process ended \\(signal SIGKILL\\); starting it again in 1 s", 10.0)
            assert soon(lambda name=name, before=before: up.children().get(name, before) != before, 15.0)
        assert soon(lambda: status_of(port) == 200)

        up.popen.send_signal(signal.SIGINT)
        assert up.ends() == 0
        assert up.said().rstrip().endswith("stopped")
        assert status_of(port) is None
        assert smoke.what_is_left(folder) == []
    assert "database system is shut down" in (folder.logs / "database.log").read_text()


def test_it_stops_in_reverse_order(folder: DataFolder) -> None:
    with started(folder, "up") as up:
        up.wait_until_up()
        alive = dict(up.children())
        ended: list[str] = []
        up.popen.terminate()
        while up.popen.poll() is None:
            ended += [name for name, who in alive.items() if name not in ended and not who.is_alive()]
            time.sleep(0.002)
        ended += [name for name in alive if name not in ended]
        assert ended == ["prober", "exporter", "worker", "sweeper", "web", "broker", "database"]
        assert up.popen.returncode == 0
        assert smoke.what_is_left(folder) == []


def test_a_killed_supervisor_takes_a_training_run_with_it_and_the_next_goes_on(folder: DataFolder) -> None:
    with started(folder, "demo") as demo:
        demo.wait_for(r"http://127\.0\.0\.1:\d+/login/\S+")
        assert soon(lambda: step_of_the_run(folder) >= 1, 120.0)
        trainer = the_trainer(folder)
        # The worker, its pool's child and the trainer: three processes deep.
        pool = parent_of(trainer)
        worker = parent_of(pool)
        assert worker == demo.children()["worker"].pid
        assert parent_of(worker) == demo.popen.pid
        demo.popen.kill()
        assert soon(lambda: not running(folder), 15.0)
        assert all(Identity.of(pid) is None for pid in (trainer, pool, worker))
    assert "database system is shut down" in (folder.logs / "database.log").read_text()
    with started(folder, "demo") as again:
        again.wait_for(r"http://127\.0\.0\.1:\d+/login/\S+")
        done = step_of_the_run(folder)
        assert done >= 1
        assert soon(lambda: step_of_the_run(folder) > done, 120.0)
        trainer = the_trainer(folder)
        again.popen.send_signal(signal.SIGINT)
        assert again.ends() == 0
        assert Identity.of(trainer) is None
        assert smoke.what_is_left(folder) == []


def step_of_the_run(folder: DataFolder) -> int:
    with psycopg.connect(folder.database_url) as connection:
        row = connection.execute("SELECT step FROM arborist_run").fetchone()
    return int(row[0]) if row else 0


def the_trainer(folder: DataFolder) -> int:
    """Its pid, once there is one; what it forks looks like it until it becomes another program."""
    found: list[int] = []

    def look() -> bool:
        found.clear()
        for process in processes.marked(folder.digest):
            try:
                command = Path(f"/proc/{process.pid}/cmdline").read_bytes()
            except OSError:  # it ended
                continue
            if b"-m\0trainer\0" in command and b"guard.py" not in command:
                found.append(process.pid)
        return len(found) == 1

    assert soon(look, 60.0), found
    return found[0]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_the_smoke_test_passes_and_its_last_line_is_json(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "manage.py", "smoke", "--steps", "2"],
        cwd=REPOSITORY,
        env=os.environ | {"TMPDIR": "/tmp"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["steps"] >= 2
    assert figures["trees"] >= 1
    assert figures["status"] == "stopped"


def running(folder: DataFolder) -> bool:
    return bool(processes.marked(folder.digest) or PostgresServer(folder).backends())


def test_a_second_ctrl_c_forces(folder: DataFolder) -> None:
    with started(folder, "up") as up:
        up.wait_until_up()
        worker = up.children()["worker"]
        os.kill(worker.pid, signal.SIGSTOP)  # it cannot hear the polite request
        up.popen.send_signal(signal.SIGINT)
        up.wait_for("stopping")
        time.sleep(1.2)  # signals within a second count as one wish
        assert up.popen.poll() is None
        up.popen.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert up.ends(15.0) == 0
        assert time.monotonic() - began < 8.0
        assert smoke.what_is_left(folder) == []


def test_an_interrupted_start_leaves_nothing_either(folder: DataFolder) -> None:
    with started(folder, "up") as up:
        up.wait_for("/5 database  ")
        up.popen.send_signal(signal.SIGINT)
        assert up.ends(30.0) == 0
        assert smoke.what_is_left(folder) == []


def test_signals_that_come_together_are_one_wish() -> None:
    # make passes a SIGTERM on to us, and whoever sent it to the whole group sent it to us as well.
    interrupts = Interrupts()
    with interrupts.caught():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts
        assert not interrupts.force()
        interrupts._last -= TOGETHER_SECONDS
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.force()


@pytest.mark.parametrize(
    ("line", "alarming"),
    [
        ("2026-11-20 19:14:39 UTC LOG:  database system is ready to accept connections", False),
        ("2026-11-20 19:14:39 UTC FATAL:  the database system is starting up", False),
        ("2026-11-20 19:14:39 UTC PANIC:  could not write to file: No space left on device", True),
        ("Traceback (most recent call last):", True),
        ("2026-11-20 19:14:39,1 ERROR webapp.views fault 12", True),
        ("INFO:     Application startup complete.", False),
    ],
)
def test_quiet_logs_show_what_needs_attention(line: str, alarming: bool) -> None:
    assert is_alarming(line) is alarming


def test_without_a_wish_the_next_free_port_is_taken() -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first = choose_port(None)
        server.bind((HOST, first))
        server.listen()
        assert choose_port(None) > first


@pytest.mark.parametrize("port", [-1, 0, 65536])
def test_a_port_that_is_none_is_refused(port: int) -> None:
    with pytest.raises(EmbeddedError, match=r"is no port"):
        choose_port(port)


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as server:
        server.bind((HOST, 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_used_port_is_refused_in_one_sentence(folder: DataFolder) -> None:
    with taken_port() as port, started(folder, "up", "--port", str(port)) as up:
        assert up.ends() == 1
        error = [line for line in up.said().splitlines() if line.startswith("CommandError")]
        assert len(error) == 1
        assert f"Port {port} of 127.0.0.1 cannot be had: another program uses it" in error[0]
        assert smoke.what_is_left(folder) == []


def test_a_lock_left_by_a_killed_supervisor_is_no_obstacle(folder: DataFolder) -> None:
    folder.prepare()
    folder.lock.write_text(json.dumps({"pid": os.getpid(), "url": "http://127.0.0.1:1"}))
    with started(folder, "up") as up:
        up.wait_for("/5 database  ")
        up.popen.send_signal(signal.SIGTERM)
        assert up.ends() == 0


def test_servers_given_by_url_are_used_and_not_started(
    folder: DataFolder, database_url: str, broker_url: str
) -> None:
    env = {"ARBORIST_DATABASE_URL": database_url, "ARBORIST_BROKER_URL": broker_url}
    with started(folder, "up", env=env) as up:
        port = up.wait_until_up()
        assert status_of(port) == 200
        assert list(up.children()) == ["web", "sweeper", "worker", "exporter", "prober"]
        assert not folder.postgres.exists()
        up.popen.send_signal(signal.SIGINT)
        assert up.ends() == 0
