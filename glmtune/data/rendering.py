r"""Conversations to text through the tokenizer's own chat template, and which parts of the text are trained.

[gMASK]<sop><|user|>\n你好<|assistant|>\n您好<|user|>
                                    └──── trained ─────┘   (GLM-4: the next role token is the stop)
<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n
                                                      └── trained ──┘  (ChatML: the template writes the stop)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from glmtune.errors import GlmtuneError
from glmtune.family import Family

from .conversation import Conversation, Message, RowError

# Unicode noncharacters never stand in real text. One of them is put inside a control token that a user wrote, so
# that the rendered text shows which control tokens are the template's own.
NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]

PROBE = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
PROBE_NAME = "glmtune_probe"
PROBE_TOOL = {
    "type": "function",
    "function": {"name": PROBE_NAME, "description": "", "parameters": {"type": "object", "properties": {}}},
}


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch of rendered text that is trained as a whole, or not at all."""

    text: str
    trained: bool = False
    guard: str = ""
    """The noncharacter to take out of the text again; empty where none was put in."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Where an assistant message stands in the rendered text."""

    message: Message
    index: int
    """Of the message in its conversation."""
    span: tuple[int, int]
    """First character and the one behind the last."""
    trained: bool


class ChatRenderer:
    """Renders messages with one tokenizer's template and knows how the template ends an assistant turn."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, family: Family) -> None:
        template = tokenizer.chat_template
        if not isinstance(template, str) or not template:
            raise GlmtuneError(
                f"the tokenizer in `{tokenizer.name_or_path}` has no chat template",
                fix="use a chat model, or add `chat_template.jinja` to the model folder",
            )
        self.tokenizer = tokenizer
        self.family = family
        self.control_tokens = sorted(tokenizer.all_special_tokens, key=len, reverse=True)
        self.observation_role = "observation" if "<|observation|>" in self.control_tokens else "tool"
        self._probe()

    def _probe(self) -> None:
        """Learn the template's prefix, its generation prompt and its end-of-turn token from two short messages."""
        question = self.render(PROBE[:1])
        self.generation_prompt = self.render(PROBE[:1], add_generation_prompt=True).removeprefix(question)
        answer = self.render(PROBE)
        if not self.generation_prompt or not answer.startswith(question + self.generation_prompt):
            raise GlmtuneError(
                "the chat template renders an answer differently from the prompt that asks for it",
                where=str(self.tokenizer.name_or_path),
                fix=f"rendered prompt: {question + self.generation_prompt!r}; rendered answer: {answer!r}",
            )
        tail = answer[len(question + self.generation_prompt) :].partition("b")[2]
        ends = [token for token in self.control_tokens if token in tail]
        self.end_token = min(ends, key=tail.index) if ends else None
        if self.end_token is None and self.family.stop_after_answer is None:
            raise GlmtuneError(
                "the chat template writes no end-of-turn token after an answer, so the model could not learn to stop",
                where=str(self.tokenizer.name_or_path),
                fix="use a tokenizer whose template ends assistant messages with a special token",
            )
        try:
            # A message rendered once is prefix + message, rendered twice it is prefix + message + message.
            twice = self.render([PROBE[0], PROBE[0]])
        except jinja2.TemplateError:
            twice = ""
        prefix_length = 2 * len(question) - len(twice)
        self.prefix = question[:prefix_length] if twice and prefix_length >= 0 else None
        self.takes_tools_argument = self._shows_probe(PROBE[:1], tools=[PROBE_TOOL])
        self.takes_message_tools = self._shows_probe(
            [{"role": "system", "content": "", "tools": [PROBE_TOOL]}, PROBE[0]]
        )
        self.writes_role_line = self._shows_probe([PROBE[0], PROBE[1] | {"metadata": PROBE_NAME}])

    def _shows_probe(self, messages: list[dict[str, Any]], **options: Any) -> bool:
        """Whether the template writes the probe's function name: asked of the template, not read from its source."""
        try:
            return PROBE_NAME in self.render(messages, **options)
        except (jinja2.TemplateError, TypeError):
            return False

    def render(self, messages: list[dict[str, Any]], **options: Any) -> str:
        """Return the template's text for the messages."""
        return self.tokenizer.apply_chat_template(messages, tokenize=False, **options)  # type: ignore[return-value]

    def _template_messages(self, conversation: Conversation, guard: str) -> list[dict[str, Any]]:
        """Return the messages as the template reads them; control tokens in their text get the `guard` inside."""
        return [self._template_message(message, guard) for message in conversation.messages if self._is_shown(message)]

    def _is_shown(self, message: Message) -> bool:
        """Whether the template gets the message: a system message that only carries tools may travel beside it."""
        return message.role != "system" or bool(message.content) or self.takes_message_tools

    def _template_message(self, message: Message, guard: str) -> dict[str, Any]:
        role = self.observation_role if message.role == "observation" else message.role
        rendered: dict[str, Any] = {"role": role, "content": self._guarded(message.content, guard)}
        if message.tools and self.takes_message_tools:
            rendered["tools"] = json.loads(self._guarded(message.tools, guard))
        if message.metadata and self.writes_role_line:
            rendered["metadata"] = self._guarded(message.metadata, guard)
        elif message.metadata and message.role == "assistant":
            try:
                arguments = json.loads(rendered["content"])
            except ValueError:
                raise RowError(f"the arguments of the call to `{message.metadata}` are not JSON") from None
            call = {"type": "function", "function": {"name": message.metadata, "arguments": arguments}}
            rendered |= {"content": "", "tool_calls": [call]}
        return rendered

    def _guarded(self, text: str, guard: str) -> str:
        if guard:
            for token in self.control_tokens:
                text = text.replace(token, token[0] + guard + token[1:])
        return text

    def guard_for(self, conversation: Conversation) -> str:
        """Return a character to mark control tokens written in message text; empty where no message has one."""
        texts = [
            text for message in conversation.messages for text in (message.content, message.metadata, message.tools)
        ]
        text = "".join(text for text in texts if text)
        if not any(token in text for token in self.control_tokens):
            return ""
        return next(character for character in NONCHARACTERS if character not in text)

    def pieces(self, conversation: Conversation, trained: Sequence[bool]) -> list[Piece]:
        """Return the conversation's text, cut before and behind every answer.

        Args:
            conversation: What to render.
            trained: For every message, whether it is trained; only assistant messages may be.

        Raises:
            RowError: The template refuses the messages, or renders a turn differently once others follow it.
        """
        guard = self.guard_for(conversation)
        options = self._options(conversation)
        shown = [index for index, message in enumerate(conversation.messages) if self._is_shown(message)]
        messages = [self._template_message(conversation.messages[index], guard) for index in shown]
        try:
            whole = self.render(messages, **options)
            spans = self._spans_joined(messages, whole) or self._spans_by_prefix(messages, whole, options)
        except jinja2.TemplateError as error:
            raise RowError(f"the chat template refuses the messages: {error}") from None
        answers = [
            Answer(message=conversation.messages[index], index=index, span=span, trained=trained[index])
            for index, span in zip(shown, spans)
            if conversation.messages[index].role == "assistant"
        ]
        return self._cut(whole, answers, guard)

    def prompt_pieces(self, conversation: Conversation) -> list[Piece]:
        """Return the text that inference starts from, cut exactly as training cuts it."""
        pieces = self.pieces(conversation, [False] * len(conversation.messages))
        guard = self.guard_for(conversation)
        messages = self._template_messages(conversation, guard)
        text = self.render(messages, add_generation_prompt=True, **self._options(conversation))
        shown = "".join(piece.text for piece in pieces)
        if not text.startswith(shown):
            raise RowError("the chat template renders the prompt differently: " + first_difference(shown, text))
        return [*pieces, Piece(text=text[len(shown) :], guard=guard)]

    def plain_text(self, conversation: Conversation) -> str:
        """Return the template's text as the tokenizer itself would render it."""
        return self.render(self._template_messages(conversation, ""), **self._options(conversation))

    def _options(self, conversation: Conversation) -> dict[str, Any]:
        if not conversation.tools or self.takes_message_tools:
            return {}
        if not self.takes_tools_argument:
            raise RowError("the row offers tools, which this model's chat template does not show")
        return {"tools": conversation.tools}

    def _spans_joined(self, messages: list[dict[str, Any]], whole: str) -> list[tuple[int, int]] | None:
        """Return where each message stands in `whole`, from messages rendered alone; None where that differs."""
        if self.prefix is None:
            return None
        singles: list[str] = self.tokenizer.apply_chat_template(  # type: ignore[assignment]
            [[message] for message in messages], tokenize=False
        )
        spans, position = [], len(self.prefix)
        for single in singles:
            if not single.startswith(self.prefix):
                return None
            end = position + len(single) - len(self.prefix)
            spans.append((position, end))
            position = end
        joined = self.prefix + "".join(single[len(self.prefix) :] for single in singles)
        return spans if joined == whole else None

    def _spans_by_prefix(
        self, messages: list[dict[str, Any]], whole: str, options: dict[str, Any]
    ) -> list[tuple[int, int]]:
        """Return where each message stands, from ever longer prefixes of the conversation."""
        spans, position = [], 0
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                # Templates may refuse a prefix that ends elsewhere; only the borders of answers matter.
                before = self.render(messages[:index], **options) if index else ""
                shown = self.render(messages[: index + 1], **options)
                for text in (before, shown):
                    if not whole.startswith(text):
                        difference = first_difference(text, whole)
                        raise RowError(f"the chat template renders message {index} differently in place: {difference}")
                spans.append((len(before), len(shown)))
                position = len(shown)
            else:
                spans.append((position, position))
        return spans

    def _cut(self, whole: str, answers: Sequence[Answer], guard: str) -> list[Piece]:
        """Cut the text at the borders of every answer; its stop token belongs to it."""
        pieces: list[Piece] = []
        position = 0
        for answer in answers:
            start, end = answer.span
            if not whole.startswith(self.generation_prompt, start):
                raise RowError(f"message {answer.index} is not rendered behind the prompt that asks for it")
            start += len(self.generation_prompt)
            appended = ""
            if self.end_token is not None:
                end = whole.rindex(self.end_token, start, end) + len(self.end_token)
            elif end < len(whole):
                end += len(self._next_role_token(whole, end, answer.index))
            elif answer.trained:
                appended = self._final_stop(answer.message)
            pieces.append(Piece(text=whole[position:start], guard=guard))
            pieces.append(Piece(text=whole[start:end] + appended, trained=answer.trained, guard=guard))
            position = end
        pieces.append(Piece(text=whole[position:], guard=guard))
        return [piece for piece in pieces if piece.text]

    def _next_role_token(self, whole: str, end: int, index: int) -> str:
        """Return the control token that stands behind an answer."""
        for token in self.control_tokens:
            if whole.startswith(token, end):
                return token
        raise RowError(f"no role token follows message {index}: {whole[end : end + 20]!r}")

    def _final_stop(self, message: Message) -> str:
        """Return the stop token that is appended where the row ends with an answer."""
        stop = self.family.stop_after_tool_call if message.is_tool_call else self.family.stop_after_answer
        assert stop is not None, "a family without stop tokens is refused when the template is probed"
        return stop


def first_difference(left: str, right: str) -> str:
    """Describe the first place at which two texts differ."""
    at = next((i for i, (a, b) in enumerate(zip(left, right)) if a != b), min(len(left), len(right)))
    start = max(0, at - 12)
    return f"{left[start : at + 12]!r} became {right[start : at + 12]!r}"
