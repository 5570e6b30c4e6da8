"""Rows of outside formats: what they become, and the full text of every refusal."""

from __future__ import annotations

import json
from typing import Any

import pytest

from glmtune.data.conversation import Conversation, Message, RowError
from glmtune.data.formats import to_conversation

USER = {"role": "user", "content": "a"}
ASSISTANT = {"role": "assistant", "content": "b"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"z": 1, "a": None}}}


def with_message(**message: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", "content": "b"} | message]}


def with_call(**call: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", "tool_calls": [call]}]}


REFUSED: list[tuple[Any, str]] = [
    # the row
    ([USER], "the row is a list; expected an object with `messages`"),
    ("text", "the row is text; expected an object with `messages`"),
    (None, "the row is null; expected an object with `messages`"),
    (True, "the row is a boolean; expected an object with `messages`"),
    (1.5, "the row is a number; expected an object with `messages`"),
    ({}, "unknown row format (keys: none); expected `messages`"),
    ({"prompt": "a", "answer": "b"}, "unknown row format (keys: `prompt`, `answer`); expected `messages`"),
    (
        dict.fromkeys("abcdefgh"),
        "unknown row format (keys: `a`, `b`, `c`, `d`, `e`, `f`); expected `messages`",
    ),
    # its messages
    ({"messages": []}, "`messages` is empty; expected a list of messages"),
    ({"messages": None}, "`messages` is null; expected a list of messages"),
    ({"messages": {"role": "user"}}, "`messages` is an object; expected a list of messages"),
    ({"messages": [USER, "b"]}, "message 1 is text; expected an object with `role` and `content`"),
    ({"messages": [USER, None]}, "message 1 is null; expected an object with `role` and `content`"),
    # their roles
    (with_message(role="human"), "message 1 has role `human`; expected system, user, assistant or observation"),
    (with_message(role=None), "message 1 has role `None`; expected system, user, assistant or observation"),
    (with_message(role=["user"]), "message 1 has role `['user']`; expected system, user, assistant or observation"),
    ({"messages": [{"content": "a"}]}, "message 0 has role `None`; expected system, user, assistant or observation"),
    # their content
    (with_message(role="user", content=""), "message 1, of role `user`, has no content"),
    (with_message(role="user", content=None), "message 1, of role `user`, has no content"),
    (with_message(role="tool", content=""), "message 1, of role `observation`, has no content"),
    (with_message(content=5), "content of message 1 is a number; expected text"),
    (with_message(content={"text": "b"}), "content of message 1 is an object; expected text"),
    (with_message(content=["b"]), "content of message 1 has parts of type text alone; expected text only"),
    (
        with_message(content=[{"type": "text", "text": "b"}, {"type": "image_url"}, {"type": "audio"}]),
        "content of message 1 has parts of type audio, image_url; expected text only",
    ),
    (with_message(content=[{"type": [1]}]), "content of message 1 has parts of type [1]; expected text only"),
    (with_message(content=[{"text": "b"}]), "content of message 1 has parts of type None; expected text only"),
    (with_message(content=[{"type": "text", "text": 5}]), "content of message 1 has a text part without `text`"),
    (with_message(content=[{"type": "text"}]), "content of message 1 has a text part without `text`"),
    (with_message(content="b\ud83d"), "message 1 holds `\\ud83d`, which is half of a character"),
    (with_message(metadata={"a": 1}), "`metadata` of message 1 is an object; expected text"),
    # tool calls
    (with_call(), "a tool call of message 1 has no function name"),
    (with_call(function={}), "a tool call of message 1 has no function name"),
    (with_call(function={"name": ""}), "a tool call of message 1 has no function name"),
    (with_call(function={"name": 5}), "a tool call of message 1 has no function name"),
    (with_call(function="f"), "a tool call of message 1 has no function name"),
    (with_message(tool_calls=["f"]), "a tool call of message 1 has no function name"),
    (with_message(tool_calls={"name": "f"}), "`tool_calls` of message 1 is an object; expected a list of calls"),
    (with_message(tool_calls=1), "`tool_calls` of message 1 is a number; expected a list of calls"),
    (with_call(name="f", arguments="\udc00"), "message 1 holds `\\udc00`, which is half of a character"),
    (
        with_message(role="user", tool_calls=[{"name": "f"}]),
        "message 1 has `tool_calls` but role `user`; only an assistant calls tools",
    ),
    (
        with_message(role="tool", function_call={"name": "f"}),
        "message 1 has `function_call` but role `observation`; only an assistant calls tools",
    ),
    # tools
    (
        {"messages": [USER, ASSISTANT], "tools": "[{"},
        "`tools` is text that is not JSON: Expecting property name enclosed in double quotes: line 1 column 3 (char 2)",
    ),
    ({"messages": [USER, ASSISTANT], "tools": TOOL}, "`tools` is an object; expected a list of tool objects"),
    ({"messages": [USER, ASSISTANT], "tools": ["f"]}, "`tools` is a list; expected a list of tool objects"),
    ({"messages": [USER, ASSISTANT], "tools": "1"}, "`tools` is a number; expected a list of tool objects"),
    (
        {"messages": [USER | {"tools": '{"a": 1}'}]},
        "`tools` of message 0 is an object; expected a list of tool objects",
    ),
    (
        {"messages": [USER, ASSISTANT], "tools": [{"name": "\ud83d"}]},
        "`tools` holds `\\ud83d`, which is half of a character",
    ),
    (
        {"messages": [{"role": "system", "content": "s", "tools": [TOOL]}, USER, ASSISTANT], "tools": [{"name": "g"}]},
        "the row offers tools beside `messages` and others in its system message; expected one list",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason"), REFUSED, ids=[str(number) for number in range(len(REFUSED))])
def test_a_row_is_refused_with_the_reason_in_full(row: Any, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        to_conversation(row)
    assert str(caught.value) == reason


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
