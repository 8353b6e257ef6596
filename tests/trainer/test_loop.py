from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainer.checkpoint import CheckpointError, list_checkpoints
from trainer.config import RunConfig
from trainer.config_file import config_from_yaml
from trainer.data import DataError
from trainer.events import (
    CheckpointSaved,
    Event,
    EventDigest,
    LogLine,
    Metrics,
    Progress,
    Started,
    TreeSampled,
)
from trainer.loop import Outcome, train
from trainer.losses import LossPart, policy_loss
from trainer.metrics import METRICS
from trainer.policy import ModelError, Policy, load_policy
from trainer.sampling.agreement import EngineMismatchError
from trainer.sampling.local_engine import LocalEngine
from trainer.summary import summarise
from trainer.token_texts import token_pieces
from trainer.tree import CreditState, RolloutTree, Verdict

SMALL = """
training: {steps: 4, problems_per_step: 4, learning_rate: 1.0e-3}
data: {operations: 3}
sampler: {branching_per_depth: [3, 2, 2]}
evaluation: {every_steps: 2, problems: 8}
checkpoint: {every_steps: 2}
recording: {trees_per_step: 3}
"""


def small(*overrides: str) -> RunConfig:
    return config_from_yaml(SMALL, overrides)


class Run:
    """A run in this process, its events at hand."""

    def __init__(
        self,
        run_dir: Path,
        config: RunConfig,
        *,
        resume: Path | None = None,
        stop_when: Callable[[list[Event]], bool] = lambda _events: False,
    ) -> None:
        self.events: list[Event] = []
        digest = EventDigest()

        def emit(event: Event) -> None:
            self.events.append(event)
            digest.add(event)

        self.outcome: Outcome = train(
            config, emit=emit, should_stop=lambda: stop_when(self.events), run_dir=run_dir, resume=resume
        )
        self.digest = digest.hexdigest()

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    def metrics(self) -> dict[tuple[int, bool], dict[str, float]]:
        """By step and whether it is an evaluation; clock metrics left out."""
        found = {}
        for event in self.events:
            if isinstance(event, Metrics):
                values = {k: v for k, v in event.values.items() if not k.startswith("speed/")}
                found[event.step, "eval/pass1_greedy" in values] = values
        return found


# ---- what a run says


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("whole"), small())


def test_a_run_says_what_happened_in_order(whole: Run) -> None:
    said = [(e.kind, e.step) for e in whole.events if not isinstance(e, Progress | LogLine)]

    def step(n: int) -> list[tuple[str, int]]:
        return [("metrics", n), ("tree", n), ("tree", n), ("tree", n)]

    assert said == [
        ("started", 0), ("metrics", 0), ("packing_checked", 1),
        *step(1), *step(2), ("metrics", 2), ("checkpoint", 2),
        *step(3), *step(4), ("metrics", 4), ("checkpoint", 4),
    ]  # fmt: skip
    assert whole.outcome.outcome == "succeeded"
    assert whole.outcome.step == 4


def test_every_metric_is_logged_under_its_documented_name(whole: Run) -> None:
    seen = {name for e in whole.events if isinstance(e, Metrics) for name in e.values}
    assert seen == {metric.name for metric in METRICS.values() if not metric.only_with}
    per_step = [set(e.values) for e in whole.events if isinstance(e, Metrics) and "policy/loss" in e.values]
    assert all(names == per_step[0] for names in per_step)


def test_on_policy_the_sampler_and_the_policy_agree(whole: Run) -> None:
    for (_, is_evaluation), values in whole.metrics().items():
        if not is_evaluation:
            assert values["policy/logprob_gap"] < 1e-4
            assert values["policy/clip_fraction"] == 0


def test_trees_carry_verdicts_credit_and_their_summary(whole: Run) -> None:
    trees = [e for e in whole.events if isinstance(e, TreeSampled)]
    assert [e.index for e in trees] == [0, 1, 2] * 4
    for event in trees:
        tree = RolloutTree.from_payload(event.payload)
        assert tree.step == event.step
        assert tree.policy_version == event.step - 1
        assert tree.problem_id == event.problem_id
        assert tree.texts[0] == event.prompt
        assert (tree.verdict[tree.is_leaf()] != Verdict.NONE).all()
        assert (tree.credit_state[1:] != CreditState.NONE).all()
        assert event.summary.model_dump_json() == summarise(tree).model_dump_json()


