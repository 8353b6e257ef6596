"""A whole step against TRL's GRPOTrainer: same model, same task, equal answers, CPU time.

    python -m venv /some/where && /some/where/bin/pip install torch==2.13.0 && /some/where/bin/pip install
    'trl==1.16.*' python -m benchmarks.peers --peer /some/where/bin/python

8 problems x 8 answers of at most 64 tokens a step, GRPO, one torch thread each. The two take turns, so that
a busy machine slows both alike; medians of CPU seconds per step, the first step of every turn left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.parts import machine
from trainer.config import RunConfig
from trainer.data import ChainStream
from trainer.events import Event, Metrics
from trainer.loop import train
from trainer.policy import resolve_model
from trainer.presets import PRESETS

PROBLEMS, SAMPLES, TOKENS, RATE, OPERATIONS = 8, 8, 64, 3e-4, 3
HERE = Path(__file__).parent


def ours(steps: int) -> list[float]:
    """CPU seconds of each step of a GRPO run; evaluation and checkpoint are not in them."""
    values = PRESETS["grpo-tiny"].config.model_dump(mode="json")
    values["data"]["operations"] = OPERATIONS
    values["sampler"] |= {"group_size": SAMPLES, "max_tokens": TOKENS}
    values["training"] |= {
        "steps": steps,
        "problems_per_step": PROBLEMS,
        "learning_rate": RATE,
        "warmup_steps": 0,
    }
    values["evaluation"] |= {"every_steps": 0, "problems": 1}
    values["recording"]["trees_per_step"] = 0
    totals: list[float] = [0.0]

    def note(event: Event) -> None:
        if isinstance(event, Metrics) and "speed/cpu_seconds_total" in event.values:
            totals.append(event.values["speed/cpu_seconds_total"])

    with tempfile.TemporaryDirectory() as scratch:
        train(RunConfig.model_validate(values), emit=note, should_stop=lambda: False, run_dir=Path(scratch))
    return [after - before for before, after in itertools.pairwise(totals)]


def theirs(peer: str, steps: int) -> list[float]:
    """CPU seconds of each step of TRL."""
    problems = ChainStream(1, OPERATIONS).batch(1, PROBLEMS * steps)
    given = {
        "model": str(resolve_model("tiny-reasoner")),
        "problems": [{"prompt": p.prompt, "answer": p.reference_answer} for p in problems],
        "steps": steps,
        "problems_per_step": PROBLEMS,
        "samples": SAMPLES,
        "max_tokens": TOKENS,
        "learning_rate": RATE,
    }
    env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [peer, str(HERE / "trl_steps.py")], input=json.dumps(given), capture_output=True, text=True, env=env
    )
    if done.returncode:
        sys.exit(done.stderr[-4000:])
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", required=True, help="a Python with TRL")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="per turn; the first is left out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    sides: dict[str, Callable[[], list[float]]] = {
        "Arborist": lambda: ours(options.steps),
        "TRL": lambda: theirs(options.peer, options.steps),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.turns):
        for name, run in sides.items():
            began = time.monotonic()
            seconds[name] += run()[1:]
            print(f"  {name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name}: {median:.3f} CPU-s a step ({min(seconds[name]):.3f} to {max(seconds[name]):.3f})")
    print(f"TRL / Arborist: {medians['TRL'] / medians['Arborist']:.1f}")


if __name__ == "__main__":
    main()
