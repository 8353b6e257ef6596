"""vLLM as an engine: it grows the trees that the local engine grows, from the policy's weights as they are
now, and no continuation waits for another."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from tests.trainer.test_samplers import SAMPLERS, problems, valued
from trainer.data import Problem
from trainer.policy import Policy
from trainer.sampling import vllm_engine
from trainer.sampling.agreement import EngineMismatchError, check_against_policy
from trainer.sampling.engine import (
    Engine,
    EngineError,
    Plan,
    SamplingPlan,
    SamplingStopped,
    TopK,
    plan_from_config,
)
from trainer.sampling.growth import PROMPT, Ground, Growth, Orders, Request, Segment, tree_of
from trainer.sampling.local_engine import LocalEngine
from trainer.sampling.vllm_engine import TokenChooser, VllmEngine
from trainer.sampling.watch import GrowthWatch
from trainer.tree import FinishReason, RolloutTree
from trainer.verifiers import judge_gsm8k

BLOCK = 32
TREE = SamplingPlan((4, 2, 2), (14, 14, 24), split_at_newline=True, temperature=1.0)


def sample(
    engine: Engine,
    batch: Sequence[Problem],
    plan: Plan,
    *,
    step: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
    top_k: int = 0,
    watch: GrowthWatch | None = None,
) -> list[RolloutTree]:
    return engine.sample(
        batch,
        plan,
        seed=1,
        step=step,
        should_stop=should_stop,
        on_progress=lambda _done, _total: None,
        top_k=TopK(top_k),
        watch=watch,
    )


def endless(policy: Policy) -> Policy:
    """The same policy with no end token: every answer runs to its limit."""
    found = copy.copy(policy)
    found.end_ids = frozenset()
    return found


def moved(policy: Policy) -> None:
    """Other weights, embeddings included, as after a few updates with a large learning rate."""
    chance = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for own in policy.model.parameters():
            own.add_(0.1 * own.std() * torch.randn(own.shape, generator=chance))


# ------------------------------------------------------------------------------------- the same trees


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_grows_the_trees_of_the_local_engine(
    engine: VllmEngine, policy: Policy, name: str
) -> None:
    if "valued" in name:
        valued(policy)
    local = LocalEngine(policy)
    batch, plan = problems(6), plan_from_config(SAMPLERS[name], judge_gsm8k)
    mine, own = sample(engine, batch, plan, top_k=3), sample(local, batch, plan, top_k=3)
    same = []
    for one, other in zip(mine, own, strict=True):
        columns = ("parent", "tokens", "finish", "copies", "subgroup", "visits", "top_tokens")
        same.append(all(np.array_equal(getattr(one, c), getattr(other, c)) for c in columns))
        if same[-1]:
            np.testing.assert_allclose(one.entropies, other.entropies, atol=1e-4)
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
            np.testing.assert_allclose(one.top_logprobs, other.top_logprobs, atol=1e-2)  # float16
            assert one.texts == other.texts
            assert (one.kept is None) == (other.kept is None) == (not SAMPLERS[name].top_k)
            if one.kept is not None and other.kept is not None:
                assert one.kept.tokens.tolist() == other.kept.tokens.tolist()
    # The last bits of logits differ, and may carry one draw over the edge between two tokens. Forks by score
    # go to one of two equal answers by their last bits.
    assert sum(same) >= (2 if "surprisal" in name or "entropy" in name else len(batch) - 1), same


def test_a_rerun_gives_the_same_trees_to_the_last_bit(engine: VllmEngine) -> None:
    batch = problems(4)
    first = sample(engine, batch, TREE)
    engine.sync()
    again = sample(engine, batch, TREE)
    for one, other in zip(first, again, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.logprobs.tobytes() == other.logprobs.tobytes()
    smaller = copy.copy(engine)
    assert smaller.halve_rows() == (256, 128)
    smaller.halve_rows()
    in_parts = sample(smaller, batch, TREE)
    assert [t.tokens.tolist() for t in in_parts] == [t.tokens.tolist() for t in first]
    assert smaller.figures()["engine/sequences"] <= 64
    other_seed = sample(engine, batch, TREE, step=2)
    assert [t.tokens.tolist() for t in other_seed] != [t.tokens.tolist() for t in first]


def test_little_memory_changes_no_tree(engine: VllmEngine, policy: Policy) -> None:
    """More sequences than the memory holds: some are put off and read again."""
    plan = SamplingPlan((16,), (150,), split_at_newline=False, temperature=1.0)
    policy_without_end = endless(policy)
    engine_of, local = copy.copy(engine), LocalEngine(policy_without_end)
    engine_of._policy = policy_without_end
    batch = problems(13)
    assert 13 * 16 * 150 * 768 > 16 * 2**20
    mine, own = sample(engine_of, batch, plan), sample(local, batch, plan)
    assert engine_of.figures()["engine/kv_use"] > 0.95
    same = [one.tokens.tolist() == other.tokens.tolist() for one, other in zip(mine, own, strict=True)]
    assert sum(same) >= len(batch) - 2
    np.testing.assert_allclose(mine[same.index(True)].logprobs, own[same.index(True)].logprobs, atol=1e-4)


# ----------------------------------------------------------------------------------- weights in place


def test_weights_are_tagged_and_followed(engine: VllmEngine, policy: Policy) -> None:
    before = engine.weights_version
    old = sample(engine, problems(2), TREE)
    assert 0 < check_against_policy(engine, policy, problems(2)) < 1e-4
    moved(policy)
    engine.sync()
    assert 0 < check_against_policy(engine, policy, problems(2)) < 1e-4
    assert engine.weights_version != before
    assert [t.tokens.tolist() for t in sample(engine, problems(2), TREE)] != [t.tokens.tolist() for t in old]


def test_asleep_it_computes_nothing_and_wakes_with_the_weights_of_the_moment(
    engine: VllmEngine, policy: Policy
) -> None:
    """It wakes with new weights, or because somebody samples."""
    executor = engine._core._inner.model_executor
    before = sample(engine, problems(2), TREE)
    engine.rest()
    assert not executor.is_sleeping  # it was not asked for
    engine = copy.copy(engine)
    engine._may_sleep = True
    engine.rest()
    assert executor.sleeping_tags == {"weights", "kv_cache"}
    moved(policy)
    engine.sync()
    assert not executor.is_sleeping
    check_against_policy(engine, policy, problems(2), temperature=1.0)
    after = sample(engine, problems(2), TREE)
    assert [t.tokens.tolist() for t in after] != [t.tokens.tolist() for t in before]
    engine.rest()
    engine.rest()
    assert executor.is_sleeping
    again = sample(engine, problems(2), TREE)
    assert not executor.is_sleeping
    assert [t.logprobs.tobytes() for t in again] == [t.logprobs.tobytes() for t in after]


def test_the_engine_is_found_out_when_it_samples_from_other_weights(engine: VllmEngine) -> None:
    engine._core._core.set_weight_version("of another run")
    with pytest.raises(EngineError, match="sampled from weights of another run, and the policy's are tests:"):
        sample(engine, problems(1), TREE)


def test_cached_keys_of_old_weights_are_dropped(
    engine: VllmEngine, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a prompt of two full blocks, which stay in the cache; a shorter one would hide the fault."""
    (problem,) = problems(1)
    problem = replace(problem, prompt=problem.prompt * 3)
    assert len(policy.encode(problem.prompt)) > 2 * BLOCK
    check_against_policy(engine, policy, [problem])
    moved(policy)
    engine.sync()
    assert 0 < check_against_policy(engine, policy, [problem]) < 1e-4
    # The same without dropping: found out.
    with monkeypatch.context() as undropped:
        undropped.setattr(engine._core._core, "reset_prefix_cache", lambda: True)
        moved(policy)
        engine.sync()
        with pytest.raises(EngineMismatchError):
            check_against_policy(engine, policy, [problem])
    # And dropping that fails is an error, not a surprise.
    with monkeypatch.context() as failing:
        failing.setattr(engine._core._core, "reset_prefix_cache", lambda: False)
        with pytest.raises(EngineError, match="did not drop its cache"):
            engine.sync()


