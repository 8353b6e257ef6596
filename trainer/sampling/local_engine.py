"""Samples rollout trees from the policy with its own KV cache: the CPU demo, and the oracle for other
engines.

All problems' growths go in rounds: the requests of a round are written together, one token per row and
forward pass. A row's cache columns are its path, so a segment of any length needs no padding; branching is
one index_select of the cache by parent row; the prompt is read once per problem. A segment that starts behind
another's last token reads nothing again, because that one's logits were kept; one that starts inside
another reads exactly one token again, the one before its start. When fewer than 60 % of a round's rows are
live the cache is compacted; rows wait in the caches they were written in until their growth releases them.
Letters as in `decoder`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data import Problem
from trainer.events import Occupancy
from trainer.policy import Policy
from trainer.sampling.decoder import CachedDecoder
from trainer.sampling.engine import (
    NO_ALTERNATIVES,
    Cut,
    EngineFigures,
    Helper,
    Plan,
    SamplingStopped,
    Spent,
    TopK,
    grounds,
)
from trainer.sampling.growth import END, PROMPT, Alternatives, Growth, Keep, Orders, Request, Segment
from trainer.sampling.watch import GrowthWatch
from trainer.seeding import uniforms
from trainer.tree import FinishReason, Kept, RolloutTree

COMPACT_BELOW = 0.6
MAX_ROWS = 1024
CACHE_BYTES = 2**30  # of one round; a round that needs more is written in parts
WAITING_BYTES = 2**30  # of caches in which rows wait; beyond it those with few rows left are compacted
DRAWS_AT_ONCE = 32  # random numbers per segment; a multiple of 4
# A cache is widened by so many tokens when it is full: most answers end long before the limit.
COLUMNS_AT_ONCE = 32
CUT_OFF = -1e30  # logit of what is not sampled from; finite, so that 0 times it is 0


@dataclass(slots=True, eq=False)
class _Shelf:
    """Where R segments of one round wait: the cache row of segment i is row `row[i]` of
    `caches[source[i]]`, and the logits after it are `logits[after[i]]` (after -1: its last token was not
    read). Segments that ended before and after a compaction stand in different caches.
    """

    caches: list[Tensor]
    source: NDArray[np.int64]  # [R]
    row: NDArray[np.int64]  # [R]
    logits: Tensor  # [C, V]
    after: NDArray[np.int64]  # [R]

    def bytes(self) -> int:
        return sum(x.element_size() * x.numel() for x in (*self.caches, self.logits))

    def only(self, kept: NDArray[np.int64]) -> _Shelf:
        """A shelf of segments `kept` alone, in new memory."""
        device = self.logits.device
        source, row = self.source[kept], self.row[kept]
        caches = [
            cache.index_select(2, torch.from_numpy(row[source == number]).to(device))
            for number, cache in enumerate(self.caches)
        ]
        new_row = np.zeros(len(kept), np.int64)
        for number in range(len(caches)):
            here = source == number
            new_row[here] = np.arange(here.sum())
        has = self.after[kept] >= 0
        after = np.where(has, np.cumsum(has) - 1, -1)
        logits = self.logits.index_select(0, torch.from_numpy(self.after[kept][has]).to(device))
        return _Shelf(caches, source, new_row, logits, after)


@dataclass(slots=True, eq=False)
class _Chain:
    """A segment that others may go on from: place `index` of its shelf; `first`: tokens of the path before
    it.
    """

    shelf: _Shelf
    index: int
    first: int
    tokens: Sequence[int] | NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class _Start:
    """A request of problem `problem`, and the chain it starts from; `kept` of that chain's tokens stay."""

    problem: int
    request: Request
    chain: _Chain
    kept: int


@dataclass(slots=True, eq=False)
class _Tree:
    """A growing tree, and what may still be continued in it."""

    growth: Growth
    key: int
    problem_id: str
    top_k: int = 0  # alternatives per token
    chains: dict[int, _Chain] = field(default_factory=dict)
    outstanding: set[int] = field(default_factory=set)


