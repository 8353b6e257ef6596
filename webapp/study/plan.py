"""What the study compares: sampling x credit x task x length x seed, each cell one ordinary run.

Pure: from a cell to a config, and from a budget to steps. Which figure is looked at is said in `report`.

Held equal between cells of a task: the policy's start, the objective (token mean, clip, on-policy), the
learning rate, the number of generated tokens of a run, eight answers per problem. Tuned for each method
apart: tokens per update, on one seed that no figure uses.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from trainer.config import RunConfig
from trainer.schema.credit import (
    AncestorMeanBaseline,
    BatchWhitenScale,
    CreditConfig,
    GroupMeanBaseline,
    GroupStdScale,
    NoFilter,
    NonzeroFilter,
    NoScale,
    StateBaseline,
)
from trainer.schema.data import ChainData
from trainer.schema.model import ModelConfig
from trainer.schema.objective import PolicyObjective
from trainer.schema.sampler import (
    FlatSampler,
    ForkTreeSampler,
    LookaheadSampler,
    Sampler,
    SegmentTreeSampler,
    SurprisalForks,
)
from trainer.schema.training import (
    CheckpointConfig,
    EvaluationConfig,
    RecordingConfig,
    TrainingConfig,
)

Sampling = Literal["flat", "segments", "forks", "lookahead"]
Credit = Literal["trajectory", "sibling", "global", "ancestor"]
Errors = Literal["uniform", "late", "repair"]

SAMPLINGS: Final[tuple[Sampling, ...]] = ("flat", "segments", "forks", "lookahead")
CREDITS: Final[tuple[Credit, ...]] = ("trajectory", "sibling", "global", "ancestor")
SAMPLING_WORDS: Final[dict[Sampling, str]] = {
    "flat": "flat",
    "segments": "fixed segments",
    "forks": "surprisal forks",
    "lookahead": "LATR",
}
CREDIT_WORDS: Final[dict[Credit, str]] = {
    "trajectory": "trajectory (GRPO)",
    "sibling": "sibling step",
    "global": "global + step",
    "ancestor": "ancestor mean (TreePO)",
}

ANSWERS: Final = 8
LEARNING_RATE: Final = 3e-4
TOKENS_PER_RUN: Final = 200_000
EVALUATIONS: Final = 6
EVALUATION_PROBLEMS: Final = 192
UPDATE_TOKENS: Final = (5_000, 15_000)  # what tuning chooses from
TUNING_SEED: Final = 0  # no figure uses it
MODELS: Final[dict[Errors, str]] = {
    "uniform": "tiny-reasoner",
    "late": "tiny-reasoner-late",
    "repair": "tiny-reasoner-repair",
}


@dataclass(frozen=True, slots=True)
class Task:
    """`errors`: where the start policy slips and whether it can mend it; `operations`: length of a solution.

    answer_tokens: what an answer of the start policy takes on the mean, for planning alone; max_tokens: where
    an answer is cut off; learning_rate: the same for every method.
    """

    errors: Errors
    operations: int
    answer_tokens: int
    max_tokens: int
    learning_rate: float = LEARNING_RATE

    @property
    def slug(self) -> str:
        return f"{self.errors}-{self.operations}"


TASKS: Final[dict[str, Task]] = {
    task.slug: task
    for task in (
        Task("uniform", 3, 33, 64),
        Task("uniform", 8, 83, 136),
        Task("uniform", 9, 92, 151),  # hard: one operation more than the start policy has seen
        Task("uniform", 12, 102, 196),  # harder than any method can begin on
        Task("late", 3, 33, 64),
        Task("late", 8, 83, 136),
        # At 3e-4 every run of every method lost nearly all that this policy knew.
        Task("repair", 3, 44, 136, 1e-4),
        Task("repair", 8, 114, 288, 1e-4),
    )
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of the study. `update_tokens`: about so many tokens are generated for each update."""

    task: Task
    sampling: Sampling
    credit: Credit
    update_tokens: int
    seed: int

    @property
    def method(self) -> tuple[Sampling, Credit]:
        return self.sampling, self.credit

    @property
    def name(self) -> str:
        return (
            f"{SAMPLING_WORDS[self.sampling]} × {self.credit} · {self.task.errors} "
            f"k={self.task.operations} · {self.update_tokens // 1000}k · seed {self.seed}"
        )


