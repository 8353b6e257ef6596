from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.tasks.chain import (
    ANSWER_MARK,
    MAX_OPERATIONS,
    ChainProblem,
    corrupt,
    corrupt_late,
    corrupt_with_repairs,
    generate,
    problem_at,
    split_of,
)

problems = st.builds(
    lambda seed, operations: generate(np.random.default_rng(seed), operations),
    st.integers(0, 2**32),
    st.integers(1, 12),
)

WORKED = ChainProblem(
    question="Cal has 45 books. Finds 26. Finds 27. Loses 48. How many?",
    steps=("45+26=71 books.", "71+27=98 books.", "98-48=50 books."),
    answer=50,
)


def read_question(question: str) -> list[int]:
    """The values a careful reader gets from the words alone, the start first."""
    first, *rest = question.removesuffix(" How many?").removesuffix(".").split(". ")
    values = [int(first.split()[2])]
    for sentence in rest:
        verb, what = sentence.split()
        value = values[-1]
        if verb in {"Finds", "Buys", "Gets", "Wins"}:
            values.append(value + int(what))
        elif verb in {"Loses", "Sells", "Uses", "Drops"}:
            values.append(value - int(what))
        else:
            values.append(value * {"Doubles": 2, "Triples": 3}[verb])
    return values


def read_step(step: str) -> tuple[int, str, int, int]:
    match = re.fullmatch(r"(-?\d+)([+*-])(\d+)=(-?\d+) [a-z]+\.", step)
    assert match, step
    before, sign, amount, result = match.groups()
    return int(before), sign, int(amount), int(result)


def is_right(step: str) -> bool:
    before, sign, amount, result = read_step(step)
    return result == {"+": before + amount, "-": before - amount, "*": before * amount}[sign]


def read_solution(solution: str) -> tuple[list[str], int]:
    *steps, last = solution.split("\n")
    assert last.startswith(ANSWER_MARK)
    return steps, int(last.removeprefix(ANSWER_MARK))


def test_text_form_is_the_documented_one() -> None:
    assert WORKED.prompt == "Cal has 45 books. Finds 26. Finds 27. Loses 48. How many?\n"
    assert WORKED.solution == "45+26=71 books.\n71+27=98 books.\n98-48=50 books.\n#### 50"


@given(problems)
def test_steps_and_answer_are_what_the_words_say(problem: ChainProblem) -> None:
    values = read_question(problem.question)
    steps = [read_step(step) for step in problem.steps]
    assert [before for before, *_ in steps] == values[:-1]
    assert [result for *_, result in steps] == values[1:]
    assert all(map(is_right, problem.steps))
    assert problem.answer == values[-1]
    assert read_solution(problem.solution) == (list(problem.steps), problem.answer)


@given(problems)
def test_values_and_amounts_stay_in_bounds(problem: ChainProblem) -> None:
    start, *rest = read_question(problem.question)
    assert 5 <= start <= 49
    assert all(1 <= value <= 99 for value in rest)
    for _, sign, amount, _ in map(read_step, problem.steps):
        assert 2 <= amount <= (3 if sign == "*" else 49)


def test_all_operations_occur_up_to_their_bounds() -> None:
    rng = np.random.default_rng(0)
    seen = {read_step(step)[1:3] for _ in range(2000) for step in generate(rng, 5).steps}
    assert {amount for sign, amount in seen if sign == "+"} == set(range(2, 50))
    assert {amount for sign, amount in seen if sign == "-"} == set(range(2, 50))
    assert {amount for sign, amount in seen if sign == "*"} == {2, 3}


@given(problems)
def test_no_wrong_steps_leave_the_solution_as_it_is(problem: ChainProblem) -> None:
    assert corrupt(problem, np.random.default_rng(0), 0.0) == problem.solution


@given(problems, st.integers(0, 2**32), st.floats(0, 1))
def test_corruption_keeps_the_form_and_carries_mistakes_on(
    problem: ChainProblem, seed: int, share: float
) -> None:
    steps, answer = read_solution(corrupt(problem, np.random.default_rng(seed), share))
    assert len(steps) == len(problem.steps)
    value = read_step(problem.steps[0])[0]
    for step in steps:
        before, _, _, result = read_step(step)
        assert before == value
        value = result
    assert answer == value


@given(problems, st.integers(0, 2**32))
def test_a_share_of_one_spoils_each_step(problem: ChainProblem, seed: int) -> None:
    steps, _ = read_solution(corrupt(problem, np.random.default_rng(seed), 1.0))
    for wrong, right in zip(steps, problem.steps, strict=True):
        same_operation = read_step(wrong)[1:3] == read_step(right)[1:3]
        assert not (same_operation and is_right(wrong))


def test_kinds_of_mistakes_come_in_the_documented_shares() -> None:
    rng = np.random.default_rng(0)
    kinds: Counter[str] = Counter()
    steps = 0
    while steps < 6000:
        problem = generate(rng, 1)
        before, right_sign, right_amount, right = read_step(problem.steps[0])
        if right_sign == "+" and before < right_amount:
            continue  # the opposite operation is ruled out, which shifts the shares
        steps += 1
        (step,), _ = read_solution(corrupt(problem, rng, 0.25))
        _, sign, amount, result = read_step(step)
        if (sign, amount) != (right_sign, right_amount):
            assert is_right(step)
            opposite = {"+": ("-", right_amount), "-": ("+", right_amount), "*": ("*", 5 - right_amount)}
            assert (sign, amount) == opposite[right_sign]
            kinds["operation"] += 1
        else:
            kinds[str(abs(result - right))] += 1
    wrong = 6000 - kinds["0"]
    assert wrong / 6000 == pytest.approx(0.25, abs=0.02)
    assert kinds["operation"] / wrong == pytest.approx(0.35, abs=0.04)
    assert (kinds["10"] + kinds["100"]) / wrong == pytest.approx(0.35, abs=0.04)
    assert (kinds["1"] + kinds["2"]) / wrong == pytest.approx(0.30, abs=0.04)
    assert kinds["10"] == pytest.approx(kinds["100"], rel=0.3)
    assert kinds["1"] == pytest.approx(kinds["2"], rel=0.3)
    assert set(kinds) == {"operation", "0", "1", "2", "10", "100"}


