"""Tables to rows: what a cell becomes, and that no value is lost or made up."""

from __future__ import annotations

import datetime
import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pytest
from pyarrow import parquet

from glmtune.data.conversation import Conversation, Message, RowError
from glmtune.data.formats import RowFormat, read_row
from glmtune.data.reading.read_rows import read_rows
from glmtune.errors import GlmtuneError

MESSAGES = [{"role": "user", "content": "你好\n"}, {"role": "assistant", "content": '"hi", she said'}]


def quoted(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return '"' + text.replace('"', '""') + '"'


def rows_of(path: Path, row_format: RowFormat | None = None) -> list[tuple[str, Any]]:
    rows = list(read_rows(path, row_format) if row_format else read_rows(path))
    assert [row.problem for row in rows] == [""] * len(rows)
    return [(row.where.removeprefix(f"{path}:"), json.loads(row.text)) for row in rows]


def csv_file(tmp_path: Path, text: str, name: str = "rows.csv") -> Path:
    path = tmp_path / name
    data = text.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def parquet_file(tmp_path: Path, table: pyarrow.Table, **options: Any) -> Path:
    parquet.write_table(table, tmp_path / "rows.parquet", **options)
    return tmp_path / "rows.parquet"


def test_a_record_becomes_an_object_of_texts(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "instruction, output\n12,[1]\n你好,\n")
    assert rows_of(path) == [
        ("2", {"instruction": "12", "output": "[1]"}),
        ("3", {"instruction": "你好", "output": ""}),
    ]


def test_a_record_knows_the_line_it_starts_on(tmp_path: Path) -> None:
    path = csv_file(tmp_path, 'a,b\n"one\ntwo\n",3\n\n4,5\n6,"\r\n"\n7,8')
    assert rows_of(path) == [
        ("2", {"a": "one\ntwo\n", "b": "3"}),
        ("6", {"a": "4", "b": "5"}),
        ("7", {"a": "6", "b": "\r\n"}),
        ("9", {"a": "7", "b": "8"}),
    ]


@pytest.mark.parametrize("name", ["rows.tsv", "rows.TSV", "rows.tsv.gz"])
def test_cells_of_a_tsv_file_are_parted_by_tabs(name: str, tmp_path: Path) -> None:
    path = csv_file(tmp_path, "a\tb\n1,2\t3\n", name)
    assert rows_of(path) == [("2", {"a": "1,2", "b": "3"})]


def test_a_list_in_a_cell_is_json_where_formats_want_a_list(tmp_path: Path) -> None:
    history = [["a", "b"]]
    path = csv_file(
        tmp_path,
        "messages,conversations,history,tools,output\n"
        f"{quoted(MESSAGES)},{quoted(MESSAGES)},{quoted(history)},{quoted([])},{quoted([])}\n"
        "[],{},,,\n"
        "text,text,text,text,text\n",
    )
    assert [row for _, row in rows_of(path)] == [
        {"messages": MESSAGES, "conversations": MESSAGES, "history": history, "tools": "[]", "output": "[]"},
        {"messages": [], "conversations": {}, "history": None, "tools": "", "output": ""},
        dict.fromkeys(("messages", "conversations", "history", "tools", "output"), "text"),
    ]


def test_json_in_a_cell_stays_as_it_is_written(tmp_path: Path) -> None:
    cell = r'[ {"role": "user", "content": "\ud83d\ude00", "score": 1E+2, "half": "\ud83d"} ]'
    [row] = read_rows(csv_file(tmp_path, f"messages\n{quoted(cell)}\n"))
    assert row.text == f'{{"messages": {cell}}}'


def test_a_list_column_may_have_another_name(tmp_path: Path) -> None:
    path = csv_file(tmp_path, f"chat,messages\n{quoted(MESSAGES)},[1]\n")
    row_format = RowFormat(columns={"messages": "chat"})
    assert rows_of(path, row_format) == [("2", {"chat": MESSAGES, "messages": "[1]"})]


ODD = [
    {"role": "user", "content": "} {\n'a\" \\ 问"},
    {"role": "assistant", "content": "b" * 90, "weight": None, "tools": True},
]


@pytest.mark.parametrize(
    "written",
    [json.dumps(ODD), repr(ODD), str(numpy.array(ODD)), str(numpy.array([{"from": "human", "value": "a"}] * 2))],
    ids=["JSON", "Python", "NumPy", "NumPy in one line"],
)
@pytest.mark.parametrize("key", ["prompt", "completion", "chosen", "rejected", "chosen_response", "messages"])
def test_messages_in_a_cell_are_read_whoever_wrote_them(written: str, key: str, tmp_path: Path) -> None:
    messages = [{"from": "human", "value": "a"}] * 2 if "human" in written else ODD
    path = csv_file(tmp_path, f"{key},score\n{quoted(written)},{quoted(written)}\n")
    assert rows_of(path) == [("2", {key: messages, "score": written})]
    renamed = csv_file(tmp_path, f"own\n{quoted(written)}\n")
    assert rows_of(renamed, RowFormat(columns={key: "own"})) == [("2", {"own": messages})]


def test_a_pair_of_messages_in_a_table_is_the_one_in_lines(tmp_path: Path) -> None:
    row = {"prompt": MESSAGES[:1], "chosen": MESSAGES[1:], "rejected": [{"role": "assistant", "content": "c"}]}
    path = csv_file(tmp_path, f"prompt,chosen,rejected\n{','.join(quoted(str(each)) for each in row.values())}\n")
    [read] = [each.read() for each in read_rows(path)]
    assert read == read_row(row)


@pytest.mark.parametrize("cell", ["['b', 'c']", '["b", "c"]', "['b' 'c']"])
def test_a_list_of_texts_in_a_cell_is_told_once_and_read_as_text(
    cell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = csv_file(tmp_path, "instruction,output\n" + f"a,{quoted(cell)}\n" * 2)
    assert [row["output"] for _, row in rows_of(path)] == [cell, cell]
    what = "column `output` holds the text of a list, which is read as one text as it stands there"
    assert capsys.readouterr().err == f"note: `{path}:2`: {what}\n"


@pytest.mark.parametrize("cell", ["[1, 2]", "[a](b)", "{x}", '{"role": "user"}', '[{"a": 1}]', "['b'"])
def test_what_only_looks_like_messages_is_text(cell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = csv_file(tmp_path, f"instruction,output\na,{quoted(cell)}\n")
    assert [row["output"] for _, row in rows_of(path)] == [cell]
    assert capsys.readouterr().err == ""


def test_a_cell_may_be_longer_than_the_csv_module_takes_by_itself(tmp_path: Path) -> None:
    path = csv_file(tmp_path, f"text\n{'x' * 200_000}\n")
    assert rows_of(path) == [("2", {"text": "x" * 200_000})]


def test_a_conversation_in_a_table_is_the_one_in_lines(tmp_path: Path) -> None:
    lines = tmp_path / "rows.jsonl"
    lines.write_text(json.dumps({"messages": MESSAGES}), encoding="utf-8")
    table = parquet_file(tmp_path, pyarrow.Table.from_pylist([{"messages": MESSAGES}]))
    paths = [lines, csv_file(tmp_path, f"messages\n{quoted(MESSAGES)}\n"), table]
    [first], *others = [
        [conversation for row in read_rows(path) for conversation in row.conversations()] for path in paths
    ]
    assert others == [[first]] * 2


def test_rows_of_a_parquet_file_are_numbered_through_all_its_parts(tmp_path: Path) -> None:
    table = pyarrow.table({"number": range(2_500)})
    rows = rows_of(parquet_file(tmp_path, table, row_group_size=700))
    assert rows == [(f"row {number + 1}", {"number": number}) for number in range(2_500)]


def test_nulls_that_arrow_puts_into_structs_are_left_out(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"name": "f"}, {"id": "1"}]}]
    table = pyarrow.table({"messages": [messages, None], "text": [None, "b"], "list": [None, [None, 1]]})
    assert [row for _, row in rows_of(parquet_file(tmp_path, table))] == [
        {"messages": messages},
        {"text": "b", "list": [None, 1]},
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".arrow"])
@pytest.mark.parametrize("history", [[None, None], [None, [["早", "早上好"]]], [[], None]])
@pytest.mark.parametrize("columns", [("prompt", "response"), ("instruction", "output")])
def test_a_null_history_is_no_history_in_every_kind_of_file(
    columns: tuple[str, str], history: list[Any], suffix: str, tmp_path: Path
) -> None:
    rows = [dict(zip((*columns, "history"), ("几点开门？", "九点。", each))) for each in history]
    [first, second] = read_rows(history_file(tmp_path, rows, suffix))
    question = [Message(role="user", content="几点开门？"), Message(role="assistant", content="九点。")]
    assert first.conversations() == [Conversation(messages=tuple(question))]
    [last] = second.conversations()
    assert list(last.messages[-2:]) == question
    assert len(last.messages) == (4 if history[1] else 2)