@pytest.mark.parametrize(("updates", "share"), [(1, 1.0), (2, 0.0)])
def test_recorded_trees_tell_what_the_update_found(tmp_path: Path, updates: int, share: float) -> None:
    run = Run(
        tmp_path,
        small(
            "training.steps=1", f"training.updates_per_step={updates}", "recording.trees_per_step=4",
            f"recording.top_k_share={share}",
        ),
    )  # fmt: skip
    trees = [RolloutTree.from_payload(e.payload) for e in run.events if isinstance(e, TreeSampled)]
    trained = [tree for tree in trees if (tree.credit_state == CreditState.CREDITED).any()]
    assert len(trees) == 4
    assert trained
    assert sum(tree.loss_share for tree in trained) == pytest.approx(1)
    assert all(tree.loss_share > 0 for tree in trained)
    gaps = []
    for tree in trees:
        known = np.zeros(len(tree.tokens), bool) if tree.mismatch is None else np.isfinite(tree.mismatch)
        # Just the tokens of segments that are pushed trained.
        pushed = (tree.credit_state == CreditState.CREDITED) & (np.nan_to_num(tree.advantage) != 0)
        assert known.tolist() == np.repeat(pushed, tree.token_counts()).tolist()
        if tree.mismatch is not None:
            gaps.append(float(np.nanmax(np.abs(tree.mismatch.astype(float)))))
        assert (tree.log_ratio is None, tree.clip is None) == (updates == 1,) * 2 or tree.updates == 0
        assert tree.updates in (0, updates)
        assert tree.temperature == 1
        assert tree.stream is not None
        assert (tree.top_tokens is not None) == (share > 0)
        assert set(tree.token_bytes) == set(tree.token_ids())
        for node in range(1, tree.n_nodes):
            pieces = token_pieces(tree, node)
            assert pieces is not None
            assert "".join(pieces) == tree.texts[node]
    if updates == 1:
        assert max(gaps) == pytest.approx(run.metrics()[1, False]["policy/logprob_gap"], rel=1e-2, abs=1e-7)
    assert max(gaps) < 1e-4


def test_totals_add_up(whole: Run) -> None:
    steps = [v for (_, is_evaluation), v in sorted(whole.metrics().items()) if not is_evaluation]
    totals = np.cumsum([v["tree/unique_tokens"] for v in steps])
    assert [v["tree/unique_tokens_total"] for v in steps] == totals.tolist()
    for values in steps:
        assert values["policy/trained_tokens"] <= values["tree/unique_tokens"] <= values["tree/flat_tokens"]


def test_started_tells_model_and_data(whole: Run) -> None:
    (event,) = whole.of(Started)
    assert isinstance(event, Started)
    assert event.config_sha256 == small().sha256()
    assert event.training_problems is None
    assert event.evaluation_problems == 8
    assert event.resumed_from is None


# ---- the same run again


def test_same_seed_same_weights_and_events(whole: Run, tmp_path: Path) -> None:
    again = Run(tmp_path, small())
    assert again.outcome == whole.outcome
    assert again.digest == whole.digest
    other = Run(tmp_path / "other", small("seed=2", "training.steps=1"))
    assert other.outcome.weights_sha256 != whole.outcome.weights_sha256


def test_micro_batches_and_recording_do_not_change_what_is_learnt(whole: Run, tmp_path: Path) -> None:
    recorded = Run(tmp_path / "a", small("recording.trees_per_step=0"))
    assert recorded.outcome.weights_sha256 == whole.outcome.weights_sha256
    split = Run(tmp_path / "b", small("training.microbatch_tokens=300"))
    assert split.metrics()[1, False]["policy/loss"] == pytest.approx(
        whole.metrics()[1, False]["policy/loss"], abs=1e-6
    )


