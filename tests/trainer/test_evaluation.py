from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data import load_data
from trainer.evaluation import evaluate
from trainer.intervals import wilson_interval
from trainer.policy import Policy
from trainer.sampling.local_engine import LocalEngine
from trainer.schema.data import ChainData
from trainer.verifiers import Judgement, judge_gsm8k


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [  # Newcombe (1998), table I, method 3; and the two ends by hand: 1.96^2 / (n + 1.96^2)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_interval_gives_the_published_numbers(
    successes: int, trials: int, low: float, high: float
) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=6e-5)


def test_no_trials_no_interval() -> None:
    assert all(math.isnan(end) for end in wilson_interval(0, 0))


@given(st.integers(1, 500), st.data())
def test_wilson_interval_holds_the_share_and_mirrors(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    assert wilson_interval(trials - successes, trials) == pytest.approx((1 - high, 1 - low))


def accuracy(policy: Policy, seed: int = 1, problems: int = 48) -> dict[str, float]:
    return evaluate(
        LocalEngine(policy),
        load_data(ChainData(operations=3), seed=1, evaluation_problems=problems).evaluation,
        judge_gsm8k,
        most_tokens=70,
        seed=seed,
        should_stop=lambda: False,
        on_progress=lambda _done, _total: None,
    )


def test_packaged_model_knows_arithmetic_but_slips_when_it_samples(tiny_reasoner: Policy) -> None:
    values = accuracy(tiny_reasoner)
    assert values["eval/pass1_greedy"] > 0.9
    assert 0.25 < values["eval/pass1_sampled"] < 0.65
    for word in ("sampled", "greedy"):
        share = values[f"eval/pass1_{word}"]
        assert values[f"eval/pass1_{word}_low"] <= share <= values[f"eval/pass1_{word}_high"]


def test_an_evaluation_repeats_exactly_and_depends_on_its_seed(tiny_reasoner: Policy) -> None:
    first = accuracy(tiny_reasoner)
    assert accuracy(tiny_reasoner) == first
    assert accuracy(tiny_reasoner, seed=2)["eval/pass1_greedy"] == first["eval/pass1_greedy"]
    assert accuracy(tiny_reasoner, seed=2)["eval/pass1_sampled"] != first["eval/pass1_sampled"]


def test_answers_that_could_not_be_verified_count_neither_way(tiny_reasoner: Policy) -> None:
    seen = 0

    def judge(text: str, has_ended: bool, reference: str) -> Judgement:
        nonlocal seen
        seen += 1
        if seen % 2:
            raise RuntimeError("out of order")
        return judge_gsm8k(text, has_ended, reference)

    values = evaluate(
        LocalEngine(tiny_reasoner),
        load_data(ChainData(operations=3), seed=1, evaluation_problems=10).evaluation,
        judge,
        most_tokens=70,
        seed=1,
        should_stop=lambda: False,
        on_progress=lambda _done, _total: None,
    )
    assert values["eval/pass1_greedy"] == 1.0
    assert (values["eval/pass1_greedy_low"], values["eval/pass1_greedy_high"]) == wilson_interval(5, 5)
