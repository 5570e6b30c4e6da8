"""Asking a model: prompts to answers, all at once or piece by piece."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from queue import Queue
from threading import Event, Thread
from typing import Any, overload

import torch
from transformers import GenerationConfig
from transformers.generation import BaseStreamer

from glmtune.chatformat.encoding import Encoder
from glmtune.chatformat.replies import CutOff, Delta, ReplyLayout, ReplyReader, ToolCall
from glmtune.config.generation_options import UNSUPPORTED, check_seed, drop_idle_options, find_problems
from glmtune.console import notice, quiet_libraries
from glmtune.constrained.compiling import CompiledGrammar
from glmtune.data.conversation import Conversation, RowError
from glmtune.data.formats import to_conversation
from glmtune.errors import GlmtuneError
from glmtune.modeling.context import check_prompt, context_tokens, vocabulary_of
from glmtune.modeling.finding.model_source import find_model
from glmtune.modeling.finite import watch_logits
from glmtune.modeling.library_errors import answering_explained
from glmtune.modeling.loading import LoadedModel, load_model
from glmtune.modeling.out_of_memory import LESS_IN_ANSWERING, memory_errors_explained
from glmtune.python_arguments import expect_counts

from .answering import answer_prompts, generate_batch
from .decoding import AnswerReader, border_of, decode_answer
from .following import Following

Messages = Sequence[Mapping[str, Any]]
"""Of one prompt, in OpenAI's or GLM-4's form."""

EMPTY = "\ufdd0"
"""The content of a message that is empty on purpose: a noncharacter, which no text holds."""

EXPECTED_PROMPTS = "expected a text, a list of messages, or a list of prompts"
ROW_KEYS = ("prompt", "messages", "conversations", "instruction")
"""Of a row in a file; no message has them."""
ROW_FILES = (".jsonl", ".json", ".csv", ".txt")


@overload
def generate(
    model: str | Path | LoadedModel,
    prompts: str | Messages,
    *,
    base_model: str | None = None,
    system: str | None = None,
    batch_size: int = 8,
    seed: int | None = None,
    thinking: bool | None = None,
    schema: Any = None,
    trust_remote_code: bool = False,
    quantization: str | None = None,
    **generation_options: Any,
) -> str: ...


@overload
def generate(
    model: str | Path | LoadedModel,
    prompts: Sequence[str] | Sequence[Messages] | Sequence[str | Messages],
    *,
    base_model: str | None = None,
    system: str | None = None,
    batch_size: int = 8,
    seed: int | None = None,
    thinking: bool | None = None,
    schema: Any = None,
    trust_remote_code: bool = False,
    quantization: str | None = None,
    **generation_options: Any,
) -> list[str]: ...


@quiet_libraries()
@memory_errors_explained("answering", LESS_IN_ANSWERING)
def generate(
    model: str | Path | LoadedModel,
    prompts: str | Messages | Sequence[str | Messages],
    *,
    base_model: str | None = None,
    system: str | None = None,
    batch_size: int = 8,
    seed: int | None = None,
    thinking: bool | None = None,
    schema: Any = None,
    trust_remote_code: bool = False,
    quantization: str | None = None,
    **generation_options: Any,
) -> str | list[str]:
    """Return the model's answer to one prompt as a text, or to every prompt of a list, in order.

    Answers come without special tokens.

    Args:
        model: A checkpoint, model folder, run folder, hub name or `demo`; or a model loaded before.
        prompts: One prompt, which is a text or a list of messages in OpenAI's or GLM-4's form; or a list of prompts.
        base_model: Where the base model of an adapter is now, if it has moved.
        system: A system message put before every prompt.
        batch_size: Prompts answered at once; more of them where they are shorter than the longest one.
        seed: Makes sampling repeatable.
        thinking: Switches reasoning on or off where the chat template knows how; None leaves it alone.
        schema: A JSON Schema, which every answer follows, behind the reasoning where there is some.
        trust_remote_code: Run code that the model brings along.
        quantization: `4bit` or `8bit` rounds the base model's weights while they are loaded.
        generation_options: Fields of `transformers.GenerationConfig`, such as `max_new_tokens`, `temperature`.
    """
    expect_counts(batch_size=batch_size)
    check_seed(seed)
    listed, is_alone = _list_of_prompts(prompts)
    loaded = as_loaded(model, base_model=base_model, trust_remote_code=trust_remote_code, quantization=quantization)
    encoder = Encoder(loaded.tokenizer, loaded.family, use_skeletons=False)
    prompt_ids = [encode_question(encoder, prompt, system, thinking=thinking) for prompt in listed]
    check_context(loaded.model, prompt_ids, generation_options)
    if seed is not None:
        torch.manual_seed(seed)
    config = generation_config(loaded.model, generation_options)
    grammar = None if schema is None else grammar_of_schema(loaded, encoder, schema, config, thinking=thinking)
    answers = answer_ids(loaded, prompt_ids, config, batch_size=batch_size, grammar=grammar)
    return answers[0] if is_alone else answers


@quiet_libraries()
@memory_errors_explained("answering", LESS_IN_ANSWERING)
def answer_ids(
    loaded: LoadedModel,
    prompt_ids: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    batch_size: int,
    grammar: CompiledGrammar | None = None,
) -> list[str]:
    """Return the answers to encoded prompts, in order; all of them follow the grammar."""
    answers: dict[int, list[int]] = {}
    with answering_explained(loaded.model):
        answer_prompts(
            loaded.model,
            loaded.tokenizer,
            prompt_ids,
            config,
            batch_size=batch_size,
            grammar=grammar,
            on_answers=answers.update,
        )
    return [decode_answer(loaded.tokenizer, answers[place]) for place in range(len(prompt_ids))]


def grammar_of_schema(
    loaded: LoadedModel, encoder: Encoder, schema: Any, config: GenerationConfig, *, thinking: bool | None
) -> CompiledGrammar | None:
    """Return what answers of a schema follow, or raise where they could not."""
    if (config.num_beams or 1) > 1:
        raise GlmtuneError("beam search cannot follow a schema", fix="leave one of them out")
    return Following(loaded, encoder, schema=schema).grammar(thinking=thinking)


def check_context(model: Any, prompt_ids: Sequence[Sequence[int]], options: Mapping[str, Any]) -> None:
    """Raise where a prompt leaves no room for an answer; says so where answers may end before they are as asked for.

    Args:
        model: Possibly with an adapter.
        prompt_ids: Of all prompts.
        options: The generation options that were asked for.
    """
    limit = context_tokens(model)
    for number, ids in enumerate(prompt_ids, start=1):
        what = f"prompt {number}" if len(prompt_ids) > 1 else "the prompt"
        check_prompt(len(ids), limit, what, "shorten it, or take a model with a longer context")
    longest = max(map(len, prompt_ids), default=0)
    asked = options.get("max_new_tokens")
    if limit is not None and asked is not None and longest + asked > limit:
        notice(
            f"`max_new_tokens` is {asked:,}, but an answer ends where the model's context does: at {limit:,} tokens "
            f"together with its prompt, of which the longest has {longest:,}"
        )


def note_short_context(options: Mapping[str, Any], limit: int | None) -> None:
    """Say where the options ask for longer answers than the model's context, of `limit` tokens, can hold."""
    asked = options.get("max_new_tokens")
    if limit is not None and asked is not None and asked > limit:
        notice(
            f"`max_new_tokens` is {asked:,}, but an answer ends where the model's context does: at {limit:,} tokens "
            "together with its prompt"
        )