@pytest.mark.parametrize(
    ("killed_in", "step"),
    [("sampling", 3), ("training", 3), ("sampling", 4), ("evaluating", 4), ("saving", 4)],
)
def test_a_killed_run_resumes_to_the_same_weights_and_metrics(
    whole: Run, tmp_path: Path, killed_in: str, step: int
) -> None:
    class Killed(BaseException):
        pass

    events: list[Event] = []

    def emit(event: Event) -> None:
        events.append(event)
        if isinstance(event, Progress) and (event.phase, event.step) == (killed_in, step):
            raise Killed

    def killed() -> None:
        train(small(), emit=emit, should_stop=lambda: False, run_dir=tmp_path)

    with pytest.raises(Killed):
        killed()
    (*_, last) = list_checkpoints(tmp_path)
    resumed = Run(tmp_path, small(), resume=last)
    assert resumed.outcome == whole.outcome
    (started,) = resumed.of(Started)
    assert isinstance(started, Started)
    assert started.step == 2
    assert started.resumed_from == "step-2"
    for key, values in resumed.metrics().items():
        assert values == whole.metrics()[key]
    assert sorted(resumed.metrics()) == [key for key in sorted(whole.metrics()) if key[0] > 2]


# ---- stopping


def is_after(kind: str, step: int) -> Callable[[list[Event]], bool]:
    return lambda events: any(e.kind == kind and getattr(e, "step", -1) == step for e in events)


@pytest.mark.parametrize("step", [0, 1, 3])
def test_a_stop_keeps_the_last_whole_step_and_the_run_goes_on_from_it(
    whole: Run, tmp_path: Path, step: int
) -> None:
    stopped = Run(tmp_path, small(), stop_when=is_after("metrics", step))
    assert stopped.outcome.outcome == "stopped"
    assert stopped.outcome.step == step
    assert stopped.outcome.reason == f"Stopped after step {step} of 4, as asked."
    saved = stopped.of(CheckpointSaved)[-1]
    assert isinstance(saved, CheckpointSaved)
    assert saved.step == step
    assert saved.weights_sha256 == stopped.outcome.weights_sha256
    resumed = Run(tmp_path, small(), resume=tmp_path / saved.path)
    assert resumed.outcome == whole.outcome
    assert {**stopped.metrics(), **resumed.metrics()} == whole.metrics()


def test_a_stop_during_an_evaluation_makes_it_up_later(whole: Run, tmp_path: Path) -> None:
    def evaluating(events: list[Event]) -> bool:
        return is_after("tree", 2)(events)

    stopped = Run(tmp_path, small(), stop_when=evaluating)
    assert stopped.outcome.step == 2
    assert (2, True) not in stopped.metrics()
    resumed = Run(tmp_path, small(), resume=list_checkpoints(tmp_path)[-1])
    assert resumed.metrics()[2, True] == whole.metrics()[2, True]
    assert resumed.outcome == whole.outcome


def test_a_stop_before_anything_happened_is_a_stop(tmp_path: Path) -> None:
    stopped = Run(tmp_path, small(), stop_when=lambda _events: True)
    assert (stopped.outcome.outcome, stopped.outcome.step) == ("stopped", 0)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-0"]


# ---- what goes wrong


def poisoned_updates(monkeypatch: pytest.MonkeyPatch, *bad: int) -> None:
    """Make the losses of these updates (counted from 1) NaN."""
    count = 0

    def sometimes(*args: Any) -> LossPart:
        nonlocal count
        count += 1
        found = policy_loss(*args)
        return LossPart(found.loss * math.nan, found.figures) if count in bad else found

    monkeypatch.setattr("trainer.optim.policy_loss", sometimes)
    # The comparison of packed and flat is no update, and is not counted.
    monkeypatch.setattr("trainer.loop.check_packing", lambda *_: None)


def test_an_update_that_is_not_finite_is_skipped_counted_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned_updates(monkeypatch, 1, 2, 4)
    run = Run(tmp_path, small("evaluation.every_steps=0"))
    assert run.outcome.outcome == "succeeded"
    skipped = [
        v["policy/skipped_updates"] for (_, is_eval), v in sorted(run.metrics().items()) if not is_eval
    ]
    assert skipped == [1, 2, 2, 3]
    assert math.isnan(run.metrics()[1, False]["policy/loss"])
    warnings = [e.message for e in run.events if isinstance(e, LogLine)]
    assert warnings[0].startswith("Step 1: an update was skipped, the loss is NaN (problems chain-3-train-")
    assert len(warnings) == 3


