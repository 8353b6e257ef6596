"""RunConfig: every knob of a run, with its bounds, unit and reason.

The one list of fields in Arborist (design decision "one config schema"): the browser form, the YAML file,
the API and the trainer all read it. Its sections stand in `trainer.schema`, one file each. It holds no
defaults for a whole algorithm; those are presets (`presets.py`). An algorithm is one choice per part:
sampler, reward, credit (backup, baseline, scale, spread, filter, leaves) and objective; what goes together is
decided here and in the sections' validators. Torch-free: a web process imports it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final, Literal, Self

from pydantic import model_validator

from trainer.schema.credit import CreditConfig
from trainer.schema.data import ChainData, Data
from trainer.schema.engine import AutoEngine, Engine
from trainer.schema.model import ModelConfig
from trainer.schema.objective import Objective, PolicyObjective
from trainer.schema.reward import RewardConfig
from trainer.schema.sampler import Sampler, SegmentTreeSampler
from trainer.schema.section import Section, knob
from trainer.schema.training import (
    CheckpointConfig,
    EvaluationConfig,
    RecordingConfig,
    ResourceConfig,
    TrainingConfig,
)
from trainer.schema.verifier import Gsm8kVerifier, Verifier

SCHEMA_VERSION: Final = 2
MAX_TOKENS_PER_STEP: Final = 500_000_000


class RunConfig(Section):
    """A complete run. A launched run stores exactly this, and it never changes again."""

    schema_version: Literal[2] = SCHEMA_VERSION
    preset: str = knob(
        "treerpo-tiny",
        title="Preset",
        description="The preset this config started from.",
        pattern=r"^[a-z0-9+-]{1,64}$",
    )
    seed: int = knob(
        1,
        title="Seed",
        description="Same seed, same machine: same numbers, bit for bit (CPU).",
        ge=0,
        le=2**31 - 1,
    )
    model: ModelConfig = ModelConfig()
    data: Data = ChainData()
    verifier: Verifier = Gsm8kVerifier()
    reward: RewardConfig = RewardConfig()
    sampler: Sampler = SegmentTreeSampler()
    engine: Engine = AutoEngine()
    credit: CreditConfig = CreditConfig()
    objective: Objective = PolicyObjective()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    recording: RecordingConfig = RecordingConfig()
    resources: ResourceConfig = ResourceConfig()

    @model_validator(mode="after")
    def _batch_is_bounded(self) -> Self:
        bounds = self.sampler.bounds
        tokens = bounds.tokens * self.training.problems_per_step
        if tokens > MAX_TOKENS_PER_STEP:
            leaves = bounds.leaves * self.training.problems_per_step
            raise ValueError(
                f"one step could sample {tokens:,} tokens ({leaves:,} leaves); at most "
                f"{MAX_TOKENS_PER_STEP:,} are allowed. "
                "Lower training.problems_per_step, the branching or the segment length."
            )
        return self

    @model_validator(mode="after")
    def _processes_fit(self) -> Self:
        """Refuse what several processes cannot do yet, or have nothing to do in."""
        processes = self.resources.processes
        split = self.engine.tensor_parallel if self.engine.kind == "vllm" else 1
        if split not in (1, processes):
            raise ValueError(
                f"engine.tensor_parallel {split} splits one engine over the run's processes, of which there "
                f"are resources.processes {processes}. Set both alike, or tensor_parallel 1."
            )
        engines = self.resources.engine_processes
        if engines and split > 1:
            raise ValueError(
                f"engine.tensor_parallel {split} splits one engine over the processes that train, and "
                f"resources.engine_processes {engines} sample in their place, each with a whole engine. Set "
                "tensor_parallel 1, or engine_processes 0."
            )
        if engines > self.training.problems_per_step:
            raise ValueError(
                f"resources.engine_processes {engines} is more than training.problems_per_step "
                f"{self.training.problems_per_step}: whole trees are sampled by one process. Set "
                f"engine_processes {self.training.problems_per_step} or fewer."
            )
        if processes == 1:
            return self
        if processes > self.training.problems_per_step:
            raise ValueError(
                f"resources.processes {processes} is more than training.problems_per_step "
                f"{self.training.problems_per_step}: whole trees are sampled and trained on one process. "
                f"Set processes {self.training.problems_per_step} or fewer."
            )
        if (
            self.engine.kind == "vllm"
            and not engines
            and self.sampler.kind == "search_tree"
            and self.sampler.evaluator == "value_head"
        ):
            raise ValueError(
                "sampler.evaluator value_head is read off the policy where engine.kind is vllm, and of "
                f"resources.processes {processes} each holds a part of it and asks for other values. Set "
                "engine.kind local, evaluator rollout, processes 1, or engine_processes."
            )
        ahead = self.training.max_staleness
        if ahead and self.reward.kl_coefficient:
            raise ValueError(
                f"reward.kl_coefficient {self.reward.kl_coefficient:g} compares what was just sampled with a "
                f"model that is split over resources.processes {processes}, which gather the policy's parts "
                f"at the same time where training.max_staleness {ahead} samples beside training. Set "
                "kl_coefficient 0 (objective.regularizer k3 is another KL term), max_staleness 0, or "
                "processes 1."
            )
        if ahead and split > 1:
            raise ValueError(
                f"engine.tensor_parallel {split} makes the processes wait for one another at every token "
                f"they sample, and training.max_staleness {ahead} trains at the same time, where they also "
                "wait for one another: two of them could wait crosswise. Set tensor_parallel 1, so that each "
                "has an engine of its own, or max_staleness 0."
            )
        return self

    @model_validator(mode="after")
    def _rests_fit(self) -> Self:
        """Refuse an engine that sleeps while it is to sample, or where it is in nobody's way."""
        if (
            self.engine.kind == "vllm"
            and self.engine.sleep_while_training
            and self.resources.engine_processes
        ):
            raise ValueError(
                f"engine.sleep_while_training makes room for training on the same device, and with "
                f"resources.engine_processes {self.resources.engine_processes} engines have their own. Set "
                "one of them to false or 0."
            )
        if self.engine.kind == "vllm" and self.engine.sleep_while_training and self.training.max_staleness:
            raise ValueError(
                f"engine.sleep_while_training has nothing to sleep in: with training.max_staleness "
                f"{self.training.max_staleness} the engine samples while the policy trains. Set one of them "
                "to false or 0."
            )
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        """Refuse parts of different sections that are not defined together, with the reason."""
        sampler, credit, objective, reward = self.sampler, self.credit, self.objective, self.reward
        low, high = reward.bounds
        if credit.scale.kind == "bernoulli_variance" and (low < 0 or high > 1 or reward.kl_coefficient):
            raise ValueError(
                f"credit.scale bernoulli_variance needs rewards from 0 to 1, and reward gives {low:g} to "
                f"{high:g}{' less a KL term' if reward.kl_coefficient else ''}. Set reward.correct 1, "
                "reward.incorrect 0 without shaping, or choose another scale."
            )
        if credit.backup == "quality" and (
            low < 0 or high > 1 or reward.shaping.kind != "none" or reward.kl_coefficient
        ):
            raise ValueError(
                "credit.backup quality needs rewards 0 and 1. Set reward.correct 1, reward.incorrect 0, "
                "without shaping and without KL in the reward."
            )
        uses_budgets = sampler.kind == "flat" and bool(sampler.budgets)
        if (credit.baseline.kind == "budget" or reward.shaping.kind == "budget") and not (
            uses_budgets and reward.shaping.kind == "budget"
        ):
            raise ValueError(
                "HBPO's baseline and reward go by token budgets. Set sampler flat with budgets, and "
                "reward.shaping budget."
            )
        if uses_budgets and credit.baseline.kind not in (
            "budget",
            "group_mean",
            "leave_one_out",
            "log_avg_exp",
            "tree_and_prompt",
        ):
            raise ValueError(
                "sampler.budgets needs a baseline that compares answers. Use budget or group_mean."
            )
        if credit.backup == "visit_weighted" and sampler.kind != "search_tree":
            raise ValueError(
                f"credit.backup visit_weighted counts the visits of a search, and sampler {sampler.kind} "
                "makes none. Use child_mean or leaf_mean."
            )
        if (
            sampler.kind == "search_tree"
            and sampler.evaluator == "value_head"
            and not (objective.kind == "supervised" and objective.value_weight > 0)
        ):
            raise ValueError(
                "sampler.evaluator value_head needs a value head that is trained. Use objective supervised "
                "with a value_weight above 0, or evaluator rollout."
            )
        if sampler.top_k and objective.kind != "policy":
            raise ValueError(
                f"sampler.top_k {sampler.top_k} draws from a part of the policy's distribution, and "
                f"objective {objective.kind} trains all of it. Set top_k 0 and top_p 1, or objective policy."
            )
        if objective.kind == "policy" and credit.baseline.kind == "none":
            raise ValueError("objective policy needs advantages. Choose a baseline.")
        if objective.kind != "policy" and credit.baseline.kind != "none":
            raise ValueError(
                f"objective {objective.kind} uses values, not advantages. Set credit.baseline to none."
            )
        if objective.kind == "policy" and objective.segment_weight == "answers" and credit.spread != "node":
            raise ValueError(
                "objective.segment_weight answers belongs to credit.spread node; other spreads do it anyway."
            )
        if (
            self.training.max_staleness
            and objective.kind == "policy"
            and objective.ratio != "none"
            and objective.importance.kind == "none"
        ):
            raise ValueError(
                f"training.max_staleness {self.training.max_staleness} trains on what an older policy "
                f"sampled, and objective.ratio {objective.ratio} begins at the policy before the update. Set "
                "objective.importance truncated or masked, or training.max_staleness 0."
            )
        if (
            objective.kind == "policy"
            and objective.expert.kind == "chord"
            and self.data.kind not in ("chain", "graph", "jsonl", "parquet", "datasets")
        ):
            raise ValueError("objective.expert needs worked solutions in the data.")
        return self

    def sha256(self) -> str:
        """Hash of the canonical JSON: equal configs, equal hash."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def stored_config(stored: Mapping[str, Any]) -> RunConfig:
    """The config that a run was stored with, of this schema version or an older one. Raises ValidationError.

    `Any`: JSON. Version 1 had the baseline's group beside it, one objective, and computed answers flat.
    """
    if stored.get("schema_version") != 1:
        return RunConfig.model_validate(stored)
    new = {**stored, "schema_version": SCHEMA_VERSION}
    credit = dict(stored.get("credit", {}))
    if "group" in credit:
        credit["baseline"] = {"kind": "group_mean", "group": credit.pop("group")}
    new["credit"] = credit
    new["objective"] = {"kind": "policy", **stored.get("objective", {})}
    return RunConfig.model_validate(new)
