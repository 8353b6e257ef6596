"""What made a run's numbers, whether it was trained here or its trees were imported.

Pages, audits and exports ask here and not the config, since an imported run has none.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import ValidationError

from trainer.config import RunConfig, stored_config
from trainer.credit import CreditPlan, credit_plan
from trainer.presets import PRESETS
from trainer.tree_lines import Estimator, estimator_of
from webapp.runs.method import Method, method_of
from webapp.runs.models import Run


@dataclasses.dataclass(frozen=True, slots=True)
class HowMade:
    """What is known of how a run's trees were made. `config` None: they were imported. `plan` None: nor is
    the estimator known. `imported`: the trees come from a file.
    """

    config: RunConfig | None
    plan: CreditPlan | None
    imported: bool = False

    @classmethod
    def of(cls, made: RunConfig | HowMade) -> HowMade:
        """A config is a run that was trained here."""
        return made if isinstance(made, HowMade) else cls(made, credit_plan(made))


UNKNOWN_ESTIMATOR = "The trees were imported, and the estimator that made their numbers is not known here."


def how_made(run: Run) -> HowMade:
    """Raises ValidationError for a run that was trained by another version of this program."""
    if run.is_imported:
        return HowMade(None, plan_of(run), imported=True)
    return HowMade.of(stored_config(run.config))


def config_of(run: Run) -> RunConfig | None:
    """The config that it was trained with; None: it was imported, or the config is of another version."""
    if run.is_imported:
        return None
    try:
        return stored_config(run.config)
    except ValidationError:
        return None


def imported(run: Run) -> dict[str, Any] | None:
    """What was imported: `file, sha256, trees, runs, estimator, agrees, disagreement`; None: it was trained
    here.
    """
    return run.config if run.is_imported else None


def estimator_of_run(run: Run) -> Estimator | None:
    """What made its numbers; of imported trees, what their file said."""
    if run.is_imported:
        said = run.config.get("estimator")
        return None if said is None else Estimator(**said)
    config = config_of(run)
    return None if config is None else estimator_of(config, method_of(config).formula)


def plan_of(run: Run) -> CreditPlan | None:
    """The plan to compute its numbers again. None: not known; of imported trees it is known where their file
    names a preset of ours that comes to their numbers.
    """
    if run.is_imported:
        estimator = estimator_of_run(run)
        return estimator.plan() if estimator is not None and run.config.get("agrees") else None
    config = config_of(run)
    return None if config is None else credit_plan(config)


def method_of_run(run: Run) -> Method | None:
    """Its algorithm in words, or None where that is not known."""
    if not run.is_imported:
        config = config_of(run)
        return None if config is None else method_of(config)
    estimator = estimator_of_run(run)
    preset = None if estimator is None else PRESETS.get(estimator.preset or "")
    if preset is None or not run.config.get("agrees"):
        return None
    # How they were sampled and what learned from them is not known.
    return dataclasses.replace(method_of(preset.config), sampling="", learning="", changes=())