def test_three_in_a_row_end_the_run_with_a_checkpoint_of_good_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned_updates(monkeypatch, 2, 3, 4)
    run = Run(tmp_path, small("evaluation.every_steps=0", "checkpoint.every_steps=0", "training.steps=9"))
    assert run.outcome.outcome == "failed"
    assert run.outcome.step == 4
    assert run.outcome.reason.startswith(
        "Loss became NaN at step 4, for the third update in a row (problems "
    )
    assert (
        "Last complete step: 4; last checkpoint: step 4. The checkpoint has the weights" in run.outcome.reason
    )
    saved = run.of(CheckpointSaved)[-1]
    assert isinstance(saved, CheckpointSaved)
    one_step = Run(tmp_path / "one", small("evaluation.every_steps=0", "training.steps=1"))
    assert saved.weights_sha256 == one_step.outcome.weights_sha256


def test_diverged_weights_end_the_run_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_diverged(path: str, device: str) -> Policy:
        policy = load_policy(path, device)
        policy.model.model.norm.weight.data.fill_(math.inf)
        return policy

    monkeypatch.setattr("trainer.loop.load_policy", load_diverged)
    run = Run(tmp_path, small())
    assert run.outcome.outcome == "failed"
    assert "logits are not finite" in run.outcome.reason
    assert "No step was complete. Fork the run" in run.outcome.reason


def test_a_step_without_any_credit_is_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.verifiers import Judgement

    monkeypatch.setattr(
        "trainer.verifiers.Verifier.judge_many",
        lambda _self, answers, **_more: [Judgement(Verdict.INCORRECT, 0.0, "x")] * len(answers),
    )
    run = Run(tmp_path, small("training.steps=1"))
    values = run.metrics()[1, False]
    assert values["policy/trained_tokens"] == 0
    assert values["credit/credited_share"] == 0
    assert "policy/logprob_gap" not in values  # nothing was compared
    assert values["credit/zero_variance_share"] == 1
    assert math.isnan(values["credit/advantage_mean_abs"])
    (started,) = run.of(Started)
    assert isinstance(started, Started)
    assert run.outcome.weights_sha256 == started.weights_sha256


def test_missing_model_and_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no folder"):
        Run(tmp_path, small("model.path=/no/where"))
    with pytest.raises(DataError, match="is not there"):
        Run(tmp_path, config_from_yaml("data: {kind: jsonl, path: /no/where.jsonl}"))


def test_a_checkpoint_of_another_config_is_refused_by_field(whole: Run, tmp_path: Path) -> None:
    Run(tmp_path, small("training.steps=2"))
    last = list_checkpoints(tmp_path)[-1]
    with pytest.raises(CheckpointError, match=r"seed, training\.learning_rate differ"):
        Run(tmp_path, small("seed=5", "training.learning_rate=1e-5"), resume=last)
    longer = Run(tmp_path, small("recording.trees_per_step=0"), resume=last)
    assert longer.outcome.weights_sha256 == whole.outcome.weights_sha256


# ---- other settings


@pytest.mark.parametrize(
    "overrides",
    [
        [
            "sampler={kind: flat, group_size: 6}",
            "credit={spread: trajectory, filter: {kind: none}, scale: {kind: none}}",
            "credit.baseline.group=prompt",
        ],
        [
            "credit={spread: trajectory, scale: {kind: group_std}, filter: {kind: none}}",
            "credit.baseline.group=prompt",
            "objective.aggregate=sequence_mean",
        ],
        ["training.updates_per_step=2", "sampler.temperature=0.8"],
        ["sampler.split=none", "objective.aggregate=sequence_mean", "training.warmup_steps=3"],
        ["credit.scale={kind: group_std}", "credit.filter={kind: none}", "credit.backup=leaf_mean"],
    ],
)
def test_other_settings_train_and_repeat(tmp_path: Path, overrides: list[str]) -> None:
    first = Run(tmp_path / "a", small(*overrides, "training.steps=2"))
    assert first.outcome.outcome == "succeeded"
    values = first.metrics()[2, False]
    assert values["policy/trained_tokens"] > 0
    assert values["policy/grad_norm"] > 0
    assert values["policy/logprob_gap"] < 1e-4
    second = Run(tmp_path / "b", small(*overrides, "training.steps=2"))
    assert second.digest == first.digest


