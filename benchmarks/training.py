"""Packed against flat training: the same gradient, how much less work?

    python -m benchmarks.training

Full trees of each shape with random rewards, on the tiny reasoner, one torch thread. The two layouts take
turns in one process; CPU seconds are medians. The token ratio is the limit; both gradients are compared.

*Products* is the limit of the multiplications: linear layers by tokens, attention by query-key pairs. It is
lower, because a tree's unique tokens are mostly its deep ones, whose paths are long.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import numpy as np
import torch

from benchmarks.parts import machine
from benchmarks.shapes import Shape, full_tree, multiplications
from trainer.credit import CreditPlan, credit_trees
from trainer.optim import Optimiser
from trainer.packing import flatten, pack
from trainer.policy import load_policy
from trainer.presets import PRESETS
from trainer.schema.objective import PolicyObjective
from trainer.schema.training import TrainingConfig

TURNS = 7


SHAPES = (
    Shape("N=4, D=3, L=16", (4, 4, 4), (16, 16, 16), 8),
    Shape("binary, D=7, L=12", (2,) * 7, (12,) * 7, 6),
    Shape("N=8, D=3, L=24", (8, 8, 8), (24, 24, 24), 2),
    Shape("4, 2, 2 of 14, 14, 24", (4, 2, 2), (14, 14, 24), 24),
    Shape("flat, 8 answers of 48", (8,), (48,), 24),
    Shape("flat, 2 answers of 96", (2,), (96,), 48),
    Shape("ragged chain, D=12", (2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1), (6,) * 12, 12),
)


def main() -> None:
    torch.set_num_threads(1)
    print(machine())
    policy = load_policy("tiny-reasoner")
    credit = PRESETS["grpo-tiny"].config.credit
    training = TrainingConfig(microbatch_tokens=16384)
    optimiser = Optimiser(policy, training, PolicyObjective(), "trajectory")
    print(
        f"{'shape':<24}{'packed':>9}{'flat':>9}{'limit':>7}{'products':>9}{'faster':>8}"
        f"{'of limit':>9}{'of prod.':>9}{'gradient':>11}"
    )
    for shape in SHAPES:
        trees = [full_tree(shape, n, policy.model.config.vocab_size) for n in range(shape.problems)]
        trees = credit_trees(trees, CreditPlan(credit))
        (data,) = optimiser.data([trees], [], 1)
        rng = np.random.default_rng(0)
        old = [known + rng.normal(0, 0.2, len(known)) for known in optimiser.logprobs(policy, data.weights)]
        data = replace(data, old=old)
        seconds: dict[str, list[float]] = {"packed": [], "flat": []}
        tokens, gradients = {}, {}
        for _ in range(TURNS):
            for layout, spent in seconds.items():
                began = time.process_time()
                result, _ = optimiser.gradient(data, lambda: False, layout=layout)
                spent.append(time.process_time() - began)
                tokens[layout] = result.computed_tokens
                gradients[layout] = torch.cat([p.grad.flatten() for p in policy.model.parameters()])
        limit = tokens["flat"] / tokens["packed"]
        products = multiplications(
            policy.model, flatten(data.weights, training.microbatch_tokens)
        ) / multiplications(policy.model, pack(data.weights, training.microbatch_tokens))
        packed, flat = statistics.median(seconds["packed"]), statistics.median(seconds["flat"])
        away = float((gradients["packed"] - gradients["flat"]).norm() / gradients["flat"].norm())
        print(
            f"{shape.name:<24}{packed:>8.3f}s{flat:>8.3f}s{limit:>7.2f}{products:>9.2f}{flat / packed:>8.2f}"
            f"{flat / packed / limit:>9.2f}{flat / packed / products:>9.2f}{away:>11.1e}"
        )


if __name__ == "__main__":
    main()
