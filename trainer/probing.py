"""python -m trainer.probing REQUEST.json: continuations of one beginning, sampled by hand. Nothing is
trained.

The request is a `ProbeRequest`. Every finished continuation is one JSON line on stdout, the last line says
how it went (`Ended`); logs go to stderr. Continuation i depends on (seed, problem, i), the beginning and the
weights alone, not on how many were asked for.

This module is torch-free until it samples: who starts it writes the request and reads the lines with it.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from trainer.data import Problem
from trainer.sampling.growth import PROMPT, Ground, Orders, Request, Segment, Strand, tree_of
from trainer.schema.verifier import Verifier as VerifierConfig
from trainer.seeding import ROOT_PATH, child_path
from trainer.supervised import end_with_parent, only_events_on_stdout, thread_count
from trainer.tree import FinishReason, RolloutTree
from trainer.verifiers import Judgement, Verifier, VerifierError

if TYPE_CHECKING:
    from trainer.policy import Policy

MOST_CONTINUATIONS: Final = 64
FIRST_WAVE: Final = 4  # so many are written together first, then twice as many each time: the first come soon
NICENESS: Final = 5  # whoever trains on this machine goes first

logger = logging.getLogger("trainer.probing")


class ProbeError(ValueError):
    """The probe cannot be sampled; the message says why and what to do."""


class ProbeRequest(BaseModel):
    """What to sample. `checkpoint`: a checkpoint's folder, "" for the model folder `model` as it is.

    The beginning is `prompt_tokens` and behind them `answer_tokens`, or, if those are None, `answer_text`
    read into tokens anew. `answer_text` is what the verifier reads before each continuation. `numbers`: which
    continuations, each from 0. `verifier` None: they are not judged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    checkpoint: str = ""
    device: Literal["cpu", "cuda"] = "cpu"
    problem_id: str
    reference_answer: str
    prompt_tokens: tuple[int, ...]
    answer_tokens: tuple[int, ...] | None
    answer_text: str
    numbers: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1, max_length=MOST_CONTINUATIONS)
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    max_tokens: Annotated[int, Field(ge=1)]
    seed: int
    verifier: VerifierConfig | None


class Begun(BaseModel):
    """The model is loaded; the beginning has so many tokens, the prompt's included."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["begun"] = "begun"
    prefix_tokens: int


class Continuation(BaseModel):
    """One finished continuation: T sampled tokens, their logprobs and the entropies of their distributions in
    nats at the probe's temperature (1 for temperature 0). `finish`: eos or length; `verdict` none: not
    judged. `reward`: plain, 1 or 0; None without a verdict or when the verifier failed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["continuation"] = "continuation"
    number: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    entropies: tuple[float, ...]
    text: str
    finish: Literal["eos", "length"]
    verdict: Literal["none", "correct", "incorrect", "unparsed", "truncated", "error"]
    answer: str
    reward: float | None


class Ended(BaseModel):
    """The last line. `reason`: why it failed, or what should be known about one that is done."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["ended"] = "ended"
    outcome: Literal["done", "failed"]
    reason: str = ""


Said = Annotated[Begun | Continuation | Ended, Field(discriminator="kind")]
_SAID: TypeAdapter[Begun | Continuation | Ended] = TypeAdapter(Said)


def read_line(line: bytes) -> Begun | Continuation | Ended:
    """What a line says. Raises pydantic's ValidationError."""
    return _SAID.validate_json(line)


# ------------------------------------------------------------------------------------------- sampling


