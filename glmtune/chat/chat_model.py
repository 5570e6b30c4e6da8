"""Answers of a local model."""

from __future__ import annotations

import copy
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import GenerationConfig

from glmtune.chatformat.encoding import Encoder
from glmtune.chatformat.replies import reply_layout
from glmtune.constrained.grammars import IS_REASONING
from glmtune.constrained.wanted import reasoning_at_start
from glmtune.errors import RunFailure
from glmtune.generation.following import Following
from glmtune.generation.generate import as_loaded, encode_question, generation_config, stream_reply
from glmtune.modeling.context import check_prompt, context_tokens

from .chat_session import BEGIN_ANEW, Event, Message, ModelAnswers


def local_answers(
    model: str,
    *,
    base_model: str | None = None,
    trust_remote_code: bool = False,
    quantization: str | None = None,
    seed: int | None = None,
    thinking: bool | None = None,
    schema: Any = None,
    **options: Any,
) -> ModelAnswers:
    """Load a model; returns what answers with it.

    Args:
        model: A checkpoint, model folder, run folder, hub name or `demo`.
        base_model: Where the base model of an adapter is now, if it has moved.
        trust_remote_code: Run code that the model brings along.
        quantization: `4bit` or `8bit` rounds the base model's weights while they are loaded.
        seed: Makes sampling repeatable.
        thinking: Switches reasoning on or off where the chat template knows how; None leaves it alone.
        schema: A JSON Schema, which every answer follows.
        options: Fields of `transformers.GenerationConfig`.
    """
    loaded = as_loaded(model, base_model=base_model, trust_remote_code=trust_remote_code, quantization=quantization)
    encoder = Encoder(loaded.tokenizer, loaded.family, use_skeletons=False)
    layout = reply_layout(encoder.renderer)
    config = generation_config(loaded.model, options)
    limit = context_tokens(loaded.model)
    variables = {} if thinking is None else {"enable_thinking": thinking}
    is_reasoning = reasoning_at_start(encoder.renderer, layout, variables) == IS_REASONING
    begun = replace(layout, prompt_opens_reasoning=is_reasoning)
    following = Following(loaded, encoder, schema=schema)
    if schema is not None:
        following.grammar(thinking=thinking)  # what is wrong with it is told before the first question
    if seed is not None:
        torch.manual_seed(seed)

    def answer(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> Generator[Event]:
        ids = encode_question(encoder, messages, None, thinking=thinking, tools=tools)
        try:
            grammar = following.grammar(thinking=thinking, tools=tools)
            yield from stream_reply(loaded, ids, _fitting(config, len(ids), limit), begun, tools, grammar)
        except RunFailure as error:
            raise RunFailure(error.what, fix=f"lower `--max-new-tokens`; {BEGIN_ANEW}") from error

    return ModelAnswers(answer, layout.text_tools)


def _fitting(config: GenerationConfig, num_prompt_tokens: int, limit: int | None) -> GenerationConfig:
    """Return the settings with no longer an answer than the model's context has room for."""
    if limit is None:
        return config
    check_prompt(num_prompt_tokens, limit, "the conversation", BEGIN_ANEW)
    fitting = copy.deepcopy(config)
    fitting.max_new_tokens = min(config.max_new_tokens or limit, limit - num_prompt_tokens)
    return fitting
