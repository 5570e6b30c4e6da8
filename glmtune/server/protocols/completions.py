"""`/v1/completions`: how texts go on, in OpenAI's form; with `echo` the prompt stands before each answer.

A whole answer is put together in a thread: that of many choices, with the likelihood of each token, takes long.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from glmtune.server.requests import CompletionRequest
from glmtune.server.service import Choices, Service, Update

from .answer_events import DONE, collect, head_of, prompt_logprobs_of, sent_event, text_of, token_logprob, usage_of


async def whole_completion(service: Service, request: CompletionRequest, choices: Choices) -> str:
    """Return how texts go on, as JSON, once all of it is written."""
    collected = await collect(service, choices)

    def put_together() -> str:
        told = []
        for number, updates in enumerate(_likeliest(collected, request)):
            prompt = _prompt(service, request, choices, number // request.n)
            choice: dict[str, Any] = {
                "index": number,
                "text": prompt.text + text_of(updates),
                "finish_reason": updates[-1].finish_reason,
                "logprobs": None,
            }
            if request.logprobs is not None:
                choice["logprobs"] = _lists(prompt.logprobs + _logprobs(service, updates), start=prompt.start)
            if request.prompt_logprobs is not None:
                choice["prompt_logprobs"] = prompt_logprobs_of(
                    service, choices, number // request.n * request.num_candidates, request.prompt_logprobs
                )
            told.append(choice)
        head = head_of(service, request, "cmpl", "text_completion")
        # The client's type knows no token without a likelihood, as the first of a prompt is.
        return json.dumps({**head, "choices": told, "usage": usage_of(choices)}, ensure_ascii=False)

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
    """Yield how texts go on, as server-sent events; a prompt that is echoed is the first of them."""
    head = head_of(service, request, "cmpl", "text_completion")
    offsets = [0] * len(choices.jobs)
    waiting: list[list[Update]] = [[] for _ in choices.jobs]  # until the likelihoods of their prompt are known
    is_begun = [not request.echo] * len(choices.jobs)

    def chunk(number: int, text: str, logprobs: list[dict[str, Any]], update: Update | None, start: int = 0) -> str:
        told = None
        if logprobs:
            told = _lists(logprobs, start=offsets[number] + start)
            offsets[number] += start + sum(len(token["token"]) for token in logprobs)
        # The client's type knows no unfinished choice, although streams are made of them.
        reason = update.finish_reason if update else None
        choice = {"index": number, "text": text, "finish_reason": reason, "logprobs": told}
        return sent_event({**head, "choices": [choice]})

    async def begun(number: int) -> AsyncIterator[str]:
        is_begun[number] = True
        prompt = await asyncio.to_thread(_prompt, service, request, choices, number // request.n)
        yield chunk(number, prompt.text, prompt.logprobs, None, prompt.start)
        for update in waiting[number]:
            yield chunk(number, text_of([update]), _logprobs(service, [update]), update)

    if request.echo and request.num_prompt_logprobs is None:
        for number in range(len(choices.jobs)):
            async for event in begun(number):
                yield event
    async for update in service.follow(choices):
        if update.is_prompt_read:
            for number in range(update.choice, update.choice + request.n):
                async for event in begun(number):
                    yield event
        elif not is_begun[update.choice]:
            waiting[update.choice].append(update)
        else:
            yield chunk(update.choice, text_of([update]), _logprobs(service, [update]), update)
    if request.stream_options is not None and request.stream_options.include_usage:
        yield sent_event({**head, "choices": [], "usage": usage_of(choices)})
    yield DONE


@dataclass(frozen=True, kw_only=True)
class _Prompt:
    """What an answer begins with."""

    text: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    start: int = 0
    """Where in the text the first token begins: below 0 where tokens come before the text as it was sent."""


def _prompt(service: Service, request: CompletionRequest, choices: Choices, number: int) -> _Prompt:
    """Return the prompt of that number as `echo` wants it."""
    if not request.echo:
        return _Prompt()
    first = number * request.num_candidates
    ids, sent = choices.jobs[first].prompt, request.prompts[number]
    text = (
        sent
        if isinstance(sent, str)
        else str(service.models.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
    )
    if request.logprobs is None:
        return _Prompt(text=text)
    tokens: list[dict[str, Any]] = [{"token": service.token_text(ids[0])[0], "logprob": None, "top_logprobs": None}]
    for token, (logprobs, _) in zip(ids[1:], choices.prompt_logprobs[first].listed()):
        top = [
            {"token": service.token_text(other)[0], "logprob": logprob}
            for other, logprob in logprobs.top[: request.logprobs]
        ]
        tokens.append({"token": service.token_text(token)[0], "logprob": logprobs.token, "top_logprobs": top})
    return _Prompt(text=text, logprobs=tokens, start=len(text) - sum(len(token["token"]) for token in tokens))


def _logprobs(service: Service, updates: Sequence[Update]) -> list[dict[str, Any]]:
    return [token_logprob(service, token) for update in updates for token in update.tokens]


def _lists(tokens: Sequence[dict[str, Any]], *, start: int) -> dict[str, Any]:
    """Return logprobs in the older form: tokens, figures and the most likely ones in lists of their own.

    `start` is where in the text the first of the tokens begins.
    """
    texts = [token["token"] for token in tokens]
    return {
        "tokens": texts,
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [
            None if token["top_logprobs"] is None else {top["token"]: top["logprob"] for top in token["top_logprobs"]}
            for token in tokens
        ],
        "text_offset": [max(0, place) for place in itertools.accumulate(map(len, texts), initial=start)][:-1],
    }
