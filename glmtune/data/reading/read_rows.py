"""Files to rows that know where they came from: `file:line`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from glmtune.data.formats import AUTO, RowFormat
from glmtune.data.formats.pairs import CHAT_KEYS
from glmtune.errors import GlmtuneError
from glmtune.files.missing import missing_rows
from glmtune.text.visible_text import printable

from .csv_files import ANSWERS, LIST_COLUMNS, TEXT_OR_MESSAGES, Columns, csv_rows
from .hub import hub_rows
from .json_files import json_rows
from .row import Reject, Row
from .sources import find_data_file, kind_of
from .streams import COMPRESSIONS, suffix_of
from .tables import arrow_rows, parquet_rows

__all__ = ["Reject", "Row", "find_data_file", "read_rows"]


def read_rows(source: Path | str, row_format: RowFormat = AUTO) -> Iterator[Row]:
    """Yield every row of a file in order, or of a split on the hub where `source` is text; blank lines are skipped.

    One row at a time is held in memory, but for a file that is one JSON array or object, which is read whole. A row
    that is no text carries its problem; a file that cannot be read raises `GlmtuneError`. The format tells what columns
    of a table hold JSON, and whether an object that a file consists of is a row.
    """
    if isinstance(source, str):
        yield from hub_rows(source, _null_columns(row_format))
        return
    rows = _rows_of_file(source, row_format)
    if printable(str(source)) == str(source):
        yield from rows
    else:
        # Where a row stands goes into files, which cannot hold all that a name may.
        yield from (row._replace(where=printable(row.where)) for row in rows)


def _rows_of_file(source: Path, row_format: RowFormat) -> Iterator[Row]:
    kind = kind_of(source)
    if kind != "file":
        if kind == "nothing":
            raise missing_rows(str(source))
        raise GlmtuneError(f"data file `{source}` is a folder; expected a file")
    suffix = suffix_of(source)
    if suffix in (".csv", ".tsv"):
        kinds = (LIST_COLUMNS, TEXT_OR_MESSAGES, ANSWERS, row_format.row_keys)
        yield from csv_rows(source, Columns(*map(row_format.own_names, kinds)))
    elif suffix in (".parquet", ".arrow"):
        if source.suffix.lower() in COMPRESSIONS:
            name = {".parquet": "parquet is compressed inside", ".arrow": "Arrow files are mapped into memory"}[suffix]
            raise GlmtuneError(f"{name}; expected no other compression", where=str(source), fix="unpack the file")
        table_rows = parquet_rows if suffix == ".parquet" else arrow_rows
        yield from table_rows(source, _null_columns(row_format))
    else:
        yield from json_rows(source, row_format)


def _null_columns(row_format: RowFormat) -> set[str]:
    """Return the columns that are in a row though they are null there: those of chats, and those that were named."""
    return {*row_format.own_names(CHAT_KEYS), *row_format.columns.values()}
