"""Tables whose cells are parted by something else than their name promises, and headers that are none."""

from __future__ import annotations

import ast
import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

from glmtune.data.conversation import Conversation
from glmtune.data.formats import RowFormat
from glmtune.data.reading.csv_files import DELIMITERS
from glmtune.data.reading.read_rows import read_rows
from glmtune.errors import GlmtuneError

ROWS = [["instruction", "input", "output"], ["Wo, bitte?", "", "In der Straße."], ["1", "NA", "1.0"]]


def write(path: Path, delimiter: str, encoding: str = "utf-8", records: list[list[str]] = ROWS) -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL).writerows(records)
    return path


def error_of(path: Path) -> GlmtuneError:
    with pytest.raises(GlmtuneError) as caught:
        list(read_rows(path))
    return caught.value


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("delimiter", DELIMITERS)
def test_another_delimiter_is_named_with_the_way_out(delimiter: str, name: str, encoding: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, delimiter, encoding)
    own = {"a.csv": ",", "a.tsv": "\t"}[name]
    if delimiter == own:
        assert len(list(read_rows(path))) == 2
        return
    error = error_of(path)
    assert error.what == f"the cells are separated by {DELIMITERS[delimiter]}; expected {DELIMITERS[own]}"
    assert error.where == f"{path}:1"
    suffix = {",": ".csv", "\t": ".tsv"}.get(delimiter)
    if suffix:
        assert error.fix == f"give the file a name that ends with `{suffix}`"
    else:
        assert f"sep={delimiter!r}" in str(error.fix)


def test_the_command_that_writes_commas_keeps_every_cell(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ";")
    command = re.search(r'-c "(.*)"`', str(error_of(path).fix))
    assert command is not None
    ast.parse(command[1])
    subprocess.run([sys.executable, "-c", command[1]], check=True, cwd=tmp_path)
    with (tmp_path / "rows.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == ROWS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text\na;b\n"),
        ("a.csv", '"a;b",c\n1,2\n'),
        ("a.csv", "instruction;long,output\n1,2\n"),
        ("a.tsv", "a,b\tc\n1\t2\n"),
        ("a.csv", '"a\nb;c",d\n1,2\n'),
    ],
)
def test_a_sign_inside_a_cell_is_no_delimiter(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert len(list(read_rows(tmp_path / name))) == 1


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("delimiter", DELIMITERS)
def test_several_like_records_make_another_delimiter_certain(
    delimiter: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / name, delimiter, "utf-8-sig", [ROWS[0], *ROWS[1:] * 2])
    assert [row.problem for row in read_rows(path)] == [""] * 4
    own = {"a.csv": ",", "a.tsv": "\t"}[name]
    told = f"note: the cells of `{path}` are separated by {DELIMITERS[delimiter]}, and are read as such\n"
    assert capsys.readouterr().err == ("" if delimiter == own else told)
    assert [row.text for row in read_rows(path)][:2] == [row.text for row in read_rows(write(path, own))]


def test_records_of_other_sizes_leave_a_delimiter_uncertain_and_a_few_cost_only_themselves(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a;b\n1;2\n1\n1;2;3\n1;2\n1;2\n", encoding="utf-8")
    assert error_of(path).what == "the cells are separated by semicolons; expected commas"
    path.write_text("a;b\n" + "1;2\n" * 30 + "1\n", encoding="utf-8")
    assert [row.problem for row in read_rows(path) if row.problem] == [
        "the record has 1 cells; expected 2, as in the header"
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_line_that_excel_heeds_names_the_delimiter(delimiter: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f'sep={delimiter}\r\n"a"{delimiter}b\r\n1{delimiter}2\r\n', encoding="utf-8-sig", newline="")
    assert [(row.where, row.text) for row in read_rows(path)] == [(f"{path}:3", '{"a": "1", "b": "2"}')]


def test_quoted_names_with_semicolons_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"instruction";"output"\n"a";"b"\n', encoding="utf-8")
    assert error_of(tmp_path / "a.csv").what == "the cells are separated by semicolons; expected commas"


HEADERS = {
    "old Macintosh": ("\na,b\r1,2\r", "2", "the lines end with a carriage return alone"),
    "two columns without a name": ("a,b,,\n1,2,,\n", "1", "columns 3 and 4 have no name"),
    "three": (",a, ,\n1,2,3,4\n", "1", "columns 1, 3 and 4 have no name"),
    "a name twice": ("a,b,a\n1,2,3\n", "1", "there are two columns `a`"),
}


@pytest.mark.parametrize(("content", "line", "what"), HEADERS.values(), ids=HEADERS)
def test_a_header_that_is_none_is_told(content: str, line: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content.encode())
    error = error_of(path)
    assert (error.what, error.where) == (what, f"{path}:{line}")
    assert error.fix


def test_the_command_for_an_old_macintosh_mends_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"a,b\r1,2\r")
    command = str(error_of(path).fix).split("`")[1]
    subprocess.run(["bash", "-c", command], check=True, cwd=tmp_path)
    assert [row.text for row in read_rows(tmp_path / "rows.csv")] == ['{"a": "1", "b": "2"}']


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "NULL", "null", "NaT", "<NA>", "#N/A", " nan "])
def test_what_programs_write_for_nothing_is_an_empty_cell(
    word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.csv"
    names = "instruction,input,system,tools,history,images,weight,output"
    path.write_text(f"{names}\nq{','.join([',' + word, *[word] * 5])},a\n")
    [row] = read_rows(path)
    [read] = [row.read()]
    [conversation] = [part for part in read.parts if isinstance(part, Conversation)]
    assert [(message.role, message.content) for message in conversation.messages] == [("user", "q"), ("assistant", "a")]
    assert read.doubts == ()
    note = f"note: `{path}:2`: column `system` holds `{word.strip()}`, which is read as an empty cell there and below\n"
    assert note in capsys.readouterr().err


def test_what_programs_write_for_nothing_is_no_question_and_stays_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("instruction,output\nnan,a\nq,nan\nn/a,a\n#REF!,a\n")
    first, second, third, fourth = (row.read() for row in read_rows(path))
    assert str(first.parts[0]) == "`instruction` and `input` are empty; expected text in one of them"
    assert second.doubts == ("a text to be trained is `nan`",)
    assert third.doubts == ("a question is `n/a`",)
    assert fourth.doubts == ("a question is `#REF!`",)


def test_a_column_that_is_named_an_answer_keeps_its_words(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("q,label\nwhat,None\n")
    columns = RowFormat(columns={"instruction": "q", "output": "label"})
    [row] = read_rows(path, columns)
    assert row.conversations(columns)[0].messages[-1].content == "None"


def test_a_carriage_return_alone_is_told_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'"instruction","output"\r"q","a"\r')
    assert error_of(path).what == "the lines end with a carriage return alone"
    path.write_bytes(b"instruction,output\nq,a\nq\r,a\n")
    *_, row = read_rows(path)
    assert row.problem == (
        "not CSV: a carriage return alone stands outside of quotes; save it with other ends of lines: "
        f"`tr '\\r' '\\n' < {path} > rows.csv`"
    )


@pytest.mark.parametrize("header", ["instruction,output,", ",instruction,output", "Unnamed: 0,instruction,output"])
def test_a_column_without_a_name_is_told_unless_it_is_an_index(header: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for value, told in (("secret", 1), ("0", 0), ("", 0)):
        path.write_text(f"{header}\n{f'q,a,{value}' if header.endswith(',') else f'{value},q,a'}\n")
        [row] = read_rows(path)
        assert len(row.read().unread) == told
