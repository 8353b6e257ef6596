"""Tokens per CPU-second of the local sampler on the tiny reasoner, beside transformers `generate` in the same
run.

    python -m benchmarks.sampling

Three shapes take turns (A, B, C, A, B, C, ...), so that a busy machine slows all of them alike; medians are
printed. Only unique tokens count: a prefix that several answers share counts once. `generate` writes flat
answers of the same length. The trees are those of the preset TreeRPO · tiny, but never end early, so that all
shapes do equal work; their unique tokens per leaf are compared with the formula of a full tree,
L N (N^D - 1) / (N - 1) / N^D for segments of one length L.

A second table has every sampler, as its tiny preset uses it, on real answers: tokens drawn per CPU-second, of
them in the tree; unique tokens per leaf, beside the mean length of an answer, which is what flat sampling
would take; and tokens that were read a second time, one for each segment that starts inside another, as a
share of those drawn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from trainer.data import Problem, load_data
from trainer.policy import Policy, load_policy
from trainer.presets import PRESETS
from trainer.sampling.engine import Plan, SamplingPlan, plan_from_config
from trainer.sampling.local_engine import LocalEngine
from trainer.schema.data import ChainData
from trainer.token_counts import count_tokens
from trainer.tree import FinishReason, RolloutTree
from trainer.verifiers import judge_gsm8k

NEW_TOKENS = 40
SAMPLERS = {
    "flat": "grpo-tiny",
    "flat, merged": "step-grpo-tiny",
    "flat, budgets": "hbpo-tiny",
    "segment tree": "treerpo-tiny",
    "width tree": "treepo-tiny",
    "surprisal forks": "treerl-tiny",
    "entropy forks": "treeadv-tiny",
    "uniform forks": "tree-grpo-tiny",
    "lookahead": "latr-tiny",
    "search, PUCT": "mcts-dpo-tiny",
    "search, UCT": "rest-mcts-tiny",
}


@dataclass(frozen=True, slots=True)
class SamplerFigures:
    """Of one sampler: tokens drawn per CPU-second, and the share of them in the trees; answers per tree;
    unique tokens per answer, and the tokens of an answer; tokens read again as a share of those drawn."""

    sampled_per_cpu_second: float
    in_tree: float
    leaves: float
    unique_per_leaf: float
    answer_tokens: float
    reread: float


def figures(engine: LocalEngine, problems: list[Problem], slug: str, repeats: int) -> SamplerFigures:
    """A sampler on real answers; the median of the rates."""
    sampler = PRESETS[slug].config.sampler
    plan = plan_from_config(sampler, judge_gsm8k)
    rates, found = [], []
    before = engine.spent
    for step in range(repeats + 1):
        started, spent = time.process_time(), engine.spent
        grown = sample(engine, problems, plan, step)
        rate = (engine.spent - spent).sampled / (time.process_time() - started)
        if step:
            rates.append(rate)
        found += grown
    spent = engine.spent - before
    counts = [np.where(tree.finish[1:] == FinishReason.GIVEN, 0, tree.token_counts()[1:]) for tree in found]
    unique = sum(int(c.sum()) for c in counts)
    leaves = sum(int(tree.answer_counts()[0]) for tree in found)
    flat = sum(int((c * t.answer_counts()[1:]).sum()) for c, t in zip(counts, found, strict=True))
    return SamplerFigures(
        sampled_per_cpu_second=statistics.median(rates),
        in_tree=unique / spent.sampled,
        leaves=leaves / len(found),
        unique_per_leaf=unique / leaves,
        answer_tokens=flat / leaves,
        reread=spent.reread / spent.sampled,
    )


def sample(engine: LocalEngine, problems: list[Problem], plan: Plan, step: int) -> list[RolloutTree]:
    return engine.sample(
        problems, plan, seed=1, step=step, should_stop=lambda: False, on_progress=lambda _done, _total: None
    )


def trees(engine: LocalEngine, problems: list[Problem], plan: Plan, step: int) -> int:
    """Unique tokens sampled."""
    found = sample(engine, problems, plan, step)
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
    leaves = 4**3
    measured = trees(endless_engine, problems[:1], deep, 1) / leaves
    policy.add_value_head(1)  # for the search that asks one
    engine.sync()
    samplers = {
        name: figures(engine, problems[:32], slug, options.repeats) for name, slug in SAMPLERS.items()
    }
    if options.json:
        print(json.dumps(medians | {name: asdict(found) for name, found in samplers.items()}))
        return
    reference = medians["transformers generate, 448 answers of 40 tokens"]
    heading = f"unique tokens per CPU-second, median of {options.repeats}"
    print(f"{heading:<52}{'tok/CPU-s':>10}{'ratio':>8}")
    for name, rate in medians.items():
        print(f"{name:<52}{rate:>10,.0f}{rate / reference:>8.2f}")
    counts = count_tokens(deep.branching, deep.segment_tokens)
    formula = counts.sampled_unique / counts.leaves
    print(f"\nunique tokens per leaf, tree 4x4x4: {measured:.4f} measured, {formula:.4f} by the formula")
    print(
        f"\n{'sampler, tiny preset, real answers':<36}{'tok/CPU-s':>10}{'in tree':>9}{'answers':>9}", end=""
    )
    print(f"{'tokens/answer':>15}{'if flat':>9}{'re-read':>9}")
    for name, found in samplers.items():
        print(
            f"{name:<36}{found.sampled_per_cpu_second:>10,.0f}{found.in_tree:>9.2f}{found.leaves:>9.1f}"
            f"{found.unique_per_leaf:>15.1f}{found.answer_tokens:>9.1f}{found.reread:>9.3f}"
        )


if __name__ == "__main__":
    main()
