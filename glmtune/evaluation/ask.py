"""Prompts from the command line, a file or stdin, and their answers in order."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from glmtune.data.encoding import Encoder
from glmtune.data.formats import to_conversation
from glmtune.data.reading import Row, read_rows
from glmtune.errors import GlmtuneError
from glmtune.standard_streams import read_input

from .generate import as_loaded, encode_question, generate, generation_config, refuse_folder, stream_answer

Prompt = str | list[dict[str, Any]]


def read_prompts(prompt: str | None, path: Path | None) -> list[Prompt]:
    """Return the prompts of a command: one text, a file of rows, or all of stdin as one text."""
    if prompt is not None and path is not None:
        raise GlmtuneError("both `--prompt` and `--input` are given", fix="leave one of them out")
    if path is not None:
        refuse_folder(path)
        return [_read_prompt(row) for row in read_rows(path)]
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
    trust_remote_code: bool = False,
    **options: Any,
) -> Iterator[Generator[str]]:
    """Yield the answer to every prompt: its pieces while they are written where `stream`, else one text.

    To close a generator of pieces before its end stops the writing.
    """
    loaded = as_loaded(model, base_model=base_model, trust_remote_code=trust_remote_code)
    if seed is not None:
        torch.manual_seed(seed)
    if stream:
        encoder = Encoder(loaded.tokenizer, loaded.family, use_skeletons=False)
        config = generation_config(loaded.model, options)
        for prompt in prompts:
            yield stream_answer(loaded, encode_question(encoder, prompt, system, thinking=thinking), config)
        return
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        for answer in generate(loaded, batch, system=system, batch_size=batch_size, thinking=thinking, **options):
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


def _read_prompt(row: Row) -> Prompt:
    if row.problem:
        raise GlmtuneError(row.problem, where=row.where)
    try:
        value = json.loads(row.text)
    except ValueError as error:
        raise GlmtuneError(f"not JSON: {error}", where=row.where) from None
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and isinstance(value.get("prompt"), str):
        return value["prompt"]
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        return value["messages"]
    raise GlmtuneError("the row has neither `prompt` (text) nor `messages` (a list)", where=row.where)
