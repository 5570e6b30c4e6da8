"""Whatever is wrong with a file costs the rows it must: each names its place, what is wrong and what was expected."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest

from glmtune.data.conversation import RowError
from glmtune.data.reading.read_rows import read_rows
from glmtune.errors import GlmtuneError

CHAT = {"messages": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "hi"}]}
GOOD = json.dumps(CHAT, ensure_ascii=False)
CELL = '"' + json.dumps(CHAT["messages"]).replace('"', '""') + '"'
NOT_UTF8 = b"\xc4\xe3"
OK = ""
LONG = b"x" * (17 << 20)


def jsonl(*lines: str | bytes) -> bytes:
    return b"\n".join(line.encode() if isinstance(line, str) else line for line in lines) + b"\n"


def reasons(path: Path) -> list[tuple[str, str]]:
    """Return the place of every row within the file and why it is rejected, `OK` where it is not."""
    result = []
    for row in read_rows(path):
        try:
            row.conversations()
        except RowError as error:
            reason = str(error)
        else:
            reason = OK
        result.append((row.where.removeprefix(f"{path}:"), reason))
    return result


def utf8(position: int, byte: str = "c4") -> str:
    return f"byte {position} of the row, 0x{byte}, is not UTF-8; expected a file saved as UTF-8"


ANOTHER = "; another value begins there: give every row a line of its own"
TWICE = "; a quote inside a cell in quotes is written twice"
LENGTH = "the row is longer than 16 MiB; expected one conversation, or one text, in a row"

# Name of the file, what stands in it, and what becomes of each row: its place and the reason.
UNKNOWN_KEYS = (
    "unknown row format (keys: `hello`, `hi`); expected the keys of one of these: preference (`chosen` "
    "and `rejected`), messages (`messages`), sharegpt (`conversations`), chatglm3 (`conversations`), "
    "alpaca (`instruction` and `output`), instruction-response (`instruction` and `response`), query-response "
    "(`query` and `response`), input-output (`input` and `output`), firefly (`input` and `target`), turns "
    "(`conversation`), moss (`chat`), advertisegen (`content` and `summary`), prompt-response "
    "(`prompt` and `response`), prompt-completion (`prompt` and `completion`), toolalpaca "
    "(`Function_Description` and `Instances`), text (`text`); or `columns` that say what the file calls them, "
    "such as `{instruction: hello, output: hi}` (`--column instruction=hello --column output=hi`)"
)

BAD_ROWS: dict[str, tuple[str, bytes, list[tuple[str, str]]]] = {
    "broken JSON": (
        "a.jsonl",
        jsonl(GOOD, "{'messages': []}", GOOD),
        [
            ("1", OK),
            (
                "2",
                "not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1); "
                "single quotes are Python's; JSON has double ones, as `json.dumps` writes them",
            ),
            ("3", OK),
        ],
    ),
    "a line that breaks off": (
        "a.jsonl",
        jsonl(GOOD)[:-1] + b"\n" + GOOD.encode()[:20],
        [("1", OK), ("2", "not JSON: Unterminated string starting at: line 1 column 16 (char 15)")],
    ),
    "two rows on a line": (
        "a.jsonl",
        jsonl(GOOD + " " + GOOD),
        [("1", f"not JSON: Extra data: line 1 column {len(GOOD) + 2} (char {len(GOOD) + 1}){ANOTHER}")],
    ),
    "lines that end with a carriage return alone": (
        "a.jsonl",
        f"{GOOD}\r{GOOD}\r".encode(),
        [("1", f"not JSON: Extra data: line 1 column {len(GOOD) + 2} (char {len(GOOD) + 1}){ANOTHER}")],
    ),
    "a comma behind every row": (
        "a.jsonl",
        jsonl(GOOD + ",", GOOD),
        [
            (
                "1",
                f"not JSON: Extra data: line 1 column {len(GOOD) + 1} (char {len(GOOD)}); "
                "a comma stands behind the row: take it away",
            ),
            ("2", OK),
        ],
    ),
    "a list in a file of lines": (
        "a.jsonl",
        jsonl(f"[{GOOD}]", GOOD),
        [("1", "the row is a list; expected an object with `messages`"), ("2", OK)],
    ),
    "a BOM": ("a.jsonl", b"\xef\xbb\xbf" + jsonl(GOOD, GOOD), [("1", OK), ("2", OK)]),
    "a BOM between two joined files": (
        "a.jsonl",
        jsonl(GOOD) + b"\xef\xbb\xbf" + jsonl(GOOD),
        [("1", OK), ("2", OK)],
    ),
    "CRLF": ("a.jsonl", f"{GOOD}\r\n\r\n{GOOD}\r\n".encode(), [("1", OK), ("3", OK)]),
    "a NUL byte": (
        "a.jsonl",
        jsonl(GOOD, b'{"a": "\0"}', GOOD),
        [("1", OK), ("2", "byte 8 of the row is NUL; expected text"), ("3", OK)],
    ),
    "an end of NUL bytes, as a crash leaves it": (
        "a.jsonl",
        jsonl(GOOD) + b"\0" * 4096,
        [("1", OK), ("2", "byte 1 of the row is NUL; expected text")],
    ),
    "a Chinese row that is GB 18030": (
        "a.jsonl",
        jsonl(GOOD, GOOD.encode("gb18030"), GOOD),
        [("1", OK), ("2", utf8(44)), ("3", OK)],
    ),
    "a character cut in half": (
        "a.jsonl",
        jsonl(GOOD, '{"a": "你'.encode()[:-1]),
        [("1", OK), ("2", utf8(8, "e4"))],
    ),
    "half of a surrogate pair as bytes": (
        "a.jsonl",
        jsonl(b'{"a": "\xed\xa0\xbd"}', GOOD),
        [("1", utf8(8, "ed")), ("2", OK)],
    ),
    "a line of 17 MiB": ("a.jsonl", jsonl(GOOD, LONG, GOOD), [("1", OK), ("2", LENGTH), ("3", OK)]),
    "a last line of 17 MiB": ("a.jsonl", jsonl(GOOD) + LONG, [("1", OK), ("2", LENGTH)]),
    "two equal keys": (
        "a.jsonl",
        jsonl('{"messages": [], "messages": []}', GOOD),
        [("1", "not JSON: key `messages` stands twice in one object"), ("2", OK)],
    ),
    "NaN": (
        "a.jsonl",
        jsonl(GOOD[:-1] + ', "score": NaN}', GOOD),
        [("1", "not JSON: `NaN` is no number of JSON"), ("2", OK)],
    ),
    "an infinite number": (
        "a.jsonl",
        jsonl(GOOD[:-1] + ', "score": 1e999}', GOOD),
        [("1", "not JSON: `1e999` is too large a number"), ("2", OK)],
    ),
    "an array nested 100,000 deep": (
        "a.jsonl",
        jsonl("[" * 100_000, GOOD),
        [("1", "not JSON: nested too deeply"), ("2", OK)],
    ),
    "an empty file": ("a.jsonl", b"", []),
    "an empty packed file": ("a.jsonl.gz", gzip.compress(b""), []),
    "a file of blank lines": ("a.jsonl", b"\n \r\n\t\n", []),
    "a bad row in a packed file": (
        "a.jsonl.gz",
        gzip.compress(jsonl(GOOD, NOT_UTF8, GOOD)),
        [("1", OK), ("2", utf8(1)), ("3", OK)],
    ),
    "an element that is not UTF-8": (
        "a.json",
        b'[\n{"a": "' + NOT_UTF8 + b'"},\n' + GOOD.encode() + b"\n]",
        [("2", utf8(8)), ("3", OK)],
    ),
    "an element with a NUL byte": (
        "a.json",
        b'[\n{"a": "\0"},\n' + GOOD.encode() + b"\n]",
        [("2", "byte 8 of the row is NUL; expected text"), ("3", OK)],
    ),
    "an element with a line break inside a text": (
        "a.json",
        b'[{"a": "x\ny"},\n' + GOOD.encode() + b"\n]",
        [
            (
                "1",
                "not JSON: Invalid control character at: line 1 column 9 (char 8); "
                "a line break in a text is written as `\\n`",
            ),
            ("3", OK),
        ],
    ),
    "an element with two equal keys": (
        "a.json",
        f'[{{"a": 1, "a": 2}},\n{GOOD}]'.encode(),
        [("1", "not JSON: key `a` stands twice in one object"), ("2", OK)],
    ),
    "an element that is NaN": (
        "a.json",
        f"[NaN,\n{GOOD}]".encode(),
        [("1", "not JSON: `NaN` is no number of JSON"), ("2", OK)],
    ),
    "an element of 17 MiB": ("a.json", b'["' + LONG + b'",\n' + GOOD.encode() + b"]", [("1", LENGTH), ("2", OK)]),
    "an array of other things": (
        "a.json",
        f'[1, "a",\nnull, {GOOD}]'.encode(),
        [
            ("1 (row 1)", "the row is a number; expected an object with `messages`"),
            ("1 (row 2)", "the row is text; expected an object with `messages`"),
            ("2 (row 3)", "the row is null; expected an object with `messages`"),
            ("2 (row 4)", OK),
        ],
    ),
    "a table with a cell too many": (
        "a.csv",
        jsonl("id,messages", f"1,{CELL},x", f"2,{CELL}"),
        [("2", "the record has 3 cells; expected 2, as in the header"), ("3", OK)],
    ),
    "a table with a cell too few": (
        "a.csv",
        jsonl("id,messages", "1", f"2,{CELL}"),
        [("2", "the record has 1 cells; expected 2, as in the header"), ("3", OK)],
    ),
    "a table with BOM, CRLF and blank lines": (
        "a.csv",
        b"\xef\xbb\xbf\r\nid,messages\r\n\r\n" + f"1,{CELL}\r\n".encode(),
        [("4", OK)],
    ),
    "a table with a quote that is never closed": (
        "a.csv",
        jsonl("id,messages", f"1,{CELL}", '2,"[', "3,x"),
        [("2", OK), ("3", "not CSV: a cell in quotes is never closed and takes in all lines up to the last, 4")],
    ),
    "a table with text behind a quote": (
        "a.csv",
        jsonl("id,messages", '"1"x,y', f"2,{CELL}"),
        [("2", f"not CSV: ',' expected after '\"'{TWICE}"), ("3", OK)],
    ),
    "a table with bytes that are not UTF-8": (
        "a.csv",
        jsonl("id,messages", NOT_UTF8 + b",y", f"2,{CELL}"),
        [("2", utf8(1)), ("3", OK)],
    ),
    "a table with bytes that are not UTF-8 inside quotes": (
        "a.csv",
        jsonl("id,messages", b'"a', NOT_UTF8, b'",y', f"2,{CELL}"),
        [("2", utf8(1)), ("5", OK)],
    ),
    "a table with a NUL byte": (
        "a.csv",
        jsonl("id,messages", b"\0,y", f"2,{CELL}"),
        [("2", "byte 1 of the row is NUL; expected text"), ("3", OK)],
    ),
    "a table with a line of 17 MiB": (
        "a.csv",
        jsonl("id,messages", LONG, f"2,{CELL}"),
        [("2", LENGTH), ("3", OK)],
    ),
    "a table with Python lists for JSON": (
        "a.csv",
        jsonl("id,messages", "1,[{'role': 'user'}]", f"2,{CELL}"),
        [
            (
                "2",
                "column `messages` is not JSON: "
                "Expecting property name enclosed in double quotes: line 1 column 3 (char 2); "
                "single quotes are Python's; JSON has double ones, as `json.dumps` writes them",
            ),
            ("3", OK),
        ],
    ),
    "a table with an empty list cell": (
        "a.csv",
        jsonl("id,messages", "1,", f"2,{CELL}"),
        [("2", "`messages` is null; expected a list of messages"), ("3", OK)],
    ),
    "a table without a row": ("a.csv", jsonl("id,messages"), []),
    "an empty table": ("a.csv", b"", []),
    "a table without the header": (
        "a.csv",
        jsonl("hello,hi", "good morning,good day"),
        [("2", UNKNOWN_KEYS)],
    ),
}


@pytest.mark.parametrize(("name", "content", "expected"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_told_by_its_place_and_the_others_are_read(
    name: str, content: bytes, expected: list[tuple[str, str]], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert reasons(path) == expected


def test_a_row_with_a_problem_has_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(LONG, NOT_UTF8, b"\0"))
    assert [row.text for row in read_rows(path)] == ["", "", ""]


def test_a_line_without_an_end_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(GOOD, b"x" * 100_000_000, GOOD))
    tracemalloc.start()
    try:
        assert reasons(path) == [("1", OK), ("2", LENGTH), ("3", OK)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40_000_000


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


ZSTD_FRAME = b"\x28\xb5\x2f\xfd"
CUT = (
    "the file cannot be read: Truncated compressed stream\n  --> {path}:1\n"
    "hint: where it is cut off or damaged, copy or download it again"
)
UTF_16 = (
    "the file is UTF-16 text; expected UTF-8 text\n  --> {path}\n"
    "hint: save it as UTF-8: `iconv -f UTF-16 -t UTF-8 {path} > {folder}/utf8-{path.name}`"
)
NOT_GZIP = (
    "the file is not compressed with gzip, as its name says\n  --> {path}\n"
    "hint: take `.gz` off its name; or, where it is damaged, copy or download it again"
)
NOT_ZSTD = NOT_GZIP.replace("gzip", "zstd").replace(".gz", ".zst")
MANY = jsonl(*(f"{number} {number * 7919 % 104729}" for number in range(40_000)))

# Name of the file, what stands in it, and the error.
BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "UTF-16": (
        "a.jsonl",
        GOOD.encode("utf-16-le"),
        UTF_16.replace("-f UTF-16", "-f UTF-16LE"),
    ),
    "UTF-16 with the other order of bytes": (
        "a.csv",
        GOOD.encode("utf-16-be"),
        UTF_16.replace("-f UTF-16", "-f UTF-16BE"),
    ),
    "gzip under another name": (
        "a.jsonl",
        gzip.compress(b"{}"),
        "the file is compressed with gzip; expected UTF-8 text\n  --> {path}\n"
        "hint: give it a name that ends with `.gz`",
    ),
    "zstd under another name": (
        "a.json",
        ZSTD_FRAME + b"...",
        "the file is compressed with zstd; expected UTF-8 text\n  --> {path}\n"
        "hint: give it a name that ends with `.zst`",
    ),
    "parquet under another name": (
        "a.jsonl",
        b"PAR1....PAR1",
        "the file is a parquet file; expected UTF-8 text\n  --> {path}\nhint: give it a name that ends with `.parquet`",
    ),
    "an Excel file": (
        "a.csv",
        b"PK\x03\x04...",
        "the file is a ZIP archive or an Excel file; expected UTF-8 text\n  --> {path}\n"
        "hint: unpack it, or save the table as `.csv`",
    ),
    "text that is called gzip": ("a.jsonl.gz", b"{}\n" * 9, NOT_GZIP),
    "text that is called zstd": ("a.jsonl.zst", b"{}\n" * 9, NOT_ZSTD),
    "a gzip stream that is cut off": ("a.json.gz", gzip.compress(b'["a"]' + b"\n" * 9)[:-12], CUT.replace(":1", "")),
    "an array without its end": (
        "a.json",
        f"[{GOOD},\n".encode(),
        "the JSON array has no closing `]`\n  --> {path}:2",
    ),
    "an array with a broken element": (
        "a.json",
        f'[{GOOD},\n{{"a" 1}}]'.encode(),
        f"not JSON: Expecting ':' delimiter: line 2 column 6 (char {len(GOOD) + 8})\n  --> {{path}}:2",
    ),
    "an array nested 100,000 deep": ("a.json", b"[" * 100_000, "not JSON: nested too deeply\n  --> {path}:1"),
    "text behind an array": (
        "a.json",
        f"[{GOOD}]\n[{GOOD}]".encode(),
        "there is text behind the JSON array\n  --> {path}:2\n"
        "hint: join the arrays into one, or give one row a line in a `.jsonl` file",
    ),
    "a table with two equal columns": (
        "a.csv",
        jsonl("text, text", "1,2"),
        "there are two columns `text`\n  --> {path}:1\nhint: give every column a name of its own",
    ),
    "a table whose header is not UTF-8": (
        "a.csv",
        jsonl("", NOT_UTF8, "1"),
        f"the header cannot be read: {utf8(1)}\n  --> {{path}}:2",
    ),
    "a table whose header is broken": (
        "a.csv",
        jsonl('"a"b,c', "1,2"),
        f"the header cannot be read: not CSV: ',' expected after '\"'{TWICE}\n  --> {{path}}:1",
    ),
    "an empty parquet file": (
        "a.parquet",
        b"",
        "the file cannot be read: Parquet file size is 0 bytes\n  --> {path}\n"
        "hint: where it is cut off or damaged, copy or download it again",
    ),
    "text that is called parquet": (
        "a.parquet",
        b"{}\n" * 9,
        "the file cannot be read: Parquet magic bytes not found in footer. Either the file is corrupted or this is "
        "not a parquet file\n  --> {path}\nhint: where it is cut off or damaged, copy or download it again",
    ),
    "Arrow packed": (
        "a.arrow.gz",
        b"",
        "Arrow files are mapped into memory; expected no other compression\n  --> {path}\nhint: unpack the file",
    ),
    "parquet packed once more": (
        "a.parquet.gz",
        b"",
        "parquet is compressed inside; expected no other compression\n  --> {path}\nhint: unpack the file",
    ),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_cannot_be_read_says_why(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(GlmtuneError) as caught:
        list(read_rows(path))
    assert str(caught.value) == message.format(path=path, folder=path.parent)


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstd)])
def test_a_packed_file_that_is_cut_off_gives_its_rows_and_the_line_it_ends_at(
    suffix: str, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    packed = pack(MANY)
    path.write_bytes(packed[: len(packed) * 3 // 4])
    lines = MANY.decode().splitlines()
    seen: list[str] = []
    with pytest.raises(GlmtuneError, match="the file cannot be read: Truncated compressed stream") as caught:
        seen.extend(row.text for row in read_rows(path))
    assert 1_000 < len(seen) < len(lines)
    assert seen == lines[: len(seen)]
    assert caught.value.where == f"{path}:{len(seen) + 1}"
