"""The end of one process of a run is the end of all, within seconds, and is told by its name."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from trainer.config import RunConfig
from trainer.launcher import RANK_DIED, launch
from trainer.supervised import BEGIN_SMALLER

FAKE = (sys.executable, str(Path(__file__).with_name("fake_rank.py")))
MARK = "ARBORIST_TEST_LAUNCHER"


def marked(mark: str) -> list[int]:
    """Processes that carry the mark in their environment, this one left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={mark}".encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.process
@pytest.mark.parametrize(
    ("act", "status", "told"),
    [
        ("killed", RANK_DIED, "RankError: process 2 of 2 (rank 1) was ended by signal 9 (SIGKILL)"),
        ("frozen", RANK_DIED, "RankError: process 2 of 2 (rank 1) stood still for 3 seconds and was ended"),
        (
            "hangs",
            RANK_DIED,
            "RankError: process 2 of 2 (rank 1) ended with exit status 77: EngineHang: it did not come back",
        ),
        ("fails", 1, "RankError: process 2 of 2 (rank 1) ended with exit status 1: ValueError: nothing left"),
        (
            "short",
            BEGIN_SMALLER,
            "RankError: process 2 of 2 (rank 1): out of memory; go on from the last checkpoint with --microb",
        ),
        ("both", 1, "[rank"),  # rank 0 says itself why
        ("ends", 0, "[rank"),
        ("stop", 0, "[rank"),
    ],
)
def test_one_rank_s_end_is_everyone_s(
    act: str,
    status: int,
    told: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.setenv(MARK, tmp_path.name)
    config = RunConfig.model_validate({"resources": {"processes": 2}})
    began = time.monotonic()
    assert launch(config, tmp_path / act, [], None, command=FAKE, patience=3) == status
    assert time.monotonic() - began < 45  # each would go on for a minute
    lines = capfd.readouterr().err.splitlines()
    assert lines[-1].startswith(told)
    assert {f"[rank {rank}] environment {rank} of 2" for rank in (0, 1)} <= set(lines)
    assert marked(tmp_path.name) == []


@pytest.mark.process
def test_engine_processes_are_watched_alike_and_each_has_its_rank_and_gpu(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.setenv(MARK, tmp_path.name)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,6,5,4,3,2,1,0")
    resources = {"queue": "gpu.8", "processes": 2, "engine_processes": 4}
    config = RunConfig.model_validate({"resources": resources})
    assert launch(config, tmp_path / "engines", [], None, command=FAKE, patience=30) == RANK_DIED
    lines = capfd.readouterr().err.splitlines()
    assert lines[-1] == "RankError: engine process 3 of 4 was ended by signal 9 (SIGKILL)"
    assert sorted(line for line in lines if line.startswith("[engine")) == [
        "[engine 1] heard rank 0, GPU 5",
        "[engine 2] heard rank 0, GPU 4",
        "[engine 3] heard rank 1, GPU 3",
        "[engine 4] heard rank 1, GPU 2",
    ]
    assert marked(tmp_path.name) == []
