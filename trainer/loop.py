"""train(): the whole method, read top to bottom. What each line means stands in the module it calls."""

from __future__ import annotations

import gc
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch

from trainer.checkpoint import (
    CheckpointError,
    DamagedCheckpointError,
    DiskFullError,
    TrainerState,
    environment,
    load_adapter,
    load_optimiser,
    load_value_head,
    model_folder,
    place_of,
    read_checkpoint,
    save_checkpoint,
    why_not_exact,
)
from trainer.checkpoint_folder import remove_unfinished
from trainer.config import RunConfig
from trainer.credit import credit_plan, credit_trees
from trainer.data import Problem, load_data
from trainer.evaluation import evaluate
from trainer.events import (
    CheckpointSaved,
    Event,
    GrowingTree,
    LogLine,
    Metrics,
    PackingChecked,
    Progress,
    Started,
    TreeSampled,
)
from trainer.experts import expert_count, expert_trees
from trainer.forking import what_a_fork_may_not_change
from trainer.guards import (
    TROUBLES,
    MemoryBesideError,
    NotFinite,
    NotFiniteError,
    OutOfRoomError,
    Size,
    is_memory,
    memory_of,
)
from trainer.optim import Optimiser, UpdateData, UpdateResult, UpdateStopped
from trainer.overlap import Ahead, Batch, Level, one_at_a_time, saved_batch
from trainer.packing_check import NotComparedError, check_packing
from trainer.parallel import Group, memory_bytes
from trainer.policy import ModelError, Policy, load_policy, load_reference, model_sha256, resolve_model
from trainer.ranks import ALONE, Ranks
from trainer.rewards import shape_rewards
from trainer.rollout_metrics import rollout_metrics
from trainer.rollouts import Rollouts, collect
from trainer.sampling.agreement import COMPARED_TOKENS, check_against_policy
from trainer.sampling.choice import engine_from_config, tolerance
from trainer.sampling.engine import Attempt, SamplingStopped, TopK, ends_together, plan_from_config
from trainer.sampling.remote_engine import EngineProcesses
from trainer.sampling.watch import GrowthWatch
from trainer.schema.data import ChainData, GraphData
from trainer.schema.training import LEAST_MICROBATCH_TOKENS
from trainer.seeding import named_seed
from trainer.summary import summarise
from trainer.trained import with_training
from trainer.tree import CreditState, RolloutTree, Verdict
from trainer.verifiers import JudgingStopped, judge_from_config, verify_trees