def test_a_null_history_under_another_name_is_no_history(tmp_path: Path) -> None:
    rows = [{"prompt": "几点开门？", "response": "九点。", "past": None}]
    row_format = RowFormat(name="prompt-response", columns={"history": "past"})
    [row] = read_rows(history_file(tmp_path, rows, ".parquet"), row_format)
    assert [message.role for part in row.conversations(row_format) for message in part.messages] == [
        "user",
        "assistant",
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".arrow"])
def test_a_null_under_a_renamed_column_is_no_text_and_the_column_is_there(suffix: str, tmp_path: Path) -> None:
    rows = [{"question": "几点开门？", "context": context, "output": "九点。"} for context in (None, "周日")]
    row_format = RowFormat(name="alpaca", columns={"instruction": "question", "input": "context"})
    read = [row.conversations(row_format)[0] for row in read_rows(history_file(tmp_path, rows, suffix), row_format)]
    assert [each.messages[0].content for each in read] == ["几点开门？", "几点开门？\n周日"]


def history_file(folder: Path, rows: list[dict[str, Any]], suffix: str) -> Path:
    """Write rows of texts and a list, or null in its place, as a file of each kind."""
    path = folder / f"rows{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path
    if suffix == ".csv":
        lines = [",".join("" if cell is None else quoted(cell) for cell in row.values()) for row in rows]
        return csv_file(folder, "\n".join([",".join(rows[0]), *lines, ""]))
    table = pyarrow.Table.from_pylist(rows)
    if suffix == ".parquet":
        return parquet_file(folder, table)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return path


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (pyarrow.array([2**62]), 2**62),
        (pyarrow.array([Decimal("1.50")]), "1.50"),
        (pyarrow.array([datetime.date(2026, 1, 2)]), "2026-01-02"),
        (pyarrow.array([datetime.datetime(2026, 1, 2, 3)], pyarrow.timestamp("ns")), "2026-01-02T03:00:00"),
        (pyarrow.array([datetime.time(3, 4)]), "03:04:00"),
        (pyarrow.array([True]), True),
        (pyarrow.array(["a"]).dictionary_encode(), "a"),
        (pyarrow.array(["a"], pyarrow.large_string()), "a"),
        (pyarrow.array([[("a", 1)]], pyarrow.map_(pyarrow.string(), pyarrow.int64())), {"a": 1}),
    ],
    ids=["int64", "decimal", "date", "timestamp", "time", "boolean", "dictionary", "large text", "map"],
)
def test_a_cell_of_a_parquet_file_becomes_json(column: Any, value: Any, tmp_path: Path) -> None:
    assert rows_of(parquet_file(tmp_path, pyarrow.table({"x": column}))) == [("row 1", {"x": value})]


