from __future__ import annotations

import contextlib
import gzip
import json
import pickle
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data import (
    MAX_LINE_BYTES,
    MAX_REPORTED_LINES,
    DataError,
    Problem,
    is_held_out,
    load_data,
    validate_jsonl,
)
from trainer.policy import Policy
from trainer.schema.data import ChainData, GraphData, JsonlData
from trainer.tasks.chain import problem_at, split_of


def row(question: str = "How many?", answer: str = "Two.\n#### 2") -> str:
    return json.dumps({"question": question, "answer": answer}) + "\n"


def rows(count: int) -> str:
    return "".join(row(f"Question {i}?", f"#### {i}") for i in range(count))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "set.jsonl"


# ---- one bad row among good ones


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b'{"question": "\xff\xfe", "answer": "#### 1"}\n', "not UTF-8 (byte 15 is 0xff)"),
        (b'{"question": "a", "answer": NaN}\n', "NaN is not a JSON value"),
        (b'{"question": "a", "answer": Infinity}\n', "Infinity is not a JSON value"),
        (
            b'{"prompt": "a", "answer": "#### 1"}\n',
            "columns found: `prompt`, `answer`; needed: `question`, `answer`",
        ),
        (b"{}\n", "columns found: none"),
        (b'{"question": "a", "answer": "1"}\n', "no `#### ` with the reference answer"),
        (b'{"question": "a", "answer": "x\\n#### "}\n', "nothing after its last `#### `"),
        (b'{"question": "a", "answer": "#### 1\\nand more"}\n', "more than one line"),
        (b'{"question": "  ", "answer": "#### 1"}\n', "`question` is blank"),
        (b'{"question": 5, "answer": "#### 1"}\n', "`question` is a JSON number, expected text"),
        (b'{"question": "a", "answer": null}\n', "`answer` is a JSON null, expected text"),
        (b"[1, 2]\n", "a JSON array, expected an object"),
        (b'"text"\n', "a JSON string, expected an object"),
        (b"not json\n", "not JSON: Expecting value (column 1)"),
        (b"[" * 100_000 + b"]" * 100_000 + b"\n", "nested too deep"),
        (b'{"question": "a", "answer": ' + b"1" * 5000 + b"}\n", "not JSON: Exceeds the limit"),
        (
            b'{"question": "' + b"a" * (MAX_LINE_BYTES + 5) + b'", "answer": "#### 1"}\n',
            "longer than 4,194,304 bytes",
        ),
    ],
)
def test_a_bad_row_is_named_by_line_and_the_rest_is_used(file: Path, bad: bytes, message: str) -> None:
    file.write_bytes(rows(2).encode() + bad + rows(3).encode())
    report = validate_jsonl(file)
    assert report.rows == 5
    assert report.bad_rows == 1
    ((line, what),) = report.bad
    assert line == 3
    assert message in what


def test_a_last_line_cut_off_is_called_so(file: Path) -> None:
    file.write_bytes(rows(3).encode() + b'{"question": "b", "ans')
    assert validate_jsonl(file).bad == (
        (4, "the last line is cut off: Unterminated string starting at (column 19)"),
    )


def test_a_bad_row_is_a_counted_warning_of_the_run(file: Path) -> None:
    file.write_text(rows(40) + "oops\n" + "oops\n")
    data = load_data(JsonlData(path=str(file), evaluation_share=0.3), seed=1, evaluation_problems=4)
    (warning,) = data.warnings
    assert "set.jsonl: skipped 2 of 42 rows; the first is line 41: not JSON" in warning


# ---- files that are refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "set.jsonl is empty"),
        (b"\n \n", "set.jsonl is empty"),
        ("question".encode("utf-16"), "UTF-16 text"),
        (b"\xfe\xff\x00a", "UTF-16 text"),
        (pickle.dumps({"question": "a"}), "a Python pickle"),
        (gzip.compress(b"0" * 1000, mtime=0), "gzip-compressed"),
        (b"PAR1\x00\x00", "a Parquet file"),
        (b"PK\x03\x04rest", "a zip archive"),
    ],
)
def test_what_is_no_jsonl_is_refused_by_name(file: Path, content: bytes, message: str) -> None:
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        validate_jsonl(file)


