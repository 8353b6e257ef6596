from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trainer.data import Problem, load_data
from trainer.policy import Policy
from trainer.sampling import local_engine
from trainer.sampling.decoder import CachedDecoder
from trainer.sampling.engine import (
    NO_ALTERNATIVES,
    Plan,
    SamplingPlan,
    SamplingStopped,
    TopK,
    plan_from_config,
)
from trainer.sampling.local_engine import LocalEngine, choose
from trainer.schema.data import ChainData
from trainer.schema.sampler import FlatSampler, Sampler, SegmentTreeSampler
from trainer.tree import FinishReason, RolloutTree

TREE = SamplingPlan((4, 2, 2), (16, 16, 64), split_at_newline=True, temperature=1.0)
BLIND = SamplingPlan((3, 2, 1, 2), (7, 5, 3, 9), split_at_newline=False, temperature=1.0)


def problems(count: int, operations: int = 4) -> list[Problem]:
    return load_data(ChainData(operations=operations), seed=5, evaluation_problems=1).training.batch(1, count)


def sample(
    policy: Policy,
    batch: Sequence[Problem],
    plan: Plan,
    seed: int = 1,
    step: int = 1,
    top_k: TopK = NO_ALTERNATIVES,
    **limits: int,
) -> list[RolloutTree]:
    return LocalEngine(policy, **limits).sample(
        batch,
        plan,
        seed=seed,
        step=step,
        should_stop=lambda: False,
        on_progress=lambda _done, _total: None,
        top_k=top_k,
    )


def assert_same_trees(first: Sequence[RolloutTree], second: Sequence[RolloutTree]) -> None:
    """Equal but for the last bits of logprobs, which batched arithmetic may round differently."""
    for one, other in zip(first, second, strict=True):
        assert one.problem_id == other.problem_id
        assert one.parent.tolist() == other.parent.tolist()
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.finish.tolist() == other.finish.tolist()
        assert one.texts == other.texts
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=2e-4)
        np.testing.assert_allclose(one.entropies, other.entropies, atol=2e-4)


def path_tokens(tree: RolloutTree, node: int) -> list[int]:
    return [
        t
        for n in tree.path(node)
        for t in tree.tokens[tree.token_offsets[n] : tree.token_offsets[n + 1]].tolist()
    ]


@torch.no_grad()
def recomputed(
    policy: Policy, tree: RolloutTree, leaf: int, temperature: float
) -> tuple[list[float], list[float]]:
    """Logprobs and entropies of a whole answer by the transformers module, without any cache."""
    ids = torch.tensor(path_tokens(tree, leaf))
    prompt = int(tree.token_counts()[0])
    logits = policy.model(input_ids=ids[None]).logits[0, prompt - 1 : -1].float() / temperature
    logprobs = logits.log_softmax(-1)
    entropies = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(1, ids[prompt:, None])[:, 0].tolist(), entropies.tolist()


@pytest.mark.parametrize(
    "plan", [TREE, BLIND, SamplingPlan((2, 2), (6, 30), split_at_newline=True, temperature=0.7)]
)
def test_logprobs_and_entropies_are_those_of_the_module(wild_policy: Policy, plan: SamplingPlan) -> None:
    for tree in sample(wild_policy, problems(3), plan):
        for leaf in np.flatnonzero(tree.is_leaf()).tolist():
            logprobs, entropies = recomputed(wild_policy, tree, leaf, plan.temperature)
            inner = tree.path(leaf)[1:]
            parts = [slice(tree.token_offsets[n], tree.token_offsets[n + 1]) for n in inner]
            np.testing.assert_allclose(np.concatenate([tree.logprobs[p] for p in parts]), logprobs, atol=2e-4)
            np.testing.assert_allclose(
                np.concatenate([tree.entropies[p] for p in parts]), entropies, atol=2e-4
            )


@torch.no_grad()
def test_alternatives_are_of_the_distribution_that_was_sampled_from(wild_policy: Policy) -> None:
    plan = SamplingPlan((3, 2), (6, 30), split_at_newline=True, temperature=0.7)
    batch = problems(12)
    plain = sample(wild_policy, batch, plan)
    trees = sample(wild_policy, batch, plan, top_k=TopK(3, share=0.5))
    with_any = [tree for tree in trees if tree.top_tokens is not None]
    assert 2 <= len(with_any) <= 10
    for one, other in zip(plain, trees, strict=True):
        assert one.tokens.tobytes() == other.tokens.tobytes()  # it changes no token, and no bit of a logprob
        assert one.logprobs.tobytes() == other.logprobs.tobytes()
        assert (other.top_tokens is None) == (other.top_logprobs is None)
        assert other.temperature == 0.7
    tree = with_any[0]
    assert tree.top_tokens is not None
    assert tree.top_logprobs is not None
    prompt = int(tree.token_counts()[0])
    assert (tree.top_tokens[:prompt] == -1).all()
    for leaf in np.flatnonzero(tree.is_leaf()).tolist():
        ids = torch.tensor(path_tokens(tree, leaf))
        logits = wild_policy.model(input_ids=ids[None]).logits[0, prompt - 1 : -1].float() / 0.7
        best = logits.log_softmax(-1).topk(3)
        places = np.concatenate(
            [np.arange(tree.token_offsets[n], tree.token_offsets[n + 1]) for n in tree.path(leaf)[1:]]
        )
        assert tree.top_tokens[places].tolist() == best.indices.tolist()
        np.testing.assert_allclose(tree.top_logprobs[places], best.values.numpy(), rtol=1e-3, atol=1e-3)


