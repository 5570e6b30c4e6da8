r"""Conversations to text through the tokenizer's own chat template, and which parts of the text are trained.

[gMASK]<sop><|user|>\n你好<|assistant|>\n您好<|user|>
                                    └──── trained ─────┘   (GLM-4: the next role token is the stop)
<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n
                                                      └── trained ──┘  (ChatML: the template writes the stop)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from glmtune.data.conversation import Conversation, Message, RowError
from glmtune.errors import GlmtuneError
from glmtune.family import Family

from .control_tokens import ControlTokens
from .spans import ChangedTurn, first_difference, spans_by_prefix, spans_joined
from .template_bounds import TemplateBound, bound_templates
from .template_facts import find_facts, shows_tool


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A stretch of rendered text that is trained as a whole, or not at all."""

    text: str
    weight: float = 0.0
    """Of its tokens in the loss; 0 is not trained."""
    guard: str = ""
    """The noncharacter to take out of the text again; empty where none was put in."""


FAILURES = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError, MemoryError)
"""What code of a template may raise beside Jinja's own errors; RecursionError is a RuntimeError."""
CLOSING_TAG = r"\s*</\w+>\s*"


@dataclass(frozen=True, kw_only=True)
class TrainedAnswer:
    """Where an assistant message stands in the rendered text."""

    message: Message
    number: int
    """Place of the message in its row."""
    span: tuple[int, int]
    """First character and the one behind the last."""
    weight: float
    reasoning: str
    """As the template was given it, or as it stands in the message's content."""


