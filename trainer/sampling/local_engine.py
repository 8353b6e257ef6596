"""Samples rollout trees from the policy with its own KV cache: the CPU demo, and the oracle for other
engines.

Level by level: all segments of a level grow together, one token per row and forward pass. A row's cache
columns are its path, so a segment of any length needs no padding; branching is one index_select of the cache
by parent row; the prompt is read once per problem, and no prefix is ever computed again. When fewer than 60 %
of the rows are live the cache is compacted. Letters as in `decoder`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data import Problem
from trainer.policy import Policy
from trainer.sampling.decoder import CachedDecoder
from trainer.sampling.engine import SamplingPlan, SamplingStopped
from trainer.seeding import ROOT_PATH, child_paths, named_seed, uniforms
from trainer.tree import FinishReason, RolloutTree, sampled_tree

COMPACT_BELOW = 0.6
MAX_ROWS = 1024
CACHE_BYTES = 2**30  # of one level; a level that needs more is grown in parts
DRAWS_AT_ONCE = 32  # random numbers per segment; a multiple of 4
# A cache is widened by so many tokens when it is full: most answers end long before the limit.
COLUMNS_AT_ONCE = 32


@dataclass(frozen=True, slots=True, eq=False)
class _Frontier:
    """R nodes whose children come next, problems in order.

    problem [R]; number [R] place of the node in its level of its tree; path [R] the node's 64-bit name;
    lengths [R] tokens of its path, all of them in the cache; logits [R, V] after the last of them. The cache
    row of node r is row `row[r]` of `caches[source[r]]`: nodes that ended before and after a compaction stand
    in different tensors.
    """

    problem: NDArray[np.int64]
    number: NDArray[np.int64]
    path: NDArray[np.uint64]
    lengths: Tensor
    logits: Tensor
    caches: list[Tensor]
    source: Tensor
    row: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Level:
    """R sampled segments of one level, problems in order, siblings side by side; columns beyond `count` mean
    nothing.
    """

    problem: NDArray[np.int64]  # [R]
    parent: NDArray[np.int64]  # [R] number of the parent in its level of its tree
    count: NDArray[np.int64]  # [R] tokens
    finish: NDArray[np.uint8]  # [R]
    tokens: NDArray[np.int32]  # [R, limit]
    logprobs: NDArray[np.float32]  # [R, limit]
    entropies: NDArray[np.float32]  # [R, limit]


class LocalEngine:
    """Engine over a policy in this process (`sampling.engine.Engine`)."""

    name = "local"

    def __init__(self, policy: Policy, *, max_rows: int = MAX_ROWS, cache_bytes: int = CACHE_BYTES) -> None:
        self._policy = policy
        self._decoder = CachedDecoder(policy.model)
        self._max_rows = max_rows
        self._cache_bytes = cache_bytes
        self._ends = torch.zeros(self._decoder.vocabulary, dtype=torch.bool, device=policy.device)  # [V]
        self._ends[sorted(policy.end_ids)] = True
        self._newlines = torch.from_numpy(policy.newline_tokens).to(policy.device)  # [V]

    def sync(self) -> None:
        self._decoder.sync()

    def sample(
        self,
        problems: Sequence[Problem],
        plan: SamplingPlan,
        *,
        seed: int,
        step: int,
        should_stop: Callable[[], bool],
        on_progress: Callable[[int, int], None],
    ) -> list[RolloutTree]:
        if not problems:
            return []
        prompts = [self._policy.encode(problem.prompt) for problem in problems]
        self._refuse_too_long(problems, prompts, plan)
        columns = max(map(len, prompts)) + plan.most_tokens
        growth = _Growth(
            self._decoder,
            self._ends,
            self._newlines,
            plan,
            _tree_keys(problems, seed, step),
            self._rows_at_once(columns),
        )
        growth.should_stop, growth.on_progress = should_stop, on_progress
        for start in range(0, len(prompts), growth.most_rows):
            chosen = np.arange(start, min(start + growth.most_rows, len(prompts)))
            growth.grow(self._read_prompts([prompts[i] for i in chosen], chosen), 0)
        return self._trees(problems, prompts, growth.levels(), step)

    def _refuse_too_long(
        self, problems: Sequence[Problem], prompts: list[list[int]], plan: SamplingPlan
    ) -> None:
        for problem, prompt in zip(problems, prompts, strict=True):
            if len(prompt) + plan.most_tokens > self._decoder.max_positions:
                raise ValueError(
                    f"Problem {problem.problem_id}: a prompt of {len(prompt)} tokens and an answer of up to "
                    f"{plan.most_tokens} do not fit the model's {self._decoder.max_positions} positions. "
                    "Lower the answer or segment length."
                )

    def _rows_at_once(self, columns: int) -> int:
        """Rows of a level that fit the memory given to it: their cache, what they record, and a few [V]
        vectors each while sampling.
        """
        row_bytes = self._decoder.row_bytes(columns) + 32 * self._decoder.vocabulary + 16 * columns
        return max(1, min(self._max_rows, self._cache_bytes // row_bytes))

    def _read_prompts(self, prompts: list[list[int]], problem: NDArray[np.int64]) -> _Frontier:
        device = self._policy.device
        rows = len(prompts)
        tokens = torch.zeros(rows, max(map(len, prompts)), dtype=torch.int64)  # [P, T]
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)  # [P]
        cache = self._decoder.empty_cache(rows, tokens.shape[1])
        logits = self._decoder.prefill(tokens.to(device), lengths, cache)
        row_numbers = torch.arange(rows, device=device)
        return _Frontier(
            problem=problem,
            number=np.zeros(rows, np.int64),
            path=np.full(rows, ROOT_PATH, np.uint64),
            lengths=lengths,
            logits=logits,
            caches=[cache],
            source=torch.zeros_like(row_numbers),
            row=row_numbers,
        )

    def _trees(
        self, problems: Sequence[Problem], prompts: list[list[int]], levels: list[_Level], step: int
    ) -> list[RolloutTree]:
        bounds = [np.searchsorted(level.problem, np.arange(len(problems) + 1)) for level in levels]
        trees = []
        for index, (problem, prompt) in enumerate(zip(problems, prompts, strict=True)):
            parent, finish = [-1], [int(FinishReason.NONE)]
            tokens: list[NDArray[np.int32]] = [np.asarray(prompt, np.int32)]
            zeros = np.zeros(len(prompt), np.float32)
            logprobs, entropies = [zeros], [zeros]
            above, here = 0, 1  # first node of the level above, and of this level
            for level, bound in zip(levels, bounds, strict=True):
                for row in range(bound[index], bound[index + 1]):
                    count = level.count[row]
                    tokens.append(level.tokens[row, :count])
                    logprobs.append(level.logprobs[row, :count])
                    entropies.append(level.entropies[row, :count])
                rows = slice(bound[index], bound[index + 1])
                parent.extend((above + level.parent[rows]).tolist())
                finish.extend(level.finish[rows].tolist())
                above, here = here, len(parent)
            texts = self._policy.decoder.texts(parent, [x.tolist() for x in tokens])
            trees.append(
                sampled_tree(
                    problem_id=problem.problem_id,
                    reference_answer=problem.reference_answer,
                    step=step,
                    policy_version=max(step - 1, 0),
                    parent=parent,
                    segment_tokens=tokens,
                    segment_logprobs=logprobs,
                    segment_entropies=entropies,
                    finish=finish,
                    texts=[problem.prompt, *texts[1:]],
                )
            )
        return trees


def _tree_keys(problems: Sequence[Problem], seed: int, step: int) -> NDArray[np.uint64]:
    """[P] seed of each tree; a problem that comes twice in a batch has two trees."""
    seen: Counter[str] = Counter()
    keys = []
    for problem in problems:
        keys.append(named_seed(seed, "tree", step, problem.problem_id, seen[problem.problem_id]))
        seen[problem.problem_id] += 1
    return np.array(keys, np.uint64)


def _nothing(_done: int, _total: int) -> None: ...


class _Growth:
    """The growing trees of one call of `sample`."""

    def __init__(
        self,
        decoder: CachedDecoder,
        ends: Tensor,
        newlines: Tensor,
        plan: SamplingPlan,
        keys: NDArray[np.uint64],
        most_rows: int,
    ) -> None:
        self._decoder, self._ends, self._newlines, self._plan, self._keys = (
            decoder,
            ends,
            newlines,
            plan,
            keys,
        )
        self.most_rows = most_rows
        self.should_stop: Callable[[], bool] = lambda: False
        self.on_progress: Callable[[int, int], None] = _nothing
        self._parts: list[list[_Level]] = [[] for _ in plan.branching]
        self._numbered = np.zeros((plan.depth, len(keys)), np.int64)  # nodes so far per level and problem
        self._done, self._total = 0, plan.most_nodes * len(keys)
        # Nodes of a full subtree whose top stands at depth d + 1: what an early end settles at once.
        self._subtree = [1] * plan.depth
        for depth in range(plan.depth - 2, -1, -1):
            self._subtree[depth] = 1 + plan.branching[depth + 1] * self._subtree[depth + 1]

    def levels(self) -> list[_Level]:
        """What was sampled, level by level."""
        return [_joined(parts) for parts in self._parts if parts]

    def grow(self, frontier: _Frontier, depth: int) -> None:
        """Sample all that hangs below these nodes, which stand at `depth`; as many at once as fit memory."""
        nodes = max(1, self.most_rows // self._plan.branching[depth])
        for start in range(0, len(frontier.problem), nodes):
            chosen = np.arange(start, min(start + nodes, len(frontier.problem)))
            below = self._sample_children(frontier, chosen, depth)
            if below is not None:
                self.grow(below, depth + 1)

    def _sample_children(self, frontier: _Frontier, nodes: NDArray[np.int64], depth: int) -> _Frontier | None:
        """Sample the segments below `nodes` [N]; those that go on are the next frontier."""
        plan, decoder, device = self._plan, self._decoder, frontier.logits.device
        children, limit = plan.branching[depth], plan.segment_tokens[depth]
        is_last = depth == plan.depth - 1
        may_split = plan.split_at_newline and not is_last
        parent = np.repeat(nodes, children)  # [R] rows of the frontier
        problem = frontier.problem[parent]
        path = child_paths(frontier.path[parent], np.tile(np.arange(children), len(nodes)))
        above = torch.from_numpy(parent).to(device)
        size = len(parent)

        # Of the level: one row per segment.
        tokens = torch.zeros(size, limit, dtype=torch.int64, device=device)
        logprobs = torch.zeros(size, limit, device=device)
        entropies = torch.zeros(size, limit, device=device)
        count = torch.zeros(size, dtype=torch.int64, device=device)
        finish = torch.zeros(size, dtype=torch.uint8, device=device)
        lengths = torch.zeros(size, dtype=torch.int64, device=device)
        source, row = torch.zeros_like(lengths), torch.zeros_like(lengths)
        after: list[tuple[Tensor, Tensor]] = []  # segments, and the logits after them

        # Of the batch: one row per row of the cache.
        cache = _branch(frontier, above)
        caches = [
            cache
        ]  # of this level, the newest last; older ones hold rows that ended before a compaction
        segment = torch.arange(size, device=device)  # [B] whose row it is
        position = frontier.lengths[above]  # [B] where its next token will be written
        growing = torch.ones(size, dtype=torch.bool, device=device)  # [B]
        logits = frontier.logits[above]  # [B, V]
        for place in range(limit):
            if self.should_stop():
                raise SamplingStopped
            if place % DRAWS_AT_ONCE == 0:  # [R, DRAWS_AT_ONCE]
                drawn = uniforms(self._keys[problem], path, min(DRAWS_AT_ONCE, limit - place), first=place)
                draws = torch.from_numpy(drawn).to(device)
            chosen, logprob, entropy = choose(logits, draws[segment, place % DRAWS_AT_ONCE], plan.temperature)
            now = segment[growing]
            tokens[now, place] = chosen[growing]
            logprobs[now, place] = logprob[growing]
            entropies[now, place] = entropy[growing]
            ended = growing & self._ends[chosen]
            split = growing & ~ended & self._newlines[chosen] if may_split else torch.zeros_like(ended)
            full = growing & ~ended & ~split if place == limit - 1 else torch.zeros_like(ended)
            for which, reason in (
                (ended, FinishReason.EOS),
                (split, FinishReason.SPLIT),
                (full, FinishReason.LENGTH),
            ):
                finish[segment[which]] = int(reason)
            stopped = ended | split | full
            count[segment[stopped]] = place + 1
            self._done += int(stopped.sum()) + int(ended.sum()) * (self._subtree[depth] - 1)
            self.on_progress(self._done, self._total)
            growing = growing & ~stopped
            # A segment that has children needs its last token read once more; then its logits and its cache
            # row wait.
            closing = torch.zeros_like(ended) if is_last else split | full
            live = growing | closing
            alive = int(live.sum())
            if alive == 0:
                break
            if alive < COMPACT_BELOW * len(live):
                kept = live.nonzero()[:, 0]
                cache = cache.index_select(2, kept)
                # The old tensor is kept only while a segment that goes on has its row there.
                caches.append(cache)
                segment, position, chosen = segment[kept], position[kept], chosen[kept]
                growing, closing, live = growing[kept], closing[kept], live[kept]
            columns = int(position[live].max()) + 1  # looked at
            # Every row is written, those that have ended too; one that stands farther right than all
            # live ones must not write into its neighbour.
            written = int(position.max()) + 1
            if written > cache.shape[4]:
                cache = caches[-1] = decoder.widened(cache, written + COLUMNS_AT_ONCE)
            logits = decoder.step(chosen, position, cache, columns)
            position = position + live
            if bool(closing.any()):
                which = closing.nonzero()[:, 0]
                closed = segment[which]
                after.append((closed, logits[which]))
                lengths[closed] = position[which]
                source[closed], row[closed] = len(caches) - 1, which
        if not bool(torch.isfinite(entropies).all()):
            raise FloatingPointError("The policy's logits are not finite: its weights have diverged.")

        number = self._number(depth, problem)
        self._parts[depth].append(
            _Level(
                problem=problem,
                parent=frontier.number[parent],
                count=count.cpu().numpy(),
                finish=finish.cpu().numpy(),
                tokens=tokens.to(torch.int32).cpu().numpy(),
                logprobs=logprobs.cpu().numpy(),
                entropies=entropies.cpu().numpy(),
            )
        )
        if not after:
            return None
        closed = torch.cat([segments for segments, _ in after])
        order = closed.argsort()
        going = closed[order]
        where = going.cpu().numpy()
        return _Frontier(
            problem=problem[where],
            number=number[where],
            path=path[where],
            lengths=lengths[going],
            logits=torch.cat([x for _, x in after])[order],
            caches=caches,
            source=source[going],
            row=row[going],
        )

    def _number(self, depth: int, problem: NDArray[np.int64]) -> NDArray[np.int64]:
        """[R] place of each new segment in its level of its tree."""
        rank = np.arange(len(problem)) - np.searchsorted(problem, problem)
        number: NDArray[np.int64] = self._numbered[depth][problem] + rank
        np.add.at(self._numbered[depth], problem, 1)
        return number


def choose(logits: Tensor, draws: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """One token per row by inversion of the cumulative distribution softmax(logits / temperature).

    logits [B, V] float32; draws [B] float64 in (0, 1). Returns tokens [B] int64, their logprobs [B] and the
    distribution's entropies [B], float32, nats. Temperature 0: the most likely token, with logprob and
    entropy at temperature 1.
    """
    if temperature not in (0, 1):
        logits = logits / temperature
    shifted = logits - logits.amax(-1, keepdim=True)
    weights = shifted.exp()
    cumulative = weights.cumsum(-1, dtype=torch.float64)  # float32 would lose the tail of a large vocabulary
    total = cumulative[:, -1:]
    if temperature == 0:
        chosen = shifted.argmax(-1, keepdim=True)
    else:
        chosen = torch.searchsorted(cumulative, draws[:, None] * total, right=True).clamp_(
            max=logits.shape[1] - 1
        )
    total = total[:, 0]
    log_total = total.log().float()
    logprobs = shifted.gather(1, chosen)[:, 0] - log_total
    entropies = log_total - (weights * shifted).sum(-1) / total.float()
    return chosen[:, 0], logprobs, entropies


def _branch(frontier: _Frontier, nodes: Tensor) -> Tensor:
    """A cache [L, 2, R, K, T, D] with one row per entry of `nodes` [R]: one index_select per tensor that
    holds any of them.
    """
    source, row = frontier.source[nodes], frontier.row[nodes]
    used: list[int] = sorted(set(source.tolist()))
    if len(used) == 1:
        return frontier.caches[used[0]].index_select(2, row)
    first: Tensor = frontier.caches[used[0]]
    width = max(frontier.caches[number].shape[4] for number in used)
    branched = first.new_zeros(*first.shape[:2], len(nodes), first.shape[3], width, first.shape[5])
    for number in used:
        here = (source == number).nonzero()[:, 0]
        part = frontier.caches[number].index_select(2, row[here])
        branched[:, :, :, :, : part.shape[4]].index_copy_(2, here, part)
    return branched


def _joined(parts: list[_Level]) -> _Level:
    if len(parts) == 1:
        return parts[0]
    return _Level(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in _Level.__slots__}
    )
