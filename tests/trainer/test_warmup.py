from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer.tasks.chain import problem_at
from trainer.warmup import (
    END_TOKEN,
    PAD_TOKEN,
    Phase,
    Recipe,
    batch_loss,
    build_tokenizer,
    complete,
    is_correct,
    main,
    measure,
    pad_batch,
    train,
)

FOLDER = Path(__file__).parents[2] / "trainer" / "assets" / "tiny-reasoner"
RECORD: dict[str, Any] = json.loads((FOLDER / "warmup.json").read_text(encoding="utf-8"))

TINY = Recipe(
    phases=(Phase(2, (3, 3), 0.0), Phase(1, (3, 4), 0.5)),
    hidden_size=16,
    intermediate_size=32,
    layers=1,
    heads=2,
    batch_size=4,
)

# transformers types its loading functions in part only, hence Any below.
tokenizer: Any = AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)


@pytest.fixture(autouse=True)
def torch_settings() -> Iterator[None]:
    """One thread per test; `main` also asks for deterministic kernels, which others must not inherit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@settings(max_examples=60)
@given(st.text())
def test_any_text_survives_the_tokenizer(text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize(
    "text", ["🌳 e\u0301 \u2028\x00\x1b[0m\r\n", "  two  spaces ", "1\n\n 2", "²٣½", END_TOKEN, "naïve — ok"]
)
def test_awkward_text_survives_the_tokenizer(text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_digits_and_newlines_are_tokens_of_their_own() -> None:
    """No token of the whole vocabulary holds one beside anything else."""
    texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    alone = [text for text in texts if any(character in "0123456789\n" for character in text)]
    assert sorted(alone) == sorted("0123456789\n")


def test_each_word_of_the_task_is_one_token() -> None:
    text = "Cal has 45 books. Finds 26. Doubles them. How many?\n45+26=71 books.\n#### 71"
    pieces = [tokenizer.decode([token]) for token in tokenizer(text)["input_ids"]]
    assert pieces == [
        *(
            "Cal",
            " has ",
            "4",
            "5",
            " books.",
            " Finds ",
            "2",
            "6",
            ".",
            " Doubles",
            " them.",
            " How",
            " many?",
        ),
        *("\n", "4", "5", "+", "2", "6", "=", "7", "1", " books.", "\n", "#### ", "7", "1"),
    ]


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_prompt_and_solution_meet_at_a_token_border(index: int) -> None:
    problem = problem_at(0, "train", index, (3, 8))
    apart = [*tokenizer(problem.prompt)["input_ids"], *tokenizer(problem.solution)["input_ids"]]
    assert tokenizer(problem.prompt + problem.solution)["input_ids"] == apart


def test_committed_tokenizer_comes_from_its_seed() -> None:
    rebuilt = build_tokenizer(RECORD["seed"])
    assert json.loads(rebuilt.backend_tokenizer.to_str()) == json.loads(
        (FOLDER / "tokenizer.json").read_text()
    )


def test_committed_folder_is_small_and_holds_no_code_and_no_pickle() -> None:
    files = list(FOLDER.iterdir())
    assert sum(file.stat().st_size for file in files) <= 1.5e6
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    assert (
        "auto_map"
        not in (FOLDER / "config.json").read_text() + (FOLDER / "tokenizer_config.json").read_text()
    )


def test_committed_model_loads_in_float32_and_knows_its_end_token(model: Any) -> None:
    assert model.dtype == torch.float32
    assert sum(parameter.numel() for parameter in model.parameters()) == RECORD["parameters"]
    assert model.config.vocab_size == len(tokenizer) == RECORD["vocabulary"]
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert tokenizer.eos_token == END_TOKEN
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.pad_token == PAD_TOKEN
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id


def test_recorded_accuracy_is_the_intended_starting_point() -> None:
    """Right arithmetic under greedy decoding, slips under sampling: room for RL to climb."""
    accuracies = {row["operations"]: row for row in RECORD["accuracy"]}
    assert set(accuracies) == {3, 5, 8}
    for operations, sampled in {3: 0.46, 5: 0.31, 8: 0.16}.items():
        row = accuracies[operations]
        assert row["problems"] == 512
        assert row["sampled"] == pytest.approx(sampled, abs=0.05)
        assert row["sampled"] == pytest.approx(row["sampled_correct"] / 512, abs=1e-4)
        assert row["greedy"] >= 0.93


def test_committed_model_still_solves_problems(model: Any) -> None:
    accuracy = measure(model, tokenizer, operations=3, problems=64, seed=RECORD["seed"])
    assert accuracy.greedy_correct >= 0.85 * 64
    assert 0.25 * 64 <= accuracy.sampled_correct <= 0.70 * 64


def test_cached_decoding_equals_reading_the_whole_sequence_again(model: Any) -> None:
    prompt = torch.tensor([tokenizer(problem_at(0, "train", 0, 4).prompt)["input_ids"]])
    sequence = prompt
    with torch.inference_mode():
        while sequence[0, -1] != tokenizer.eos_token_id:
            chosen = model(input_ids=sequence, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            sequence = torch.cat([sequence, chosen], dim=1)
    assert torch.equal(complete(model, prompt, 100, None), sequence[:, prompt.shape[1] :])


def test_sampling_follows_the_policy_probabilities(model: Any) -> None:
    """The first token of 1,600 samples against the softmax itself; four standard errors are 0.05 at most."""
    prompt = torch.tensor(
        [tokenizer("Cal has 45 books. Finds 26. Finds 27. Loses 48. How many?\n45+26=")["input_ids"]]
    )
    with torch.inference_mode():
        expected = model(input_ids=prompt).logits[0, -1].softmax(-1)
    sampled = complete(model, prompt.expand(1600, -1), 1, torch.Generator().manual_seed(0))[:, 0]
    shares = torch.bincount(sampled, minlength=len(expected)) / 1600
    assert expected.max() < 0.95  # a place where it slips
    assert (shares - expected).abs().max() < 0.05


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("45+5=50 books.\n#### 50<|end|>", True),
        ("#### 7\n#### 50<|end|>", True),
        ("#### 50\n#### 7<|end|>", False),
        ("#### 50", False),  # it never ended
        ("#### 50 books.<|end|>", False),
        ("50<|end|>", False),
        ("#### 5<|end|>0", False),
    ],
)
def test_answer_counts_after_the_last_mark_of_an_ended_text(text: str, verdict: bool) -> None:
    problem = next(
        problem for index in range(10_000) if (problem := problem_at(0, "train", index, 3)).answer == 50
    )
    assert is_correct(tokenizer, problem, tokenizer(text)["input_ids"]) is verdict


def test_padding_and_company_do_not_change_a_problems_loss(model: Any) -> None:
    """A batch's loss is its rows' losses, each row alone, averaged by their weights."""
    problems = [problem_at(0, "train", index, length) for index, length in enumerate((3, 5, 8))]
    prompts = [problem.prompt for problem in problems]
    solutions = [problem.solution for problem in problems]
    tokens, weights = pad_batch(tokenizer, prompts, solutions, 0.1)
    assert (tokens == tokenizer.eos_token_id).sum() == 3
    alone = [
        pad_batch(tokenizer, [prompt], [solution], 0.1)
        for prompt, solution in zip(prompts, solutions, strict=True)
    ]
    with torch.inference_mode():
        total = sum(batch_loss(model, *row) * row[1][:, 1:].sum() for row in alone)
        torch.testing.assert_close(batch_loss(model, tokens, weights), total / weights[:, 1:].sum())


def test_same_seed_gives_the_same_bits_whatever_the_global_generator_holds() -> None:
    small = build_tokenizer(seed=3, problems=50)
    torch.manual_seed(1)
    first = train(TINY, small, seed=3).state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = train(TINY, small, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    other = train(TINY, small, seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_each_step_is_reported_with_a_falling_loss() -> None:
    reports: list[tuple[int, int, float]] = []
    recipe = Recipe(phases=(Phase(60, (3, 3), 0.0),), hidden_size=16, intermediate_size=32, layers=1, heads=2)
    train(recipe, build_tokenizer(0, problems=50), 0, lambda *report: reports.append(report))
    assert [report[:2] for report in reports] == [(step, 60) for step in range(1, 61)]
    assert reports[-1][2] < 0.8 * reports[0][2]


def test_command_writes_a_folder_that_loads_and_replaces_an_earlier_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "models" / "tiny"
    output.mkdir(parents=True)
    (output / "warmup.json").write_text("{}")
    (output / "model-00001-of-00002.safetensors").write_text("of an earlier warm-up")
    assert main(["--output", str(output), "--seed", "6", "--steps", "1", "1", "1", "--problems", "1"]) == 0
    progress = capsys.readouterr().err
    assert "step 3/3" in progress
    assert "has not learnt the arithmetic. Use more --steps" in progress
    assert [path.name for path in output.parent.iterdir()] == ["tiny"]
    assert [path.name for path in output.glob("*.safetensors")] == ["model.safetensors"]
    record = json.loads((output / "warmup.json").read_text())
    assert record["seed"] == 6
    assert record["command"].endswith("--seed 6 --steps 1 1 1 --problems 1")
    assert [row["problems"] for row in record["accuracy"]] == [1, 1, 1]
    loaded = AutoModelForCausalLM.from_pretrained(output)
    assert loaded.config.vocab_size == len(AutoTokenizer.from_pretrained(output))


@pytest.mark.parametrize("more", [["--errors", "late"], ["--errors", "repair"], ["--task", "graph"]])
def test_command_makes_policies_for_other_tasks_and_mistakes(tmp_path: Path, more: list[str]) -> None:
    output = tmp_path / "other"
    known = ["--output", str(output), "--seed", "6", "--steps", "1", "1", "1", "--problems", "1"]
    assert main([*known, *more]) == 0
    record = json.loads((output / "warmup.json").read_text())
    assert record["command"].endswith(" ".join(["--problems", "1", *more]))
    assert record["recipe"][more[0].removeprefix("--")] == more[1]
    own = AutoTokenizer.from_pretrained(output)
    if more[1] == "graph":
        text = "Mia has 3 more than Leo. Cal has as many as Mia and Leo together. How many has Cal?\n"
        words = {own.decode([token]) for token in own(text)["input_ids"]}
        assert {" more", " than", " Leo", " together.", " many"} <= words
        assert [row["operations"] for row in record["accuracy"]] == [2, 4, 6]
    if more[1] == "repair":
        assert "check " in {own.decode([token]) for token in own("check 73-26=47 no.")["input_ids"]}


def test_mistakes_of_other_kinds_are_for_chains(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--output", str(tmp_path / "x"), "--seed", "0", "--task", "graph", "--errors", "late"])


def test_command_leaves_a_foreign_folder_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main(["--output", str(tmp_path), "--seed", "0", "--steps", "1", "1", "1"]) == 1
    assert "is no earlier warm-up" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("arguments", [["--steps", "0", "1", "1"], ["--steps", "5"], ["--problems", "0"]])
def test_command_refuses_numbers_that_measure_nothing(tmp_path: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--output", str(tmp_path / "new"), "--seed", "0", *arguments])
    assert not (tmp_path / "new").exists()
