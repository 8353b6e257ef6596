"""What became of one problem over training: answers, first words, turning points. Pure: trees and numbers
in, plain values out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.edit_distance import edit_distance
from trainer.tree import ROOT, FinishReason, RolloutTree, Verdict

OPENING_WORDS = 8
OPENING_LETTERS = 80
MAX_OPENINGS = 200  # different ones that are compared with each other
MAX_CLUSTERS = 12
MAX_BANDS = 8
FALL_FROM = 0.25  # of the share of correct answers, from one tree to the next

_JUDGED = (Verdict.CORRECT, Verdict.INCORRECT)


@dataclass(frozen=True, slots=True, order=True)
class Answer:
    """A final answer as the verifier read it. `text` is "" where it read none; `verdict` says why."""

    text: str
    verdict: str


@dataclass(frozen=True, slots=True)
class Opening:
    """The first words of one segment right below the prompt. `count`: sampled answers that are just this
    segment, 1 where more segments follow; `value` NaN: nothing below was scored.
    """

    text: str
    value: float
    count: int


def answers_of(tree: RolloutTree) -> Counter[Answer]:
    """How often each final answer was sampled. What a search gave up is no answer."""
    found: Counter[Answer] = Counter()
    for leaf in np.flatnonzero(tree.is_leaf() & (tree.finish != FinishReason.PRUNED)):
        verdict = Verdict(int(tree.verdict[leaf]))
        text = tree.answers[leaf] if verdict in _JUDGED else ""
        found[Answer(text, verdict.word)] += max(int(tree.copies[leaf]), 1)
    return found


def openings_of(tree: RolloutTree) -> list[Opening]:
    """The first sampled segments: the prompt's children, or theirs where a child was given."""
    given = tree.finish == FinishReason.GIVEN
    before = np.zeros(tree.n_nodes, np.bool_)  # the prompt and what was given right after it
    before[ROOT] = True
    found = []
    for node in range(1, tree.n_nodes):
        if not before[tree.parent[node]]:
            continue
        before[node] = given[node]
        if not given[node]:
            count = max(int(tree.copies[node]), 1)
            found.append(Opening(opening(tree.texts[node]), float(tree.value[node]), count))
    return found


