"""From a request to answers that are being written: the prompt's ids, the sampling, and each choice as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from glmtune import __version__
from glmtune.chatformat.call_parts import CallPart
from glmtune.chatformat.replies import Found, ReplyReader, ToolCall
from glmtune.console import say
from glmtune.constrained.compiling import MAX_AT_ONCE, CompiledGrammar, Compiler
from glmtune.constrained.grammars import IS_REASONING
from glmtune.constrained.schemas import GrammarError
from glmtune.errors import GlmtuneError
from glmtune.generation.decoding import AnswerReader, token_text
from glmtune.generation.prompt_logprobs import PromptLogprobs
from glmtune.generation.sampling import Sampling
from glmtune.modeling.context import vocabulary_of

from .api_errors import ApiError
from .engine import Busy, End, Ended, Engine, Event, Job, JobFailure, PromptRead, Token
from .middleware.request_log import log_tokens
from .models import ServedModels
from .prompts import PromptWriter, overlong, texts_of_content
from .requests import (
    MAX_CHOICES,
    MAX_PROMPT_LOGPROBS,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Request,
    TokenizeRequest,
)

RETRY_AFTER_SECONDS = 1
SECONDS_AT_ONCE = 0.005
"""A whole answer may come at once; after so long others get their turn."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """What has become certain of a choice."""

    choice: int
    events: list[Found]
    tokens: list[Token] = field(default_factory=list)
    """Those with logprobs."""
    finish_reason: str | None = None
    is_prompt_read: bool = False
    """Whether the likelihoods of its prompt are there now."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The answers to one request."""

    jobs: list[Job]
    """So many for each prompt, one prompt behind the other."""
    readers: list[AnswerReader]
    queue: asyncio.Queue[tuple[int, Event]]
    num_prompt_tokens: int
    takes_one_call: bool = False
    """Whether each answer ends with its first call, as `parallel_tool_calls: false` wants it."""
    tells_stop_token: bool = False
    """Whether the likelihood of the token that ended an answer is told, too."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    prompt_logprobs: dict[int, PromptLogprobs] = field(default_factory=dict)
    """By the first choice of each prompt, once they are known."""

    @property
    def num_completion_tokens(self) -> int:
        """Tokens written so far, stop tokens not counted."""
        return sum(reader.num_tokens for reader in self.readers)

    @property
    def num_cached_tokens(self) -> int:
        """Tokens of the prompts that were kept from earlier texts and not read again, by the first answer to each."""
        return sum({id(job.prompt): job.num_cached_tokens for job in reversed(self.jobs)}.values())

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
        self.prompts = PromptWriter(models, max_length=max_length)
        self.compiler = Compiler(
            models.tokenizer,
            vocabulary=vocabulary_of(models.base.config),
            stops=models.base.generation_config.eos_token_id,
        )
        # Of their own: what takes long to compile holds up no requests that want nothing of the kind.
        self._compiling = ThreadPoolExecutor(MAX_AT_ONCE, thread_name_prefix="grammars")
        self.fingerprint = _fingerprint(models)
        self._described: dict[int, tuple[str, list[int]]] = {}

    async def start_chat(self, request: ChatRequest) -> Choices:
        """Begin to answer a conversation."""
        return await self._start(request, self._prepared_chat)

    def count(self, request: ChatRequest) -> int:
        """Return how many tokens the prompt of a conversation has."""
        self.check_model(request.model)
        return len(self._chat_prompt(request))

    async def start_completion(self, request: CompletionRequest) -> Choices:
        """Begin to go on with texts."""
        return await self._start(request, self._prepared_completion)

    async def follow(self, choices: Choices) -> AsyncIterator[Update]:
        """Yield what becomes certain of each choice, until all are finished; closed, it gives the rest up."""
        num_open = len(choices.jobs)
        has_calls = [False] * num_open
        turn_ends = time.monotonic() + SECONDS_AT_ONCE
        try:
            while num_open:
                has_waited = choices.queue.empty()
                number, event = await choices.queue.get()
                if time.monotonic() > turn_ends:
                    if not has_waited:
                        await asyncio.sleep(0)
                    turn_ends = time.monotonic() + SECONDS_AT_ONCE
                if choices.jobs[number].is_cancelled:
                    continue
                if isinstance(event, JobFailure):
                    raise ApiError(event.reason, status=503 if event.is_shutdown else 500)
                if isinstance(event, PromptRead):
                    choices.prompt_logprobs[number] = event.logprobs
                    yield Update(choice=number, events=[], is_prompt_read=True)
                    continue
                update = _read(choices, number, event)
                has_calls[number] |= any(isinstance(found, ToolCall | CallPart) for found in update.events)
                if update.finish_reason is not None:
                    num_open -= 1
                    if has_calls[number] and update.finish_reason == "stop":
                        update = replace(update, finish_reason="tool_calls")
                if update.events or update.tokens or update.finish_reason:
                    yield update
        finally:
            choices.cancel()

    def check_model(self, name: str) -> None:
        """Raise where no model is called so."""
        if name not in self.models.lanes:
            known = ", ".join(f"`{known}`" for known in self.models.lanes)
            raise ApiError(
                f"the model `{name[:100]}` does not exist; this server has {known}",
                status=404,
                param="model",
                code="model_not_found",
            )

    def context_tokens(self, model: str) -> int:
        """Return how many tokens prompt and answer of a model may have together on this server."""
        return min(self.max_length, self.models.context_tokens(model))

    def token_text(self, token: int) -> tuple[str, list[int]]:
        """Return a token's text and its bytes."""
        if token not in self._described:
            self._described[token] = token_text(self.models.tokenizer, token)
        return self._described[token]

    def tokenized(self, request: TokenizeRequest) -> dict[str, Any]:
        """Return the ids of a text or a conversation, as vLLM's path of that name does."""
        model = next(iter(self.models.lanes)) if request.model is None else request.model
        self.check_model(model)
        if request.prompt is not None:
            ids = self.prompts.of_text(request.prompt, add_special_tokens=request.add_special_tokens)
        else:
            ids = self.prompts.of_chat(request.messages or [], request.tools, request.chat_template_kwargs)
        texts = self.models.tokenizer.convert_ids_to_tokens(ids) if request.return_token_strs else None
        return {"count": len(ids), "max_model_len": self.context_tokens(model), "tokens": ids, "token_strs": texts}

    def detokenized(self, request: DetokenizeRequest) -> str:
        """Return the text of ids, control tokens included."""
        if request.model is not None:
            self.check_model(request.model)
        self.prompts.check_ids(request.tokens, "tokens")
        return str(self.models.tokenizer.decode(request.tokens, clean_up_tokenization_spaces=False))

    async def _start(
        self,
        request: Any,
        prepared: Callable[[Any, CompiledGrammar | None, asyncio.AbstractEventLoop], Choices],
    ) -> Choices:
        """Prepare the answers in threads, since it takes long, and hand them to the engine."""
        self.check_model(request.model)
        loop = asyncio.get_running_loop()
        try:
            grammar = None
            if request.may_follow_grammar:
                grammar = await loop.run_in_executor(self._compiling, self._grammar, request)
            choices = await asyncio.to_thread(prepared, request, grammar, loop)
            self.engine.submit(choices.jobs)
        except KeyError:
            self.check_model(request.model)  # it may have been unloaded meanwhile
            raise
        except Ended:
            raise ApiError("the server is shutting down", status=503) from None
        except Busy:
            raise ApiError(
                f"{self.engine.num_waiting} answers wait already; try again later",
                status=429,
                code="rate_limit_exceeded",
                headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
            ) from None
        log_tokens(choices)
        return choices

    def _grammar(self, request: Request) -> CompiledGrammar | None:
        """Return what the answers have to follow, compiled."""
        grammar = self.prompts.grammar(request)
        if grammar is None:
            return None
        try:
            return self.compiler.compiled(grammar)
        except GrammarError as error:
            fields = ("response_format", "structured_outputs")
            param = next((field for field in fields if getattr(request, field) is not None), "tools")
            raise ApiError(f"`{param}` cannot be followed: {error}", param=param) from None
        except GlmtuneError as error:
            raise ApiError(error.what, status=501) from None

    def _prepared_chat(
        self, request: ChatRequest, grammar: CompiledGrammar | None, loop: asyncio.AbstractEventLoop
    ) -> Choices:
        tools = request.offered_tools
        self._check_number(1, request)
        prompt = self._chat_prompt(request)
        continued = continued_text(request)
        sampling = replace(
            self._sampling(request, grammar),
            num_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        )
        is_reasoning = self.prompts.reasoning(request.variables) == IS_REASONING
        layout = replace(self.prompts.layout, prompt_opens_reasoning=is_reasoning)

        def reader() -> AnswerReader:
            reply = ReplyReader(layout, tools or [], continued=continued, streams_calls=request.stream)
            border = self.prompts.border
            return AnswerReader(self.models.tokenizer, stops=request.stop or [], reader=reply, border=border)

        self._check_prompt_logprobs([prompt], request)
        choices = self._choices(request, [prompt], request.wanted_tokens, sampling, reader, "messages", loop)
        return replace(choices, takes_one_call=not request.parallel_tool_calls)

    def _chat_prompt(self, request: ChatRequest) -> list[int]:
        continues = request.continue_final_message
        return self.prompts.of_chat(request.messages, request.offered_tools, request.variables, continues=continues)

    def _prepared_completion(
        self, request: CompletionRequest, grammar: CompiledGrammar | None, loop: asyncio.AbstractEventLoop
    ) -> Choices:
        self._check_number(len(request.prompts), request)
        prompts = self.prompts.of_completion(request)
        num_logprobs = request.logprobs
        if request.num_candidates > request.n:  # they are what is chosen by
            num_logprobs = num_logprobs or 0
        sampling = replace(self._sampling(request, grammar), num_logprobs=num_logprobs)
        wanted = 16 if request.max_tokens is None else request.max_tokens

        def reader() -> AnswerReader:
            return AnswerReader(self.models.tokenizer, stops=request.stop or [])

        self._check_prompt_logprobs(prompts, request)
        choices = self._choices(request, prompts, wanted, sampling, reader, "prompt", loop)
        return replace(choices, tells_stop_token=request.echo)

    def _check_number(self, num_prompts: int, request: Request) -> None:
        """Raise where more answers are wanted than one request may have, before anything is made for them."""
        number, most = num_prompts * request.num_candidates, max(MAX_CHOICES, self.engine.max_waiting)
        if number > most:
            raise ApiError(
                f"the request wants {number} answers, {request.num_candidates} to each of {num_prompts} prompts; "
                f"expected {most} at most",
                param="n" if num_prompts == 1 else "prompt",
            )

    def _check_prompt_logprobs(self, prompts: Sequence[list[int]], request: Request) -> None:
        """Raise where more likelihoods are wanted of prompts than an answer should hold."""
        if request.num_prompt_logprobs is None:
            return
        number = sum(map(len, prompts)) * (1 + request.num_prompt_logprobs) * request.n
        if number > MAX_PROMPT_LOGPROBS:
            message = f"the request wants {number} logprobs of its prompts; expected {MAX_PROMPT_LOGPROBS} at most"
            raise ApiError(message, param="logprobs" if request.prompt_logprobs is None else "prompt_logprobs")

    def _choices(
        self,
        request: Request,
        prompts: Sequence[list[int]],
        wanted: int | None,
        sampling: Sampling,
        reader: Callable[[], AnswerReader],
        param: str,
        loop: asyncio.AbstractEventLoop,
    ) -> Choices:
        queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        jobs: list[Job] = []
        has_own_stops = request.ignore_eos or bool(request.stop_token_ids)
        stops = frozenset(sampling.stops) if has_own_stops else None
        for prompt in prompts:
            max_new_tokens = self._max_new_tokens(request.model, len(prompt), wanted, param)
            for number in range(request.num_candidates):
                index = len(jobs)

                def on_event(event: Event, index: int = index) -> None:
                    with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits any more
                        loop.call_soon_threadsafe(queue.put_nowait, (index, event))

                own = replace(sampling, seed=answer_seed(request.seed, number), max_tokens=max_new_tokens)
                waits = not (request.stream or request.stop)
                job = Job(request.model, prompt, max_new_tokens, own, on_event, waits_for_end=waits, stops=stops)
                if not number:  # once for all answers to the prompt
                    job.num_prompt_logprobs = request.num_prompt_logprobs
                jobs.append(job)
        return Choices(
            jobs=jobs,
            readers=[reader() for _ in jobs],
            queue=queue,
            num_prompt_tokens=sum(map(len, prompts)),
        )

    def _sampling(self, request: Request, grammar: CompiledGrammar | None) -> Sampling:
        """Return what the request asks for; what it leaves open is as the model's own settings have it."""
        own = self.models.base.generation_config
        is_greedy = not own.do_sample
        temperature = request.temperature
        if temperature is None:
            # Who asks for a share of the likely tokens wants them sampled.
            asks = request.top_p is not None or (request.top_k or 0) > 0 or request.min_p > 0
            temperature = (1.0 if asks else 0.0) if is_greedy else (1.0 if own.temperature is None else own.temperature)
        bias = request.logit_bias or {}
        self.prompts.check_ids(list(bias), "logit_bias")
        self.prompts.check_ids(request.stop_token_ids or [], "stop_token_ids")
        # What follows a grammar has to end with it.
        ends_itself = not request.ignore_eos or grammar is not None
        stops = {*(own.eos_token_id if ends_itself else []), *(request.stop_token_ids or [])}
        return Sampling(
            temperature=temperature,
            top_p=_first(request.top_p, own.top_p, 1.0),
            top_k=max(0, _first(request.top_k, own.top_k if own.do_sample else None, 0)),
            min_p=request.min_p,
            frequency_penalty=request.frequency_penalty,
            presence_penalty=request.presence_penalty,
            repetition_penalty=_first(request.repetition_penalty, own.repetition_penalty, 1.0),
            logit_bias=bias,
            grammar=grammar,
            min_tokens=request.min_tokens,
            stops=sorted(stops),
            ignores_stops=request.ignore_eos,
        )

    def _max_new_tokens(self, model: str, num_prompt: int, wanted: int | None, param: str) -> int:
        max_length = self.context_tokens(model)
        room = max_length - num_prompt
        if room < 0 or room < (1 if wanted is None else wanted):
            raise overlong(max_length, num_prompt, param, wanted=0 if room < 1 else wanted or 0)
        if wanted is not None:
            return wanted
        return min(room, self.models.base.generation_config.max_new_tokens or room)


