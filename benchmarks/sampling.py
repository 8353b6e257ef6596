"""Tokens per CPU-second of the local sampler on the tiny reasoner, beside transformers `generate` in the same
run.

    python -m benchmarks.sampling

Three shapes take turns (A, B, C, A, B, C, ...), so that a busy machine slows all of them alike; medians are
printed. Only unique tokens count: a prefix that several answers share counts once. `generate` writes flat
answers of the same length. The trees are those of the preset TreeRPO · tiny, but never end early, so that all
shapes do equal work.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from trainer.data import Problem, load_data
from trainer.policy import Policy, load_policy
from trainer.presets import PRESETS
from trainer.sampling.engine import SamplingPlan, plan_from_config
from trainer.sampling.local_engine import LocalEngine
from trainer.schema.data import ChainData

NEW_TOKENS = 40


def trees(engine: LocalEngine, problems: list[Problem], plan: SamplingPlan, step: int) -> int:
    """Unique tokens sampled."""
    found = engine.sample(
        problems, plan, seed=1, step=step, should_stop=lambda: False, on_progress=lambda _done, _total: None
    )
    return sum(int(tree.token_counts()[1:].sum()) for tree in found)


@torch.inference_mode()
def generate(policy: Policy, problems: list[Problem], rows: int) -> int:
    """The same number of answers by transformers, all prompts of one length so that nothing is padded."""
    prompt = torch.tensor([policy.encode(problems[0].prompt)] * rows)
    model: Any = policy.model
    written = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=True,
        top_k=0,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        pad_token_id=0,
    )
    return int(written.numel() - prompt.numel())


def main() -> None:
    parser = argparse.ArgumentParser(description="Tokens per CPU-second of the local sampler.")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(1)
    policy = load_policy("tiny-reasoner")
    problems = load_data(ChainData(operations=4), seed=1, evaluation_problems=1).training.batch(1, 64)
    endless = Policy(policy.model, policy.tokenizer, policy.end_ids)
    endless.newline_tokens[:] = False
    engine, endless_engine = LocalEngine(policy), LocalEngine(endless)
    endless_engine._ends[:] = False
    preset = plan_from_config(PRESETS["treerpo-tiny"].config.sampler)
    flat = SamplingPlan((16,), (NEW_TOKENS,), split_at_newline=False, temperature=1.0)
    deep = SamplingPlan((4, 4, 4), (13, 13, 14), split_at_newline=False, temperature=1.0)
    shapes: dict[str, Callable[[int], int]] = {
        "preset tree, real answers, 48 problems": lambda i: trees(engine, problems[:48], preset, i),
        "tree 4x4x4 of 13+13+14 tokens, 16 problems": lambda i: trees(endless_engine, problems[:16], deep, i),
        "flat 16 answers of 40 tokens, 28 problems": lambda i: trees(endless_engine, problems[:28], flat, i),
        "transformers generate, 448 answers of 40 tokens": lambda _i: generate(policy, problems, 448),
    }
    rates: dict[str, list[float]] = {name: [] for name in shapes}
    for repeat in range(options.repeats + 1):
        for name, sample in shapes.items():
            started = time.process_time()
            tokens = sample(repeat)
            rate = tokens / (time.process_time() - started)
            if repeat:  # the first round warms up
                rates[name].append(rate)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    if options.json:
        print(json.dumps(medians))
        return
    reference = medians["transformers generate, 448 answers of 40 tokens"]
    heading = f"unique tokens per CPU-second, median of {options.repeats}"
    print(f"{heading:<52}{'tok/CPU-s':>10}{'ratio':>8}")
    for name, rate in medians.items():
        print(f"{name:<52}{rate:>10,.0f}{rate / reference:>8.2f}")


if __name__ == "__main__":
    main()
