"""`/v1/chat/completions` in OpenAI's form; the official client's own types make sure of it.

A whole answer is put together in a thread: that of many choices, with the likelihood of each token, takes long.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from openai.types.chat import ChatCompletion, ChatCompletionChunk

from glmtune.chatformat.replies import Delta, Found, ToolCall
from glmtune.server.requests import ChatRequest
from glmtune.server.service import Choices, Service, Update, continued_text

from .answer_events import (
    DONE,
    begins_call,
    collect,
    head_of,
    prompt_logprobs_of,
    sent_event,
    text_of,
    token_logprob,
    usage_of,
)


async def whole_chat(service: Service, request: ChatRequest, choices: Choices) -> str:
    """Return the answer to a conversation, as JSON, once all its choices are written."""
    collected = await collect(service, choices)
    echoed = _echoed(request)

    def put_together() -> str:
        told = [
            {
                "index": number,
                "message": _message(updates, echoed=echoed, has_functions=request.has_functions),
                "finish_reason": _finish_reason(updates[-1], has_functions=request.has_functions),
                "logprobs": {"content": _logprobs(service, updates)} if request.logprobs else None,
            }
            for number, updates in enumerate(collected)
        ]
        head = head_of(service, request, "chatcmpl", "chat.completion")
        if request.prompt_logprobs is not None:
            head["prompt_logprobs"] = prompt_logprobs_of(service, choices, 0, request.prompt_logprobs)
        done = ChatCompletion.model_validate({**head, "choices": told, "usage": usage_of(choices)})
        return done.model_dump_json(exclude_unset=True)

    return await asyncio.to_thread(put_together)


async def stream_chat(service: Service, request: ChatRequest, choices: Choices) -> AsyncIterator[str]:
    """Yield the answer as server-sent events while it is written."""
    head = head_of(service, request, "chatcmpl", "chat.completion.chunk")
    num_calls = [0] * len(choices.jobs)

    def chunk(delta: dict[str, Any], update: Update, *, is_last: bool = False) -> str:
        finish_reason = _finish_reason(update, has_functions=request.has_functions) if is_last else None
        choice = {"index": update.choice, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        if update.tokens:
            choice["logprobs"] = {"content": _logprobs(service, [update])}
            update.tokens.clear()  # they go with the first event
        return sent_event(
            ChatCompletionChunk.model_validate({**head, "choices": [choice]}).model_dump(exclude_unset=True)
        )

    for number in range(len(choices.jobs)):
        yield chunk({"role": "assistant", "content": ""}, Update(choice=number, events=[]))
        if echoed := _echoed(request):
            yield chunk({"content": echoed}, Update(choice=number, events=[]))
    async for update in service.follow(choices):
        for found in update.events:
            if begins_call(found):
                num_calls[update.choice] += 1
            for delta in _deltas(found, num_calls[update.choice] - 1, has_functions=request.has_functions):
                yield chunk(delta, update)
        if update.finish_reason is not None:
            yield chunk({}, update, is_last=True)
        elif update.tokens:
            yield chunk({"content": ""}, update)
    if request.stream_options is not None and request.stream_options.include_usage:
        yield sent_event(
            ChatCompletionChunk.model_validate({**head, "choices": [], "usage": usage_of(choices)}).model_dump(
                exclude_unset=True
            )
        )
    yield DONE


def _finish_reason(update: Update, *, has_functions: bool) -> str | None:
    return "function_call" if has_functions and update.finish_reason == "tool_calls" else update.finish_reason


def _echoed(request: ChatRequest) -> str:
    """Return what stands before each answer."""
    return (continued_text(request) or "") if request.echo else ""


def _message(updates: Sequence[Update], *, echoed: str, has_functions: bool) -> dict[str, Any]:
    calls = [found for update in updates for found in update.events if isinstance(found, ToolCall)]
    text = echoed + text_of(updates)
    message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None}
    if reasoning := text_of(updates, is_reasoning=True):
        message["reasoning_content"] = reasoning
    if calls and has_functions:
        message["function_call"] = {"name": calls[0].name, "arguments": calls[0].arguments}
    elif calls:
        message["tool_calls"] = [
            {"id": _call_id(), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    return message


def _deltas(found: Found, place: int, *, has_functions: bool) -> list[dict[str, Any]]:
    """Return what a piece adds to the message; a call comes as its name first, and its arguments behind."""
    if isinstance(found, Delta):
        return [{"reasoning_content" if found.is_reasoning else "content": found.text}]
    deltas: list[dict[str, Any]] = []
    if begins_call(found):
        function = {"name": found.name, "arguments": ""}
        begin = {"index": place, "id": _call_id(), "type": "function", "function": function}
        deltas.append({"function_call": function} if has_functions else {"tool_calls": [begin]})
    if found.arguments and not (isinstance(found, ToolCall) and found.is_streamed):
        part = {"arguments": found.arguments}
        rest = {"index": place, "function": part}
        deltas.append({"function_call": part} if has_functions else {"tool_calls": [rest]})
    return deltas


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def _logprobs(service: Service, updates: Sequence[Update]) -> list[dict[str, Any]]:
    return [token_logprob(service, token) for update in updates for token in update.tokens]
