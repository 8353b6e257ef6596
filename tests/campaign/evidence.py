"""What the checker judges beside the history: what is left when everything has ended. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """One row. `digest`: of what it says (`content.of_row`). `told`: of what readers get of it
    (`content.of_message`). `status`: of a status event."""

    run: int
    seq: int
    epoch: int
    kind: str
    step: int | None
    digest: str
    told: str
    status: str = ""


@dataclass(frozen=True, slots=True)
class EndedRun:
    """A run's row. `config`: which twin it is to equal. `metrics`: visible ones, (step, name) -> value to
    the bit, clocks left out. `trees`: (step, index) -> digest. `weights`: of the last checkpoint, by file.
    """

    id: int
    status: str
    epoch: int
    last_seq: int
    step: int
    config: str
    reason: str = ""
    metrics: dict[tuple[int, str], str] = field(default_factory=dict)
    trees: dict[tuple[int, int], str] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EndedAttempt:
    """`torn`: the campaign itself cut or broke this attempt's spool."""

    run: int
    epoch: int
    recorded_through: int
    outcome: str
    torn: bool = False


@dataclass(frozen=True, slots=True)
class Twin:
    """The undisturbed run of a config: as `EndedRun` has it."""

    metrics: dict[tuple[int, str], str]
    trees: dict[tuple[int, int], str]
    weights: dict[str, str]


@dataclass(frozen=True, slots=True)
class CheckpointFound:
    """`problem`: why it cannot be loaded, "" if it can. `is_listed`: the run's row points to it. `damaged`:
    by the campaign itself."""

    run: int
    path: str
    problem: str
    is_listed: bool = False
    damaged: bool = False


@dataclass(slots=True)
class Evidence:
    runs: list[EndedRun] = field(default_factory=list)
    attempts: list[EndedAttempt] = field(default_factory=list)
    events: list[StoredEvent] = field(default_factory=list)
    twins: dict[str, Twin] = field(default_factory=dict)
    checkpoints: list[CheckpointFound] = field(default_factory=list)
    bad_trees: list[str] = field(default_factory=list)  # one sentence each
    checkpoint_trouble: list[str] = field(default_factory=list)  # leftovers, missing ones
    processes_left: list[str] = field(default_factory=list)
    files_left: list[str] = field(default_factory=list)
    log_trouble: list[str] = field(default_factory=list)
