"""Steps and optimiser, evaluation, checkpoints, recording, resources. Torch-free."""

from __future__ import annotations

from typing import Final, Literal, Self, get_args

from pydantic import model_validator

from trainer.schema.section import Section, knob

LEAST_MICROBATCH_TOKENS: Final = 64


class TrainingConfig(Section):
    """Steps and the optimiser (AdamW)."""

    steps: int = knob(
        150, title="Steps", unit="steps", description="Sample-and-update rounds.", ge=1, le=1_000_000
    )
    max_sampled_tokens: int = knob(
        0,
        title="Most sampled tokens",
        unit="tokens",
        description="End after the step in which so many tokens were sampled in all, so that methods can be "
        "compared at equal cost. 0: no limit.",
        ge=0,
        le=10**15,
        advanced=True,
    )
    problems_per_step: int = knob(
        48,
        title="Problems per step",
        unit="trees",
        description="One tree is sampled for each.",
        ge=1,
        le=4096,
    )
    learning_rate: float = knob(3e-4, title="Learning rate", description="Peak, after warm-up.", gt=0, le=0.1)
    warmup_steps: int = knob(
        0,
        title="Warm-up",
        unit="steps",
        description="Linear rise of the learning rate.",
        ge=0,
        le=100_000,
        advanced=True,
    )
    weight_decay: float = knob(
        0.0, title="Weight decay", description="AdamW's decoupled decay.", ge=0, le=1, advanced=True
    )
    max_grad_norm: float = knob(
        1.0,
        title="Gradient clip",
        description="Gradients above this norm are scaled down.",
        gt=0,
        le=1000,
        advanced=True,
    )
    updates_per_step: int = knob(
        1,
        title="Updates per step",
        unit="updates",
        description="Optimiser steps per sampled batch; with 1 training is exactly on-policy and nothing "
        "clips.",
        ge=1,
        le=64,
        advanced=True,
    )
    max_staleness: int = knob(
        0,
        title="Staleness bound",
        unit="steps",
        description="0: a step's trees are sampled from the policy that they train. 1: the next step's trees "
        "are sampled while this one's train, by the policy before its updates; needs "
        "objective.importance where ratios are clipped.",
        ge=0,
        le=1,
        advanced=True,
    )
    microbatch_tokens: int = knob(
        32768,
        title="Micro-batch",
        unit="tokens",
        description="Unique tokens per forward pass (padded ones with layout flat). Lower it when memory is "
        "short; results change only by rounding.",
        ge=LEAST_MICROBATCH_TOKENS,
        le=10_000_000,
        advanced=True,
    )
    layout: Literal["packed", "flat"] = knob(
        "packed",
        title="Layout",
        description="packed: every unique token is computed once. flat: every answer is written out. The "
        "gradient is the same; the first batch of every run is computed both ways and compared.",
        advanced=True,
    )
    precision: Literal["float32", "bfloat16"] = knob(
        "float32",
        title="Precision",
        description="bfloat16: autocast in training; weights, logprobs and losses stay float32.",
        advanced=True,
    )
    gradient_checkpointing: bool = knob(
        False,
        title="Gradient checkpointing",
        description="Less memory for about a third more work.",
        advanced=True,
    )


class EvaluationConfig(Section):
    """Held-out accuracy, greedy and sampled, with intervals."""

    every_steps: int = knob(
        10,
        title="Evaluate every",
        unit="steps",
        description="Also before the first step and after the last. 0: only those two.",
        ge=0,
        le=1_000_000,
    )
    problems: int = knob(
        128,
        title="Evaluation problems",
        unit="problems",
        description="Held out; the same ones every time.",
        ge=1,
        le=100_000,
    )
    samples: int = knob(
        1,
        title="Samples per problem (k)",
        unit="answers",
        description="Independent answers; with 2 or more also pass@k (unbiased), maj@k and avg@k.",
        ge=1,
        le=256,
    )
    max_tokens: int = knob(
        0,
        title="Evaluation answer length",
        unit="tokens",
        description="0: as long as the sampler allows.",
        ge=0,
        le=32768,
        advanced=True,
    )


