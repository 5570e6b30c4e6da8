"""Rows of any format written as GLM-4 messages: nothing lost, nothing overwritten, every row left out is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from json_lines import json_lines

from glmtune.data.conversion import convert, convert_data, row_format
from glmtune.data.formats import to_conversations
from glmtune.data.reading.read_rows import read_rows
from glmtune.data.reading.row import Reject
from glmtune.data.reading.sources import DataFile
from glmtune.errors import GlmtuneError

ALPACA = {"instruction": "写广告", "input": "裙", "output": "好看"}
SHAREGPT = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello", "loss": 0.5}]}
PLAIN = {"prompt": "a", "response": "b"}
UNANSWERED = {"messages": [{"role": "user", "content": "hi"}]}


def write(path: Path, *rows: Any) -> DataFile:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return DataFile(path=path)


def test_rows_of_several_formats_and_files_become_glm_messages(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.jsonl", ALPACA, SHAREGPT), write(tmp_path / "b.jsonl", PLAIN)]
    converted = convert(files, tmp_path / "out.jsonl")
    assert (converted.num_rows, converted.rejects) == (3, [])
    assert json_lines(tmp_path / "out.jsonl") == [
        {"messages": [{"role": "user", "content": "写广告\n裙"}, {"role": "assistant", "content": "好看"}]},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello", "loss": 0.5}]},
        PLAIN,
    ]


def test_converted_rows_are_the_same_conversations_and_convert_to_themselves(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", ALPACA, SHAREGPT, PLAIN)
    once, twice = tmp_path / "once.jsonl", tmp_path / "twice.jsonl.gz"
    convert([source], once)
    convert([DataFile(path=once)], twice)
    before = [row.conversations() for row in read_rows(source.path)]
    assert [row.conversations() for row in read_rows(once)] == before
    assert gzip.decompress(twice.read_bytes()) == once.read_bytes()


@pytest.mark.parametrize("blank", ["", " ", "\u3000", "\u200b"])
def test_rows_with_a_blank_answer_are_left_out(blank: str, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": blank}]
    source = write(tmp_path / "a.jsonl", ALPACA, {"messages": turns})
    converted = convert([source], tmp_path / "out.jsonl")
    assert converted.num_rows == 1
    [reject] = converted.rejects
    assert reject.reason == "message 1 is an assistant message without content"


def test_rows_that_cannot_be_converted_are_named_and_the_others_written(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", "{", ALPACA, UNANSWERED)
    converted = convert([source], tmp_path / "out.jsonl")
    assert converted.num_rows == 1
    assert converted.rejects == [
        Reject(
            where=f"{source.path}:1",
            reason="not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        ),
        Reject(
            where=f"{source.path}:3",
            reason="message 0, the last, has role `user`; expected an assistant message at the end",
        ),
    ]


def test_strict_stops_at_the_first_bad_row_and_leaves_no_file(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", ALPACA, UNANSWERED)
    with pytest.raises(GlmtuneError) as caught:
        convert([source], tmp_path / "out.jsonl", strict=True)
    assert str(caught.value) == (
        "message 0, the last, has role `user`; expected an assistant message at the end\n"
        f"  --> {source.path}:2\n"
        "hint: mend the row; without `--strict` it is left out and listed"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]


def test_a_file_without_a_good_row_is_an_error_that_names_the_first(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", UNANSWERED)
    with pytest.raises(GlmtuneError) as caught:
        convert([source], tmp_path / "out.jsonl")
    assert str(caught.value) == (
        "no row could be converted; the first: message 0, the last, has role `user`; "
        f"expected an assistant message at the end\n  --> {source.path}:1"
    )
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.jsonl", "`{out}` exists already\nhint: choose another name, or remove it first"),
        ("out.csv", "cannot write `out.csv`: expected a name that ends with `.jsonl` or `.jsonl.gz`"),
        ("no/out.jsonl", "folder `{parent}` does not exist\nhint: make it first"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_told_first(name: str, message: str, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", ALPACA)
    out = tmp_path / name
    with pytest.raises(GlmtuneError) as caught:
        convert([source], out)
    assert str(caught.value) == message.format(out=out, parent=out.parent)
    assert source.path.read_text(encoding="utf-8") == json.dumps(ALPACA, ensure_ascii=False) + "\n"


def test_columns_rename_the_keys_of_a_file() -> None:
    rows_are = row_format("alpaca", {"instruction": "question", "output": "answer"}, "--from")
    [conversation] = to_conversations({"question": "q", "answer": "a"}, rows_are)
    assert [message.content for message in conversation.messages] == ["q", "a"]


def test_an_unknown_format_is_told_with_the_nearest_and_all_names() -> None:
    with pytest.raises(GlmtuneError) as caught:
        row_format("sharegtp", {}, "--from")
    assert str(caught.value) == (
        "`--from` is `sharegtp` (did you mean `sharegpt`?)\n"
        "hint: expected one of `preference`, `messages`, `sharegpt`, `chatglm3`, `alpaca`, "
        "`instruction-response`, `query-response`, `input-output`, `firefly`, `turns`, `moss`, `advertisegen`, "
        "`prompt-response`, `prompt-completion`, `toolalpaca`, `text`"
    )


@pytest.mark.parametrize(
    ("data", "out"),
    [
        ("rows", "rows/out.jsonl"),
        ("rows/", "link/out.jsonl.gz"),
        (".", "out.jsonl"),
        ("rows/*.jsonl", "rows/out.jsonl"),
        ("rows/*", "rows/out.jsonl.gz"),
        ("**/*.jsonl", "rows/deep/out.jsonl"),
        ("rows/**/*.jsonl", "rows/out.jsonl"),
    ],
)
def test_rows_are_not_written_to_where_they_are_read(
    data: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("rows")
    for folder in (tmp_path, tmp_path / "rows"):
        write(folder / "a.jsonl", ALPACA)
    with pytest.raises(GlmtuneError, match="would lie among the files that are read"):
        convert_data(data, out)
    assert not Path(out).exists()


@pytest.mark.parametrize(
    ("data", "out"),
    [
        ("rows", "out.jsonl"),
        ("rows", "rows/deep/out.jsonl"),
        ("rows/a.jsonl", "rows/out.jsonl"),
        ("rows/a*.jsonl", "rows/out.jsonl"),
        ("rows/*.jsonl", "rows/deep/out.jsonl"),
    ],
)
def test_rows_may_be_written_beside_what_is_read(
    data: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows" / "deep").mkdir(parents=True)
    write(tmp_path / "rows" / "a.jsonl", ALPACA)
    assert convert_data(data, out).num_rows == 1
