from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from trainer.data import DataError, RowForm, load_data
from trainer.data_sources import _rows_at_once
from trainer.schema.data import HubData, JsonlData, ParquetData


def table(n: int = 80, **columns: list[Any]) -> Any:
    rows = {
        "question": [f"What is {i} + 1?" for i in range(n)],
        "answer": [f"{i}+1={i + 1}\n#### {i + 1}" for i in range(n)],
    }
    return pyarrow.table(rows | columns)


def load(config: Any, **more: Any) -> Any:
    return load_data(config, seed=1, evaluation_problems=5, **more)


def test_a_parquet_file_and_a_folder_of_them_give_problems(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(table(), tmp_path / "b.parquet")
    one = load(ParquetData(path=str(tmp_path / "b.parquet")))
    problem = one.training.batch(1, 1)[0]
    assert problem.prompt.startswith("What is ")
    assert problem.prompt.endswith("?\n")
    assert problem.solution.endswith(f"#### {problem.reference_answer}")
    folder = load(ParquetData(path=str(tmp_path)))
    assert folder.evaluation == one.evaluation


def test_columns_form_and_template(tmp_path: Path) -> None:
    data = table(
        problem=[f"P{i}" for i in range(80)], result=list(range(80)), worked=[f"so {i}" for i in range(80)]
    )
    pyarrow.parquet.write_table(data, tmp_path / "a.parquet")
    config = ParquetData(
        path=str(tmp_path / "a.parquet"),
        question_column="problem",
        answer_column="result",
        answer_form="plain",
        solution_column="worked",
        template="Q: {question}\nA:",
    )
    problem = load(config).training.batch(1, 1)[0]
    number = problem.reference_answer
    assert problem.prompt == f"Q: P{number}\nA:"
    assert problem.solution == f"so {number}"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: None, "is not there"),
        (lambda p: p.write_bytes(b"PAR1 not really"), "cannot be read as Parquet"),
        (lambda p: p.write_bytes(b"\x80\x04pickle"), "cannot be read as Parquet"),
        (lambda p: pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), p), "has no column `question`"),
        (
            lambda p: pyarrow.parquet.write_table(
                pyarrow.table({"question": [1, 2], "answer": ["x", "y"]}), p
            ),
            "`question` is a JSON number, expected text",
        ),
        (lambda p: p.mkdir(), "holds no .parquet file"),
    ],
)
def test_bad_parquet_is_refused_in_words(tmp_path: Path, make: Any, sentence: str) -> None:
    path = tmp_path / "x.parquet"
    make(path)
    with pytest.raises(DataError, match=sentence):
        load(ParquetData(path=str(path)))


def test_a_row_that_is_no_text_is_counted_and_the_rest_is_used(tmp_path: Path) -> None:
    texts = pyarrow.array([f"What is {i} + 1?".encode() for i in range(80)] + [b"\xff?"])
    torn = pyarrow.StringArray.from_buffers(len(texts), *texts.buffers()[1:])
    data = pyarrow.table({"question": torn, "answer": ["#### 1"] * 81})
    pyarrow.parquet.write_table(data, tmp_path / "a.parquet")
    (warning,) = load(ParquetData(path=str(tmp_path / "a.parquet"))).warnings
    assert warning == "a.parquet: skipped 1 of 81 rows; the first is row 81: not UTF-8 (byte 1 is 0xff)."


@pytest.mark.parametrize(
    ("value", "expected"),
    [(7, "7"), (10**18, "1" + "0" * 18), (0.1, "0.1"), (1e16, "1" + "0" * 16), (Decimal("1.50"), "1.50")],
)
def test_plain_numbers_are_written_out(tmp_path: Path, value: Any, expected: str) -> None:
    pyarrow.parquet.write_table(table(answer=[value] * 80), tmp_path / "a.parquet")
    config = ParquetData(path=str(tmp_path / "a.parquet"), answer_form="plain")
    assert load(config).training.batch(1, 1)[0].reference_answer == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_no_reference(tmp_path: Path, value: float) -> None:
    pyarrow.parquet.write_table(table(answer=[1.0] * 79 + [value]), tmp_path / "a.parquet")
    (warning,) = load(ParquetData(path=str(tmp_path / "a.parquet"), answer_form="plain")).warnings
    assert f"row 80: `answer` is {value}, expected a finite number" in warning
    path = tmp_path / "b.jsonl"
    path.write_text('{"question": "a", "answer": 1e400}\n{"question": "b", "answer": 1}\n' * 2 + "{}")
    with pytest.raises(DataError, match="`answer` is inf, expected a finite number"):
        load(JsonlData(path=str(path), answer_form="plain"))


def test_small_files_that_unfold_without_end_are_refused_or_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.parquet"
    config = ParquetData(path=str(path))
    # One value of 40 MB.
    pyarrow.parquet.write_table(
        pyarrow.table({"question": ["a" * 40_000_000], "answer": ["#### 1"]}), path, compression="zstd"
    )
    assert path.stat().st_size < 20_000
    with pytest.raises(
        DataError, match=r"1 rows of column `question` unfold to 40,000,\d+ bytes; a value may"
    ):
        load(config)
    # One value of 4 MB that a dictionary holds once for a thousand rows.
    once = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1000), ["b" * 4_000_000])
    bomb = pyarrow.table({"question": once, "answer": ["#### 1"] * 1000})
    pyarrow.parquet.write_table(
        bomb, path, compression="zstd", store_schema=False, dictionary_pagesize_limit=2**30
    )
    assert path.stat().st_size < 20_000
    with pyarrow.parquet.ParquetFile(path) as file:
        assert _rows_at_once(file.metadata, RowForm(), "bomb.parquet") == 2**28 // 4_000_055
    monkeypatch.setattr("trainer.data_sources.PIECE_BYTES", 2**23)
    monkeypatch.setattr("trainer.data.MOST_LETTERS", 50_000_000)
    with pytest.raises(DataError, match="GiB of text"):
        load(config)


