"""From a request to answers that are being written: the prompt's ids, the sampling, and each choice as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from glmtune.chatformat.encoding import Encoder
from glmtune.chatformat.replies import Delta, ReplyReader, ToolCall, reply_layout
from glmtune.data.conversation import RowError
from glmtune.generation.decoding import AnswerReader, border_of
from glmtune.generation.generate import encode_messages
from glmtune.generation.sampling import Sampling

from .api_errors import ApiError
from .engine import Busy, End, Ended, Engine, Event, Job, JobFailure, Token
from .models import ServedModels
from .request_log import log_tokens
from .requests import ChatRequest, CompletionRequest, NamedToolChoice, Request

RETRY_AFTER_SECONDS = 1
TOKENS_AT_ONCE = 256
"""A whole answer may come at once; after so many of its tokens others get their turn."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """What has become certain of a choice."""

    choice: int
    events: list[Delta | ToolCall]
    tokens: list[Token] = field(default_factory=list)
    """Those with logprobs."""
    finish_reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The answers to one request."""

    jobs: list[Job]
    readers: list[AnswerReader]
    queue: asyncio.Queue[tuple[int, Event]]
    num_prompt_tokens: int
    takes_one_call: bool = False
    """Whether each answer ends with its first call, as `parallel_tool_calls: false` wants it."""

    @property
    def num_completion_tokens(self) -> int:
        """Tokens written so far, stop tokens not counted."""
        return sum(reader.num_tokens for reader in self.readers)

    def cancel(self) -> None:
        """Give up what is still being written."""
        for job in self.jobs:
            job.is_cancelled = True


