"""Results of several calls, in whatever order and form they come, and what is told where they do not fit."""

from __future__ import annotations

import json
from typing import Any

import pytest

from glmtune.data.formats import read_row, to_conversations

USER = {"role": "user", "content": "q"}
DONE = {"role": "assistant", "content": "ok"}


def call(called: str, /, **more: Any) -> dict[str, Any]:
    return {"function": {"name": called, "arguments": {}}, **more}


def calling(*calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": [*calls]}


def result(of: str, /, **more: Any) -> dict[str, Any]:
    return {"role": "tool", "content": f"of {of}", **more}


def row(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [USER, *messages, DONE]}


def results_of(row: dict[str, Any]) -> list[str]:
    [conversation] = to_conversations(row)
    return [message.content for message in conversation.messages if message.role == "observation"]


CROSSED = {
    "integers": row(
        calling(call("f", id=1), call("g", id=2)), result("g", tool_call_id=2), result("f", tool_call_id=1)
    ),
    "an integer and a text": row(
        calling(call("f", id=1), call("g", id=2)), result("g", tool_call_id="2"), result("f", tool_call_id="1")
    ),
    "names": row(calling(call("f"), call("g")), result("g", name="g"), result("f", name="f")),
    "names beside ids of calls alone": row(
        calling(call("f", id="a"), call("g", id="b")), result("g", name="g"), result("f", name="f")
    ),
    "role function": row(
        calling(call("f"), call("g")),
        {"role": "function", "name": "g", "content": "of g"},
        {"role": "function", "name": "f", "content": "of f"},
    ),
    "call_id": row(calling(call("f", id="a"), call("g", id="b")), result("g", call_id="b"), result("f", call_id="a")),
    "call_id of both": row(
        calling(call("f", call_id="a"), call("g", call_id="b")), result("g", call_id="b"), result("f", call_id="a")
    ),
    "id of both": row(calling(call("f", id="a"), call("g", id="b")), result("g", id="b"), result("f", id="a")),
    "calls in two messages": row(
        calling(call("f", id="a")),
        calling(call("g", id="b")),
        result("g", tool_call_id="b"),
        result("f", tool_call_id="a"),
    ),
    "one of two has an id": row(
        calling(call("f", id="a"), call("g", id="b")), result("g", tool_call_id="b"), result("f")
    ),
    "one of two has a name": row(calling(call("f"), call("g")), result("g", name="g"), result("f")),
    "equal ids, but names": row(
        calling(call("f", id="a"), call("g", id="a")), result("g", name="g"), result("f", name="f")
    ),
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "q"},
            {
                "from": "function_call",
                "value": json.dumps([{"name": name, "arguments": {}, "id": name} for name in ("f", "g")]),
            },
            {"from": "observation", "value": "of g", "tool_call_id": "g"},
            {"from": "observation", "value": "of f", "tool_call_id": "f"},
            {"from": "gpt", "value": "ok"},
        ]
    },
    "a list of messages before the answer": {
        "prompt": row(
            calling(call("f", id=1), call("g", id=2)), result("g", tool_call_id=2), result("f", tool_call_id=1)
        )["messages"][:-1],
        "completion": [DONE],
    },
}


@pytest.mark.parametrize("row", CROSSED.values(), ids=CROSSED)
def test_results_that_say_their_call_come_in_the_order_of_the_calls(row: dict[str, Any]) -> None:
    assert results_of(row) == ["of f", "of g"]
    read = read_row(row)
    assert read.unread == ()
    assert read.doubts in ((), ("two calls have one id",))


def test_results_that_say_nothing_of_their_call_stay_in_order() -> None:
    plain = row(calling(call("f", id=1), call("g", id=2)), result("f"), result("g"))
    assert results_of(plain) == ["of f", "of g"]
    assert read_row(plain).doubts == ()


def test_calls_of_one_name_get_their_results_in_order() -> None:
    twice = row(calling(call("f"), call("f"), call("g")), result("g", name="g"), *(result(n, name="f") for n in "12"))
    assert results_of(twice) == ["of 1", "of 2", "of g"]


TWO = calling(call("f", id=1), call("g", id=2))


@pytest.mark.parametrize(
    ("messages", "doubt"),
    [
        ([TWO, result("g", tool_call_id=2)], "a call has no result"),
        ([TWO, result("f")], "a call has no result"),
        ([calling(call("f")), DONE], "a call has no result"),
        ([TWO, DONE, USER], "a call has no result"),
        (
            [
                calling(call("f", id="a"), call("g", id="a")),
                result("f", tool_call_id="a"),
                result("g", tool_call_id="a"),
            ],
            "two calls have one id",
        ),
        ([TWO, result("f", tool_call_id=1), result("g", tool_call_id=1)], "two results are of one call"),
        (
            [TWO, result("f", tool_call_id=1), result("g", tool_call_id=9)],
            "`tool_call_id` names a call that the row does not have",
        ),
        (
            [
                TWO,
                result("f", tool_call_id=1),
                result("g", tool_call_id=2),
                calling(call("h", id=3)),
                result("f", tool_call_id=1),
            ],
            "a result stands apart from its call",
        ),
        (
            [calling(call("f"), call("g")), result("f"), result("g"), result("h")],
            "several calls have more results than there are calls",
        ),
        ([calling(call("f")), result("g", name="g")], "the `name` of a result is that of no call before it"),
    ],
)
def test_results_that_do_not_fit_their_calls_are_told(messages: list[dict[str, Any]], doubt: str) -> None:
    assert doubt in read_row(row(*messages)).doubts


@pytest.mark.parametrize(
    "messages",
    [
        [USER, calling(call("f", id=1), call("g", id=2))],
        [
            USER,
            calling(call("f", id=1)),
            result("f", tool_call_id=1),
            calling(call("f", id=1)),
            result("f", tool_call_id=1),
            DONE,
        ],
        [USER, calling(call("f")), result("f"), result("f"), DONE],
        [USER, {"role": "assistant", "metadata": "f", "content": "{}"}, {"role": "observation", "content": "o"}, DONE],
        [USER, calling(call("f", id="a")), result("f", tool_call_id="a", name="shown name"), DONE],
    ],
)
def test_calls_and_results_that_fit_are_not_told(messages: list[dict[str, Any]]) -> None:
    assert read_row({"messages": messages}).doubts == ()
