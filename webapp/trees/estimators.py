"""The estimators that a stored tree can be looked at under, whichever trained it: those of the presets."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from trainer.credit import CreditPlan, credit_plan
from trainer.presets import PRESETS
from webapp.errors import RequestError

# Their scale is of a step's whole batch, which a tree of another run does not remember.
_NEED_A_BATCH = ("batch_std", "batch_whiten")


@cache
def estimators() -> Mapping[str, tuple[str, CreditPlan]]:
    """slug -> title and plan: one preset of each way to give credit. Plain GRPO comes first."""
    found: dict[str, tuple[str, CreditPlan]] = {}
    known: list[CreditPlan] = []
    for preset in sorted(
        PRESETS.values(), key=lambda preset: (preset.slug != "grpo", preset.scale != "paper")
    ):
        config = preset.config
        if config.objective.kind != "policy" or config.credit.scale.kind in _NEED_A_BATCH:
            continue
        plan = credit_plan(config)
        title = preset.title.removesuffix(" · tiny")
        if plan not in known and title not in (other for other, _ in found.values()):
            known.append(plan)
            found[preset.slug] = (title, plan)
    return found


def plan_of(slug: str) -> CreditPlan:
    """Raises RequestError(400) naming what there is."""
    found = estimators().get(slug)
    if found is None:
        raise RequestError(
            400, f"No estimator {slug[:80]!r} to compare with. There are: {', '.join(estimators())}."
        )
    return found[1]