def opening(text: str) -> str:
    """The first words of a text's first line that has any: at most 8 words and 80 letters."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    words = line.split()
    start = " ".join(words[:OPENING_WORDS])
    return start[:OPENING_LETTERS]


# ------------------------------------------------------------------------------------------------ bands


@dataclass(frozen=True, slots=True)
class Band:
    """One final answer over the frames. `counts` [frames]; `answer` None: all answers without a band."""

    answer: Answer | None
    counts: tuple[int, ...]

    @property
    def total(self) -> int:
        return sum(self.counts)


def bands(frames: Sequence[Counter[Answer]], most: int = MAX_BANDS) -> list[Band]:
    """The most frequent final answers, the correct ones first, then by number; the others together last."""
    total: Counter[Answer] = Counter()
    for frame in frames:
        total.update(frame)
    by_number = sorted(total, key=lambda answer: (-total[answer], answer))[:most]
    correct = Verdict.CORRECT.word
    shown = sorted(by_number, key=lambda answer: (answer.verdict != correct, -total[answer], answer))
    found = [Band(answer, tuple(frame[answer] for frame in frames)) for answer in shown]
    rest = tuple(sum(frame.values()) - sum(frame[answer] for answer in shown) for frame in frames)
    return [*found, Band(None, rest)] if any(rest) else found


# ------------------------------------------------------------------------------------------------ openings


@dataclass(frozen=True, slots=True)
class Cluster:
    """Openings that read alike. `text` is the most frequent one; `others` the spellings beside it, the most
    frequent first; `counts` [frames]; `value_mean` over the scored ones, NaN where none is.
    """

    text: str
    others: tuple[tuple[str, int], ...]
    counts: tuple[int, ...]
    value_mean: float

    @property
    def total(self) -> int:
        return sum(self.counts)


def clusters(frames: Sequence[Sequence[Opening]], most: int = MAX_CLUSTERS) -> tuple[list[Cluster], int]:
    """Openings of each frame, put together where they read alike: the largest clusters, and how many there
    are.

    Each joins the first, more frequent one that reads alike; so the result depends on no order. Beyond the
    200 most frequent texts, each stands alone.
    """
    number: Counter[str] = Counter()
    for frame in frames:
        for one in frame:
            number[one.text] += one.count
    leader: dict[str, str] = {}
    leaders: list[str] = []
    total: Counter[str] = Counter()
    for place, text in enumerate(sorted(number, key=lambda text: (-number[text], text))):
        alike = (other for other in leaders if reads_alike(text, other)) if place < MAX_OPENINGS else iter(())
        leader[text] = next(alike, text)
        if leader[text] == text:
            leaders.append(text)
        total[leader[text]] += number[text]
    largest = sorted(leaders, key=lambda text: (-total[text], text))[:most]
    counts = {text: [0] * len(frames) for text in largest}
    values: dict[str, list[tuple[float, int]]] = {text: [] for text in largest}
    others: dict[str, list[tuple[str, int]]] = {text: [] for text in largest}
    for text, first in leader.items():  # the most frequent first
        if first in others and text != first:
            others[first].append((text, number[text]))
    for place, frame in enumerate(frames):
        for one in frame:
            first = leader[one.text]
            if first not in counts:
                continue
            counts[first][place] += one.count
            if np.isfinite(one.value):
                values[first].append((one.value, one.count))
    found = [Cluster(text, tuple(others[text]), tuple(counts[text]), _mean(values[text])) for text in largest]
    return found, len(leaders)


def _mean(values: Sequence[tuple[float, int]]) -> float:
    weight = sum(count for _, count in values)
    return sum(value * count for value, count in values) / weight if weight else float("nan")


def reads_alike(one: str, other: str) -> bool:
    """At most a quarter of the words differ (edit distance over words, of the longer one), and the words with
    a digit are the same: another number is another thought.
    """
    a, b = _words(one), _words(other)
    if [word for word in a if _has_digit(word)] != [word for word in b if _has_digit(word)]:
        return False
    return edit_distance(a, b) * 4 <= max(len(a), len(b))


def _words(text: str) -> list[str]:
    return [word.strip(".,:;!?*_`\"'()") for word in text.casefold().split()]


def _has_digit(word: str) -> bool:
    return any(letter.isdigit() for letter in word)


# ----------------------------------------------------------------------------------------- turning points


@dataclass(frozen=True, slots=True)
class Turn:
    """A step at which something changed. `place` in the rows that were given."""

    place: int
    words: str


def turning_points(shares: Sequence[tuple[int, int]]) -> list[Turn]:
    """Where a run first solved a problem, first solved it every time, and fell most: of (correct, answers)
    of its trees in the order of steps.
    """
    found = []
    for place, (correct, _) in enumerate(shares):
        if correct:
            found.append(Turn(place, "first solved"))
            break
    for place, (correct, answers) in enumerate(shares):
        if correct and correct == answers:
            found.append(Turn(place, "first solved every time"))
            break
    rates = [correct / answers if answers else float("nan") for correct, answers in shares]
    falls = [(rates[place - 1] - rates[place], place) for place in range(1, len(rates))]
    falls = [fall for fall in falls if fall[0] >= FALL_FROM]
    if falls:
        _, place = max(falls, key=lambda fall: (fall[0], -fall[1]))
        (a, of_a), (b, of_b) = shares[place - 1], shares[place]
        found.append(Turn(place, f"fell most, from {a} of {of_a} to {b} of {of_b}"))
    return sorted(found, key=lambda turn: turn.place)


def spread(n: int, most: int, keep: Sequence[int] = ()) -> list[int]:
    """At most `most` of the places 0..n-1, evenly, with the first, the last, and those of `keep` among them
    (as far as there is room).
    """
    if n <= most:
        return list(range(n))
    chosen = set(list(dict.fromkeys([0, n - 1, *(place for place in keep if 0 <= place < n)]))[:most])
    even = [round(place * (n - 1) / max(most - 1, 1)) for place in range(most)]
    others = [place for place in even if place not in chosen]
    room = most - len(chosen)
    if room:
        chosen |= {others[i * len(others) // room] for i in range(min(room, len(others)))}
    return sorted(chosen)
