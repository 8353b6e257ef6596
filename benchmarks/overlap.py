"""What sampling the next batch beside training (`training.max_staleness 1`) gains over taking turns.

    python -m benchmarks.overlap [--steps N] [--turns N] [--hidden N --layers N] [--set a.b=c ...]

The preset treerpo-tiny, one torch thread, whole steps; the two take turns in one process. `--hidden` puts
random weights of that size in the place of the tiny reasoner's, and the preset grpo-tiny, which trains most
tokens: right is then any answer that ends and whose last number is not too large, else there were nothing to
learn. Wall time is from the metrics of the first step to those of the last but one. Prints a JSON object a
turn, then the medians.

Two threads need two cores for wall time to mean anything, so the load is told too, and `busy`: the
CPU-seconds that a wall second got. `side_by_side` does not depend on it: the share of the CPU time that was
spent while both threads had something to do (`benchmarks.side_by_side`). On two free cores a step would take
`quiet_seconds`: half of what was spent side by side, and all of the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

import torch

from benchmarks.models import random_model
from benchmarks.side_by_side import SideBySide
from trainer.config_file import config_from_yaml
from trainer.events import Event, Metrics
from trainer.loop import train

BASE = "{evaluation: {every_steps: 0, problems: 8}, objective: {importance: {kind: truncated}}}"


def measured(staleness: int, steps: int, changes: list[str]) -> dict[str, float]:
    """Per step: wall and CPU-seconds, and those of sampling and training."""
    own = [f"training.steps={steps}", f"training.max_staleness={staleness}", *changes]
    told: list[Metrics] = []
    shares: list[float] = []

    def hear(event: Event) -> None:
        if isinstance(event, Metrics) and "policy/loss" in event.values:
            told.append(event)
            if event.step == 1:
                share.begin()
            if event.step == steps - 1:
                shares.append(share.end())

    with tempfile.TemporaryDirectory() as folder, SideBySide() as share:
        train(config_from_yaml(BASE, own), emit=hear, should_stop=lambda: False, run_dir=Path(folder))
    (side_by_side,) = shares
    first, last = told[0], told[-2]  # beside the last step nothing is sampled
    count = len(told) - 2
    spent = last.values["speed/cpu_seconds_total"] - first.values["speed/cpu_seconds_total"]
    return {
        "wall_seconds": (last.time - first.time) / count,
        "cpu_seconds": spent / count,
        "busy": spent / (last.time - first.time),
        "side_by_side": side_by_side,
        "quiet_seconds": spent / count * (1 - side_by_side / 2),
        "sampling_seconds": statistics.median(event.values["speed/sampling_seconds"] for event in told[1:-1]),
        "training_seconds": statistics.median(event.values["speed/training_seconds"] for event in told[1:-1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure one-step-off-policy overlap.")
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=0, help="random weights; a multiple of 96")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if chosen.hidden:
            print(json.dumps({"parameters": random_model(Path(folder), chosen.hidden, chosen.layers)}))
            chosen.set += [
                "preset=grpo-tiny",
                f"model.path={folder}",
                "verifier={kind: numeric, tolerance: 1}",
            ]
        in_turns(chosen)


def in_turns(chosen: argparse.Namespace) -> None:
    found: dict[int, list[dict[str, float]]] = {0: [], 1: []}
    for turn in range(chosen.turns):
        for staleness in (0, 1) if turn % 2 else (1, 0):
            load = os.getloadavg()[0]
            found[staleness].append(measured(staleness, chosen.steps, chosen.set))
            print(json.dumps({"max_staleness": staleness, "load": load} | found[staleness][-1]), flush=True)
    wall, cpu, quiet = (
        {which: statistics.median(one[name] for one in turns) for which, turns in found.items()}
        for name in ("wall_seconds", "cpu_seconds", "quiet_seconds")
    )
    print(
        json.dumps(
            {
                "wall_in_turns_over_overlapped": wall[0] / wall[1],
                "quiet_in_turns_over_overlapped": quiet[0] / quiet[1],
                "cpu_overlapped_over_in_turns": cpu[1] / cpu[0],
            }
        )
    )


if __name__ == "__main__":
    main()
