"""From what a request says to the ids that the model reads; all of it takes its time, and belongs into a thread."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from glmtune.chatformat.encoding import Encoder
from glmtune.chatformat.replies import reply_layout
from glmtune.constrained.grammars import Grammar
from glmtune.constrained.schemas import GrammarError
from glmtune.constrained.wanted import chat_grammar, content_grammar, reasoning_at_start, tags_of
from glmtune.data.conversation import RowError
from glmtune.errors import GlmtuneError
from glmtune.generation.decoding import border_of
from glmtune.generation.generate import EMPTY, encode_messages

from .api_errors import ApiError
from .models import ServedModels
from .reading import texts_in
from .requests import ChatRequest, CompletionRequest, NamedToolChoice, Request

SLICE_CHARACTERS = 20_000
"""What is counted at once of a text that may be too long."""
SLACK = 1.1
"""A text cut in slices may have some tokens more than the whole."""


class PromptWriter:
    """Writes prompts as training would have written them; several threads may use it."""

    def __init__(self, models: ServedModels, *, max_length: int) -> None:
        """Keep what all requests need; `max_length` is the most tokens of any prompt."""
        self.max_length = max_length
        self.tokenizer: Any = models.tokenizer
        # One of its own: it is set to read control tokens as text, the other one is not, and each change of that would
        # keep the thread that decodes answers waiting for what is just being encoded.
        self.encoder = Encoder(copy.deepcopy(models.tokenizer), models.family, use_skeletons=False)
        self.layout = reply_layout(self.encoder.renderer)
        self.border = border_of(models.tokenizer)
        self.num_ids = len(models.tokenizer)
        self._reserved = {"messages", "tools", *inspect.signature(self.tokenizer.apply_chat_template).parameters}

    def of_chat(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Any,
        variables: Mapping[str, Any] | None = None,
        *,
        continues: bool = False,
    ) -> list[int]:
        """Return the ids of a conversation; where it `continues`, its last message is the beginning of the answer."""
        self._refuse_long([*messages, *(tools or [])], "messages", num_least=len(messages))
        if reserved := sorted(self._reserved & (variables or {}).keys()):
            raise ApiError(f"`chat_template_kwargs` may not hold `{reserved[0]}`", param="chat_template_kwargs")
        facts = self.encoder.renderer.facts
        is_reasoning_shown = facts.shows_reasoning or bool(facts.hidden_reasoning)
        written = [_as_trained(message, is_reasoning_shown=is_reasoning_shown) for message in messages]
        try:
            return encode_messages(self.encoder, written, tools=tools, variables=variables, continues=continues)
        except (RowError, GlmtuneError) as error:
            raise ApiError(error.what if isinstance(error, GlmtuneError) else str(error), param="messages") from None
        except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
            message = f"the messages or tools are not of OpenAI's form: {type(error).__name__}: {error}"
            raise ApiError(message, param="messages") from None

    def of_completion(self, request: CompletionRequest) -> list[list[int]]:
        """Return the ids of each of the texts."""
        prompts = [list(prompt) if not isinstance(prompt, str) else self.of_text(prompt) for prompt in request.prompts]
        if not prompts or not all(prompts):
            raise ApiError("`prompt` is empty", param="prompt")
        self.check_ids([token for prompt in prompts for token in (min(prompt), max(prompt))], "prompt")
        return prompts

    def of_text(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a text, in which control tokens count as such."""
        self._refuse_long(text, "prompt")
        ids: list[int] = self.tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
        return ids

    def check_ids(self, ids: Sequence[int], field: str) -> None:
        """Raise where one of the ids is not the model's."""
        if ids and not 0 <= min(ids) <= max(ids) < self.num_ids:
            message = f"`{field}` holds ids that the model does not have: they go from 0 to {self.num_ids - 1}"
            raise ApiError(message, param=field)

    def reasoning(self, variables: Mapping[str, Any] | None = None) -> str:
        """Return where an answer stands at its beginning, by what the chat template writes before it."""
        return reasoning_at_start(self.encoder.renderer, self.layout, variables)

    def grammar(self, request: Request) -> Grammar | None:
        """Return what the answers have to follow; None where they are free."""
        wanted = {"response_format": request.response_format, "structured_outputs": request.structured_outputs}
        try:
            if not isinstance(request, ChatRequest):
                return content_grammar(**wanted)
            choice = request.tool_choice
            is_named = isinstance(choice, NamedToolChoice)
            return chat_grammar(
                layout=self.layout,
                border=self.border,
                tags=tags_of(self.tokenizer),
                reasoning=self.reasoning(request.variables),
                tools=request.tools,
                tool_choice=choice.function.name if isinstance(choice, NamedToolChoice) else choice,
                is_named=is_named,
                is_parallel=request.parallel_tool_calls,
                **wanted,
            )
        except GrammarError as error:
            raise ApiError(str(error), param=error.param or None) from None

    def _refuse_long(self, value: Any, field: str, *, num_least: int = 0) -> None:
        """Raise where texts are surely too long, after reading not much more of them than the model would take."""
        texts = list(texts_in(value))
        num_tokens, num_read = num_least, 0
        if num_least <= self.max_length and sum(map(len, texts)) <= self.max_length:
            return
        for part in _slices(texts):
            num_tokens += sum(map(len, self.tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]))
            num_read += sum(map(len, part))
            if num_tokens > SLACK * self.max_length:
                raise overlong(self.max_length, num_tokens, field, is_least=num_read < sum(map(len, texts)))


def overlong(max_length: int, num_prompt: int, field: str, *, wanted: int = 0, is_least: bool = False) -> ApiError:
    """Return the error of a request that does not fit, in the words by which clients know it and shorten theirs."""
    least = "at least " if is_least else ""
    asked = f"your {field} resulted in {least}{num_prompt} tokens"
    if wanted:
        asked = f"you requested {num_prompt + wanted} tokens ({num_prompt} in the {field}, {wanted} in the completion)"
    return ApiError(
        f"This model's maximum context length is {max_length} tokens. However, {asked}. "
        f"Please reduce the length of the {field}{' or completion' if wanted else ''}.",
        param="max_tokens" if wanted else field,
        code="context_length_exceeded",
    )


def _slices(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield the texts, cut in pieces, so many characters of them at once."""
    part: list[str] = []
    size = 0
    for text in texts:
        for start in range(0, len(text), SLICE_CHARACTERS):
            part.append(text[start : start + SLICE_CHARACTERS])
            size += len(part[-1])
            if size >= SLICE_CHARACTERS:
                yield part
                part, size = [], 0
    if part:
        yield part


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
    if role == "user" and not any(texts_of_content(message.get("content"))):
        return {**message, "content": EMPTY}
    return message


def texts_of_content(content: Any) -> list[str]:
    """Return the texts of a message: its content, or the parts of it; what is neither counts as one."""
    if content is None or isinstance(content, str):
        return [content or ""]
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return [str(part.get("text", part)) for part in content]
    return [str(content)]