def test_a_tree_does_not_depend_on_the_other_problems(wild_policy: Policy) -> None:
    # Prompts of very different length: a row that ended early stands further right than those that go on.
    batch = [*problems(5, operations=1), *problems(3, operations=12)]
    together = sample(wild_policy, batch, TREE)
    assert_same_trees(together, [sample(wild_policy, [problem], TREE)[0] for problem in batch])
    assert_same_trees(together, list(reversed(sample(wild_policy, batch[::-1], TREE))))


@pytest.mark.parametrize("max_rows", [1, 3, 8, 40])
def test_growing_in_parts_gives_the_same_trees(wild_policy: Policy, max_rows: int) -> None:
    batch = problems(5)
    assert_same_trees(sample(wild_policy, batch, BLIND), sample(wild_policy, batch, BLIND, max_rows=max_rows))
    assert_same_trees(sample(wild_policy, batch, TREE), sample(wild_policy, batch, TREE, max_rows=max_rows))


def test_compaction_changes_nothing(wild_policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = problems(8)
    usual = sample(wild_policy, batch, TREE)
    for threshold in (0.0, 1.01):
        monkeypatch.setattr("trainer.sampling.local_engine.COMPACT_BELOW", threshold)
        assert_same_trees(usual, sample(wild_policy, batch, TREE))


def test_same_call_same_bits(wild_policy: Policy) -> None:
    first, second = sample(wild_policy, problems(4), TREE), sample(wild_policy, problems(4), TREE)
    for one, other in zip(first, second, strict=True):
        assert one.logprobs.tobytes() == other.logprobs.tobytes()
        assert one.to_payload() == other.to_payload()


def test_seed_step_and_repetition_make_other_trees(wild_policy: Policy) -> None:
    one = problems(1)
    trees = [
        sample(wild_policy, one, TREE)[0],
        sample(wild_policy, one, TREE, seed=2)[0],
        sample(wild_policy, one, TREE, step=2)[0],
        sample(wild_policy, one * 2, TREE)[1],
    ]
    assert len({tree.tokens.tobytes() for tree in trees}) == 4
    assert_same_trees(sample(wild_policy, one * 2, TREE)[:1], trees[:1])


def shape_sha256(trees: Sequence[RolloutTree]) -> str:
    """Of structure, tokens and ends, which rounding does not touch."""
    hashed = sha256()
    for tree in trees:
        for column in (tree.parent, tree.token_offsets, tree.tokens, tree.finish):
            hashed.update(column.tobytes())
    return hashed.hexdigest()


@pytest.mark.parametrize(
    ("slug", "sha"),
    [
        ("treerpo-tiny", "ba9ad353aee822f85d53d2b90b60d84a13ce0dad796dc191326b97d26ca8cd27"),
        ("grpo-tiny", "3fdb80beeb4b18ab0b7466370f70d430f48d9a91f0d664e4bb175a19fc586ae2"),
    ],
)
def test_the_trees_of_the_first_presets_are_what_they_always_were(
    tiny_reasoner: Policy, slug: str, sha: str
) -> None:
    """The hashes were taken before growths existed; runs stored since then must stay reproducible."""
    samplers: dict[str, Sampler] = {
        "treerpo-tiny": SegmentTreeSampler(
            depth=3,
            branching_per_depth=(4, 2, 2),
            segment_tokens_per_depth=(16, 16, 64),
            split="newline",
            temperature=1.0,
        ),
        "grpo-tiny": FlatSampler(group_size=8, max_tokens=96, temperature=1.0),
    }
    batch = load_data(ChainData(operations=5), seed=1, evaluation_problems=1).training.batch(1, 8)
    trees = sample(tiny_reasoner, batch, plan_from_config(samplers[slug]), seed=3)
    assert shape_sha256(trees) == sha


def test_siblings_differ(tiny_reasoner: Policy) -> None:
    tree = sample(
        tiny_reasoner, problems(1), SamplingPlan((16,), (60,), split_at_newline=False, temperature=1.0)
    )[0]
    assert len(set(tree.texts[1:])) > 4


@pytest.mark.parametrize("plan", [TREE, BLIND])
def test_segments_end_as_the_plan_says(wild_policy: Policy, plan: SamplingPlan) -> None:
    seen = set()
    for tree in sample(wild_policy, problems(8), plan):
        depths, counts, children = tree.depths(), tree.token_counts(), tree.child_counts()
        for node in range(1, tree.n_nodes):
            own = tree.tokens[tree.token_offsets[node] : tree.token_offsets[node + 1]].tolist()
            finish = FinishReason(tree.finish[node])
            is_last = depths[node] == plan.depth
            seen.add(finish)
            assert 1 <= counts[node] <= plan.segment_tokens[depths[node] - 1]
            assert not wild_policy.end_ids.intersection(own[:-1])
            assert (own[-1] in wild_policy.end_ids) == (finish is FinishReason.EOS)
            if plan.split_at_newline and not is_last:
                assert not any(wild_policy.newline_tokens[t] for t in own[:-1])
                assert wild_policy.newline_tokens[own[-1]] == (finish is FinishReason.SPLIT)
            if finish is FinishReason.LENGTH:
                assert counts[node] == plan.segment_tokens[depths[node] - 1]
            if finish is FinishReason.SPLIT:
                assert plan.split_at_newline
                assert not is_last
            is_leaf = finish is FinishReason.EOS or is_last
            assert children[node] == (0 if is_leaf else plan.branching[depths[node]])
        assert children[0] == plan.branching[0]
    assert FinishReason.LENGTH in seen
    assert FinishReason.EOS in seen
    assert (FinishReason.SPLIT in seen) == plan.split_at_newline


def test_texts_join_to_the_decoded_path(wild_policy: Policy) -> None:
    # The untrained policy writes raw bytes, so characters are split over segments all the time.
    plan = SamplingPlan((2, 2, 2), (3, 2, 4), split_at_newline=False, temperature=1.0)
    for tree in sample(wild_policy, problems(12), plan):
        assert tree.texts[0] in {problem.prompt for problem in problems(12)}
        for leaf in np.flatnonzero(tree.is_leaf()).tolist():
            ids = path_tokens(tree, leaf)[int(tree.token_counts()[0]) :]
            ids = [t for t in ids if t not in wild_policy.end_ids]
            whole = wild_policy.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            assert "".join(tree.texts[n] for n in tree.path(leaf)[1:]) == whole


def test_greedy_is_the_argmax_of_the_module(tiny_reasoner: Policy) -> None:
    plan = SamplingPlan((1,), (70,), split_at_newline=False, temperature=0.0)
    for tree in sample(tiny_reasoner, problems(4), plan):
        ids = torch.tensor([path_tokens(tree, 0)])
        for token in path_tokens(tree, 1)[ids.shape[1] :]:
            with torch.no_grad():
                assert int(tiny_reasoner.model(input_ids=ids).logits[0, -1].argmax()) == token
            ids = torch.cat([ids, torch.tensor([[token]])], 1)
        assert tree.finish[1] == FinishReason.EOS


def test_prompts_and_prefixes_are_read_once(wild_policy: Policy) -> None:
    """The decoder reads each prompt token once, and each sampled token at most once (never the last of an
    answer).
    """
    engine = LocalEngine(wild_policy)
    decoder = engine._decoder
    read = {"prefilled": 0, "rows": 0}
    prefill, step = decoder.prefill, decoder.step

    def counting_prefill(tokens: Any, lengths: Any, cache: Any) -> Any:
        read["prefilled"] += int(lengths.sum())
        return prefill(tokens, lengths, cache)

    def counting_step(tokens: Any, positions: Any, cache: Any, columns: int) -> Any:
        read["rows"] += len(tokens)
        return step(tokens, positions, cache, columns)

    decoder.prefill, decoder.step = counting_prefill, counting_step  # type: ignore[method-assign]
    trees = engine.sample(
        problems(8), TREE, seed=1, step=1, should_stop=lambda: False, on_progress=lambda _done, _total: None
    )
    counts = [tree.token_counts() for tree in trees]
    assert read["prefilled"] == sum(int(c[0]) for c in counts)
    sampled = sum(int(c[1:].sum()) for c in counts)
    leaves = sum(int(tree.is_leaf().sum()) for tree in trees)
    assert sampled - leaves <= read["rows"] <= (sampled - leaves) / 0.6


def test_sampled_tokens_follow_the_distribution() -> None:
    # 3 tokens with probabilities .2, .5, .3: each draw falls into its token's share of (0, 1), at any
    # temperature.
    logits = torch.tensor([[0.2, 0.5, 0.3]]).log().repeat(6, 1)
    draws = torch.tensor([0.01, 0.19, 0.21, 0.69, 0.71, 1 - 2**-33], dtype=torch.float64)
    tokens, logprobs, entropies = choose(logits, draws, 1.0)
    assert tokens.tolist() == [0, 0, 1, 1, 2, 2]
    assert logprobs.exp().tolist() == pytest.approx([0.2, 0.2, 0.5, 0.5, 0.3, 0.3])
    assert entropies.tolist() == pytest.approx([1.0297] * 6, abs=1e-4)
    hot = choose(2 * logits, draws, 2.0)
    assert hot[0].tolist() == tokens.tolist()
    assert hot[1].tolist() == pytest.approx(logprobs.tolist())
    assert choose(logits, draws, 0.0)[0].tolist() == [1] * 6


def test_choose_never_takes_a_token_of_no_probability() -> None:
    logits = torch.full((1, 50_000), -200.0)
    logits[0, 123] = 0.0
    for draw in (2**-33, 0.5, 1 - 2**-33):
        assert choose(logits, torch.tensor([draw], dtype=torch.float64), 1.0)[0].tolist() == [123]


def test_stop_is_asked_for_before_every_token_and_heard_at_once(wild_policy: Policy) -> None:
    engine = LocalEngine(wild_policy)
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == 10

    with pytest.raises(SamplingStopped):
        engine.sample(
            problems(4), BLIND, seed=1, step=1, should_stop=should_stop, on_progress=lambda _d, _t: None
        )
    assert asked == 10
    sample(wild_policy, problems(4), BLIND)  # the engine is as good as new


def test_progress_rises_to_all_nodes_of_full_trees(wild_policy: Policy) -> None:
    seen: list[tuple[int, int]] = []
    engine = LocalEngine(wild_policy)
    engine.sample(
        problems(3),
        TREE,
        seed=1,
        step=1,
        should_stop=lambda: False,
        on_progress=lambda d, t: seen.append((d, t)),
    )
    assert {total for _, total in seen} == {3 * 28}
    done = [d for d, _ in seen]
    assert done == sorted(done)
    assert done[-1] == 3 * 28


def test_diverged_weights_are_an_error_and_not_a_tree(
    random_model: Callable[..., Any], tiny_reasoner: Policy
) -> None:
    model = random_model("qwen2", len(tiny_reasoner.tokenizer))
    model.model.norm.weight.data.fill_(float("nan"))
    policy = Policy(model, tiny_reasoner.tokenizer, tiny_reasoner.end_ids)
    with pytest.raises(FloatingPointError, match="not finite"):
        sample(policy, problems(1), TREE)


def test_prompt_and_answer_must_fit_the_model(wild_policy: Policy) -> None:
    with pytest.raises(ValueError, match="do not fit the model's 256 positions"):
        sample(wild_policy, problems(1), SamplingPlan((1,), (250,), split_at_newline=False, temperature=1.0))


def test_no_problems_no_trees(wild_policy: Policy) -> None:
    assert sample(wild_policy, [], TREE) == []


@pytest.mark.parametrize("longest", [0, 2, 5])
def test_a_row_that_ends_at_the_edge_of_the_cache_leaves_its_neighbours_alone(
    tiny_reasoner: Policy, monkeypatch: pytest.MonkeyPatch, longest: int
) -> None:
    """Only the row with the longest prompt ends, at every place in turn, and so once at the cache's edge."""
    end, real, real_step = min(tiny_reasoner.end_ids), local_engine.choose, CachedDecoder.step
    problems = [Problem(f"p{i}", "Ada has 5 pens. Finds 3. How many?\n", "8") for i in range(6)]
    problems[longest] = Problem("long", "Ada has 5 pens. " + "Finds 3. " * 12 + "How many?\n", "41")
    calls, ends_at = 0, 0

    def choose(logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        nonlocal calls
        calls += 1
        tokens, logprobs, entropies = real(logits, *rest)
        tokens = torch.where(tokens == end, 5, tokens)
        if calls == ends_at:
            tokens[longest] = end
        return tokens, logprobs, entropies

    def step(self: CachedDecoder, tokens: Tensor, positions: Tensor, cache: Tensor, columns: int) -> Tensor:
        assert int(positions.max()) < cache.shape[4]
        return real_step(self, tokens, positions, cache, columns)

    monkeypatch.setattr(local_engine, "choose", choose)
    monkeypatch.setattr(CachedDecoder, "step", step)
    for ends_at in range(20, 45):
        calls = 0
        plan = SamplingPlan((1,), (50,), False, 1.0)
        trees = LocalEngine(tiny_reasoner).sample(
            problems, plan, seed=1, step=1, should_stop=lambda: False, on_progress=lambda done, total: None
        )
        assert [len(tree.tokens) - int(tree.token_counts()[0]) for tree in trees] == [
            ends_at if i == longest else 50 for i in range(6)
        ]
