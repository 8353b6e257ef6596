"""Samples rollout trees in processes of their own, each on a device that nothing trains on
(`trainer.engine_process`). To the loop of the rank that they belong to they are one engine.

The rank hands its weights over packed (`trainer.transfer`) and numbers them; who is asked to sample by
others than it has refuses. All trees of a problem are grown by one engine, so they are the trees that an
engine in this process grows: to the bit of one engine, of several up to the rounding of a batch of another
size.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from selectors import EVENT_READ, DefaultSelector
from typing import Any, Final

from torch import Tensor

from trainer.channel import Channel, Message, error_of
from trainer.data import Problem
from trainer.events import Occupancy
from trainer.policy import Policy
from trainer.ranks import ALONE, Ranks, owners_of
from trainer.sampling.engine import (
    NO_ALTERNATIVES,
    EngineError,
    EngineFigures,
    Helper,
    Plan,
    SamplerPlan,
    SamplingPlan,
    Spent,
    TopK,
)
from trainer.sampling.watch import GrowthWatch
from trainer.sharding import whole
from trainer.transfer import Feed
from trainer.tree import RolloutTree

ASK_SECONDS: Final = 0.05  # how often it looks whether to stop, where nothing is heard
VALUE_HEAD: Final = "value_head."  # before the names of its weights
BEGIN: Final = 0  # a note for a `GrowthWatch`: that a segment begins, or
END: Final = 1


@dataclass(frozen=True, slots=True)
class EngineProcesses:
    """Those of this rank: a channel to each, and the way of its weights to all of them."""

    channels: Sequence[Channel]
    feed: Feed


@dataclass(slots=True)
class _Share:
    """What one engine is asked for in a call of `sample`: the trees at `places` of the batch. `trees`: what
    came back.
    """

    channel: Channel
    number: int
    places: list[int]
    trees: list[RolloutTree] | None = None
    done: int = 0
    total: int = 0


@dataclass(slots=True)
class _Remote:
    """An engine process as it is known here."""

    figures: EngineFigures = field(default_factory=EngineFigures)
    helper: Helper = field(default_factory=Helper)


class RemoteEngine:
    """Engine over processes of their own (`sampling.engine.Engine`)."""

    is_shared = False

    def __init__(
        self,
        policy: Policy,
        processes: EngineProcesses,
        *,
        label: str = "run",
        ranks: Ranks = ALONE,
        most_positions: int | None = None,
    ) -> None:
        """`policy`: whose weights are handed over; other arguments as of `choice.engine_from_config`. Raises
        what making the engine in this process would raise.
        """
        self._policy, self._ranks = policy, ranks
        self._channels, self._feed = processes.channels, processes.feed
        self._remotes = [_Remote() for _ in self._channels]
        self.spent = Spent()
        self.weights_version = 0  # counts what was handed over
        self.sync_seconds = 0.0
        self._tell_all(do="make", label=label, most_positions=most_positions, device=policy.device.type)
        made = self._answers()
        self.name: str = made[0]["name"]
        self._versions: dict[str, str] = made[0]["versions"]

    def sync(self) -> None:
        started = time.perf_counter()
        self.weights_version += 1
        with self._policy.merged():
            weights = self._policy.plain_weights()
            if self._policy.model.config.tie_word_embeddings:
                weights.pop("lm_head.weight", None)  # it is the embedding's, which goes once
            if self._policy.value_head is not None:
                named = self._policy.value_head.named_parameters()
                weights |= {VALUE_HEAD + name: whole(own.detach()) for name, own in named}
            self._ranks.together(lambda: self._hand_over(weights), (EngineError,))
        self.sync_seconds = time.perf_counter() - started

    def _hand_over(self, weights: dict[str, Tensor]) -> None:
        layout = [[name, list(own.shape), str(own.dtype)] for name, own in weights.items()]
        self._tell_all(do="expect", layout=layout)
        self._answers()  # else some would wait for what the others refuse, or have no memory for
        self._feed.make_room(list(weights.values()))
        self._tell_all(do="take", version=self.weights_version)
        self._feed.send(list(weights.values()))
        self._answers()

    def rest(self) -> None:
        """It holds nothing that anybody else wants."""

    def halve_rows(self) -> tuple[int, int]:
        """Of the one that wrote most."""
        self._tell_all(do="halve")
        halved = [said["rows"] for said in self._answers()]
        return max(before for before, _ in halved), max(now for _, now in halved)

    def figures(self) -> dict[str, float]:
        figures = EngineFigures.of_all([remote.figures for remote in self._remotes])
        return figures.metrics() | {"speed/sync_seconds": self.sync_seconds}

    def occupancy(self) -> Occupancy | None:
        return EngineFigures.of_all([remote.figures for remote in self._remotes]).occupancy()

    def versions(self) -> dict[str, str]:
        return self._versions

    def helpers(self) -> Sequence[Helper]:
        return [remote.helper for remote in self._remotes]

    def close(self) -> None:
        """They end with the connection to them."""
        for channel in self._channels:
            channel.close()

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
        owners = owners_of(problems, len(self._channels))
        shares = []
        for number, channel in enumerate(self._channels):
            self._remotes[number].figures = EngineFigures()
            places = [place for place, who in enumerate(owners) if who == number]
            if not places:
                continue
            shares.append(_Share(channel, number, places))
            channel.tell(
                do="sample",
                version=self.weights_version,
                problems=[astuple(problems[place]) for place in places],
                plan=_told(plan),
                seed=seed,
                step=step,
                top_k=astuple(top_k),
                is_watched=watch is not None,
            )
        failures = self._follow(shares, should_stop, on_progress, watch)
        if failures:
            raise error_of(failures)
        trees: dict[int, RolloutTree] = {}
        for share in shares:
            trees |= dict(zip(share.places, share.trees or [], strict=True))
        return [
            dataclasses.replace(
                trees[place], problem_id=problem.problem_id, reference_answer=problem.reference_answer
            )
            for place, problem in enumerate(problems)
        ]

    def _follow(
        self,
        shares: Sequence[_Share],
        should_stop: Callable[[], bool],
        on_progress: Callable[[int, int], None],
        watch: GrowthWatch | None,
    ) -> list[Message]:
        """Listen until all have answered; what went wrong. As soon as one fails the others are stopped."""
        failures: list[Message] = []
        is_stopped = False
        with DefaultSelector() as selector:
            for share in shares:
                selector.register(share.channel, EVENT_READ, share)
            while selector.get_map():
                if not is_stopped and (failures or should_stop()):
                    is_stopped = True
                    for key in selector.get_map().values():
                        key.data.channel.tell(do="stop")
                for key, _ in selector.select(ASK_SECONDS):
                    share = key.data
                    for said in share.channel.heard():
                        if said["say"] == "failed":
                            failures.append(said)
                        else:
                            self._take(share, said, watch)
                            on_progress(sum(one.done for one in shares), sum(one.total for one in shares))
                        if said["say"] != "progress":
                            selector.unregister(share.channel)
                            self._note(share.number, said)
        return failures

    def _take(self, share: _Share, said: Message, watch: GrowthWatch | None) -> None:
        """How far one is, or what it has grown."""
        share.done, share.total = said["done"], said["total"]
        self._remotes[share.number].figures = EngineFigures(*said["figures"])
        if watch is not None:
            for kind, place, *note in said["notes"]:
                (watch.begin if kind == BEGIN else watch.end)(share.places[place], *note)
        if said["say"] == "trees":
            share.trees = [_tree(*sent) for sent in said["trees"]]

    def _note(self, number: int, said: Message) -> None:
        """What each last word brings along."""
        self._remotes[number].helper = Helper(*said["helper"])
        self.spent += Spent(*said["spent"])

    def _tell_all(self, **command: Any) -> None:
        for channel in self._channels:
            channel.tell(**command)

    def _answers(self) -> list[Message]:
        """One of each. Raises the error that says most, once all have answered."""
        answers = []
        for number, channel in enumerate(self._channels):
            said: list[Message] = []
            while not said:
                said = channel.heard(None)
            self._note(number, said[0])
            answers += said
        if failures := [said for said in answers if said["say"] == "failed"]:
            raise error_of(failures)
        return answers


def _told(plan: Plan) -> Message | None:
    """A plan as what is said of it; None: that of the run's training trees."""
    if isinstance(plan, SamplingPlan):
        return dataclasses.asdict(plan)
    if not isinstance(plan, SamplerPlan):
        raise TypeError(f"An engine process knows no {type(plan).__name__}.")
    return None


def _tree(payload: bytes, texts: list[str] | None) -> RolloutTree:
    """What `engine_process.packed` packed."""
    tree = RolloutTree.from_payload(payload)
    return tree if texts is None else dataclasses.replace(tree, texts=tuple(texts))
