from __future__ import annotations

import pytest

from webapp.embedded.demo import describe, duration

STATE = {
    "name": "TreeRPO · tiny",
    "status": "running",
    "reason": "",
    "step": 12,
    "steps_total": 150,
    "eta_s": 130.4,
    "latest": {"reward/mean": 0.414, "eval/pass1_sampled": None, "speed/tokens_per_second": 18234.5},
}


def test_the_live_line_says_where_the_run_stands_and_leaves_out_what_is_not_known() -> None:
    assert describe(STATE) == (
        "TreeRPO · tiny · running · step 12/150 · reward 0.41 · tokens/s 18,234 · 2 min 10 s left"
    )


def test_the_live_line_says_how_far_a_step_is() -> None:
    sampling = STATE | {"phase": "sampling", "phase_done": 3, "phase_total": 8, "latest": {}, "eta_s": None}
    assert describe(sampling) == "TreeRPO · tiny · running · step 12/150 · sampling 3/8"


def test_the_live_line_says_why_a_run_does_not_run() -> None:
    reason = "The loss became NaN at step 12."
    failed = STATE | {"status": "failed", "reason": reason, "latest": {}, "eta_s": None}
    assert describe(failed) == f"TreeRPO · tiny · failed · step 12/150 · {reason}"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599.4, "59 min 59 s"), (3725, "1 h 02 min")],
)
def test_durations_are_in_units_a_person_reads(seconds: float, text: str) -> None:
    assert duration(seconds) == text
