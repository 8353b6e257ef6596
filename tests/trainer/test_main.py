"""python -m trainer as a process: exit status, what stands on stdout, stopping, and no orphan."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer.events import CheckpointSaved, Event, EventDigest, Finished, LogLine, Metrics, parse_line
from trainer.guards import TROUBLES

SMALL = """
training: {steps: 2, problems_per_step: 2}
data: {operations: 3}
sampler: {branching_per_depth: [2, 2, 2]}
evaluation: {every_steps: 0, problems: 2}
recording: {trees_per_step: 1}
"""
ENDLESS = ("--set", "training.steps=100000")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(SMALL)
    return path


def start(config: Path | str, *arguments: str, **options: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "trainer", str(config), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload,no-any-return]  # options go through


def finish(process: subprocess.Popen[bytes]) -> tuple[int, list[Event], str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, [parse_line(line) for line in out.splitlines()], err.decode()


def read_until(process: subprocess.Popen[bytes], kind: str) -> list[Event]:
    events: list[Event] = []
    assert process.stdout is not None
    for line in process.stdout:
        events.append(parse_line(line))
        if events[-1].kind == kind:
            break
    return events


@pytest.mark.process
def test_a_run_prints_events_and_nothing_else_and_ends_with_finished(config: Path, tmp_path: Path) -> None:
    status, events, _ = finish(start(config, "--output", str(tmp_path / "run")))
    assert status == 0
    assert [e.kind for e in events if e.kind != "progress"] == [
        "started", "metrics", "packing_checked", "metrics", "tree", "metrics", "tree", "metrics",
        "checkpoint", "finished",
    ]  # fmt: skip
    last = events[-1]
    assert isinstance(last, Finished)
    assert (last.outcome, last.step, last.reason) == ("succeeded", 2, "All 2 steps are done.")
    digest = EventDigest()
    for event in events[:-1]:
        digest.add(event)
    assert last.events_sha256 == digest.hexdigest()
    saved = next(e for e in events if isinstance(e, CheckpointSaved))
    assert (tmp_path / "run" / saved.path / "manifest.json").is_file()
    assert last.weights_sha256 == saved.weights_sha256


@pytest.mark.process
def test_config_errors_are_one_line_per_field_and_status_2(config: Path) -> None:
    config.write_text("training: {steps: 0, learning_rte: 1}\nseed: x\n")
    status, events, err = finish(start(config))
    assert status == 2
    assert events == []
    assert sorted(err.splitlines()) == [
        f'{config}: seed: input should be a valid integer (got "x")',
        f"{config}: training.learning_rte: unknown key; did you mean `learning_rate`?",
        f"{config}: training.steps: input should be greater than or equal to 1 (got 0)",
    ]


@pytest.mark.process
def test_a_missing_file_is_status_2(tmp_path: Path) -> None:
    status, events, err = finish(start(tmp_path / "none.yaml"))
    assert (status, events) == (2, [])
    assert err == f"{tmp_path / 'none.yaml'}: cannot be read: No such file or directory\n"


@pytest.mark.process
def test_a_failure_is_a_finished_event_with_a_sentence_and_status_1(config: Path, tmp_path: Path) -> None:
    process = start(config, "--output", str(tmp_path / "run"), "--set", "model.path=/no/such/model")
    status, events, err = finish(process)
    assert status == 1
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.outcome == "failed"
    assert last.reason.startswith("The model did not load: there is no folder /no/such/model")
    assert last.reason.endswith(TROUBLES["no model"].do)
    assert "Traceback" in err


@pytest.mark.process
def test_an_unwritable_folder_is_a_failure_in_words(config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, events, _ = finish(start(config, "--output", str(tmp_path / "file" / "run")))
    assert status == 1
    assert isinstance(events[-1], Finished)
    assert "NotADirectoryError" in events[-1].reason or "Not a directory" in events[-1].reason


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_with_a_checkpoint_and_status_0(
    config: Path, tmp_path: Path, number: int
) -> None:
    process = start(config, "--output", str(tmp_path / "run"), *ENDLESS)
    before = read_until(process, "tree")
    asked = time.monotonic()
    process.send_signal(number)
    status, after, _ = finish(process)
    assert status == 0
    assert time.monotonic() - asked < 10
    last = after[-1]
    assert isinstance(last, Finished)
    assert last.outcome == "stopped"
    assert last.step >= 1
    saved = [e for e in after if isinstance(e, CheckpointSaved)][-1]
    assert saved.step == last.step
    assert saved.weights_sha256 == last.weights_sha256
    # It goes on from there, by a path relative to its folder.
    steps = ("--set", f"training.steps={last.step + 1}")
    status, resumed, _ = finish(
        start(config, "--output", str(tmp_path / "run"), "--resume", saved.path, *steps)
    )
    assert status == 0
    assert next(e.step for e in resumed if isinstance(e, Metrics)) in (last.step, last.step + 1)
    assert not any(isinstance(e, Metrics) and e.step == 0 for e in resumed)
    assert any(isinstance(e, Metrics) and e.step == 0 for e in before)


@pytest.mark.process
def test_a_run_that_goes_on_with_more_threads_says_so_and_is_not_stopped_by_it(
    config: Path, tmp_path: Path
) -> None:
    """Sums may be added in another order then. Unasked it is one, however many cores there are."""
    output = ("--output", str(tmp_path / "run"))
    status, before, _ = finish(start(config, *output))
    (saved,) = [e for e in before if isinstance(e, CheckpointSaved)]
    more = ("--resume", saved.path, "--set", "training.steps=3")
    again, after, _ = finish(start(config, *output, *more, env=os.environ | {"ARBORIST_TORCH_THREADS": "2"}))
    assert (status, again) == (0, 0)
    said = [e.message for e in after if isinstance(e, LogLine)]
    assert any(one.startswith("Resumed, not bit-exact: threads was 1 and is 2") for one in said), said
    assert isinstance(after[-1], Finished)
    assert (after[-1].outcome, after[-1].step) == ("succeeded", 3)


@pytest.mark.process
def test_it_ends_at_once_when_its_parent_is_gone(config: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    process = start(
        config, "--output", str(tmp_path / "run"), "--parent-fd", str(reader), *ENDLESS, pass_fds=[reader]
    )
    os.close(reader)
    read_until(process, "metrics")
    assert process.poll() is None
    closed = time.monotonic()
    os.close(writer)
    assert process.wait(timeout=20) == 1
    assert time.monotonic() - closed < 5
    process.communicate()


@pytest.mark.process
def test_it_ends_when_nobody_reads_its_events(config: Path, tmp_path: Path) -> None:
    process = start(config, "--output", str(tmp_path / "run"), *ENDLESS)
    read_until(process, "metrics")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 1
    assert process.stderr is not None
    process.stderr.close()


@pytest.mark.process
def test_libraries_cannot_write_among_the_events(config: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, threading, time\n"
        "def noise():\n"
        "    while 'torch' not in sys.modules:\n"
        "        time.sleep(0.02)\n"
        "    print('noise from python', flush=True)\n"
        "    os.write(1, b'noise from below\\n')\n"
        "threading.Thread(target=noise, daemon=True).start()\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{Path.cwd()}"}
    process = start(config, "--output", str(tmp_path / "run"), env=environment)
    status, events, err = finish(process)  # parse_line raises on any other line
    assert status == 0
    assert events[-1].kind == "finished"
    assert "noise from below" in err


@pytest.mark.process
def test_config_may_come_from_standard_input(tmp_path: Path) -> None:
    process = start(
        "-", "--output", str(tmp_path / "run"), "--set", "training.steps=1", stdin=subprocess.PIPE
    )
    out, _ = process.communicate(SMALL.encode(), timeout=120)
    assert process.returncode == 0
    assert parse_line(out.splitlines()[-1]).kind == "finished"


@pytest.mark.process
def test_a_senseless_thread_count_is_refused(config: Path) -> None:
    process = start(config, env=os.environ | {"ARBORIST_TORCH_THREADS": "many"})
    status, _, err = finish(process)
    assert status == 2
    assert "ARBORIST_TORCH_THREADS is 'many'" in err