def test_a_problem_keeps_its_text_for_good() -> None:
    """Stored runs name problems by seed, split and index; a new numpy or a refactoring must not move them."""
    assert problem_at(0, "train", 0, 3).question == "Ned has 18 cards. Gets 20. Buys 36. Drops 31. How many?"
    assert problem_at(0, "train", 0, 3) == problem_at(0, "train", 0, 3)
    assert problem_at(0, "train", 0, 3) == problem_at(0, "train", 0, (3, 3))


def test_seed_split_index_and_length_all_count() -> None:
    texts = {
        problem_at(seed, split, index, operations).question
        for seed in (0, 1)
        for split in ("train", "evaluation")
        for index in (0, 1)
        for operations in (5, (5, 6))
    }
    assert len(texts) == 16


def test_a_range_draws_each_length() -> None:
    lengths = Counter(len(problem_at(0, "train", index, (3, 5)).steps) for index in range(300))
    assert set(lengths) == {3, 4, 5}
    assert min(lengths.values()) > 60


def test_splits_share_no_arithmetic_even_across_seeds() -> None:
    """Two operations leave so few chains that independent streams of this size would often collide."""

    def chains(seed: int, split: str) -> set[str]:
        steps = (problem_at(seed, split, index, 2).steps for index in range(3000))
        return {" ".join("".join(map(str, read_step(step)[:3])) for step in pair) for pair in steps}

    train, evaluation, warmup = chains(0, "train"), chains(1, "evaluation"), chains(2, "warmup")
    assert len(train & chains(3, "train")) > 12  # the comparison can find equal chains
    assert not train & evaluation
    assert not train & warmup
    assert not warmup & evaluation


@given(problems)
def test_names_and_verbs_do_not_move_a_problem_to_another_split(problem: ChainProblem) -> None:
    renamed = ChainProblem(
        question="", steps=tuple(re.sub(r"[a-z]+", "eggs", step) for step in problem.steps), answer=0
    )
    assert split_of(renamed) == split_of(problem)


@pytest.mark.parametrize("operations", [0, -1, MAX_OPERATIONS + 1])
def test_a_chain_without_a_usable_length_is_refused(operations: int) -> None:
    with pytest.raises(ValueError, match=f"`operations` is {operations}"):
        generate(np.random.default_rng(0), operations)


def test_unknown_splits_indices_and_ranges_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Unknown split 'test'\. Use one of warmup, train, evaluation"):
        problem_at(0, "test", 0, 3)
    with pytest.raises(ValueError, match="index -1"):
        problem_at(0, "train", -1, 3)
    with pytest.raises(ValueError, match="runs from 5 to 3"):
        problem_at(0, "train", 0, (5, 3))
    with pytest.raises(ValueError, match=r"`wrong_share` is 1\.5"):
        corrupt(WORKED, np.random.default_rng(0), 1.5)


def test_late_mistakes_spare_the_first_two_thirds() -> None:
    rng = np.random.default_rng(0)
    wrong_late = 0
    for index in range(200):
        problem = problem_at(0, "warmup", index, 6)
        lines = corrupt_late(problem, rng, 0.5).splitlines()
        assert lines[:4] == list(problem.steps[:4])
        wrong_late += lines[4:6] != list(problem.steps[4:6])
    assert 100 < wrong_late < 200
    assert corrupt_late(problem_at(0, "warmup", 1, 3), rng, 0.0) == problem_at(0, "warmup", 1, 3).solution


def test_checks_tell_the_truth_and_a_no_is_followed_by_the_step_again() -> None:
    rng = np.random.default_rng(0)
    repaired = unnoticed = 0
    for index in range(300):
        problem = problem_at(0, "warmup", index, 4)
        lines = corrupt_with_repairs(problem, rng, 0.4).splitlines()
        assert lines[-1].startswith("#### ")
        for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
            if not line.startswith("check "):
                continue
            start, sign, amount, result = re.match(r"(-?\d+)([+*-])(\d+)=(-?\d+)", before).groups()
            is_right = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[sign](
                int(start), int(amount)
            ) == int(result)
            assert line.endswith("ok." if is_right else "no.")
            sum_left, sum_right = line.removeprefix("check ").split("=")
            left, plus, right = re.match(r"(-?\d+)([+-])(-?\d+)$", sum_left).groups()
            made = int(left) + int(right) * (1 if plus == "+" else -1)
            assert made == int(sum_right.split()[0])
            if not is_right:
                assert after.startswith(f"{start}{sign}{amount}=")  # once more
                repaired += 1
        unnoticed += lines[-1] != f"#### {problem.answer}"
    assert repaired > 100
    assert unnoticed > 100
    clean = problem_at(0, "warmup", 5, 4)
    without_checks = [
        line for line in corrupt_with_repairs(clean, rng, 0.0).splitlines() if "check" not in line
    ]
    assert "\n".join(without_checks) == clean.solution
