"""Published rows: labels equal a rule written anew, and every inference prompt is a prefix of what training saw.

The rule in one paragraph: each message is rendered alone by the tokenizer's own template and loses the two tokens
of the prefix; of an assistant message all but its role token is trained, and so is the first token of the message
behind it; at the end of the row `<|user|>` is appended, or `<|observation|>` after a call.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from marked_text import prompts_of
from transformers import PreTrainedTokenizerBase

from glmtune.chatformat.encoding import Encoder
from glmtune.chatformat.examples import Example, turns_of
from glmtune.data.conversation import Conversation
from glmtune.data.conversion import convert
from glmtune.data.formats import to_conversation
from glmtune.data.reading.read_rows import read_rows
from glmtune.data.reading.sources import DataFile
from glmtune.encoded.dataset import encode_file
from glmtune.family import GLM

Messages = list[dict[str, Any]]

ROLES = {"human": "user", "gpt": "assistant", "observation": "observation"}


@pytest.fixture(scope="module")
def encoder(glm_tokenizer: PreTrainedTokenizerBase) -> Encoder:
    return Encoder(glm_tokenizer, GLM)


def labels_written_anew(tokenizer: PreTrainedTokenizerBase, rows: list[Messages]) -> list[tuple[list[int], list[int]]]:
    """Return ids and labels of rows in GLM-4's own form."""
    alone = [[message] for messages in rows for message in messages]
    pieces = iter(tokenizer.apply_chat_template(alone, tokenize=True, return_dict=False))
    user, observation = tokenizer.convert_tokens_to_ids(["<|user|>", "<|observation|>"])
    examples = []
    for messages in rows:
        ids, labels = tokenizer.convert_tokens_to_ids(["[gMASK]", "<sop>"]), [-100, -100]
        trained = False
        for message in messages:
            piece = next(pieces)[2:]
            stop = piece[:1] if trained else [-100]
            trained = message["role"] == "assistant"
            ids += piece
            labels += stop + (piece[1:] if trained else [-100] * (len(piece) - 1))
        if trained:
            stop = observation if messages[-1].get("metadata") else user
            ids, labels = [*ids, stop], [*labels, stop]
        examples.append((ids, labels))
    return examples


def assert_prompts_are_the_beginnings_of_turns(
    encoder: Encoder, conversations: Sequence[Conversation], examples: Sequence[Example]
) -> None:
    for conversation, example in zip(conversations, examples):
        prompts = prompts_of(conversation, encoder)
        assert prompts
        # A prefix of the ids, and trained from there on.
        assert prompts == [turn.prompt_ids for turn in turns_of(example.input_ids, example.labels)]


def openai_form(row: dict[str, Any]) -> dict[str, Any]:
    messages: Messages = []
    for turn in row["conversations"]:
        if turn["from"] == "function_call":
            call = {"id": "call", "type": "function", "function": json.loads(turn["value"])}
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif turn["from"] == "observation":
            messages.append({"role": "tool", "tool_call_id": "call", "content": turn["value"]})
        else:
            messages.append({"role": ROLES[turn["from"]], "content": turn["value"]})
    return {"messages": messages, "tools": row["tools"]}


def glm_form(row: dict[str, Any]) -> Messages:
    tools = [{"type": "function", "function": tool} for tool in json.loads(row["tools"])]
    messages: Messages = [{"role": "system", "content": "", "tools": tools}] if tools else []
    for turn in row["conversations"]:
        if turn["from"] == "function_call":
            call = json.loads(turn["value"])
            content = json.dumps(call["arguments"], ensure_ascii=False)
            messages.append({"role": "assistant", "metadata": call["name"], "content": content})
        else:
            messages.append({"role": ROLES[turn["from"]], "content": turn["value"]})
    return messages


