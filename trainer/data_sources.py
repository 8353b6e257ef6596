"""Rows of Parquet files and of data sets by name. Heavy libraries, imported only where they are asked for.

Nothing of a data set is run: no loading scripts, no pickles; rows are checked one by one like those of a
JSONL file (`trainer.data`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from trainer.data import DataError, RowForm

MOST_FILE_BYTES: Final = 64 * 2**30
MOST_ROWS: Final = 20_000_000
BATCH_ROWS: Final = 1024


def parquet_rows(path: Path, form: RowForm) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, the row's needed columns) of a file, or of all files of a folder in the order of names.

    Raises DataError when there is no such file, when it is no Parquet, or when a column is missing.
    """
    import pyarrow
    import pyarrow.parquet

    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
        if not files:
            raise DataError(f"{path} holds no .parquet file.")
    elif path.is_file():
        files = [path]
    else:
        raise DataError(f"{path} is not there. Expected a .parquet file or a folder of them.")
    number = 0
    for file in files:
        if file.stat().st_size > MOST_FILE_BYTES:
            raise DataError(f"{file.name} is larger than {MOST_FILE_BYTES // 2**30} GiB.")
        try:
            with pyarrow.parquet.ParquetFile(file) as source:
                names = source.schema_arrow.names
                missing = [name for name in form.columns if name not in names]
                if missing:
                    raise DataError(
                        f"{file.name} has no column `{missing[0]}`. Its columns: "
                        f"{', '.join(f'`{name}`' for name in names[:20])}. Set data.question_column and "
                        "data.answer_column."
                    )
                for batch in source.iter_batches(BATCH_ROWS, columns=list(form.columns)):
                    for row in batch.to_pylist():
                        number += 1
                        if number > MOST_ROWS:
                            raise DataError(f"{path.name} has more than {MOST_ROWS:,} rows.")
                        yield number, row
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(
                f"{file.name} cannot be read as Parquet: {str(error).splitlines()[0][:300]}"
            ) from error


def hub_rows(name: str, subset: str, split: str, form: RowForm) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, row) of a data set by its name, or of a local folder that `datasets` reads.

    Raises DataError with what `datasets` says: no network, no such name, subset or split, or a missing
    column.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(name, subset or None, split=split)
    except Exception as error:  # whatever the library raises; each means: these rows are not to be had
        what = (str(error).splitlines() or ["no message"])[0][:300]
        raise DataError(
            f"The data set {name!r} (split {split!r}) cannot be loaded: {type(error).__name__}: {what}"
        ) from error
    missing = [column for column in form.columns if column not in loaded.column_names]
    if missing:
        raise DataError(
            f"The data set {name!r} has no column `{missing[0]}`. Its columns: "
            f"{', '.join(f'`{column}`' for column in loaded.column_names[:20])}. Set "
            f"data.question_column and "
            "data.answer_column."
        )
    if len(loaded) > MOST_ROWS:
        raise DataError(f"The data set {name!r} has more than {MOST_ROWS:,} rows.")
    for number, row in enumerate(loaded.select_columns(list(form.columns)), 1):
        yield number, dict(row)