def test_a_mostly_bad_file_is_refused_with_up_to_five_examples(file: Path) -> None:
    file.write_text(rows(3) + '{"prompt": "a", "answer": "1"}\n' * 7)
    with pytest.raises(DataError) as caught:
        validate_jsonl(file)
    message = str(caught.value)
    assert message.startswith(
        "set.jsonl: 7 of 10 rows cannot be used: line 4: columns found: `prompt`, `answer`"
    )
    assert message.count("needed:") == 5
    assert message.endswith("; and 2 more.")


def test_missing_file_and_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not there"):
        validate_jsonl(tmp_path / "nothing.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        validate_jsonl(tmp_path)
    with pytest.raises(DataError, match="not a regular file"):
        validate_jsonl("/dev/null")


def test_reported_rows_are_bounded_and_all_are_counted(file: Path) -> None:
    file.write_text(rows(1500) + "x\n" * 1200)
    report = validate_jsonl(file)
    assert report.bad_rows == 1200
    assert len(report.bad) == MAX_REPORTED_LINES


# ---- files that are used


def test_report_of_a_good_file(file: Path) -> None:
    content = (
        "\ufeff"
        + row("Naïve €?", "So.\n#### 1,234")
        + "\n"
        + row("A\x00b\ud800?", "#### 7 ")
        + row("x", "####5")
    )
    file.write_bytes(content.encode("utf-8", "surrogatepass"))
    report = validate_jsonl(file)
    import hashlib

    assert report.rows == 3
    assert report.bad == ()
    assert report.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert report.bytes == file.stat().st_size
    assert [(p.prompt, p.reference_answer) for p in report.examples] == [
        ("Naïve €?\n", "1,234"), ("A␀b\ufffd?\n", "7"), ("x\n", "5"),
    ]  # fmt: skip


def test_no_text_is_in_training_and_evaluation(file: Path) -> None:
    file.write_text(rows(200) + rows(200) + rows(50).replace("Question", " Question"))
    data = load_data(JsonlData(path=str(file), evaluation_share=0.2), seed=1, evaluation_problems=1000)
    held_out = {p.prompt for p in data.evaluation}
    training = {p.prompt for p in data.training.batch(1, 450)}
    assert 20 <= len(held_out) <= 60
    assert not held_out & training
    assert len(held_out | training) == 200
    assert any("fewer than the 1000 asked for" in warning for warning in data.warnings)


def test_side_of_a_question_depends_on_its_text_alone() -> None:
    sides = [is_held_out(f"Question {i}", 0.25) for i in range(4000)]
    assert sum(sides) / 4000 == pytest.approx(0.25, abs=0.03)
    assert is_held_out(" Question 7\n", 0.25) == is_held_out("Question 7", 0.25)


def test_evaluation_problems_do_not_depend_on_order_or_seed(file: Path) -> None:
    lines = rows(100).splitlines(keepends=True)
    file.write_text("".join(lines))
    first = load_data(JsonlData(path=str(file)), seed=1, evaluation_problems=5).evaluation
    file.write_text("".join(reversed(lines)))
    assert load_data(JsonlData(path=str(file)), seed=2, evaluation_problems=5).evaluation == first


def test_every_epoch_holds_every_problem_once_in_a_seeded_order(file: Path) -> None:
    file.write_text(rows(30))
    config = JsonlData(path=str(file), evaluation_share=0.2)

    def epochs(seed: int) -> list[list[str]]:
        training = load_data(config, seed=seed, evaluation_problems=3).training
        assert training.count is not None
        ids = [p.problem_id for step in range(1, 2 * training.count + 1) for p in training.batch(step, 3)]
        return [ids[i : i + training.count] for i in range(0, len(ids), training.count)]

    first = epochs(1)
    assert all(sorted(epoch) == sorted(first[0]) for epoch in first)
    assert len({tuple(epoch) for epoch in first}) == len(first)
    assert epochs(1) == first
    assert epochs(2) != first


@pytest.mark.parametrize("size", [2, 3, 7, 10, 16])
def test_no_batch_has_a_problem_twice_over_the_end_of_an_epoch(file: Path, size: int) -> None:
    file.write_text(rows(30))
    config = JsonlData(path=str(file), evaluation_share=0.2)
    training = load_data(config, seed=1, evaluation_problems=3).training
    assert training.count is not None
    assert size < training.count
    batches = [[p.problem_id for p in training.batch(step, size)] for step in range(1, 200)]
    assert all(len(set(batch)) == size for batch in batches)
    told = [name for batch in batches for name in batch]
    epochs = [told[i : i + training.count] for i in range(0, len(told) - training.count, training.count)]
    assert all(len(set(epoch)) == training.count for epoch in epochs)
    late = load_data(config, seed=1, evaluation_problems=3).training  # as a run that is resumed there
    assert [p.problem_id for p in late.batch(150, size)] == batches[149]
    assert [p.problem_id for p in late.batch(7, size)] == batches[6]


def test_a_batch_depends_on_its_step_alone(file: Path) -> None:
    file.write_text(rows(30))
    config = JsonlData(path=str(file), evaluation_share=0.2)
    steps = [load_data(config, seed=1, evaluation_problems=3).training.batch(step, 7) for step in (9, 2, 9)]
    training = load_data(config, seed=1, evaluation_problems=3).training
    assert steps == [training.batch(9, 7), training.batch(2, 7), training.batch(9, 7)]


def test_a_file_with_one_side_empty_is_refused(file: Path) -> None:
    file.write_text(rows(3))
    with pytest.raises(DataError, match="both need at least one"):
        load_data(JsonlData(path=str(file), evaluation_share=1e-9), seed=1, evaluation_problems=3)


def test_problems_that_do_not_fit_are_left_out_and_counted(file: Path) -> None:
    file.write_text(rows(60) + row("long " * 50, "#### 1") * 3)
    config = JsonlData(path=str(file), evaluation_share=0.2)
    letters = partial(load_data, seed=1, evaluation_problems=2, prompt_tokens=lambda p: len(p.prompt))
    data = letters(config, most_prompt=99)
    (warning,) = data.warnings
    assert warning.startswith(
        "set.jsonl: left out 3 of 63 problems, whose question and longest answer do not"
    )
    kept = [*data.training.batch(1, data.training.count or 0), *data.evaluation]
    assert not any("long" in problem.prompt for problem in kept)
    assert 0 < max(len(problem.prompt) for problem in kept) <= data.longest_prompt < 100
    with pytest.raises(DataError, match="not one of its 63 questions fits the model"):
        letters(config, most_prompt=0)


@pytest.mark.parametrize("config", [ChainData(operations=1), ChainData(operations=8), GraphData(people=6)])
def test_the_longest_generated_prompt_is_bounded_by_its_letters(
    config: ChainData | GraphData, tiny_reasoner: Policy
) -> None:
    def letters_and_end(problem: Problem) -> int:
        return len(problem.prompt.encode()) + 1

    data = load_data(config, seed=1, evaluation_problems=100, prompt_tokens=letters_and_end)
    seen = max(map(letters_and_end, (*data.evaluation, *data.training.batch(1, 500))))
    assert 0.8 * data.longest_prompt < seen <= data.longest_prompt
    assert load_data(config, seed=1, evaluation_problems=1).longest_prompt == 0


# ---- chain


def test_chain_streams_without_end_and_never_meets_its_evaluation() -> None:
    data = load_data(ChainData(operations=3), seed=4, evaluation_problems=50)
    batch = data.training.batch(3, 20)
    assert batch == [
        Problem(
            f"chain-3-train-4-{i}",
            problem_at(4, "train", i, 3).prompt,
            str(problem_at(4, "train", i, 3).answer),
            problem_at(4, "train", i, 3).solution,
        )
        for i in range(40, 60)
    ]
    assert data.training.count is None
    assert len(data.evaluation) == 50
    assert all(split_of(problem_at(0, "evaluation", i, 3)) == "evaluation" for i in range(50))
    assert data.evaluation == load_data(ChainData(operations=3), seed=9, evaluation_problems=50).evaluation


@given(st.binary(max_size=400))
def test_any_bytes_make_a_report_or_a_clear_refusal(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        report = validate_jsonl(path)
        assert report.rows > report.bad_rows


def test_a_column_whose_name_no_database_holds_is_named_all_the_same(file: Path) -> None:
    file.write_text(rows(40) + '{"\\ud800\\u0000": 1}\n')
    report = validate_jsonl(file)
    ((_, message),) = report.bad
    assert "`\ufffd\u2400`" in message
