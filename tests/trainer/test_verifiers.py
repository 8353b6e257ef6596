from __future__ import annotations

import logging
import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.judges import are_same_mathematics
from trainer.tree import FinishReason, RolloutTree, Verdict, sampled_tree
from trainer.verifiers import MAX_ANSWER_LETTERS, Judgement, are_equal, judge_gsm8k, verify_trees


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("50", "50"),
        (" 50 ", "50"),
        ("50.", "50"),
        ("+50", "50"),
        ("1,234", "1234"),
        ("1234", "1,234"),
        ("7.0", "7"),
        ("7", "7.00"),
        ("-3", "-3.0"),
        ("007", "7"),
        ("-0", "0"),
        ("blue", "blue"),
        ("x, y", "x, y"),
        ("1,234.50", "1234.5"),
        ("0." + "1" * 60, "0." + "1" * 60),
        ("9" * 500, "9" * 500),
        (".5", "0.5"),
        ("+", "+"),
    ],
)
def test_equal_answers(answer: str, reference: str) -> None:
    assert are_equal(answer, reference)
    assert are_equal(reference, answer)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("51", "50"),
        ("-50", "50"),
        ("5 0", "50"),
        ("50 books", "50"),
        ("50\n51", "50"),
        ("0.1" + "0" * 40 + "1", "0.1"),
        ("1e3", "1000"),
        ("٥", "5"),
        ("５", "5"),
        ("²", "2"),
        ("NaN", "nan"),
        ("Infinity", "inf"),
        ("0x10", "16"),
        ("1_0", "10"),
        ("x,y", "xy"),
        ("5,0", "50"),
        ("1,23", "123"),
        ("12,34,567", "1234567"),
        (",5", "5"),
        ("1,2345", "12345"),
        ("", "0"),
        ("--5", "5"),
        ("5.5.5", "5.5"),
        ("-", "0"),
        ("1/2", "0.5"),
    ],
)
def test_different_answers(answer: str, reference: str) -> None:
    assert not are_equal(answer, reference)
    assert judge_gsm8k(f"#### {answer}", True, reference).reward == 0


@pytest.mark.parametrize(
    ("text", "has_ended", "verdict", "reward", "shown"),
    [
        ("1+1=2\n#### 2", True, Verdict.CORRECT, 1, "2"),
        ("#### 1\n#### 2", True, Verdict.CORRECT, 1, "2"),
        ("#### 2\n#### 1", True, Verdict.INCORRECT, 0, "1"),
        ("#### 2", False, Verdict.TRUNCATED, 0, "2"),
        ("1+1=", False, Verdict.TRUNCATED, 0, ""),
        ("the answer is 2", True, Verdict.UNPARSED, 0, ""),
        ("####2", True, Verdict.UNPARSED, 0, ""),
        ("#### ", True, Verdict.UNPARSED, 0, ""),
        ("", True, Verdict.UNPARSED, 0, ""),
        ("#### 2\nand more", True, Verdict.INCORRECT, 0, "2\nand more"),
        ('#### __import__("os").system("id")', True, Verdict.INCORRECT, 0, '__import__("os").system("id")'),
    ],
)
def test_verdicts(text: str, has_ended: bool, verdict: Verdict, reward: float, shown: str) -> None:
    assert judge_gsm8k(text, has_ended, "2") == Judgement(verdict, reward, shown)


@pytest.mark.parametrize(
    "text",
    [
        "#### " + "9" * 1_000_000,
        "#### " * 200_000,
        "#### 9**9**9**9",
        "a" * 1_000_000 + "!",
        "#### " + "," * 1_000_000,
        "#### " + "+" * 1_000_000,
        "#### 1e999999999",
        "#### 0." + "0" * 1_000_000 + "1",
        "#" * 1_000_000,
    ],
)
def test_hostile_answers_are_judged_fast(text: str) -> None:
    started = time.process_time()
    found = judge_gsm8k(text, True, "0.1")
    assert time.process_time() - started < 0.1
    assert found.reward == 0
    assert len(found.answer) <= MAX_ANSWER_LETTERS


@given(st.text())
def test_any_text_gets_a_verdict(text: str) -> None:
    assert judge_gsm8k(text, True, "5").verdict in (Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNPARSED)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9))
def test_a_number_equals_itself_however_it_is_written(number: object) -> None:
    assert are_equal(f"{number:,}", f"{number}")


def small_tree() -> RolloutTree:
    # root -> "a\n" -> "#### 5" (ended), "#### 6" (ended), "#### 5" (cut off); root -> "boom" (ended)
    return sampled_tree(
        problem_id="p",
        reference_answer="5",
        step=1,
        policy_version=0,
        parent=[-1, 0, 0, 1, 1, 1],
        segment_tokens=[[1]] * 6,
        segment_logprobs=[[0.0]] * 6,
        segment_entropies=[[0.0]] * 6,
        finish=[
            FinishReason.NONE,
            FinishReason.SPLIT,
            FinishReason.EOS,
            FinishReason.EOS,
            FinishReason.EOS,
            FinishReason.LENGTH,
        ],
        texts=["#### 5", "a\n", "boom", "#### 5", "#### 6", "#### 5"],
    )


def test_leaves_are_judged_by_their_whole_path_without_the_prompt() -> None:
    (tree,) = verify_trees([small_tree()], judge_gsm8k)
    assert tree.verdict.tolist() == [
        Verdict.NONE,
        Verdict.NONE,
        Verdict.UNPARSED,
        Verdict.CORRECT,
        Verdict.INCORRECT,
        Verdict.TRUNCATED,
    ]
    np.testing.assert_array_equal(tree.reward, [math.nan, math.nan, 0, 1, 0, 0])
    assert tree.answers == ("", "", "", "5", "6", "5")


def test_an_answer_may_be_split_over_segments() -> None:
    tree = small_tree()
    object.__setattr__(tree, "texts", ("", "so ###", "x", "# 5", "# 6", "# 5"))
    (tree,) = verify_trees([tree], judge_gsm8k)
    assert tree.verdict[3] == Verdict.CORRECT


def test_a_failing_verifier_is_no_reward_of_zero(caplog: pytest.LogCaptureFixture) -> None:
    def judge(text: str, has_ended: bool, reference: str) -> Judgement:
        if text == "boom":
            raise RuntimeError("out of order")
        return judge_gsm8k(text, has_ended, reference)

    (tree,) = verify_trees([small_tree()], judge)
    assert tree.verdict[2] == Verdict.ERROR
    assert math.isnan(tree.reward[2])
    assert tree.reward[3] == 1
    assert "The verifier failed" in caplog.text
    assert "out of order" in caplog.text


def test_judging_mathematics_leaves_everybody_elses_log_alone() -> None:
    assert are_same_mathematics(r"\frac{17}{2}y", "17y/2")
    assert logging.root.manager.disable == logging.NOTSET