def test_more_updates_leave_the_sampling_policy(tmp_path: Path) -> None:
    # With one update per step every ratio is 1; the second update of a step meets moved weights.
    run = Run(
        tmp_path,
        small(
            "training.updates_per_step=4",
            "training.learning_rate=3e-3",
            "training.steps=1",
            "recording.trees_per_step=4",
        ),
    )
    share = run.metrics()[1, False]["policy/clip_fraction"]
    assert share > 0
    # What the trees say of it is what the loss did; the first update meets the policy that sampled.
    trees = [RolloutTree.from_payload(e.payload) for e in run.events if isinstance(e, TreeSampled)]
    trained = [tree for tree in trees if tree.updates]
    n_trained = sum(int(np.isfinite(tree.log_ratio).sum()) for tree in trained)
    n_clipped = sum(np.count_nonzero(tree.clip) for tree in trained)
    assert n_clipped / n_trained == pytest.approx(share)
    assert sorted(tree.update for tree in trained) == [1, 2, 3, 4]
    first = next(tree for tree in trained if tree.update == 1)
    assert np.nanmax(np.abs(first.log_ratio)) < 1e-4
    assert not first.clip.any()
    assert max(np.nanmax(np.abs(tree.log_ratio)) for tree in trained) > 0.1


def test_a_jsonl_run_trains_on_its_own_problems(tmp_path: Path) -> None:
    from trainer.tasks.chain import problem_at

    lines = []
    for i in range(40):
        problem = problem_at(0, "train", i, 3)
        lines.append(f'{{"question": "{problem.question}", "answer": "#### {problem.answer}"}}\n')
    file = tmp_path / "set.jsonl"
    file.write_text("".join(lines) + "broken\n")
    run = Run(
        tmp_path, small(f"data={{kind: jsonl, path: {file}, evaluation_share: 0.3}}", "training.steps=1")
    )
    (started,) = run.of(Started)
    assert isinstance(started, Started)
    assert started.training_problems is not None
    assert 15 < started.training_problems < 40
    warning = next(e.message for e in run.events if isinstance(e, LogLine))
    assert warning.startswith("set.jsonl: skipped 1 of 41 rows")


def test_a_run_ends_when_its_tokens_are_sampled_and_does_not_go_on(whole: Run, tmp_path: Path) -> None:
    spent = [
        event.values["tree/unique_tokens_total"]
        for event in whole.events
        if isinstance(event, Metrics) and "tree/unique_tokens_total" in event.values
    ]
    limited = small(f"training.max_sampled_tokens={int(spent[1])}")
    run = Run(tmp_path, limited)
    assert (run.outcome.outcome, run.outcome.step) == ("succeeded", 2)
    assert "tokens are sampled" in run.outcome.reason
    assert [event.step for event in run.of(CheckpointSaved)] == [2]
    assert max(step for step, is_evaluation in run.metrics() if is_evaluation) == 2
    again = Run(tmp_path, limited, resume=list_checkpoints(tmp_path)[-1])
    assert (again.outcome.outcome, again.outcome.step) == ("succeeded", 2)
    more = Run(tmp_path, small(), resume=list_checkpoints(tmp_path)[-1])
    assert more.outcome.weights_sha256 == whole.outcome.weights_sha256