BAD_CELLS: dict[str, tuple[Any, str]] = {
    "NaN": (pyarrow.array([1.0, float("nan")]), "Out of range float values are not JSON compliant"),
    "infinite": (pyarrow.array([1.0, float("-inf")]), "Out of range float values are not JSON compliant"),
    "bytes": (pyarrow.array([None, b"\x89PNG"]), "can't decode byte 0x89"),
    "bytes in a struct": (pyarrow.array([None, {"bytes": b"\x89PNG"}]), "can't decode byte 0x89"),
    "a duration": (pyarrow.array([None, datetime.timedelta(1)]), "JSON has no timedelta"),
    "a map with a key twice": (
        pyarrow.array([[("a", 1)], [("a", 1), ("a", 2)]], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
        "Converting to Python dictionary is not supported in strict mode when duplicate keys are present",
    ),
    "text that is not UTF-8": (
        pyarrow.array([b"a", b"\xff"]).view(pyarrow.string()),
        "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
    ),
    "a date after the year 9999": (
        pyarrow.array([0, 2**40], pyarrow.int64()).cast(pyarrow.timestamp("s")),
        "date value out of range",
    ),
}


@pytest.mark.parametrize(("column", "reason"), BAD_CELLS.values(), ids=BAD_CELLS)
def test_a_cell_of_a_parquet_file_that_json_cannot_hold_is_named(column: Any, reason: str, tmp_path: Path) -> None:
    path = parquet_file(tmp_path, pyarrow.table({"messages": [MESSAGES] * 2, "system": column}))
    good, bad = read_rows(path)
    assert json.loads(good.text)["messages"] == MESSAGES
    assert (bad.where, bad.text) == (f"{path}:row 2", "")
    assert bad.problem.startswith("column `system` is no text, number or list: ")
    assert reason in bad.problem
    assert bad.problem.endswith("; cast it to text, or take it away")
    with pytest.raises(RowError):
        bad.conversations()


@pytest.mark.parametrize("name", BAD_CELLS)
def test_a_cell_that_json_cannot_hold_costs_the_row_nothing_where_it_is_not_read(name: str, tmp_path: Path) -> None:
    column, reason = BAD_CELLS[name]
    path = parquet_file(tmp_path, pyarrow.table({"messages": [MESSAGES] * 2, "x": column}))
    _, row = read_rows(path)
    read = row.read()
    assert [type(part) for part in read.parts] == [Conversation]
    assert read.unread == (() if name == "NaN" else ("x",))
    assert row.problem == ""
    assert name == "NaN" or reason in json.loads(row.text)["x"]


def test_a_weight_that_is_no_number_is_missing_and_an_infinite_one_refused(tmp_path: Path) -> None:
    weights = pyarrow.array([float("nan"), float("inf"), 0.5])
    rows = [
        row.read().parts[0]
        for row in read_rows(parquet_file(tmp_path, pyarrow.table({"messages": [MESSAGES] * 3, "weight": weights})))
    ]
    missing, infinite, half = rows
    assert isinstance(infinite, RowError)
    assert str(infinite).startswith("`weight` is ")
    assert [each.messages[-1].loss for each in (missing, half) if isinstance(each, Conversation)] == [None, 0.5]


@pytest.mark.parametrize("kind", [pyarrow.binary(), pyarrow.large_binary(), pyarrow.binary(3)])
def test_a_binary_column_that_is_text_is_read_as_text(kind: Any, tmp_path: Path) -> None:
    table = pyarrow.table(
        {"instruction": pyarrow.array(["好".encode()], kind), "output": pyarrow.array([b"abc"], kind)}
    )
    assert rows_of(parquet_file(tmp_path, table)) == [("row 1", {"instruction": "好", "output": "abc"})]


def test_a_row_of_a_parquet_file_may_be_too_long(tmp_path: Path) -> None:
    [row] = read_rows(parquet_file(tmp_path, pyarrow.table({"text": ["x" * (17 << 20)]})))
    assert row.problem == "the row is longer than 16 MiB; expected one conversation, or one text, in a row"


def test_a_parquet_file_that_is_damaged_inside_is_an_error(tmp_path: Path) -> None:
    path = parquet_file(tmp_path, pyarrow.table({"a": ["x"]}))
    data = path.read_bytes()
    path.write_bytes(data[:4] + b"\xff" * 20 + data[24:])
    with pytest.raises(GlmtuneError, match="the file cannot be read: ") as caught:
        list(read_rows(path))
    assert caught.value.where == str(path)


def test_two_equal_columns_of_a_parquet_file_are_an_error(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array([1])] * 2, names=["a", "a"])
    with pytest.raises(GlmtuneError, match="there are two columns `a`"):
        list(read_rows(parquet_file(tmp_path, table)))


def test_nulls_in_arguments_of_calls_that_are_columns_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def called(arguments: Any) -> list[dict[str, Any]]:
        calls = [{"function": {"name": "f", "arguments": arguments}}]
        return [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": calls}]

    for arguments, is_told in (({"x": 1, "y": None}, True), ({"x": 1}, False), ('{"x": 1, "y": null}', False)):
        path = tmp_path / f"{len(str(arguments))}.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"messages": [called(arguments)]}), path)
        [row] = read_rows(path)
        assert row.conversations()
        told = "arguments of calls as columns, in which a null that was written looks like one of another call"
        assert (told in capsys.readouterr().err) is is_told
