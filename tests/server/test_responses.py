"""OpenAI's Responses form, as its own client reads it."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import openai
import pytest
from openai.types.responses import Response
from serving_rows import ITEMS, PLAIN, TOOLS, answer, question, result

from glmtune.chatformat.replies import Delta
from glmtune.server.protocols.blocks import Blocks
from glmtune.server.protocols.openai_responses import ResponsesRequest, _events, as_chat

ASKED, TOLD = next(iter(PLAIN.items()))
ITEM = next(iter(ITEMS))
TOOL: Any = {"type": "function", **TOOLS[0]["function"]}


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, asked: Any = ASKED, **fields: Any) -> Any:
    return client.responses.create(model="tiny", input=asked, temperature=0, **fields)


def test_a_text_is_answered(client: openai.OpenAI) -> None:
    told = ask(client, store=True, metadata={"a": "b"}, max_output_tokens=100)
    assert told.output_text == TOLD
    assert (told.status, told.error, told.incomplete_details) == ("completed", None, None)
    assert told.usage.total_tokens == told.usage.input_tokens + told.usage.output_tokens
    assert told.usage.output_tokens > 3
    parts = [{"role": "user", "content": [{"type": "input_text", "text": ASKED}]}]
    assert ask(client, parts).output_text == TOLD
    cut = ask(client, max_output_tokens=2)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert TOLD.startswith(cut.output_text)


def test_what_is_sent_is_of_the_official_types(url: str) -> None:
    body = {"model": "tiny", "input": [question(ITEM)], "tools": [TOOL], "temperature": 0, "tool_choice": "auto"}
    sent = httpx2.post(f"{url}/v1/responses", json=body).json()
    assert Response.model_validate(sent).output[0].type == "function_call"


def test_a_stream_is_numbered_and_tells_the_same(client: openai.OpenAI) -> None:
    events = list(ask(client, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 3
    assert "".join(deltas) == TOLD == events[-1].response.output_text
    assert events[-1].response.usage == ask(client).usage
    assert {event.response.id for event in events if hasattr(event, "response")} == {events[0].response.id}
    assert list(ask(client, stream=True, max_output_tokens=2))[-1].type == "response.incomplete"


def test_a_function_is_called_and_its_result_answered(client: openai.OpenAI) -> None:
    asked: list[Any] = [question(ITEM)]
    told = ask(client, asked, tools=[TOOL])
    [call] = told.output
    assert (call.name, json.loads(call.arguments)) == ("query_price", {"item": ITEM})
    # What came back goes into the next request as it is, as the client's own examples do.
    asked += told.output
    asked.append({"type": "function_call_output", "call_id": call.call_id, "output": result(ITEM)["content"]})
    assert ask(client, asked, tools=[TOOL]).output_text == answer(ITEM)["content"]


def test_arguments_are_streamed_and_put_together(client: openai.OpenAI) -> None:
    asked: list[Any] = [question(ITEM)]
    with client.responses.stream(model="tiny", input=asked, tools=[TOOL], temperature=0) as stream:
        deltas = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        final = stream.get_final_response()
    assert len(deltas) > 2
    assert "".join(deltas) == final.output[0].arguments
    assert json.loads(final.output[0].arguments) == {"item": ITEM}


def test_items_are_read_as_messages() -> None:
    items = [
        {"role": "developer", "content": "b"},
        {"role": "user", "content": "c"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "d", "annotations": []}]},
        {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "call_2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "1"},
        {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "2"}]},
    ]
    fields: dict[str, Any] = {"reasoning": {"effort": "low"}, "tools": [TOOL], "parallel_tool_calls": False}
    fields |= {"tool_choice": {"type": "function", "name": "query_price"}, "max_output_tokens": 7}
    chat = as_chat(ResponsesRequest(model="tiny", instructions="a", input=items, **fields))
    calls = [
        {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": "{}"}}
        for number, name in ((1, "f"), (2, "g"))
    ]
    assert chat.messages == [
        {"role": "system", "content": "a\n\nb"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d", "reasoning_content": "hm", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_1", "content": "1"},
        {"role": "tool", "tool_call_id": "call_2", "content": "2"},
    ]
    assert (chat.max_tokens, chat.parallel_tool_calls, chat.variables) == (7, False, {"reasoning_effort": "low"})
    assert chat.tool_choice.function.name == "query_price"  # type: ignore[union-attr]
    assert chat.tools is not None
    assert chat.tools[0]["function"]["name"] == "query_price"


def test_reasoning_is_an_item_of_its_own() -> None:
    blocks = Blocks()
    found = [Delta(text="h", is_reasoning=True), Delta(text="m", is_reasoning=True), Delta(text="a")]
    steps = [step for each in found for step in blocks.add(each)] + blocks.close()
    kinds = [kind for step in steps for kind, _ in _events(step)]
    assert kinds == [
        "output_item.added", "reasoning_text.delta", "reasoning_text.delta", "reasoning_text.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done",
        "output_item.done",
    ]  # fmt: skip


KEPT = "is not answered here, where nothing is kept: send the whole conversation as `input`"
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "a former answer": (
        {"previous_response_id": "resp_1"}, "previous_response_id", f"`previous_response_id` {KEPT}",
    ),
    "in the background": ({"background": True}, "background", "`background` is not answered here"),
    "an image": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "a"}]}]}, "input",
        "`input` holds a part of type `input_image`; expected a text",
    ),
    "an item of others": (
        {"input": [{"type": "web_search_call"}]}, "input",
        "`input` holds an item of type `web_search_call`, which cannot be read here",
    ),
    "a tool of others": (
        {"tools": [{"type": "web_search"}]}, "tools", "tools of type `web_search` are not offered here",
    ),
    "nothing": ({"input": []}, "input", "`input` is empty"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_answered_is_refused(kind: str, url: str) -> None:
    fields, param, message = REFUSED[kind]
    refused = httpx2.post(f"{url}/v1/responses", json={"model": "tiny", "input": ASKED, **fields})
    error = refused.json()["error"]
    assert (refused.status_code, error["param"], error["message"]) == (400, param, message)
