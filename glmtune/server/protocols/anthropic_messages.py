"""`/v1/messages`: Anthropic's form of a conversation, of its answer, and of errors.

A request becomes one of `/v1/chat/completions` and goes the same way: its bounds, and what ends it, are the same.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from glmtune.server.api_errors import ApiError
from glmtune.server.reading import validated
from glmtune.server.requests import ChatRequest, Count, Objects, Stop
from glmtune.server.service import Choices, Service, Update

from .answer_events import named_event
from .blocks import BEGIN, CALL, END, REASONING, TEXT, Block, Blocks, Step, steps, whole

PATH = "/v1/messages"
ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class ToolChoice(BaseModel):
    """Whether functions are called."""

    model_config = ConfigDict(extra="ignore")
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class Thinking(BaseModel):
    """Whether the model reasons, where it knows how; it has no budget of its own."""

    model_config = ConfigDict(extra="ignore")
    type: Literal["enabled", "disabled", "adaptive"]


class CountRequest(BaseModel):
    """`/v1/messages/count_tokens`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    model: str
    messages: Annotated[list[dict[str, Any]], Field(min_length=1, fail_fast=True)]
    system: str | Objects | None = None
    tools: Objects | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    metadata: dict[str, Any] | None = None


class MessagesRequest(CountRequest):
    """`/v1/messages`."""

    max_tokens: Annotated[Count, Field(ge=1)]
    stop_sequences: Stop | None = None
    stream: bool = False
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Count | None = None
    service_tier: str | None = None


def error_of(error: ApiError) -> dict[str, Any]:
    """Return what Anthropic's clients read an error from."""
    kind = ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def as_chat(asked: CountRequest) -> ChatRequest:
    """Return the request as `/v1/chat/completions` would have it; an answer that has begun goes on."""
    system = [{"role": "system", "content": _text(asked.system, "system")}] if asked.system else []
    messages = [*system, *(each for message in asked.messages for each in _messages(message))]
    fields: dict[str, Any] = {"model": asked.model, "messages": messages}
    if messages[-1]["role"] == "assistant":
        fields |= {"continue_final_message": True, "add_generation_prompt": False}
    if asked.tools:
        fields["tools"] = [_tool(tool) for tool in asked.tools]
    if asked.tool_choice is not None:
        named = {"type": "function", "function": {"name": asked.tool_choice.name or ""}}
        fields["tool_choice"] = CHOICES.get(asked.tool_choice.type, named)
        fields["parallel_tool_calls"] = not asked.tool_choice.disable_parallel_tool_use
    if asked.thinking is not None and asked.thinking.type != "adaptive":
        fields["chat_template_kwargs"] = {"enable_thinking": asked.thinking.type == "enabled"}
    if isinstance(asked, MessagesRequest):
        same = ("max_tokens", "stream", "temperature", "top_p", "top_k")
        fields |= {key: getattr(asked, key) for key in same} | {"stop": asked.stop_sequences}
    return validated(fields, ChatRequest)


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") not in (None, "custom"):
        raise ApiError(f"tools of type `{str(tool['type'])[:100]}` are not offered here", param="tools")
    function = {"name": tool.get("name"), "description": tool.get("description") or ""}
    schema = tool.get("input_schema") or {"type": "object", "properties": {}}
    return {"type": "function", "function": {**function, "parameters": schema}}


