"""`/v1/completions`: how texts go on, in OpenAI's form.

A whole answer is put together in a thread: that of many choices, with the likelihood of each token, takes long.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Sequence
from typing import Any

from openai.types import Completion

from glmtune.server.requests import CompletionRequest
from glmtune.server.service import Choices, Service, Update

from .answer_events import DONE, collect, head_of, sent_event, text_of, token_logprob, usage_of


async def whole_completion(service: Service, request: CompletionRequest, choices: Choices) -> str:
    """Return how texts go on, as JSON, once all of it is written."""
    collected = await collect(service, choices)

    def put_together() -> str:
        told = [
            {
                "index": number,
                "text": text_of(updates),
                "finish_reason": updates[-1].finish_reason,
                "logprobs": _completion_logprobs(service, updates) if request.logprobs is not None else None,
            }
            for number, updates in enumerate(_likeliest(collected, request))
        ]
        head = head_of(service, request, "cmpl", "text_completion")
        done = Completion.model_validate({**head, "choices": told, "usage": usage_of(choices)})
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
    head = head_of(service, request, "cmpl", "text_completion")
    offsets = [0] * len(choices.jobs)
    async for update in service.follow(choices):
        logprobs = _completion_logprobs(service, [update], offset=offsets[update.choice]) if update.tokens else None
        if logprobs is not None:
            offsets[update.choice] += sum(map(len, logprobs["tokens"]))
        # The client's type knows no unfinished choice, although streams are made of them.
        choice = {
            "index": update.choice,
            "text": text_of([update]),
            "finish_reason": update.finish_reason,
            "logprobs": logprobs,
        }
        yield sent_event({**head, "choices": [choice]})
    if request.stream_options is not None and request.stream_options.include_usage:
        yield sent_event({**head, "choices": [], "usage": usage_of(choices)})
    yield DONE


def _completion_logprobs(service: Service, updates: Sequence[Update], *, offset: int = 0) -> dict[str, Any]:
    """Return logprobs in the older form: tokens, figures and the most likely ones in lists of their own.

    `offset` is where in the answer's text the first of the tokens begins.
    """
    tokens = [token_logprob(service, token) for update in updates for token in update.tokens]
    texts = [token["token"] for token in tokens]
    return {
        "tokens": texts,
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [{top["token"]: top["logprob"] for top in token["top_logprobs"]} for token in tokens],
        "text_offset": list(itertools.accumulate(map(len, texts), initial=offset))[:-1],
    }