# ------------------------------------------------------------------------------------ no level barrier


def test_tokens_of_a_full_tree_and_what_of_its_prefixes_is_read_again(
    engine: VllmEngine, policy: Policy
) -> None:
    branching, tokens = 3, 40
    engine_of = copy.copy(engine)
    engine_of._policy = endless(policy)
    plan = SamplingPlan((branching,) * 3, (tokens,) * 3, split_at_newline=False, temperature=1.0)
    before = engine_of.spent
    (tree,) = sample(engine_of, problems(1), plan)
    spent = engine_of.spent - before
    unique = tokens * branching * (branching**3 - 1) // (branching - 1)
    assert spent.sampled == unique == tree.token_counts()[1:].sum()
    assert tree.is_leaf().sum() == branching**3
    figures = engine_of.figures()
    assert 0 < figures["engine/most_read_again"] <= BLOCK
    continuations = tree.n_nodes - 1
    assert spent.reread <= continuations * BLOCK
    # Prefixes grow by 40 tokens a level and are found again by blocks of 32.
    prompt = int(tree.token_counts()[0])
    levels = [(branching ** (d + 1), prompt + d * tokens) for d in range(3)]
    computed = sum(n * ((length - 1) % BLOCK + 1) for n, length in levels if length > 0)
    assert figures["engine/cached_share"] == pytest.approx(
        1 - computed / sum(n * length for n, length in levels), abs=0.05
    )


