"""Rows of Parquet files and of data sets by name. Heavy libraries, imported only where they are asked for.

Nothing of a data set is run: no loading scripts, no pickles; rows are checked one by one like those of a
JSONL file (`trainer.data`). A small file may unfold into more than memory holds, so its sizes are looked at
before it is read, and it is read in small pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from trainer.data import MAX_LINE_BYTES, DataError, RowForm

MOST_FILE_BYTES: Final = 64 * 2**30
MOST_ROWS: Final = 20_000_000
MOST_CHUNK_BYTES: Final = 2**31  # of one column of one row group, unfolded
PIECE_BYTES: Final = 2**28
PIECE_ROWS: Final = 1024
BUILDERS: Final = ("arrow", "csv", "json", "parquet")


Row = dict[str, Any] | str
"""A row's needed columns, or what is wrong with it. `Any`: whatever a column holds."""


def parquet_rows(path: Path, form: RowForm) -> Iterator[tuple[int, Row]]:
    """(number from 1, row) of a file, or of all files of a folder in the order of names.

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
                rows = _rows_at_once(source.metadata, form, file.name)
                for batch in source.iter_batches(rows, columns=list(form.columns)):
                    for row in _rows_of(batch):
                        number += 1
                        if number > MOST_ROWS:
                            raise DataError(f"{path.name} has more than {MOST_ROWS:,} rows.")
                        yield number, row
        except (pyarrow.ArrowException, OSError, MemoryError) as error:
            what = (str(error).splitlines() or [type(error).__name__])[0][:300]
            raise DataError(f"{file.name} cannot be read as Parquet: {what}") from error


def _rows_of(batch: Any) -> list[Row]:
    """`Any`: pyarrow has no types."""
    try:
        rows: list[Row] = batch.to_pylist()
    except UnicodeDecodeError:  # in some row; text in Arrow is not checked by itself
        rows = []
        for number in range(batch.num_rows):
            try:
                rows += batch.slice(number, 1).to_pylist()
            except UnicodeDecodeError as error:
                rows.append(f"not UTF-8 (byte {error.start + 1} is {error.object[error.start]:#04x})")
    return rows


def _rows_at_once(metadata: Any, form: RowForm, name: str) -> int:
    """How many rows to unfold at a time. `Any`: pyarrow has no types. Raises DataError.

    A dictionary holds a long value once for many rows, and each row unfolds it again; no value is longer than
    its column's chunk.
    """
    largest = 1
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for place in range(group.num_columns):
            chunk = group.column(place)
            if chunk.path_in_schema.partition(".")[0] not in form.columns:
                continue
            size = int(chunk.total_uncompressed_size)
            if size > MOST_CHUNK_BYTES:
                raise DataError(
                    f"{name}: column `{chunk.path_in_schema}` of row group {number + 1} unfolds to {size:,} "
                    f"bytes, more than {MOST_CHUNK_BYTES:,}. Write the file with smaller row groups."
                )
            if size > MAX_LINE_BYTES * max(1, group.num_rows):
                raise DataError(
                    f"{name}: {group.num_rows} rows of column `{chunk.path_in_schema}` unfold to {size:,} "
                    f"bytes; a value may have {MAX_LINE_BYTES:,}."
                )
            largest = max(largest, size)
    return max(1, min(PIECE_ROWS, PIECE_BYTES // largest))


def hub_rows(name: str, subset: str, split: str, form: RowForm) -> Iterator[tuple[int, Row]]:
    """(number from 1, row) of a data set by its name, or of a local folder that `datasets` reads.

    Raises DataError with what `datasets` says: no network, no such name, subset or split, or a missing
    column.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        builder = datasets.load_dataset_builder(name, subset or None)
        if builder.name not in BUILDERS:
            raise DataError(
                f"The data set {name!r} is read by `{builder.name}`; expected one of {', '.join(BUILDERS)}. "
                "Save its rows as Parquet."
            )
        builder.download_and_prepare()
        loaded = builder.as_dataset(split=split)
    except DataError:
        raise
    except Exception as error:  # whatever the library raises; each means: these rows are not to be had
        what = (str(error).splitlines() or ["no message"])[0][:300]
        raise DataError(
            f"The data set {name!r} (split {split!r}) cannot be loaded: {type(error).__name__}: {what}"
        ) from error
    missing = [column for column in form.columns if column not in loaded.column_names]
    if missing:
        raise DataError(
            f"The data set {name!r} has no column `{missing[0]}`. Its columns: "
            f"{', '.join(f'`{column}`' for column in loaded.column_names[:20])}. Set data.question_column "
            "and data.answer_column."
        )
    if len(loaded) > MOST_ROWS:
        raise DataError(f"The data set {name!r} has more than {MOST_ROWS:,} rows.")
    for number, row in enumerate(loaded.select_columns(list(form.columns)), 1):
        yield number, dict(row)
