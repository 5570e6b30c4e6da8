"""Asking a model: prompts to answers, all at once or piece by piece."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, TextIteratorStreamer

from glmtune.console import quiet_libraries
from glmtune.data.conversation import Conversation, RowError
from glmtune.data.encoding import Encoder
from glmtune.data.formats import to_conversation
from glmtune.errors import GlmtuneError
from glmtune.modeling.loading import LoadedModel, load_model
from glmtune.modeling.memory import LESS_IN_ANSWERING, memory_errors_explained
from glmtune.modeling.sources import find_model

from .answering import answer_prompts, generate_batch


@quiet_libraries()
@memory_errors_explained("answering", LESS_IN_ANSWERING)
def generate(
    model: str | Path | LoadedModel,
    prompts: Sequence[str | Sequence[Mapping[str, Any]]],
    *,
    base_model: str | None = None,
    system: str | None = None,
    batch_size: int = 8,
    seed: int | None = None,
    thinking: bool | None = None,
    trust_remote_code: bool = False,
    **generation_options: Any,
) -> list[str]:
    """Return the model's answer to every prompt, in order, without special tokens.

    Args:
        model: A checkpoint, model folder, run folder, hub name or `demo`; or a model loaded before.
        prompts: Texts, or lists of messages in OpenAI's or GLM-4's form.
        base_model: Where the base model of an adapter is now, if it has moved.
        system: A system message put before every prompt.
        batch_size: Prompts answered at once; more of them where they are shorter than the longest one.
        seed: Makes sampling repeatable.
        thinking: Switches reasoning on or off where the chat template knows how; None leaves it alone.
        trust_remote_code: Run code that the model brings along.
        generation_options: Fields of `transformers.GenerationConfig`, such as `max_new_tokens`, `temperature`.
    """
    loaded = as_loaded(model, base_model=base_model, trust_remote_code=trust_remote_code)
    encoder = Encoder(loaded.tokenizer, loaded.family, use_skeletons=False)
    prompt_ids = [encode_question(encoder, prompt, system, thinking=thinking) for prompt in prompts]
    options = generation_config(loaded.model, generation_options)
    if seed is not None:
        torch.manual_seed(seed)
    answers: dict[int, list[int]] = {}
    answer_prompts(
        loaded.model, loaded.tokenizer, prompt_ids, options, batch_size=batch_size, on_answers=answers.update
    )
    return [decode_answer(loaded.tokenizer, answers[place]) for place in range(len(prompts))]


@quiet_libraries()
@memory_errors_explained("loading the model", "use a smaller model, or a GPU with more memory")
def as_loaded(
    model: str | Path | LoadedModel, *, base_model: str | None = None, trust_remote_code: bool = False
) -> LoadedModel:
    """Load the model unless it is loaded already."""
    if isinstance(model, LoadedModel):
        return model
    return load_model(find_model(model, base_model=base_model), trust_remote_code=trust_remote_code)


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
) -> list[int]:
    """Return the ids that ask the question: a text, or messages up to the last that is not the assistant's."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(entry) for entry in prompt]
    if system:
        messages = [{"role": "system", "content": system}, *messages]
    try:
        conversation = to_conversation({"messages": messages})
        while conversation.messages and conversation.messages[-1].role == "assistant":
            conversation = Conversation(messages=conversation.messages[:-1])
        if not conversation.messages:
            raise RowError("the prompt has no message to answer")
        return encoder.encode_prompt(conversation, thinking=thinking)
    except RowError as error:
        raise GlmtuneError(f"cannot ask this: {error}") from None


def generation_config(model: Any, options: Mapping[str, Any]) -> GenerationConfig:
    """Return the model's own generation settings with `options` on top; the stop tokens always stay."""
    config = GenerationConfig.from_dict(model.generation_config.to_dict() | dict(options))
    stops = model.generation_config.eos_token_id
    own = options.get("eos_token_id") or []
    config.eos_token_id = sorted({*stops, *(own if isinstance(own, list) else [own])})
    if config.max_new_tokens is None:
        config.max_new_tokens = 512
    config.max_length = None
    if not config.do_sample:
        config.temperature = config.top_p = config.top_k = None
    return config


def stream_answer(loaded: LoadedModel, prompt_ids: Sequence[int], config: GenerationConfig) -> Generator[str]:
    """Yield the answer to one prompt piece by piece while the model writes it; closed, it stops the model."""
    from threading import Event, Thread

    streamer = AnswerStreamer(loaded.tokenizer, skip_prompt=True, skip_special_tokens=True)  # type: ignore[arg-type]
    failures: list[BaseException] = []
    is_closed = Event()

    def write() -> None:
        try:
            generate_batch(
                loaded.model, loaded.tokenizer, [prompt_ids], config, streamer=streamer, stop=is_closed.is_set
            )
        except BaseException as error:
            failures.append(error)
            streamer.end()

    thread = Thread(target=write, daemon=True)
    thread.start()
    is_first = True
    try:
        for text in streamer:
            shown = text.lstrip() if is_first else text
            if shown:
                is_first = False
                yield shown
    finally:
        # Python must not end while the thread computes: torch would abort the process.
        is_closed.set()
        thread.join()
    if failures:
        with memory_errors_explained("answering", LESS_IN_ANSWERING):
            raise failures[0]


def decode_answer(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of an answer, special tokens and outer white space removed.

    An answer may say something before it calls a tool, with `<|assistant|>` between: a newline stands there instead.
    """
    parts: list[list[int]] = [[]]
    border = _assistant_id(tokenizer)
    for token in ids:
        if token == border:
            parts.append([])
        else:
            parts[-1].append(token)
    texts = [str(tokenizer.decode(part, skip_special_tokens=True)).strip() for part in parts]
    return "\n".join(text for text in texts if text)


class AnswerStreamer(TextIteratorStreamer):
    """Streams an answer; where `decode_answer` keeps two texts apart, it does so, too."""

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt or the next token."""
        super().put(value)
        if value.tolist() == [_assistant_id(self.tokenizer)]:
            # What is held back for want of a whole word is whole now.
            text = str(self.tokenizer.decode(self.token_cache, **self.decode_kwargs))
            self.on_finalized_text(text[self.print_len :] + "\n")
            self.token_cache, self.print_len = [], 0


def _assistant_id(tokenizer: Any) -> int | None:
    return tokenizer.added_tokens_encoder.get("<|assistant|>")
