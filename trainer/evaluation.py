"""Held-out accuracy of the policy as it is: one sample at temperature 1, and greedy. Changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from trainer.data import Problem
from trainer.intervals import wilson_interval
from trainer.sampling.engine import Engine, SamplingPlan
from trainer.seeding import named_seed
from trainer.tree import Verdict
from trainer.verifiers import JudgeAnswer, verify_trees


def evaluate(
    engine: Engine,
    problems: Sequence[Problem],
    judge: JudgeAnswer,
    *,
    most_tokens: int,
    seed: int,
    should_stop: Callable[[], bool],
    on_progress: Callable[[int, int], None],
) -> dict[str, float]:
    """`eval/...` metrics. Every evaluation of a run draws the same random numbers, so that two differ by the
    policy alone.

    `most_tokens`: longest answer. Raises what `Engine.sample` raises.
    """
    values: dict[str, float] = {}
    for part, (word, temperature) in enumerate((("sampled", 1.0), ("greedy", 0.0))):
        trees = engine.sample(
            problems,
            SamplingPlan((1,), (most_tokens,), split_at_newline=False, temperature=temperature),
            seed=named_seed(seed, "evaluation"),
            step=0,
            should_stop=should_stop,
            on_progress=lambda done, total, part=part: on_progress(part * total + done, 2 * total),  # type: ignore[misc]
        )
        verdicts = [tree.verdict[1:] for tree in verify_trees(trees, judge)]
        judged = sum(int((found != Verdict.ERROR).sum()) for found in verdicts)
        correct = sum(int((found == Verdict.CORRECT).sum()) for found in verdicts)
        low, high = wilson_interval(correct, judged)
        values[f"eval/pass1_{word}"] = correct / judged if judged else math.nan
        values[f"eval/pass1_{word}_low"], values[f"eval/pass1_{word}_high"] = low, high
    return values
