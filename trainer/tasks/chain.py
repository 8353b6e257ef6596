"""The generated arithmetic task `chain`: short word problems whose every step is one line.

    Cal has 45 books. Finds 26. Finds 27. Loses 48. How many?
    45+26=71 books.
    71+27=98 books.
    98-48=50 books.
    #### 50

A mistake can happen at any step and is then carried on, so a rollout tree over such a problem shows where a
policy went astray. This module makes problems, and worked solutions with deliberate mistakes for the warm-up;
it scores nothing (that is `trainer.verifiers`) and knows no tokens.

Everything is drawn from `Generator.random`, whose stream numpy keeps stable, and never from its
integer distributions, whose streams may change between numpy releases: a problem keeps its text for good.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Literal, TypeVar, get_args

import numpy as np

Split = Literal["warmup", "train", "evaluation"]

PROMPT_TEMPLATE: Final = "{question}\n"
"""What the policy reads: the question and one newline. The solution follows at once, then the end token."""

ANSWER_MARK: Final = "#### "
"""The last line of a solution is this mark and the answer, as in GSM8K."""

START_RANGE: Final = (5, 49)
AMOUNT_RANGE: Final = (2, 49)
VALUE_RANGE: Final = (1, 99)
MAX_OPERATIONS: Final = 64

NAMES: Final = (
    "Ada", "Ben", "Cal", "Dee", "Eli", "Fay", "Gus", "Ivy",
    "Jon", "Kim", "Leo", "Mia", "Ned", "Ona", "Pam", "Ray",
)  # fmt: skip
THINGS: Final = (
    "beads", "books", "cards", "coins", "cups", "eggs", "masks",
    "nuts", "pens", "pins", "shells", "stamps", "stones", "toys",
)  # fmt: skip
GAINS: Final = ("Finds", "Buys", "Gets", "Wins")
LOSSES: Final = ("Loses", "Sells", "Uses", "Drops")

_OPERATION_WEIGHTS: Final = {"add": 0.4, "subtract": 0.4, "double": 0.1, "triple": 0.1}
_FACTORS: Final = {"double": 2, "triple": 3}
_STEP: Final = re.compile(r"(-?\d+)([+*-])(\d+)=(-?\d+) (\w+)\.")

# A held-out problem must be new to the policy: each chain of operations belongs to one split, by its hash.
_SPLIT_OF_BUCKET: Final[tuple[Split, ...]] = ("evaluation", "warmup", "train", "train")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ChainProblem:
    """One problem with its right solution.

    `steps` holds one line per operation, without newline: "45+26=71 books.". Each step starts from the
    result of the step before; `answer` is the last result. All values lie in `VALUE_RANGE`.
    """

    question: str
    steps: tuple[str, ...]
    answer: int

    @property
    def prompt(self) -> str:
        """The text that the policy continues."""
        return PROMPT_TEMPLATE.format(question=self.question)

    @property
    def solution(self) -> str:
        """The right continuation of `prompt`, without the end token: the steps, then "#### 50"."""
        return _solution_text(self.steps, self.answer)


def generate(rng: np.random.Generator, operations: int) -> ChainProblem:
    """Draw one problem with `operations` operations (1 to `MAX_OPERATIONS`).

    Starts at 5..49, then adds or subtracts 2..49, doubles or triples; every value stays in 1..99.
    Raises ValueError when `operations` is out of range.
    """
    if not 1 <= operations <= MAX_OPERATIONS:
        raise ValueError(
            f"`operations` is {operations}; a chain has 1 to {MAX_OPERATIONS}. Choose a number in that range."
        )
    low, high = START_RANGE
    name, thing = _pick(rng, NAMES), _pick(rng, THINGS)
    value = low + _below(rng, high - low + 1)
    sentences = [f"{name} has {value} {thing}."]
    steps: list[str] = []
    for _ in range(operations):
        sentence, sign, amount = _draw_operation(rng, value)
        result = _apply(value, sign, amount)
        sentences.append(sentence)
        steps.append(_step_text(value, sign, amount, result, thing))
        value = result
    return ChainProblem(" ".join([*sentences, "How many?"]), tuple(steps), value)


def longest_prompt(operations: int) -> int:
    """Letters, all of them ASCII, that no prompt of so many operations has more of."""
    name, thing, verb = (max(map(len, words)) for words in (NAMES, THINGS, GAINS + LOSSES))
    start = name + len(" has 49 ") + thing + len(".")
    operation = max(verb + len(" 49."), len("Triples them."))
    return len(PROMPT_TEMPLATE.format(question="")) + start + operations * (1 + operation) + len(" How many?")


def problem_at(seed: int, split: str, index: int, operations: int | tuple[int, int]) -> ChainProblem:
    """Return problem `index` of a split: the same one for the same arguments, on every machine.

    `operations` is a number, or a range (both ends included) from which each problem draws its own number.

    Splits are disjoint, whatever the seeds: the hash of a problem's start and operations says which one
    split may hold it, and draws that belong elsewhere are discarded. So no evaluation problem shares its
    arithmetic with a training or warm-up problem, not even under other names or verbs. Within a split, two
    indices may hold equal problems, as independent draws may.
    Raises ValueError on an unknown split, a negative index or an empty range.
    """
    if split not in get_args(Split):
        raise ValueError(f"Unknown split {split!r}. Use one of {', '.join(get_args(Split))}.")
    if index < 0:
        raise ValueError(f"Problem index {index} is negative. Indices count from 0.")
    fewest, most = (operations, operations) if isinstance(operations, int) else operations
    if fewest > most:
        raise ValueError(
            f"`operations` runs from {fewest} to {most}, which holds no number. Put the smaller one first."
        )
    identity = f"chain/{seed}/{split}/{index}/{fewest}-{most}"
    key = int.from_bytes(blake2b(identity.encode(), digest_size=16).digest(), "little")
    rng = np.random.Generator(np.random.Philox(key=key))
    while True:
        problem = generate(rng, fewest + _below(rng, most - fewest + 1))
        if split_of(problem) == split:
            return problem


def split_of(problem: ChainProblem) -> Split:
    """Return the one split that may hold this problem, from its start and operations alone."""
    start = ""
    operations: list[str] = []
    for step in problem.steps:
        before, sign, amount, _, _ = _parse_step(step)
        start = start or str(before)
        operations.append(f"{sign}{amount}")
    digest = blake2b((start + "".join(operations)).encode(), digest_size=8).digest()
    return _SPLIT_OF_BUCKET[int.from_bytes(digest, "little") % len(_SPLIT_OF_BUCKET)]


def corrupt(problem: ChainProblem, rng: np.random.Generator, wrong_share: float) -> str:
    """Return the solution text in which each step is wrong with probability `wrong_share` (0 to 1).

    A wrong step is one of: the opposite operation (35 %), a result off by 10 or 100 (35 %), a
    result off by 1 or 2 (30 %). No mistake takes a value below 0: a slip then goes upwards, and in place of
    the opposite operation the kind is drawn again. Later steps carry the wrong value on, so the text keeps
    its form and each other line is right in itself; what is carried on may leave 1..99 and fall below 0.
    Raises ValueError when `wrong_share` is no probability.
    """
    if not 0 <= wrong_share <= 1:
        raise ValueError(f"`wrong_share` is {wrong_share}; it is a probability. Use 0 to 1.")
    steps: list[str] = []
    value: int | None = None
    for step in problem.steps:
        before, sign, amount, _, thing = _parse_step(step)
        value = before if value is None else value
        if rng.random() < wrong_share:
            sign, amount, result = _wrong_step(rng, value, sign, amount)
        else:
            result = _apply(value, sign, amount)
        steps.append(_step_text(value, sign, amount, result, thing))
        value = result
    return _solution_text(steps, problem.answer if value is None else value)


def corrupt_late(problem: ChainProblem, rng: np.random.Generator, wrong_share: float) -> str:
    """Like `corrupt`, but only the last third of the steps goes wrong, each with probability
    `wrong_share`."""
    steps: list[str] = []
    value: int | None = None
    first = len(problem.steps) - max(1, round(len(problem.steps) / 3))
    for number, step in enumerate(problem.steps):
        before, sign, amount, _, thing = _parse_step(step)
        value = before if value is None else value
        if number >= first and rng.random() < wrong_share:
            sign, amount, result = _wrong_step(rng, value, sign, amount)
        else:
            result = _apply(value, sign, amount)
        steps.append(_step_text(value, sign, amount, result, thing))
        value = result
    return _solution_text(steps, problem.answer if value is None else value)


CHECKED_WHEN_WRONG: Final = 0.5
CHECKED_WHEN_RIGHT: Final = 0.1


def corrupt_with_repairs(problem: ChainProblem, rng: np.random.Generator, wrong_share: float) -> str:
    """Return a solution in which a wrong step may be noticed and mended.

        45+26=73 books.
        check 73-26=47 no.
        45+26=71 books.

    Each step has a wrong result with probability `wrong_share`. A wrong step is checked half of the time,
    and the check always says no and is followed by the step again, right or wrong as before; an unchecked
    mistake is carried on. A right step is checked now and then, and the check says ok. A check undoes the
    step and compares with where it started, so it can be read off the lines before it.
    """
    lines: list[str] = []
    value: int | None = None
    for step in problem.steps:
        before, sign, amount, _, thing = _parse_step(step)
        value = before if value is None else value
        right = _apply(value, sign, amount)
        while True:
            wrong = rng.random() < wrong_share
            result = right
            while wrong and result == right:
                # The operator stays: a check can tell a wrong result, not a misread question.
                written, _, result = _wrong_step(rng, value, sign, amount)
                result = result if written == sign else right
            lines.append(_step_text(value, sign, amount, result, thing))
            if rng.random() < (CHECKED_WHEN_WRONG if wrong else CHECKED_WHEN_RIGHT):
                lines.append(_check_text(value, sign, amount, result))
                if wrong:
                    continue
            break
        value = result
    return _solution_text(lines, problem.answer if value is None else value)


def _check_text(value: int, sign: str, amount: int, result: int) -> str:
    """The step undone, and whether that leads back to `value`."""
    verdict = "ok." if result == _apply(value, sign, amount) else "no."
    if sign == "*":
        # Doubling and tripling are checked by adding: what is added to the value, and what that makes.
        return f"check {value}+{value * (amount - 1)}={value * amount} {verdict}"
    undone, back = ("-", result - amount) if sign == "+" else ("+", result + amount)
    return f"check {result}{undone}{amount}={back} {verdict}"


def _wrong_step(rng: np.random.Generator, value: int, sign: str, amount: int) -> tuple[str, int, int]:
    """Return the operator, amount and result of a step gone wrong."""
    right = _apply(value, sign, amount)
    lowest = min(right, 0)  # a carried mistake may have gone below 0 already, and then has nowhere else to go
    while True:
        kind = rng.random()
        if kind >= 0.35:
            size = _pick(rng, (10, 100) if kind < 0.70 else (1, 2))
            downwards = rng.random() < 0.5 and right - size >= lowest
            return sign, amount, right - size if downwards else right + size
        wrong_sign, wrong_amount = _opposite(sign, amount)
        result = _apply(value, wrong_sign, wrong_amount)
        if result != right and result >= lowest:
            return wrong_sign, wrong_amount, result


def _opposite(sign: str, amount: int) -> tuple[str, int]:
    if sign == "*":
        return sign, 5 - amount  # double <-> triple
    return ("-" if sign == "+" else "+"), amount


def _draw_operation(rng: np.random.Generator, value: int) -> tuple[str, str, int]:
    """Return a sentence, its operator and its amount, such that the result stays in `VALUE_RANGE`."""
    smallest, largest = VALUE_RANGE
    least, most = AMOUNT_RANGE
    possible = {
        "add": value + least <= largest,
        "subtract": value - least >= smallest,
        "double": value * 2 <= largest,
        "triple": value * 3 <= largest,
    }
    kinds = [kind for kind, fits in possible.items() if fits]
    point = rng.random() * sum(_OPERATION_WEIGHTS[kind] for kind in kinds)
    for kind in kinds:
        point -= _OPERATION_WEIGHTS[kind]
        if point < 0:
            break
    if kind in _FACTORS:
        return f"{kind.capitalize()}s them.", "*", _FACTORS[kind]
    room = min(most, largest - value if kind == "add" else value - smallest)
    amount = least + _below(rng, room - least + 1)
    verb = _pick(rng, GAINS if kind == "add" else LOSSES)
    return f"{verb} {amount}.", "+" if kind == "add" else "-", amount


def _apply(value: int, sign: str, amount: int) -> int:
    if sign == "+":
        return value + amount
    return value - amount if sign == "-" else value * amount


def _step_text(value: int, sign: str, amount: int, result: int, thing: str) -> str:
    return f"{value}{sign}{amount}={result} {thing}."


def _parse_step(step: str) -> tuple[int, str, int, int, str]:
    match = _STEP.fullmatch(step)
    if match is None:
        raise ValueError(f"{step!r} is not a step of a chain. Expected a line like '45+26=71 books.'.")
    before, sign, amount, result, thing = match.groups()
    return int(before), sign, int(amount), int(result), thing


def _solution_text(steps: Sequence[str], answer: int) -> str:
    return "\n".join([*steps, f"{ANSWER_MARK}{answer}"])


def _below(rng: np.random.Generator, count: int) -> int:
    """Draw an integer in [0, count)."""
    return int(rng.random() * count)


def _pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[_below(rng, len(choices))]
