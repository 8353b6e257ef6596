from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.process
def test_whoever_is_killed_while_saving_leaves_only_whole_checkpoints(tmp_path: Path) -> None:
    """P6. 200 kills with ARBORIST_KILL_POINTS=all."""
    kills = 200 if os.environ.get("ARBORIST_KILL_POINTS") == "all" else 20
    argv = [sys.executable, "-m", "tests.resume.saving", str(kills), "1", str(tmp_path)]
    done = subprocess.run(argv, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True, timeout=600)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] == kills
    assert found["caught"] >= kills / 4  # most come in the midst of a save
    assert (found["bad"], found["lost"], found["left"]) == (0, 0, 0)
