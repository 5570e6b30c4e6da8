"""Rows of messages that are refused: the full text of every reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
from message_rows import ASSISTANT, TOOL, USER, with_call, with_message

from glmtune.data.conversation import RowError
from glmtune.data.formats import to_conversations

SYSTEM = {"role": "system", "content": "s"}
OBSERVATION = {"role": "observation", "content": "o"}


REFUSED: list[tuple[Any, str]] = [
    # the row
    ([USER], "the row is a list; expected an object with `messages`"),
    ("text", "the row is text; expected an object with `messages`"),
    (None, "the row is null; expected an object with `messages`"),
    (True, "the row is a boolean; expected an object with `messages`"),
    (1.5, "the row is a number; expected an object with `messages`"),
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
    (
        with_call(name="f", arguments='{"a": "\udc00"}'),
        "message 1 holds `\\udc00`, which is half of a character",
    ),
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
    ({"messages": [USER, ASSISTANT], "tools": ["f"]}, "tool 0 of `tools` is text; expected an object"),
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
        "the row offers tools beside its messages and others in the system message; expected one list",
    ),
    ({"messages": [USER, ASSISTANT], "tools": 0}, "`tools` is a number; expected a list of tool objects"),
    ({"messages": [USER, ASSISTANT], "tools": [None]}, "tool 0 of `tools` is null; expected an object"),
    ({"messages": [USER, ASSISTANT], "tools": [TOOL, {"type": "function"}]}, "tool 1 of `tools` has no function name"),
    ({"messages": [USER, ASSISTANT], "tools": [{"name": None}]}, "tool 0 of `tools` has no function name"),
    (
        {"messages": [USER, ASSISTANT], "tools": '[{"name": "f", "name": "g"}]'},
        "`tools` is text that is not JSON: key `name` stands twice in one object",
    ),
    (
        {"messages": [USER, ASSISTANT], "tools": '[{"name": "f", "x": NaN}]'},
        "`tools` is text that is not JSON: `NaN` is no number of JSON",
    ),
    (
        {"messages": [USER, ASSISTANT], "tools": [{"name": "f", "x": float("inf")}]},
        "`tools` holds a number that is not finite",
    ),
    # loss
    (
        with_message(loss="0"),
        "`loss` of message 1 is text; expected true, false or a weight of at least 0",
    ),
    (with_message(loss=-0.5), "`loss` of message 1 is `-0.5`; expected true, false or a weight of at least 0"),
    (
        with_message(weight=float("nan")),
        "`weight` of message 1 is `nan`; expected true, false or a weight of at least 0",
    ),
    (
        with_message(loss=float("inf")),
        "`loss` of message 1 is `inf`; expected true, false or a weight of at least 0 and at most 1,000,000",
    ),
    (with_message(loss=[1]), "`loss` of message 1 is a list; expected true, false or a weight of at least 0"),
    (with_message(loss=True, weight=0), "message 1 has `loss` True and `weight` 0; expected one of them"),
    (
        with_message(role="user", loss=True),
        "message 1 has `loss` 1.0 but role `user`; only assistant messages are trained",
    ),
    (
        with_message(role="system", weight=0.5),
        "message 1 has `weight` 0.5 but role `system`; only assistant messages are trained",
    ),
    # reasoning
    (
        with_message(role="user", reasoning_content="r"),
        "message 1 has `reasoning_content` but role `user`; only an assistant message may",
    ),
    (with_message(reasoning_content={"a": 1}), "`reasoning_content` of message 1 is an object; expected text"),
    (with_message(reasoning_content="\ud83d"), "message 1 holds `\\ud83d`, which is half of a character"),
    # more of tool calls
    (
        with_call(function={"name": "f", "arguments": [1]}),
        "message 1 calls `f` with a list; expected arguments as an object or JSON text",
    ),
    (
        with_call(function={"name": "f", "arguments": 5}),
        "message 1 calls `f` with a number; expected arguments as an object or JSON text",
    ),
    (
        with_call(function={"name": "f", "arguments": {"x": float("nan")}}),
        "message 1 holds a number that is not finite",
    ),
    (with_call(name="f\ng"), "the name of a function that message 1 calls holds a line break"),
    (with_message(metadata="f\ng"), "`metadata` of message 1 holds a line break"),
    (
        with_message(metadata="f", tool_calls=[{"name": "f"}]),
        "message 1 has tool calls and `metadata`; expected one of them",
    ),
    (
        with_message(function_call={"name": "f"}, tool_calls=[{"name": "f"}]),
        "message 1 has `tool_calls` and `function_call`; expected one of them",
    ),
    # their order
    (
        {"messages": [SYSTEM, SYSTEM, USER, ASSISTANT]},
        "message 1 is another system message; expected one at the beginning only",
    ),
    ({"messages": [USER, SYSTEM, ASSISTANT]}, "message 1 is a system message; expected one at the beginning only"),
    ({"messages": [OBSERVATION, ASSISTANT]}, "message 0 has role `observation`; expected a user message first"),
    ({"messages": [ASSISTANT, USER, ASSISTANT]}, "message 0 has role `assistant`; expected a user message first"),
    ({"messages": [SYSTEM, ASSISTANT]}, "message 1 has role `assistant`; expected a user message first"),
    ({"messages": [USER, OBSERVATION, ASSISTANT]}, "message 1 is an observation without a tool call before it"),
    ({"messages": [USER]}, "message 0, the last, has role `user`; expected an assistant message at the end"),
    ({"messages": [SYSTEM]}, "message 0, the last, has role `system`; expected an assistant message at the end"),
    (
        {"messages": [USER, ASSISTANT, USER]},
        "message 2, the last, has role `user`; expected an assistant message at the end",
    ),
    (
        {"messages": [USER, ASSISTANT, OBSERVATION]},
        "message 2, the last, has role `observation`; expected an assistant message at the end",
    ),
]


@pytest.mark.parametrize(("row", "reason"), REFUSED, ids=[str(number) for number in range(len(REFUSED))])
def test_a_row_is_refused_with_the_reason_in_full(row: Any, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        to_conversations(row)
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ({"name": "f", "arguments": {}, "args": {"x": 1}}, "has `arguments` and `args`; expected one of them"),
        (
            {"function": {"name": "f", "params": {}}, "input": {"x": 1}},
            "has `params` and `input`; expected one of them",
        ),
        (
            {"function": {"name": "f", "arguments": {}}, "arguments": {"x": 1}},
            "has `arguments` and `arguments`; expected one of them",
        ),
        ({"name": "f", "x": 1}, "has no `arguments` but `x`; expected `arguments`"),
        (
            {"function": {"name": "f", "call_args": {"x": 1}}},
            "has no `arguments` but `call_args`; expected `arguments`",
        ),
        ({"function": {"name": "f"}, "payload": "{}x"}, "has no `arguments` but `payload`; expected `arguments`"),
    ],
)
def test_a_call_whose_arguments_may_stand_elsewhere_is_refused(call: dict[str, Any], reason: str) -> None:
    rows = [
        {"messages": [USER, {"role": "assistant", "tool_calls": [call]}]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": json.dumps(call)}]},
    ]
    for row in rows:
        with pytest.raises(RowError) as caught:
            to_conversations(row)
        assert str(caught.value) == f"a tool call of message 1 {reason}"