STALE = 10  # times the tolerance of the start: how far engine and policy may be apart later
SKIPS_IN_A_ROW = 3  # updates that are not finite before a run fails
PROGRESS_SECONDS = 0.5
LEAVE_SECONDS = 5.0  # one of several ranks, which ends alone, waits for no longer for its sampler's thread
Emit = Callable[[Event], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: the last complete step, one sentence, and the weights it ended with."""

    outcome: Literal["succeeded", "stopped", "failed", "paused"]
    step: int
    reason: str
    weights_sha256: str


def train(
    config: RunConfig,
    *,
    emit: Emit,
    should_stop: Callable[[], bool],
    run_dir: Path,
    resume: Path | Sequence[Path] | None = None,
    is_fork: bool = False,
    device: torch.device | str = "cpu",
    group: Group | None = None,
    engines: EngineProcesses | None = None,
    microbatch_tokens: int = 0,
) -> Outcome:
    """Train the policy as `config` says, from its start or from a checkpoint, and tell `emit` all that
    happens.

    `resume`: a checkpoint, or several, of which the first that is whole is taken. `is_fork`: it is another
    run's, and only what its weights depend on must be equal. `group`: the ranks that run it together, each of
    which calls this; what rank 0 emits is the run's. `engines`: processes that sample for this one; None: it
    samples itself. `should_stop` is asked often; once true on any, the step under way is given up, a
    checkpoint is written and the run ends as stopped. A run that cannot be saved for lack of room, or has
    checkpoints and none that is whole, ends as paused. `microbatch_tokens`: what an earlier attempt found too
    much memory for any more, halved; 0: none did. Raises DataError, ModelError, CheckpointError, ValueError
    and RewardRangeError with a sentence for people, and BeginSmallerError where memory runs out on one of
    several ranks.
    """
    given = [] if resume is None else [resume] if isinstance(resume, Path) else list(resume)
    try:
        run = _Run(
            config,
            emit,
            should_stop,
            run_dir,
            given,
            device,
            group,
            engines,
            is_fork=is_fork,
            microbatch_tokens=microbatch_tokens,
        )
    except NoCheckpointError as error:
        newest = given[0].name.removeprefix("step-")
        return Outcome("paused", int(newest) if newest.isdecimal() else 0, str(error), "")
    try:
        return _steps(run)
    except DiskFullError as error:
        what = f"the checkpoint of step {run.state.step} is not saved, {error}"
        return run.ended("paused", TROUBLES["disk full"].sentence(run.state.step, run.saved_step, what=what))
    except FloatingPointError as error:
        return run.ended("failed", TROUBLES["diverged"].sentence(run.state.step, run.saved_step, what=error))
    finally:
        run.ahead.close(None if group is None else LEAVE_SECONDS)
        run.judge.close()
        run.engine.close()


def _steps(run: _Run) -> Outcome:
    """The algorithm."""
    config = run.config
    try:
        run.engine.sync()
        run.check_engine()
        if run.state.is_evaluation_due:
            run.evaluate()
            if run.state.step > 0 and run.is_due(config.checkpoint.every_steps):
                run.save()  # a stop wrote this checkpoint before its accuracy was known
        for step in run.steps():
            clock = _Clock(run.cpu_seconds_beside)
            try:
                rollouts = run.rollouts(step)
                run.engine.rest()
                clock.lap("sampling")
                trees = credit_trees(rollouts.trees, run.credit)
                clock.lap("credit")
                trees, updates = run.update(trees, rollouts.problems, step)
                run.engine.sync()
                clock.lap("training")
                run.count(step, updates, clock)
                if run.is_agreement_due():
                    run.check_engine()
                run.tell(trees, rollouts, updates, clock)
            except NotFiniteError as error:
                run.skip(step, error.found, clock)
            if run.state.skipped_in_a_row >= SKIPS_IN_A_ROW and run.not_finite is not None:
                run.save()
                return run.ended("failed", run.not_finite.ended(run.state.step, run.saved_step))
            if run.state.is_evaluation_due:
                run.evaluate()
            if run.is_due(config.checkpoint.every_steps) or run.has_worked_long():
                run.save()
            if run.has_spent_its_tokens():
                return run.ended("succeeded", f"{run.state.unique_tokens:,} tokens are sampled.")
    except (SamplingStopped, JudgingStopped, UpdateStopped):
        run.ahead.give_up()
        run.save()
        return run.ended(
            "stopped", f"Stopped after step {run.state.step} of {config.training.steps}, as asked."
        )
    return run.ended("succeeded", f"All {config.training.steps} steps are done.")


class NoCheckpointError(CheckpointError):
    """None of the run's checkpoints is whole; a person must decide what becomes of it."""


class _Run:
    """What a run holds between steps, and how it speaks. `state` is the last complete one."""

    def __init__(
        self,
        config: RunConfig,
        emit: Emit,
        should_stop: Callable[[], bool],
        run_dir: Path,
        checkpoints: Sequence[Path],
        device: torch.device | str,
        group: Group | None = None,
        engines: EngineProcesses | None = None,
        *,
        is_fork: bool = False,
        microbatch_tokens: int = 0,
    ) -> None:
        self.ranks: Ranks = group or ALONE
        self.config, self.emit, self.should_stop, self.run_dir = config, emit, should_stop, run_dir
        self.progress(0, "loading")(0, 1)
        self.state = TrainerState()
        if self.ranks.is_first:
            remove_unfinished(run_dir)
        self.ranks.any(False)  # none looks before that is done
        resume: Path | None = None
        if checkpoints:
            resume, self.state, saved = self.first_whole(checkpoints)
            (refuse_other_tensors if is_fork else refuse_other_config)(saved, config)
            if is_fork:
                self.state = fork_state(self.state, config)
            refuse_other_model(self.state, config.model.path)
        adapter = config.model.adapter
        # An adapter is trained over the weights that the run started from, also after a resume.
        is_whole = resume is not None and adapter.kind == "full"
        self.policy: Policy = load_policy(
            model_folder(resume) if is_whole and resume else config.model.path, device
        )
        if adapter.kind == "lora":
            self.policy.add_adapter(adapter.rank, adapter.alpha, config.seed)
            if resume is not None:
                load_adapter(resume, self.policy)
        self.policy.is_half = config.training.precision == "bfloat16"
        if config.training.gradient_checkpointing:
            self.policy.use_gradient_checkpointing()
        self.judge = judge_from_config(config.verifier)
        self.plan = plan_from_config(config.sampler, self.judge)
        if not isinstance(config.data, ChainData | GraphData) and config.data.chat:
            self.policy.use_chat_template()
        self.data = load_data(
            config.data,
            seed=config.seed,
            evaluation_problems=config.evaluation.problems,
            prompt_tokens=lambda problem: len(self.policy.encode(problem.prompt)),
            most_prompt=self.policy.positions - self.plan.most_positions,
            most_evaluation_prompt=self.policy.positions - self.evaluation_tokens,
        )
        for warning in self.data.warnings:
            self.say("warning", warning)
        self.seed = named_seed(config.seed, "sampling")
        self.credit = credit_plan(config)
        self.engine = engine_from_config(
            config.engine,
            self.policy,
            label=run_dir.name,
            ranks=self.ranks,
            most_positions=self.data.longest_prompt
            + max(self.plan.most_positions, self.evaluation_tokens, COMPARED_TOKENS),
            processes=engines,
        )
        kept = config.recording
        self.top_k = TopK(kept.top_k if kept.trees_per_step else 0, kept.top_k_share)
        self.engine.sync()
        if config.objective.kind == "supervised" and config.objective.value_weight:
            self.policy.add_value_head(config.seed)
            if resume is not None:
                load_value_head(resume, self.policy)
        reference = load_reference(config.model.path, device) if needs_reference(config) else None
        if reference is not None:
            reference.is_half = self.policy.is_half  # else KL would begin at the rounding, not at 0
        if group is not None:
            self.policy.shard(group)
            if reference is not None:
                reference.shard(group)
        refuse_other_data(self.state, self.data.sha256)
        beside = config.resources.engine_processes if engines else 0
        here = environment(self.policy.device, self.ranks.size, beside)
        not_exact = why_not_exact(self.state.environment, here) if resume is not None else ""
        self.state = replace(
            self.state,
            data_sha256=self.data.sha256,
            model_sha256=self.state.model_sha256 or model_sha256(config.model.path),
            environment=here,
        )
        self.optimiser = Optimiser(
            self.policy,
            config.training,
            config.objective,
            config.credit.spread,
            reference=reference,
            temperature=self.plan.temperature,
        )
        self.training_size = Size(
            "micro-batches of {:,} tokens", self.optimiser.halve_microbatches, LEAST_MICROBATCH_TOKENS
        )
        self.sampling_size = Size("{:,} rows at once", self.engine.halve_rows)
        # A checkpoint's, so that it goes on bit for bit; or what an attempt that saved none had no room for.
        if smaller := min(filter(None, (self.state.microbatch_tokens, microbatch_tokens)), default=0):
            self.training_size.tried = [self.optimiser.microbatch_tokens, smaller]
            self.optimiser.microbatch_tokens = smaller
            self.state = replace(self.state, microbatch_tokens=smaller)
        self.is_packing_checked = False
        self.saved_step = None if resume is None else self.state.step  # of the last whole checkpoint
        self.saved_at = time.monotonic()
        self.figures: dict[str, float] = {}  # of the engine, when it sampled last
        self.agreement: dict[str, float] = {}  # of the last comparison of engine and policy
        self.not_finite: NotFinite | None = None  # what the last skipped update found
        self.accuracy: tuple[int, float | None] = (-1, None)  # of the last evaluation: its step, its figure
        self.sampled_tokens = 0  # in the step under way, also those that stand in no tree
        if resume is not None:
            load_optimiser(resume, self.policy, self.optimiser)
        self.ahead = Ahead(should_stop, self.policy.device)
        if config.training.max_staleness:
            self.emit = emit = one_at_a_time(emit)
            if resume is not None and not is_fork and (batch := saved_batch(resume)):
                self.ahead.batches[batch.step] = batch
        self.judge.start()
        emit(
            Started(
                time=time.time(),
                step=self.state.step,
                resumed_from=place_of(resume, run_dir) if resume else None,
                config_sha256=config.sha256(),
                weights_sha256=self.policy.weights_sha256(),
                parameters=self.policy.parameter_count(),
                engine=self.engine.name,
                device=str(self.policy.device),
                processes=self.ranks.size,
                engine_processes=beside,
                versions={"python": platform.python_version()}
                | {name: version(name) for name in ("torch", "transformers", "safetensors", "numpy")}
                | self.engine.versions(),
                training_problems=self.data.training.count,
                evaluation_problems=len(self.data.evaluation),
            )
        )
        if microbatch_tokens:
            trouble = TROUBLES["smaller from the start"]
            self.say("warning", f"{trouble.said(smaller=self.optimiser.microbatch_tokens)}.")
        if not_exact:
            self.say(
                "warning",
                f"Resumed, not bit-exact: {not_exact}. All state is there; numbers after step "
                f"{self.state.step} may differ from those of an unbroken run in their last digits.",
            )

    def first_whole(self, checkpoints: Sequence[Path]) -> tuple[Path, TrainerState, RunConfig]:
        """The first checkpoint whose files are as they were written; says which are not. Raises
        NoCheckpointError.
        """
        damage = []
        for path in checkpoints:
            try:
                return path, *read_checkpoint(path)
            except DamagedCheckpointError as error:
                damage.append(str(error))
                at = path.name.removeprefix("step-")
                self.say("warning", TROUBLES["damaged checkpoint"].said(at=at, what=error))
        others = " The run's events name the others." if damage[1:] else ""
        what = f"{damage[0]}{others}"
        raise NoCheckpointError(TROUBLES["no checkpoint"].advice(count=len(damage), what=what))

    def check_engine(self) -> None:
        """Raises EngineMismatchError unless the engine samples from the policy. What it finds is told with
        the next metrics.
        """
        problems = self.data.training.batch(1, max(2, self.ranks.size))
        gap = check_against_policy(
            self.engine,
            self.policy,
            problems,
            temperature=self.plan.temperature,
            # Rounding grows while a run learns; what stale weights do lies farther off.
            tolerance=tolerance(self.config.engine) * (STALE if self.state.step else 1),
            attempt=self.sampling_within_memory("comparing engine and policy"),
        )
        self.agreement = {"engine/logprob_gap": gap}

    def is_agreement_due(self) -> bool:
        every = self.config.engine.agreement_every_steps
        return every > 0 and self.state.step % every == 0

    @property
    def evaluation_tokens(self) -> int:
        """Longest answer of an evaluation."""
        return self.config.evaluation.max_tokens or self.plan.most_tokens

    # ---- parts of a step

    def steps(self) -> range:
        """The steps still to be made."""
        last = self.state.step if self.has_spent_its_tokens() else self.config.training.steps
        return range(self.state.step + 1, last + 1)

    def rollouts(self, step: int) -> Rollouts:
        """The step's trees; with overlap those that were sampled while the last step trained, and from now on
        the next step's are.
        """
        if not self.config.training.max_staleness:
            return self.sample(step)
        self.ahead.done(step - 1)
        if step not in self.ahead.batches:
            self.ahead.begin(step, self.sample_aside)
            self.settle()
        batch = self.ahead.batches[step]
        self.sampled_tokens = batch.sampled_tokens
        for level, message in batch.said:
            self.say(level, message)
        if not self.is_last(step):
            self.ahead.begin(step + 1, self.sample_aside)
        if batch.not_finite is not None:
            raise NotFiniteError(batch.not_finite)
        return batch.rollouts

    def is_last(self, step: int) -> bool:
        """Whether no step comes after this one, whose trees are there."""
        most = self.config.training.max_sampled_tokens
        tokens = self.state.unique_tokens + self.sampled_tokens
        return step >= self.config.training.steps or 0 < most <= tokens

    def sample_aside(self, step: int, should_stop: Callable[[], bool]) -> Batch:
        """The trees of `step` by the weights of this moment, sampled by another thread."""
        return _Aside(self, should_stop).batch(step)

    def settle(self) -> None:
        """Wait for the trees of the next step; until then no weight moves. Where memory ran out beside
        training they are sampled once more, by half as many rows.
        """
        step = self.ahead.next_step
        try:
            self.ahead.settle()
            return
        except Exception as error:
            # Of several ranks all heard of it.
            if not (isinstance(error, MemoryBesideError) or (is_memory(error) and self.ranks.size == 1)):
                raise
            said = self.ranks.together(
                partial(self.sampling_size.smaller, error, self.state.step + 1, "sampling"), (OutOfRoomError,)
            )
        gc.collect()
        if self.policy.device.type == "cuda":
            torch.cuda.empty_cache()
        self.say("warning", said)
        self.ahead.begin(step, self.sample_aside)
        self.settle()

    def sample(self, step: int) -> Rollouts:
        """The step's trees, verified and rewarded."""
        config = self.config
        self.sampled_tokens = 0
        try:
            found = collect(
                self.data.training,
                step,
                config.training.problems_per_step,
                lambda problems: self.grow(problems, step),
                rule=config.credit.filter,
            )
        except NotFiniteError:
            raise
        except FloatingPointError as error:  # the engine's
            raise NotFiniteError(NotFinite("logprob", math.nan, f"while sampling: {error}")) from error
        self.figures = self.engine.figures()
        return found

    def grow(self, problems: Sequence[Problem], step: int) -> list[RolloutTree]:
        """One verified tree with rewards per problem."""
        before = self.engine.spent
        trees = self.ranks.grown(
            problems,
            lambda own: self.grow_own(own, step),
            ends_together(self.engine),
            is_shared=self.engine.is_shared,
        )
        self.sampled_tokens += int(self.ranks.sum((self.engine.spent - before).sampled)[0])
        self.tell_troubles(step)
        reward = self.config.reward
        kl = None
        if reward.kl_coefficient:
            kl = self.within_memory(
                lambda: self.optimiser.leaf_log_ratios(trees), self.training_size, step, "comparing"
            )
        trees = shape_rewards(trees, reward, self.credit.budgets, kl)
        if found := reward_not_finite(trees):
            raise NotFiniteError(found)
        return trees

    def grow_own(self, own: Sequence[Problem], step: int) -> list[RolloutTree]:
        """The verified trees of this process's problems."""
        watch = GrowthWatch()

        def sample() -> list[RolloutTree]:
            nonlocal watch
            watch = GrowthWatch()
            return self.engine.sample(
                own,
                self.plan,
                seed=self.seed,
                step=step,
                should_stop=self.should_stop,
                on_progress=self.progress(step, "sampling", watch.trees),
                top_k=self.top_k,
                watch=watch,
            )

        trees = self.within_memory(
            sample, self.sampling_size, step, "sampling", is_shared=self.engine.is_shared
        )
        version = self.state.step
        trees = [own if own.policy_version == version else own.sampled_by(version) for own in trees]
        segments = sum(tree.n_nodes - 1 for tree in trees)
        self.progress(step, "sampling", watch.trees)(segments, segments)  # all of them are there
        trees = verify_trees(
            trees,
            self.judge,
            should_stop=self.should_stop,
            on_progress=self.progress(step, "verifying"),
        )
        watch.judged(trees)
        answers = sum(int((tree.verdict != Verdict.NONE).sum()) for tree in trees)
        self.progress(step, "verifying", watch.trees)(answers, answers)
        return trees

    def update(
        self, trees: Sequence[RolloutTree], problems: Sequence[Problem], step: int
    ) -> tuple[list[RolloutTree], list[UpdateResult]]:
        """One optimiser update per part of the batch; with one part exactly on-policy. The trees come back
        with what the updates found of them.
        """
        teaching = [tree for tree in trees if (tree.credit_state == CreditState.CREDITED).any()] or list(
            trees
        )
        numbers = np.array_split(
            np.arange(len(teaching)), min(self.config.training.updates_per_step, len(teaching))
        )
        parts = [[teaching[i] for i in part] for part in numbers]
        experts = self.experts(trees, problems, step)
        batch = self.within_memory(
            lambda: self.optimiser.data(parts, experts, step), self.training_size, step, "comparing"
        )
        if not self.is_packing_checked:
            self.check_packing(batch[0], step)
        report = self.progress(step, "training")
        results = []
        for number, data in enumerate(batch):
            report(number, len(batch))
            # Once the weights have moved within a step, the step is finished: half a step is no state to go
            # on from.
            should_stop = self.should_stop if number == 0 else _never
            # Only what leaves the weights alone can be tried again.
            result, norm = self.within_memory(
                partial(self.optimiser.gradient, data, should_stop), self.training_size, step, "training"
            )
            if number == 0:
                self.settle()
            results.append(self.optimiser.apply(result, norm, step=step))
        return with_training(trees, batch, results, self.config.objective), results

    def within_memory(
        self, work: Callable[[], T], size: Size, step: int, doing: str, *, is_shared: bool = True
    ) -> T:
        """`work`, and where memory runs out, once more with half the size. Raises OutOfRoomError.

        `is_shared`: all ranks do it together. Then one alone cannot begin again: raises BeginSmallerError,
        and of sampling OutOfRoomError, as the next attempt would begin with what this one did.
        """
        try:
            return work()
        except Exception as error:
            if not is_memory(error):
                raise
            if is_shared and self.ranks.size > 1:
                (size.refuse if size is self.sampling_size else size.begin_smaller)(error, doing)
            said = size.smaller(error, step, doing)
        # Behind the handler: the error held on to everything that did not fit.
        self.free()
        self.state = replace(
            self.state, microbatch_tokens=self.training_size.tried[-1] if self.training_size.tried else 0
        )
        self.say("warning", said)
        return self.within_memory(work, size, step, doing)

    def sampling_within_memory(self, doing: str) -> Attempt:
        """Of what is sampled after the last complete step."""
        return lambda sample: self.within_memory(
            sample, self.sampling_size, self.state.step, doing, is_shared=self.engine.is_shared
        )

    def free(self) -> None:
        """Give back what only caches hold."""
        self.optimiser.adamw.zero_grad(set_to_none=True)
        gc.collect()
        if self.policy.device.type == "cuda":
            torch.cuda.empty_cache()

    def experts(
        self, trees: Sequence[RolloutTree], problems: Sequence[Problem], step: int
    ) -> list[RolloutTree]:
        """Worked solutions for this step, if the objective mixes any in."""
        objective = self.config.objective
        if objective.kind != "policy" or objective.expert.kind != "chord":
            return []
        answers = sum(int(tree.is_leaf().sum()) for tree in trees)
        return expert_trees(self.policy, problems, expert_count(answers, objective.expert.share), step)

    def check_packing(self, data: UpdateData, step: int) -> None:
        """Compute the first batch flat as well, and say how far the two gradients are apart."""
        try:
            found = check_packing(self.policy, self.optimiser, data, self.should_stop)
        except Exception as error:
            lacks_memory = is_memory(error)
            if lacks_memory and self.ranks.size > 1:
                self.training_size.begin_smaller(error, "comparing packed with flat training")
            if not (isinstance(error, NotComparedError) or lacks_memory):
                raise
            why = error if isinstance(error, NotComparedError) else "there was no memory for it"
            self.say("info", f"Packed and flat gradients of the first batch were not compared: {why}.")
            self.is_packing_checked, found = True, None
        if found is None:
            self.free()
            return
        self.is_packing_checked = True
        self.emit(
            PackingChecked(
                time=time.time(),
                step=step,
                gradient_difference=found.gradient_difference,
                loss_difference=found.loss_difference,
                packed_tokens=found.packed_tokens,
                flat_tokens=found.flat_tokens,
            )
        )

    def cpu_seconds_beside(self) -> float:
        """Spent so far by the processes that work for this one."""
        return self.judge.cpu_seconds() + sum(helper.cpu_seconds for helper in self.engine.helpers())

    def evaluate(self) -> None:
        values = evaluate(
            self.engine,
            self.data.evaluation,
            self.judge,
            most_tokens=self.evaluation_tokens,
            samples=self.config.evaluation.samples,
            seed=named_seed(self.config.seed, "evaluation"),
            should_stop=self.should_stop,
            on_progress=self.progress(self.state.step, "evaluating"),
            ranks=self.ranks,
            attempt=self.sampling_within_memory("evaluating"),
        )
        self.tell_troubles(self.state.step)
        if self.state.step == 0:
            values |= self.agreement
        self.emit(Metrics(time=time.time(), step=self.state.step, values=values))
        self.state = replace(self.state, is_evaluation_due=False)
        sampled = values["eval/pass1_sampled"]
        self.accuracy = (self.state.step, None if math.isnan(sampled) else sampled)

    def count(self, step: int, updates: Sequence[UpdateResult], clock: _Clock) -> None:
        """Step `step` is complete: bring the counters up to it."""
        before = self.state
        in_a_row, skipped = before.skipped_in_a_row, before.skipped_updates
        for update in updates:
            if update.not_finite is not None:
                self.not_finite = update.not_finite
                in_a_row, skipped = in_a_row + 1, skipped + 1
            elif update.is_applied:  # one that had nothing to train on tells nothing
                in_a_row = 0
        self.state = replace(
            before,
            step=step,
            unique_tokens=before.unique_tokens + self.sampled_tokens,
            skipped_updates=skipped,
            skipped_in_a_row=in_a_row,
            cpu_seconds=before.cpu_seconds + self.ranks.sum(clock.cpu_seconds())[0],
        )
        self.state = replace(self.state, is_evaluation_due=self.is_due(self.config.evaluation.every_steps))

    def skip(self, step: int, found: NotFinite, clock: _Clock) -> None:
        """Step `step` came to no update: count it, say so, and leave everything else as it was."""
        self.settle()
        clock.lap("training")
        self.not_finite = found
        self.count(step, [_skipped(found)], clock)
        self.say("warning", found.skipped(step))
        self.emit(Metrics(time=time.time(), step=step, values=self.totals(clock)))

    def totals(self, clock: _Clock) -> dict[str, float]:
        """The metrics that every step has, whatever came of it."""
        return {
            "tree/sampled_tokens": float(self.sampled_tokens),
            "tree/unique_tokens_total": float(self.state.unique_tokens),
            "policy/skipped_updates": float(self.state.skipped_updates),
            "speed/tokens_per_second": self.sampled_tokens / clock.wall_seconds(),
            "speed/step_seconds": clock.wall_seconds(),
            "speed/cpu_seconds_total": self.state.cpu_seconds,
        }

    def is_due(self, every_steps: int) -> bool:
        """Whether what comes every so many steps (0: never) and after the last one comes now."""
        step = self.state.step
        is_last = step == self.config.training.steps or self.has_spent_its_tokens()
        return is_last or (every_steps > 0 and step % every_steps == 0)

    def has_worked_long(self) -> bool:
        """Whether there is so much work since the last checkpoint that losing it would hurt."""
        minutes = self.config.checkpoint.every_minutes
        return self.ranks.any(0 < minutes * 60 <= time.monotonic() - self.saved_at)

    def has_spent_its_tokens(self) -> bool:
        """Whether the run ends here because it has sampled all that it may."""
        most = self.config.training.max_sampled_tokens
        return 0 < most <= self.state.unique_tokens

    # ---- what it says

    def tell(
        self,
        trees: Sequence[RolloutTree],
        rollouts: Rollouts,
        updates: Sequence[UpdateResult],
        clock: _Clock,
    ) -> None:
        """The metrics and trees of the step just completed."""
        state = self.state
        for update in updates:
            if update.not_finite is not None:
                self.say("warning", update.not_finite.skipped(state.step))
        values = rollout_metrics(trees) | self.totals(clock)
        last = updates[-1]
        trained = sum(update.trained_tokens for update in updates)
        values |= {
            "policy/loss": last.loss,
            "policy/grad_norm": last.grad_norm,
            "policy/clip_fraction": sum(u.clip_fraction * u.trained_tokens for u in updates)
            / max(trained, 1),
            "policy/learning_rate": last.learning_rate,
            "policy/trained_tokens": float(trained),
            "policy/computed_tokens": float(sum(update.computed_tokens for update in updates)),
            "speed/sampling_seconds": clock.laps["sampling"],
            "speed/training_seconds": clock.laps["training"],
        }
        if updates[0].logprob_gap is not None:  # else nothing was compared, and 0 would claim that it was
            values["policy/logprob_gap"] = updates[0].logprob_gap
        if following := self.ahead.batches.get(state.step + 1):
            values["speed/training_seconds"] -= following.waited
        if self.is_agreement_due():
            values |= self.agreement
        batch = self.ahead.batches.get(state.step)
        values |= last.figures | (self.figures if batch is None else batch.metrics())
        own = [memory_bytes(self.policy.device), *(helper.memory_bytes for helper in self.engine.helpers())]
        held = [one for each in self.ranks.exchange(own) for one in each]
        if len(held) > 1:
            values |= {
                "speed/memory_bytes": sum(held) / len(held),
                "speed/memory_bytes_low": float(min(held)),
                "speed/memory_bytes_high": float(max(held)),
            }
        if self.config.sampler.kind == "flat" and self.config.sampler.merge != "none":
            values["tree/merged_share"] = 1 - values["tree/unique_tokens"] / values["tree/flat_tokens"]
        if self.config.credit.filter.kind == "zero_variance":
            values |= {
                "sampling/resample_rounds": float(rollouts.rounds),
                "sampling/dropped_problems": float(rollouts.dropped),
            }
        self.emit(Metrics(time=time.time(), step=state.step, values=values))
        for index, tree in enumerate(trees[: self.config.recording.trees_per_step]):
            self.emit(
                TreeSampled(
                    time=time.time(),
                    step=state.step,
                    index=index,
                    problem_id=tree.problem_id,
                    prompt=tree.texts[0],
                    summary=summarise(tree),
                    payload=tree.without_kept()
                    .with_token_bytes(self.policy.decoder.token_bytes(tree.token_ids()))
                    .to_payload(),
                )
            )

    def save(self) -> None:
        self.progress(self.state.step, "saving")(0, 1)
        if not self.policy.is_finite():
            raise FloatingPointError("The weights are not finite, and no checkpoint was made of them")
        saved = save_checkpoint(
            self.run_dir,
            self.config,
            self.state,
            self.policy,
            self.optimiser,
            keep_last=self.config.checkpoint.keep_last,
            keep_best=self.config.checkpoint.keep_best,
            accuracy=self.accuracy[1] if self.accuracy[0] == self.state.step else None,
            more=self.ahead.files(self.state.step + 1),
        )
        self.emit(
            CheckpointSaved(
                time=time.time(),
                step=saved.step,
                path=saved.path,
                bytes=saved.bytes,
                weights_sha256=saved.weights_sha256,
            )
        )
        self.saved_step, self.saved_at = saved.step, time.monotonic()

    def tell_troubles(self, step: int) -> None:
        """Say which answers the verifier has no verdict on, and why."""
        for trouble in filter(None, self.ranks.exchange(self.judge.troubles())):
            self.say("warning", f"Step {step}: {trouble}")

    def say(self, level: Level, message: str) -> None:
        self.emit(LogLine(time=time.time(), level=level, message=message[:8192]))

    def progress(
        self, step: int, phase: Phase, growing: Callable[[], list[GrowingTree]] = list
    ) -> Callable[[int, int], None]:
        """A reporter that speaks at most once per `PROGRESS_SECONDS`."""
        last = 0.0

        def report(done: int, total: int) -> None:
            nonlocal last
            if phase == "training" and self.ahead.is_sampling:
                return  # one place at a time: the trees that grow are more to look at
            now = time.monotonic()
            if now - last >= PROGRESS_SECONDS:
                last = now
                self.emit(
                    Progress(
                        time=time.time(),
                        step=step,
                        phase=phase,
                        done=done,
                        total=total,
                        growing=growing(),
                        occupancy=self.engine.occupancy() if phase == "sampling" else None,
                    )
                )

        return report

    def ended(self, outcome: Literal["succeeded", "stopped", "failed", "paused"], reason: str) -> Outcome:
        return Outcome(outcome, self.state.step, reason, self.policy.weights_sha256())


class _Aside(_Run):
    """A run as the sampler's thread sees it: with its own `should_stop`, and its own words with the other
    ranks; what it says is kept for the step that it belongs to, and memory that runs out is left to
    `settle`.
    """

    def __init__(self, run: _Run, should_stop: Callable[[], bool]) -> None:
        vars(self).update(vars(run))
        self.ranks = run.ranks.aside
        self.should_stop = should_stop
        self.said: list[tuple[Level, str]] = []

    def batch(self, step: int) -> Batch:
        try:
            rollouts, found = self.sample(step), None
        except NotFiniteError as error:
            rollouts, found, self.figures = Rollouts([], []), error.found, {}
        return Batch(step, rollouts, self.sampled_tokens, found, self.figures, tuple(self.said))

    def grow_own(self, own: Sequence[Problem], step: int) -> list[RolloutTree]:
        try:
            return super().grow_own(own, step)
        except Exception as error:
            if self.ranks.size == 1 or not is_memory(error):
                raise
            raise MemoryBesideError(memory_of(error)) from error

    def within_memory(
        self,
        work: Callable[[], T],
        size: Size,  # noqa: ARG002  # of `_Run`
        step: int,  # noqa: ARG002
        doing: str,  # noqa: ARG002
        *,
        is_shared: bool = True,  # noqa: ARG002
    ) -> T:
        return work()

    def say(self, level: Level, message: str) -> None:
        self.said.append((level, message))


Phase = Literal["loading", "sampling", "verifying", "training", "evaluating", "saving"]


class _Clock:
    """Wall and CPU time of a step. `others`: CPU seconds so far of processes that work for it."""

    def __init__(self, others: Callable[[], float]) -> None:
        self._start = self._lap = time.perf_counter()
        self._cpu = time.process_time() + others()
        self._others = others
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._lap = now - self._lap, now

    def wall_seconds(self) -> float:
        return self._lap - self._start

    def cpu_seconds(self) -> float:
        return time.process_time() + self._others() - self._cpu


def needs_reference(config: RunConfig) -> bool:
    """Whether anything compares the policy with the weights that the run started from."""
    objective = config.objective
    return (
        config.reward.kl_coefficient > 0
        or objective.kind == "preference"
        or (objective.kind == "policy" and objective.regularizer.kind == "k3")
    )


def reward_not_finite(trees: Sequence[RolloutTree]) -> NotFinite | None:
    """The first judged leaf whose reward is NaN or infinite. One that the verifier failed on has none, which
    is another matter (`sampling/error_share`).
    """
    for tree in trees:
        judged = (tree.verdict != Verdict.NONE) & (tree.verdict != Verdict.ERROR)
        for leaf in np.flatnonzero(judged & tree.is_leaf() & ~np.isfinite(tree.reward)).tolist():
            where = f"problem {tree.problem_id}, answer {tree.name(leaf)}"
            return NotFinite("reward", float(tree.reward[leaf]), where)
    return None


def _skipped(found: NotFinite) -> UpdateResult:
    """An update that never came to be."""
    return UpdateResult(math.nan, math.nan, 0.0, None, 0, 0, 0.0, is_applied=False, not_finite=found)


def _never() -> bool:
    return False


def refuse_other_model(saved: TrainerState, path: str) -> None:
    """Raise CheckpointError when the model folder that a resumed run started from is gone or has other
    files: equal names in the config are not enough.
    """
    try:
        now = model_sha256(path)
    except ModelError as error:
        what = f"it is gone ({error})"
    else:
        if saved.model_sha256 in ("", now):
            return
        what = f"its files have changed (SHA-256 {saved.model_sha256[:12]}, now {now[:12]})"
    raise CheckpointError(TROUBLES["other model"].advice(folder=resolve_model(path), what=what))


def fork_state(saved: TrainerState, config: RunConfig) -> TrainerState:
    """What a fork goes on from: it may train on other problems and in other sizes, and its checkpoint holds a
    model of its own, but for an adapter.
    """
    base = saved.model_sha256 if config.model.adapter.kind == "lora" else ""
    return replace(saved, data_sha256="", model_sha256=base, microbatch_tokens=0, skipped_in_a_row=0)


def refuse_other_tensors(saved: RunConfig, config: RunConfig) -> None:
    """Raise CheckpointError when a fork's config does not fit the tensors of the checkpoint."""
    if differing := what_a_fork_may_not_change(saved, config):
        raise CheckpointError(
            f"The checkpoint does not fit the fork's config: {', '.join(differing)} differ."
        )


def refuse_other_data(saved: TrainerState, now: str) -> None:
    """Raise CheckpointError when a resumed run would train on other problems than it started with."""
    if saved.data_sha256 not in ("", now):
        raise CheckpointError(TROUBLES["other data"].advice(before=saved.data_sha256[:12], now=now[:12]))


def refuse_other_config(saved: RunConfig, config: RunConfig) -> None:
    """Raise CheckpointError when a resumed run would not be the run that was saved: what samples, scores or
    trains must be equal.

    When the run ends may change; what is only recorded, evaluated or kept may change.
    """
    free = {"preset", "model", "evaluation", "checkpoint", "recording", "resources"}
    old, new = saved.model_dump(mode="json", exclude=free), config.model_dump(mode="json", exclude=free)
    for ends in ("steps", "max_sampled_tokens"):
        old["training"].pop(ends), new["training"].pop(ends)
    for config_of in (old, new):  # memory and speed may change; whose arithmetic it is may not
        chosen = config_of["engine"]
        config_of["engine"] = {"kind": chosen["kind"].replace("auto", "local"), "dtype": chosen.get("dtype")}
    differing = sorted(
        f"{section}.{key}" if isinstance(old[section], dict) else section
        for section in old
        if old[section] != new[section]
        for key in (old[section] if isinstance(old[section], dict) else [""])
        if not isinstance(old[section], dict) or old[section].get(key) != new[section].get(key)
    )
    if differing:
        raise CheckpointError(
            f"The checkpoint was made with another config: {', '.join(differing)} differ. Resume with the "
            "run's own config, or start a new run from the checkpoint's model folder."
        )
