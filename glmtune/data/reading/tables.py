"""Rows of Arrow's tables, parquet among them, each as the JSON text that the row would be in a `.jsonl` file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow
from pyarrow import parquet

from glmtune.console import notice
from glmtune.data.formats import AUTO
from glmtune.data.formats.pairs import CHAT_KEYS
from glmtune.data.parts.tools import ARGUMENT_KEYS
from glmtune.errors import GlmtuneError

from .cell_sizes import MAX_ROWS_PER_BYTE, slices, written_out
from .foreign_files import refuse_foreign
from .row import TOO_LONG, Row, row_from_bytes
from .streams import first_bytes, for_arrow, unreadable

_STRUCT_OF_ARGUMENTS = re.compile(rf"\b(?:{'|'.join(ARGUMENT_KEYS)}): struct<")
ROWS_PER_BATCH = 1_000
PARQUET, ARROW_FILE, ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
"""First bytes of the files that are read here."""


def _as_text(value: Any) -> str:
    """Return the text of a value that JSON has no type for and that has one usual spelling."""
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, (Decimal, UUID)):
        return str(value)
    if isinstance(value, bytes):
        return value.decode()  # what other programs call binary is often text
    raise TypeError(f"JSON has no {type(value).__name__}")


_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_as_text)


def parquet_rows(path: Path, null_columns: Collection[str] = CHAT_KEYS) -> Iterator[Row]:
    """Yield the rows of a parquet file, numbered from 1; see `batch_rows`."""
    return _numbered_rows(path, _parquet_batches, "a parquet file", (PARQUET,), null_columns)


def arrow_rows(path: Path, null_columns: Collection[str] = CHAT_KEYS) -> Iterator[Row]:
    """Yield the rows of an Arrow file or stream, such as `save_to_disk` of `datasets` writes, numbered from 1."""
    return _numbered_rows(path, _arrow_batches, "an Arrow file", (ARROW_FILE, ARROW_STREAM), null_columns)


def _numbered_rows(
    path: Path,
    batches: Callable[[Path], Iterator[pyarrow.RecordBatch]],
    expected: str,
    beginnings: tuple[bytes, ...],
    null_columns: Collection[str],
) -> Iterator[Row]:
    done, most = 0, MAX_ROWS_PER_BYTE * max(1_000, path.stat().st_size)
    is_noted = False
    try:
        for batch in batches(path):
            if not is_noted and _drops_nulls_of_calls(batch):
                is_noted = True
                notice(
                    f"`{path}` holds arguments of calls as columns, in which a null that was written looks like one of "
                    "another call: nulls are left out; arguments as JSON text keep theirs"
                )
            yield from batch_rows(batch, str(path), done + 1, null_columns)
            done += batch.num_rows
            if done > most:
                raise GlmtuneError(
                    f"the file claims to have more than {most:,} rows, and has no room for them",
                    where=str(path),
                    fix="take it from where it came from again",
                )
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: names that are not UTF-8
        if not done and not first_bytes(path).startswith(beginnings):
            refuse_foreign(first_bytes(path), path, expected)  # such as a page that says that the file is elsewhere
        raise unreadable(f"{path}:row {done + 1}" if done else str(path), error) from None


def _parquet_batches(path: Path) -> Iterator[pyarrow.RecordBatch]:
    texts = _text_columns(path)
    with parquet.ParquetFile(for_arrow(path), buffer_size=1 << 20, read_dictionary=texts) as file:
        check_names(file.schema_arrow.names, str(path))
        yield from file.iter_batches(batch_size=ROWS_PER_BATCH)


def _text_columns(path: Path) -> list[str]:
    """Return the columns of texts, which are read as they are written: each once, however many rows show it."""
    with parquet.ParquetFile(for_arrow(path)) as file:
        columns = [file.schema.column(index) for index in range(len(file.schema))]
    return [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]


def _arrow_batches(path: Path) -> Iterator[pyarrow.RecordBatch]:
    """Yield the batches of a file, which has a table of contents at its end, or of a stream, which has none."""
    source = for_arrow(path)
    with pyarrow.memory_map(source) if isinstance(source, str) else source as file:
        if file.read(len(ARROW_FILE)) == ARROW_FILE:
            reader = pyarrow.ipc.open_file(file)
            whole: Iterator[pyarrow.RecordBatch] = map(reader.get_batch, range(reader.num_record_batches))
        else:
            file.seek(0)
            whole = reader = pyarrow.ipc.open_stream(file)
        check_names(reader.schema.names, str(path))
        for batch in whole:
            # A damaged file may name places that are not in it: Arrow itself would look there.
            batch.validate(full=True)
            for start in range(0, batch.num_rows, ROWS_PER_BATCH):
                yield batch.slice(start, ROWS_PER_BATCH)


def _drops_nulls_of_calls(batch: pyarrow.RecordBatch) -> bool:
    """Whether some call of a batch has arguments in a struct, and a null among them."""
    columns = [column for column in batch.columns if _STRUCT_OF_ARGUMENTS.search(str(column.type))]
    try:
        return any(_has_null_argument(column.to_pylist(maps_as_pydicts="strict")) for column in columns)
    except (ValueError, TypeError, KeyError, OverflowError):
        return False  # a cell that cannot become a Python value, which costs its own row


def _has_null_argument(value: Any, key: str = "") -> bool:
    if isinstance(value, list):
        return any(_has_null_argument(each, key) for each in value)
    if not isinstance(value, dict):
        return False
    is_null = key in ARGUMENT_KEYS and None in value.values()
    return is_null or any(_has_null_argument(each, name) for name, each in value.items())


def batch_rows(
    batch: pyarrow.RecordBatch, source: str, first: int, null_columns: Collection[str] = CHAT_KEYS
) -> Iterator[Row]:
    """Yield the rows of an Arrow batch.

    Arrow gives every struct of a column the keys of all the others, with nulls for what the row did not have, so
    nulls in structs and empty columns are left out. A null that was written on purpose, in the arguments of a tool,
    say, is lost with them: such rows travel exactly as JSON text alone.

    Args:
        batch: Of a table.
        source: Its name, for errors.
        first: The number of its first row.
        null_columns: Columns that stay in a row where they are null: that they are there says something.
    """
    for part, is_too_long in slices(batch):
        if is_too_long:
            yield Row(where=f"{source}:row {first}", text="", problem=TOO_LONG)
        else:
            yield from _part_rows(written_out(part), source, first, null_columns)
        first += part.num_rows


def _part_rows(batch: pyarrow.RecordBatch, source: str, first: int, null_columns: Collection[str]) -> Iterator[Row]:
    """Yield the rows of a batch that has room in memory."""
    try:
        values = batch.to_pylist(maps_as_pydicts="strict")
    except (ValueError, TypeError, KeyError, OverflowError):
        values = []  # some cell cannot become a Python value: every row is tried alone below
    for index in range(batch.num_rows):
        where = f"{source}:row {first + index}"
        try:
            value = values[index] if values else batch.slice(index, 1).to_pylist(maps_as_pydicts="strict")[0]
            text = _row_json(value, null_columns)
        except (ValueError, TypeError, KeyError, OverflowError):
            text, problem = _cell_by_cell(batch, index, null_columns)
            if problem:
                yield Row(where=where, text="", problem=problem)
                continue
        yield row_from_bytes(where, text.encode())


def check_names(names: Sequence[str], where: str) -> None:
    """Raise where two columns of a table have one name, or none."""
    nameless = [str(number) for number, name in enumerate(names, start=1) if not name]
    if len(nameless) > 1:
        places = f"{', '.join(nameless[:-1])} and {nameless[-1]}"
        raise GlmtuneError(f"columns {places} have no name", where=where, fix="name them, or take them away")
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise GlmtuneError(f"there are two columns `{twice}`", where=where, fix="give every column a name of its own")


def _to_json(value: Any) -> str:
    return _JSON.encode(_without_nulls(value))


def _row_json(row: dict[str, Any], null_columns: Collection[str]) -> str:
    return _JSON.encode(
        {key: _without_nulls(each) for key, each in row.items() if each is not None or key in null_columns}
    )


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def _cell_by_cell(batch: pyarrow.RecordBatch, index: int, null_columns: Collection[str]) -> tuple[str, str]:
    """Return the text of a row some of whose cells JSON cannot hold, or the problem where such a cell is needed.

    What no format reads costs the row nothing: a cell that is no number is left out as null is, and of any other one
    the reason stays in its place, for the column to be told, or to be refused where it is a weight.
    """
    row = {}
    for name, column in zip(batch.schema.names, batch.columns):
        try:
            value = column[index].as_py(maps_as_pydicts="strict")
            if name not in null_columns and name not in AUTO.row_keys and value != value:
                continue  # NaN, which pandas has for what is missing
            _to_json(value)
            row[name] = value
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            reason = error.args[0] if isinstance(error, KeyError) else error
            if name in null_columns or name in AUTO.row_keys:
                problem = f"column `{name}` is no text, number or list: {reason}; cast it to text, or take it away"
                return "", problem
            row[name] = f"({reason})"
    return _row_json(row, null_columns), ""