class ChatRenderer:
    """Renders messages with one tokenizer's template and knows how the template ends an assistant turn."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, family: Family, *, train_reasoning: bool = True) -> None:
        if not tokenizer.chat_template:
            raise GlmtuneError(
                f"the tokenizer in `{tokenizer.name_or_path}` has no chat template",
                fix="use a chat model, or add `chat_template.jinja` to the model folder",
            )
        bound_templates()
        self.tokenizer = tokenizer
        self.family = family
        self.train_reasoning = train_reasoning
        self.controls = ControlTokens(tokenizer)
        self.control_tokens = self.controls.names
        self.facts = find_facts(self.render, self.control_tokens, family, str(tokenizer.name_or_path))
        self.end_token = self.facts.end_token
        self._shown_types: dict[str, bool] = {}
        """Types of tools, functions aside, and whether the template writes them."""

    def render(self, messages: list[Any], **options: Any) -> Any:
        """Return the template's text for the messages; raises `jinja2.TemplateError`, whatever fails inside.

        One that takes too much time or memory is a `GlmtuneError`: it would for other rows, too.
        """
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, **options)
        except TemplateBound as error:
            raise GlmtuneError(
                f"the chat template is refused: {error}",
                where=str(self.tokenizer.name_or_path),
                fix="mend `chat_template.jinja` in the model folder, or use another model",
            ) from None
        except FAILURES as error:
            raise jinja2.TemplateError(str(error) or type(error).__name__) from error

    def _render_row(self, messages: list[dict[str, Any]], **options: Any) -> str:
        try:
            text: str = self.render(messages, **options)
            return text
        except jinja2.TemplateError as error:
            raise RowError(f"the chat template refuses the messages: {error}") from None

    def _template_messages(self, conversation: Conversation, guard: str) -> tuple[list[dict[str, Any]], list[int]]:
        """Return the messages as the template reads them, and which of the conversation's each of them ends with.

        Control tokens in their text get the `guard` inside. What came as one message with several tool calls is
        one message again, unless the template writes calls as GLM-4 does.
        """
        messages: list[dict[str, Any]] = []
        ends: list[int] = []
        for index, message in enumerate(conversation.messages):
            if not self._is_shown(message):
                continue
            rendered = self._template_message(message, guard)
            number = conversation.messages[ends[-1]].number if ends else None
            if number is not None and number == message.number and not self.facts.writes_role_line:
                messages[-1]["tool_calls"] = messages[-1].get("tool_calls", []) + rendered["tool_calls"]
                ends[-1] = index
            else:
                messages.append(rendered)
                ends.append(index)
        return messages, ends

    def _is_shown(self, message: Message) -> bool:
        """Whether the template gets the message: a system message that only carries tools may travel beside it."""
        only_tools = message.role == "system" and not message.content and message.tools
        return not only_tools or self.facts.takes_message_tools

    def _template_message(self, message: Message, guard: str) -> dict[str, Any]:
        role = self.facts.observation_role if message.role == "observation" else message.role
        rendered: dict[str, Any] = {"role": role, "content": self.controls.guarded(message.content, guard)}
        if message.reasoning and self.facts.shows_reasoning:
            rendered["reasoning_content"] = self.controls.guarded(message.reasoning, guard)
        if message.tools and self.facts.takes_message_tools:
            rendered["tools"] = self.controls.guarded(json.loads(message.tools), guard)
        if message.metadata and self.facts.writes_role_line:
            rendered["metadata"] = self.controls.guarded(message.metadata, guard)
        elif message.metadata and message.role == "assistant":
            try:
                arguments = json.loads(message.content)
            except ValueError:
                raise RowError(f"the arguments of the call to `{message.metadata}` are not JSON") from None
            function = {"name": message.metadata, "arguments": arguments}
            rendered |= {
                "content": "",
                "tool_calls": [{"type": "function", "function": self.controls.guarded(function, guard)}],
            }
        return rendered

    def stretches(
        self, conversation: Conversation, weights: Sequence[float], *, variables: Mapping[str, Any] | None = None
    ) -> list[Stretch]:
        """Return the conversation's text, cut before and behind every answer.

        Args:
            conversation: What to render.
            weights: Of every message in the loss; above 0 for assistant messages only.
            variables: What the template is told besides, such as `enable_thinking`.

        Raises:
            RowError: The template refuses or leaves out a message.
            ChangedTurn: The template renders a trained turn differently once others follow.
        """
        if self.facts.hidden_reasoning and weights[-1]:
            return self._pieces_behind_prompt(conversation, weights)
        guard = self.controls.guard_for(conversation)
        options = self._options(conversation, guard, variables)
        messages, ends = self._template_messages(conversation, guard)
        self._check_tools_shown(conversation)
        whole = self._render_row(messages, **options)
        self._check_shown(conversation)
        if not any(message.role == "assistant" for message in conversation.messages):
            return [Stretch(text=whole, guard=guard)]
        numbers = [conversation.number_of(index) for index in ends]
        spans = spans_joined(messages, whole, self.render, self.facts.prefix)
        if spans is None:
            own = [weights[index] for index in ends]
            spans = spans_by_prefix(messages, whole, partial(self._render_row, **options), numbers, own)
        answers = [
            TrainedAnswer(
                message=conversation.messages[index],
                number=number,
                span=span,
                weight=weights[index],
                reasoning=message.get("reasoning_content") or _reasoning_in(message["content"]),
            )
            for message, index, number, span in zip(messages, ends, numbers, spans)
            if conversation.messages[index].role == "assistant" and span is not None
        ]
        return self._cut(whole, answers, guard)

    def prompt_stretches(
        self, conversation: Conversation, *, variables: Mapping[str, Any] | None = None
    ) -> list[Stretch]:
        """Return the text that inference starts from, cut exactly as training cuts it.

        `variables` are what the template is told besides, such as `enable_thinking`.
        """
        stretches = self.stretches(conversation, [0.0] * len(conversation.messages), variables=variables)
        guard = self.controls.guard_for(conversation)
        messages, _ = self._template_messages(conversation, guard)
        options = self._options(conversation, guard, variables)
        text = self._render_row(messages, add_generation_prompt=True, **options)
        shown = "".join(stretch.text for stretch in stretches)
        if not text.startswith(shown):
            raise RowError("the chat template renders the prompt differently: " + first_difference(shown, text))
        return [*stretches, Stretch(text=text[len(shown) :], guard=guard)]

    def _pieces_behind_prompt(self, conversation: Conversation, weights: Sequence[float]) -> list[Stretch]:
        """Return the stretches of a row whose last answer goes on where the prompt opens a block of reasoning.

        The template itself leaves the reasoning of answers out; the text between the two is that of GLM-Z1's kind of
        model: `<think>`, newline, reasoning, newline, `</think>`, empty line, answer.
        """
        *context, answer = conversation.messages
        number = conversation.number_of(len(context))
        if any(weights[:-1]):
            raise ChangedTurn("the chat template leaves out the reasoning of all but the last answer")
        if answer.metadata:
            raise RowError(f"message {number} is a tool call, for which this chat template's prompt leaves no place")
        guard = self.controls.guard_for(conversation)
        reasoning, content = f"\n{answer.reasoning}\n</think>\n\n", answer.content
        if not answer.reasoning and answer.content.startswith("<think>") and "</think>" in answer.content:
            reasoning, tag, content = answer.content.removeprefix("<think>").partition("</think>")
            reasoning += tag
        weight = weights[-1]
        return [
            *self.prompt_stretches(Conversation(messages=tuple(context))),
            Stretch(text=self.controls.guarded(reasoning, guard), weight=weight * self.train_reasoning, guard=guard),
            Stretch(text=self.controls.guarded(content, guard) + self._final_stop(answer), weight=weight, guard=guard),
        ]

    def plain_text(self, conversation: Conversation) -> str:
        """Return the template's text as the tokenizer itself would render it."""
        messages, _ = self._template_messages(conversation, "")
        return self._render_row(messages, **self._options(conversation, ""))

    def _options(
        self, conversation: Conversation, guard: str, variables: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the template's variables: the tools, where it takes one list of them for the whole conversation."""
        variables = dict(variables or {})
        offers = [message.tools for message in conversation.messages if message.tools]
        if not offers or self.facts.takes_message_tools:
            return variables
        if not self.facts.takes_tools_argument:
            raise RowError("the row offers tools, which this model's chat template does not show")
        roles = [message.role for message in conversation.messages]
        first = next(index for index, message in enumerate(conversation.messages) if message.tools)
        if "assistant" in roles[:first] or set(offers) != {offers[0]}:
            raise RowError("the row offers other tools later on; this model's chat template takes one list for all")
        return {"tools": self.controls.guarded(json.loads(offers[0]), guard), **variables}

    def _check_shown(self, conversation: Conversation) -> None:
        """Raise `RowError` where the template leaves out a message without a word."""
        facts = self.facts
        for index, message in enumerate(conversation.messages):
            if message.role == "system" and message.content and not facts.shows_system:
                kind = "a system message"
            elif message.role == "observation" and not facts.shows_observations:
                kind = "an observation"
            elif message.reasoning and not (facts.shows_reasoning or facts.hidden_reasoning):
                kind = "an answer with reasoning"
            elif (
                message.role == "assistant"
                and message.metadata
                and not (facts.writes_role_line or facts.shows_tool_calls)
            ):
                kind = "a tool call"
            else:
                continue
            number = conversation.number_of(index)
            raise RowError(f"message {number} is {kind}, which this model's chat template does not show")

    def _check_tools_shown(self, conversation: Conversation) -> None:
        """Raise `RowError` where the template leaves out a tool that is no function, or fails on it."""
        offered = (message.tools for message in conversation.messages if message.tools)
        for number, tool in enumerate(tool for tools in offered for tool in json.loads(tools)):
            kind = str(tool.get("type"))
            if kind != "function" and kind not in self._shown_types:
                self._shown_types[kind] = shows_tool(self.render, tool)
            if not self._shown_types.get(kind, True):
                raise RowError(f"tool {number}, of type `{kind}`, is one that this model's chat template does not show")

    def _cut(self, whole: str, answers: Sequence[TrainedAnswer], guard: str) -> list[Stretch]:
        """Cut the text at the borders of every answer; its stop token belongs to it."""
        stretches: list[Stretch] = []
        position = 0
        for answer in answers:
            start, end = answer.span
            heads = [head for head in self.facts.generation_prompts if whole.startswith(head, start)]
            if not heads and not answer.weight:
                continue
            if not heads:
                raise RowError(f"message {answer.number} is not rendered behind the prompt that asks for it")
            start += max(map(len, heads))
            appended = ""
            if self.end_token is not None:
                behind = whole.rfind(self.end_token, start, end)
                if behind < 0:
                    raise RowError(f"message {answer.number} is rendered without `{self.end_token}` at its end")
                end = behind + len(self.end_token)
            elif end < len(whole):
                end += len(self._next_role_token(whole, end, answer.number))
            elif answer.weight:
                appended = self._final_stop(answer.message)
            stretches.append(Stretch(text=whole[position:start], guard=guard))
            if answer.weight and answer.reasoning and not self.train_reasoning:
                behind = _end_of_reasoning(whole, (start, end), answer)
                stretches.append(Stretch(text=whole[start:behind], guard=guard))
                start = behind
            stretches.append(Stretch(text=whole[start:end] + appended, weight=answer.weight, guard=guard))
            position = end
        stretches.append(Stretch(text=whole[position:], guard=guard))
        return [stretch for stretch in stretches if stretch.text]

    def _next_role_token(self, whole: str, end: int, number: int) -> str:
        """Return the control token that stands behind an answer."""
        found = self.controls.pattern.match(whole, end)
        if not found:
            raise RowError(f"no role token follows message {number}: {whole[end : end + 20]!r}")
        return found[0]

    def _final_stop(self, message: Message) -> str:
        """Return the stop token that is appended where the row ends with an answer."""
        stop = self.family.stop_after_tool_call if message.is_tool_call else self.family.stop_after_answer
        assert stop is not None, "a family without stop tokens is refused when the template is probed"
        return stop


def _reasoning_in(content: str) -> str:
    """Return the reasoning that stands inside a message's content, up to the tag that closes it."""
    reasoning, tag, _ = content.partition("</think>")
    return reasoning.rpartition("<think>")[2] if tag else ""


def _end_of_reasoning(whole: str, span: tuple[int, int], answer: TrainedAnswer) -> int:
    """Return the place behind an answer's reasoning and the tag that closes it."""
    found = re.compile(re.escape(answer.reasoning.strip()) + CLOSING_TAG).search(whole, *span)
    if found is None:
        raise RowError(f"the reasoning of message {answer.number} cannot be told from its answer")
    return found.end()
