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
        (-9, "", "ended by signal 9, as happens when a machine runs out of memory"),
        (-11, "Fatal Python error", "signal 11 (SIGSEGV)"),
        (1, "Traceback …\nMemoryError\n", "The trainer ran out of memory."),
        (1, "torch.OutOfMemoryError: CUDA out of memory. Tried", "The trainer ran out of memory."),
        (1, TRACEBACK, "The trainer failed: ValueError: seed is odd"),
        (2, "usage: trainer\nerror: no such file", "The trainer failed: error: no such file"),
        (3, "", "exit status 3"),
        (0, "", "left without saying how it went"),
        (-64, "", "signal 64"),
    ],
)
def test_every_death_has_a_sentence(status: int, stderr: str, said: str) -> None:
    assert said in describe(status, stderr)


def test_kernel_that_killed_for_memory_is_believed() -> None:
    assert describe(-9, "", kernel_was_out_of_memory=True).startswith("The machine ran out of memory")


def test_error_line_wins_over_what_follows_it() -> None:
    assert last_error(TRACEBACK + "resource_tracker: cleaning up\n") == "ValueError: seed is odd"


def test_sentence_is_short() -> None:
    assert len(describe(1, "ValueError: " + "x" * 5000)) < 600