class LocalEngine:
    """Engine over a policy in this process (`sampling.engine.Engine`)."""

    name = "local"
    is_shared = False

    def __init__(self, policy: Policy, *, max_rows: int = MAX_ROWS, cache_bytes: int = CACHE_BYTES) -> None:
        self._policy = policy
        self._decoder = CachedDecoder(policy.model)
        self._max_rows = max_rows
        self._cache_bytes = cache_bytes
        self._ends = torch.zeros(self._decoder.vocabulary, dtype=torch.bool, device=policy.device)  # [V]
        self._ends[sorted(policy.end_ids)] = True
        self._newlines = torch.from_numpy(policy.newline_tokens).to(policy.device)  # [V]
        self.spent = Spent()
        self.figures_of_last = EngineFigures()
        self.sync_seconds = 0.0
        self._most_written = 0  # rows of the largest round so far
        self.sync()

    def rest(self) -> None:
        """Its weights are the policy's, and it holds no others."""

    def halve_rows(self) -> tuple[int, int]:
        """From now on at most half of the rows that were written at once so far: (before, now)."""
        before = self._most_written or self._max_rows
        self._max_rows = max(1, before // 2)
        return before, self._max_rows

    def sync(self) -> None:
        started = time.perf_counter()
        with self._policy.merged():
            self._decoder.sync(self._policy.value_head, copies=self._policy.is_sharded)
        self.sync_seconds = time.perf_counter() - started

    def figures(self) -> dict[str, float]:
        return self.figures_of_last.metrics() | {"speed/sync_seconds": self.sync_seconds}

    def occupancy(self) -> Occupancy | None:
        return self.figures_of_last.occupancy()

    def versions(self) -> dict[str, str]:
        return {}

    def helpers(self) -> Sequence[Helper]:
        return ()

    def close(self) -> None:
        pass

    def sample(
        self,
        problems: Sequence[Problem],
        plan: Plan,
        *,
        seed: int,
        step: int,
        should_stop: Callable[[], bool],
        on_progress: Callable[[int, int], None],
        top_k: TopK = NO_ALTERNATIVES,
        watch: GrowthWatch | None = None,
    ) -> list[RolloutTree]:
        prompts = [self._policy.encode(problem.prompt) for problem in problems]
        return self.sample_from(
            problems,
            prompts,
            plan,
            seed=seed,
            step=step,
            should_stop=should_stop,
            on_progress=on_progress,
            top_k=top_k,
            watch=watch,
        )

    def sample_from(
        self,
        problems: Sequence[Problem],
        prompts: list[list[int]],
        plan: Plan,
        *,
        seed: int,
        step: int,
        should_stop: Callable[[], bool],
        on_progress: Callable[[int, int], None],
        top_k: TopK = NO_ALTERNATIVES,
        watch: GrowthWatch | None = None,
    ) -> list[RolloutTree]:
        """As `sample`, but from these token ids in the place of each problem's own prompt: a prompt with the
        beginning of an answer behind it.
        """
        if not problems:
            return []
        self._refuse_too_long(problems, prompts, plan)
        most_rows = self._rows_at_once(max(map(len, prompts)) + plan.most_positions, plan.cut)
        trees = [
            _Tree(
                plan.growth(ground),
                ground.key,
                ground.problem.problem_id,
                min(top_k.of(ground.key), self._decoder.vocabulary),
            )
            for ground in grounds(problems, prompts, self._policy, seed, step)
        ]
        drive = _Drive(
            self._decoder,
            self._ends,
            self._newlines,
            plan.temperature or 1.0,
            plan.cut,
            trees,
            most_rows,
            self._cache_bytes,
            should_stop,
            on_progress,
            watch,
        )
        self.figures_of_last = drive.figures
        try:
            for start in range(0, len(prompts), most_rows):
                chosen = range(start, min(start + most_rows, len(prompts)))
                drive.unbegun = len(prompts) - chosen.stop
                drive.grow(chosen, [prompts[i] for i in chosen])
        finally:
            self.spent += drive.spent
            self._most_written = max(self._most_written, drive.most_written)
        return [tree.growth.tree().with_sampling(plan.temperature) for tree in trees]

    def _refuse_too_long(self, problems: Sequence[Problem], prompts: list[list[int]], plan: Plan) -> None:
        for problem, prompt in zip(problems, prompts, strict=True):
            if len(prompt) + plan.most_positions > self._decoder.max_positions:
                raise ValueError(
                    f"Problem {problem.problem_id}: a prompt of {len(prompt)} tokens and an answer of up to "
                    f"{plan.most_positions} do not fit the model's {self._decoder.max_positions} positions. "
                    "Lower the answer or segment length."
                )

    def _rows_at_once(self, columns: int, cut: Cut | None) -> int:
        """Rows of a round that fit the memory given to it: their cache, what they record, and a few [V]
        vectors each while sampling.
        """
        row_bytes = self._decoder.row_bytes(columns) + 32 * self._decoder.vocabulary + 16 * columns
        if cut is not None:
            row_bytes += 4 * (cut.top_k + 1) * columns
        return max(1, min(self._max_rows, self._cache_bytes // row_bytes))


class _Drive:
    """One call of `sample`: rounds over the growths until nothing is wanted any more."""

    def __init__(
        self,
        decoder: CachedDecoder,
        ends: Tensor,
        newlines: Tensor,
        temperature: float,
        cut: Cut | None,
        trees: list[_Tree],
        most_rows: int,
        cache_bytes: int,
        should_stop: Callable[[], bool],
        on_progress: Callable[[int, int], None],
        watch: GrowthWatch | None,
    ) -> None:
        self._watch, self._cache_bytes = watch, cache_bytes
        self.figures = EngineFigures()
        self.unbegun = 0  # trees
        self._decoder, self._ends, self._newlines = decoder, ends, newlines
        self._temperature, self._trees, self._most_rows = temperature, trees, most_rows
        self._cut = cut
        self._should_stop, self._on_progress = should_stop, on_progress
        self._total = sum(tree.growth.total for tree in trees)
        self._settled = self._reported = 0  # of them, before the round under way; and as last reported
        self._stack: list[list[_Start]] = []
        self.spent = Spent()
        self.most_written = 0

    def grow(self, chosen: Sequence[int], prompts: list[list[int]]) -> None:
        """Grow these trees to their end. What was asked for last is written first, so that a tree in many
        parts never holds more than one part per level.
        """
        shelf = self._read_prompts(prompts)
        wave: list[_Start] = []
        for index, (problem, prompt) in enumerate(zip(chosen, prompts, strict=True)):
            tree = self._trees[problem]
            tree.chains[PROMPT] = _Chain(shelf, index, 0, prompt)
            wave += self._obey(problem, tree.growth.begin())
        del shelf
        self._stack = [wave]
        while self._stack:
            wave = self._stack.pop()
            wave = [start for start in wave if start.request.chain in self._trees[start.problem].outstanding]
            if len(wave) > self._most_rows:
                self._stack.append(wave[self._most_rows :])
                wave = wave[: self._most_rows]
            if wave:
                self._stack.append(self._round(wave))

    def _round(self, wave: list[_Start]) -> list[_Start]:
        """Write these requests, and tell their growths; what they want next."""
        self._shrink(wave)
        self.most_written = max(self.most_written, len(wave))
        self._settled = sum(tree.growth.done for tree in self._trees)
        segments, shelf = self._write(wave)
        told = list(zip(wave, segments, itertools.count()))
        wave.clear()
        asked: list[_Start] = []
        for problem, group in itertools.groupby(told, key=lambda entry: entry[0].problem):
            tree = self._trees[problem]
            news = []
            for start, segment, index in group:
                tree.outstanding.discard(segment.chain)
                news.append(segment)
                if self._watch is not None:
                    self._watch.wrote(problem, segment)
                if start.request.keep:
                    first = start.chain.first + start.kept
                    tree.chains[segment.chain] = _Chain(shelf, index, first, segment.tokens)
            asked += self._obey(problem, tree.growth.take(news))
        self._report(sum(tree.growth.done for tree in self._trees))
        return asked

    def _report(self, done: int) -> None:
        self._reported = min(max(self._reported, done), self._total)
        self._on_progress(self._reported, self._total)

    def _obey(self, problem: int, orders: Orders) -> list[_Start]:
        tree = self._trees[problem]
        starts = []
        for request in orders.requests:
            chain = tree.chains[request.parent]
            length = len(chain.tokens)
            kept = length if request.at == END else request.at
            if not 1 <= kept <= length:
                raise ValueError(f"{request} starts outside its parent, which has {length} tokens.")
            if request.value and request.keep != Keep.END:
                raise ValueError(f"{request} asks for a value, which needs its last token read: keep END.")
            end = chain.first + kept + request.most_tokens
            if end > self._decoder.max_positions:
                raise ValueError(
                    f"Problem {tree.problem_id}: a path of up to {end} tokens does not fit the model's "
                    f"{self._decoder.max_positions} positions. Lower the answer or segment length."
                )
            starts.append(_Start(problem, request, chain, kept))
            tree.outstanding.add(request.chain)
            if self._watch is not None:
                self._watch.asked(problem, tree.problem_id, request)
        tree.outstanding.difference_update(orders.cancel)
        for chain_name in orders.release:
            tree.chains.pop(chain_name, None)
        if not tree.outstanding:
            tree.chains.clear()
        return starts

    # ---- memory

    def _shrink(self, wave: list[_Start]) -> None:
        """When the waiting rows' caches take too much memory: compact those with few rows left in them."""
        starts = itertools.chain(wave, *self._stack)
        chains: Iterable[_Chain] = {
            id(chain): chain
            for chain in itertools.chain(
                (start.chain for start in starts),
                *(tree.chains.values() for tree in self._trees),
            )
        }.values()
        shelves: dict[int, list[_Chain]] = {}
        for chain in chains:
            shelves.setdefault(id(chain.shelf), []).append(chain)
        if sum(found[0].shelf.bytes() for found in shelves.values()) <= WAITING_BYTES:
            return
        for found in shelves.values():
            shelf = found[0].shelf
            if len(found) < COMPACT_BELOW * sum(cache.shape[2] for cache in shelf.caches):
                smaller = shelf.only(np.array([chain.index for chain in found]))
                for index, chain in enumerate(found):
                    chain.shelf, chain.index = smaller, index

    def _read_prompts(self, prompts: list[list[int]]) -> _Shelf:
        device = self._ends.device
        rows = len(prompts)
        tokens = torch.zeros(rows, max(map(len, prompts)), dtype=torch.int64)  # [P, T]
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)  # [P]
        self.figures.read_tokens += sum(map(len, prompts))
        cache = self._decoder.empty_cache(rows, tokens.shape[1])
        logits = self._decoder.logits(self._decoder.prefill(tokens.to(device), lengths, cache))
        numbers = np.arange(rows)
        return _Shelf([cache], np.zeros(rows, np.int64), numbers, logits, numbers)

    def _branch(self, starts: list[_Start]) -> tuple[Tensor, Tensor, Tensor]:
        """Cache [L, 2, R, K, T, D] with the path of every start, the lengths of the paths [R], and the
        logits [R, V] after them.
        """
        device = self._ends.device
        shelves: dict[int, _Shelf] = {}
        for start in starts:
            shelves.setdefault(id(start.chain.shelf), start.chain.shelf)
        number_of = {name: number for number, name in enumerate(shelves)}
        which = np.array([number_of[id(start.chain.shelf)] for start in starts])  # [R] shelf
        index = np.array([start.chain.index for start in starts])  # [R] place in it
        kept = np.array([start.kept for start in starts])
        length = np.array([start.chain.first for start in starts]) + kept  # [R]
        after = np.full(len(starts), -1)  # [R] row in the shelf's logits
        tensor = np.zeros(len(starts), np.int64)  # [R] which cache of all of them
        row = np.zeros(len(starts), np.int64)  # [R] row in it
        caches: list[Tensor] = []
        for number, shelf in enumerate(shelves.values()):
            here = which == number
            tensor[here] = len(caches) + shelf.source[index[here]]
            row[here] = shelf.row[index[here]]
            after[here] = shelf.after[index[here]]
            caches += shelf.caches
        at_end = kept == np.array([len(start.chain.tokens) for start in starts])
        after[~at_end] = -1
        self.figures.prefix_tokens += int(length.sum())
        lengths = torch.from_numpy(length).to(device)
        used = int(length.max())
        columns = used + min(COLUMNS_AT_ONCE, max(start.request.most_tokens for start in starts))
        self._decoder.reach(columns)
        again = np.flatnonzero(after < 0)
        if not len(again):
            cache = _selected(caches, tensor, row, used, columns)
        else:
            # Read the last token of these paths once more, in a cache of their own.
            tokens = torch.tensor(
                [int(starts[i].chain.tokens[starts[i].kept - 1]) for i in again], device=device
            )
            own = _selected(caches, tensor[again], row[again], used, columns)
            places = lengths[torch.from_numpy(again).to(device)] - 1
            hidden = self._decoder.step(tokens, places, own, int(length[again].max()))
            fresh = self._decoder.logits(hidden)
            self.spent += Spent(reread=len(again))
            self.figures.read_tokens += len(again)
            self.figures.most_read = 1
            if len(again) == len(starts):
                return own, lengths, fresh
            tensor[again], row[again] = len(caches), np.arange(len(again))
            cache = _selected([*caches, own], tensor, row, used, columns)
        if len(shelves) == 1 and not len(again):
            logits = next(iter(shelves.values())).logits[torch.from_numpy(after).to(device)]
        else:
            logits = torch.zeros(len(starts), self._decoder.vocabulary, device=device)
            for number, shelf in enumerate(shelves.values()):
                here = np.flatnonzero((which == number) & (after >= 0))
                logits[torch.from_numpy(here).to(device)] = shelf.logits[
                    torch.from_numpy(after[here]).to(device)
                ]
            if len(again):
                logits[torch.from_numpy(again).to(device)] = fresh
        return cache, lengths, logits

    # ---- writing

    def _write(self, starts: list[_Start]) -> tuple[list[Segment], _Shelf]:
        """Write R segments, and where they wait."""
        decoder, device, size = self._decoder, self._ends.device, len(starts)
        wanted = _Wanted(starts, self._trees, device)
        limit = wanted.most_tokens

        # Of the round: one row per segment.
        tokens = torch.zeros(size, limit, dtype=torch.int64, device=device)
        logprobs = torch.zeros(size, limit, device=device)
        entropies = torch.zeros(size, limit, device=device)
        top_ids = torch.zeros(size, limit, wanted.top, dtype=torch.int64, device=device)
        top_probs = torch.zeros(size, limit, wanted.top, device=device)
        n_others = len(wanted.with_alternatives)
        other_ids = torch.zeros(n_others, limit, wanted.top_k, dtype=torch.int64, device=device)
        other_logprobs = torch.zeros(n_others, limit, wanted.top_k, device=device)
        width = 0 if self._cut is None else _kept_width(self._cut, decoder.vocabulary)
        kept_ids = torch.full((size, limit if width else 0, width), -1, dtype=torch.int32, device=device)
        values = torch.full((size,), float("nan"), device=device)
        count = torch.zeros(size, dtype=torch.int64, device=device)
        finish = torch.zeros(size, dtype=torch.uint8, device=device)
        source, row, after = (torch.full((size,), -1, dtype=torch.int64, device=device) for _ in range(3))
        kept_logits: list[Tensor] = []
        n_kept = 0

        # Of the batch: one row per row of the cache.
        cache, position, logits = self._branch(starts)  # position [B]: where its next token will be written
        caches = [
            cache
        ]  # of this round, the newest last; older ones hold rows that ended before a compaction
        segment = torch.arange(size, device=device)  # [B] whose row it is
        growing = torch.ones(size, dtype=torch.bool, device=device)  # [B]
        done, alive = self._settled, size
        waiting = self.unbegun + sum(map(len, self._stack))
        for place in range(limit):
            if self._should_stop():
                raise SamplingStopped
            self.figures.at_work(alive, waiting, cache.nbytes / self._cache_bytes)
            now = segment[growing]
            greedy, forced = wanted.overrides(segment, place)
            drawn_from = logits
            if self._cut is not None:
                drawn_from, kept_now = cut_off(logits, self._cut, self._temperature, forced)
                kept_ids[now, place] = kept_now[growing]
            chosen, logprob, entropy = choose(
                drawn_from, wanted.draws(segment, place), self._temperature, greedy, forced
            )
            tokens[now, place] = chosen[growing]
            logprobs[now, place] = logprob[growing]
            entropies[now, place] = entropy[growing]
            if wanted.top:
                best = logits[growing].log_softmax(-1).topk(wanted.top)
                top_ids[now, place], top_probs[now, place] = best.indices, best.values.exp()
            if wanted.top_k:
                # Of the same distribution as `choose`.
                rows = (growing & (wanted.alternatives_row[segment] >= 0)).nonzero()[:, 0]
                of = wanted.alternatives_row[segment[rows]]
                best = (drawn_from[rows] / self._temperature).log_softmax(-1).topk(wanted.top_k)
                is_kept = best.values > CUT_OFF / 2
                other_ids[of, place] = torch.where(is_kept, best.indices, -1)
                other_logprobs[of, place] = torch.where(is_kept, best.values, torch.nan)
            ended = growing & self._ends[chosen]
            if place < wanted.most_forced - 1:
                ended = ended & (wanted.forced_count[segment] <= place + 1)
            split = growing & ~ended & self._newlines[chosen] & wanted.may_split[segment]
            if place < wanted.most_forced - 1:
                split = split & (wanted.forced_count[segment] <= place + 1)
            full = growing & ~ended & ~split & (wanted.limits[segment] == place + 1)
            for which, reason in (
                (ended, FinishReason.EOS),
                (split, FinishReason.SPLIT),
                (full, FinishReason.LENGTH),
            ):
                finish[segment[which]] = int(reason)
            stopped = ended | split | full
            stopping = stopped.nonzero()[:, 0]
            if len(stopping):
                over = segment[stopping]
                count[over] = place + 1
                source[over], row[over] = len(caches) - 1, stopping
                done += len(stopping)
                self._report(done)
                growing = growing & ~stopped
            # A segment that others follow needs its last token read once more; then its logits and its
            # cache row wait.
            closing = (split | full) & wanted.to_end[segment]
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
            hidden = decoder.step(chosen, position, cache, columns)
            logits = decoder.logits(hidden)
            position = position + live
            if bool(closing.any()):
                which = closing.nonzero()[:, 0]
                closed = segment[which]
                self.figures.read_tokens += len(which)  # its last token, for those that go on behind it
                self.figures.most_read = 1
                source[closed], row[closed] = len(caches) - 1, which
                after[closed] = torch.arange(n_kept, n_kept + len(which), device=device)
                n_kept += len(which)
                kept_logits.append(logits[which])
                if wanted.has_values:
                    values[closed] = decoder.values(hidden[which])
        if not bool(torch.isfinite(entropies).all()):
            raise FloatingPointError("The policy's logits are not finite: its weights have diverged.")

        shelf = _Shelf(
            caches=_needed(caches, source, wanted.is_kept),
            source=source.cpu().numpy(),
            row=row.cpu().numpy(),
            logits=torch.cat(kept_logits) if kept_logits else logits[:0],
            after=after.cpu().numpy(),
        )
        counts = count.tolist()
        written_tokens = sum(counts)
        given = sum(len(start.request.forced) for start in starts if start.request.is_given)
        self.spent += Spent(sampled=written_tokens - given, given=given)
        segments = wanted.segments(
            counts,
            finish.tolist(),
            tokens.to(torch.int32).cpu().numpy(),
            logprobs.cpu().numpy(),
            entropies.cpu().numpy(),
            top_ids.to(torch.int32).cpu().numpy(),
            top_probs.cpu().numpy(),
            values.tolist(),
            other_ids.to(torch.int32).cpu().numpy(),
            other_logprobs.to(torch.float16).cpu().numpy(),
            kept_ids.cpu().numpy(),
        )
        return segments, shelf


class _Wanted:
    """What the requests of a round ask for, as columns [R]."""

    def __init__(self, starts: list[_Start], trees: list[_Tree], device: torch.device) -> None:
        requests = [start.request for start in starts]
        self._requests, self._device = requests, device
        self._keys = np.array([trees[start.problem].key for start in starts], np.uint64)
        self._paths = np.array([request.path for request in requests], np.uint64)
        limits = [request.most_tokens for request in requests]
        self.most_tokens = max(limits)
        self.limits = torch.tensor(limits, device=device)
        self.may_split = torch.tensor([request.split for request in requests], device=device)
        keep = torch.tensor([request.keep for request in requests], device=device)
        self.is_kept = keep > Keep.NOTHING
        self.to_end = keep == Keep.END
        self.top = max(request.top for request in requests)
        self.has_values = any(request.value for request in requests)
        # Segments of trees that keep alternatives have a row of their own in what holds them, others -1.
        self._top_k = [trees[start.problem].top_k for start in starts]
        self.top_k = max(self._top_k)
        self.with_alternatives = [number for number, count in enumerate(self._top_k) if count]
        self.alternatives_row = torch.full((len(requests),), -1, device=device)
        if self.with_alternatives:
            self.alternatives_row[self.with_alternatives] = torch.arange(
                len(self.with_alternatives), device=device
            )
        greedy = [request.greedy for request in requests]
        self._greedy = torch.tensor(greedy, device=device) if any(greedy) else None
        self._all_greedy = all(greedy)
        forced_counts = [len(request.forced) for request in requests]
        self.most_forced = max(forced_counts)
        self.forced_count = torch.tensor(forced_counts, device=device)
        self._forced = torch.full((len(requests), self.most_forced), -1, device=device)
        if self.most_forced:
            for number, request in enumerate(requests):
                if request.forced:
                    self._forced[number, : len(request.forced)] = torch.tensor(request.forced, device=device)
        self._draws = torch.zeros(0)

    def draws(self, segment: Tensor, place: int) -> Tensor:
        """[B] random numbers of the segments at this place of theirs."""
        if self._all_greedy:
            return torch.zeros(len(segment), dtype=torch.float64, device=self._device)
        if place % DRAWS_AT_ONCE == 0:  # [R, DRAWS_AT_ONCE]
            drawn = uniforms(
                self._keys, self._paths, min(DRAWS_AT_ONCE, self.most_tokens - place), first=place
            )
            self._draws = torch.from_numpy(drawn).to(self._device)
        return self._draws[segment, place % DRAWS_AT_ONCE]

    def overrides(self, segment: Tensor, place: int) -> tuple[Tensor | None, Tensor | None]:
        """[B] which rows take the most likely token, and [B] the token that is put there, -1: none."""
        greedy = None if self._greedy is None else self._greedy[segment]
        return greedy, self._forced[segment, place] if place < self.most_forced else None

    def segments(
        self,
        count: list[int],
        finish: list[int],
        tokens: NDArray[np.int32],
        logprobs: NDArray[np.float32],
        entropies: NDArray[np.float32],
        top_ids: NDArray[np.int32],
        top_probs: NDArray[np.float32],
        values: list[float],
        other_ids: NDArray[np.int32],
        other_logprobs: NDArray[np.float16],
        kept_ids: NDArray[np.int32],
    ) -> list[Segment]:
        found = []
        row_of = {number: row for row, number in enumerate(self.with_alternatives)}
        for i, request in enumerate(self._requests):
            n = count[i]
            found.append(
                Segment(
                    request.chain,
                    tokens[i, :n],
                    logprobs[i, :n],
                    entropies[i, :n],
                    finish[i],
                    top_ids[i, :n, : request.top] if request.top else None,
                    top_probs[i, :n, : request.top] if request.top else None,
                    values[i] if request.value else float("nan"),
                    Alternatives(other_ids[row_of[i], :n], other_logprobs[row_of[i], :n])
                    if i in row_of
                    else None,
                    Kept.of_rows(kept_ids[i, :n]) if kept_ids.size else None,
                )
            )
        return found


def _kept_width(cut: Cut, vocabulary: int) -> int:
    """Most tokens that are kept at one place: one more than asked for, where that is forced."""
    return min(cut.top_k, vocabulary) + 1


def cut_off(
    logits: Tensor, cut: Cut, temperature: float, forced: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What is left of a distribution. logits [B, V] float32; forced [B]: tokens that are put there and so
    kept in any case, -1: none. Returns logits [B, V] with `CUT_OFF` where nothing is kept, and the kept ids
    [B, top_k + 1] int32, -1 where there is none; the most likely token is always kept.
    """
    best = logits.topk(_kept_width(cut, logits.shape[1]) - 1)
    ids = best.indices
    if cut.top_p < 1:  # the sum of all shares may come out above 1
        shares = (best.values / temperature).softmax(-1)
        before = shares.cumsum(-1, dtype=torch.float64) - shares  # of all that are more likely
        before[:, 0] = 0.0
        ids = torch.where(before < cut.top_p, ids, -1)
    last = torch.full_like(ids[:, :1], -1)
    if forced is not None:
        is_lacking = (forced >= 0) & ~(ids == forced[:, None]).any(-1)
        last = torch.where(is_lacking, forced, -1)[:, None]
    kept = torch.cat([ids, last], 1)
    row, place = (kept >= 0).nonzero(as_tuple=True)
    left = torch.full_like(logits, CUT_OFF)
    left[row, kept[row, place]] = logits[row, kept[row, place]]
    return left, kept.to(torch.int32)


def choose(
    logits: Tensor,
    draws: Tensor,
    temperature: float,
    greedy: Tensor | None = None,
    forced: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One token per row by inversion of the cumulative distribution softmax(logits / temperature).

    logits [B, V] float32; draws [B] float64 in (0, 1); greedy [B]: rows that take the most likely token;
    forced [B]: tokens that are put there, -1: none. Returns tokens [B] int64, their logprobs [B] and the
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
    if greedy is not None:
        chosen = torch.where(greedy[:, None], shifted.argmax(-1, keepdim=True), chosen)
    if forced is not None:
        chosen = torch.where(forced[:, None] >= 0, forced[:, None], chosen)
    total = total[:, 0]
    log_total = total.log().float()
    logprobs = shifted.gather(1, chosen)[:, 0] - log_total
    entropies = log_total - (weights * shifted).sum(-1) / total.float()
    return chosen[:, 0], logprobs, entropies


def _selected(
    caches: list[Tensor], tensor: NDArray[np.int64], row: NDArray[np.int64], used: int, columns: int
) -> Tensor:
    """A cache [L, 2, R, K, columns, D] of row `row[i]` of `caches[tensor[i]]`, of which the first `used`
    columns are wanted: one index_select per tensor that holds any of them.
    """
    numbers = np.unique(tensor).tolist()
    first = caches[numbers[0]]
    selected: Tensor = first.new_empty(*first.shape[:2], len(row), first.shape[3], columns, first.shape[5])
    for number in numbers:
        cache = caches[number]
        width = min(used, cache.shape[4])
        here = np.flatnonzero(tensor == number)
        rows = torch.from_numpy(row[here]).to(first.device)
        if len(numbers) == 1:
            torch.index_select(cache[:, :, :, :, :width], 2, rows, out=selected[:, :, :, :, :width])
            selected[:, :, :, :, width:] = 0
        else:
            places = torch.from_numpy(here).to(first.device)
            part = cache[:, :, :, :, :width].index_select(2, rows)
            selected[:, :, :, :, :width].index_copy_(2, places, part)
            selected[:, :, :, :, width:].index_fill_(2, places, 0)
    return selected


def _needed(caches: list[Tensor], source: Tensor, is_kept: Tensor) -> list[Tensor]:
    """The caches, those in which no kept segment stands emptied."""
    used = set(source[is_kept].tolist())
    return [cache if number in used else cache[:, :, :0].clone() for number, cache in enumerate(caches)]
