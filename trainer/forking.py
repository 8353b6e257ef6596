"""What a fork may change of the run whose checkpoint it begins with. Torch-free: the form reads it, too."""

from __future__ import annotations

from trainer.config import RunConfig

FIXED_IN_A_FORK = frozenset({"model"})  # sections of the config that the checkpoint's tensors depend on


def what_a_fork_may_not_change(saved: RunConfig, config: RunConfig) -> list[str]:
    """Knobs that the checkpoint's tensors depend on and that differ; the weights and AdamW's state fit any
    other change. `model.path` is a folder in one and a name in another, so whoever knows both compares it.
    """
    before, after = saved.model_dump(mode="json"), config.model_dump(mode="json")
    differing = [
        f"{section}.{key}"
        for section in sorted(FIXED_IN_A_FORK)
        for key in after[section]
        if (section, key) != ("model", "path") and before[section].get(key) != after[section][key]
    ]
    if _has_value_head(saved) != _has_value_head(config):
        differing.append("objective.value_weight")
    return differing


def _has_value_head(config: RunConfig) -> bool:
    return config.objective.kind == "supervised" and bool(config.objective.value_weight)
