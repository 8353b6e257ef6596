"""How fast a preset learns: held-out accuracy against CPU-seconds of training, over seeds.

    python -m benchmarks.learning --preset treerpo-tiny --seeds 1 2 3 --cpu-seconds 150
    python -m benchmarks.learning --preset grpo-tiny --set training.learning_rate=1e-3

Every run is a `python -m trainer` of its own, one torch thread. CPU time is what the trainer logs as
`speed/cpu_seconds_total` (evaluation not counted). Prints a table, and with --json the curves.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from trainer.events import Metrics, parse_line

CHECKPOINTS = (0.0, 20.0, 40.0, 75.0, 150.0)


@dataclass(frozen=True, slots=True)
class Point:
    """One evaluation: CPU-seconds of training before it, its step, and accuracies."""

    cpu_seconds: float
    step: int
    sampled: float
    greedy: float
    unique_tokens: float


def run_once(
    preset: str, seed: int, overrides: list[str], cpu_seconds: float, problems: int, every: int
) -> list[Point]:
    """Train until `cpu_seconds` are spent; evaluate before the first step and every `every` steps."""
    with tempfile.TemporaryDirectory(prefix="arborist-learning-") as scratch:
        config = Path(scratch, "run.yaml")
        config.write_text(f"preset: {preset}\n", encoding="utf-8")
        settings = [
            f"seed={seed}",
            "training.steps=100000",
            f"evaluation.problems={problems}",
            f"evaluation.every_steps={every}",
            "checkpoint.every_steps=0",
            "recording.trees_per_step=0",
            *overrides,
        ]
        command = [sys.executable, "-m", "trainer", str(config), "--output", scratch]
        for setting in settings:
            command += ["--set", setting]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, env=os.environ | {"ARBORIST_TORCH_THREADS": "1"}
        )
        points: list[Point] = []
        spent = tokens = 0.0
        assert process.stdout is not None
        for line in process.stdout:
            event = parse_line(line)
            if not isinstance(event, Metrics):
                if event.kind == "finished" and event.outcome == "failed":
                    raise SystemExit(f"The run failed: {event.reason}")
                continue
            spent = event.values.get("speed/cpu_seconds_total", spent)
            tokens = event.values.get("tree/unique_tokens_total", tokens)
            if "eval/pass1_sampled" in event.values:
                points.append(
                    Point(
                        spent,
                        event.step,
                        event.values["eval/pass1_sampled"],
                        event.values["eval/pass1_greedy"],
                        tokens,
                    )
                )
                if spent >= cpu_seconds:
                    process.send_signal(signal.SIGTERM)
        process.wait()
        return points


def at(points: list[Point], cpu_seconds: float) -> Point:
    """The curve at a time, linear between evaluations."""
    after = next((p for p in points if p.cpu_seconds >= cpu_seconds), points[-1])
    before = points[max(points.index(after) - 1, 0)]
    if after.cpu_seconds <= before.cpu_seconds:
        return after
    share = min(1.0, (cpu_seconds - before.cpu_seconds) / (after.cpu_seconds - before.cpu_seconds))

    def mixed(name: str) -> float:
        low, high = getattr(before, name), getattr(after, name)
        return float(low + share * (high - low))

    return Point(cpu_seconds, round(mixed("step")), mixed("sampled"), mixed("greedy"), mixed("unique_tokens"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="treerpo-tiny")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--cpu-seconds", type=float, default=150)
    parser.add_argument("--problems", type=int, default=512)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    curves = {}
    for seed in options.seeds:
        curves[seed] = run_once(
            options.preset, seed, options.set, options.cpu_seconds, options.problems, options.every
        )
    print(
        f"{options.preset} {' '.join(options.set)} seeds {options.seeds}, {options.problems} held-out "
        f"problems"
    )
    print(
        f"{'CPU-s':>6} {'step':>5} {'M tokens':>8} {'sampled':>8} {'gain':>7} {'greedy':>7} "
        f"{'per seed (sampled)'}"
    )
    for moment in (c for c in CHECKPOINTS if c <= options.cpu_seconds):
        found = [at(points, moment) for points in curves.values()]
        sampled, greedy = (statistics.mean(getattr(p, name) for p in found) for name in ("sampled", "greedy"))
        start = statistics.mean(points[0].sampled for points in curves.values())
        print(
            f"{moment:6.0f} {statistics.mean(p.step for p in found):5.0f} "
            f"{statistics.mean(p.unique_tokens for p in found) / 1e6:8.2f} {sampled:8.3f} "
            f"{sampled - start:+7.3f} "
            f"{greedy:7.3f} {' '.join(f'{p.sampled:.3f}' for p in found)}"
        )
    if options.json:
        rows = {
            seed: [[p.cpu_seconds, p.step, p.sampled, p.greedy, p.unique_tokens] for p in c]
            for seed, c in curves.items()
        }
        options.json.write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
