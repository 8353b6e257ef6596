"""A whole step against TRL's GRPOTrainer: same model, same task, equal answers, CPU time.

    python -m venv /some/where && /some/where/bin/pip install torch==2.13.0 && /some/where/bin/pip install
    'trl==1.16.*' python -m benchmarks.peers --peer /some/where/bin/python

8 problems x 8 answers of at most 64 tokens a step, one torch thread each. TRL runs GRPO; Arborist runs GRPO
on the same flat answers, step-GRPO on them, and TreeRPO on a tree with as many leaves. They take turns, so
that a busy machine slows all alike; medians of CPU seconds per step, without the first step of every turn.

*Limit*: the multiplications of the step alone (one per weight and sampled token, three per weight and trained
token) at the rate that this machine reaches on a matrix product of the model's size. Nothing in float32 is
faster than that, so TRL over it is the largest ratio there could be.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.parts import machine
from trainer.config import RunConfig
from trainer.data import ChainStream
from trainer.events import Event, Metrics
from trainer.loop import train
from trainer.policy import load_policy, resolve_model
from trainer.presets import PRESETS

PROBLEMS, SAMPLES, TOKENS, RATE, OPERATIONS = 8, 8, 64, 3e-4, 3
HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Step:
    """CPU seconds of one step, and the tokens it sampled and trained on."""

    seconds: float
    sampled: float = math.nan
    trained: float = math.nan


FLAT = {"group_size": SAMPLES, "max_tokens": TOKENS}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {  # preset, and what of its sampler is changed
    "GRPO": ("grpo-tiny", FLAT),
    "step-GRPO": ("step-grpo-tiny", FLAT),
    "TreeRPO": (
        "treerpo-tiny",
        {"depth": 3, "branching_per_depth": [2], "segment_tokens_per_depth": [12, 12, TOKENS - 24]},
    ),
}


def ours(method: str, steps: int) -> list[Step]:
    """The steps of a run; evaluation and checkpoint are not in them."""
    preset, sampler = METHODS[method]
    values = PRESETS[preset].config.model_dump(mode="json")
    values["data"]["operations"] = OPERATIONS
    values["sampler"] |= sampler
    values["training"] |= {
        "steps": steps,
        "problems_per_step": PROBLEMS,
        "learning_rate": RATE,
        "warmup_steps": 0,
    }
    values["evaluation"] |= {"every_steps": 0, "problems": 1}
    values["recording"]["trees_per_step"] = 0
    found: list[Step] = []
    total = 0.0

    def note(event: Event) -> None:
        nonlocal total
        if isinstance(event, Metrics) and "speed/cpu_seconds_total" in event.values:
            values = event.values
            found.append(
                Step(
                    values["speed/cpu_seconds_total"] - total,
                    values["tree/sampled_tokens"],
                    values.get("policy/trained_tokens", 0.0),
                )
            )
            total = values["speed/cpu_seconds_total"]

    with tempfile.TemporaryDirectory() as scratch:
        train(RunConfig.model_validate(values), emit=note, should_stop=lambda: False, run_dir=Path(scratch))
    return found


def multiplications_per_second() -> float:
    """Of a matrix product as the model's largest layer does it, the median of some."""
    config = json.loads((resolve_model("tiny-reasoner") / "config.json").read_text())
    rows, inner, outer = 2048, config["hidden_size"], config["intermediate_size"]
    left, right = torch.randn(rows, inner), torch.randn(inner, outer)
    rates = []
    for _ in range(200):
        began = time.process_time()
        for _ in range(10):
            left @ right
        rates.append(10 * rows * inner * outer / (time.process_time() - began))
    return statistics.median(rates)


def theirs(peer: str, steps: int) -> list[Step]:
    """Steps of TRL."""
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
    return [Step(seconds) for seconds in json.loads(done.stdout.splitlines()[-1])]


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
    sides: dict[str, Callable[[], list[Step]]] = {
        "TRL, GRPO": lambda: theirs(options.peer, options.steps)
    } | {name: partial(ours, name, options.steps) for name in METHODS}
    found: dict[str, list[Step]] = {name: [] for name in sides}
    rates = []
    for _ in range(options.turns):
        rates.append(multiplications_per_second())
        for name, run in sides.items():
            began = time.monotonic()
            found[name] += run()[1:]
            print(f"  {name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    rate = statistics.median(rates)
    weights = load_policy("tiny-reasoner").model.num_parameters()
    peer = statistics.median(step.seconds for step in found["TRL, GRPO"])
    print(f"{rate / 1e9:.1f} G multiplications a second; {weights:,} weights")
    print(f"{'step':<12}{'CPU-s':>8}{'sampled':>9}{'trained':>9}{'TRL / it':>10}{'limit':>8}")
    for name, steps in found.items():
        seconds = statistics.median(step.seconds for step in steps)
        sampled = statistics.median(step.sampled for step in steps)
        trained = statistics.median(step.trained for step in steps)
        limit = weights * (sampled + 3 * trained) / rate
        print(
            f"{name:<12}{seconds:>8.3f}{sampled:>9.0f}{trained:>9.0f}"
            f"{peer / seconds:>10.1f}{peer / limit:>8.1f}"
        )


if __name__ == "__main__":
    main()
