"""An engine that samples from a written-down distribution instead of a model, for tests that must know every
token. Torch-free.

It runs the same growths as the other engines, but request by request and in an order of completion that can
be shuffled, as a serving engine would; and it refuses what a growth may not ask for.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trainer.data import Problem
from trainer.sampling.engine import NO_ALTERNATIVES, Helper, Plan, SamplingStopped, Spent, TopK, grounds
from trainer.sampling.growth import END, PROMPT, Alternatives, Growth, Keep, Orders, Request, Segment
from trainer.sampling.watch import GrowthWatch
from trainer.seeding import generator, uniforms
from trainer.tree import FinishReason, RolloutTree

Distribution = Callable[[tuple[int, ...]], Sequence[float]]
"""Tokens of prompt and answer so far -> probabilities [V] of the next token at temperature 1."""


class Letters:
    """A vocabulary in which every letter of a string is a token. `end`: the letter that ends an answer; it
    leaves no text."""

    def __init__(self, letters: str, end: str = "$") -> None:
        self.letters = letters
        self.end_ids = frozenset({letters.index(end)})
        self.newline_tokens: NDArray[np.bool_] = np.array([letter == "\n" for letter in letters])

    @property
    def decoder(self) -> Letters:
        return self

    def encode(self, prompt: str) -> list[int]:
        return [self.letters.index(letter) for letter in prompt]

    def texts(
        self,
        parent: Sequence[int] | NDArray[np.int32],  # noqa: ARG002  # no letter is split over tokens
        segments: Sequence[Sequence[int]],
    ) -> list[str]:
        texts = ["".join(self.letters[t] for t in tokens if t not in self.end_ids) for tokens in segments]
        return ["", *texts[1:]]


@dataclass(slots=True)
class _Tree:
    growth: Growth
    key: int
    paths: dict[int, tuple[tuple[int, ...], int, Keep]]  # chain -> its path, tokens before it, what was kept
    pending: list[tuple[Request, tuple[int, ...]]] = field(
        default_factory=list
    )  # and the path it goes on from
    names: set[int] = field(default_factory=set)


class ScriptedEngine:
    """Engine over a distribution. `value`: what the value head says of a path. `shuffle` None: problem after
    problem, requests in the order of asking; else in a random order with this seed. `trace`: all requests
    written, as (place of the problem, request, segment).
    """

    name = "scripted"
    is_shared = False

    def __init__(
        self,
        vocabulary: Letters,
        distribution: Distribution,
        *,
        value: Callable[[tuple[int, ...]], float] | None = None,
        shuffle: int | None = None,
    ) -> None:
        self._vocabulary, self._distribution, self._value = vocabulary, distribution, value
        self._shuffle = shuffle
        self.spent = Spent()
        self.trace: list[tuple[int, Request, Segment]] = []

    def sync(self) -> None:
        pass

    def rest(self) -> None:
        """It holds nothing."""

    def halve_rows(self) -> tuple[int, int]:
        return 1, 1

    def figures(self) -> dict[str, float]:
        return {}

    def occupancy(self) -> None:
        return None

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
        prompts = [self._vocabulary.encode(problem.prompt) for problem in problems]
        trees: list[_Tree] = []

        def obey(place: int, orders: Orders) -> None:
            _obey(trees[place], orders)
            if watch is not None:
                for request in orders.requests:
                    watch.asked(place, problems[place].problem_id, request)

        for place, ground in enumerate(grounds(problems, prompts, self._vocabulary, seed, step)):
            start = (tuple(ground.prompt), 0, Keep.END)
            trees.append(_Tree(plan.growth(ground), ground.key, {PROMPT: start}))
            obey(place, trees[place].growth.begin())
        chance = None if self._shuffle is None else generator(self._shuffle, "completion")
        total = sum(tree.growth.total for tree in trees)
        open_places = [place for place, tree in enumerate(trees) if tree.pending]
        while open_places:
            if should_stop():
                raise SamplingStopped
            place, index = open_places[0], 0
            if chance is not None:
                place = open_places[int(chance.integers(len(open_places)))]
                index = int(chance.integers(len(trees[place].pending)))
            tree = trees[place]
            request, path = tree.pending.pop(index)
            segment = self._write(tree, request, path, plan.temperature, top_k.of(tree.key))
            self.trace.append((place, request, segment))
            if watch is not None:
                watch.wrote(place, segment)
            obey(place, tree.growth.take([segment]))
            if not tree.pending:
                open_places.remove(place)
                on_progress(sum(tree.growth.done for tree in trees), total)
        return [tree.growth.tree().with_sampling(plan.temperature) for tree in trees]

    def _write(
        self, tree: _Tree, request: Request, path: tuple[int, ...], temperature: float, top_k: int
    ) -> Segment:
        draws = uniforms(
            np.array([tree.key], np.uint64), np.array([request.path], np.uint64), request.most_tokens
        )
        tokens: list[int] = []
        logprobs, entropies, top_ids, top_probs = [], [], [], []
        others: list[list[int]] = []
        other_logprobs: list[list[float]] = []
        finish = FinishReason.NONE
        for place in range(request.most_tokens):
            plain = self._distribution(path)
            weights = [chance ** (1 / (temperature or 1.0)) for chance in plain]
            total = sum(weights)
            edges = list(itertools.accumulate(weight / total for weight in weights))
            token = min(bisect_right(edges, draws[0, place]), len(edges) - 1)
            if request.greedy or temperature == 0:
                token = max(range(len(weights)), key=weights.__getitem__)
            if place < len(request.forced):
                token = request.forced[place]
            best = sorted(range(len(plain)), key=lambda t: (-plain[t], t))[: request.top]
            tokens.append(token)
            logprobs.append(math.log(weights[token] / total) if weights[token] else -math.inf)
            entropies.append(-sum(w / total * math.log(w / total) for w in weights if w))
            top_ids.append(best)
            top_probs.append([plain[t] / sum(plain) for t in best])
            if top_k:
                likely = sorted(range(len(weights)), key=lambda t: (-weights[t], t))[:top_k]
                others.append(likely)
                other_logprobs.append(
                    [math.log(weights[t] / total) if weights[t] else -math.inf for t in likely]
                )
            path = (*path, token)
            if place + 1 < len(request.forced):
                continue
            if token in self._vocabulary.end_ids:
                finish = FinishReason.EOS
            elif request.split and self._vocabulary.newline_tokens[token]:
                finish = FinishReason.SPLIT
            if finish:
                break
        finish = finish or FinishReason.LENGTH
        tree.paths[request.chain] = (path, len(path) - len(tokens), request.keep)
        if request.keep == Keep.END and finish == FinishReason.EOS:
            tree.paths[request.chain] = (path, len(path) - len(tokens), Keep.INSIDE)
        value = float("nan")
        if request.value and finish != FinishReason.EOS:
            if self._value is None:
                raise ValueError("A value was asked for, but this engine has no value function.")
            value = self._value(path)
        given = len(request.forced) if request.is_given else 0
        self.spent += Spent(sampled=len(tokens) - given, given=given)
        return Segment(
            request.chain,
            np.array(tokens, np.int32),
            np.array(logprobs, np.float32),
            np.array(entropies, np.float32),
            int(finish),
            np.array(top_ids, np.int32) if request.top else None,
            np.array(top_probs, np.float32) if request.top else None,
            value,
            Alternatives(np.array(others, np.int32), np.array(other_logprobs, np.float16)) if top_k else None,
        )


def _obey(tree: _Tree, orders: Orders) -> None:
    """Take orders on. Raises ValueError where a growth asks for what it may not."""
    for request in orders.requests:
        if request.chain <= PROMPT or request.chain in tree.names:
            raise ValueError(f"{request} has a name that is in use.")
        if request.parent not in tree.paths:
            raise ValueError(f"{request} goes on from what is not there any more.")
        path, first, keep = tree.paths[request.parent]
        wanted = Keep.END if request.at == END else Keep.INSIDE
        if keep < wanted:
            raise ValueError(f"{request} needs {wanted.name} of its parent, but {keep.name} was kept.")
        if request.at != END and not 1 <= request.at <= len(path) - first:
            raise ValueError(f"{request} starts outside its parent of {len(path) - first} tokens.")
        if request.most_tokens < max(1, len(request.forced)):
            raise ValueError(f"{request} has no room for its tokens.")
        tree.names.add(request.chain)
        tree.pending.append((request, path if request.at == END else path[: first + request.at]))
    cancelled = set(orders.cancel)
    tree.pending = [entry for entry in tree.pending if entry[0].chain not in cancelled]
    for chain in orders.release:
        tree.paths.pop(chain, None)
