"""One tree under other estimators than the one that trained it. Torch-free.

All numbers come from `credit.credit_of`, the one function of all estimators.
"""

from __future__ import annotations

from typing import Final

from trainer.credit import CreditPlan, credit_of
from trainer.schema.credit import CreditConfig, GroupMeanBaseline, GroupStdScale, NoFilter
from trainer.tree import RolloutTree
from trainer.values import Floats

_GRPO: Final = CreditPlan(
    CreditConfig(
        backup="leaf_mean",
        baseline=GroupMeanBaseline(group="prompt"),
        scale=GroupStdScale(),
        spread="leaf_mean",
        filter=NoFilter(),
    )
)


def grpo_advantages(tree: RolloutTree) -> Floats:
    """[N] what plain GRPO on the leaves would give each segment: the mean advantage of the answers that run
    through it, A = (R - mean R) / (std R + eps) over all answers of the tree. NaN where no answer below is
    scored, or where there is but one.
    """
    return credit_of(tree, _GRPO).advantage