@dataclass(slots=True)
class ContinuationGrowth:
    """`growth.Growth` of independent continuations, written in waves and told as each wave is there."""

    ground: Ground
    numbers: Sequence[int]
    most_tokens: int
    greedy: bool
    tell: Callable[[Sequence[tuple[int, Segment]]], None]
    total: int = 0
    done: int = 0
    _asked: int = 0
    _outstanding: int = 0
    _strands: dict[int, Strand] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.total = len(self.numbers)

    def begin(self) -> Orders:
        return self._wave()

    def take(self, segments: Sequence[Segment]) -> Orders:
        found = sorted(segments, key=lambda segment: segment.chain)
        self._strands |= {segment.chain: segment.strand(PROMPT) for segment in found}
        self.done += len(found)
        self._outstanding -= len(found)
        self.tell([(segment.chain - 1, segment) for segment in found])
        return Orders() if self._outstanding else self._wave()

    def _wave(self) -> Orders:
        """The next ones, twice as many as came before; the prompt is kept for those that follow."""
        size = max(FIRST_WAVE, self._asked)
        wave = self.numbers[self._asked : self._asked + size]
        self._asked += len(wave)
        self._outstanding = len(wave)
        requests = [
            Request(
                chain=number + 1,
                most_tokens=self.most_tokens,
                path=child_path(ROOT_PATH, number),
                greedy=self.greedy,
            )
            for number in wave
        ]
        return Orders(requests, () if self._asked < self.total else (PROMPT,))

    def tree(self) -> RolloutTree:
        return tree_of(self.ground, self._strands)


@dataclass(frozen=True, slots=True)
class ContinuationPlan:
    """`engine.Plan` of a probe."""

    numbers: Sequence[int]
    temperature: float
    most_tokens: int
    tell: Callable[[Sequence[tuple[int, Segment]]], None]
    cut: None = None  # from all of the policy

    @property
    def most_positions(self) -> int:
        return self.most_tokens

    def growth(self, ground: Ground) -> ContinuationGrowth:
        return ContinuationGrowth(ground, self.numbers, self.most_tokens, self.temperature == 0, self.tell)


def sample_probe(
    request: ProbeRequest, policy: Policy, judge: Verifier | None, say: Callable[[BaseModel], None]
) -> None:
    """Sample and judge, and `say` each line but the last. Raises ProbeError, VerifierError,
    FloatingPointError.
    """
    from trainer.sampling.local_engine import LocalEngine

    answer = (
        policy.encode_text(request.answer_text) if request.answer_tokens is None else request.answer_tokens
    )
    beginning = [*request.prompt_tokens, *answer]
    _refuse_misfit(policy, beginning, request.max_tokens)
    say(Begun(prefix_tokens=len(beginning)))

    def tell(wave: Sequence[tuple[int, Segment]]) -> None:
        texts = [_text(policy, request.prompt_tokens, answer, segment) for _, segment in wave]
        judged: list[Judgement | None] = [None] * len(wave)
        if judge is not None:
            judged = [
                *judge.judge_many(
                    [
                        (
                            request.answer_text + text,
                            segment.finish == FinishReason.EOS,
                            request.reference_answer,
                        )
                        for text, (_, segment) in zip(texts, wave, strict=True)
                    ]
                )
            ]
        for (number, segment), text, found in zip(wave, texts, judged, strict=True):
            say(_continuation(number, segment, text, found))

    problem = Problem(request.problem_id, "", request.reference_answer)
    plan = ContinuationPlan(request.numbers, request.temperature, request.max_tokens, tell)
    LocalEngine(policy).sample_from(
        [problem],
        [beginning],
        plan,
        seed=request.seed,
        step=0,
        should_stop=lambda: False,  # who has had enough ends this process
        on_progress=lambda _done, _total: None,
    )


def _refuse_misfit(policy: Policy, beginning: Sequence[int], max_tokens: int) -> None:
    vocabulary: int = policy.model.config.vocab_size
    if not beginning:
        raise ProbeError("There is nothing to continue: the tree holds no tokens of this beginning.")
    if max(beginning) >= vocabulary or min(beginning) < 0:
        raise ProbeError(
            f"The tree has token {max(beginning)} and this model knows {vocabulary}: it is another model "
            "than the tree was sampled with. Choose a checkpoint of the tree's own run."
        )
    positions: int = policy.model.config.max_position_embeddings
    room = positions - len(beginning)
    if room < max_tokens:
        what = "Shorten the beginning." if room < 1 else f"Use at most {room} max tokens, or shorten it."
        raise ProbeError(
            f"The beginning is too long for this model: {len(beginning)} tokens and {max_tokens} more do not "
            f"fit its {positions} positions. {what}"
        )


