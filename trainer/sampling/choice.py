"""The engine that a config chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trainer.policy import Policy
from trainer.ranks import ALONE, Ranks
from trainer.sampling.agreement import TOLERANCE
from trainer.sampling.engine import Engine
from trainer.sampling.local_engine import LocalEngine
from trainer.sampling.remote_engine import EngineProcesses, RemoteEngine
from trainer.schema.engine import Engine as EngineChoice

if TYPE_CHECKING:
    from trainer.sampling.vllm_engine import VllmEngine

HALF_TOLERANCE: Final = 0.25  # nats, bfloat16: logits of small models move by about 0.1


def engine_from_config(
    choice: EngineChoice,
    policy: Policy,
    *,
    label: str,
    ranks: Ranks = ALONE,
    most_positions: int | None = None,
    processes: EngineProcesses | None = None,
) -> Engine:
    """A new engine for the policy's weights. `label`: the run's name in the version tags of weights;
    `ranks`: each of them makes one, at the same time; `most_positions`: longest prompt with its answer, None:
    as many as the model has; `processes`: that sample for this one. Raises EngineError and
    UnsupportedModelError.
    """
    if processes is not None:
        return RemoteEngine(policy, processes, label=label, ranks=ranks, most_positions=most_positions)
    return engine_of_this_process(choice, policy, label=label, ranks=ranks, most_positions=most_positions)


def engine_of_this_process(
    choice: EngineChoice,
    policy: Policy,
    *,
    label: str,
    ranks: Ranks = ALONE,
    most_positions: int | None = None,
) -> LocalEngine | VllmEngine:
    """As `engine_from_config`, of an engine that samples here."""
    if choice.kind == "vllm":
        # Here, so that a run without it does not look for vLLM.
        from trainer.sampling.vllm_engine import VllmEngine

        return VllmEngine(policy, choice, label=label, ranks=ranks, most_positions=most_positions)
    return LocalEngine(policy)


def tolerance(choice: EngineChoice) -> float:
    """How far, in nats, the engine's logprobs may lie from the policy's when a run starts."""
    return HALF_TOLERANCE if choice.kind == "vllm" and choice.dtype != "float32" else TOLERANCE
