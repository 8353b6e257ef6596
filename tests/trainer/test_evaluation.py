from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.trees import tree_of
from trainer.checkpoint import list_checkpoints
from trainer.config_file import config_from_yaml
from trainer.data import load_data
from trainer.evaluation import count_verdicts, evaluate, main, pass_at_k
from trainer.intervals import bootstrap_interval, difference_interval, wilson_interval
from trainer.loop import train
from trainer.metrics import METRICS
from trainer.policy import Policy
from trainer.sampling.local_engine import LocalEngine
from trainer.schema.data import ChainData
from trainer.tree import RolloutTree
from trainer.verifiers import Judgement, are_equal, judge_gsm8k


def test_the_interval_of_a_difference_is_the_published_one() -> None:
    """Newcombe 1998, table II: 56/70 against 48/80, method 10."""
    assert difference_interval(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=6e-5)
    low, high = difference_interval(48, 80, 56, 70)
    assert (low, high) == pytest.approx((-0.3339, -0.0524), abs=6e-5)
    assert all(map(math.isnan, difference_interval(1, 1, 0, 0)))


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


@pytest.mark.parametrize(
    ("n", "correct", "k", "expected"),
    [
        (4, 0, 2, 0.0),
        (4, 4, 1, 1.0),
        (4, 1, 1, 0.25),
        (4, 2, 2, 1 - 1 / 6),  # of 6 pairs one holds no right answer
        (5, 1, 5, 1.0),
        (200, 3, 100, 1 - math.comb(197, 100) / math.comb(200, 100)),
    ],
)
def test_pass_at_k_by_hand(n: int, correct: int, k: int, expected: float) -> None:
    assert pass_at_k(n, correct, k) == pytest.approx(expected)


@given(st.integers(1, 7), st.data())
def test_pass_at_k_is_the_share_of_all_choices(n: int, data: st.DataObject) -> None:
    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    choices = list(itertools.combinations(range(n), k))
    expected = sum(min(choice) < correct for choice in choices) / len(choices)
    assert pass_at_k(n, correct, k) == pytest.approx(expected)


def test_pass_at_more_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="pass@3 of 2 answers"):
        pass_at_k(2, 1, 3)


def test_majorities_by_hand() -> None:
    def tree(answers: list[str], right: str) -> RolloutTree:
        made = tree_of([int(are_equal(answer, right)) for answer in answers])
        return replace(made, answers=("", *answers))

    judged = count_verdicts(
        [
            tree(["5", "5", "6"], "5"),  # majority right
            tree(["5", "6", "6"], "5"),  # majority wrong
            tree(["5", "6"], "5"),  # a tie: the first
            tree(["", "", "7"], "7"),  # what could not be read has no vote
            tree(["5.0", "5", "6", "6"], "5"),
        ]
    )
    assert judged.majority.tolist() == [1, 0, 1, 1, 1]
    assert judged.correct.tolist() == [2, 1, 1, 1, 2]


def test_bootstrap_interval_is_near_the_normal_one_and_repeats() -> None:
    values = np.array([0.0, 1.0] * 100)
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values)
    assert low == pytest.approx(0.5 - 1.96 * 0.5 / math.sqrt(200), abs=0.01)
    assert high == pytest.approx(0.5 + 1.96 * 0.5 / math.sqrt(200), abs=0.01)
    assert all(math.isnan(end) for end in bootstrap_interval(np.array([])))


def test_several_samples_give_pass_at_k_and_majority(tiny_reasoner: Policy) -> None:
    values = evaluate(
        LocalEngine(tiny_reasoner),
        load_data(ChainData(operations=3), seed=1, evaluation_problems=24).evaluation,
        judge_gsm8k,
        most_tokens=70,
        seed=1,
        should_stop=lambda: False,
        on_progress=lambda _done, _total: None,
        samples=8,
    )
    chain = [values["eval/pass1_sampled"], *(values[f"eval/pass_at_{k}"] for k in (2, 4, 8))]
    assert chain == sorted(chain)
    assert chain[-1] > chain[0] + 0.2
    assert values["eval/maj_at_k"] > values["eval/pass1_sampled"]
    assert "eval/pass_at_16" not in values
    assert set(values) <= set(METRICS)


def test_a_checkpoint_is_evaluated_on_its_own_run_s_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model_folder: Path
) -> None:
    tokenizer = json.loads((model_folder / "tokenizer_config.json").read_text())
    misleading = "{% for m in messages %}{{ m.content }}#### 1\n{% endfor %}"
    tokenizer["chat_template"] = misleading
    (model_folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    data = tmp_path / "set.jsonl"
    problems = load_data(ChainData(operations=3), seed=1, evaluation_problems=40).evaluation
    lines = [
        json.dumps({"question": p.prompt.strip(), "answer": f"#### {p.reference_answer}"}) for p in problems
    ]
    data.write_text("\n".join([*lines, "broken"]) + "\n")

    def accuracy(chat: str) -> float:
        config = config_from_yaml(
            "training: {steps: 1, problems_per_step: 2}\nevaluation: {problems: 4}",
            [
                f"model.path={model_folder}",
                f"data={{kind: jsonl, path: {data}, evaluation_share: 0.5, chat: {chat}}}",
            ],
        )
        train(config, emit=lambda _e: None, should_stop=lambda: False, run_dir=tmp_path / chat)
        (checkpoint,) = list_checkpoints(tmp_path / chat)
        assert main([str(checkpoint), "--problems", "15"]) == 0
        said = capsys.readouterr()
        assert "evaluation: set.jsonl: skipped 1 of 41 rows" in said.err
        return float(json.loads(said.out)["eval/pass1_greedy"])

    assert accuracy("false") > 0.8 > 0.5 > accuracy("true")


def test_a_model_is_evaluated_from_a_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny-reasoner", "--operations", "3", "--problems", "8", "--samples", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == 8
    assert 0 <= found["eval/pass_at_2"] <= 1
    assert found["eval/maj_at_k"] is not None
    assert main(["tiny-reasoner", "--operations", "3", "--problems", "8", "--samples", "2"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert main(["/nowhere"]) == 2
    assert "there is no folder" in capsys.readouterr().err