def test_columns_that_are_not_needed_may_be_of_any_size(tmp_path: Path) -> None:
    data = table(2000, picture=["a" * 100_000] * 2000)
    pyarrow.parquet.write_table(data, tmp_path / "a.parquet", use_dictionary=False)
    with pyarrow.parquet.ParquetFile(tmp_path / "a.parquet") as file:
        assert _rows_at_once(file.metadata, RowForm(), "a.parquet") == 1024


@pytest.mark.parametrize("name", ["a.txt", "set.py", "a.pkl", "a.tar", "../elsewhere"])
def test_only_rows_are_read_of_a_data_set_and_no_code(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    proof = tmp_path / "proof"
    if name.startswith(".."):
        (folder / "README.md").write_text("---\nconfigs:\n- config_name: x\n  data_files: /etc/passwd\n---\n")
    elif name.endswith("tar"):
        import tarfile

        (folder / "x.txt").write_text("a")
        with tarfile.open(folder / name, "w") as tar:
            tar.add(folder / "x.txt", "1.txt")
        (folder / "x.txt").unlink()
    else:
        (folder / name).write_text(f"open({str(proof)!r}, 'w')\n")
    with pytest.raises(DataError, match=r"cannot be loaded|is read by"):
        load(HubData(name=str(folder)))
    assert not proof.exists()


def test_a_data_set_is_loaded_by_name_here_from_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    pyarrow.parquet.write_table(table(), folder / "train.parquet")
    found = load(HubData(name=str(folder)))
    assert len(found.evaluation) == 5
    with pytest.raises(DataError, match="cannot be loaded"):
        load(HubData(name=str(folder), split="nothing"))
    with pytest.raises(DataError, match="has no column `q`"):
        load(HubData(name=str(folder), question_column="q"))
    with pytest.raises(DataError, match="cannot be loaded"):
        load(HubData(name=str(tmp_path / "missing")))


def jsonl(path: Path, rows: list[tuple[str, str]]) -> JsonlData:
    import json

    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))
    return JsonlData(path=str(path), evaluation_share=0.3)


def test_repeats_and_held_out_questions_in_other_letters_are_counted_and_left_out(tmp_path: Path) -> None:
    rows = [(f"What is {i}?", f"#### {i}") for i in range(60)]
    plain = load(jsonl(tmp_path / "a.jsonl", rows))
    held_out = {
        p.prompt.strip()
        for p in load_data(jsonl(tmp_path / "a.jsonl", rows), seed=1, evaluation_problems=60).evaluation
    }
    shouted = [(q.upper(), a) for q, a in rows]
    found = load(jsonl(tmp_path / "b.jsonl", [*rows, *rows[:4], *shouted]))
    assert any("4 of 124 rows repeat an earlier question" in warning for warning in found.warnings)
    assert any("held-out ones but for blanks and capitals" in warning for warning in found.warnings)
    lower = {q.casefold() for q in held_out}
    assert not any(p.prompt.strip().casefold() in lower for p in found.training.batch(1, 200))
    assert plain.warnings == ()


def test_the_template_does_not_decide_what_is_held_out(tmp_path: Path) -> None:
    rows = [(f"What is {i}?", f"#### {i}") for i in range(60)]
    plain = load(jsonl(tmp_path / "a.jsonl", rows))
    for template in ("Q: {question}\nA:", "{question}", "Think.\n{question}\n"):
        other = load(jsonl(tmp_path / "a.jsonl", rows).model_copy(update={"template": template}))
        assert [p.problem_id for p in other.evaluation] == [p.problem_id for p in plain.evaluation]
        assert other.sha256 != plain.sha256 or template == "{question}\n"


def test_how_long_evaluations_may_answer_does_not_decide_what_is_trained_on(tmp_path: Path) -> None:
    rows = [(f"What is {i}?", f"#### {i}") for i in range(60)]
    config = jsonl(tmp_path / "a.jsonl", rows)
    everything, held_out = load(config), load_data(config, seed=1, evaluation_problems=60).evaluation
    some = load_data(
        config,
        seed=1,
        evaluation_problems=60,
        prompt_tokens=lambda p: 1 if p.problem_id > held_out[3].problem_id else 9,
        most_evaluation_prompt=8,
    )
    assert some.evaluation == held_out[4:]
    assert some.sha256 == everything.sha256
    assert "left out 4 of 60 problems" in some.warnings[0]


def test_the_hash_of_the_data_is_of_what_is_trained_on_and_its_order(tmp_path: Path) -> None:
    rows = [(f"What is {i}?", f"#### {i}") for i in range(60)]
    first = load(jsonl(tmp_path / "a.jsonl", rows))
    assert load(jsonl(tmp_path / "b.jsonl", rows)).sha256 == first.sha256
    assert load(jsonl(tmp_path / "c.jsonl", rows[::-1])).sha256 != first.sha256
    taught = {p.prompt.strip() for p in first.training.batch(1, first.training.count)}
    changed = [(q, a + "1" if q in taught else a) for q, a in rows]
    assert load(jsonl(tmp_path / "d.jsonl", changed)).sha256 != first.sha256


def test_long_prompts_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [(f"What is {i}?", f"#### {i}") for i in range(60)] + [("long " * 30, "#### 1")]
    config = jsonl(tmp_path / "a.jsonl", rows).model_copy(update={"max_prompt_tokens": 20})
    found = load(config, prompt_tokens=lambda problem: len(problem.prompt.split()))
    assert found.warnings == ("a.jsonl: left out 1 of 61 problems, whose prompt is longer than 20 tokens.",)