class Service:
    """The models that are served, and how their conversations are written."""

    def __init__(self, models: ServedModels, engine: Engine, *, max_length: int) -> None:
        """Keep what all requests need.

        Args:
            models: By name.
            engine: Which answers.
            max_length: Most tokens of a prompt and its answer together, as far as the model's context goes.
        """
        self.models = models
        self.engine = engine
        self.max_length = max_length
        self.encoder = Encoder(models.tokenizer, models.family, use_skeletons=False)
        self.layout = reply_layout(self.encoder.renderer)
        self.border = border_of(models.tokenizer)

    def start_chat(self, request: ChatRequest) -> Choices:
        """Begin to answer a conversation."""
        self._check_model(request.model)
        tools = None if request.tool_choice == "none" else request.tools
        thinking = (request.chat_template_kwargs or {}).get("enable_thinking")
        prompt = self._encode(request.messages, tools, thinking)
        wanted = request.max_completion_tokens or request.max_tokens
        sampling = replace(
            self._sampling(request),
            num_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            openings=self._openings(request),
        )
        stops = request.stop or []

        def reader() -> AnswerReader:
            reply = ReplyReader(self.layout, tools or [])
            return AnswerReader(self.models.tokenizer, stops=stops, reader=reply, border=self.border)

        return self._start(request, [prompt], wanted, sampling, reader, param="messages")

    def start_completion(self, request: CompletionRequest) -> Choices:
        """Begin to go on with texts."""
        self._check_model(request.model)
        prompts = [
            list(prompt) if not isinstance(prompt, str) else self.models.tokenizer(prompt)["input_ids"]
            for prompt in request.prompts
        ]
        num_tokens = len(self.models.tokenizer)
        if not prompts or not all(prompts):
            raise ApiError("`prompt` is empty", param="prompt")
        if any(token not in range(num_tokens) for prompt in prompts for token in prompt):
            raise ApiError(f"`prompt` holds ids that the model does not have: they go from 0 to {num_tokens - 1}")
        sampling = replace(self._sampling(request), num_logprobs=request.logprobs)
        stops = request.stop or []

        def reader() -> AnswerReader:
            return AnswerReader(self.models.tokenizer, stops=stops)

        return self._start(request, prompts, request.max_tokens or 16, sampling, reader, param="prompt")

    async def follow(self, choices: Choices) -> AsyncIterator[Update]:
        """Yield what becomes certain of each choice, until all are finished; closed, it gives the rest up."""
        num_open = len(choices.jobs)
        has_calls = [False] * num_open
        try:
            while num_open:
                number, event = await choices.queue.get()
                reader = choices.readers[number]
                if reader.num_tokens % TOKENS_AT_ONCE == 0:
                    await asyncio.sleep(0)
                tokens: list[Token] = []
                finish_reason = None
                if choices.jobs[number].is_cancelled:
                    continue
                if isinstance(event, JobFailure):
                    raise ApiError(event.reason, status=503 if event.is_shutdown else 500)
                if isinstance(event, End):
                    events = reader.end()
                    finish_reason = "length" if event.is_cut else "stop"
                else:
                    events = reader.add(event.id)
                    tokens = [event] if event.logprobs is not None else []
                    if reader.is_stopped:
                        choices.jobs[number].is_cancelled = True
                        finish_reason = "stop"
                if choices.takes_one_call and (calls := [found for found in events if isinstance(found, ToolCall)]):
                    events = events[: events.index(calls[0]) + 1]
                    choices.jobs[number].is_cancelled = True
                    finish_reason = "stop"
                has_calls[number] |= any(isinstance(found, ToolCall) for found in events)
                if finish_reason is not None:
                    num_open -= 1
                    if has_calls[number] and finish_reason == "stop":
                        finish_reason = "tool_calls"
                if events or tokens or finish_reason:
                    yield Update(choice=number, events=events, tokens=tokens, finish_reason=finish_reason)
        finally:
            choices.cancel()

    def _start(
        self,
        request: Request,
        prompts: Sequence[list[int]],
        wanted: int | None,
        sampling: Sampling,
        reader: Any,
        param: str,
    ) -> Choices:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        jobs: list[Job] = []
        for prompt in prompts:
            max_new_tokens = self._max_new_tokens(request.model, len(prompt), wanted, param)
            for number in range(request.n):
                index = len(jobs)

                def on_event(event: Event, index: int = index) -> None:
                    with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits any more
                        loop.call_soon_threadsafe(queue.put_nowait, (index, event))

                own = replace(sampling, seed=answer_seed(request.seed, number))
                waits = not (request.stream or request.stop)
                jobs.append(Job(request.model, prompt, max_new_tokens, own, on_event, waits_for_end=waits))
        try:
            self.engine.submit(jobs)
        except Ended:
            raise ApiError("the server is shutting down", status=503) from None
        except Busy:
            raise ApiError(
                f"{self.engine.num_waiting} answers wait already; try again later",
                status=429,
                code="rate_limit_exceeded",
                headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
            ) from None
        choices = Choices(
            jobs=jobs,
            readers=[reader() for _ in jobs],
            queue=queue,
            num_prompt_tokens=sum(map(len, prompts)),
            takes_one_call=isinstance(request, ChatRequest) and not request.parallel_tool_calls,
        )
        log_tokens(choices)
        return choices

    def _check_model(self, name: str) -> None:
        if name not in self.models.lanes:
            known = ", ".join(f"`{known}`" for known in self.models.lanes)
            raise ApiError(
                f"the model `{name}` does not exist; this server has {known}",
                status=404,
                param="model",
                code="model_not_found",
            )

    def _encode(self, messages: list[dict[str, Any]], tools: Any, thinking: bool | None) -> list[int]:
        """Return the ids of the prompt, exactly as training would have written the conversation."""
        facts = self.encoder.renderer.facts
        is_reasoning_shown = facts.shows_reasoning or bool(facts.hidden_reasoning)
        messages = [_as_trained(message, is_reasoning_shown=is_reasoning_shown) for message in messages]
        try:
            return encode_messages(self.encoder, messages, tools=tools, thinking=thinking)
        except RowError as error:
            raise ApiError(str(error), param="messages") from None

    def _openings(self, request: ChatRequest) -> tuple[tuple[int, ...], ...]:
        """Return what the answer has to begin with, where a call is required."""
        choice = request.tool_choice
        if choice in (None, "none", "auto"):
            return ()
        names = [tool.get("function", tool).get("name") for tool in request.tools or ()]
        if isinstance(choice, NamedToolChoice):
            if choice.function.name not in names:
                raise ApiError(f"`tools` has no function `{choice.function.name}`", param="tool_choice")
            names = [choice.function.name]
        if not names:
            raise ApiError("`tool_choice` wants a call, but there are no `tools`", param="tool_choice")
        if self.layout.calls is None:
            raise ApiError("this model's chat template does not show calls", param="tool_choice")
        tokenizer = self.models.tokenizer
        return tuple(
            tuple(tokenizer(self.layout.opening(str(name)), add_special_tokens=False)["input_ids"]) for name in names
        )

    def _sampling(self, request: Request) -> Sampling:
        """Return what the request asks for; what it leaves open is as the model's own settings have it."""
        own = self.models.base.generation_config
        is_greedy = not own.do_sample
        temperature = request.temperature
        if temperature is None:
            # Who asks for a share of the likely tokens wants them sampled.
            asks = request.top_p is not None or (request.top_k or 0) > 0
            temperature = (1.0 if asks else 0.0) if is_greedy else (1.0 if own.temperature is None else own.temperature)
        bias = request.logit_bias or {}
        if any(token not in range(len(self.models.tokenizer)) for token in bias):
            raise ApiError("`logit_bias` names ids that the model does not have", param="logit_bias")
        return Sampling(
            temperature=temperature,
            top_p=_first(request.top_p, own.top_p, 1.0),
            top_k=max(0, _first(request.top_k, own.top_k if own.do_sample else None, 0)),
            frequency_penalty=request.frequency_penalty,
            presence_penalty=request.presence_penalty,
            repetition_penalty=_first(request.repetition_penalty, own.repetition_penalty, 1.0),
            logit_bias=bias,
        )

    def _max_new_tokens(self, model: str, num_prompt: int, wanted: int | None, param: str) -> int:
        max_length = min(self.max_length, self.models.context_tokens(model))
        room = max_length - num_prompt
        if room < 1 or (wanted or 0) > room:
            asked = f" and {wanted} for the answer" if wanted else ""
            raise ApiError(
                f"this server takes {max_length} tokens of prompt and answer together; "
                f"the prompt has {num_prompt}{asked}",
                param=param if room < 1 else "max_tokens",
                code="context_length_exceeded",
            )
        return wanted or min(room, self.models.base.generation_config.max_new_tokens or room)


def _as_trained(message: dict[str, Any], *, is_reasoning_shown: bool) -> dict[str, Any]:
    """Return a message without what clients send, but no model of its kind has met in training.

    Some send the reasoning of former answers back, which a template without reasoning cannot write; and a function
    that returns nothing has an empty result, whose JSON is `null`.
    """
    role = message.get("role")
    if role == "assistant" and not is_reasoning_shown:
        return {key: value for key, value in message.items() if key != "reasoning_content"}
    if role in ("tool", "function", "observation") and message.get("content") in (None, "", []):
        return {**message, "content": "null"}
    return message


def answer_seed(seed: int | None, number: int) -> int:
    """Return the seed of one of the answers to a request, whose own one gives the same on any machine and Python."""
    if seed is None:
        return random.getrandbits(63)
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:8], "big")


def _first(*values: Any) -> Any:
    """Return the first value that is not None."""
    return next(value for value in values if value is not None)
