from __future__ import annotations

import pytest

from workers.endings import describe, last_error

TRACEBACK = """Traceback (most recent call last):
  File "trainer/loop.py", line 12, in train
    raise ValueError("seed is odd")
ValueError: seed is odd
"""


@pytest.mark.parametrize(
    ("status", "stderr", "said"),
    [
        (-9, "", "ended by signal 9 (SIGKILL)"),
        (-11, "Fatal Python error", "signal 11 (SIGSEGV)"),
        (1, "Traceback …\nMemoryError\n", "Out of memory (host): "),
        (1, "RuntimeError: DefaultCPUAllocator: can't allocate memory", "Out of memory (host): "),
        (1, "torch.OutOfMemoryError: CUDA out of memory. Tried", "Out of memory (GPU) "),
        (1, TRACEBACK, "The trainer failed: ValueError: seed is odd."),
        (
            1,
            "Traceback …\nModuleNotFoundError: No module named 'torch'",
            "could not be loaded on this worker: Mod",
        ),
        (
            2,
            "run.yaml: seed: input should be a number",
            "not valid for this worker's version: run.yaml: seed",
        ),
        (3, "", "exit status 3"),
        (0, "", "left without saying how it went"),
        (-64, "", "signal 64"),
        (77, "EngineHang: x", "The engine did not come back from one step of sampling within 600 s"),
        (76, "x\nRankError: process 2 of 2 (rank 1) stood still\n", "Process 2 of 2 (rank 1) stood still."),
        (1, "[rank 0] x\nRankError: process 1 of 2 (rank 0) ended", "failed: RankError: process 1 of 2"),
        (
            1,
            (
                "[rank 1] torch.OutOfMemoryError: CUDA out of memory.\n"
                "[rank 1] x.OutOfRoomError: Out of memory (GPU); tried 512 and 256. Retry or fork.\n"
                "RankError: process 2 of 2 (rank 1) ended with exit status 1: x.OutOfRoomError: Out"
            ),
            "Out of memory (GPU); tried 512 and 256. Last",
        ),
    ],
)
def test_every_death_has_a_sentence_that_says_where_the_run_stands(
    status: int, stderr: str, said: str
) -> None:
    sentence = describe(status, stderr, step=7, checkpoint=5)
    assert said in sentence
    assert "Last complete step: 7; last checkpoint: step 5." in sentence
    assert "etry" in sentence.partition("step 5.")[2]  # and what to do
    assert "{" not in sentence


def test_kernel_that_killed_for_memory_is_believed() -> None:
    assert describe(-9, "", kernel_was_out_of_memory=True).startswith("Out of memory (host)")


def test_error_line_wins_over_what_follows_it() -> None:
    assert last_error(TRACEBACK + "resource_tracker: cleaning up\n") == "ValueError: seed is odd"


def test_sentence_is_short() -> None:
    assert len(describe(1, "ValueError: " + "x" * 5000)) < 700
