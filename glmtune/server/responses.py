"""Answers in OpenAI's form, whole or as a stream; the official client's own types make sure of it.

A whole answer is put together in a thread: that of many choices, with the likelihood of each token, takes long.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from glmtune.chatformat.replies import Delta, ToolCall
from glmtune.console import say

from .api_errors import ApiError, error_object
from .engine import Token
from .requests import ChatRequest, CompletionRequest, Request
from .service import Choices, Service, Update

DONE = "data: [DONE]\n\n"


async def whole_chat(service: Service, request: ChatRequest, choices: Choices) -> str:
    """Return the answer to a conversation, as JSON, once all its choices are written."""
    collected = await _collect(service, choices)

    def put_together() -> str:
        told = [
            {
                "index": number,
                "message": _message(updates, has_functions=request.has_functions),
                "finish_reason": _finish_reason(updates[-1], has_functions=request.has_functions),
                "logprobs": {"content": _logprobs(service, updates)} if request.logprobs else None,
            }
            for number, updates in enumerate(collected)
        ]
        head = _head(service, request, "chatcmpl", "chat.completion")
        done = ChatCompletion.model_validate({**head, "choices": told, "usage": _usage(choices)})
        return done.model_dump_json(exclude_unset=True)

    return await asyncio.to_thread(put_together)


async def stream_chat(service: Service, request: ChatRequest, choices: Choices) -> AsyncIterator[str]:
    """Yield the answer as server-sent events while it is written."""
    head = _head(service, request, "chatcmpl", "chat.completion.chunk")
    num_calls = [0] * len(choices.jobs)

    def event(delta: dict[str, Any], update: Update, *, is_last: bool = False) -> str:
        finish_reason = _finish_reason(update, has_functions=request.has_functions) if is_last else None
        choice = {"index": update.choice, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        if update.tokens:
            choice["logprobs"] = {"content": _logprobs(service, [update])}
            update.tokens.clear()  # they go with the first event
        return _event(ChatCompletionChunk.model_validate({**head, "choices": [choice]}))

    for number in range(len(choices.jobs)):
        yield event({"role": "assistant", "content": ""}, Update(choice=number, events=[]))
    async for update in service.follow(choices):
        for found in update.events:
            for delta in _deltas(found, num_calls[update.choice], has_functions=request.has_functions):
                yield event(delta, update)
            num_calls[update.choice] += isinstance(found, ToolCall)
        if update.finish_reason is not None:
            yield event({}, update, is_last=True)
        elif update.tokens:
            yield event({"content": ""}, update)
    if request.stream_options is not None and request.stream_options.include_usage:
        yield _event(ChatCompletionChunk.model_validate({**head, "choices": [], "usage": _usage(choices)}))
    yield DONE


async def whole_completion(service: Service, request: CompletionRequest, choices: Choices) -> str:
    """Return how texts go on, as JSON, once all of it is written."""
    collected = await _collect(service, choices)

    def put_together() -> str:
        told = [
            {
                "index": number,
                "text": _text(updates),
                "finish_reason": updates[-1].finish_reason,
                "logprobs": _completion_logprobs(service, updates) if request.logprobs is not None else None,
            }
            for number, updates in enumerate(_likeliest(collected, request))
        ]
        head = _head(service, request, "cmpl", "text_completion")
        done = Completion.model_validate({**head, "choices": told, "usage": _usage(choices)})
        return done.model_dump_json(exclude_unset=True)

    return await asyncio.to_thread(put_together)


def _likeliest(collected: list[list[Update]], request: CompletionRequest) -> list[list[Update]]:
    """Return the `n` likeliest of the candidates for each prompt, by their tokens' mean logprob."""
    number = request.num_candidates
    if number == request.n:
        return collected
    groups = [collected[start : start + number] for start in range(0, len(collected), number)]
    return [each for group in groups for each in sorted(group, key=_mean_logprob, reverse=True)[: request.n]]


def _mean_logprob(updates: Sequence[Update]) -> float:
    logprobs = [token.logprobs.token for update in updates for token in update.tokens if token.logprobs is not None]
    return sum(logprobs) / len(logprobs) if logprobs else -math.inf


