"""What the trainer says happened, one class each.

The trainer emits these, the worker stores them, the page shows them. One event is one JSON line. Torch-free.
Time is for people only: order is the order of emission, and `digest` leaves out everything that a clock
decided.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter

from trainer.text import storable

MetricName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(/[a-z0-9_]+)+$", max_length=200)]

# A sentence may quote a file or a model, so it is made storable before it is judged.
Sentence = Annotated[str, BeforeValidator(lambda text: storable(text) if isinstance(text, str) else text)]

# Metrics under these areas depend on the clock and are left out of `digest`.
TIMED_AREAS = ("speed/",)


class _Event(BaseModel):
    """`time` is Unix seconds. Non-finite floats travel as the strings "NaN", "Infinity" and "-Infinity"."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        ser_json_inf_nan="strings",
        ser_json_bytes="base64",
        val_json_bytes="base64",
    )
    time: float = Field(ge=0)


class Started(_Event):
    """The model and data are loaded; `step` is 0, or the step of the checkpoint that was resumed from."""

    kind: Literal["started"] = "started"
    step: int = Field(ge=0)
    resumed_from: str | None = None
    config_sha256: str
    weights_sha256: str
    parameters: int = Field(ge=0)
    engine: str
    device: str
    versions: dict[str, str]
    training_problems: int | None = Field(description="None: generated without end.")
    evaluation_problems: int = Field(ge=0)
    processes: int = Field(1, ge=1, description="That train it together; `device` is the first one's.")
    engine_processes: int = Field(0, ge=0, description="That sample for them; 0: they sample themselves.")


class GrowingTree(BaseModel):
    """A tree while it is sampled, as far as it is known: breadth-first, node 0 the prompt. parent: -1 for the
    prompt; tokens: 0 while a segment is being written; finish: FinishReason, 0 until then; verdict: Verdict,
    empty until its answers are judged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    problem_id: str = Field(max_length=200)
    parent: list[int]
    tokens: list[int]
    finish: list[int]
    verdict: list[int] = []


class Occupancy(BaseModel):
    """What an engine is at just now. kv_use: share of its key-value memory; cached_share: of the prefixes of
    this call's segments, what was not computed again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    running: int = Field(ge=0, description="Segments that are being written.")
    waiting: int = Field(ge=0, description="Segments and prompts that wait to be.")
    kv_use: float = Field(ge=0)
    cached_share: float = Field(ge=0, le=1)


class Progress(_Event):
    """Where inside a step the trainer is; a hint for people, at most a few per second. It is no part of the
    log: the next one replaces it.
    """

    kind: Literal["progress"] = "progress"
    step: int = Field(ge=0)
    phase: Literal["loading", "sampling", "verifying", "training", "evaluating", "saving"]
    done: int = Field(ge=0)
    total: int = Field(ge=0)
    growing: list[GrowingTree] = Field([], description="The first trees of the step.")
    occupancy: Occupancy | None = Field(None, description="Of the engine, while it samples.")


class Metrics(_Event):
    """Numbers of one step. Names are `area/name`, explained in `metrics.py`. NaN and infinity are kept."""

    kind: Literal["metrics"] = "metrics"
    step: int = Field(ge=0)
    values: dict[MetricName, float]


