"""A process that only samples, on a device of its own, for the rank that it belongs to
(`sampling.remote_engine`).

It holds an engine as the rank would hold it in its own process, over a policy of its own that it trains
never: the rank's weights, its adapter merged into them, are copied into it, and the engine takes them over
from there. What comes back are trees, not judged; a search asks a verifier of this process while it samples.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from dataclasses import astuple
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from trainer.channel import Channel, LostError, Message, failure
from trainer.config import RunConfig
from trainer.data import Problem
from trainer.guards import is_gpu_memory, is_host_memory
from trainer.parallel import memory_bytes
from trainer.policy import Policy, load_policy
from trainer.sampling.choice import engine_of_this_process
from trainer.sampling.engine import (
    Cut,
    EngineError,
    Helper,
    Plan,
    SamplingPlan,
    Spent,
    TopK,
    plan_from_config,
)
from trainer.sampling.local_engine import LocalEngine
from trainer.sampling.remote_engine import BEGIN, END, VALUE_HEAD
from trainer.sampling.watch import GrowthWatch
from trainer.schema.data import ChainData, GraphData
from trainer.text import storable
from trainer.transfer import Feed
from trainer.tree import RolloutTree
from trainer.verifiers import Verifier, judge_from_config

if TYPE_CHECKING:
    from trainer.sampling.vllm_engine import VllmEngine

PROGRESS_SECONDS: Final = 0.2
logger = logging.getLogger(__name__)


class EngineProcess:
    """Engine process `number` (from 0) of a run. `channel`: to its rank; `feed`: brings its weights."""

    def __init__(
        self, config: RunConfig, number: int, channel: Channel, feed: Feed, device: torch.device
    ) -> None:
        self._config, self._number, self._channel, self._feed = config, number, channel, feed
        self._device = device
        self._judge: Verifier = judge_from_config(config.verifier)
        self._policy: Policy | None = None
        self._made: LocalEngine | VllmEngine | None = None
        self._expected: list[Tensor] = []
        self._version = -1  # it has been handed none yet
        self._told = Spent()  # of what the engine has spent

    @property
    def name(self) -> str:
        return f"Engine process {self._number + 1} of {self._config.resources.engine_processes}"

    def serve(self) -> None:
        """Do as the rank says, until it is gone."""
        commands = {
            "make": self._make,
            "expect": self._expect,
            "take": self._take,
            "halve": self._halve,
            "sample": self._sample,
        }
        try:
            while True:
                for command in self._channel.heard(None):
                    if command["do"] == "stop":
                        continue  # it came too late: what it meant has ended by itself
                    self._answer(commands[command["do"]], command)
        except LostError:
            return  # its end is told by whoever watches over all
        finally:
            self._judge.close()
            if self._made is not None:
                self._made.close()

    def _answer(self, work: Callable[[Message], Message], command: Message) -> None:
        try:
            said = work(command)
        except LostError:
            raise
        except Exception as error:  # whatever it is, the rank decides what becomes of it
            said, lacks_memory = failure(error, self.name), is_gpu_memory(error) or is_host_memory(error)
            if said["kind"] == "unknown":
                logger.exception("%s failed", self.name)
        else:
            lacks_memory = False
        if lacks_memory:  # behind the handler: the error held on to everything that did not fit
            gc.collect()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
        self._channel.tell(**said, spent=self._newly_spent(), helper=self._helper())

    def _newly_spent(self) -> tuple[int, ...]:
        spent = Spent() if self._made is None else self._made.spent
        new, self._told = spent - self._told, spent
        return astuple(new)

    def _helper(self) -> tuple[float, int]:
        return astuple(Helper(time.process_time() + self._judge.cpu_seconds(), memory_bytes(self._device)))

    @property
    def _engine(self) -> LocalEngine | VllmEngine:
        if self._made is None:
            raise EngineError(f"{self.name} was asked for something before it was made.")
        return self._made

    # ---- commands

    def _make(self, command: Message) -> Message:
        if command["device"] != self._device.type:
            raise EngineError(
                f"{self.name} finds no GPU for itself. A machine needs one for every process of either kind; "
                "lower resources.engine_processes."
            )
        config = self._config
        policy = self._policy = load_policy(config.model.path, self._device)
        if not isinstance(config.data, ChainData | GraphData) and config.data.chat:
            policy.use_chat_template()
        self._made = engine_of_this_process(
            config.engine, policy, label=command["label"], most_positions=command["most_positions"]
        )
        return {"say": "made", "name": self._made.name, "versions": self._made.versions()}

    def _expect(self, command: Message) -> Message:
        """Weights of this layout will come: name, shape and dtype of each."""
        if self._policy is None:
            raise EngineError(f"{self.name} was told of weights before it was made.")
        policy = self._policy
        layout = [(name, tuple(shape), dtype) for name, shape, dtype in command["layout"]]
        if any(name.startswith(VALUE_HEAD) for name, _, _ in layout):
            policy.add_value_head(self._config.seed)
        own = dict(policy.plain_weights())
        if policy.model.config.tie_word_embeddings:
            own.pop("lm_head.weight", None)
        if policy.value_head is not None:
            own |= {VALUE_HEAD + name: one.detach() for name, one in policy.value_head.named_parameters()}
        known = {name: (tuple(one.shape), str(one.dtype)) for name, one in own.items()}
        if differing := sorted(known.keys() ^ {name for name, _, _ in layout}) or [
            name for name, shape, dtype in layout if known[name] != (shape, dtype)
        ]:
            raise EngineError(
                f"{self.name} has a model of other weights than the policy: {differing[0]}. Report this with "
                "the model's config.json, and set resources.engine_processes 0."
            )
        self._expected = [own[name] for name, _, _ in layout]
        self._feed.make_room(self._expected)
        return {"say": "ready"}

    def _take(self, command: Message) -> Message:
        """The weights come, as version so and so."""
        self._feed.receive(self._expected)
        self._engine.sync()
        self._version = command["version"]
        return {"say": "taken"}

    def _halve(self, _command: Message) -> Message:
        return {"say": "halved", "rows": self._engine.halve_rows()}

    def _sample(self, command: Message) -> Message:
        engine = self._engine
        if command["version"] != self._version:
            raise EngineError(
                f"{self.name} would sample from weights {self._version}, and the policy's are "
                f"{command['version']}. Training on such samples would push the wrong way. Report this, and "
                "set resources.engine_processes 0."
            )
        reporter = _Reporter(self._channel, engine)
        trees = engine.sample(
            [Problem(*content) for content in command["problems"]],
            self._plan(command["plan"]),
            seed=command["seed"],
            step=command["step"],
            should_stop=self._is_asked_to_stop,
            on_progress=reporter.report,
            top_k=TopK(*command["top_k"]),
            watch=reporter if command["is_watched"] else None,
        )
        if trouble := self._judge.troubles():
            logger.warning("%s", trouble)
        return reporter.message("trees") | {"trees": [packed(tree) for tree in trees]}

    # ---- parts of them

    def _plan(self, told: Message | None) -> Plan:
        if told is None:
            return plan_from_config(self._config.sampler, self._judge)
        return SamplingPlan(
            tuple(told["branching"]),
            tuple(told["segment_tokens"]),
            split_at_newline=told["split_at_newline"],
            temperature=told["temperature"],
            cut=None if told["cut"] is None else Cut(**told["cut"]),
        )

    def _is_asked_to_stop(self) -> bool:
        return any(command["do"] == "stop" for command in self._channel.heard())


class _Reporter(GrowthWatch):
    """Tells the rank how far the engine is, and what a watch of its own was told."""

    def __init__(self, channel: Channel, engine: LocalEngine | VllmEngine) -> None:
        super().__init__()
        self._channel, self._engine = channel, engine
        self._notes: list[list[int | str]] = []
        self._done = self._total = 0
        self._told_at = 0.0

    def begin(self, number: int, problem_id: str, chain: int, parent: int) -> bool:
        if has_room := super().begin(number, problem_id, chain, parent):
            self._notes.append([BEGIN, number, problem_id, chain, parent])
        return has_room

    def end(self, number: int, chain: int, tokens: int, finish: int) -> bool:
        if is_shown := super().end(number, chain, tokens, finish):
            self._notes.append([END, number, chain, tokens, int(finish)])
        return is_shown

    def report(self, done: int, total: int) -> None:
        self._done, self._total = done, total
        now = time.monotonic()
        if now - self._told_at >= PROGRESS_SECONDS:
            self._told_at = now
            self._channel.tell(**self.message("progress"))

    def message(self, say: str) -> Message:
        notes, self._notes = self._notes, []
        figures = astuple(self._engine.figures_of_last)
        return {"say": say, "done": self._done, "total": self._total, "figures": figures, "notes": notes}


def packed(tree: RolloutTree) -> tuple[bytes, list[str] | None]:
    """A tree as it is said: its payload, and its texts where that would change them (`text.storable`)."""
    is_changed = any(storable(text) is not text for text in tree.texts)
    return tree.to_payload(), list(tree.texts) if is_changed else None