@pytest.mark.parametrize("phase", ["evaluating", "verifying"])
def test_a_stop_is_heard_while_answers_are_judged(
    tmp_path: Path, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for_ever = "(?s)^(?:.|[^~])+~"  # twice as long for every letter
    config = small(f"verifier={{kind: regex, pattern: '{for_ever}', timeout_seconds: 60}}")
    if phase == "verifying":
        monkeypatch.setattr("trainer.loop._Run.evaluate", lambda _run: None)
    began = time.monotonic()

    def soon(events: list[Event]) -> bool:
        reached = any(isinstance(event, Progress) and event.phase == phase for event in events)
        return reached and time.monotonic() > began + 2

    stopped = Run(tmp_path, config, stop_when=soon)
    assert (stopped.outcome.outcome, stopped.outcome.step) == ("stopped", 0)
    assert time.monotonic() - began < 30


# ---- how the weights are trained


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.adapter={kind: lora, rank: 4, alpha: 8}"],
        ["training.precision=bfloat16"],
        ["training.gradient_checkpointing=true"],
    ],
)
def test_adapters_half_precision_and_checkpointing_train_and_resume(
    tmp_path: Path, overrides: list[str]
) -> None:
    # Whole prompts are sampled, so what is compared is what the run learnt, not chance.
    config = small(*overrides, "checkpoint.keep_last=9")
    whole = Run(tmp_path / "whole", config)
    assert whole.outcome.outcome == "succeeded"
    half = "precision=bfloat16" in overrides[0]
    for (_, is_evaluation), values in whole.metrics().items():
        if not is_evaluation:
            assert values["policy/logprob_gap"] < (0.2 if half else 1e-4)
            assert values["policy/grad_norm"] > 0
    part = Run(tmp_path / "part", small(*overrides, "training.steps=2"))
    assert part.outcome.step == 2
    rest = Run(tmp_path / "part", config, resume=list_checkpoints(tmp_path / "part")[-1])
    assert rest.outcome.weights_sha256 == whole.outcome.weights_sha256


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_kl_to_the_reference_begins_at_zero(tmp_path: Path, precision: str) -> None:
    kl = "objective.regularizer={kind: k3, beta: 0.1}"
    run = Run(tmp_path, small(f"training.precision={precision}", kl, "training.steps=2"))
    first, second = (
        values["policy/kl"] for (_, is_evaluation), values in run.metrics().items() if not is_evaluation
    )
    assert abs(first) < 1e-9
    assert second > 1e-6


def test_checkpointing_changes_no_gradient(whole: Run, tmp_path: Path) -> None:
    again = Run(tmp_path, small("training.gradient_checkpointing=true"))
    assert again.outcome.weights_sha256 == whole.outcome.weights_sha256


def test_an_adapter_leaves_the_base_alone_and_its_checkpoint_is_a_plain_model(tmp_path: Path) -> None:
    run = Run(tmp_path, small("model.adapter={kind: lora, rank: 4, alpha: 8}"))
    started = run.of(Started)[0]
    assert isinstance(started, Started)
    assert started.parameters < 100_000  # of 338,208
    plain = load_policy(list_checkpoints(tmp_path)[-1] / "model")
    base = load_policy("tiny-reasoner")
    moved = [
        name
        for name, parameter in plain.named_parameters().items()
        if not torch.equal(parameter, base.named_parameters()[name])
    ]
    assert moved
    assert all("_proj" in name for name in moved)


def test_engine_and_policy_are_compared_at_the_start_and_every_few_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run", small("engine.agreement_every_steps=2"))
    gaps = {
        e.step: e.values["engine/logprob_gap"]
        for e in run.events
        if isinstance(e, Metrics) and "engine/logprob_gap" in e.values
    }
    assert list(gaps) == [0, 2, 4]
    assert all(0 < gap < 1e-4 for gap in gaps.values())
    plain = Run(tmp_path / "plain", small("engine.agreement_every_steps=0"))
    assert plain.outcome.weights_sha256 == run.outcome.weights_sha256
    count, sync = 0, LocalEngine.sync

    def once(own: LocalEngine) -> None:  # at its making and at the start; updates are not followed
        nonlocal count
        count += 1
        if count <= 2:
            sync(own)

    monkeypatch.setattr(LocalEngine, "sync", once)
    with pytest.raises(EngineMismatchError, match="local engine does not sample from the policy"):
        Run(tmp_path / "stale", small("engine.agreement_every_steps=2"))
