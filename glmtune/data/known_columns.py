"""Columns that are known by their names: what a file calls the keys of a format, as far as its first rows tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path

from glmtune.console import notice

from . import json_text
from .conversation import Conversation, RowError
from .formats import AUTO, RowFormat, guessed_columns
from .reading.read_rows import read_rows
from .reading.row import Row

NUM_ROWS_TRIED = 50


def first_rows(paths: Iterable[Path | str]) -> list[Row]:
    """Return the rows by which columns are known."""
    return list(islice(chain.from_iterable(map(read_rows, paths)), NUM_ROWS_TRIED))


def columns_by_name(rows: Iterable[Row]) -> dict[str, str]:
    """Return what rows call the keys of a format, and say so; nothing where they are read as they are, or not at all.

    Args:
        rows: The first of a file. As soon as one of them is in a known format, all are read so.
    """
    rows = list(rows)
    if any(is_read(row, AUTO) for row in rows):
        return {}
    guesses = Counter(tuple(guess.items()) for guess in map(_guess, rows) if guess)
    for guess, _ in guesses.most_common():
        columns = dict(guess)
        if any(is_read(row, RowFormat(columns=columns)) for row in rows):
            told = ", ".join(f"`{own}` as `{key}`" for key, own in columns.items())
            notice(f"columns are read by their names: {told}; `--column KEY=NAME` says otherwise")
            return columns
    return {}


def is_read(row: Row, row_format: RowFormat) -> bool:
    """Whether a row holds something to train on, read so."""
    return any(isinstance(part, Conversation) for part in row.parts(row_format))


def _guess(row: Row) -> dict[str, str]:
    try:
        value = json_text.parse(row.text)
    except RowError:
        return {}
    return guessed_columns(value) if isinstance(value, dict) else {}