def _read(choices: Choices, number: int, event: Token | End) -> Update:
    """Return what an event makes certain of a choice; what cannot be decoded is an error of its request alone."""
    reader, job = choices.readers[number], choices.jobs[number]
    finish_reason = None
    tokens = [event] if isinstance(event, Token) and event.logprobs is not None else []
    if isinstance(event, End) and event.stop_token is not None and choices.tells_stop_token:
        tokens = [event.stop_token]
    try:
        events = reader.add(event.id) if isinstance(event, Token) else reader.end()
    except BaseException as error:  # what is written in Rust throws no `Exception`
        say(f"error: an answer could not be decoded: {type(error).__name__}: {error}")
        raise ApiError("the answer could not be decoded", status=500) from None
    if isinstance(event, End):
        finish_reason = "length" if event.is_cut else "stop"
    elif reader.is_stopped:
        job.is_complete = job.is_cancelled = True
        finish_reason = "stop"
    if choices.takes_one_call and (calls := [found for found in events if isinstance(found, ToolCall)]):
        events = events[: events.index(calls[0]) + 1]
        job.is_complete = job.is_cancelled = True
        finish_reason = "stop"
    return Update(choice=number, events=events, tokens=tokens, finish_reason=finish_reason)


def continued_text(request: ChatRequest) -> str | None:
    """Return the text that the answer goes on with; None where it begins anew."""
    if not request.continue_final_message:
        return None
    return "".join(texts_of_content(request.messages[-1].get("content")))


def answer_seed(seed: int | None, number: int) -> int:
    """Return the seed of one of the answers to a request, whose own one gives the same on any machine and Python."""
    if seed is None:
        return random.getrandbits(63)
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:8], "big")


def _fingerprint(models: ServedModels) -> str:
    """Return what changes where answers may: with the version, and what the base model and its settings are."""
    facts = [__version__, models.base.config.to_json_string(), models.base.generation_config.to_json_string()]
    return f"fp_{hashlib.sha256(chr(10).join(facts).encode()).hexdigest()[:12]}"


def _first(*values: Any) -> Any:
    """Return the first value that is not None."""
    return next(value for value in values if value is not None)
