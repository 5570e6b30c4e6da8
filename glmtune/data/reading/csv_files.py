"""Rows of `.csv` and `.tsv` files, each as the JSON text that the row would be in a `.jsonl` file."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from glmtune.console import notice
from glmtune.data import json_text
from glmtune.data.conversation import RowError
from glmtune.data.formats.preference import CHOSEN_KEYS, REJECTED_KEYS
from glmtune.errors import GlmtuneError
from glmtune.files.text_encoding import is_utf8

from .row import MAX_ROW_BYTES, Row, bytes_problem, row_from_bytes
from .streams import note_encoding, open_data, read_lines, suffix_of
from .tables import check_names

LIST_COLUMNS = ("messages", "conversations", "history")
"""Keys whose value is a list in every format, so that a cell of text below them is JSON."""

TEXT_OR_MESSAGES = ("prompt", "completion", "input", "output", "response", *CHOSEN_KEYS, *REJECTED_KEYS)
"""Keys whose value is a text or messages: a cell that is the text of messages is read as these, any other as text."""

ANSWERS = ("output", "response", "completion", "answer", "target", "summary", "text", *CHOSEN_KEYS)
"""Keys whose cells are answers, which stay as they are whatever they say."""

NOTHING = frozenset(("nan", "null", "nat", "<na>", "#n/a"))
"""What pandas and spreadsheets write where there is nothing, in small letters; `None`, too, as Python has it."""

DELIMITERS = {
    ",": "commas",
    "\t": "tabs",
    ";": "semicolons",
    "|": "vertical bars (`|`)",
    "，": "full-width commas (`，`)",
    "；": "full-width semicolons (`；`)",
    "^": "circumflexes (`^`)",
    "~": "tildes (`~`)",
    "\x01": "the control character 1, as Hive writes them",
}
"""What parts the cells of a line, and what to call it."""

MIN_RECORDS, MIN_SHARE_OF_RECORDS, MAX_RECORDS_TRIED = 3, 0.9, 200
"""So many records, and such a share of the first ones, must have as many cells as the header where it is parted by
another sign than the file's name promises."""

_JSON = json.JSONEncoder(ensure_ascii=False)


class Columns(NamedTuple):
    """What the file calls the columns whose cells may be more than text."""

    lists: Collection[str] = LIST_COLUMNS
    """Those whose cells are JSON."""
    messages: Collection[str] = TEXT_OR_MESSAGES
    """Those whose cells may be the text of messages."""
    answers: Collection[str] = ANSWERS
    """Those whose cells stay as they are, though they say that there is nothing."""
    read: Collection[str] = ()
    """Those that a format reads."""


def csv_rows(path: Path, columns: Columns) -> Iterator[Row]:
    """Yield the records below the header line, with the line each starts on."""
    problems: list[str] = []
    noted: set[str] = set()
    csv.field_size_limit(MAX_ROW_BYTES)  # for the whole process; the default refuses long conversations
    delimiter = _delimiter_of(path, "\t" if suffix_of(path) == ".tsv" else ",")
    with open_data(path) as stream:
        records = csv.reader(_csv_lines(path, read_lines(stream, path), problems), delimiter=delimiter, strict=True)
        header: list[str] = []
        while True:
            where = f"{path}:{records.line_num + 1}"
            try:
                record = next(records)
            except StopIteration:
                return
            except csv.Error as error:
                record = []
                problems.append(_csv_problem(error, records.line_num, path))
            if not header:
                is_excels = not problems and _excels_delimiter(delimiter.join(record)) == delimiter
                header = [] if is_excels else _check_header(record, problems, where)
            elif problems:
                yield Row(where=where, text="", problem=problems[0])
                problems.clear()
            elif record:
                _note_lists(where, header, record, columns, noted)
                _note_nothing(where, header, record, columns, noted)
                yield _csv_row(where, header, record, columns)


def _delimiter_of(path: Path, delimiter: str) -> str:
    """Return what parts the cells: `delimiter`, unless header and records show that it is certainly another.

    Raises:
        GlmtuneError: The header line shows that it is another, and there are too few records, or unlike ones.
    """
    where, header = _header_line(path)
    marked = _excels_delimiter(header)
    if marked:
        return marked
    if "\r" in _QUOTED.sub("", header):
        raise GlmtuneError("the lines end with a carriage return alone", where=where, fix=_other_ends(path))
    if _num_cells(header, delimiter) > 1:
        return delimiter
    counts = {other: _num_cells(header, other) for other in DELIMITERS if other != delimiter}
    other = max(counts, key=lambda each: counts[each])
    if counts[other] <= 1:
        return delimiter
    if _parts_records(path, other, counts[other]):
        notice(f"the cells of `{path}` are separated by {DELIMITERS[other]}, and are read as such")
        return other
    suffix = {"\t": ".tsv", ",": ".csv"}.get(other)
    to_commas = (
        f"pandas.read_csv({str(path)!r}, sep={other!r}, dtype=str, keep_default_na=False).to_csv('rows.csv', "
        "index=False)"
    )
    raise GlmtuneError(
        f"the cells are separated by {DELIMITERS[other]}; expected {DELIMITERS[delimiter]}",
        where=where,
        fix=f"give the file a name that ends with `{suffix}`"
        if suffix
        else f'save it with commas: `python -c "import pandas; {to_commas}"`',
    )


def _header_line(path: Path) -> tuple[str, str]:
    """Return `file:line` and text of the first line that is not blank; no text where it is not UTF-8."""
    with open_data(path) as stream:
        lines = read_lines(stream, path)
        number, line = next(((number, line) for number, line in lines if line.strip()), (1, b""))
    return f"{path}:{number}", line.decode().strip("\r\n") if is_utf8(line) else ""


