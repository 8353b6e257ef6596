from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from trainer.data import DataError, load_data
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


def test_long_prompts_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [(f"What is {i}?", f"#### {i}") for i in range(60)] + [("long " * 30, "#### 1")]
    config = jsonl(tmp_path / "a.jsonl", rows).model_copy(update={"max_prompt_tokens": 20})
    found = load(config, prompt_tokens=lambda problem: len(problem.prompt.split()))
    assert found.warnings == ("a.jsonl: left out 1 of 61 problems, whose prompt is longer than 20 tokens.",)
