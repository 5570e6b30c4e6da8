r"""Files of JSON: a row a line, and the other forms in which programs and people write rows.

lines      {"a": 1}\n{"a": 2}
an array   [{"a": 1}, {"a": 2}]
an object  {"version": 1, "data": [{"a": 1}, {"a": 2}]}
values     {\n "a": 1\n}\n{\n "a": 2\n}
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from glmtune.config.other_tools import foreign_configuration, recognise
from glmtune.console import notice
from glmtune.data import json_text
from glmtune.data.conversation import RowError
from glmtune.data.formats import RowFormat, format_name
from glmtune.data.verdicts.marks import verdict
from glmtune.data.verdicts.sides import says_rejected
from glmtune.errors import GlmtuneError
from glmtune.files.text_encoding import is_utf8

from .row import MAX_ROW_BYTES, Row, row_from_bytes
from .streams import BOM, note_encoding, open_data, read_lines, suffix_of, unreadable

Form = Literal["lines", "array", "object", "values"]

# Numbers stay text, since Python refuses to read those of thousands of digits; control characters pass here, so that
# they cost their own row and no other.
_SPLITTER = json.JSONDecoder(strict=False, parse_int=str)
_BLANKS, _COLON, _COMMA = (re.compile(pattern) for pattern in (r"[ \t\r\n]*", r"[ \t\r\n]*:[ \t\r\n]*", r"[ \t\r\n,]*"))
_MESSAGE_KEYS = ("role", "from")


def json_rows(path: Path, row_format: RowFormat) -> Iterator[Row]:
    """Yield the rows of a file, whatever form they have; a form that the file's name does not promise is noted."""
    form = _form_of(path)
    if form == "lines" and suffix_of(path) == ".txt":
        _refuse_plain_text(path)
    if form == "lines":
        return _line_rows(path)
    text = _read_whole(path)
    if form == "array":
        if suffix_of(path) != ".json":
            notice(f"`{path}` is a JSON array, not one row a line: its elements are read as rows")
        return _rows(path, text, _array(path, text))
    values = _elements(path, text, 0)
    first = list(itertools.islice(values, 2))
    if len(first) == 1:
        return _rows(path, text, _rows_of_object(path, text, first[0], row_format))
    notice(f"the rows of `{path}` stand on several lines each, one behind the other: they are read as such")
    return _rows(path, text, itertools.chain(first, values))


class Element(NamedTuple):
    """A JSON value within a text."""

    line: int
    start: int
    end: int


class Member(NamedTuple):
    """A key of the object that a file is."""

    key: str
    value: Any
    start: int
    """Of the value within the text."""


def _line_rows(path: Path) -> Iterator[Row]:
    name = str(path)
    is_noted = False
    with open_data(path) as stream:
        for number, line in read_lines(stream, path):
            if line and not line.isspace():
                row = row_from_bytes(f"{name}:{number}", line)
                if row.problem and not is_noted and len(line) <= MAX_ROW_BYTES and not is_utf8(line):
                    is_noted = True
                    note_encoding(path, number, line)
                yield row


def _refuse_plain_text(path: Path) -> None:
    """Raise where a text file holds no JSON at all: no line of it is a row."""
    with open_data(path) as stream:
        first = next((line.strip() for _, line in read_lines(stream, path) if line.strip()), b"")
    if first and not first.startswith((b"{", b"[")):
        name = shlex.quote(path.name)
        raise GlmtuneError(
            "the file is plain text: it has no question and no answer, and says not where a row ends",
            where=f"{path}:1",
            fix="to train answers, give every row a line such as "
            '`{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}`; where a base '
            "model is to learn to continue each of the lines, write them as `text`: "
            f"`jq -R -c 'select(. != \"\") | {{text: .}}' {name} > rows.jsonl`",
        )


def _form_of(path: Path) -> Form:
    """Tell the form by the first two lines that are not blank, and of a row on several lines by its end."""
    with open_data(path) as stream:
        lines = (line.strip() for _, line in read_lines(stream, path))
        first, second = itertools.islice(itertools.chain(filter(None, lines), (b"", b"")), 2)
    state = _state(first)
    if first.startswith(b"["):
        if suffix_of(path) == ".json":
            return "array"
        is_array = state == "incomplete" or (state == "whole" and not second and not _is_conversation(first))
        return "array" if is_array else "lines"
    if not first.startswith(b"{") or state == "broken":
        return "lines"
    if state == "whole":
        return "lines" if second else "object"
    # The object goes on behind its first line; or the line is broken off.
    if first == b"{" and second.startswith(b'"'):
        return "values"
    return "values" if _state(_head(path)) != "broken" and (second or len(first) > MAX_ROW_BYTES) else "lines"