class CheckpointConfig(Section):
    """What is kept to continue from."""

    every_steps: int = knob(
        25,
        title="Checkpoint every",
        unit="steps",
        description="Also at the end and when stopped. 0: only then, and after so many minutes.",
        ge=0,
        le=1_000_000,
        advanced=True,
    )
    every_minutes: int = knob(
        10,
        title="Checkpoint at least every",
        unit="minutes",
        description="After the step in which so long has passed since the last one: no more work than that "
        "is lost when a machine dies. 0: never.",
        ge=0,
        le=10_080,
        advanced=True,
    )
    keep_last: int = knob(
        3,
        title="Keep",
        unit="checkpoints",
        description="Older ones are deleted.",
        ge=1,
        le=1000,
        advanced=True,
    )
    keep_best: bool = knob(
        True,
        title="Keep the best",
        description="Of the checkpoints saved right after an evaluation, also keep the one with the best "
        "sampled accuracy, the first of equals.",
        advanced=True,
    )


class RecordingConfig(Section):
    """What is stored for looking at; never changes training."""

    trees_per_step: int = knob(
        48,
        title="Trees kept",
        unit="per step",
        description="Trees stored of each step, the first ones of the batch. 0: none.",
        ge=0,
        le=4096,
        advanced=True,
    )
    top_k: int = knob(
        5,
        title="Alternatives kept",
        unit="tokens",
        description="Most likely tokens stored beside each sampled one, with their logprobs. 0: none.",
        ge=0,
        le=20,
        advanced=True,
    )
    top_k_share: float = knob(
        0.25,
        title="Trees with alternatives",
        unit="share",
        description="Of all trees, chosen at random, the same ones in every repetition of a run.",
        ge=0,
        le=1,
        advanced=True,
    )


# `gpu.4`: a worker on a machine with four GPUs, of which a run uses as many as it has processes.
QueueName = Literal["cpu", "gpu", "gpu.2", "gpu.4", "gpu.8"]


class ResourceConfig(Section):
    """Where the run is queued, and how many processes train it."""

    queue: QueueName = knob(
        "cpu",
        title="Worker queue",
        description="The resource class: which workers may take the run. The page of the queue says which "
        "classes are served.",
        advanced=True,
    )
    processes: int = knob(
        1,
        title="Processes",
        description="The policy, its gradients and AdamW's state are split over so many processes of one "
        "machine (FSDP2), and each samples its share of the trees; on a GPU class each has a GPU of its own. "
        "What is learnt changes only by rounding.",
        ge=1,
        le=64,
        advanced=True,
    )

    engine_processes: int = knob(
        0,
        title="Engine processes",
        description="0: every process samples on the device that it trains on. Above: so many processes "
        "beside them only sample, each on a device of its own, and the weights are sent to them after every "
        "update. A multiple of the processes; on a GPU class each of either kind has a GPU of its own.",
        ge=0,
        le=64,
        advanced=True,
    )

    @property
    def devices(self) -> int:
        """Processes of either kind: on a GPU class each has a GPU, else a processor."""
        return self.processes + self.engine_processes

    @property
    def gpus(self) -> int:
        """GPUs of a machine of the class; 0: none."""
        kind, _, number = self.queue.partition(".")
        return int(number or 1) if kind == "gpu" else 0

    @model_validator(mode="after")
    def _processes_have_devices(self) -> Self:
        if self.engine_processes % self.processes:
            raise ValueError(
                f"resources.engine_processes {self.engine_processes} cannot be shared out evenly to "
                f"resources.processes {self.processes}. Set a multiple of it, or 0."
            )
        if 0 < self.gpus < self.devices:
            classes = [name for name in get_args(QueueName) if name.startswith("gpu.")]
            enough = [name for name in classes if int(name.removeprefix("gpu.")) >= self.devices]
            instead = f"set resources.queue {enough[0]}, or " if enough else ""
            asked, less = f"{self.processes} processes", f"resources.processes {self.gpus}"
            if self.engine_processes:
                asked += f" and {self.engine_processes} engine processes"
                less = "fewer of either"
            raise ValueError(
                f"{asked} need a GPU each, and class {self.queue} has {self.gpus}: {instead}set {less}."
            )
        return self
