"""Conversations that are written into one text, in the place of a question, an answer, or plain text."""

from __future__ import annotations

from typing import Any

import pytest

from glmtune.data.formats import read_row, to_conversations

SAID = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: x\n\nAssistant:"
TURNS = [("user", "hi"), ("assistant", "hello"), ("user", "x"), ("assistant", " y")]

ROWS: list[dict[str, Any]] = [
    {"prompt": SAID, "completion": " y"},
    {"instruction": SAID, "output": " y"},
    {"instruction": SAID, "input": "", "output": " y"},
    {"prompt": SAID, "response": " y", "history": []},
    {"prompt": SAID, "chosen": " y", "rejected": " z"},
    {"prompt": SAID.strip(), "chosen": " y", "rejected": " z"},
    {"prompt": SAID + " ", "chosen_response": " y", "rejected_response": " z"},
    {"content": SAID, "summary": " y"},
]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_transcript_that_waits_for_its_answer_is_read_as_turns(row: dict[str, Any]) -> None:
    [conversation] = to_conversations(row)
    assert [(message.role, message.content) for message in conversation.messages] == TURNS
    assert [message.loss for message in conversation.messages] == [None, 0.0, None, None]
    assert read_row(row).doubts == ()


def test_a_transcript_of_one_question_is_that_question() -> None:
    [conversation] = to_conversations({"prompt": "Human: x\n\nAssistant:", "completion": "y"})
    assert [message.content for message in conversation.messages] == ["x", "y"]


def test_a_transcript_beside_an_answer_that_repeats_it_is_one_question() -> None:
    row = {"prompt": SAID, "chosen": SAID + " y", "rejected": SAID + " z"}
    [conversation] = to_conversations(row)
    assert [message.content.strip() for message in conversation.messages] == ["hi", "hello", "x", "y"]


@pytest.mark.parametrize(
    ("text", "doubt"),
    [
        ("Human: hi\nAssistant: hello\nHuman: x\nAssistant:", "`Human:` and `Assistant:` stand in a question"),
        ("Human:你好\nAssistant:你好！\nHuman:再见\nAssistant:", "`Human:` and `Assistant:` stand in a question"),
        ("Human: hi\n\nHuman: x\n\nAssistant:", "`Human:` and `Assistant:` stand in a question"),
        ("Human: hi\n\nAssistant: hello", "`Human:` and `Assistant:` stand in a question"),
        ("User: hi\nAssistant:", "`User:` and `Assistant:` stand in a question"),
        ("### Human: hi\n### Assistant:", "`Human:` and `Assistant:` stand in a question"),
        ("<human>: hi\n<bot>:", "`human:` and `bot:` stand in a question"),
        ("用户：你好\n助手：", "`用户:` and `助手:` stand in a question"),
        ("Be kind.\n\nHuman: hi\n\nAssistant:", "`Assistant:` stands at the end of a question"),
    ],
)
def test_speakers_that_become_text_are_told(text: str, doubt: str) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": text, "completion": "y"},
        {"instruction": text, "output": "y"},
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "y"}]},
    ]
    for row in rows:
        [told] = read_row(row).doubts
        assert told.startswith(doubt)
        assert told.endswith("text there")
    [told] = read_row({"prompt": text, "response": "y"}).doubts
    assert told.startswith(doubt.replace("a question", "a text"))


def test_speakers_in_plain_text_and_in_an_answer_are_told() -> None:
    for text in ("### Human: hi### Assistant: hello", "### Human: hi\n### Assistant: hello", SAID + " y"):
        assert read_row({"text": text}).doubts == ("`Human:` and `Assistant:` stand in a text, and are text there",)
    answer = "y\n\nHuman: and?\n\nAssistant: z"
    doubt = "`Human:` and `Assistant:` stand in an answer, and are text there"
    assert read_row({"instruction": "x", "output": answer}).doubts == (doubt,)


@pytest.mark.parametrize(
    "text",
    [
        "Sum up:\nUser: hi\nAssistant: hello",
        "Who is Human: a film?",
        "Q: what\nA:",
        "User: I want a name",
        "An assistant: what is it?",
        "Human: the meaning of the word",
    ],
)
def test_questions_about_speakers_are_not_told(text: str) -> None:
    assert read_row({"instruction": text, "output": "y"}).doubts == ()
