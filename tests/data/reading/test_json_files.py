"""Forms of JSON that stand in place of one row a line: read where there is one meaning, or named for what they are."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from glmtune.data.conversation import RowError
from glmtune.data.formats import AUTO, RowFormat
from glmtune.data.json_text import parse
from glmtune.data.reading.read_rows import read_rows
from glmtune.errors import GlmtuneError

ROWS = [{"instruction": f"题{number}", "output": f"答{number}"} for number in range(3)]
CHAT = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]


def text(value: Any, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, **options)


def write(path: Path, content: str) -> Path:
    data = content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(path: Path, row_format: RowFormat = AUTO) -> tuple[list[Any], list[str]]:
    """Return the values of the rows, and their places within the file, no two of which are the same."""
    rows = list(read_rows(path, row_format))
    places = [row.where.removeprefix(f"{path}:") for row in rows]
    assert len(set(places)) == len(places)
    return [json.loads(row.text) for row in rows], places


ARRAY = "is a JSON array, not one row a line: its elements are read as rows"
SEVERAL = "stand on several lines each, one behind the other: they are read as such"
FORMS: dict[str, tuple[str, str, list[str], str]] = {
    "an array in .jsonl": ("a.jsonl", text(ROWS, indent=2), ["2", "6", "10"], f"`{{path}}` {ARRAY}"),
    "an array on one line in .jsonl": (
        "a.jsonl", text(ROWS) + "\n", ["1 (row 1)", "1 (row 2)", "1 (row 3)"], f"`{{path}}` {ARRAY}",
    ),
    "an array of which a row stands on a line in .jsonl.gz": (
        "a.jsonl.gz", "[" + ",\n".join(map(text, ROWS)) + "]", ["1", "2", "3"], f"`{{path}}` {ARRAY}",
    ),
    "an array in a file without a suffix": ("rows", text(ROWS, indent=1), ["2", "6", "10"], f"`{{path}}` {ARRAY}"),
    "an array in .json": ("a.json", text(ROWS, indent=2), ["2", "6", "10"], ""),
    "lines in .json": ("a.json", "\n".join(map(text, ROWS)), ["1", "2", "3"], ""),
    "one row in .jsonl": ("a.jsonl", text(ROWS[0]), ["1"], ""),
    "one row on several lines in .json": ("a.json", "\n" + text(ROWS[0], indent=2), ["2"], ""),
    "rows on several lines in .jsonl": (
        "a.jsonl", "\n".join(text(row, indent=2) for row in ROWS), ["1", "5", "9"], f"the rows of `{{path}}` {SEVERAL}",
    ),
    "rows on several lines in .json, with commas": (
        "a.json", ",\n".join(text(row, indent=2) for row in ROWS), ["1", "5", "9"], f"the rows of `{{path}}` {SEVERAL}",
    ),
    "rows that end on the line where the next begins": (
        "a.json", " ".join(text(row, indent=2) for row in ROWS), ["1", "4", "7"], f"the rows of `{{path}}` {SEVERAL}",
    ),
    "rows broken behind a key": (
        "a.jsonl",
        "\n".join(text(row).replace(", ", ",\n") for row in ROWS),
        ["1", "3", "5"],
        f"the rows of `{{path}}` {SEVERAL}",
    ),
    "an object that holds the list": (
        "a.json",
        text({"data": ROWS}),
        ["1 (row 1)", "1 (row 2)", "1 (row 3)"],
        "`{path}` is one JSON object: the 3 rows of its `data` are read",
    ),
    "an object that holds the list and more": (
        "a.json",
        text({"version": 1, "data": ROWS, "about": {"a": []}}, indent=2),
        ["4", "8", "12"],
        "`{path}` is one JSON object: the 3 rows of its `data` are read; "
        "what stands under `version`, `about` is not read",
    ),
    "an object that holds the list in .jsonl": (
        "a.jsonl",
        text({"train": ROWS}, indent=1),
        ["3", "7", "11"],
        "`{path}` is one JSON object: the 3 rows of its `train` are read",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "places", "note"), FORMS.values(), ids=FORMS)
def test_rows_are_read_from_every_form_that_has_one_meaning(
    name: str, content: str, places: list[str], note: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / name, content)
    assert read(path) == (ROWS[: len(places)], places)
    assert capsys.readouterr().err == (f"note: {note.format(path=path)}\n" if note else "")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": CHAT},
        {"conversations": CHAT, "id": 1},
        {"instruction": "a", "output": "b", "history": [["c", "d"]], "tools": [{"name": "f"}]},
        {"prompt": CHAT[:1], "completion": CHAT[1:]},
        {"question": CHAT[:1], "answer": CHAT[1:]},
        {"dialogue": CHAT},
        {"question": "a", "options": ["b", "c"]},
        {"messages": []},
        {},
    ],
    ids=lambda row: " ".join(row),
)
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_file_of_one_row_is_that_row(
    row: Any, indent: int | None, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read(write(tmp_path / name, text(row, indent=indent)))[0] == [row]
    assert capsys.readouterr().err == ""


def test_an_object_is_a_row_by_the_names_that_the_user_gave_its_columns(tmp_path: Path) -> None:
    row = {"q": "a", "a": "b", "sources": [{"title": "c"}]}
    path = write(tmp_path / "a.json", text(row))
    assert read(path, RowFormat(columns={"instruction": "q", "output": "a"}))[0] == [row]
    assert read(path)[0] == [{"title": "c"}]


def test_one_conversation_alone_is_no_list_of_rows(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.jsonl", text(CHAT)))[0] == [CHAT]


def test_lists_on_lines_are_rows_of_their_own(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.jsonl", f"{text(ROWS)}\n{text(ROWS)}\n"))[0] == [ROWS, ROWS]


@pytest.mark.parametrize("width", [1, 2])
def test_an_object_larger_than_a_row_may_be_is_read_for_its_list(width: int, tmp_path: Path) -> None:
    rows = [{"text": "x" * (1 << 20), "number": number} for number in range(18)]
    separators = (",", ":") if width == 1 else (",\n", ": ")
    values, _ = read(write(tmp_path / "a.json", json.dumps({"data": rows}, separators=separators)))
    assert values == rows


JQ = "write each to a file of its own, such as by `jq -c '.\"train\"[]' a.json > train.jsonl`"
REFUSED: dict[str, tuple[str, str, str | None]] = {
    "two lists": (
        text({"train": ROWS, "test": ROWS[:1]}),
        "the file is one JSON object that holds 2 lists: `train` (3), `test` (1); expected the rows alone",
        JQ,
    ),
    "a row under every key": (
        text({"1": ROWS[0], "2": ROWS[1]}, indent=1),
        "the file is one JSON object with a row under every key; expected a list of rows, or one row a line",
        "leave the keys out, such as by `jq -c '.[]' a.json > rows.jsonl`",
    ),
    "pandas by columns": (
        text({"instruction": {"0": "a", "1": "b"}, "output": {"0": "c", "1": "d"}}),
        "the file is one JSON object of columns, as pandas writes a table; expected rows",
        None,
    ),
    "lists by columns that are keys of a row": (
        text({"instruction": ["a", "b"], "output": ["c", "d"]}),
        "the file is one JSON object of columns, as pandas writes a table; expected rows",
        None,
    ),
    "lists by columns": (
        text({"question": ["a", "b"], "answer": ["c", "d"]}),
        "the file is one JSON object of columns, as pandas writes a table; expected rows",
        None,
    ),
    "pandas' split": (
        text({"columns": ["instruction", "output"], "index": [0], "data": [["a", "b"]]}),
        "the file is one JSON object of columns, as pandas writes a table; expected rows",
        None,
    ),
}


@pytest.mark.parametrize(("content", "what", "fix"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_an_object_that_may_mean_several_things_is_refused_with_what_to_do(
    content: str, what: str, fix: str | None, name: str, tmp_path: Path
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(GlmtuneError) as caught:
        list(read_rows(path))
    assert (caught.value.what, caught.value.where) == (what, str(path))
    if fix is None:
        assert "orient='records', lines=True" in str(caught.value.fix)
    else:
        assert caught.value.fix == fix.replace("a.json", name)


def test_a_broken_row_among_rows_on_several_lines_is_told_by_its_line(tmp_path: Path) -> None:
    content = text(ROWS[0], indent=2) + "\n" + text(ROWS[1], indent=2).replace('1"\n', '1",\n')
    with pytest.raises(GlmtuneError) as caught:
        list(read_rows(write(tmp_path / "a.json", content)))
    assert str(caught.value.where) == f"{tmp_path / 'a.json'}:5"
    assert caught.value.what.endswith("a comma stands before `}`: take it away")


@pytest.mark.parametrize("first", ['{"a": "cut', '{"a": 1,', '{"a": [', "{", '{"a":', "["])
def test_a_first_row_that_is_cut_off_costs_no_other(first: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", f"{first}\n{text(ROWS[0])}\n{text(ROWS[1])}\n")
    if first == "[":
        with pytest.raises(GlmtuneError, match="no closing"):
            list(read_rows(path))
        return
    assert [row.where for row in read_rows(path)] == [f"{path}:{number}" for number in (1, 2, 3)]
    assert [json.loads(row.text) for row in list(read_rows(path))[1:]] == ROWS[:2]


BROKEN: dict[str, tuple[str, str]] = {
    "a comma behind the last key": ('{"a": 1, }', "a comma stands before `}`: take it away"),
    "a comma behind the last element": ('{"a": [1,]}', "a comma stands before `]`: take it away"),
    "a comma behind the row": ('{"a": 1},', "a comma stands behind the row: take it away"),
    "two rows on a line": ('{"a": 1}{"a": 2}', "another value begins there: give every row a line of its own"),
    "two rows and a comma": ('{"a": 1}, {"a": 2}', "another value begins there: give every row a line of its own"),
    "Python's single quotes": (
        "{'a': 1}", "single quotes are Python's; JSON has double ones, as `json.dumps` writes them",
    ),
    "a single quote as value": (
        "{\"a\": 'b'}", "single quotes are Python's; JSON has double ones, as `json.dumps` writes them",
    ),
    "typographic quotes": ("{“a”: 1}", 'these quotes are typographic; JSON has `"`'),
    "a full-width quote": ('{"a": ＂b＂}', 'these quotes are typographic; JSON has `"`'),
    "a full-width colon": ('{"a"：1}', "this sign is full-width; JSON has `:` and `,`"),
    "a full-width comma": ('{"a": 1，"b": 2}', "this sign is full-width; JSON has `:` and `,`"),
    "a comment": ('{"a": 1, // b\n}', "JSON has no comments: take them away"),
    "a comment in front": ('# {"a": 1}', "JSON has no comments: take them away"),
    "Python's None": ('{"a": None}', "`None` is written as `null`"),
    "Python's True": ('{"a": [True]}', "`True` is written as `true`"),
    "a key without quotes": ("{a: 1}", 'a key stands in double quotes, too: `"key"`'),
    "a tab in a text": ('{"a": "\t"}', "a tab in a text is written as `\\t`"),
    "a backslash": (r'{"a": "C:\Users"}'.replace("\\\\", "\\"), "a backslash in a text is written as `\\\\`"),
}  # fmt: skip


@pytest.mark.parametrize(("broken", "cause"), BROKEN.values(), ids=BROKEN)
def test_what_people_and_programs_do_to_json_is_named(broken: str, cause: str) -> None:
    with pytest.raises(RowError) as caught:
        parse(broken)
    assert str(caught.value).startswith("not JSON: ")
    assert str(caught.value).endswith(f"; {cause}")


@pytest.mark.parametrize("row", ['{"text": "a", "n": %s}', '{"text": "a", "n": [-%s]}'])
def test_a_number_of_very_many_digits_is_refused_with_the_remedy(row: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(row % ("1" * 5_000) + '\n{"text": "b"}\n', encoding="utf-8")
    first, second = read_rows(tmp_path / "a.jsonl")
    [error] = first.read().parts
    assert str(error) == "a number of more than 4,300 digits stands in it; write it as text, in quotes"
    assert len(second.conversations()) == 1


@pytest.mark.parametrize("key", ["rejected", "bad", "bad_examples", "deleted", "discarded", "rejected_rows", "废弃"])
def test_a_list_of_rejected_rows_is_no_file_of_rows(key: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", text({"version": 1, key: ROWS}))
    with pytest.raises(GlmtuneError) as caught:
        read(path)
    assert caught.value.what == (
        f"the file is one JSON object whose only list of rows is `{key}`: rows that are called so are not trained"
    )
    assert str(caught.value.fix).startswith("where they are good, write them out: `jq -c ")
