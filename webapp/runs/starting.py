"""What the form of a new run starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trainer.config import RunConfig
from trainer.forking import FIXED_IN_A_FORK
from trainer.presets import PRESETS, Preset
from webapp.runs.models import Checkpoint, Run


@dataclass(frozen=True, slots=True)
class Start:
    """`config` fills the form. `preset`: its preset, where that is known here. `run`: whose config it is;
    `chosen`: which of its `checkpoints` the new run begins with.

    `proposed` is typed in already; of `fixed` sections nothing can be changed.
    """

    config: RunConfig
    preset: Preset | None
    run: Run | None = None
    checkpoints: Sequence[Checkpoint] = ()
    chosen: Checkpoint | None = None
    proposed: Mapping[str, str] = field(default_factory=dict)
    fixed: frozenset[str] = frozenset()

    @property
    def verb(self) -> str:
        return "new" if self.run is None else "clone" if self.chosen is None else "fork"

    def is_fixed(self, path: str) -> bool:
        return path.partition(".")[0] in self.fixed


def of_preset(preset: Preset) -> Start:
    return Start(preset.config, preset)


def of_run(run: Run, config: RunConfig) -> Start:
    """The run's config; a fork's too begins with the base model then, not with the checkpoint."""
    return Start(config, PRESETS.get(config.preset), run)


def of_checkpoint(run: Run, config: RunConfig, kept: Sequence[Checkpoint], chosen: int) -> Start:
    """`kept`: at least one, the newest first; that is taken where there is no `chosen` one. With no step left
    to make, twice the steps are proposed.
    """
    one = next((row for row in kept if row.id == chosen), kept[0])
    proposed = {}
    if one.step >= config.training.steps:
        proposed["training.steps"] = str(2 * config.training.steps)
    preset = PRESETS.get(config.preset)
    return Start(config, preset, run, kept, one, proposed, FIXED_IN_A_FORK)