async def stream_completion(service: Service, request: CompletionRequest, choices: Choices) -> AsyncIterator[str]:
    """Yield how texts go on, as server-sent events."""
    head = _head(service, request, "cmpl", "text_completion")
    offsets = [0] * len(choices.jobs)
    async for update in service.follow(choices):
        logprobs = _completion_logprobs(service, [update], offset=offsets[update.choice]) if update.tokens else None
        if logprobs is not None:
            offsets[update.choice] += sum(map(len, logprobs["tokens"]))
        # The client's type knows no unfinished choice, although streams are made of them.
        choice = {
            "index": update.choice,
            "text": _text([update]),
            "finish_reason": update.finish_reason,
            "logprobs": logprobs,
        }
        yield _data({**head, "choices": [choice]})
    if request.stream_options is not None and request.stream_options.include_usage:
        yield _data({**head, "choices": [], "usage": _usage(choices)})
    yield DONE


async def _collect(service: Service, choices: Choices) -> list[list[Update]]:
    collected: list[list[Update]] = [[] for _ in choices.jobs]
    async for update in service.follow(choices):
        collected[update.choice].append(update)
    return collected


async def until_error(events: AsyncIterator[str]) -> AsyncIterator[str]:
    """Yield the events of a stream; an error, which can no longer change the status, becomes the last of them."""
    try:
        async for event in events:
            yield event
    except ApiError as error:
        yield _data(error.body)
    except Exception as error:  # whatever it is: it ends this answer alone, and its client is told
        say(f"error: an answer could not be sent: {type(error).__name__}: {error}")
        yield _data(error_object("the server failed", status=500))


def _head(service: Service, request: Request, prefix: str, kind: str) -> dict[str, Any]:
    """Return what all chunks of an answer share: one id, too."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": request.model,
        "system_fingerprint": service.fingerprint,
    }


def _event(chunk: BaseModel) -> str:
    return _data(chunk.model_dump(exclude_unset=True))


def _data(value: dict[str, Any]) -> str:
    """Return a server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _usage(choices: Choices) -> dict[str, int]:
    prompt, completion = choices.num_prompt_tokens, choices.num_completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _finish_reason(update: Update, *, has_functions: bool) -> str | None:
    return "function_call" if has_functions and update.finish_reason == "tool_calls" else update.finish_reason


def _message(updates: Sequence[Update], *, has_functions: bool) -> dict[str, Any]:
    calls = [found for update in updates for found in update.events if isinstance(found, ToolCall)]
    text = _text(updates)
    message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None}
    if reasoning := _text(updates, is_reasoning=True):
        message["reasoning_content"] = reasoning
    if calls and has_functions:
        message["function_call"] = {"name": calls[0].name, "arguments": calls[0].arguments}
    elif calls:
        message["tool_calls"] = [
            {"id": _call_id(), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    return message


def _deltas(found: Delta | ToolCall, num_calls: int, *, has_functions: bool) -> list[dict[str, Any]]:
    """Return what a piece adds to the message; a call comes as its name first, and its arguments behind."""
    if isinstance(found, Delta):
        return [{"reasoning_content" if found.is_reasoning else "content": found.text}]
    function = {"name": found.name, "arguments": ""}
    if has_functions:
        return [{"function_call": function}, {"function_call": {"arguments": found.arguments}}]
    begin = {"index": num_calls, "id": _call_id(), "type": "function", "function": function}
    rest = {"index": num_calls, "function": {"arguments": found.arguments}}
    return [{"tool_calls": [begin]}, {"tool_calls": [rest]}]


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def _text(updates: Sequence[Update], *, is_reasoning: bool = False) -> str:
    return "".join(
        found.text
        for update in updates
        for found in update.events
        if isinstance(found, Delta) and found.is_reasoning == is_reasoning
    )


def _logprobs(service: Service, updates: Sequence[Update]) -> list[dict[str, Any]]:
    return [_token_logprob(service, token) for update in updates for token in update.tokens]


def _token_logprob(service: Service, token: Token) -> dict[str, Any]:
    assert token.logprobs is not None, "tokens without logprobs are not collected"

    def described(number: int, logprob: float) -> dict[str, Any]:
        text, raw = service.token_text(number)
        return {"token": text, "bytes": raw, "logprob": logprob}

    top = [described(*other) for other in token.logprobs.top]
    return {**described(token.id, token.logprobs.token), "top_logprobs": top}


def _completion_logprobs(service: Service, updates: Sequence[Update], *, offset: int = 0) -> dict[str, Any]:
    """Return logprobs in the older form: tokens, figures and the most likely ones in lists of their own.

    `offset` is where in the answer's text the first of the tokens begins.
    """
    tokens = [_token_logprob(service, token) for update in updates for token in update.tokens]
    texts = [token["token"] for token in tokens]
    return {
        "tokens": texts,
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [{top["token"]: top["logprob"] for top in token["top_logprobs"]} for token in tokens],
        "text_offset": list(itertools.accumulate(map(len, texts), initial=offset))[:-1],
    }
