"""train(): the whole method, read top to bottom. What each line means stands in the module it calls."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from trainer.checkpoint import (
    CheckpointError,
    TrainerState,
    load_adapter,
    load_optimiser,
    load_value_head,
    model_folder,
    read_checkpoint,
    remove_unfinished,
    save_checkpoint,
)
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
from trainer.optim import Optimiser, UpdateData, UpdateResult, UpdateStopped
from trainer.packing_check import check_packing
from trainer.policy import Policy, load_policy, load_reference
from trainer.rewards import shape_rewards
from trainer.rollout_metrics import rollout_metrics
from trainer.rollouts import Rollouts, collect
from trainer.sampling.agreement import check_against_policy
from trainer.sampling.engine import SamplingStopped, TopK, plan_from_config
from trainer.sampling.local_engine import LocalEngine
from trainer.sampling.watch import GrowthWatch
from trainer.schema.data import ChainData, GraphData
from trainer.seeding import named_seed
from trainer.summary import summarise
from trainer.trained import with_training
from trainer.tree import CreditState, RolloutTree
from trainer.verifiers import JudgingStopped, judge_from_config, verify_trees

SKIPS_IN_A_ROW = 3  # updates that are not finite before a run fails
WHAT_TO_DO = "Lower the learning rate, or start from an earlier checkpoint."
PROGRESS_SECONDS = 0.5
Emit = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: the last complete step, one sentence, and the weights it ended with."""

    outcome: Literal["succeeded", "stopped", "failed"]
    step: int
    reason: str
    weights_sha256: str


def train(
    config: RunConfig,
    *,
    emit: Emit,
    should_stop: Callable[[], bool],
    run_dir: Path,
    resume: Path | None = None,
    device: torch.device | str = "cpu",
) -> Outcome:
    """Train the policy as `config` says, from its start or from a checkpoint, and tell `emit` all that
    happens.

    `should_stop` is asked often; once true, the step under way is given up, a checkpoint is written and the
    run ends as stopped. Raises DataError, ModelError, CheckpointError, ValueError and RewardRangeError with a
    sentence for people.
    """
    run = _Run(config, emit, should_stop, run_dir, resume, device)
    try:
        run.check_engine()
        if run.state.is_evaluation_due:
            run.evaluate()
            if run.state.step > 0 and run.is_due(config.checkpoint.every_steps):
                run.save()  # a stop wrote this checkpoint before its accuracy was known
        for step in run.steps():
            clock = _Clock()
            rollouts = run.sample(step)
            clock.lap("sampling")
            trees = credit_trees(rollouts.trees, run.credit)
            clock.lap("credit")
            trees, updates = run.update(trees, rollouts.problems, step)
            run.engine.sync()
            clock.lap("training")
            run.count(step, updates, clock)
            run.tell(trees, rollouts, updates, clock)
            if run.state.skipped_in_a_row >= SKIPS_IN_A_ROW:
                run.save()
                raise FloatingPointError(f"Loss or gradient was not finite {SKIPS_IN_A_ROW} times in a row.")
            if run.state.is_evaluation_due:
                run.evaluate()
            if run.is_due(config.checkpoint.every_steps):
                run.save()
            if run.has_spent_its_tokens():
                return run.ended("succeeded", f"{run.state.unique_tokens:,} tokens are sampled.")
    except (SamplingStopped, JudgingStopped, UpdateStopped):
        run.save()
        return run.ended(
            "stopped", f"Stopped after step {run.state.step} of {config.training.steps}, as asked."
        )
    except FloatingPointError as error:
        return run.ended("failed", f"{error} Last complete step: {run.state.step}. {WHAT_TO_DO}")
    finally:
        run.judge.close()
    return run.ended("succeeded", f"All {config.training.steps} steps are done.")


