"""Special tokens in the text of a message are ordinary text, and every verb that reads rows says so."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AddedToken

from glmtune.chatformat.control_tokens import ControlTokens
from glmtune.chatformat.encoding import Encoder
from glmtune.data.formats import to_conversation
from glmtune.data.unused import AS_TEXT, Unread
from glmtune.datatools.data_inspection import check_data, inspect_rows
from glmtune.encoded.dataset import encode_file, join
from glmtune.encoded.store import file_hash
from glmtune.family import GLM

SKU = ("<SKU>", "</SKU>")


def row(question: str, answer: str = "有。") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


ROWS = [row("<SKU>12</SKU>?", "<SKU>12</SKU>"), row("<SKU>"), row("12"), {"text": "</SKU>"}]


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows), encoding="utf-8")
    return path


@pytest.fixture
def tokenizer(demo_tokenizer: Any) -> Any:
    tokenizer = copy.deepcopy(demo_tokenizer)
    tokenizer.add_tokens([AddedToken(name, special=True) for name in SKU], special_tokens=True)
    return tokenizer


LINE = f"special tokens in texts are {AS_TEXT}: `</SKU>` (2 rows), `<SKU>` (2 rows)"


def test_they_are_counted_by_row_at_every_start(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path / "rows.jsonl", *ROWS)
    for content_hash in (None, file_hash(path), file_hash(path)):
        data = encode_file(path, Encoder(tokenizer, GLM), content_hash=content_hash)
        assert data.unread.lines() == [LINE]
    assert join([data, data]).unread.tokens == dict.fromkeys(SKU, 4)


def test_they_are_counted_over_several_processes(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glmtune.encoded.dataset.MIN_ROWS_PER_PROCESS", 100)
    path = write(tmp_path / "rows.jsonl", *ROWS * 300)
    assert encode_file(path, Encoder(tokenizer, GLM), num_proc=2).unread.tokens == dict.fromkeys(SKU, 600)


def test_they_get_the_ids_of_ordinary_text(tokenizer: Any) -> None:
    ids = Encoder(tokenizer, GLM).encode(to_conversation(ROWS[0])).input_ids
    assert not set(ids) & set(tokenizer.convert_tokens_to_ids(list(SKU)))
    assert tokenizer.decode(ids).count("<SKU>12</SKU>") == 2


def test_plain_tokens_of_the_user_are_tokens_and_nothing_is_said(demo_tokenizer: Any, tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(demo_tokenizer)
    tokenizer.add_tokens(list(SKU))
    data = encode_file(write(tmp_path / "rows.jsonl", *ROWS), Encoder(tokenizer, GLM))
    assert data.unread.lines() == []
    ids = data.dataset["input_ids"][0]
    assert [ids.count(id) for id in tokenizer.convert_tokens_to_ids(list(SKU))] == [2, 2]


TEXTS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "a question": (row("<SKU>"), {"<SKU>"}),
    "an answer": (row("a", "</SKU>"), {"</SKU>"}),
    "a control token of the template": (row("<|user|>"), {"<|user|>"}),
    "nothing": (row("<SK U>", "SKU>"), set()),
    "tools": (
        row("a") | {"tools": [{"type": "function", "function": {"name": "f", "description": "<SKU>"}}]}, {"<SKU>"},
    ),
    "escaped in tools": (
        row("a") | {"tools": json.dumps([{"type": "function", "function": {"name": "f", "description": "<SKU>"}}])
        .replace("<", "\\u003c")},
        {"<SKU>"},
    ),
    "a system message": ({"messages": [{"role": "system", "content": "<SKU>"}, *row("a")["messages"]]}, {"<SKU>"}),
}  # fmt: skip


@pytest.mark.parametrize(("value", "names"), TEXTS.values(), ids=TEXTS)
def test_they_are_found_wherever_text_stands(value: dict[str, Any], names: set[str], tokenizer: Any) -> None:
    assert ControlTokens(tokenizer).names_in(to_conversation(value)) == names


def test_many_of_them_are_told_in_short() -> None:
    unread = Unread()
    unread.add_tokens(f"<{number}>" for number in range(12))
    unread.add_tokens(["<3>", "<3>"])
    [line] = unread.lines()
    assert "`<3>` (2 rows), `<0>` (1 row)" in line
    assert line.endswith(" and 4 more")
    assert Unread.from_dict(json.loads(json.dumps(unread.as_dict()))) == unread


def test_check_and_inspect_tell_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "rows.jsonl", row("a"), row("<|endoftext|>"), row("<|endoftext|><|user|>"))
    found = check_data(path, "demo")["train"]
    assert found.as_dict()["special_tokens_in_texts"] == {"<|endoftext|>": 2, "<|user|>": 1}
    assert "`<|endoftext|>` (2 rows), `<|user|>` (1 row)" in " ".join(found.table().split())
    assert "special_tokens_in_texts" not in check_data(path)["train"].as_dict()
    capsys.readouterr()
    assert len(list(inspect_rows(path, "demo").rows)) == 3
    assert capsys.readouterr().err == (
        f"note: special tokens in the text of row 1 are {AS_TEXT}: `<|endoftext|>`\n"
        f"note: special tokens in the text of row 2 are {AS_TEXT}: `<|user|>`\n"
    )
