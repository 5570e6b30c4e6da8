"""Anthropic's Messages form: read, answered, streamed, refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from serving_rows import ITEMS, PLAIN, REPLY, THANKS, TOOLS, answer, question, result

from glmtune.chatformat.call_parts import CallPart
from glmtune.chatformat.replies import Delta, ToolCall
from glmtune.server.protocols.anthropic_messages import MessagesRequest, as_chat
from glmtune.server.protocols.blocks import BEGIN, END, Blocks

ASKED, TOLD = next(iter(PLAIN.items()))
ITEM = next(iter(ITEMS))
FUNCTION = TOOLS[0]["function"]
TOOL = {"name": FUNCTION["name"], "description": FUNCTION["description"], "input_schema": FUNCTION["parameters"]}
ASK_PRICE: list[Any] = [question(ITEM)]


def post(url: str, path: str = "/v1/messages", headers: Any = None, **fields: Any) -> httpx2.Response:
    body = {"model": "tiny", "max_tokens": 60, "messages": [{"role": "user", "content": ASKED}], "temperature": 0}
    body = {key: value for key, value in {**body, **fields}.items() if value is not None}
    return httpx2.post(url + path, json=body, headers=headers, timeout=30)


def events(url: str, **fields: Any) -> list[dict[str, Any]]:
    """Return the data of all events, whose names are their types."""
    found = []
    for text in post(url, stream=True, **fields).text.strip().split("\n\n"):
        name, data = text.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_a_text_is_answered(url: str) -> None:
    told = post(url).json()
    assert told["content"] == [{"type": "text", "text": TOLD}]
    assert (told["type"], told["role"], told["model"]) == ("message", "assistant", "tiny")
    assert (told["stop_reason"], told["stop_sequence"]) == ("end_turn", None)
    assert told["id"].startswith("msg_")
    usage = told["usage"]
    assert (
        usage["input_tokens"]
        == post(url, "/v1/messages/count_tokens", max_tokens=None, temperature=None).json()["input_tokens"]
    )
    assert usage["output_tokens"] > 3
    cut = post(url, max_tokens=2).json()
    assert (cut["stop_reason"], cut["usage"]["output_tokens"]) == ("max_tokens", 2)
    stopped = post(url, stop_sequences=["不在", "为墨"]).json()
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "为墨")
    assert stopped["content"][0]["text"] == TOLD[: TOLD.index("为墨")]


def test_a_stream_tells_the_same(url: str) -> None:
    told = events(url)
    assert [event["type"] for event in told[:3]] == ["message_start", "ping", "content_block_start"]
    assert [event["type"] for event in told[-3:]] == ["content_block_stop", "message_delta", "message_stop"]
    texts = [event["delta"]["text"] for event in told if event["type"] == "content_block_delta"]
    assert len(texts) > 3
    assert "".join(texts) == TOLD
    assert told[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    whole = post(url).json()["usage"]
    assert told[-2]["usage"]["output_tokens"] == whole["output_tokens"]
    assert told[0]["message"]["usage"]["input_tokens"] == whole["input_tokens"]


@pytest.mark.parametrize("choice", [None, {"type": "auto", "disable_parallel_tool_use": True}])
def test_a_function_is_called_and_its_result_answered(choice: Any, url: str) -> None:
    told = post(url, messages=ASK_PRICE, tools=[TOOL], tool_choice=choice).json()
    [used] = told["content"]
    assert (used["type"], used["name"], used["input"]) == ("tool_use", "query_price", {"item": ITEM})
    assert told["stop_reason"] == "tool_use"
    returned = {"type": "tool_result", "tool_use_id": used["id"], "content": result(ITEM)["content"]}
    for content in (returned["content"], [{"type": "text", "text": returned["content"]}]):
        messages = [
            *ASK_PRICE,
            {"role": "assistant", "content": told["content"]},
            {"role": "user", "content": [{**returned, "content": content}]},
        ]
        assert post(url, messages=messages, tools=[TOOL]).json()["content"][0]["text"] == answer(ITEM)["content"]


def test_arguments_are_streamed_while_they_are_written(url: str) -> None:
    told = events(url, messages=ASK_PRICE, tools=[TOOL])
    begin = next(event for event in told if event["type"] == "content_block_start")
    assert (begin["content_block"]["type"], begin["content_block"]["input"]) == ("tool_use", {})
    parts = [event["delta"]["partial_json"] for event in told if event["type"] == "content_block_delta"]
    assert len(parts) > 2
    assert json.loads("".join(parts)) == {"item": ITEM}
    assert told[-2]["delta"]["stop_reason"] == "tool_use"


def test_no_function_is_called_where_none_may_be(url: str) -> None:
    told = post(url, messages=[{"role": "user", "content": THANKS}], tools=[TOOL]).json()
    assert told["content"] == [{"type": "text", "text": REPLY}]
    told = post(url, messages=ASK_PRICE, tools=[TOOL], tool_choice={"type": "none"}).json()
    assert {block["type"] for block in told["content"]} <= {"text"}


def test_an_answer_that_has_begun_goes_on(url: str) -> None:
    begun = TOLD[:4]
    messages = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": begun}]
    told = post(url, messages=messages).json()
    assert begun + told["content"][0]["text"] == TOLD


def test_a_request_is_read_as_openais() -> None:
    blocks = [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": "北"}},
    ]
    results = [{"type": "tool_result", "tool_use_id": "toolu_1"}, {"type": "text", "text": "go on"}]
    asked = MessagesRequest.model_validate(
        {
            "model": "tiny", "max_tokens": 5, "system": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "c", "cache_control": {"type": "ephemeral"}}]},
                {"role": "assistant", "content": blocks}, {"role": "user", "content": results},
            ],
            "tools": [{"name": "f"}], "tool_choice": {"type": "tool", "name": "f"}, "stop_sequences": ["x"],
            "thinking": {"type": "disabled"}, "top_k": 3, "metadata": {"user_id": "d"},
        }
    )  # fmt: skip
    chat = as_chat(asked)
    function = {"name": "f", "arguments": '{"a": "北"}'}
    assert chat.messages == [
        {"role": "system", "content": "a\nb"},
        {"role": "user", "content": "c"},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "hm",
            "tool_calls": [{"id": "toolu_1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "toolu_1", "content": ""},
        {"role": "user", "content": "go on"},
    ]
    assert chat.tools is not None
    assert chat.tools[0]["function"]["parameters"] == {"type": "object", "properties": {}}
    assert (chat.max_tokens, chat.stop, chat.top_k) == (5, ["x"], 3)
    assert chat.tool_choice.function.name == "f"  # type: ignore[union-attr]
    assert chat.variables == {"enable_thinking": False}


def test_an_answer_is_divided_into_blocks() -> None:
    blocks = Blocks()
    found = [
        Delta(text="hm", is_reasoning=True), Delta(text="I "), Delta(text="look"), CallPart(name="f"),
        CallPart(arguments="{}"), ToolCall(name="f", arguments="{}", is_streamed=True),
        ToolCall(name="g", arguments='{"a": 1}'), Delta(text="done"),
    ]  # fmt: skip
    steps = [step for each in found for step in blocks.add(each)] + blocks.close()
    assert [(block.kind, block.name, block.text) for block in blocks.blocks] == [
        ("reasoning", "", "hm"), ("text", "", "I look"), ("call", "f", "{}"), ("call", "g", '{"a": 1}'),
        ("text", "", "done"),
    ]  # fmt: skip
    assert [step.place for step in steps if step.kind == BEGIN] == [0, 1, 2, 3, 4]
    assert [step.place for step in steps if step.kind == END] == [0, 1, 2, 3, 4]


REFUSED: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "no limit": ({"max_tokens": None}, 400, "invalid_request_error", "Missing required parameter: `max_tokens`"),
    "another model": (
        {"model": "other"}, 404, "not_found_error", "the model `other` does not exist; this server has `tiny`",
    ),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, 400, "invalid_request_error",
        "`messages` holds a block of type `image`; expected `text`",
    ),
    "a tool of others": (
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, 400, "invalid_request_error",
        "tools of type `web_search_20250305` are not offered here",
    ),
    "another role": (
        {"messages": [{"role": "wizard", "content": "a"}]}, 400, "invalid_request_error",
        "a message has role `wizard`; expected `user` or `assistant`",
    ),
    "too warm": (
        {"temperature": 2}, 400, "invalid_request_error", "`temperature`: input should be less than or equal to 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_errors_are_of_anthropics_form(kind: str, url: str) -> None:
    fields, status, error_type, message = REFUSED[kind]
    refused = post(url, **fields)
    assert refused.status_code == status
    assert refused.json() == {"type": "error", "error": {"type": error_type, "message": message}}


def test_the_key_may_come_as_anthropic_sends_it(tool_model: Path, serve_in_thread) -> None:
    with serve_in_thread(tool_model, api_key="secret", max_request_bytes=1000) as url:
        assert post(url, headers={"x-api-key": "secret", "anthropic-version": "2023-06-01"}).status_code == 200
        for headers in ({"x-api-key": "wrong"}, {}, {"x-api-key": "secret", "Authorization": "Bearer wrong"}):
            refused = post(url, headers=headers)
            assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
        long = post(url, headers={"x-api-key": "secret"}, system="a" * 2000)
        assert (long.status_code, long.json()["error"]["type"]) == (413, "request_too_large")


@contextlib.contextmanager
def official_client(url: str) -> Iterator[Any]:
    anthropic = pytest.importorskip("anthropic", reason="needs `anthropic`")
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def test_the_official_client_reads_answers_streams_and_errors(url: str) -> None:
    with official_client(url) as client:
        messages: list[Any] = [{"role": "user", "content": ASKED}]
        told = client.messages.create(model="tiny", max_tokens=60, messages=messages)
        assert told.content[0].text == TOLD
        with client.messages.stream(model="tiny", max_tokens=60, messages=messages) as stream:
            assert "".join(stream.text_stream) == TOLD
            assert stream.get_final_message().usage.output_tokens == told.usage.output_tokens
        with client.messages.stream(model="tiny", max_tokens=60, messages=ASK_PRICE, tools=[TOOL]) as stream:
            final = stream.get_final_message()
        assert (final.content[0].input, final.stop_reason) == ({"item": ITEM}, "tool_use")
        assert client.messages.count_tokens(model="tiny", messages=messages).input_tokens == told.usage.input_tokens
        import anthropic

        with pytest.raises(anthropic.NotFoundError, match="does not exist"):
            client.messages.create(model="other", max_tokens=1, messages=messages)
