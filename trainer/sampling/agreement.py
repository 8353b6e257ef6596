"""Does the engine sample from the policy that is trained? Asserted at the start of every run and every few
steps, on the engine in use: with stale or wrong weights its samples still read well, but push the wrong
way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

from trainer.data import Problem
from trainer.policy import Policy
from trainer.sampling.engine import Attempt, Engine, SamplingPlan, attempt_once, ends_together
from trainer.tree import RolloutTree

TOLERANCE: Final = 1e-4  # nats, float32
MOST_PROBLEMS: Final = 2
SEGMENT_TOKENS: Final = (6, 10)  # of the trees that are compared
COMPARED_TOKENS: Final = sum(SEGMENT_TOKENS)  # behind a prompt


class EngineMismatchError(ValueError):
    """The engine's logprobs are not the policy's."""


def check_against_policy(
    engine: Engine,
    policy: Policy,
    problems: Sequence[Problem],
    *,
    temperature: float = 1.0,
    tolerance: float = TOLERANCE,
    attempt: Attempt = attempt_once,
) -> float:
    """Sample small trees below the first problems by the weights that the engine has, and compare every
    logprob with the policy's own. Returns the largest gap in nats; raises EngineMismatchError where one is
    larger than `tolerance`. `attempt` is what samples, on each rank by itself.
    """
    plan = SamplingPlan((2, 2), SEGMENT_TOKENS, split_at_newline=False, temperature=temperature)

    def sample(own: Sequence[Problem]) -> list[RolloutTree]:
        return attempt(
            lambda: engine.sample(
                own,
                plan,
                seed=0,
                step=0,
                should_stop=lambda: False,
                on_progress=lambda _done, _total: None,
            )
        )

    # Of several ranks each has an engine, or a part of one.
    compared = problems[: max(MOST_PROBLEMS, policy.ranks.size)]
    trees = policy.ranks.grown(compared, sample, ends_together(engine), is_shared=engine.is_shared)
    largest = 0.0
    for tree in trees:
        for leaf in np.flatnonzero(tree.is_leaf()).tolist():
            engine_logprobs, policy_logprobs = _both(policy, tree, leaf, temperature)
            gaps = np.abs(engine_logprobs - policy_logprobs)
            if not gaps.max() <= tolerance:  # also when it is no number
                place = int(gaps.argmax())
                raise EngineMismatchError(
                    f"The {engine.name} engine does not sample from the policy: token {place + 1} of an "
                    f"answer to problem {tree.problem_id} has logprob {engine_logprobs[place]:.6f} in the "
                    f"engine and {policy_logprobs[place]:.6f} in the policy; at most {tolerance:g} may lie "
                    "between them. Training on such samples would push the wrong way. Choose another engine, "
                    "or report this with the model's config.json."
                )
            largest = max(largest, float(gaps.max()))
    return largest


@torch.no_grad()
def _both(policy: Policy, tree: RolloutTree, leaf: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """[T] logprobs of an answer's tokens by the engine, and by the policy."""
    parts = [slice(tree.token_offsets[n], tree.token_offsets[n + 1]) for n in tree.path(leaf)]
    tokens = np.concatenate([tree.tokens[part] for part in parts])
    prompt = int(tree.token_counts()[0])
    columns = torch.arange(prompt, len(tokens), device=policy.device)
    row = torch.from_numpy(tokens.astype(np.int64))[None].to(policy.device)
    own = policy.logprobs(row, torch.zeros_like(columns), columns, temperature or 1.0)
    return np.concatenate([tree.logprobs[part] for part in parts])[prompt:], own.cpu().numpy()
