"""What is measured on a GPU runs from end to end; here with tiny models, on the CPU."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.gpu import TINY, run_part


@pytest.mark.parametrize(
    ("part", "figures"),
    [
        ("training", {"packed_is_faster_by", "gradient_difference", "mfu", "unique_tokens_per_second"}),
        ("sampling", {"tokens_per_second"}),
        ("gaps", {"largest_gap", "mean_gap"}),
    ],
)
def test_every_part_says_its_figures(
    part: str, figures: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    try:
        run_part(part, TINY, torch.device("cpu"), 60)
    finally:
        torch.set_num_threads(threads)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert figures <= {name for line in lines for name in line}
    assert not [line for line in lines if "error" in line or "skipped" in line]
