"""What sampling the next batch beside training (`training.max_staleness 1`) gains over taking turns.

    python -m benchmarks.overlap [--steps N] [--turns N] [--set a.b=c ...]

The preset treerpo-tiny, one torch thread, whole steps; the two take turns in one process. Wall time is from
the metrics of the first step to those of the last but one. Two threads need two cores for it to mean
anything, so the load is told too. Prints a JSON object a turn, then the medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

import torch

from trainer.config_file import config_from_yaml
from trainer.events import Event, Metrics
from trainer.loop import train

BASE = "{evaluation: {every_steps: 0, problems: 8}, objective: {importance: {kind: truncated}}}"


def measured(staleness: int, steps: int, changes: list[str]) -> dict[str, float]:
    """Per step: wall seconds, CPU-seconds, and the last step's share of sampling that training hid."""
    own = [f"training.steps={steps}", f"training.max_staleness={staleness}", *changes]
    events: list[Event] = []
    with tempfile.TemporaryDirectory() as folder:
        train(
            config_from_yaml(BASE, own), emit=events.append, should_stop=lambda: False, run_dir=Path(folder)
        )
    told = [event for event in events if isinstance(event, Metrics) and "policy/loss" in event.values]
    first, last = told[0], told[-2]  # beside the last step nothing is sampled
    count = len(told) - 2
    spent = last.values["speed/cpu_seconds_total"] - first.values["speed/cpu_seconds_total"]
    return {
        "wall_seconds": (last.time - first.time) / count,
        "cpu_seconds": spent / count,
        "sampling_seconds": statistics.median(event.values["speed/sampling_seconds"] for event in told[1:-1]),
        "training_seconds": statistics.median(event.values["speed/training_seconds"] for event in told[1:-1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure one-step-off-policy overlap.")
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[int, list[dict[str, float]]] = {0: [], 1: []}
    for turn in range(chosen.turns):
        for staleness in (0, 1) if turn % 2 else (1, 0):
            found[staleness].append(measured(staleness, chosen.steps, chosen.set))
            load = os.getloadavg()[0]
            print(json.dumps({"max_staleness": staleness, "load": load} | found[staleness][-1]), flush=True)
    wall, cpu = (
        {which: statistics.median(one[name] for one in turns) for which, turns in found.items()}
        for name in ("wall_seconds", "cpu_seconds")
    )
    print(
        json.dumps(
            {
                "wall_in_turns_over_overlapped": wall[0] / wall[1],
                "cpu_overlapped_over_in_turns": cpu[1] / cpu[0],
            }
        )
    )


if __name__ == "__main__":
    main()