def _list_of_prompts(prompts: Any) -> tuple[list[str | Messages], bool]:
    """Return the prompts as a list, and whether it is one that stood alone; raises where it could be either."""
    if isinstance(prompts, str):
        if prompts.endswith(ROW_FILES) and Path(prompts).is_file():
            notice(f"the model is asked the text `{prompts}`, not what the file of that name holds")
        return [prompts], True
    if isinstance(prompts, Mapping):
        raise GlmtuneError(
            f"`prompts` is one message; {EXPECTED_PROMPTS}",
            fix="write `generate(model, [message])`",
        )
    if not isinstance(prompts, Iterable) or isinstance(prompts, (bytes, Path)):
        raise GlmtuneError(f"`prompts` is of type `{type(prompts).__name__}`; {EXPECTED_PROMPTS}")
    listed = list(prompts)
    if listed and all(isinstance(entry, Mapping) for entry in listed):
        _refuse_many(listed)
        return [listed], True
    for number, prompt in enumerate(listed, start=1):
        if not isinstance(prompt, str) and not (
            isinstance(prompt, Sequence) and all(isinstance(entry, Mapping) for entry in prompt)
        ):
            raise GlmtuneError(f"prompt {number} is of type `{type(prompt).__name__}`; expected text, or messages")
    return listed, False


