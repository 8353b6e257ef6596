from __future__ import annotations

import re

import numpy as np
import pytest

from trainer.data import load_data
from trainer.judges import gsm8k
from trainer.schema.data import GraphData
from trainer.tasks.graph import corrupt, problem_at, split_of


def test_a_problem_keeps_its_text_for_good() -> None:
    problem = problem_at(0, "train", 0, 4)
    assert problem == problem_at(0, "train", 0, 4)
    assert problem.prompt == TEXT
    assert problem.solution == SOLUTION


TEXT = (
    "Ida has 4 fewer than Gus. "
    "Gus has 9. "
    "Dan has twice as many as Ida. "
    "Ola has 7 fewer than Dan. "
    "How many has Ola?\n"
)
SOLUTION = "Gus has 9.\nIda has 9-4=5.\nDan has 5*2=10.\nOla has 10-7=3.\n#### 3"


@pytest.mark.parametrize("people", [2, 4, 12])
def test_solutions_are_right_and_follow_from_the_sentences(people: int) -> None:
    for index in range(60):
        problem = problem_at(3, "train", index, people)
        known: dict[str, int] = {}
        for step in problem.steps:
            name, work, result = re.fullmatch(r"(\w+) has (?:([\d+*-]+)=)?(\d+)\.", step).groups()
            if work:
                left, sign, right = re.fullmatch(r"(\d+)([+*-])(\d+)", work).groups()
                made = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[sign](int(left), int(right))
                assert made == int(result)
                assert int(left) in known.values()
            known[name] = int(result)
            assert 1 <= int(result) <= 99
        assert len(known) == people
        assert known[problem.asked] == problem.answer
        assert len(problem.sentences) == people
        assert gsm8k(problem.solution, True, str(problem.answer))[0] == "correct"
        # What the sentences say of each person is what the steps work out.
        for sentence in problem.sentences:
            check(sentence, known)


def check(sentence: str, known: dict[str, int]) -> None:
    me = known[sentence.split()[0]]
    if match := re.fullmatch(r"\w+ has (\d+)\.", sentence):
        assert me == int(match[1])
    elif match := re.fullmatch(r"\w+ has (\d+) (more|fewer) than (\w+)\.", sentence):
        assert me == known[match[3]] + int(match[1]) * (1 if match[2] == "more" else -1)
    elif match := re.fullmatch(r"\w+ has twice as many as (\w+)\.", sentence):
        assert me == 2 * known[match[1]]
    else:
        match = re.fullmatch(r"\w+ has as many as (\w+) and (\w+) together\.", sentence)
        assert match, sentence
        assert me == known[match[1]] + known[match[2]]


def test_no_text_is_in_two_splits() -> None:
    found = {
        split: {problem_at(0, split, i, 3).prompt for i in range(100)} for split in ("train", "evaluation")
    }
    assert not found["train"] & found["evaluation"]
    assert all(split_of(problem_at(0, "warmup", i, 3)) == "warmup" for i in range(20))


def test_a_run_may_train_on_it() -> None:
    data = load_data(GraphData(people=3), seed=2, evaluation_problems=4)
    batch = data.training.batch(2, 3)
    assert [p.problem_id for p in batch] == [f"graph-3-train-2-{i}" for i in range(3, 6)]
    assert all(p.solution for p in batch)
    assert data.evaluation == load_data(GraphData(people=3), seed=9, evaluation_problems=4).evaluation


def test_without_mistakes_a_corrupted_solution_is_the_solution() -> None:
    for index in range(40):
        problem = problem_at(1, "warmup", index, 6)
        assert corrupt(problem, generator(index), 0.0) == problem.solution


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_mistakes_are_wrong_sums_or_wrong_people_and_are_carried_on(share: float) -> None:
    wrong_sums = wrong_people = steps = 0
    for index in range(300):
        problem = problem_at(1, "warmup", index, 5)
        *lines, last = corrupt(problem, generator(index), share).split("\n")
        assert lines[0] == problem.steps[0]
        known: list[int] = []
        for line, relation in zip(lines, problem.relations, strict=True):
            name, work, result = re.fullmatch(r"(\w+) has (?:(\S+)=)?(-?\d+)\.", line).groups()
            assert name == relation.name
            if work:
                left, sign, right = re.fullmatch(r"(-?\d+)([+*-])(-?\d+)", work).groups()
                made = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[sign](int(left), int(right))
                assert abs(int(result) - made) in (0, 1, 2, 10)
                wrong_sums += made != int(result)
                wrong_people += int(left) != known[relation.source]
                assert int(left) in known
                assert int(right) == (known[relation.other] if relation.other >= 0 else relation.amount)
                steps += 1
            known.append(int(result))
        assert last == f"#### {known[-1]}"
    # Persons who have the same are no mistake, and the second step has nobody else to take for another.
    assert (wrong_sums + wrong_people) / steps == pytest.approx(share, abs=0.05)
    assert 0.4 < wrong_sums / (wrong_sums + wrong_people) < 0.75


def test_a_share_is_a_probability() -> None:
    with pytest.raises(ValueError, match="it is a probability"):
        corrupt(problem_at(0, "warmup", 0, 3), generator(0), 1.5)


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def test_people_out_of_range_and_unknown_splits_are_refused() -> None:
    with pytest.raises(ValueError, match="2 to 12 people"):
        problem_at(0, "train", 0, 1)
    with pytest.raises(ValueError, match="no split 'test'"):
        problem_at(0, "test", 0, 3)
