"""From an answer's text to a verdict and a reward. Model text is only compared, never evaluated.

All work is linear in the length of the text. "Wrong", "could not be read", "was cut off" and "the verifier
failed" are four different things (`tree.Verdict`); only the last has no reward.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from trainer.data import ANSWER_MARK
from trainer.schema.verifier import Verifier
from trainer.tree import FinishReason, RolloutTree, Verdict

MAX_ANSWER_LETTERS = 200  # of the answer that is kept for people
MAX_NUMBER_LETTERS = 64

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Judgement:
    """`reward` is 1.0 or 0.0, NaN only with Verdict.ERROR; `answer` is what was read, "" if nothing was."""

    verdict: Verdict
    reward: float
    answer: str


JudgeAnswer = Callable[[str, bool, str], Judgement]
"""(text of the whole path without the prompt, whether the policy ended it, reference answer) -> Judgement."""


def judge_from_config(config: Verifier) -> JudgeAnswer:
    """The verifier of a run."""
    return {"gsm8k": judge_gsm8k}[config.kind]


def judge_gsm8k(text: str, has_ended: bool, reference: str) -> Judgement:
    """Reward 1 iff the policy ended the answer and what follows its last `#### ` equals the reference.

    Equal means: same text after `normalised`, or the same decimal number (7, 7.0 and 7.00 are one; no
    rounding).
    """
    _, mark, answer = text.rpartition(ANSWER_MARK)
    shown = answer.strip()[:MAX_ANSWER_LETTERS]
    if not has_ended:
        return Judgement(Verdict.TRUNCATED, 0.0, shown if mark else "")
    if not mark or not shown:
        return Judgement(Verdict.UNPARSED, 0.0, "")
    if are_equal(answer, reference):
        return Judgement(Verdict.CORRECT, 1.0, shown)
    return Judgement(Verdict.INCORRECT, 0.0, shown)


def are_equal(answer: str, reference: str) -> bool:
    """Whether two answers are the same text or the same number."""
    left, right = normalised(answer), normalised(reference)
    if left == right:
        return True
    first, second = _number(left), _number(right)
    return first is not None and first == second


def normalised(answer: str) -> str:
    """Without blanks around it, one trailing period, a leading plus, and the commas of a number."""
    answer = answer.strip().removesuffix(".").rstrip()
    if len(answer) > 4 * MAX_NUMBER_LETTERS:
        return answer
    without_commas = answer.replace(",", "").removeprefix("+")
    return without_commas if _is_number(without_commas) else answer


def _is_number(text: str) -> bool:
    whole, _, fraction = text.removeprefix("-").partition(".")
    digits = whole + fraction
    return len(text) <= MAX_NUMBER_LETTERS and digits.isascii() and digits.isdecimal()


def _number(text: str) -> Decimal | None:
    return Decimal(text) if _is_number(text) else None


def verify_trees(trees: Sequence[RolloutTree], judge: JudgeAnswer) -> list[RolloutTree]:
    """The trees with verdict, reward and answer of every leaf."""
    return [_verify(tree, judge) for tree in trees]


def _verify(tree: RolloutTree, judge: JudgeAnswer) -> RolloutTree:
    verdict = np.zeros(tree.n_nodes, np.uint8)
    reward = np.full(tree.n_nodes, np.nan)
    answers = [""] * tree.n_nodes
    path_texts = [""]
    for node in range(1, tree.n_nodes):
        path_texts.append(path_texts[tree.parent[node]] + tree.texts[node])
    for leaf in np.flatnonzero(tree.is_leaf()).tolist():
        has_ended = tree.finish[leaf] == FinishReason.EOS
        try:
            found = judge(path_texts[leaf], bool(has_ended), tree.reference_answer)
        except Exception:  # whatever a verifier raises: this leaf has no reward, the others keep theirs
            logger.exception("The verifier failed on leaf %s of problem %s", tree.name(leaf), tree.problem_id)
            found = Judgement(Verdict.ERROR, float("nan"), "")
        verdict[leaf], reward[leaf], answers[leaf] = found.verdict, found.reward, found.answer
    return tree.with_verdicts(verdict, reward, answers)
