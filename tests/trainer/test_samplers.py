"""Every sampler on the local engine: what it writes is what the policy says, whoever else is in the batch."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from tests.trainer.chance import chi_square
from trainer.data import Problem, load_data
from trainer.policy import Policy
from trainer.sampling import local_engine
from trainer.sampling.engine import SamplingStopped, plan_from_config
from trainer.sampling.growth import END, Ground, Keep, Orders, Request, Segment, tree_of
from trainer.sampling.local_engine import LocalEngine
from trainer.schema.data import ChainData
from trainer.schema.sampler import (
    EntropyForks,
    FlatSampler,
    ForkTreeSampler,
    LookaheadSampler,
    Sampler,
    SearchTreeSampler,
    SegmentTreeSampler,
    SurprisalForks,
    UctSelect,
    UniformForks,
)
from trainer.tree import FinishReason, RolloutTree
from trainer.verifiers import judge_gsm8k

SAMPLERS: dict[str, Sampler] = {
    "flat": FlatSampler(group_size=6, max_tokens=60),
    "merged": FlatSampler(group_size=12, max_tokens=60, merge="newline"),
    "budgets": FlatSampler(group_size=6, max_tokens=50, budgets=(20, 40)),
    "segment tree": SegmentTreeSampler(),
    "width tree": SegmentTreeSampler(
        depth=4,
        branching_per_depth=(2,),
        segment_tokens_per_depth=(12, 12, 12, 24),
        max_width=8,
        fallback="random",
        root_branching_max=4,
    ),
    "surprisal forks": ForkTreeSampler(score=SurprisalForks(), trees=2, rounds=2, forks=2, max_tokens=60),
    "entropy forks": ForkTreeSampler(score=EntropyForks(threshold=0.2), rounds=2, max_tokens=60),
    "uniform forks": ForkTreeSampler(score=UniformForks(), trees=2, forks=2, continuations=2, max_tokens=60),
    "puct": SearchTreeSampler(iterations=2, expand=3, depth=3),
    "uct": SearchTreeSampler(select=UctSelect(), iterations=6, expand=3, depth=4),
    "valued uct": SearchTreeSampler(
        select=UctSelect(stop_value=1.0), iterations=6, expand=3, evaluator="value_head", segment_tokens=8
    ),
    "lookahead": LookaheadSampler(group_size=6, max_tokens=60, tree_tokens=20, tree_share=0.7),
    "edge lookahead": LookaheadSampler(
        group_size=5, max_tokens=40, min_probability=0.01, max_gap=1.0, windows=(3, 5), similarity="rouge_l"
    ),
    "hot forks": ForkTreeSampler(score=SurprisalForks(), trees=2, max_tokens=60, temperature=1.3),
    "cut": FlatSampler(group_size=6, max_tokens=60, top_k=5, top_p=0.9, temperature=1.3),
    "cut merged": FlatSampler(group_size=12, max_tokens=60, merge="newline", top_k=3),
    "cut forks": ForkTreeSampler(
        score=EntropyForks(threshold=0.2), rounds=2, max_tokens=60, top_k=4, top_p=0.8
    ),
    "cut lookahead": LookaheadSampler(
        group_size=6, max_tokens=60, tree_tokens=20, tree_share=0.7, top_k=2, top_p=0.9
    ),
}


@pytest.fixture(scope="module")
def precise_policy(wild_policy: Policy) -> Policy:
    """The wild policy in float64: the rounding of batched float32 arithmetic moves about one draw in 100,000
    over the edge between two tokens, which is no fault, but no test either."""
    model = copy.deepcopy(wild_policy.model).double()
    policy = Policy(model, wild_policy.tokenizer, wild_policy.end_ids)
    policy.newline_tokens[:] = wild_policy.newline_tokens
    return valued(policy)


@pytest.fixture(scope="module")
def reasoner(tiny_reasoner: Policy) -> Policy:
    """The tiny reasoner with a value head."""
    return valued(copy.copy(tiny_reasoner))


def valued(policy: Policy) -> Policy:
    """With a lively value head."""
    policy.add_value_head(1)
    assert policy.value_head is not None
    policy.value_head.to(policy.model.dtype)
    with torch.no_grad():
        policy.value_head.weight.mul_(1000)
    return policy


def problems(count: int, operations: int = 4) -> list[Problem]:
    return load_data(ChainData(operations=operations), seed=5, evaluation_problems=1).training.batch(1, count)


def sample(
    policy: Policy,
    batch: Sequence[Problem],
    sampler: Sampler,
    *,
    step: int = 1,
    engine: LocalEngine | None = None,
    **limits: int,
) -> list[RolloutTree]:
    engine = engine or LocalEngine(policy, **limits)
    return engine.sample(
        batch,
        plan_from_config(sampler, judge_gsm8k),
        seed=1,
        step=step,
        should_stop=lambda: False,
        on_progress=lambda _done, _total: None,
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_path_is_longer_than_its_plan_says(
    reasoner: Policy, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """An engine may have room for just that."""
    batch = problems(4)
    longest = max(len(reasoner.encode(problem.prompt)) for problem in batch)
    positions = longest + plan_from_config(SAMPLERS[name], judge_gsm8k).most_positions
    monkeypatch.setattr(reasoner.model.config, "max_position_embeddings", positions)
    endless = copy.copy(reasoner)
    endless.end_ids = frozenset()
    sample(endless, batch, SAMPLERS[name])


def path_tokens(tree: RolloutTree, node: int) -> list[int]:
    return [
        t
        for n in tree.path(node)
        for t in tree.tokens[tree.token_offsets[n] : tree.token_offsets[n + 1]].tolist()
    ]


@torch.no_grad()
def recomputed(policy: Policy, ids: list[int], sampler: Sampler) -> tuple[np.ndarray, np.ndarray]:
    """Logprobs and entropies of all but the first token, by the transformers module without any cache, and
    cut off by what its own sampling cuts off with.
    """
    tokens = torch.tensor(ids)
    scores = policy.model(input_ids=tokens[None]).logits[0, :-1].float() / sampler.temperature
    if sampler.top_k:
        left = TopPLogitsWarper(sampler.top_p)(tokens, TopKLogitsWarper(sampler.top_k)(tokens, scores))
        # What was put there is drawn from, too.
        scores = left.scatter(1, tokens[1:, None], scores.gather(1, tokens[1:, None]))
    logprobs = scores.log_softmax(-1)
    entropies = -(logprobs.exp() * logprobs.clamp(min=-1e9)).sum(-1)
    return logprobs.gather(1, tokens[1:, None])[:, 0].numpy(), entropies.numpy()


def assert_same_trees(first: Sequence[RolloutTree], second: Sequence[RolloutTree]) -> None:
    """Equal but for the last bits of logprobs, which batched arithmetic may round differently."""
    for one, other in zip(first, second, strict=True):
        for name in ("parent", "tokens", "finish", "copies", "subgroup", "visits"):
            assert getattr(one, name).tolist() == getattr(other, name).tolist()
        assert one.texts == other.texts
        if one.kept is not None and other.kept is not None:
            assert one.kept.counts.tolist() == other.kept.counts.tolist()
            assert one.kept.tokens.tolist() == other.kept.tokens.tolist()
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-6)
        np.testing.assert_allclose(one.entropies, other.entropies, atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_on_the_tiny_reasoner(reasoner: Policy, name: str) -> None:
    sampler = SAMPLERS[name]
    for tree in sample(reasoner, problems(4), sampler):
        bounds, counts, given = sampler.bounds, tree.token_counts(), tree.finish == FinishReason.GIVEN
        assert tree.n_nodes - 1 <= bounds.nodes
        assert 1 <= tree.leaf_counts()[0] <= bounds.leaves
        assert counts[1:][~given[1:]].sum() <= bounds.tokens
        assert (counts[1:] >= 1).all()
        leaf = tree.is_leaf()
        assert (tree.copies[leaf] >= 1).all()
        assert not tree.copies[~leaf].any()
        assert not np.isin(
            tree.finish[~leaf], (FinishReason.EOS, FinishReason.REPETITION, FinishReason.PRUNED)
        ).any()
        assert not np.isin(tree.finish[leaf], (FinishReason.SPLIT, FinishReason.FORK)).any()
        assert (tree.visits > 0).any() == (sampler.kind == "search_tree")
        for node in np.flatnonzero(leaf).tolist():
            ids, prompt = path_tokens(tree, node), int(counts[0])
            inner = tree.path(node)[1:]
            sampled = np.concatenate([np.full(counts[n], not given[n]) for n in inner])
            assert sampled.sum() <= bounds.answer_tokens
            assert (ids[-1] in reasoner.end_ids) == (tree.finish[node] == FinishReason.EOS)
            assert not reasoner.end_ids.intersection(ids[prompt:-1])
            # The texts of a path join to its decoded tokens.
            answer = [t for t in ids[prompt:] if t not in reasoner.end_ids]
            assert "".join(tree.texts[n] for n in inner) == reasoner.tokenizer.decode(answer)
            # Its logprobs are those of the whole path read at once.
            logprobs, entropies = recomputed(reasoner, ids, sampler)
            parts = [slice(tree.token_offsets[n], tree.token_offsets[n + 1]) for n in inner]
            written = np.concatenate([tree.logprobs[p] for p in parts])
            spread = np.concatenate([tree.entropies[p] for p in parts])
            np.testing.assert_allclose(written[sampled], logprobs[prompt - 1 :][sampled], atol=1e-4)
            np.testing.assert_allclose(spread[sampled], entropies[prompt - 1 :][sampled], atol=1e-4)
        assert (tree.kept is not None) == (sampler.top_k > 0)
        if tree.kept is not None:
            kept = np.split(tree.kept.tokens, np.cumsum(tree.kept.counts)[:-1])
            assert not tree.kept.counts[: int(counts[0])].any()
            for ids, token in zip(kept[int(counts[0]) :], tree.tokens[int(counts[0]) :], strict=True):
                assert token in ids
                assert 1 <= len(ids) <= sampler.top_k + (name == "cut lookahead")


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_tree_does_not_depend_on_the_other_problems(precise_policy: Policy, name: str) -> None:
    batch = [*problems(3, operations=1), *problems(2, operations=12)]
    together = sample(precise_policy, batch, SAMPLERS[name])
    assert_same_trees(together, [sample(precise_policy, [problem], SAMPLERS[name])[0] for problem in batch])
    assert_same_trees(together, list(reversed(sample(precise_policy, batch[::-1], SAMPLERS[name]))))


@pytest.mark.parametrize("name", SAMPLERS)
def test_neither_parts_nor_compaction_nor_little_memory_change_a_tree(
    precise_policy: Policy, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    batch = problems(4)
    usual = sample(precise_policy, batch, SAMPLERS[name])
    assert_same_trees(usual, sample(precise_policy, batch, SAMPLERS[name], max_rows=3))
    monkeypatch.setattr(local_engine, "WAITING_BYTES", 0)
    assert_same_trees(usual, sample(precise_policy, batch, SAMPLERS[name]))
    monkeypatch.setattr(local_engine, "COMPACT_BELOW", 1.01)
    assert_same_trees(usual, sample(precise_policy, batch, SAMPLERS[name], max_rows=5))


@pytest.mark.parametrize("name", SAMPLERS)
def test_stop_is_heard_and_progress_ends_at_its_total(precise_policy: Policy, name: str) -> None:
    engine, seen, asked = LocalEngine(precise_policy), [(0, 1)], 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == 10

    plan = plan_from_config(SAMPLERS[name], judge_gsm8k)
    with pytest.raises(SamplingStopped):
        engine.sample(
            problems(3), plan, seed=1, step=1, should_stop=should_stop, on_progress=lambda _d, _t: None
        )
    assert asked == 10
    engine.sample(
        problems(3),
        plan,
        seed=1,
        step=1,
        should_stop=lambda: False,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    done, totals = [d for d, _ in seen[1:]], {t for _, t in seen[1:]}
    assert done == sorted(done)
    assert totals == {done[-1]}


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_is_spent_is_counted(reasoner: Policy, name: str) -> None:
    """Tokens sampled are those of the tree and those that merging, lookahead or search leave out; only a
    start inside a segment reads a token again."""
    engine = LocalEngine(reasoner)
    trees = sample(reasoner, problems(4), SAMPLERS[name], engine=engine)
    given = sum(int(t.token_counts()[t.finish == FinishReason.GIVEN].sum()) for t in trees)
    tokens = sum(int(t.token_counts()[1:].sum()) for t in trees) - given
    assert engine.spent.given == given
    assert (given > 0) == (name == "budgets")
    if "merged" in name:
        assert engine.spent.sampled == sum(
            int((t.token_counts() * t.answer_counts())[1:].sum()) for t in trees
        )
        assert engine.spent.sampled > tokens
    elif "lookahead" in name or "uct" in name:
        assert engine.spent.sampled >= tokens
        return
    else:
        assert engine.spent.sampled == tokens
    # Of these fork trees every answer but the first of a tree starts inside another.
    starts = {"surprisal forks": 2, "entropy forks": 4, "hot forks": 2}
    if name in starts:
        assert engine.spent.reread == sum(int(t.leaf_counts()[0]) - starts[name] for t in trees)
    elif name != "uniform forks":
        assert engine.spent.reread == 0


class Asks:
    """A growth that asks for two segments, one after the other, and keeps them."""

    total, done = 2, 0
    temperature, most_tokens, most_positions = 0.8, 20, 20
    cut = None

    def __init__(self, first: Request, second: Request) -> None:
        self.first, self.second = first, second
        self.told: list[Segment] = []

    def growth(self, ground: Ground) -> Asks:
        self.ground = ground
        return self

    def begin(self) -> Orders:
        return Orders([self.first])

    def take(self, segments: Sequence[Segment]) -> Orders:
        self.told += segments
        return Orders([self.second] if len(self.told) == 1 else [])

    def tree(self) -> RolloutTree:
        return tree_of(self.ground, {segment.chain: segment.strand(0) for segment in self.told})


@pytest.mark.parametrize("at", [END, 5, 6])
def test_forced_greedy_and_reported_tokens(reasoner: Policy, at: int) -> None:
    """The first segment is put there, end and line break and all, and ends with its sixth token; the second
    goes on from its end or its middle, greedily."""
    newline = int(np.flatnonzero(reasoner.newline_tokens)[0])
    forced = (newline, min(reasoner.end_ids), 20, newline, 21, 22)
    asks = Asks(
        Request(chain=1, most_tokens=6, forced=forced, split=True, top=3, keep=Keep.END, value=True),
        Request(chain=2, parent=1, at=at, most_tokens=4, greedy=True, top=2, keep=Keep.END, value=True),
    )
    engine = LocalEngine(reasoner)
    (problem,) = problems(1)
    engine.sample([problem], asks, seed=1, step=1, should_stop=lambda: False, on_progress=lambda _d, _t: None)
    first, second = asks.told
    assert tuple(first.tokens.tolist()) == forced
    assert first.finish == FinishReason.LENGTH
    path = [*reasoner.encode(problem.prompt), *first.tokens.tolist()]
    if at == 5:
        path = path[:-1]
    start = len(path)
    path += second.tokens.tolist()
    with torch.no_grad():
        state = reasoner.model.model(input_ids=torch.tensor([path])).last_hidden_state[0]
        logits = reasoner.model.lm_head(state)
        assert reasoner.value_head is not None
        values = torch.sigmoid(reasoner.value_head(state))[:, 0]
    plain, sampled = logits.softmax(-1), (logits / 0.8).log_softmax(-1)
    for place, token in enumerate(second.tokens.tolist(), start):
        before = plain[place - 1]
        assert token == int(before.argmax())
        best = before.topk(2)
        assert second.top_ids is not None
        assert second.top_probs is not None
        assert second.top_ids[place - start].tolist() == best.indices.tolist()
        np.testing.assert_allclose(second.top_probs[place - start], best.values, atol=1e-5)
        assert second.logprobs[place - start] == pytest.approx(float(sampled[place - 1, token]), abs=1e-4)
    if second.finish == FinishReason.EOS:  # nothing follows it
        assert np.isnan(second.value)
        assert at == 5
    else:
        assert second.value == pytest.approx(float(values[-1]), abs=1e-5)
    assert first.top_ids is not None
    assert first.top_ids.shape == (6, 3)
    assert engine.spent.reread == (at == 5)


def test_a_value_needs_the_last_token_read(reasoner: Policy) -> None:
    with pytest.raises(ValueError, match="keep END"):
        LocalEngine(reasoner).sample(
            problems(1),
            Asks(Request(chain=1, value=True), Request(chain=2)),
            seed=1,
            step=1,
            should_stop=lambda: False,
            on_progress=lambda _d, _t: None,
        )


class Toy(Policy):
    """A policy of four tokens, the last of which ends an answer; the prompt is always the first two."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer, frozenset({3}))

    def encode(self, prompt: str) -> list[int]:
        return [0, 1]


