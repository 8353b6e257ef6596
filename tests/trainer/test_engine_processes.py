"""`python -m trainer` with engine processes: the same run, one end for all of them, and nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainer.test_launcher import MARK, marked
from tests.trainer.test_main import finish, start
from tests.trainer.test_ranks import assert_same, case, furthest, one
from trainer.config_file import config_to_yaml
from trainer.events import Event, Finished, Metrics, parse_line
from trainer.launcher import RANK_DIED

pytestmark = pytest.mark.process
ENDLESS = ("--set", "training.steps=100000", "--set", "recording.trees_per_step=0")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(config_to_yaml(case("treerpo")))
    return path


@pytest.fixture
def begin(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., subprocess.Popen[bytes]]:
    """Start a run with that mark, of so many processes of either kind."""
    monkeypatch.setenv(MARK, tmp_path.name)

    def begin(processes: int, engines: int, *more: str) -> subprocess.Popen[bytes]:
        return start(
            config,
            *("--output", str(tmp_path / "run")),
            *("--set", f"resources.processes={processes}", "--set", f"resources.engine_processes={engines}"),
            *more,
        )

    return begin


def first_step(process: subprocess.Popen[bytes]) -> None:
    """Wait for it."""
    assert process.stdout is not None
    for line in process.stdout:
        event = parse_line(line)
        if isinstance(event, Metrics) and event.step == 1:
            return
    pytest.fail("it ended before its first step")


def engines(mark: str) -> list[int]:
    return [pid for pid in marked(mark) if b"\0--engine\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def until_none(mark: str) -> None:
    deadline = time.monotonic() + 20
    while marked(mark):
        assert time.monotonic() < deadline, "something is left"
        time.sleep(0.1)


def test_two_processes_with_an_engine_each_are_one(
    begin: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    status, events, errors = finish(begin(2, 2))
    assert status == 0, errors
    alone: list[Event] = one(case("treerpo"), tmp_path / "alone")
    assert_same("treerpo", alone, events)
    last = "checkpoints/step-2"
    assert furthest(tmp_path / "alone" / last, tmp_path / "run" / last) < 1e-5
    assert [(e.processes, e.engine_processes) for e in events if e.kind == "started"] == [(2, 2)]
    assert marked(tmp_path.name) == []


def test_the_death_of_an_engine_is_the_end_of_all_and_is_told(
    begin: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    process = begin(1, 2, *ENDLESS)
    first_step(process)
    victim = next(
        pid
        for pid in engines(tmp_path.name)
        if b"--engine\x001\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert process.returncode == RANK_DIED
    assert err.decode().splitlines()[-1] == (
        "RankError: engine process 2 of 2 was ended by signal 9 (SIGKILL)"
    )
    until_none(tmp_path.name)


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_nothing_is_left_of_a_run_that_is_ended(
    how: str, begin: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    process = begin(1, 1, *ENDLESS)
    first_step(process)
    assert len(engines(tmp_path.name)) == 1
    if how == "kill":
        process.kill()
        process.communicate(timeout=30)
    else:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
        last = [parse_line(line) for line in out.splitlines()][-1]
        assert process.returncode == 0, err
        assert isinstance(last, Finished)
        assert last.outcome == "stopped"
    until_none(tmp_path.name)