def sampler(sampling: Sampling, task: Task) -> Sampler:
    """Eight answers per problem, at most `task.max_tokens` long."""
    longest = task.max_tokens
    if sampling == "flat":
        # Merging changes nothing for credit that looks at answers alone; step credit needs it.
        return FlatSampler(group_size=ANSWERS, max_tokens=longest, merge="newline")
    if sampling == "segments":
        part = task.answer_tokens // 3
        return SegmentTreeSampler(
            depth=3,
            branching_per_depth=(2,),
            segment_tokens_per_depth=(part, part, longest - 2 * part),
            split="none",
        )
    if sampling == "forks":
        return ForkTreeSampler(
            score=SurprisalForks(), trees=ANSWERS // 2, rounds=1, forks=1, continuations=1, max_tokens=longest
        )
    return LookaheadSampler(group_size=ANSWERS, max_tokens=longest, tree_tokens=task.answer_tokens)


def credit(kind: Credit) -> CreditConfig:
    """Defined on every sampling above."""
    if kind == "trajectory":
        return CreditConfig(
            backup="leaf_mean",
            baseline=GroupMeanBaseline(group="prompt"),
            scale=GroupStdScale(),
            spread="trajectory",
            filter=NoFilter(),
        )
    if kind == "ancestor":
        return CreditConfig(
            backup="leaf_mean",
            baseline=AncestorMeanBaseline(),
            scale=BatchWhitenScale(),
            spread="trajectory",
            filter=NoFilter(),
        )
    return CreditConfig(
        backup="leaf_mean",
        baseline=StateBaseline(global_term=kind == "global"),
        scale=NoScale(),
        spread="node",
        filter=NonzeroFilter(),  # as in the presets step-grpo and step-grpo+
    )


def shared_tokens(cell: Cell) -> float:
    """Share of an answer's tokens that its tree generates anew, planned: 1 for flat answers."""
    return {"flat": 1.0, "segments": 7 / 12, "forks": 0.75, "lookahead": 0.9}[cell.sampling]


def config(cell: Cell, tokens_per_run: int = TOKENS_PER_RUN) -> RunConfig:
    """The run of a cell: it ends when it has generated its tokens."""
    per_problem = ANSWERS * cell.task.answer_tokens * shared_tokens(cell)
    problems = max(2, round(cell.update_tokens / per_problem))
    planned_steps = max(EVALUATIONS, round(tokens_per_run / (problems * per_problem)))
    return RunConfig(
        preset="grpo-tiny",
        seed=cell.seed,
        model=ModelConfig(path=MODELS[cell.task.errors]),
        data=ChainData(operations=cell.task.operations),
        sampler=sampler(cell.sampling, cell.task),
        credit=credit(cell.credit),
        objective=PolicyObjective(
            segment_weight="answers" if cell.credit in ("sibling", "global") else "once"
        ),
        training=TrainingConfig(
            steps=20 * planned_steps,
            max_sampled_tokens=tokens_per_run,
            problems_per_step=problems,
            learning_rate=cell.task.learning_rate,
            warmup_steps=10,
            microbatch_tokens=4096,
        ),
        evaluation=EvaluationConfig(
            every_steps=max(1, round(planned_steps / EVALUATIONS)), problems=EVALUATION_PROBLEMS
        ),
        checkpoint=CheckpointConfig(every_steps=0, keep_last=1, keep_best=False),
        recording=RecordingConfig(trees_per_step=4),
    )


def identity(config: RunConfig) -> str:
    """What the run of a cell is known by: a hash of everything in its config that is not a default and bears
    on what it learns. A knob that Arborist gets later does not make it another run.
    """
    told = config.model_dump(
        mode="json", exclude_defaults=True, exclude={"recording", "checkpoint", "resources"}
    )
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def tuning_cells(
    tasks: Sequence[Task], samplings: Sequence[Sampling], given: Sequence[Credit]
) -> Iterator[Cell]:
    """One seed of every method and task at every number of tokens per update."""
    for task in tasks:
        for kind in samplings:
            for one in given:
                for tokens in UPDATE_TOKENS:
                    yield Cell(task, kind, one, tokens, TUNING_SEED)


def final_cells(chosen: dict[tuple[str, Sampling, Credit], int], seeds: int) -> Iterator[Cell]:
    """Every method at the tokens per update that tuning chose for it; seed by seed, so that a study that is
    cut short has whole rounds.
    """
    for seed in range(1, seeds + 1):
        for (slug, kind, given), tokens in chosen.items():
            yield Cell(TASKS[slug], kind, given, tokens, seed)