def _messages(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a message as OpenAI has it: results of functions are messages of their own."""
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant"):
        raise ApiError(f"a message has role `{str(role)[:100]}`; expected `user` or `assistant`", param="messages")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    blocks = content if isinstance(content, list) else [content]
    return [_answer(blocks)] if role == "assistant" else _turn(blocks)


def _turn(blocks: Sequence[Any]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for block in blocks:
        if _kind(block) == "tool_result":
            result = _text(block.get("content") or "", "tool_result")
            messages.append({"role": "tool", "tool_call_id": str(block.get("tool_use_id")), "content": result})
        elif messages and messages[-1]["role"] == "user":
            messages[-1]["content"] += "\n" + _text([block], "messages")
        else:
            messages.append({"role": "user", "content": _text([block], "messages")})
    return messages or [{"role": "user", "content": ""}]


def _answer(blocks: Sequence[Any]) -> dict[str, Any]:
    texts, thoughts, calls = [], [], []
    for block in blocks:
        kind = _kind(block)
        if kind == "thinking":
            thoughts.append(str(block.get("thinking", "")))
        elif kind == "tool_use":
            function = {"name": block.get("name"), "arguments": json.dumps(block.get("input"), ensure_ascii=False)}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind != "redacted_thinking":
            texts.append(_text([block], "messages"))
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    return message | ({"tool_calls": calls} if calls else {})


def _kind(block: Any) -> Any:
    return block.get("type") if isinstance(block, dict) else None


def _text(content: Any, field: str) -> str:
    """Return the text of blocks; others than texts cannot be read."""
    if isinstance(content, str):
        return content
    texts = []
    for block in content if isinstance(content, list) else [content]:
        if _kind(block) != "text" or not isinstance(block.get("text"), str):
            raise ApiError(f"`{field}` holds a block of type `{str(_kind(block))[:100]}`; expected `text`", param=field)
        texts.append(block["text"])
    return "\n".join(texts)


async def whole_message(service: Service, request: ChatRequest, choices: Choices) -> str:
    """Return the answer as JSON, once it is written."""
    blocks, last = await whole(service, choices)
    content = [_block(block) | _filling(block) for block in blocks]
    message = _message(request, choices) | {"content": content} | _stop(choices, last)
    return json.dumps(message, ensure_ascii=False)


async def stream_message(service: Service, request: ChatRequest, choices: Choices) -> AsyncIterator[str]:
    """Yield the answer as server-sent events while it is written."""

    def event(kind: str, **fields: Any) -> str:
        return named_event({"type": kind, **fields})

    yield event("message_start", message=_message(request, choices))
    yield event("ping")
    updates: list[Update] = []
    async for step in steps(service, choices, Blocks(), updates):
        if step.kind == BEGIN:
            yield event("content_block_start", index=step.place, content_block=_block(step.block))
        elif step.kind == END:
            if step.block.kind == REASONING:
                signature = {"type": "signature_delta", "signature": ""}
                yield event("content_block_delta", index=step.place, delta=signature)
            yield event("content_block_stop", index=step.place)
        else:
            yield event("content_block_delta", index=step.place, delta=_delta(step))
    yield event("message_delta", delta=_stop(choices, updates[-1]), usage=_usage(choices))
    yield event("message_stop")


def _message(request: ChatRequest, choices: Choices) -> dict[str, Any]:
    head = {"id": f"msg_{choices.id}", "type": "message", "role": "assistant", "model": request.model}
    return {**head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": _usage(choices)}


def _usage(choices: Choices) -> dict[str, int]:
    """Return the tokens read and written so far; those of the prompt that were kept are no part of `input_tokens`."""
    cached = choices.num_cached_tokens
    return {
        "input_tokens": choices.num_prompt_tokens - cached,
        "output_tokens": choices.num_completion_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
    }


def _stop(choices: Choices, last: Update) -> dict[str, Any]:
    sequence = choices.readers[0].stopped_by
    reason = STOP_REASONS.get(last.finish_reason or "")
    if sequence is not None and last.finish_reason == "stop":
        reason = "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": sequence}


def _block(block: Block) -> dict[str, Any]:
    """Return a block as it begins: without its text."""
    if block.kind == CALL:
        return {"type": "tool_use", "id": f"toolu_{block.id[:24]}", "name": block.name, "input": {}}
    if block.kind == REASONING:
        return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "text", "text": ""}


def _filling(block: Block) -> dict[str, Any]:
    if block.kind == CALL:
        return {"input": json.loads(block.text)}
    return {"text" if block.kind == TEXT else "thinking": block.text}


def _delta(step: Step) -> dict[str, Any]:
    if step.block.kind == CALL:
        return {"type": "input_json_delta", "partial_json": step.text}
    if step.block.kind == REASONING:
        return {"type": "thinking_delta", "thinking": step.text}
    return {"type": "text_delta", "text": step.text}
