"""Prompts from a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glmtune.chatformat.encoding import Encoder
from glmtune.data.formats import to_conversation
from glmtune.data.formats.unread import HARMLESS
from glmtune.errors import GlmtuneError
from glmtune.exporting.sample_prompts import sample_prompts
from glmtune.generation.ask import answer_all, read_prompts
from glmtune.generation.generate import encode_question
from glmtune.modeling.finding.model_source import find_model
from glmtune.modeling.loading import LoadedModel, load_model


@pytest.fixture(scope="module")
def loaded(demo_model: str) -> LoadedModel:
    return load_model(find_model(demo_model))


def test_prompts_are_read_from_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('"a"\n{"prompt": "b"}\n\n{"messages": [{"role": "user", "content": "c"}]}\n', encoding="utf-8")
    assert read_prompts(None, path) == ["a", "b", [{"role": "user", "content": "c"}]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'"\xc4\xe3"', "byte 2 of the row, 0xc4, is not UTF-8; expected a file saved as UTF-8"),
        (b"{", "not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b"{}", "the row has neither `prompt` (text) nor `messages` (a list)"),
    ],
)
def test_a_row_that_is_no_prompt_is_an_error(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'"a"\n' + content)
    with pytest.raises(GlmtuneError) as caught:
        read_prompts(None, path)
    assert str(caught.value) == f"{message}\n  --> {path}:2"


TOOLS = [{"type": "function", "function": {"name": "query_stock", "description": "查询库存", "parameters": {}}}]
QUESTION = {"role": "user", "content": "有货吗？"}


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({"messages": [QUESTION], "tools": TOOLS}, ["query_stock", "有货吗？"]),
        ({"messages": [QUESTION], "tools": json.dumps(TOOLS)}, ["query_stock", "有货吗？"]),
        ({"messages": [QUESTION], "system": "只说英文"}, ["只说英文", "有货吗？"]),
        ({"messages": [QUESTION], "system": "只说英文", "tools": TOOLS}, ["query_stock", "只说英文", "有货吗？"]),
        ({"messages": [{"role": "system", "content": "只说英文"}, QUESTION], "tools": TOOLS}, ["只说英文"]),
        ({"prompt": "你好", "system": "只说英文"}, ["只说英文", "你好"]),
        ({"prompt": "你好", "tools": TOOLS}, ["query_stock", "你好"]),
        ({"prompt": "你好", "history": [["早", "早上好"]]}, ["早", "早上好", "你好"]),
        ({"messages": [QUESTION], "functions": [TOOLS[0]["function"]]}, ["query_stock", "有货吗？"]),
        ({"messages": [{"role": "system", "content": "短"}, QUESTION], "system": "短"}, ["短", "有货吗？"]),
        ({"prompt": "你好", "system": None, "tools": [], "history": []}, ["你好"]),
        ({"prompt": "你好", "system_prompt": "只说英文"}, ["只说英文", "你好"]),
        ({"messages": [QUESTION], "system_message": "只说英文"}, ["只说英文", "有货吗？"]),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_stands_beside_the_question_is_shown_to_the_model(row, asked, tmp_path, loaded, capsys) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    encoder = Encoder(loaded.tokenizer, loaded.family)
    [prompt] = read_prompts(None, path)
    text = loaded.tokenizer.decode(encode_question(encoder, prompt, None))
    places = [text.find(part) for part in asked]
    assert places[0] >= 0
    assert places == sorted(places)
    if "messages" in row and not {"system", "functions"} & row.keys():  # what training shows before an answer
        trained = row | {"messages": [*row["messages"], {"role": "assistant", "content": "答"}]}
        assert loaded.tokenizer.decode(encoder.encode(to_conversation(trained)).input_ids).startswith(text)
    assert "not read" not in capsys.readouterr().err
    # The check of an export asks the same.
    assert sample_prompts(path, {}, encoder)[0] == [encode_question(encoder, prompt, None)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "messages": [QUESTION]}, "the row has both `prompt` and `messages`; expected one of them"),
        ({"messages": [{"role": "narrator", "content": "a"}]}, "cannot ask this: message 0 has role `narrator`"),
        ({"messages": ["a"]}, "cannot ask this: message 0 is text; expected an object with `role` and `content`"),
        ({"prompt": "a", "image_url": "a.png"}, "cannot ask this: `image_url` cannot be shown to the model; expected"),
        ({"prompt": "a", "tools": "[{"}, "cannot ask this: `tools` is text that is not JSON"),
        ({"prompt": "a", "tools": 5}, "cannot ask this: `tools` is a number; expected a list of tool objects"),
        ({"prompt": "a", "history": "x"}, "cannot ask this: `history` is text; expected a list of pairs"),
        ({"messages": [QUESTION], "tools": TOOLS, "functions": TOOLS}, "cannot ask this: the row offers `tools` and"),
        ({"prompt": "a", "images": ["a.png"]}, "cannot ask this: `images` cannot be shown to the model; expected text"),
        ({"messages": [QUESTION], "video": "a.mp4"}, "cannot ask this: `video` cannot be shown to the model"),
        ({"messages": [QUESTION], "history": [["a", "b"]]}, "cannot ask this: `history` stands beside `messages`"),
        ({"messages": [{"role": "system", "content": "a"}, QUESTION], "system": "b"},
         "cannot ask this: the row has a `system` text and another in its first message; expected one of them"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_to_the_model_is_an_error(row, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(GlmtuneError) as caught:
        read_prompts(None, path)
    assert caught.value.what.startswith(message)
    assert caught.value.where == f"{path}:1"


def test_keys_that_are_not_read_are_told(tmp_path: Path, capsys) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": "a", "id": 1, "note": None, "kind": "x"},
        {"prompt": "b", "id": 2, "score": 3, "kind": "y"},
        {"messages": [QUESTION | {"name": "Ann"}, {"role": "assistant", "content": "a", "id": 3}]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert read_prompts(None, path) == ["a", "b", rows[2]["messages"]]
    told = "`score` (1 row), `messages[].name` (1 row)"
    assert capsys.readouterr().err == f"note: keys that are not read: {told}\n"


@pytest.mark.parametrize("key", sorted(HARMLESS))
def test_keys_that_are_harmless_in_training_are_harmless_in_asking(key: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "a", key: "x"}), encoding="utf-8")
    read_prompts(None, path)
    assert capsys.readouterr().err == ""


def test_a_prompt_that_has_no_room_is_told_before_the_first_answer(loaded: LoadedModel, monkeypatch) -> None:
    monkeypatch.setattr(loaded.model.config, "max_position_embeddings", 32)
    for stream in (False, True):
        with pytest.raises(GlmtuneError, match=r"^prompt 2 has [\d]+ tokens, and the model's context ends at 32\n"):
            next(answer_all(loaded, ["a", "b c d " * 20], stream=stream, batch_size=1, max_new_tokens=2))


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_a_file_without_a_prompt_is_an_error(content: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(GlmtuneError) as caught:
        read_prompts(None, path)
    assert str(caught.value) == f"the file holds no prompt\n  --> {path}\nhint: give one prompt a line"
