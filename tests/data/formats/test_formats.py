"""Rows of OpenAI and GLM-4 messages: what they become."""

from __future__ import annotations

import json
from typing import Any

import pytest
from message_rows import ASSISTANT, TOOL, USER, with_call, with_message

from glmtune.data.conversation import Conversation, Message
from glmtune.data.formats import to_conversation


def test_messages_keep_their_order_roles_and_metadata() -> None:
    conversation = to_conversation(
        {
            "messages": [
                {"role": "developer", "content": "s"},
                USER,
                {"role": "assistant", "content": "{}", "metadata": "f"},
                {"role": "function", "name": "f", "content": "c"},
                {"role": "tool", "content": "d", "metadata": None},
                {"role": "observation", "content": "e"},
                ASSISTANT,
            ],
            "id": 7,
        }
    )
    assert conversation == Conversation(
        messages=(
            Message(role="system", content="s"),
            Message(role="user", content="a"),
            Message(role="assistant", content="{}", metadata="f"),
            Message(role="observation", content="c"),
            Message(role="observation", content="d"),
            Message(role="observation", content="e"),
            Message(role="assistant", content="b"),
        )
    )
    assert [message.number for message in conversation.messages] == [0, 1, 2, 3, 4, 5, 6]


def test_text_and_calls_of_one_message_become_messages_with_its_number() -> None:
    calls = [{"name": "f", "arguments": {"k": 1}}, {"function": {"name": "g", "arguments": "{ }"}}]
    conversation = to_conversation(with_message(tool_calls=calls))
    assert conversation.messages[1:] == (
        Message(role="assistant", content="b"),
        Message(role="assistant", content='{"k": 1}', metadata="f"),
        Message(role="assistant", content="{ }", metadata="g"),
    )
    assert [message.number for message in conversation.messages] == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"k":1 }', '{"k":1 }'),
        ({"k": 1}, '{"k": 1}'),
        ({}, "{}"),
        (None, "{}"),
        ("", "{}"),
        ({"k": [True, None, "北京", 1.0]}, '{"k": [true, null, "北京", 1.0]}'),
    ],
)
def test_arguments_are_json_text(arguments: Any, text: str) -> None:
    [_, call] = to_conversation(with_call(function={"name": "f", "arguments": arguments})).messages
    assert call == Message(role="assistant", content=text, metadata="f")


TOOLS_TEXT = '[{"type": "function", "function": {"name": "f", "parameters": {"z": 1, "a": null}}}]'


@pytest.mark.parametrize(
    ("tools", "text"),
    [
        ([TOOL], TOOLS_TEXT),
        (json.dumps([TOOL]), TOOLS_TEXT),
        ([TOOL["function"]], TOOLS_TEXT),
        ([{"type": "object", "name": "f"}], '[{"type": "function", "function": {"type": "object", "name": "f"}}]'),
        ([{"type": "python"}], '[{"type": "python"}]'),
        ([], None),
        ("[]", None),
        ("", None),
        ("null", None),
        (None, None),
    ],
)
def test_tools_beside_the_messages_become_json_text_of_a_system_message(tools: Any, text: str | None) -> None:
    plain = to_conversation({"messages": [USER, ASSISTANT]}).messages
    added = (Message(role="system", content="", tools=text),) if text else ()
    assert to_conversation({"messages": [USER, ASSISTANT], "tools": tools}).messages == (*added, *plain)


def test_tools_beside_the_messages_join_a_system_message_that_is_there() -> None:
    row = {"messages": [{"role": "system", "content": "s"}, USER, ASSISTANT], "tools": [TOOL]}
    expected = Message(role="system", content="s", tools=TOOLS_TEXT)
    assert to_conversation(row).messages[0] == expected
    row["messages"][0]["tools"] = json.dumps([TOOL])  # the same once more
    assert to_conversation(row).messages[0] == expected


def test_a_tool_schema_survives_byte_for_byte() -> None:
    schema = {"name": "f", "parameters": {"z": None, "a": [1, [2.0]], "n": 2**70, "词": "</s>\u2028"}}
    conversation = to_conversation({"messages": [USER, ASSISTANT], "tools": [schema]})
    assert conversation.messages[0].tools == json.dumps([{"type": "function", "function": schema}], ensure_ascii=False)
    assert conversation.tools == [{"type": "function", "function": schema}]
    assert to_conversation({"messages": [USER, ASSISTANT]}).tools is None


@pytest.mark.parametrize(
    ("message", "is_call"),
    [
        (Message(role="assistant", content="{}", metadata="f"), True),
        (Message(role="assistant", content='{"name": "f", "arguments": {}}'), True),
        (Message(role="assistant", content='{"name": "f", "arguments": {}, "more": 1}'), False),
        (Message(role="assistant", content='{"name": 1, "arguments": {}}'), False),
        (Message(role="assistant", content='{"name": "f", "arguments": {}'), False),
        (Message(role="assistant", content='["name", "arguments"]'), False),
        (Message(role="assistant", content="The answer is\n42"), False),
        (Message(role="user", content='{"name": "f", "arguments": {}}'), False),
        (Message(role="observation", content="{}", metadata="f"), False),
    ],
)
def test_a_tool_call_has_a_name_on_the_role_line_or_is_json_with_exactly_name_and_arguments(
    message: Message, is_call: bool
) -> None:
    assert message.is_tool_call is is_call