class TreeSummary(BaseModel):
    """What a list of trees sorts and filters by; computed by `summary.summarise`. Fields with a default came
    later: a spool of an older trainer does not have them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    n_nodes: int
    n_leaves: int = Field(description="Different ends, those that a search gave up included.")
    n_correct: int = Field(
        description="Answers; this and the next three count a leaf as often as it was sampled."
    )
    n_unparsed: int
    n_truncated: int
    n_errors: int
    depth: int
    tokens: int = Field(description="Unique tokens sampled: every segment once, the prompt not counted.")
    tokens_flat: int = Field(description="The same answers written out path by path.")
    value: float = Field(description="Backed-up value of the root; NaN if no leaf was scored.")
    advantage_min: float
    advantage_max: float
    zero_variance_share: float = Field(
        description="Share of sibling groups whose values are all equal; NaN without groups."
    )
    mean_entropy: float = Field(description="Over the sampled tokens, nats; NaN without any.")
    n_answers: int | None = Field(
        None,
        description="Sampled answers: copies counted, what a search gave up not. None: as many as leaves.",
    )
    n_given_up: int = Field(0, description="Leaves that a search gave up.")
    advantage_spread: float = Field(math.nan, description="Largest less smallest; NaN without credit.")
    max_entropy: float = Field(math.nan, description="Over the sampled tokens, nats.")
    mean_logprob: float = Field(math.nan, description="Over the sampled tokens, nats.")
    cliff: float = Field(
        math.nan, description="Drop of the value cliff (`cliffs.value_cliff`), negative; NaN without one."
    )
    cliff_node: str = Field("", description="Name of the node below that edge.")
    duplicate_share: float = Field(
        math.nan,
        description="Share of segments that repeat an earlier sibling token for token; NaN without siblings.",
    )
    grpo_flips: int | None = Field(
        None,
        description="Credited segments that plain GRPO on the leaves would push the other way; None where "
        "the two cannot be compared.",
    )


class TreeSampled(_Event):
    """One rollout tree with verdicts, values and advantages. `payload` is `RolloutTree.to_payload()`."""

    kind: Literal["tree"] = "tree"
    step: int = Field(ge=0)
    index: int = Field(ge=0, description="Place in the step's batch.")
    problem_id: str = Field(max_length=200)
    prompt: str
    summary: TreeSummary
    payload: bytes


class PackingChecked(_Event):
    """The first batch was computed packed (every token once) and flat (every answer written out), and
    compared:
    |g_packed - g_flat| / |g_flat|. Once per start of a run; a log line says where no tree is small enough.
    """

    kind: Literal["packing_checked"] = "packing_checked"
    step: int = Field(ge=0)
    gradient_difference: float
    loss_difference: float
    packed_tokens: int = Field(ge=0)
    flat_tokens: int = Field(ge=0)


class CheckpointSaved(_Event):
    """A whole checkpoint is on disk under `path` (relative to the run's folder)."""

    kind: Literal["checkpoint"] = "checkpoint"
    step: int = Field(ge=0)
    path: str
    bytes: int = Field(ge=0)
    weights_sha256: str


class LogLine(_Event):
    """One sentence for people."""

    kind: Literal["log"] = "log"
    level: Literal["info", "warning", "error"]
    message: Sentence = Field(max_length=8192)


class Finished(_Event):
    """The last event. `reason` is one sentence that a researcher understands. "paused": the trainer cannot go
    on for now, and saved what it could; a person makes room, then resumes.
    """

    kind: Literal["finished"] = "finished"
    outcome: Literal["succeeded", "stopped", "failed", "paused"]
    step: int = Field(ge=0)
    reason: Sentence = Field(max_length=2000)
    weights_sha256: str | None = None
    events_sha256: str | None = Field(None, description="`digest` of all events before this one.")


Event = Annotated[
    Started | Progress | Metrics | TreeSampled | PackingChecked | CheckpointSaved | LogLine | Finished,
    Field(discriminator="kind"),
]
_ADAPTER: TypeAdapter[Event] = TypeAdapter(Event)


def parse_line(line: str | bytes) -> Event:
    """One JSON line back into its event. Raises pydantic's ValidationError naming what is wrong."""
    return _ADAPTER.validate_json(line)


class EventDigest:
    """SHA-256 over what happened, clock left out: equal runs have equal digests.

    Left out: `time`, `Progress` events, metrics under `TIMED_AREAS`, and `Started.versions`.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, event: Event) -> None:
        if isinstance(event, Progress):
            return
        if isinstance(event, Metrics):
            kept = {k: v for k, v in sorted(event.values.items()) if not k.startswith(TIMED_AREAS)}
            event = event.model_copy(update={"values": kept})
        body = event.model_dump_json(exclude={"time", "versions"})
        self._hash.update(body.encode() + b"\n")

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def digest(events: Iterable[Event]) -> str:
    """`EventDigest` of a whole sequence, as lower-case hex."""
    running = EventDigest()
    for event in events:
        running.add(event)
    return running.hexdigest()