@pytest.fixture(scope="module")
def toy(random_model: Callable[..., Any], tiny_reasoner: Policy) -> Toy:
    model = random_model("llama", 4)
    model.lm_head.weight.data.mul_(0.3)
    return Toy(model, tiny_reasoner.tokenizer)


@torch.no_grad()
def next_token(toy: Toy, path: tuple[int, ...]) -> list[float]:
    chances: list[float] = (
        toy.model(input_ids=torch.tensor([[0, 1, *path]])).logits[0, -1].softmax(-1).tolist()
    )
    return chances


def every_answer(toy: Toy, most_tokens: int, start: tuple[int, ...] = ()) -> dict[tuple[int, ...], float]:
    """All answers that go on from a start, of so many tokens at most, and their probabilities."""
    if start[-1:] == (3,) or len(start) == most_tokens:
        return {start: 1.0}
    return {
        answer: chance * below
        for token, chance in enumerate(next_token(toy, start))
        for answer, below in every_answer(toy, most_tokens, (*start, token)).items()
    }


def leftmost(tree: RolloutTree) -> tuple[int, ...]:
    node = 0
    while tree.child_counts()[node]:
        node = int(tree.first_children()[node])
    return tuple(path_tokens(tree, node)[2:])


def test_answers_of_a_toy_model_come_as_often_as_enumeration_says(toy: Toy) -> None:
    batch = [Problem(f"p{i}", "", "") for i in range(2000)]
    expected = every_answer(toy, 4)
    assert min(expected.values()) < 0.01 < max(expected.values())
    plans: tuple[Sampler, ...] = (
        FlatSampler(group_size=2, max_tokens=4),
        SegmentTreeSampler(depth=2, branching_per_depth=(2,), segment_tokens_per_depth=(2,), split="none"),
    )
    for sampler in plans:
        seen = Counter(leftmost(tree) for tree in sample(toy, batch, sampler))
        assert chi_square(seen, expected) > 0.001


def test_forks_of_a_toy_model_come_as_often_as_enumeration_says(toy: Toy) -> None:
    """(1, 1, 1, 1): every answer, its most surprising token but the first, every way on from before it."""
    expected: dict[tuple[tuple[int, ...], ...], float] = {}
    for answer, chance in every_answer(toy, 3).items():
        surprisals = [-math.log(next_token(toy, answer[:i])[answer[i]]) for i in range(1, len(answer))]
        if not surprisals:
            expected[(answer,)] = chance
            continue
        at = 1 + surprisals.index(max(surprisals))
        for other, also in every_answer(toy, 3, answer[:at]).items():
            expected[answer, other] = chance * also
    sampler = ForkTreeSampler(trees=1, forks=1, max_tokens=3, never_after="")
    seen: Counter[tuple[tuple[int, ...], ...]] = Counter()
    for tree in sample(toy, [Problem(f"p{i}", "", "") for i in range(3000)], sampler):
        leaves = np.flatnonzero(tree.is_leaf()).tolist()
        seen[tuple(tuple(path_tokens(tree, leaf)[2:]) for leaf in leaves)] += 1
    assert chi_square(seen, expected) > 0.001
