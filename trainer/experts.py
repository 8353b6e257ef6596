"""Worked solutions as trees of a single segment, for objectives that mix an expert in (CHORD)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.data import Problem
from trainer.policy import Policy
from trainer.tree import FinishReason, RolloutTree, sampled_tree


def expert_count(answers: int, share: float) -> int:
    """Experts so that they are `share` of all answers, their own included; at least one."""
    return max(1, round(answers * share / (1 - share)))


def expert_trees(policy: Policy, problems: Sequence[Problem], count: int, step: int) -> list[RolloutTree]:
    """The first `count` problems with a worked solution, each as prompt and solution with an end token.
    Raises
    ValueError when none has one.
    """
    solved = [problem for problem in problems if problem.solution][:count]
    if not solved:
        raise ValueError(
            "objective.expert needs worked solutions, and not one problem of this step has any. Use data "
            "whose answers hold the solution before `#### `, or set objective.expert to none."
        )
    trees = []
    for problem in solved:
        prompt = policy.encode(problem.prompt)
        solution = [*policy.encode_text(problem.solution), min(policy.end_ids)]
        trees.append(
            sampled_tree(
                problem_id=problem.problem_id,
                reference_answer=problem.reference_answer,
                step=step,
                policy_version=step - 1,
                parent=[-1, 0],
                segment_tokens=[prompt, solution],
                segment_logprobs=[np.zeros(len(prompt)), np.zeros(len(solution))],
                segment_entropies=[np.zeros(len(prompt)), np.zeros(len(solution))],
                finish=[FinishReason.NONE, FinishReason.EOS],
                texts=[problem.prompt, problem.solution],
            )
        )
    return trees
