"""Prompts from the command line, a file or stdin, and their answers in order."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from glmtune.chatformat.encoding import Encoder
from glmtune.config.generation_options import check_seed
from glmtune.console import notice
from glmtune.data.conversation import Conversation, RowError
from glmtune.data.formats import to_conversation, to_row
from glmtune.data.formats.pairs import CHAT_KEYS
from glmtune.data.formats.sharegpt import are_turns
from glmtune.data.formats.unread import HARMLESS, are_plain, unread_in_messages, unread_of
from glmtune.data.parts.fields import says_nothing
from glmtune.data.parts.media import is_media_key
from glmtune.data.reading.read_rows import Row, read_rows
from glmtune.data.unused import Unread
from glmtune.errors import GlmtuneError
from glmtune.files.user_paths import user_path
from glmtune.standard_streams import read_input

from .generate import (
    answer_ids,
    as_loaded,
    check_context,
    encode_question,
    generation_config,
    grammar_of_schema,
    refuse_folder,
    stream_answer,
)

Prompt = str | list[dict[str, Any]]

QUESTION_KEYS: dict[str, type] = {"prompt": str, "messages": list}
"""What a row asks under, and what stands there."""


def read_prompts(prompt: str | None, path: Path | None) -> list[Prompt]:
    """Return the prompts of a command: one text, a file of rows, or all of stdin as one text."""
    if prompt is not None and path is not None:
        raise GlmtuneError("both `--prompt` and `--input` are given", fix="leave one of them out")
    if path is not None:
        path = user_path(path)
        refuse_folder(path)
        unread = Unread()
        prompts = [_read_prompt(row, unread) for row in read_rows(path)]
        if not prompts:
            raise GlmtuneError("the file holds no prompt", where=str(path), fix="give one prompt a line")
        for line in unread.lines():
            notice(line)
        return prompts
    text = prompt if prompt is not None else read_input()
    if not text.strip():
        raise GlmtuneError(
            "there is nothing to ask", fix="give `--prompt TEXT`, `--input rows.jsonl`, or text on stdin"
        )
    return [text.strip() if prompt is None else text]


def answer_all(
    model: str,
    prompts: Sequence[Prompt],
    *,
    stream: bool,
    base_model: str | None = None,
    system: str | None = None,
    seed: int | None = None,
    batch_size: int = 8,
    thinking: bool | None = None,
    schema: Any = None,
    trust_remote_code: bool = False,
    quantization: str | None = None,
    **options: Any,
) -> Iterator[Generator[str]]:
    """Yield the answer to every prompt: its pieces while they are written where `stream`, else one text.

    To close a generator of pieces before its end stops the writing.
    """
    loaded = as_loaded(model, base_model=base_model, trust_remote_code=trust_remote_code, quantization=quantization)
    encoder = Encoder(loaded.tokenizer, loaded.family, use_skeletons=False)
    # All of them first: what cannot be asked is told before the first answer, not after a thousand.
    prompt_ids = [encode_question(encoder, prompt, system, thinking=thinking) for prompt in prompts]
    check_context(loaded.model, prompt_ids, options)
    config = generation_config(loaded.model, options)
    check_seed(seed)
    if seed is not None:
        torch.manual_seed(seed)
    grammar = None if schema is None else grammar_of_schema(loaded, encoder, schema, config, thinking=thinking)
    if stream:
        for ids in prompt_ids:
            yield stream_answer(loaded, ids, config, grammar)
        return
    for start in range(0, len(prompts), batch_size):
        batch = prompt_ids[start : start + batch_size]
        for answer in answer_ids(loaded, batch, config, batch_size=batch_size, grammar=grammar):
            yield (text for text in [answer])


def split_reference(prompt: Prompt) -> tuple[Prompt, str | None]:
    """Return what the model is asked, and the answer that stood behind it in the row: a reference, never asked."""
    if isinstance(prompt, str):
        return prompt, None
    end = len(prompt)
    while end and prompt[end - 1].get("role") == "assistant":
        end -= 1
    if end == len(prompt):
        return prompt, None
    answers = to_conversation({"messages": prompt[end:]}).messages
    # As the model writes it: the name of a called function stands on the line before its arguments.
    return prompt[:end], "\n".join(text for answer in answers for text in (answer.metadata, answer.content) if text)


def _read_prompt(row: Row, unread: Unread) -> Prompt:
    """Return what a row asks; keys of it that are not read are counted."""
    if row.problem:
        raise GlmtuneError(row.problem, where=row.where)
    try:
        value = json.loads(row.text)
    except ValueError as error:
        raise GlmtuneError(f"not JSON: {error}", where=row.where) from None
    if isinstance(value, str):
        return value
    keys = [key for key, kind in QUESTION_KEYS.items() if isinstance(value, dict) and isinstance(value.get(key), kind)]
    if not keys:
        raise GlmtuneError("the row has neither `prompt` (text) nor `messages` (a list)", where=row.where)
    if len(keys) > 1:
        raise GlmtuneError("the row has both `prompt` and `messages`; expected one of them", where=row.where)
    [key] = keys
    settings = {name: value[name] for name in CHAT_KEYS if value.get(name) is not None}
    try:
        _refuse_media(value)
        question = _whole_question(value[key], settings) if settings or key == "messages" else value[key]
    except RowError as error:
        raise GlmtuneError(f"cannot ask this: {error}", where=row.where) from None
    unread.add_keys(_unread_keys(value, key))
    return question if settings else value[key]  # as it was written, for `--json` to show


def _unread_keys(row: Mapping[str, Any], key: str) -> Iterable[str]:
    """Return what of a row, and of the messages under its `key`, nobody reads, each once."""
    names = [*unread_of(row, HARMLESS.union(CHAT_KEYS, [key]))]
    if isinstance(row[key], list) and not are_plain(row[key]):
        names += unread_in_messages(row[key], key, are_turns=are_turns(row[key]))
    return dict.fromkeys(names)


def _refuse_media(row: Mapping[str, Any]) -> None:
    for key, held in row.items():
        if is_media_key(key) and held is not False and not says_nothing(held):
            raise RowError(f"`{key}` cannot be shown to the model; expected text alone")


def _whole_question(question: Any, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the messages of a question, what stands beside it in its row among them."""
    settings = {**settings}
    functions = settings.pop("functions", None)  # as OpenAI called the tools before it called them so
    if functions:
        if settings.get("tools"):
            raise RowError("the row offers `tools` and `functions`; expected one of them")
        settings["tools"] = functions
    if isinstance(question, str):
        # Alpaca's rows have all that may stand beside a text; the answer that they need is not asked.
        asked = to_conversation({"instruction": question, "output": "-", **settings})
        return _messages_of(Conversation(messages=asked.messages[:-1]))
    if settings.pop("history", None):
        raise RowError("`history` stands beside `messages`, where it has no place; expected one of them")
    return _messages_of(to_conversation({"messages": question, **settings}))


def _messages_of(conversation: Conversation) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = to_row(conversation)["messages"]
    return messages