def _excels_delimiter(line: str) -> str | None:
    """Return the delimiter that a line such as `sep=;`, which Excel heeds, names for those below; None for others."""
    return line[4] if line.lower().startswith("sep=") and len(line) == 5 else None


def _parts_records(path: Path, delimiter: str, num_cells: int) -> bool:
    """Whether there are several records, and nearly all of the first ones have as many cells as the header."""
    with open_data(path) as stream:
        lines = (line.decode(errors="replace") for _, line in read_lines(stream, path))
        records = csv.reader(lines, delimiter=delimiter)
        try:
            sizes = [len(record) for record in islice(records, MAX_RECORDS_TRIED + 1) if record]
        except csv.Error:
            return False
    fitting = sum(size == num_cells for size in sizes) - 1  # the header is one of them
    return fitting >= max(MIN_RECORDS, MIN_SHARE_OF_RECORDS * (len(sizes) - 1))


_QUOTED = re.compile(r'"[^"]*"')


def _other_ends(path: Path) -> str:
    """Return how to mend a file whose lines end as those of an old Macintosh."""
    return f"save it with other ends of lines: `tr '\\r' '\\n' < {shlex.quote(str(path))} > rows{path.suffix}`"


def _num_cells(line: str, delimiter: str) -> int:
    """Return how many cells a line has; 0 where it breaks the rules of CSV."""
    try:
        return len(next(csv.reader([line], delimiter=delimiter, strict=True), []))
    except csv.Error:
        return 0


def _csv_lines(path: Path, lines: Iterator[tuple[int, bytes]], problems: list[str]) -> Iterator[str]:
    """Yield every line as text; where it is none, add to `problems` and yield what keeps the records apart."""
    is_noted = False
    for number, line in lines:
        problem = bytes_problem(line)
        if not problem:
            yield line.decode()
            continue
        problems.append(problem)
        if not is_noted and len(line) <= MAX_ROW_BYTES and not is_utf8(line):
            is_noted = True
            note_encoding(path, number, line)
        yield "\n" if len(line) > MAX_ROW_BYTES else line.decode(errors="replace").replace("\0", "")


def _csv_problem(error: csv.Error, line: int, path: Path) -> str:
    if "new-line character" in str(error):
        return f"not CSV: a carriage return alone stands outside of quotes; {_other_ends(path)}"
    if "end of data" in str(error):
        return f"not CSV: a cell in quotes is never closed and takes in all lines up to the last, {line}"
    cause = "; a quote inside a cell in quotes is written twice" if "expected after" in str(error) else ""
    return f"not CSV: {error}{cause}"


def _check_header(record: list[str], problems: list[str], where: str) -> list[str]:
    """Return the names of the columns; an empty list for a blank line before them."""
    if problems:
        raise GlmtuneError(f"the header cannot be read: {problems[0]}", where=where)
    names = [name.strip() for name in record]
    check_names(names, where)
    return names


def _note_lists(where: str, header: list[str], record: list[str], columns: Columns, noted: set[str]) -> None:
    """Say, once for every column, that a list of texts is read as one text."""
    for name, cell in zip(header, record):
        if name not in columns.messages or name in noted or not cell.lstrip().startswith("["):
            continue
        value = json_text.parse_cell(cell)
        if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
            noted.add(name)
            notice(f"`{where}`: column `{name}` holds the text of a list, which is read as one text as it stands there")


def _note_nothing(where: str, header: list[str], record: list[str], columns: Columns, noted: set[str]) -> None:
    """Say, once for every column that is read, that a word such as `nan` is taken for an empty cell."""
    for name, cell in zip(header, record):
        key = f"{name} (nothing)"
        if key not in noted and name in columns.read and name not in columns.answers and _is_nothing(cell):
            noted.add(key)
            notice(f"`{where}`: column `{name}` holds `{cell.strip()}`, which is read as an empty cell there and below")


def _is_nothing(cell: str) -> bool:
    """Whether a cell holds what programs write for no value."""
    if len(cell) > 20:
        return False
    word = cell.strip()
    return word == "None" or word.lower() in NOTHING


def _csv_row(where: str, header: list[str], record: list[str], columns: Columns) -> Row:
    if len(record) != len(header):
        problem = f"the record has {len(record)} cells; expected {len(header)}, as in the header"
        return Row(where=where, text="", problem=problem)
    try:
        pairs = [f"{_JSON.encode(name)}: {_csv_cell(name, cell, columns)}" for name, cell in zip(header, record)]
    except RowError as error:
        return Row(where=where, text="", problem=str(error))
    return row_from_bytes(where, f"{{{', '.join(pairs)}}}".encode())


def _csv_cell(name: str, cell: str, columns: Columns) -> str:
    """Return the JSON text of a cell; one that is JSON already stays as it is, byte for byte."""
    is_list = name in columns.lists
    if (is_list and not cell.strip()) or (name not in columns.answers and _is_nothing(cell)):
        return "null"
    if not cell.lstrip().startswith(("[", "{")) or not (is_list or name in columns.messages):
        return _JSON.encode(cell)
    value = json_text.parse_cell(cell)
    if not is_list and not _are_messages(value):
        return _JSON.encode(cell)
    try:
        json_text.parse(cell)
    except RowError as error:
        if not _are_messages(value):
            raise RowError(f"column `{name}` is {error}") from None
        return _JSON.encode(value)  # as Python or NumPy wrote it
    return cell


def _are_messages(value: Any) -> bool:
    """Whether a value is a message, or a list of messages."""
    items = value if isinstance(value, list) else [value]
    return bool(items) and all(
        isinstance(item, dict) and ("role" in item or "from" in item) and len(item) > 1 for item in items
    )