def _refuse_many(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raise where what would be read as the messages of one prompt may be meant as several prompts."""
    for number, message in enumerate(messages, start=1):
        key = next((key for key in ROW_KEYS if key in message), None)
        if key is not None:
            raise GlmtuneError(
                f"entry {number} of `prompts` is a row with `{key}`; expected texts, or messages",
                fix=f"write `generate(model, [row[{key!r}] for row in rows])`",
            )
    for number, (before, message) in enumerate(itertools.pairwise(messages), start=2):
        if before.get("role") == message.get("role") == "user":
            raise GlmtuneError(
                f"messages {number - 1} and {number} are both the user's: one prompt, or several?",
                fix="write `generate(model, [messages])` for one, `generate(model, [[first], [second]])` for several",
            )


@quiet_libraries()
@memory_errors_explained("loading the model", "use a smaller model, or a GPU with more memory")
def as_loaded(
    model: str | Path | LoadedModel,
    *,
    base_model: str | None = None,
    trust_remote_code: bool = False,
    quantization: str | None = None,
) -> LoadedModel:
    """Load the model unless it is loaded already; one that computes no numbers will not answer."""
    if not isinstance(model, LoadedModel):
        source = find_model(model, base_model=base_model)
        model = load_model(source, trust_remote_code=trust_remote_code, quantization=quantization)
    elif quantization is not None:
        raise GlmtuneError("`quantization` is for a model that is still to be loaded", fix="leave it out")
    watch_logits(model.model)
    return model


def refuse_folder(path: Path) -> None:
    """Raise where a folder is given in the place of a file of rows; the error names its files."""
    if not path.is_dir():
        return
    names = sorted(entry.name for entry in path.iterdir() if entry.is_file())
    listing = ", ".join(f"`{name}`" for name in names[:8]) or "no files"
    raise GlmtuneError(f"`{path}` is a folder; expected a file of rows", fix=f"it holds {listing}")


def encode_question(
    encoder: Encoder,
    prompt: str | Sequence[Mapping[str, Any]],
    system: str | None,
    *,
    thinking: bool | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> list[int]:
    """Return the ids that ask the question: a text, or messages up to the last that is not the assistant's."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(entry) for entry in prompt]
    if system:
        messages = [{"role": "system", "content": system}, *messages]
    try:
        return encode_messages(encoder, messages, tools=tools, thinking=thinking, leaves_out_answer=True)
    except RowError as error:
        raise GlmtuneError(f"cannot ask this: {error}") from None


def encode_messages(
    encoder: Encoder,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None,
    thinking: bool | None = None,
    variables: Mapping[str, Any] | None = None,
    leaves_out_answer: bool = False,
    continues: bool = False,
) -> list[int]:
    """Return the ids that ask for an answer, exactly as training would have written the conversation before it.

    Args:
        encoder: Of the model.
        messages: In OpenAI's or GLM-4's form.
        tools: Schemas of the functions that are offered.
        thinking: Switches reasoning on or off where the chat template knows how; None leaves it alone.
        variables: Others that the chat template is told.
        leaves_out_answer: Whether messages of the assistant at the end are left out; otherwise they are an error.
        continues: Whether the last message is the assistant's, and the beginning of the answer.

    Raises:
        RowError: The messages are no conversation, or an answer is the last of them.
    """
    conversation = to_conversation({"messages": list(messages), **({"tools": list(tools)} if tools else {})})
    asked = conversation.messages
    while leaves_out_answer and asked and asked[-1].role == "assistant":
        asked = asked[:-1]
    if not asked:
        raise RowError("the prompt has no message to answer")
    if continues and asked[-1].role != "assistant":
        raise RowError(f"the last message has role `{asked[-1].role}`; expected the assistant's, to be continued")
    if asked[-1].role == "assistant" and not continues:
        raise RowError("the last message is the assistant's; expected one to answer")
    asked = tuple(replace(message, content="") if message.content == EMPTY else message for message in asked)
    return encoder.encode_prompt(
        Conversation(messages=asked), thinking=thinking, variables=variables, continues=continues
    )


def generation_config(model: Any, options: Mapping[str, Any]) -> GenerationConfig:
    """Return the model's own generation settings with `options` on top; the stop tokens always stay.

    Raises:
        GlmtuneError: For an option that is unknown, has no answer to give, or would do nothing.
    """
    vocabulary = vocabulary_of(model.config)
    for problem in find_problems(options, do_sample=model.generation_config.do_sample, vocabulary=vocabulary):
        named = f"`{problem.option}`" if problem.option else "the generation options"
        raise GlmtuneError(f"{named}: {problem.message}", fix=problem.fix)
    own = model.generation_config.to_dict()
    # One answer to each prompt, as text, whatever else the model's own file asks for.
    own |= dict.fromkeys(name for name in UNSUPPORTED if own.get(name))
    config = GenerationConfig.from_dict(own | dict(options))
    stops = model.generation_config.eos_token_id
    own = options.get("eos_token_id") or []
    config.eos_token_id = sorted({*stops, *(own if isinstance(own, list) else [own])})
    if config.max_new_tokens is None:
        config.max_new_tokens = 512
    limit = context_tokens(model)
    if limit is not None:
        # How many answers are written at once depends on how long they may become.
        config.max_new_tokens = min(config.max_new_tokens, limit)
        config.min_new_tokens = min(config.min_new_tokens or 0, limit) or None
    config.max_length = None
    drop_idle_options(config)
    return config


def stream_answer(
    loaded: LoadedModel,
    prompt_ids: Sequence[int],
    config: GenerationConfig,
    grammar: CompiledGrammar | None = None,
) -> Generator[str]:
    """Yield the answer to one prompt piece by piece while the model writes it; closed, it stops the model."""
    reader = AnswerReader(loaded.tokenizer, border=border_of(loaded.tokenizer))
    is_first = True
    with closing(_written(loaded, prompt_ids, config, grammar)) as tokens:
        for event in _read(reader, tokens):
            shown = event.text.lstrip() if is_first else event.text
            if shown:
                is_first = False
                yield shown


def stream_reply(
    loaded: LoadedModel,
    prompt_ids: Sequence[int],
    config: GenerationConfig,
    layout: ReplyLayout,
    tools: Sequence[dict[str, Any]] | None = None,
    grammar: CompiledGrammar | None = None,
) -> Generator[Delta | ToolCall | CutOff]:
    """Yield what stands in the answer to one prompt while the model writes it; closed, it stops the model.

    Args:
        loaded: The model.
        prompt_ids: Of the prompt.
        config: How to generate.
        layout: How the model writes calls and reasoning.
        tools: Schemas of the functions that were offered, as `parse_reply` takes them.
        grammar: What the answer has to follow.
    """
    border = border_of(loaded.tokenizer)
    reader = AnswerReader(loaded.tokenizer, reader=ReplyReader(layout, tools), border=border)
    with closing(_written(loaded, prompt_ids, config, grammar)) as tokens:
        yield from _read(reader, tokens, keeps_broken=False)
    if reader.num_tokens == config.max_new_tokens:
        yield CutOff()


def _read(reader: AnswerReader, tokens: Iterable[int], *, keeps_broken: bool = True) -> Generator[Any]:
    for token in tokens:
        yield from reader.add(token)
    yield from reader.end(keeps_broken=keeps_broken)


class _TokenQueue(BaseStreamer):
    """Hands on what the model writes, token by token, without the prompt; None at its end."""

    def __init__(self) -> None:
        self.tokens: Queue[int | None] = Queue()
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt or the next token."""
        if not self._is_prompt:
            for token in value.tolist():
                self.tokens.put(token)
        self._is_prompt = False

    def end(self) -> None:
        """Take the end of the answer."""
        self.tokens.put(None)


def _written(
    loaded: LoadedModel, prompt_ids: Sequence[int], config: GenerationConfig, grammar: CompiledGrammar | None
) -> Generator[int]:
    """Yield the ids of an answer, its stop token left out, while a thread lets the model write; closed, it stops it."""
    failures: list[BaseException] = []
    is_closed = Event()
    queue = _TokenQueue()
    stops = set(config.eos_token_id or [])

    def write() -> None:
        try:
            generate_batch(
                loaded.model,
                loaded.tokenizer,
                [prompt_ids],
                config,
                streamer=queue,
                stop=is_closed.is_set,
                grammar=grammar,
            )
        except BaseException as error:
            failures.append(error)
            queue.end()

    thread = Thread(target=write, daemon=True)
    thread.start()
    try:
        yield from (token for token in iter(queue.tokens.get, None) if token not in stops)
    finally:
        # Python must not end while the thread computes: torch would abort the process.
        is_closed.set()
        thread.join()
    if failures:
        with memory_errors_explained("answering", LESS_IN_ANSWERING), answering_explained(loaded.model):
            raise failures[0]