class _Order(GrowthWatch):
    """The order in which segments are asked for and written."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[str, int, int]] = []

    def asked(self, number: int, problem_id: str, request: Request) -> None:
        self.heard.append(("asked", number, request.parent))

    def wrote(self, number: int, segment: Segment) -> None:
        self.heard.append(("wrote", number, segment.chain))


def test_continuations_do_not_wait_for_their_level(engine: VllmEngine) -> None:
    watch = _Order()
    sample(engine, problems(4), TREE, watch=watch)
    first_level = [("wrote", tree, chain) for tree in range(4) for chain in range(1, 5)]
    last_of_level = max(watch.heard.index(entry) for entry in first_level)
    below = [entry for entry in watch.heard[:last_of_level] if entry[0] == "asked" and entry[2] != PROMPT]
    assert len(below) >= 8


@dataclass(frozen=True)
class _RacePlan:
    """Two answers per problem, of which the one that ends later is given up."""

    temperature: float = 1.0
    most_tokens: int = 60
    most_positions: int = 60
    cut: None = None

    def growth(self, ground: Ground) -> Growth:
        return _Race(ground)


class _Race:
    def __init__(self, ground: Ground) -> None:
        self._ground, self.total, self.done = ground, 1, 0
        self.segments: list[Segment] = []

    def begin(self) -> Orders:
        return Orders([Request(chain=1, most_tokens=60, path=1), Request(chain=2, most_tokens=10, path=2)])

    def take(self, segments: Sequence[Segment]) -> Orders:
        self.segments += segments
        self.done = 1
        return Orders(cancel=[1])

    def tree(self) -> RolloutTree:
        return tree_of(self._ground, {s.chain: s.strand(PROMPT) for s in self.segments})


def test_what_is_not_wanted_any_more_is_aborted(engine: VllmEngine, policy: Policy) -> None:
    engine_of = copy.copy(engine)
    engine_of._policy = endless(policy)
    before = engine_of.spent
    trees = sample(engine_of, problems(3), _RacePlan())
    assert [tree.n_nodes for tree in trees] == [2, 2, 2]
    assert (engine_of.spent - before).sampled == 3 * (10 + 10)
    assert engine_of.figures_of_last.cancelled == 3
    assert engine_of.figures_of_last.steps == 10
    assert engine._core._inner.scheduler.get_num_unfinished_requests() == 0


def test_a_stop_leaves_nothing_behind(engine: VllmEngine) -> None:
    usual, asked = sample(engine, problems(3), TREE), 0

    def after_five() -> bool:
        nonlocal asked
        asked += 1
        return asked > 5

    with pytest.raises(SamplingStopped):
        sample(engine, problems(3), TREE, should_stop=after_five)
    assert engine._core._inner.scheduler.get_num_unfinished_requests() == 0
    again = sample(engine, problems(3), TREE)
    assert [t.tokens.tolist() for t in again] == [t.tokens.tolist() for t in usual]


# ------------------------------------------------------------------------------------------- refusals


def test_weights_that_have_diverged_are_no_tokens(engine: VllmEngine, policy: Policy) -> None:
    with torch.no_grad():
        policy.model.model.norm.weight.fill_(float("nan"))
    engine.sync()
    with pytest.raises(FloatingPointError, match="weights have diverged"):
        sample(engine, problems(1), TREE)


def test_too_long_a_path_is_refused_before_anything_is_sampled(engine: VllmEngine) -> None:
    plan = SamplingPlan((2,), (100_000,), split_at_newline=False, temperature=1.0)
    with pytest.raises(ValueError, match=r"a prompt of \d+ tokens and an answer of up to 100000 do not fit"):
        sample(engine, problems(1), plan)


class _Once:
    """The chooser, inside vLLM's own step, that fails once."""

    def __init__(self, chooser: TokenChooser, error: Exception) -> None:
        self._usual, self._error, self._left = chooser.choose, error, 5

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        self._left -= 1
        if not self._left:
            raise self._error
        return self._usual(logits)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        # Told as it is: the loop then goes on with less.
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 8"), RuntimeError, "^DefaultCPUAllocator"),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError, "^CUDA out of memory"),
        (
            RuntimeError("CUDA error: x\nmore"),
            EngineError,
            r"^vLLM failed .* RuntimeError: CUDA error: x\. Re",
        ),
    ],
)
def test_what_fails_inside_vllm_is_told_and_leaves_nothing_behind(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], words: str
) -> None:
    usual = sample(engine, problems(3), TREE)
    with monkeypatch.context() as failing:
        failing.setattr(engine._chooser, "choose", _Once(engine._chooser, error))
        with pytest.raises(kind, match=words):
            sample(engine, problems(3), TREE)
    assert engine._core._inner.scheduler.get_num_unfinished_requests() == 0
    again = sample(engine, problems(3), TREE)
    assert [t.tokens.tolist() for t in again] == [t.tokens.tolist() for t in usual]


def test_an_engine_that_writes_nothing_is_not_waited_for(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = engine._core._core.get_output()
    assert nothing.outputs == []
    monkeypatch.setattr(engine._core._core, "get_output", lambda: nothing)
    monkeypatch.setattr(vllm_engine, "IDLE_STEPS", 20)
    with pytest.raises(EngineError, match=r"wrote no token in 21 steps, and \d+ segments are waiting"):
        sample(engine, problems(1), TREE)


def test_finish_reasons_are_those_of_a_tree(engine: VllmEngine) -> None:
    trees = sample(engine, problems(8), TREE)
    finishes = {int(f) for tree in trees for f in tree.finish[1:]}
    assert (
        {FinishReason.EOS, FinishReason.SPLIT}
        <= finishes
        <= {
            FinishReason.EOS,
            FinishReason.SPLIT,
            FinishReason.LENGTH,
        }
    )
