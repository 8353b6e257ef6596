"""Rows into a file: JSON lines, CSV, Parquet. One row, or one batch of rows, is in memory at a time."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any, BinaryIO, Protocol

import orjson

from trainer.tree_rows import NODE_COLUMNS, Row

# A spreadsheet takes a cell that starts so for a formula; the last four are the same signs in full width.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
WHERE_COLUMNS = {"run": str, "run_id": int, "step": int, "index": int, "tree": int, "problem_id": str}
COLUMNS = {**WHERE_COLUMNS, **NODE_COLUMNS}
PARQUET_BATCH_ROWS = 2000
PARQUET_BATCH_LETTERS = 8_000_000


class Writer(Protocol):
    """Writes rows one after the other; `close` writes what was held back and leaves the stream open."""

    def write(self, row: Row) -> None: ...
    def close(self) -> None: ...


class JsonLines:
    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, row: Row) -> None:
        self._stream.write(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))

    def close(self) -> None:
        pass


class Csv:
    """RFC 4180, UTF-8, with a header. What is missing is empty."""

    def __init__(self, stream: BinaryIO, columns: Sequence[str] = tuple(COLUMNS)) -> None:
        self._text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
        self._columns = columns
        self._writer = csv.writer(self._text)
        self._writer.writerow(columns)

    def write(self, row: Row) -> None:
        self._writer.writerow([cell(row[name]) for name in self._columns])

    def close(self) -> None:
        self._text.detach()


def cell(value: Any) -> Any:
    """Text that a spreadsheet would run gets an apostrophe before it; numbers stay numbers. `Any`: a cell."""
    if value is None:
        return ""
    if isinstance(value, str) and value.startswith(FORMULA_STARTS):
        return f"'{value}"
    return value


class Parquet:
    """Through pyarrow, which comes with `datasets`; only workers have it."""

    def __init__(self, stream: BinaryIO) -> None:
        import pyarrow
        import pyarrow.parquet

        self._arrow = pyarrow
        types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
        self._schema = pyarrow.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
        self._writer = pyarrow.parquet.ParquetWriter(stream, self._schema, compression="zstd")
        self._rows: list[Row] = []
        self._letters = 0

    def write(self, row: Row) -> None:
        self._rows.append(row)
        self._letters += len(row["text"])
        if len(self._rows) >= PARQUET_BATCH_ROWS or self._letters >= PARQUET_BATCH_LETTERS:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(self._arrow.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._letters = [], 0

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()