@pytest.mark.parametrize(("name", "num_rows"), [("train", 3000), ("dev", 1070)])
def test_every_advertisegen_row_has_the_labels_of_the_rule_and_its_prompt_is_a_prefix(
    name: str, num_rows: int, encoder: Encoder, shared_data: Path
) -> None:
    lines = (shared_data / "AdvertiseGen" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == num_rows
    conversations = [to_conversation(row) for row in rows]
    examples = encoder.encode_batch(conversations)
    expected = labels_written_anew(encoder.tokenizer, [row["messages"] for row in rows])
    assert [(example.input_ids, example.labels) for example in examples] == expected
    assert_prompts_are_the_beginnings_of_turns(encoder, conversations, examples)


def test_every_glaive_tool_row_has_the_labels_of_the_rule_and_every_prompt_of_it_is_a_prefix(
    encoder: Encoder, shared_data: Path
) -> None:
    rows = json.loads((shared_data / "glaive_toolcall_zh_1k.json").read_text(encoding="utf-8"))
    assert len(rows) == 1000
    conversations = [to_conversation(openai_form(row)) for row in rows]
    examples = encoder.encode_batch(conversations)
    expected = labels_written_anew(encoder.tokenizer, [glm_form(row) for row in rows])
    assert [(example.input_ids, example.labels) for example in examples] == expected
    assert_prompts_are_the_beginnings_of_turns(encoder, conversations, examples)


def alpaca_messages(row: dict[str, Any]) -> Messages:
    question = "\n".join(text for text in (row["instruction"], row["input"]) if text)
    return [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]


def preference_messages(row: dict[str, Any]) -> Messages:
    turns = [*row["conversations"], row["chosen"]]
    return [{"role": {**ROLES, "system": "system"}[turn["from"]], "content": turn["value"]} for turn in turns]


@pytest.mark.parametrize(
    ("name", "num_rows", "messages_of"),
    [
        ("glaive_toolcall_zh_1k.json", 1000, glm_form),
        ("alpaca_zh_demo.json", 1000, alpaca_messages),
        ("identity.json", 91, alpaca_messages),
        ("dpo_zh_demo.json", 300, preference_messages),
        ("AdvertiseGen/dev.jsonl", 1070, lambda row: row["messages"]),
    ],
)
def test_every_row_of_every_published_file_goes_from_disk_to_the_labels_of_the_rule(
    name: str, num_rows: int, messages_of: Callable[[dict[str, Any]], Messages], encoder: Encoder, shared_data: Path
) -> None:
    path = shared_data / name
    text = path.read_text(encoding="utf-8")
    rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    data = encode_file(path, encoder)
    assert (len(data.dataset), data.rejects, data.cuts) == (num_rows, (), ())
    expected = labels_written_anew(encoder.tokenizer, [messages_of(row) for row in rows])
    columns = data.dataset.select_columns(["input_ids", "labels"])
    assert [(row["input_ids"], row["labels"]) for row in columns] == expected


@pytest.mark.parametrize("name", ["glaive_toolcall_zh_1k.json", "AdvertiseGen/dev.jsonl", "dpo_zh_demo.json"])
def test_the_quick_way_renders_published_rows_as_the_template_does(
    name: str, encoder: Encoder, shared_data: Path
) -> None:
    conversations = [part for row in read_rows(shared_data / name) for part in row.conversations()]
    plain = encoder.without_skeletons()
    assert encoder.encode_batch(conversations) == plain.encode_batch(conversations)


def test_converted_glaive_rows_render_as_the_chat_template_renders_them(
    encoder: Encoder, shared_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "glaive.jsonl"
    convert([DataFile(path=shared_data / "glaive_toolcall_zh_1k.json")], out)
    rows = [json.loads(line)["messages"] for line in out.read_text(encoding="utf-8").splitlines()]
    published = json.loads((shared_data / "glaive_toolcall_zh_1k.json").read_text(encoding="utf-8"))
    render = encoder.tokenizer.apply_chat_template
    assert render(rows, tokenize=False) == render([glm_form(row) for row in published], tokenize=False)
    converted, direct = (
        encode_file(path, encoder).dataset["input_ids"][:] for path in (out, shared_data / "glaive_toolcall_zh_1k.json")
    )
    assert converted == direct
