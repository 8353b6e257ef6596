"""From an answer's text to a verdict: which text is judged, and what becomes of what the judges say.

The rules are in `judges`, the processes they run in `verifier_pool`. "Wrong", "could not be read", "was cut
off" and "the verifier failed" are four different things (`tree.Verdict`); only the last has no reward.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import numpy as np

from trainer import judges
from trainer.judges import MAX_ANSWER_LETTERS, are_equal, normalised
from trainer.schema.verifier import Verifier as VerifierConfig
from trainer.tree import FinishReason, RolloutTree, Verdict
from trainer.verifier_pool import Answer, JudgingStopped, VerifierError, VerifierPool, in_words

__all__ = [
    "MAX_ANSWER_LETTERS",
    "Judgement",
    "JudgingStopped",
    "Verifier",
    "VerifierError",
    "are_equal",
    "normalised",
]

VERDICTS: Final = {
    "correct": Verdict.CORRECT,
    "incorrect": Verdict.INCORRECT,
    "unparsed": Verdict.UNPARSED,
    "truncated": Verdict.TRUNCATED,
    "error": Verdict.ERROR,
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Judgement:
    """`reward` is 1.0 or 0.0, NaN only with Verdict.ERROR; `answer` is what was read, "" if nothing was."""

    verdict: Verdict
    reward: float
    answer: str


JudgeAnswer = Callable[[str, bool, str], Judgement]
"""(text of the whole path without the prompt, whether the policy ended it, reference answer) -> Judgement."""


def judgement(said: judges.Said) -> Judgement:
    """What a judge said, as a verdict with the plain reward of 1 or 0."""
    verdict = VERDICTS[said[0]]
    if verdict is Verdict.ERROR:
        return Judgement(verdict, float("nan"), "")
    return Judgement(verdict, 1.0 if verdict is Verdict.CORRECT else 0.0, said[1])


def judge_gsm8k(text: str, has_ended: bool, reference: str) -> Judgement:
    """`judges.gsm8k` in this process."""
    return judgement(judges.gsm8k(text, has_ended, reference))


def _never() -> bool:
    return False


def _unheard(_done: int, _total: int) -> None:
    return


class Verifier:
    """A run's verifier: a `JudgeAnswer` that also judges many at once. Use it as a context, or `close` it."""

    def __init__(self, config: VerifierConfig) -> None:
        self._config = config
        self._pool = VerifierPool(config.model_dump(mode="json"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Raises VerifierError when it cannot be used: before a run samples its first token."""
        self._pool.start()

    def close(self) -> None:
        """End its processes."""
        self._pool.close()

    def __call__(self, text: str, has_ended: bool, reference: str) -> Judgement:
        return self.judge_many([(text, has_ended, reference)])[0]

    def judge_many(
        self,
        answers: Sequence[Answer],
        *,
        should_stop: Callable[[], bool] = _never,
        on_progress: Callable[[int, int], None] = _unheard,
    ) -> list[Judgement]:
        """In their order. Raises VerifierError, and JudgingStopped soon after `should_stop` says so."""
        found = self._pool.judge(answers, should_stop=should_stop, on_progress=on_progress)
        return [judgement(said) for said in found]

    def cpu_seconds(self) -> float:
        """Spent so far by its processes."""
        return self._pool.cpu_seconds()

    def troubles(self) -> str:
        """A sentence on what had no verdict since the last call; "" if all went well."""
        taken, reason = self._pool.take_troubles()
        if not taken:
            return ""
        return in_words(taken, self._config.timeout_seconds, self._config.memory_mb, reason)


def judge_from_config(config: VerifierConfig) -> Verifier:
    """The verifier of a run."""
    return Verifier(config)


def verify_trees(
    trees: Sequence[RolloutTree],
    judge: JudgeAnswer,
    *,
    should_stop: Callable[[], bool] = _never,
    on_progress: Callable[[int, int], None] = _unheard,
) -> list[RolloutTree]:
    """The trees with verdict, reward and answer of every leaf that is an answer; all judged together.
    A `Verifier` is asked to stop by `should_stop`; then JudgingStopped is raised.
    """
    leaves = [answers_of(tree) for tree in trees]
    answers = [
        (texts[leaf], bool(tree.finish[leaf] == FinishReason.EOS), tree.reference_answer)
        for tree, (found, texts) in zip(trees, leaves, strict=True)
        for leaf in found
    ]
    if isinstance(judge, Verifier):
        judgements = judge.judge_many(answers, should_stop=should_stop, on_progress=on_progress)
    else:
        judgements = [_judged(judge, answer) for answer in answers]
    verified, first = [], 0
    for tree, (found, _) in zip(trees, leaves, strict=True):
        verified.append(_with(tree, found, judgements[first : first + len(found)]))
        first += len(found)
    return verified


def answers_of(tree: RolloutTree) -> tuple[list[int], dict[int, str]]:
    """Leaves that are answers, and the text of each: of its path, without the prompt and what was given. A
    branch that a search gave up is no answer.
    """
    texts = [""]
    for node in range(1, tree.n_nodes):
        own = "" if tree.finish[node] == FinishReason.GIVEN else tree.texts[node]
        texts.append(texts[tree.parent[node]] + own)
    is_answer = tree.is_leaf() & (tree.finish != FinishReason.PRUNED) & (tree.finish != FinishReason.GIVEN)
    leaves = np.flatnonzero(is_answer).tolist()
    return leaves, {leaf: texts[leaf] for leaf in leaves}


def _judged(judge: JudgeAnswer, answer: Answer) -> Judgement:
    try:
        return judge(*answer)
    except Exception:  # whatever a verifier raises: this leaf has no reward, the others keep theirs
        logger.exception("The verifier failed on an answer")
        return Judgement(Verdict.ERROR, float("nan"), "")


def _with(tree: RolloutTree, leaves: Sequence[int], judgements: Sequence[Judgement]) -> RolloutTree:
    verdict = np.zeros(tree.n_nodes, np.uint8)
    reward = np.full(tree.n_nodes, np.nan)
    answers = [""] * tree.n_nodes
    for leaf, found in zip(leaves, judgements, strict=True):
        verdict[leaf], reward[leaf], answers[leaf] = found.verdict, found.reward, found.answer
    return tree.with_verdicts(verdict, reward, answers)
