"""What all protocols share: an answer collected, its head, its usage, and server-sent events."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from glmtune.chatformat.replies import Delta, Found, ToolCall
from glmtune.console import say
from glmtune.server.api_errors import ApiError
from glmtune.server.engine import Token
from glmtune.server.requests import Request
from glmtune.server.service import Choices, Service, Update

DONE = "data: [DONE]\n\n"


async def collect(service: Service, choices: Choices) -> list[list[Update]]:
    collected: list[list[Update]] = [[] for _ in choices.jobs]
    async for update in service.follow(choices):
        collected[update.choice].append(update)
    return collected


def begins_call(found: Found) -> bool:
    """Whether a piece is the first of a call."""
    return not found.is_streamed if isinstance(found, ToolCall) else not isinstance(found, Delta) and bool(found.name)


async def until_error(events: AsyncIterator[str], told: Callable[[ApiError], str]) -> AsyncIterator[str]:
    """Yield the events of a stream; an error, which can no longer change the status, becomes the last of them.

    `told` makes an event of it.
    """
    try:
        async for event in events:
            yield event
    except ApiError as error:
        yield told(error)
    except Exception as error:  # whatever it is: it ends this answer alone, and its client is told
        say(f"error: an answer could not be sent: {type(error).__name__}: {error}")
        yield told(ApiError("the server failed", status=500))


def head_of(service: Service, request: Request, prefix: str, kind: str) -> dict[str, Any]:
    """Return what all chunks of an answer share: one id, too."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": request.model,
        "system_fingerprint": service.fingerprint,
    }


def sent_event(value: dict[str, Any]) -> str:
    """Return a server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def told_in_openais_form(error: ApiError) -> str:
    """Return an error as the event that ends a stream."""
    return sent_event(error.body)


def named_event(value: dict[str, Any]) -> str:
    """Return a server-sent event that is called as its `type` says."""
    return f"event: {value['type']}\n{sent_event(value)}"


def usage_of(choices: Choices) -> dict[str, Any]:
    """Return how many tokens were read and written."""
    prompt, completion = choices.num_prompt_tokens, choices.num_completion_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": choices.num_cached_tokens},
    }


def text_of(updates: Sequence[Update], *, is_reasoning: bool = False) -> str:
    return "".join(
        found.text
        for update in updates
        for found in update.events
        if isinstance(found, Delta) and found.is_reasoning == is_reasoning
    )


def token_logprob(service: Service, token: Token) -> dict[str, Any]:
    assert token.logprobs is not None, "tokens without logprobs are not collected"

    def described(number: int, logprob: float) -> dict[str, Any]:
        text, raw = service.token_text(number)
        return {"token": text, "bytes": raw, "logprob": logprob}

    top = [described(*other) for other in token.logprobs.top]
    return {**described(token.id, token.logprobs.token), "top_logprobs": top}


def prompt_logprobs_of(service: Service, choices: Choices, first: int, num_top: int) -> list[dict[str, Any] | None]:
    """Return how likely the tokens of a prompt are, as vLLM's `prompt_logprobs`; `first` is its first choice."""
    told: list[dict[str, Any] | None] = [None]
    ids = choices.jobs[first].prompt
    for token, (logprobs, rank) in zip(ids[1:], choices.prompt_logprobs[first].listed()):
        likely = {other: (logprob, place) for place, (other, logprob) in enumerate(logprobs.top[:num_top], 1)}
        likely[token] = (logprobs.token, rank)
        told.append(
            {
                str(other): {"logprob": logprob, "rank": place, "decoded_token": service.token_text(other)[0]}
                for other, (logprob, place) in likely.items()
            }
        )
    return told