def _state(raw: bytes) -> Literal["whole", "incomplete", "broken"]:
    """Return whether a text begins with a whole JSON value, or with a value that breaks off at its end."""
    text = raw.decode(errors="replace")
    try:
        _, end = json.JSONDecoder(parse_int=str).raw_decode(text)
    except RecursionError:
        return "broken"
    except json.JSONDecodeError as error:
        is_at_end = error.pos >= len(text) or error.msg.startswith("Unterminated string")
        return "incomplete" if is_at_end else "broken"
    return "whole" if not text[end:].strip() or "\n" in text[:end] else "broken"


def _is_conversation(raw: bytes) -> bool:
    """Whether a list holds the messages of one conversation."""
    value, _ = _SPLITTER.raw_decode(raw.decode(errors="replace"))
    return bool(value) and all(map(_is_message, value))


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and any(key in value for key in _MESSAGE_KEYS)


def _head(path: Path) -> bytes:
    """Return the beginning of a file, as long as a row may be."""
    with open_data(path) as stream:
        try:
            return stream.read(MAX_ROW_BYTES).removeprefix(BOM).strip()
        except OSError as error:
            raise unreadable(str(path), error) from None


def _read_whole(path: Path) -> str:
    """Return the text of a file; bytes that are not UTF-8 pass here, so that they cost their own row and no other."""
    with open_data(path) as stream:
        try:
            raw = stream.read().removeprefix(BOM)
        except OSError as error:
            raise unreadable(str(path), error) from None
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        start, end = raw.rfind(b"\n", 0, error.start) + 1, raw.find(b"\n", error.start)
        note_encoding(path, raw.count(b"\n", 0, start) + 1, raw[start : end if end > 0 else len(raw)])
        return raw.decode(errors="surrogateescape")


def _array(path: Path, text: str) -> Iterator[Element]:
    """Yield the elements of the array that a file is."""
    end = yield from _elements(path, text, text.index("[") + 1, closing="]")
    rest = text[end + 1 :]
    if rest.strip():
        line = text.count("\n", 0, len(text) - len(rest.lstrip())) + 1
        raise GlmtuneError(
            "there is text behind the JSON array",
            where=f"{path}:{line}",
            fix="join the arrays into one, or give one row a line in a `.jsonl` file",
        )


def _elements(path: Path, text: str, position: int, *, closing: str = "") -> Generator[Element, None, int]:
    """Yield where every value from a position on stands; return where the closing bracket, or the text's end, is."""
    line, counted = 1, 0
    while True:
        while position < len(text) and text[position] in " \t\r\n,":
            position += 1
        line, counted = line + text.count("\n", counted, position), position
        where = f"{path}:{line}"
        if position >= len(text):
            if not closing:
                return position
            raise GlmtuneError("the JSON array has no closing `]`", where=where)
        if text[position] == closing:
            return position
        try:
            _, end = _SPLITTER.raw_decode(text, position)
        except RecursionError:
            raise GlmtuneError("not JSON: nested too deeply", where=where) from None
        except json.JSONDecodeError as error:
            raise GlmtuneError(f"not JSON: {error}{json_text.likely_cause(error)}", where=where) from None
        yield Element(line, position, end)
        position = end


def _rows(path: Path, text: str, elements: Iterator[Element]) -> Iterator[Row]:
    """Yield the elements as rows: each with the line it starts on, and its number where others start there, too."""
    line_before = 0
    here = next(elements, None)
    for number in itertools.count(1):
        if here is None:
            return
        following = next(elements, None)
        is_alone = here.line != line_before and (following is None or here.line != following.line)
        where = f"{path}:{here.line}" if is_alone else f"{path}:{here.line} (row {number})"
        yield row_from_bytes(where, text[here.start : here.end].encode(errors="surrogateescape"))
        line_before, here = here.line, following


PARTS_OF_A_ROW = ("tools", "functions", "segments")
"""Lists of objects that stand in a row: a file that holds a single question, and no answer, is no list of tools, and
one of axolotl's segments no list of texts."""


