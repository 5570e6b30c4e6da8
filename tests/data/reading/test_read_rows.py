"""Files to rows: every row knows its line, and a file that cannot be read says why."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import tracemalloc
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from glmtune.data.conversation import RowError
from glmtune.data.reading.read_rows import read_rows
from glmtune.data.reading.sources import DataFile, command_line_files
from glmtune.data.reading.streams import COMPRESSIONS, SUFFIXES, suffix_of
from glmtune.errors import GlmtuneError

PACK = {".gz": gzip.compress, ".zst": lambda data: pyarrow.compress(data, codec="zstd", asbytes=True)}


def write(path: Path, content: str) -> Path:
    """Write a file, compressed where its name says so."""
    path.write_bytes(PACK.get(path.suffix.lower(), bytes)(content.encode()))
    return path


def rows_of(path: Path) -> list[tuple[int, str]]:
    """Return every row with the number of its line."""
    return [(int(place), text) for place, text in places_of(path)]


def places_of(path: Path) -> list[tuple[str, str]]:
    """Return every row with its place within the file."""
    rows = list(read_rows(path))
    assert all(row.where.startswith(f"{path}:") for row in rows)
    return [(row.where.removeprefix(f"{path}:"), row.text) for row in rows]


def error_of(path: Path) -> str:
    with pytest.raises(GlmtuneError) as caught:
        list(read_rows(path))
    return str(caught.value)


@pytest.mark.parametrize(
    "name", ["rows.jsonl", "rows.json", "rows.jsonl.gz", "rows.json.zst", "rows.JSONL.ZST", "rows"]
)
@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ('{"a": 1}\n{"b": 2}\n', [(1, '{"a": 1}'), (2, '{"b": 2}')]),
        ('{"a": 1}\n{"b": 2}', [(1, '{"a": 1}'), (2, '{"b": 2}')]),
        ('{"a": 1}\r\n\r\n{"b": 2}\r\n', [(1, '{"a": 1}'), (3, '{"b": 2}')]),
        ('\n \t\n{"a": 1}\n\n\n{"b": 2}\n\n', [(3, '{"a": 1}'), (6, '{"b": 2}')]),
        ('\ufeff{"a": 1}\n{"b": 2}\n', [(1, '{"a": 1}'), (2, '{"b": 2}')]),
        ('{"a": "\u2028\u2029\x85\x0b"}\n{"b": 2}', [(1, '{"a": "\u2028\u2029\x85\x0b"}'), (2, '{"b": 2}')]),
        ("no json\n{\n", [(1, "no json"), (2, "{")]),
        ("", []),
        ("\n\n", []),
        ("\ufeff", []),
    ],
    ids=[
        "lines",
        "no newline at the end",
        "CRLF",
        "blank lines",
        "BOM",
        "U+2028",
        "broken",
        "empty",
        "blank",
        "only BOM",
    ],
)
def test_lines_become_rows_that_know_their_line(
    name: str, content: str, rows: list[tuple[int, str]], tmp_path: Path
) -> None:
    assert rows_of(write(tmp_path / name, content)) == rows


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ('[{"a": 1}, {"b": 2}]', [("1 (row 1)", '{"a": 1}'), ("1 (row 2)", '{"b": 2}')]),
        ('[{"a": 1},\n{"b": 2}, {}]', [("1", '{"a": 1}'), ("2 (row 2)", '{"b": 2}'), ("2 (row 3)", "{}")]),
        ('[\n  {"a": 1},\n  {"b": 2}\n]\n', [("2", '{"a": 1}'), ("3", '{"b": 2}')]),
        ('\ufeff\n [\r\n{\r\n"a": 1\r\n}\r\n,\r\n{"b": 2}]', [("3", '{\r\n"a": 1\r\n}'), ("7", '{"b": 2}')]),
        (
            '[{"a": "]\\n,["},\n\n3, null, [\n1]]',
            [("1", '{"a": "]\\n,["}'), ("3 (row 2)", "3"), ("3 (row 3)", "null"), ("3 (row 4)", "[\n1]")],
        ),
        ('[{"a": "\u2028"},\n{"b": 2}]', [("1", '{"a": "\u2028"}'), ("2", '{"b": 2}')]),
        ("[]", []),
        (" [\n] ", []),
    ],
    ids=["one line", "two lines", "pretty", "BOM and CRLF", "values of all kinds", "U+2028", "empty", "blank"],
)  # fmt: skip
def test_elements_of_an_array_know_the_line_they_start_on(
    content: str, rows: list[tuple[str, str]], tmp_path: Path
) -> None:
    assert places_of(write(tmp_path / "rows.json", content)) == rows


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_packed_array_is_an_array(suffix: str, tmp_path: Path) -> None:
    assert rows_of(write(tmp_path / f"rows.json{suffix}", '[{"a": 1},\n{"b": 2}]')) == [
        (1, '{"a": 1}'),
        (2, '{"b": 2}'),
    ]


def test_a_file_packed_in_two_pieces_is_read_to_its_end(tmp_path: Path) -> None:
    for suffix, pack in PACK.items():
        path = tmp_path / f"rows.jsonl{suffix}"
        path.write_bytes(pack(b'{"a": 1}\n') + pack(b'{"b": 2}\n'))
        assert rows_of(path) == [(1, '{"a": 1}'), (2, '{"b": 2}')]


def test_rows_are_read_one_by_one(tmp_path: Path) -> None:
    text = "".join(f'{{"number": {number}}}\n' for number in range(50_000))
    path = write(tmp_path / "rows.jsonl", text)
    tracemalloc.start()
    try:
        rows = read_rows(path)
        assert [row.text for row in itertools.islice(rows, 2)] == ['{"number": 0}', '{"number": 1}']
        assert sum(1 for _ in rows) == 49_998
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 500_000


def test_an_integer_of_5000_digits_costs_no_other_row(tmp_path: Path) -> None:
    assert rows_of(write(tmp_path / "rows.json", f"[{'1' * 5000},\n2]")) == [(1, "1" * 5000), (2, "2")]


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    assert error_of(tmp_path / "rows.jsonl") == f"data file `{tmp_path / 'rows.jsonl'}` does not exist"
    assert error_of(tmp_path) == f"data file `{tmp_path}` is a folder; expected a file"


READABLE = {
    ".jsonl": b'{"text": "a"}\n{"text": "b"}\n',
    ".json": b'[{"text": "a"}, {"text": "b"}]',
    ".csv": b"text\na\nb\n",
    ".tsv": b"text\tn\na\t1\nb\t2\n",
}


def table_bytes(suffix: str) -> bytes:
    table, stream = pyarrow.table({"text": ["a", "b"]}), io.BytesIO()
    if suffix == ".parquet":
        parquet.write_table(table, stream)
    else:
        with pyarrow.ipc.new_file(stream, table.schema) as writer:
            writer.write_table(table)
    return stream.getvalue()


@pytest.mark.parametrize("packed", ["", *COMPRESSIONS])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_and_compression_that_is_offered_is_read(suffix: str, packed: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}{packed}"
    data = READABLE.get(suffix) or table_bytes(suffix)
    path.write_bytes(PACK.get(packed, bytes)(data))
    assert suffix_of(path) == suffix
    if suffix not in READABLE and packed:
        assert "expected no other compression" in error_of(path)
    else:
        assert [json.loads(row.text)["text"] for row in read_rows(path)] == ["a", "b"]
    assert command_line_files(str(tmp_path)) == [DataFile(path=path)]


def test_the_suffixes_are_those_that_the_readme_names() -> None:
    assert SUFFIXES == (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
    assert set(COMPRESSIONS) == {".gz", ".zst"} == set(PACK)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("3", "the row is a number; expected an object with `messages`"),
        ('{"text": 1}', "`text` is a number; expected text"),
        ("[" * 100_000, "not JSON: nested too deeply"),
    ],
    ids=["broken", "number", "unknown", "nested"],
)
def test_a_row_that_is_no_conversation_says_why(text: str, reason: str, tmp_path: Path) -> None:
    [row] = read_rows(write(tmp_path / "rows.jsonl", text))
    with pytest.raises(RowError) as caught:
        row.conversations()
    assert str(caught.value) == reason
