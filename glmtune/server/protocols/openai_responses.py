"""`/v1/responses`: OpenAI's newer form of a conversation, as items, and of its answer.

A request becomes one of `/v1/chat/completions` and goes the same way: its bounds, and what ends it, are the same.
Nothing is kept: each request brings the whole conversation.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from glmtune.server.api_errors import ApiError, error_object
from glmtune.server.reading import validated
from glmtune.server.requests import ChatRequest, Count, Objects
from glmtune.server.service import Choices, Service, Update

from .answer_events import named_event
from .blocks import BEGIN, CALL, END, REASONING, Block, Blocks, Step, steps, whole

TEXT_TYPES = ("input_text", "output_text", "text")
ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}


class ResponsesRequest(BaseModel):
    """`/v1/responses`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    model: str
    input: str | Objects
    instructions: str | None = None
    tools: Objects | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: Annotated[Count, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stream: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    background: bool | None = None
    # They change nothing of the answer.
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    include: list[Any] | None = None
    truncation: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    stream_options: dict[str, Any] | None = None
    max_tool_calls: int | None = None


def as_chat(asked: ResponsesRequest) -> ChatRequest:
    """Return the request as `/v1/chat/completions` would have it."""
    for field in ("previous_response_id", "conversation", "prompt"):
        if getattr(asked, field) is not None:
            raise ApiError(
                f"`{field}` is not answered here, where nothing is kept: send the whole conversation as `input`",
                param=field,
                code="unsupported_value",
            )
    if not asked.input:
        raise ApiError("`input` is empty", param="input")
    if asked.background:
        raise ApiError("`background` is not answered here", param="background", code="unsupported_value")
    if asked.truncation not in (None, "disabled"):
        raise ApiError("`truncation` is not answered here: expected `disabled`", param="truncation")
    fields: dict[str, Any] = {
        "model": asked.model,
        "messages": _messages(asked),
        "max_tokens": asked.max_output_tokens,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "stream": asked.stream,
        "parallel_tool_calls": asked.parallel_tool_calls,
        "reasoning_effort": (asked.reasoning or {}).get("effort"),
        "response_format": _format((asked.text or {}).get("format")),
    }
    if asked.tools:
        fields["tools"] = [_tool(tool) for tool in asked.tools]
    if isinstance(asked.tool_choice, dict):
        if asked.tool_choice.get("type") != "function":
            raise ApiError("`tool_choice` can name a function alone", param="tool_choice")
        fields["tool_choice"] = {"type": "function", "function": {"name": asked.tool_choice.get("name")}}
    elif asked.tools or asked.tool_choice == "required":
        fields["tool_choice"] = asked.tool_choice
    return validated({key: value for key, value in fields.items() if value is not None}, ChatRequest)


def _format(asked: Any) -> Any:
    """Return `text.format` as `response_format`, whose schema lies one object deeper."""
    if not isinstance(asked, dict) or asked.get("type") != "json_schema":
        return asked
    return {"type": "json_schema", "json_schema": {key: value for key, value in asked.items() if key != "type"}}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise ApiError(f"tools of type `{str(tool.get('type'))[:100]}` are not offered here", param="tools")
    # In the order of training, which is the order that the model is shown.
    function = {"name": tool.get("name"), "description": tool.get("description") or ""}
    function["parameters"] = tool.get("parameters") or {"type": "object", "properties": {}}
    strict = {"strict": tool["strict"]} if tool.get("strict") else {}
    return {"type": "function", "function": {**function, **strict}}


def _messages(asked: ResponsesRequest) -> list[dict[str, Any]]:
    """Return the items as messages; a text, its reasoning and its calls are one."""
    messages: list[dict[str, Any]] = []
    if asked.instructions:
        messages.append({"role": "system", "content": asked.instructions})
    if isinstance(asked.input, str):
        return [*messages, {"role": "user", "content": asked.input}]
    is_open = False  # whether the last message is an answer that the next item may belong to
    for item in asked.input:
        message = _message(item)
        last = messages[-1] if messages else {}
        if message["role"] == "system" and last.get("role") == "system":
            last["content"] += "\n\n" + message["content"]
        elif message["role"] == "assistant" and is_open:
            last["content"] = "\n".join(text for text in (last["content"], message.pop("content")) if text)
            calls = last.get("tool_calls", []) + message.pop("tool_calls", [])
            last.update(message, **({"tool_calls": calls} if calls else {}))
        else:
            messages.append(message)
        is_open = message["role"] == "assistant"
    return messages


def _message(item: dict[str, Any]) -> dict[str, Any]:
    """Return an item as a message."""
    kind = item.get("type", "message" if "role" in item else None)
    if kind == "message" and item.get("role") in ROLES:
        return {"role": ROLES[item["role"]], "content": _text(item.get("content"))}
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    if kind == "function_call_output":
        return {"role": "tool", "tool_call_id": str(item.get("call_id")), "content": _text(item.get("output"))}
    if kind == "reasoning":
        parts = item.get("content") or item.get("summary") or []
        text = "\n".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
        return {"role": "assistant", "content": "", **({"reasoning_content": text} if text else {})}
    shown = f"role `{str(item.get('role'))[:100]}`" if kind == "message" else f"type `{str(kind)[:100]}`"
    raise ApiError(f"`input` holds an item of {shown}, which cannot be read here", param="input")


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in TEXT_TYPES or not isinstance(part.get("text"), str):
            raise ApiError(f"`input` holds a part of type `{str(kind)[:100]}`; expected a text", param="input")
        texts.append(part["text"])
    return "\n".join(texts)


async def whole_response(service: Service, asked: ResponsesRequest, choices: Choices) -> str:
    """Return the answer as JSON, once it is written."""
    blocks, last = await whole(service, choices)
    return json.dumps(_ended(service, _head(asked, choices), choices, blocks, last), ensure_ascii=False)


async def stream_response(service: Service, asked: ResponsesRequest, choices: Choices) -> AsyncIterator[str]:
    """Yield the answer as server-sent events, which are numbered, while it is written."""
    numbers = itertools.count()

    def event(kind: str, **fields: Any) -> str:
        return named_event({"type": f"response.{kind}", "sequence_number": next(numbers), **fields})

    head = _head(asked, choices)
    yield event("created", response=head)
    yield event("in_progress", response=head)
    blocks, updates = Blocks(), list[Update]()
    try:
        async for step in steps(service, choices, blocks, updates):
            for kind, fields in _events(step):
                yield event(kind, **fields)
    except ApiError as error:
        told = {"code": "server_error", "message": error.message}
        yield event("failed", response={**head, "status": "failed", "error": told})
        return
    response = _ended(service, head, choices, blocks.blocks, updates[-1])
    yield event(response["status"], response=response)


def error_event(error: ApiError) -> str:
    """Return what a stream ends with where the answer cannot be sent."""
    told = error_object(error.message, status=error.status)["error"]
    return named_event({"type": "error", "sequence_number": 0, "code": told["type"], **{
        key: told[key] for key in ("message", "param")
    }})  # fmt: skip


def _events(step: Step) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the events of a step: their kinds and fields."""
    block, place = step.block, {"output_index": step.place}
    own = {**place, "item_id": _id(block)}
    part = {**own, "content_index": 0}
    if step.kind == BEGIN:
        yield "output_item.added", {**place, "item": _item(block, is_done=False)}
        if block.kind not in (CALL, REASONING):
            yield "content_part.added", {**part, "part": _part("")}
    elif block.kind == CALL:
        kind = "function_call_arguments"
        if step.kind == END:
            yield f"{kind}.done", {**own, "name": block.name, "arguments": block.text}
        else:
            yield f"{kind}.delta", {**own, "delta": step.text}
    else:
        kind = "reasoning_text" if block.kind == REASONING else "output_text"
        more: dict[str, Any] = {} if block.kind == REASONING else {"logprobs": []}
        if step.kind == END:
            yield f"{kind}.done", {**part, **more, "text": block.text}
        else:
            yield f"{kind}.delta", {**part, **more, "delta": step.text}
    if step.kind == END:
        if block.kind not in (CALL, REASONING):
            yield "content_part.done", {**part, "part": _part(block.text)}
        yield "output_item.done", {**place, "item": _item(block)}


def _id(block: Block) -> str:
    return {CALL: "fc_", REASONING: "rs_"}.get(block.kind, "msg_") + block.id


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _item(block: Block, *, is_done: bool = True) -> dict[str, Any]:
    """Return a block as an item of the answer."""
    head = {"id": _id(block), "status": "completed" if is_done else "in_progress"}
    if block.kind == CALL:
        call = {"call_id": f"call_{block.id[:24]}", "name": block.name, "arguments": block.text if is_done else ""}
        return {**head, "type": "function_call", **call}
    if block.kind == REASONING:
        content = [{"type": "reasoning_text", "text": block.text}] if is_done else []
        return {**head, "type": "reasoning", "summary": [], "content": content}
    content = [_part(block.text)] if is_done else []
    return {**head, "type": "message", "role": "assistant", "content": content}


def _head(asked: ResponsesRequest, choices: Choices) -> dict[str, Any]:
    """Return the answer as it begins, which says what was asked."""
    return {
        "id": f"resp_{choices.id}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "metadata": asked.metadata or {},
        "model": asked.model,
        "output": [],
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": (asked.reasoning or {}).get("effort"), "summary": None},
        "store": False,
        "temperature": asked.temperature,
        "text": asked.text or {"format": {"type": "text"}},
        "tool_choice": asked.tool_choice or "auto",
        "tools": asked.tools or [],
        "top_p": asked.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": asked.user,
    }


def _ended(
    service: Service, head: dict[str, Any], choices: Choices, blocks: Sequence[Block], last: Update
) -> dict[str, Any]:
    """Return the whole answer."""
    is_cut = last.finish_reason == "length"
    read, written = choices.num_prompt_tokens, choices.num_completion_tokens
    thoughts = "".join(block.text for block in blocks if block.kind == REASONING)
    num_thoughts = (
        len(service.models.tokenizer(thoughts, add_special_tokens=False, verbose=False)["input_ids"]) if thoughts else 0
    )
    return head | {
        "status": "incomplete" if is_cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "output": [_item(block) for block in blocks],
        "usage": {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": choices.num_cached_tokens, "cache_write_tokens": 0},
            "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": min(num_thoughts, written)},
            "total_tokens": read + written,
        },
    }
