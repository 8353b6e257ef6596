from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from webapp.embedded import processes
from webapp.embedded.processes import Child, Identity

pytestmark = pytest.mark.process

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def mark() -> Iterator[str]:
    value = uuid.uuid4().hex
    yield value
    processes.end_marked(value)


def start(argv: list[str], tmp_path: Path, mark: str) -> Child:
    env = dict(os.environ) | {processes.MARK: mark}
    return processes.start("child", argv, log=tmp_path / "child.log", env=env, cwd=tmp_path)


def is_gone(pid: int, seconds: float = 5.0) -> bool:
    return processes.wait_until(lambda: Identity.of(pid) is None, seconds)


def test_a_child_dies_with_a_parent_that_is_killed(tmp_path: Path, mark: str) -> None:
    parent = textwrap.dedent(
        f"""
        import os, sys, time
        from pathlib import Path
        from webapp.embedded import processes
        env = dict(os.environ) | {{processes.MARK: {mark!r}}}
        log = Path({str(tmp_path / "log")!r})
        child = processes.start("child", {SLEEP!r}, log=log, env=env, cwd=log.parent)
        print(child.identity.pid, flush=True)
        time.sleep(60)
        """
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as popen:
        assert popen.stdout is not None
        child = int(popen.stdout.readline())
        # The guard has become the program; before that it could not have asked for the signal.
        cmdline = Path(f"/proc/{child}/cmdline")
        assert processes.wait_until(lambda: b"guard.py" not in cmdline.read_bytes(), 5.0)
        popen.kill()
        popen.wait()
        assert is_gone(child)


def test_a_guard_whose_parent_is_already_gone_starts_nothing(tmp_path: Path) -> None:
    command = processes.guarded([sys.executable, "-c", "print('started')"], death_signal=signal.SIGKILL)
    command[4] = "1"  # a parent that is not ours, as after its death
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "the parent is gone" in done.stderr


def test_a_program_gets_the_default_for_signals_that_python_ignores(tmp_path: Path, mark: str) -> None:
    child = start(["/bin/sh", "-c", "kill -PIPE $$; echo survived"], tmp_path, mark)
    assert child.wait(5.0)
    assert child.end() == -signal.SIGPIPE


def test_a_missing_program_is_named_in_the_log(tmp_path: Path, mark: str) -> None:
    child = start(["/no/such/program"], tmp_path, mark)
    assert child.wait(5.0)
    assert child.end() == 1
    assert "/no/such/program cannot be started: No such file" in child.log.read_text()


def test_ending_a_child_ends_its_group(tmp_path: Path, mark: str) -> None:
    child = start(["/bin/sh", "-c", "sleep 60 & echo $!; wait"], tmp_path, mark)
    assert processes.wait_until(lambda: child.log.read_text().strip() != "", 5.0)
    grandchild = int(child.log.read_text())
    assert child.end() == -signal.SIGKILL
    assert is_gone(grandchild)


def test_the_mark_finds_a_grandchild_that_left_the_group(tmp_path: Path, mark: str) -> None:
    child = start(["/bin/sh", "-c", "setsid sleep 60 & wait"], tmp_path, mark)
    assert processes.wait_until(lambda: len(processes.marked(mark)) == 2, 5.0)
    child.end()
    (grandchild,) = processes.marked(mark)
    assert processes.end_marked(mark) == [grandchild]
    assert is_gone(grandchild.pid)


def test_asking_to_stop_waits_no_longer_than_it_takes(tmp_path: Path, mark: str) -> None:
    child = start(["/bin/sleep", "60"], tmp_path, mark)
    assert processes.stop_politely(child, signal.SIGTERM, 5.0)
    assert child.end() == -signal.SIGTERM


def test_a_child_that_does_not_listen_is_made_to_end(tmp_path: Path, mark: str) -> None:
    child = start(["/bin/sh", "-c", "trap '' TERM; echo deaf; sleep 60"], tmp_path, mark)
    assert processes.wait_until(lambda: "deaf" in child.log.read_text(), 5.0)
    assert not processes.stop_politely(child, signal.SIGTERM, 0.3)
    assert child.end() == -signal.SIGKILL


def test_a_process_with_the_same_pid_and_another_start_is_another_process() -> None:
    ourselves = Identity.of(os.getpid())
    assert ourselves is not None
    assert ourselves.is_alive()
    assert not Identity(ourselves.pid, ourselves.started + 1).is_alive()


def test_the_record_gives_back_what_is_still_alive(tmp_path: Path, mark: str) -> None:
    ended, living = (start(["/bin/sleep", "60"], tmp_path, mark) for _ in range(2))
    record = tmp_path / "processes.json"
    processes.write_record(record, [ended, living])
    ended.end()
    assert processes.read_record(record) == [("child", living.identity)]
    living.end()


@pytest.mark.parametrize("text", ["", "{", '{"boot": "another", "processes": []}', "[]", '{"boot": 1}'])
def test_a_damaged_record_keeps_nobody_from_starting(tmp_path: Path, text: str) -> None:
    record = tmp_path / "processes.json"
    record.write_text(text)
    assert processes.read_record(record) == []
