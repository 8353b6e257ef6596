"""The generated task `graph`: amounts that depend on one another, told in shuffled order (as in iGSM).

    Mia has 3 more than Leo. Cal has as many as Mia and Leo together. Leo has 12. How many has Cal?
    Leo has 12.
    Mia has 12+3=15.
    Cal has 15+12=27.
    #### 27

Two mistakes are possible: wrong arithmetic, and the wrong person; both can be seen in a tree. A problem keeps
its text for good: only `Generator.random` is drawn from (`tasks.chain` says why).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, NamedTuple

import numpy as np

ANSWER_MARK: Final = "#### "
NAMES: Final = (
    "Ada", "Ben", "Cal", "Dan", "Eva", "Fay", "Gus", "Hal",
    "Ida", "Jon", "Kim", "Leo", "Mia", "Ned", "Ola", "Pia",
)  # fmt: skip
FIRST_RANGE: Final = (5, 30)
STEP_RANGE: Final = (2, 15)
LARGEST: Final = 99
WRONG_PERSON_SHARE: Final = 0.5
SLIPS: Final = (-10, -2, -1, 1, 2, 10)
SPLITS: Final = ("warmup", "train", "evaluation")


class Relation(NamedTuple):
    """What `name` has: of person `source` (their place among the steps), and `amount` or what person `other`
    has. The first person has `amount`, without a source; -1 is nobody."""

    name: str
    source: int
    sign: str
    amount: int
    other: int


@dataclass(frozen=True, slots=True)
class GraphProblem:
    """`sentences` in the order they are told; `steps`, and the `relations` behind them, in an order in which
    they can be worked out."""

    sentences: tuple[str, ...]
    steps: tuple[str, ...]
    asked: str
    answer: int
    relations: tuple[Relation, ...]

    @property
    def prompt(self) -> str:
        """What the policy reads, a newline at its end."""
        return f"{' '.join(self.sentences)} How many has {self.asked}?\n"

    @property
    def solution(self) -> str:
        """The steps, and the answer as in GSM8K."""
        return "\n".join([*self.steps, f"{ANSWER_MARK}{self.answer}"])


def longest_prompt(people: int) -> int:
    """Letters, all of them ASCII, that no prompt with so many people has more of."""
    name = max(map(len, NAMES))
    sentence = 3 * name + len(" has as many as  and  together. ")
    return people * sentence + len("How many has ?\n") + name


def problem_at(seed: int, split: str, index: int, people: int) -> GraphProblem:
    """Problem number `index` of a split: the same for ever; no text is in two splits."""
    if split not in SPLITS:
        raise ValueError(f"There is no split {split!r}; there are {', '.join(SPLITS)}.")
    attempt = 0
    while True:
        name = f"graph/{seed}/{split}/{index}/{people}/{attempt}".encode()
        key = int.from_bytes(blake2b(name, digest_size=8).digest(), "little")
        problem = generate(np.random.Generator(np.random.Philox(key=key)), people)
        if split_of(problem) == split:
            return problem
        attempt += 1


def split_of(problem: GraphProblem) -> str:
    """The one split that may hold a problem, by its text: an eighth to evaluation, an eighth to warm-up."""
    bucket = blake2b(problem.prompt.encode(), digest_size=1).digest()[0] % 8
    return {0: "evaluation", 1: "warmup"}.get(bucket, "train")


def generate(rng: np.random.Generator, people: int) -> GraphProblem:
    """A problem with so many people, 2 to 12. Every value is 1 to 99; the last one needs all that it
    depends on."""
    if not 2 <= people <= 12:
        raise ValueError(f"A graph problem has 2 to 12 people, not {people}.")
    names = _shuffled(rng, list(NAMES))[:people]
    values = [FIRST_RANGE[0] + _below(rng, FIRST_RANGE[1] - FIRST_RANGE[0] + 1)]
    sentences = [f"{names[0]} has {values[0]}."]
    relations = [Relation(names[0], -1, "", values[0], -1)]
    steps = [_step_text(relations[0], [], values[0])]
    for number in range(1, people):
        # The newest is nearly always built on, so that a solution is a chain with branches, not a star.
        source = number - 1 if rng.random() < 0.7 else _below(rng, number)
        sentence, relation = _relation(rng, names, values, number, source)
        value = _worked_out(relation, values)
        sentences.append(sentence)
        relations.append(relation)
        steps.append(_step_text(relation, values, value))
        values.append(value)
    return GraphProblem(
        tuple(_shuffled(rng, sentences)), tuple(steps), names[-1], values[-1], tuple(relations)
    )


def corrupt(problem: GraphProblem, rng: np.random.Generator, wrong_share: float) -> str:
    """Return a solution in which each step but the first is wrong with probability `wrong_share`.

    Half of the wrong steps take what another person has (where there is another), the others are off by 1, 2
    or 10. The mistake is carried on: each other line is right in itself.
    """
    if not 0 <= wrong_share <= 1:
        raise ValueError(f"`wrong_share` is {wrong_share}; it is a probability. Use 0 to 1.")
    values: list[int] = []
    lines: list[str] = []
    for number, relation in enumerate(problem.relations):
        is_wrong = number > 0 and rng.random() < wrong_share
        slip = 0
        if is_wrong and number > 1 and rng.random() < WRONG_PERSON_SHARE:
            others = [place for place in range(number) if place != relation.source]
            relation = relation._replace(source=others[_below(rng, len(others))])
        elif is_wrong:
            slip = SLIPS[_below(rng, len(SLIPS))]
        value = _worked_out(relation, values) + slip
        lines.append(_step_text(relation, values, value))
        values.append(value)
    return "\n".join([*lines, f"{ANSWER_MARK}{values[-1]}"])


def _worked_out(relation: Relation, values: Sequence[int]) -> int:
    if relation.source < 0:
        return relation.amount
    left, right = values[relation.source], _right(relation, values)
    if relation.sign == "*":
        return left * right
    return left + right if relation.sign == "+" else left - right


def _right(relation: Relation, values: Sequence[int]) -> int:
    return relation.amount if relation.other < 0 else values[relation.other]


def _step_text(relation: Relation, values: Sequence[int], value: int) -> str:
    if relation.source < 0:
        return f"{relation.name} has {value}."
    work = f"{values[relation.source]}{relation.sign}{_right(relation, values)}"
    return f"{relation.name} has {work}={value}."


def _relation(
    rng: np.random.Generator, names: list[str], values: list[int], number: int, source: int
) -> tuple[str, Relation]:
    """(sentence, relation) of person `number`, who depends on `source` and perhaps on another."""
    me, them, value = names[number], names[source], values[source]
    step = STEP_RANGE[0] + _below(rng, STEP_RANGE[1] - STEP_RANGE[0] + 1)
    other = _below(rng, number)
    choices = []
    if value + step <= LARGEST:
        choices.append((f"{me} has {step} more than {them}.", Relation(me, source, "+", step, -1)))
    if value - step >= 1:
        choices.append((f"{me} has {step} fewer than {them}.", Relation(me, source, "-", step, -1)))
    if value * 2 <= LARGEST:
        choices.append((f"{me} has twice as many as {them}.", Relation(me, source, "*", 2, -1)))
    if other != source and value + values[other] <= LARGEST:
        together = f"{me} has as many as {them} and {names[other]} together."
        choices.append((together, Relation(me, source, "+", 0, other)))
    return choices[_below(rng, len(choices))]


def _below(rng: np.random.Generator, count: int) -> int:
    return int(rng.random() * count)


def _shuffled(rng: np.random.Generator, items: list[str]) -> list[str]:
    """Fisher and Yates, by `random` alone."""
    items = list(items)
    for last in range(len(items) - 1, 0, -1):
        chosen = _below(rng, last + 1)
        items[last], items[chosen] = items[chosen], items[last]
    return items
