"""Published rows: each is read, and its GLM-4 form is read as the same conversation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_shared_rows import glm_form, openai_form
from transformers import PreTrainedTokenizerBase

from glmtune.data.conversation import Conversation
from glmtune.data.formats import RowFormat, to_conversations, to_row

FILES = [
    ("AdvertiseGen/train.jsonl", "messages", 3000),
    ("AdvertiseGen/dev.jsonl", "messages", 1070),
    ("glaive_toolcall_zh_1k.json", "sharegpt", 1000),
    ("alpaca_zh_demo.json", "alpaca", 1000),
    ("identity.json", "alpaca", 91),
    ("dpo_zh_demo.json", "preference", 300),
]


def rows_of(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def texts_of(conversation: Conversation, role: str) -> list[str]:
    return [message.content for message in conversation.messages if message.role == role]


@pytest.mark.parametrize(("name", "row_format", "num_rows"), FILES)
def test_every_row_is_found_out_and_comes_back_from_its_glm4_form(
    name: str, row_format: str, num_rows: int, shared_data: Path
) -> None:
    rows = rows_of(shared_data / name)
    assert len(rows) == num_rows
    for row in rows:
        conversations = to_conversations(row)
        assert len(conversations) == 1
        assert to_conversations(row, RowFormat(name=row_format)) == conversations
        line = json.dumps(to_row(conversations[0]), ensure_ascii=False)
        assert to_conversations(json.loads(line)) == conversations


def test_every_text_of_the_glaive_rows_is_kept(shared_data: Path) -> None:
    roles = {"human": "user", "gpt": "assistant", "observation": "observation"}
    for row in rows_of(shared_data / "glaive_toolcall_zh_1k.json"):
        [conversation] = to_conversations(row)
        turns = [message for message in conversation.messages if message.role != "system"]
        for turn, message in zip(row["conversations"], turns, strict=True):
            if turn["from"] == "function_call":
                call = json.loads(turn["value"])
                expected = json.dumps(call["arguments"], ensure_ascii=False)
                assert (message.role, message.metadata, message.content) == ("assistant", call["name"], expected)
            else:
                assert (message.role, message.metadata, message.content) == (roles[turn["from"]], "", turn["value"])
        tools = json.loads(row["tools"])
        assert conversation.tools == ([{"type": "function", "function": tool} for tool in tools] or None)


def test_the_glaive_rows_are_the_same_in_openais_form_and_render_as_glm4s_own_messages(
    shared_data: Path, glm_tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = rows_of(shared_data / "glaive_toolcall_zh_1k.json")
    conversations = [to_conversations(row) for row in rows]
    assert conversations == [to_conversations(openai_form(row)) for row in rows]
    ours = [to_row(conversation)["messages"] for [conversation] in conversations]
    theirs = [glm_form(row) for row in rows]
    render = glm_tokenizer.apply_chat_template
    assert render(ours, tokenize=False) == render(theirs, tokenize=False)


def test_the_preference_rows_train_the_chosen_answer(shared_data: Path) -> None:
    for row in rows_of(shared_data / "dpo_zh_demo.json"):
        [conversation] = to_conversations(row)
        assert texts_of(conversation, "assistant") == [row["chosen"]["value"]]
        assert conversation.messages[-1].loss is None


def test_the_alpaca_rows_join_instruction_and_input(shared_data: Path) -> None:
    for row in rows_of(shared_data / "alpaca_zh_demo.json"):
        [conversation] = to_conversations(row)
        question = row["instruction"] + (f"\n{row['input']}" if row["input"] else "")
        assert texts_of(conversation, "user") == [question]
        assert texts_of(conversation, "assistant") == [row["output"]]