def _text(policy: Policy, prompt: Sequence[int], answer: Sequence[int], segment: Segment) -> str:
    """A character may have begun in the tokens before."""
    return policy.decoder.texts((-1, 0, 1), (prompt, answer, segment.tokens.tolist()))[2]


def _continuation(number: int, segment: Segment, text: str, found: Judgement | None) -> Continuation:
    failed = found is not None and found.reward != found.reward
    return Continuation(
        number=number,
        tokens=tuple(segment.tokens.tolist()),
        logprobs=tuple(segment.logprobs.tolist()),
        entropies=tuple(segment.entropies.tolist()),
        text=text,
        finish="eos" if segment.finish == FinishReason.EOS else "length",
        verdict="none" if found is None else found.verdict.word,
        answer="" if found is None else found.answer,
        reward=None if found is None or failed else found.reward,
    )


# ---------------------------------------------------------------------------------------- a process of its
# own


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 failed (the last line says why), 2 the request cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.probing", description="Sample continuations of a beginning."
    )
    parser.add_argument("request", type=Path, metavar="REQUEST.json")
    parser.add_argument("--parent-fd", type=int, metavar="N", help="end at once when this pipe closes")
    options = parser.parse_args(arguments)
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if options.parent_fd is not None:
        end_with_parent(options.parent_fd)
    try:
        request = ProbeRequest.model_validate_json(options.request.read_bytes())
        threads = thread_count(os.environ.get("ARBORIST_TORCH_THREADS", "1"))
    except (OSError, ValueError) as error:
        print(f"{options.request}: {error}", file=sys.stderr)  # noqa: T201  # the answer, not a log
        return 2
    stream = only_events_on_stdout()

    def say(line: BaseModel) -> None:
        try:
            stream.write(line.model_dump_json().encode() + b"\n")
            stream.flush()
        except BrokenPipeError:  # nobody reads any more: whoever started this is gone
            os._exit(1)

    os.nice(NICENESS)
    ended = _run(request, threads, say)
    say(ended)
    return 0 if ended.outcome == "done" else 1


def _run(request: ProbeRequest, threads: int, say: Callable[[BaseModel], None]) -> Ended:
    warnings.filterwarnings("ignore", category=FutureWarning)
    import torch
    from transformers.utils import logging as transformers_logging

    from trainer.checkpoint import CheckpointError, checked_model
    from trainer.policy import ModelError, load_policy

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers types it in part
    torch.set_num_threads(threads)
    device = request.device if torch.cuda.is_available() else "cpu"
    judge: Verifier | None = None
    try:
        model = checked_model(Path(request.checkpoint)) if request.checkpoint else request.model
        policy = load_policy(model, device)
        if request.verifier is not None:
            judge = Verifier(request.verifier)
            judge.start()
        sample_probe(request, policy, judge, say)
        return Ended(outcome="done", reason=judge.troubles() if judge is not None else "")
    except VerifierError as error:
        reason = f"The run's verifier cannot be used: {error} Without verifying it can be sampled."
    except FloatingPointError as error:
        reason = f"{error} Choose an earlier checkpoint."
    except (ProbeError, ModelError, CheckpointError) as error:
        reason = str(error)
    except (torch.OutOfMemoryError, MemoryError):
        reason = "There is not enough memory for this model and so many tokens. Lower n or max tokens."
    except Exception as error:  # the last line must say that it failed; the log has the traceback
        logger.exception("The probe failed")
        reason = f"Unexpected {type(error).__name__}: {error}".splitlines()[0]
    finally:
        if judge is not None:
            judge.close()
    return Ended(outcome="failed", reason=reason[:2000])


if __name__ == "__main__":
    exit_status = main()
    logging.shutdown()
    sys.stderr.flush()
    # Taking a process with torch apart would keep whoever waits for seconds.
    os._exit(exit_status)
