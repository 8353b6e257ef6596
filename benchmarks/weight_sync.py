"""What handing the weights to engine processes (`resources.engine_processes`) costs of a step's time.

    python -m benchmarks.weight_sync [--engines N ...] [--steps N] [--turns N] [--hidden N --layers N]
        [--set a.b=c ...]

Runs of `python -m trainer`, the preset treerpo-tiny, one torch thread a process, on CPUs over gloo; numbers
of engine processes take turns, 0 is the engine in the trainer. `--hidden` puts random weights of that size in
the place of the tiny reasoner's; right is then any answer that ends and whose last number is not too large.
Of all steps but the first: the medians of the hand-over (`speed/sync_seconds`, until the engines sample from
the new weights), of a step, and of the one's share of the other. Prints a JSON object a turn, then the
medians of turns. Processes need a core each for wall time to mean much, so the load is told, too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.models import random_model
from trainer.events import Metrics, parse_line


def measured(engines: int, steps: int, changes: list[str]) -> dict[str, float]:
    """Medians of a run's steps."""
    own = [
        *(f"training.steps={steps}", "evaluation.every_steps=0", "evaluation.problems=8"),
        *("recording.trees_per_step=0", f"resources.engine_processes={engines}", *changes),
    ]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "trainer", "-", "--output", folder]
            + [part for one in own for part in ("--set", one)],
            input=b"preset: treerpo-tiny\n",
            stdout=subprocess.PIPE,
            check=True,
        )
    events = [parse_line(line) for line in done.stdout.splitlines()]
    told = [event.values for event in events if isinstance(event, Metrics) and "policy/loss" in event.values]
    pairs = [(values["speed/sync_seconds"], values["speed/step_seconds"]) for values in told[1:]]
    return {
        "sync_seconds": statistics.median(sync for sync, _ in pairs),
        "step_seconds": statistics.median(step for _, step in pairs),
        "share": statistics.median(sync / step for sync, step in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the hand-over of weights.")
    parser.add_argument("--engines", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=0, help="random weights; a multiple of 96")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if chosen.hidden:
            print(json.dumps({"parameters": random_model(Path(folder), chosen.hidden, chosen.layers)}))
            chosen.set += [f"model.path={folder}", "verifier={kind: numeric, tolerance: 1}"]
        found: dict[int, list[dict[str, float]]] = {engines: [] for engines in chosen.engines}
        for _ in range(chosen.turns):
            for engines, turns in found.items():
                turns.append(measured(engines, chosen.steps, chosen.set))
                print(
                    json.dumps({"engine_processes": engines, "load": os.getloadavg()[0]} | turns[-1]),
                    flush=True,
                )
    for engines, turns in found.items():
        medians = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
        print(json.dumps({"engine_processes": engines, "median": medians}))


if __name__ == "__main__":
    main()