def _rows_of_object(path: Path, text: str, whole: Element, row_format: RowFormat) -> Iterator[Element]:
    """Return the rows of a file that is one object: the object itself, or the elements of the one list it holds."""
    members = list(_members(text, whole.start))
    are_columns = _are_columns(members)
    if not are_columns and _is_row({member.key: member.value for member in members}, row_format):
        return iter([whole])
    lists = [member for member in members if member.key not in PARTS_OF_A_ROW and _holds_rows(member.value)]
    if len(lists) == 1 and not are_columns:
        _refuse_rejected(path, lists[0].key)
        others = ", ".join(f"`{member.key}`" for member in members if member is not lists[0])
        unread = f"; what stands under {others} is not read" if others else ""
        notice(
            f"`{path}` is one JSON object: the {len(lists[0].value):,} rows of its `{lists[0].key}` are read{unread}"
        )
        return _elements(path, text, lists[0].start + 1, closing="]")
    _refuse_other_objects(path, members, lists, row_format)
    return iter([whole])


def _refuse_rejected(path: Path, key: str) -> None:
    """Raise where the name of the only list of a file says that its rows were left out."""
    if says_rejected(key) or verdict("status", key) is False:
        rows = shlex.quote(f".{json.dumps(key, ensure_ascii=False)}[]")
        raise GlmtuneError(
            f"the file is one JSON object whose only list of rows is `{key}`: rows that are called so are not trained",
            where=str(path),
            fix=f"where they are good, write them out: `jq -c {rows} {shlex.quote(path.name)} > rows.jsonl`",
        )


def _members(text: str, position: int) -> Iterator[Member]:
    """Yield the members of the object that begins at a position, which has been read before."""
    position = _BLANKS.match(text, position + 1).end()  # type: ignore[union-attr]
    while text[position] != "}":
        key, position = _SPLITTER.raw_decode(text, position)
        start = _COLON.match(text, position).end()  # type: ignore[union-attr]
        value, position = _SPLITTER.raw_decode(text, start)
        yield Member(key, value, start)
        position = _COMMA.match(text, position).end()  # type: ignore[union-attr]


def _is_row(value: Any, row_format: RowFormat) -> bool:
    """Whether a value has the keys of a row."""
    try:
        format_name(value, row_format)
    except RowError:
        return False
    return True


def _holds_rows(value: Any) -> bool:
    """Whether a value can only be a list of rows."""
    is_list = isinstance(value, list) and bool(value)
    return is_list and all(isinstance(each, dict) for each in value) and not all(map(_is_message, value))


def _refuse_other_objects(
    path: Path, members: Sequence[Member], lists: Sequence[Member], row_format: RowFormat
) -> None:
    """Raise where an object is certainly no row, and how it is to be read not certain, or not in the words of JSON."""
    tool = recognise({member.key: member.value for member in members})
    if tool is not None:
        raise foreign_configuration(tool, str(path), "rows")
    what = fix = ""
    values = [member.value for member in members]
    name = shlex.quote(path.name)
    if lists:
        found = ", ".join(f"`{member.key}` ({len(member.value):,})" for member in lists)
        what = f"the file is one JSON object that holds {len(lists)} lists: {found}; expected the rows alone"
        one = shlex.quote(f".{json.dumps(lists[0].key, ensure_ascii=False)}[]")
        fix = f"write each to a file of its own, such as by `jq -c {one} {name} > {shlex.quote(lists[0].key)}.jsonl`"
    elif len(values) > 1 and all(_is_row(value, row_format) for value in values):
        what = "the file is one JSON object with a row under every key; expected a list of rows, or one row a line"
        fix = f"leave the keys out, such as by `jq -c '.[]' {name} > rows.jsonl`"
    elif _are_columns(members):
        what = "the file is one JSON object of columns, as pandas writes a table; expected rows"
        fix = (
            "write them with `to_json(FILE, orient='records', lines=True, force_ascii=False)`, or turn this file into "
            f"rows: `python -c \"import pandas; pandas.read_json('{path.name}', dtype=False, convert_dates=False)"
            ".to_json('rows.jsonl', orient='records', lines=True, force_ascii=False)\"`"
        )
    if what:
        raise GlmtuneError(what, where=str(path), fix=fix)


def _are_columns(members: Sequence[Member]) -> bool:
    """Whether keys hold columns: objects with the same numbers as keys, or lists of one length."""
    values = [member.value for member in members]
    if all(isinstance(value, dict) and value for value in values):
        return len({tuple(value) for value in values}) == 1 and all(key.isdecimal() for key in values[0])
    if all(isinstance(value, list) and not any(isinstance(each, dict) for each in value) for value in values):
        is_split = {"columns", "data"} <= {member.key for member in members}
        return is_split or (len(values) > 1 and len({len(value) for value in values}) == 1 and len(values[0]) > 1)
    return False
