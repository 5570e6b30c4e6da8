"""Keys of rows that nobody reads: found at every level, counted, kept with the encoded rows, told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glmtune.chatformat.encoding import Encoder
from glmtune.data.conversion import convert
from glmtune.data.formats import RowFormat, read_row
from glmtune.data.formats.beside import NAMELESS
from glmtune.data.formats.unread import HARMLESS
from glmtune.data.reading.sources import DataFile
from glmtune.data.unused import MAX_NAMES, Unread, total
from glmtune.datatools.data_inspection import check_data
from glmtune.encoded.dataset import encode_file, join
from glmtune.encoded.store import file_hash
from glmtune.family import GLM

USER = {"role": "user", "content": "a"}
ASSISTANT = {"role": "assistant", "content": "b"}
FUNCTION = {"name": "f", "arguments": "{}"}
RESULT = {"role": "tool", "content": "o"}
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}


def messages(**more: Any) -> dict[str, Any]:
    return {"messages": [USER, ASSISTANT | more]}


def calling(**call: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", "tool_calls": [call]}, RESULT, ASSISTANT]}


@pytest.mark.parametrize(
    ("row", "unread"),
    [
        (messages() | {"score": 0.5, "note": "x"}, ("score", "note")),
        (messages() | {"score": None, "note": " ", "tags": [], "meta": {}, "extra": "nan"}, ()),
        (messages(name="bob", refusal="no", annotations=[{"a": 1}]), ("name", "refusal", "annotations")),
        (messages(name=None, refusal=None, annotations=[], audio=None, function_call=None), ()),
        (messages(prefix=True, partial=True, thinking=True), ("prefix", "partial", "thinking")),
        (messages(thinking="r"), ()),
        (messages(tool_call_id="x"), ("tool_call_id",)),
        (
            messages(content=[{"type": "text", "text": "b", "cache_control": {"type": "x"}}]),
            ("content[].cache_control",),
        ),
        (calling(id="x", type="function", index=0, function=FUNCTION), ()),
        (calling(id="x", status="done", function=FUNCTION), ("tool_calls[].status",)),
        (calling(function=FUNCTION | {"strict": True}), ("tool_calls[].function.strict",)),
        (
            {"messages": [USER, {"role": "assistant", "function_call": FUNCTION | {"note": 1}}, RESULT, ASSISTANT]},
            ("function_call.note",),
        ),
        ({"messages": [USER, calling(function=FUNCTION)["messages"][1], RESULT | {"name": "f"}, ASSISTANT]}, ()),
        ({"messages": [USER | {"reference": "r"}, ASSISTANT]}, ("reference",)),
    ],
)
def test_a_key_that_nobody_reads_is_told_at_every_level(row: dict[str, Any], unread: tuple[str, ...]) -> None:
    found = read_row(row)
    at_top = tuple(name for name in found.unread if not name.startswith("messages[]."))
    assert (*at_top, *(name.removeprefix("messages[].") for name in found.unread[len(at_top) :])) == unread


@pytest.mark.parametrize(
    ("row", "unread"),
    [
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "zz": 1}]},
            "conversations[].zz",
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "a"},
                    {"from": "function_call", "value": json.dumps(FUNCTION | {"thought": "t"})},
                    {"from": "observation", "value": "o"},
                    {"from": "gpt", "value": "b"},
                ]
            },
            "conversations[].value.thought",
        ),
        ({"prompt": [USER], "completion": [ASSISTANT | {"zz": 1}]}, "completion[].zz"),
        (PAIR | {"chosen": ASSISTANT | {"score": 1}}, "chosen[].score"),
        ({"instruction": "a", "output": "b", "text": "a b"}, "text"),
        ({"messages": [USER, ASSISTANT], "prompt": "a"}, "prompt"),
        (
            {"input": {"messages": [USER], "zz": 1}, "preferred_output": [ASSISTANT], "non_preferred_output": [USER]},
            "input.zz",
        ),
    ],
)
def test_the_place_of_an_unread_key_is_named(row: dict[str, Any], unread: str) -> None:
    assert read_row(row).unread == (unread,)


@pytest.mark.parametrize("key", sorted(HARMLESS))
def test_where_a_row_comes_from_is_not_told(key: str) -> None:
    assert read_row(messages() | {key: "7" if key in NAMELESS else "x"}).unread == ()


def test_keys_are_told_by_the_names_that_the_file_has_for_them() -> None:
    row_format = RowFormat(columns={"messages": "dialog", "content": "says"})
    row = {"dialog": [{"role": "user", "says": "a", "zz": 1}, {"role": "assistant", "says": "b", "content": "c"}]}
    assert read_row(row, row_format).unread == ("messages[].content", "dialog[].zz")
    replaced = {"instruction": "q", "question": "a", "output": "b"}
    assert read_row(replaced, RowFormat(columns={"instruction": "question"})).unread == ("instruction",)


def test_the_lines_count_rows_and_name_the_most_frequent_keys_first() -> None:
    unread = Unread()
    for number in range(1_200):
        unread.add(read_row(messages() | {"score": number + 1} | ({"note": "x"} if number else {})))
    unread.add(read_row(PAIR))
    assert unread.lines() == [
        "keys that are not read: `score` (1,200 rows), `note` (1,199 rows)",
        "1 row has two answers: the chosen one is trained, the rejected answer is not used",
    ]
    assert Unread.from_dict(json.loads(json.dumps(unread.as_dict()))) == unread


def test_nothing_is_told_where_everything_is_read_or_the_row_is_refused() -> None:
    unread = Unread()
    for row in (messages(), messages() | {"id": 1}, {"messages": [USER], "score": 1}, {"zz": 1}):
        unread.add(read_row(row))
    assert unread.lines() == []


def test_any_number_of_keys_is_counted_in_bounded_memory() -> None:
    unread = total(Unread(keys={f"k{part}-{number}": 1 for number in range(150)}) for part in range(3))
    assert (len(unread.keys), unread.num_others) == (MAX_NAMES, 450 - MAX_NAMES)
    [line] = unread.lines()
    assert line.endswith(" and at least 192 more")


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


ROWS = (messages() | {"score": 1}, messages(name="x") | {"score": 2}, PAIR, messages(content="nan") | {"split": "dev"})
LINES = [
    "keys that are not read: `score` (2 rows), `messages[].name` (1 row)",
    "1 row has two answers: the chosen one is trained, the rejected answer is not used",
    "trained as they stand, and perhaps not meant so: `split` is `dev` (1 row); a text to be trained is `nan` (1 row)",
]


def test_what_is_not_read_is_known_at_a_second_start_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_tokenizer: Any
) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path / "rows.jsonl", *ROWS)
    for content_hash in (None, file_hash(path), file_hash(path)):
        data = encode_file(path, Encoder(demo_tokenizer, GLM), content_hash=content_hash)
        assert data.unread.lines() == LINES
    assert join([data, data]).unread.keys == {"score": 4, "messages[].name": 2}


def test_what_is_not_read_is_counted_over_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_tokenizer: Any
) -> None:
    monkeypatch.setattr("glmtune.encoded.dataset.MIN_ROWS_PER_PROCESS", 100)
    path = write(tmp_path / "rows.jsonl", *ROWS * 300)
    data = encode_file(path, Encoder(demo_tokenizer, GLM), num_proc=2)
    assert data.unread.keys == {"score": 600, "messages[].name": 300}


def test_conversion_and_check_tell_it(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *ROWS)
    assert convert([DataFile(path=path)], tmp_path / "out.jsonl").unread.lines() == LINES
    found = check_data(path)["train"]
    assert all(line in found.table().splitlines() for line in LINES[:1])
    assert found.as_dict()["unread"] == {"score": 2, "messages[].name": 1}
    assert found.as_dict()["rejected_answers"] == 1
    assert found.as_dict()["doubts"] == {"`split` is `dev`": 1, "a text to be trained is `nan`": 1}
