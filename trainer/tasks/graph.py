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

from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import numpy as np

ANSWER_MARK: Final = "#### "
NAMES: Final = (
    "Ada", "Ben", "Cal", "Dan", "Eva", "Fay", "Gus", "Hal",
    "Ida", "Jon", "Kim", "Leo", "Mia", "Ned", "Ola", "Pia",
)  # fmt: skip
FIRST_RANGE: Final = (5, 30)
STEP_RANGE: Final = (2, 15)
LARGEST: Final = 99
SPLITS: Final = ("warmup", "train", "evaluation")


@dataclass(frozen=True, slots=True)
class GraphProblem:
    """`sentences` in the order they are told, `steps` in an order they can be worked out."""

    sentences: tuple[str, ...]
    steps: tuple[str, ...]
    asked: str
    answer: int

    @property
    def prompt(self) -> str:
        """What the policy reads, a newline at its end."""
        return f"{' '.join(self.sentences)} How many has {self.asked}?\n"

    @property
    def solution(self) -> str:
        """The steps, and the answer as in GSM8K."""
        return "\n".join([*self.steps, f"{ANSWER_MARK}{self.answer}"])


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
    steps = [f"{names[0]} has {values[0]}."]
    for number in range(1, people):
        # The newest is nearly always built on, so that a solution is a chain with branches, not a star.
        source = number - 1 if rng.random() < 0.7 else _below(rng, number)
        sentence, work, value = _relation(rng, names, values, number, source)
        sentences.append(sentence)
        steps.append(f"{names[number]} has {work}={value}.")
        values.append(value)
    return GraphProblem(tuple(_shuffled(rng, sentences)), tuple(steps), names[-1], values[-1])


def _relation(
    rng: np.random.Generator, names: list[str], values: list[int], number: int, source: int
) -> tuple[str, str, int]:
    """(sentence, the sum, its value) of person `number`, who depends on `source` and perhaps on another."""
    me, them, value = names[number], names[source], values[source]
    step = STEP_RANGE[0] + _below(rng, STEP_RANGE[1] - STEP_RANGE[0] + 1)
    other = _below(rng, number)
    choices = []
    if value + step <= LARGEST:
        choices.append((f"{me} has {step} more than {them}.", f"{value}+{step}", value + step))
    if value - step >= 1:
        choices.append((f"{me} has {step} fewer than {them}.", f"{value}-{step}", value - step))
    if value * 2 <= LARGEST:
        choices.append((f"{me} has twice as many as {them}.", f"{value}*2", value * 2))
    if other != source and value + values[other] <= LARGEST:
        together = f"{me} has as many as {them} and {names[other]} together."
        choices.append((together, f"{value}+{values[other]}", value + values[other]))
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