class _Run:
    """What a run holds between steps, and how it speaks. `state` is the last complete one."""

    def __init__(
        self,
        config: RunConfig,
        emit: Emit,
        should_stop: Callable[[], bool],
        run_dir: Path,
        resume: Path | None,
        device: torch.device | str,
    ) -> None:
        self.config, self.emit, self.should_stop, self.run_dir = config, emit, should_stop, run_dir
        self.progress(0, "loading")(0, 1)
        self.state = TrainerState()
        remove_unfinished(run_dir)
        if resume is not None:
            self.state, saved = read_checkpoint(resume)
            refuse_other_config(saved, config)
        adapter = config.model.adapter
        # An adapter is trained over the weights that the run started from, also after a resume.
        is_whole = resume is not None and adapter.kind == "full"
        self.policy: Policy = load_policy(
            model_folder(resume) if is_whole and resume else config.model.path, device
        )
        base_sha256 = ""
        if adapter.kind == "lora":
            base_sha256 = self.policy.weights_sha256()
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
            fits=lambda problem: self.policy.fits(problem.prompt, self.plan.most_positions),
            fits_evaluation=lambda problem: self.policy.fits(problem.prompt, self.evaluation_tokens),
        )
        for warning in self.data.warnings:
            self.say("warning", warning)
        self.seed = named_seed(config.seed, "sampling")
        self.credit = credit_plan(config)
        self.engine = LocalEngine(self.policy)
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
        base_sha256 = base_sha256 or (reference.weights_sha256() if reference is not None else "")
        refuse_other_sources(self.state, self.data.sha256, base_sha256)
        self.state = replace(self.state, data_sha256=self.data.sha256, base_sha256=base_sha256)
        self.optimiser = Optimiser(
            self.policy,
            config.training,
            config.objective,
            config.credit.spread,
            reference=reference,
            temperature=self.plan.temperature,
        )
        self.is_packing_checked = False
        self.accuracy: tuple[int, float | None] = (-1, None)  # of the last evaluation: its step, its figure
        self.sampled_tokens = 0  # in the step under way, also those that stand in no tree
        if resume is not None:
            load_optimiser(resume, self.policy, self.optimiser)
        self.judge.start()
        emit(
            Started(
                time=time.time(),
                step=self.state.step,
                resumed_from=resume.name if resume else None,
                config_sha256=config.sha256(),
                weights_sha256=self.policy.weights_sha256(),
                parameters=self.policy.parameter_count(),
                engine=self.engine.name,
                device=str(self.policy.device),
                versions={"python": platform.python_version()}
                | {name: version(name) for name in ("torch", "transformers", "safetensors", "numpy")},
                training_problems=self.data.training.count,
                evaluation_problems=len(self.data.evaluation),
            )
        )

    def check_engine(self) -> None:
        """Raises EngineMismatchError unless the engine samples from the policy."""
        problems = self.data.training.batch(1, 2)
        check_against_policy(self.engine, self.policy, problems, temperature=self.plan.temperature)

    @property
    def evaluation_tokens(self) -> int:
        """Longest answer of an evaluation."""
        return self.config.evaluation.max_tokens or self.plan.most_tokens

    # ---- parts of a step

    def steps(self) -> range:
        """The steps still to be made."""
        last = self.state.step if self.has_spent_its_tokens() else self.config.training.steps
        return range(self.state.step + 1, last + 1)

    def sample(self, step: int) -> Rollouts:
        """The step's trees, verified and rewarded."""
        config = self.config
        self.sampled_tokens = 0
        return collect(
            self.data.training,
            step,
            config.training.problems_per_step,
            lambda problems: self.grow(problems, step),
            rule=config.credit.filter,
        )

    def grow(self, problems: Sequence[Problem], step: int) -> list[RolloutTree]:
        """One verified tree with rewards per problem."""
        before, watch = self.engine.spent, GrowthWatch()
        trees = self.engine.sample(
            problems,
            self.plan,
            seed=self.seed,
            step=step,
            should_stop=self.should_stop,
            on_progress=self.progress(step, "sampling", watch.trees),
            top_k=self.top_k,
            watch=watch,
        )
        segments = sum(tree.n_nodes - 1 for tree in trees)
        self.progress(step, "sampling", watch.trees)(segments, segments)  # all of them are there
        self.sampled_tokens += (self.engine.spent - before).sampled
        trees = verify_trees(
            trees,
            self.judge,
            should_stop=self.should_stop,
            on_progress=self.progress(step, "verifying"),
        )
        self.tell_troubles(step)
        reward = self.config.reward
        kl = self.optimiser.leaf_log_ratios(trees) if reward.kl_coefficient else None
        return shape_rewards(trees, reward, self.credit.budgets, kl)

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
        batch = self.optimiser.data(parts, self.experts(trees, problems, step), step)
        if not self.is_packing_checked:
            self.check_packing(batch[0], step)
        report = self.progress(step, "training")
        results = []
        for number, data in enumerate(batch):
            report(number, len(batch))
            # Once the weights have moved within a step, the step is finished: half a step is no state to go
            # on from.
            should_stop = self.should_stop if number == 0 else _never
            results.append(self.optimiser.update(data, step=step, should_stop=should_stop))
        return with_training(trees, batch, results, self.config.objective), results

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
        found = check_packing(self.policy, self.optimiser, data, self.should_stop)
        if found is None:
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
        )
        self.tell_troubles(self.state.step)
        self.emit(Metrics(time=time.time(), step=self.state.step, values=values))
        self.state = replace(self.state, is_evaluation_due=False)
        sampled = values["eval/pass1_sampled"]
        self.accuracy = (self.state.step, None if math.isnan(sampled) else sampled)

    def count(self, step: int, updates: Sequence[UpdateResult], clock: _Clock) -> None:
        """Step `step` is complete: bring the counters up to it."""
        before = self.state
        in_a_row, skipped = before.skipped_in_a_row, before.skipped_updates
        for update in updates:
            in_a_row = 0 if update.is_finite else in_a_row + 1
            skipped += not update.is_finite
        self.state = replace(
            before,
            step=step,
            unique_tokens=before.unique_tokens + self.sampled_tokens,
            skipped_updates=skipped,
            skipped_in_a_row=in_a_row,
            cpu_seconds=before.cpu_seconds + clock.cpu_seconds(),
        )
        self.state = replace(self.state, is_evaluation_due=self.is_due(self.config.evaluation.every_steps))

    def is_due(self, every_steps: int) -> bool:
        """Whether what comes every so many steps (0: never) and after the last one comes now."""
        step = self.state.step
        is_last = step == self.config.training.steps or self.has_spent_its_tokens()
        return is_last or (every_steps > 0 and step % every_steps == 0)

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
            if not update.is_finite:
                self.say(
                    "warning",
                    f"Step {state.step}: an update was skipped, its loss or gradient is not finite.",
                )
        values = rollout_metrics(trees)
        last = updates[-1]
        trained = sum(update.trained_tokens for update in updates)
        values |= {
            "tree/sampled_tokens": float(self.sampled_tokens),
            "tree/unique_tokens_total": float(state.unique_tokens),
            "policy/loss": last.loss,
            "policy/grad_norm": last.grad_norm,
            "policy/clip_fraction": sum(u.clip_fraction * u.trained_tokens for u in updates)
            / max(trained, 1),
            "policy/logprob_gap": updates[0].logprob_gap,
            "policy/learning_rate": last.learning_rate,
            "policy/trained_tokens": float(trained),
            "policy/computed_tokens": float(sum(update.computed_tokens for update in updates)),
            "policy/skipped_updates": float(state.skipped_updates),
            "speed/tokens_per_second": self.sampled_tokens / clock.wall_seconds(),
            "speed/step_seconds": clock.wall_seconds(),
            "speed/sampling_seconds": clock.laps["sampling"],
            "speed/training_seconds": clock.laps["training"],
            "speed/cpu_seconds_total": state.cpu_seconds,
        }
        values |= last.figures
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
                    payload=tree.with_token_bytes(
                        self.policy.decoder.token_bytes(tree.token_ids())
                    ).to_payload(),
                )
            )

    def save(self) -> None:
        self.progress(self.state.step, "saving")(0, 1)
        saved = save_checkpoint(
            self.run_dir,
            self.config,
            self.state,
            self.policy,
            self.optimiser,
            keep_last=self.config.checkpoint.keep_last,
            keep_best=self.config.checkpoint.keep_best,
            accuracy=self.accuracy[1] if self.accuracy[0] == self.state.step else None,
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

    def tell_troubles(self, step: int) -> None:
        """Say which answers the verifier has no verdict on, and why."""
        if trouble := self.judge.troubles():
            self.say("warning", f"Step {step}: {trouble}")

    def say(self, level: Literal["info", "warning", "error"], message: str) -> None:
        self.emit(LogLine(time=time.time(), level=level, message=message[:8192]))

    def progress(
        self, step: int, phase: Phase, growing: Callable[[], list[GrowingTree]] = list
    ) -> Callable[[int, int], None]:
        """A reporter that speaks at most once per `PROGRESS_SECONDS`."""
        last = 0.0

        def report(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= PROGRESS_SECONDS:
                last = now
                self.emit(
                    Progress(
                        time=time.time(), step=step, phase=phase, done=done, total=total, growing=growing()
                    )
                )

        return report

    def ended(self, outcome: Literal["succeeded", "stopped", "failed"], reason: str) -> Outcome:
        return Outcome(outcome, self.state.step, reason, self.policy.weights_sha256())


Phase = Literal["loading", "sampling", "verifying", "training", "evaluating", "saving"]


class _Clock:
    """Wall and CPU time of a step."""

    def __init__(self) -> None:
        self._start = self._lap = time.perf_counter()
        self._cpu = time.process_time()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._lap = now - self._lap, now

    def wall_seconds(self) -> float:
        return self._lap - self._start

    def cpu_seconds(self) -> float:
        return time.process_time() - self._cpu


def needs_reference(config: RunConfig) -> bool:
    """Whether anything compares the policy with the weights that the run started from."""
    objective = config.objective
    return (
        config.reward.kl_coefficient > 0
        or objective.kind == "preference"
        or (objective.kind == "policy" and objective.regularizer.kind == "k3")
    )


def _never() -> bool:
    return False


def refuse_other_sources(saved: TrainerState, data_sha256: str, base_sha256: str) -> None:
    """Raise CheckpointError when a resumed run would train on other problems, or over other weights, than the
    run that was saved: equal names in the config are not enough. An empty hash is not compared.
    """
    for what, before, now in (
        ("training problems", saved.data_sha256, data_sha256),
        ("weights in model.path", saved.base_sha256, base_sha256),
    ):
        if before and before != now:
            raise CheckpointError(
                f"The {what} are not those that the checkpoint was made with (SHA-256 {before[:12]}, now "
                f"{now[:12]}). Put the old ones back, or start a new run from the checkpoint's model folder."
            )


def refuse_other_config(saved: RunConfig, config: RunConfig) -> None:
    """Raise CheckpointError when a resumed run would not be the run that was saved: what samples, scores or
    trains must be equal.

    When the run ends may change; what is only recorded, evaluated or kept may change.
    """
    free = {"preset", "model", "evaluation", "checkpoint", "recording", "resources"}
    old, new = saved.model_dump(mode="json", exclude=free), config.model_dump(mode="json", exclude=free)
    for ends in ("steps", "max_sampled_tokens"):
        old["training"].pop(ends), new["training"].pop(ends)
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
