"""The canonical form of a training row: a conversation in GLM-4's own terms.

A tool call is an assistant message whose `metadata` is the function's name and whose content is the arguments
as JSON text: exactly what GLM-4 writes, `<|assistant|>name` on the role line and the JSON below. Tool schemas
travel as JSON text, never as nested columns: Arrow merges the fields of nested objects over rows, so that every
schema comes back with the other schemas' parameters as nulls.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "user", "assistant", "observation")

TEXT = "text"
"""The role of plain text, which is written without any role token: rows for base models."""


ZERO_WIDTH = "\u200b\u200c\u200d\u2060\ufeff"
"""Characters that show nothing, and that `str.strip` leaves."""


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: it is empty, or blanks, line breaks and characters without width alone."""
    return not text.strip().strip(ZERO_WIDTH).strip()


class RowError(ValueError):
    """A row that cannot be trained on; the message says what is wrong and what was expected."""

    def __init__(self, what: str, *, rest: Iterable[Conversation] = ()) -> None:
        super().__init__(what)
        self.rest = tuple(rest)
        """What the row holds besides that can be trained on: a row of ToolAlpaca is many conversations."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message of a conversation."""

    role: str
    """One of `ROLES`, or `TEXT`."""
    content: str
    metadata: str = ""
    """What GLM-4 writes on the role line: the function's name of a tool call."""
    tools: str | None = None
    """JSON text of the list of tools that the message offers."""
    reasoning: str = ""
    """What an assistant thought before it answered: `reasoning_content`, without the tags around it."""
    loss: float | None = None
    """Weight of the message's tokens in the loss: 0 is not trained on, None is what `train_on` says."""
    number: int | None = field(default=None, compare=False)
    """Place in the row, from 0. A text and the tool calls that came with it share one; None for what we add."""

    @property
    def is_tool_call(self) -> bool:
        """Whether an observation is due next."""
        return self.role == "assistant" and (bool(self.metadata) or _is_json_call(self.content))

    @property
    def may_reason(self) -> bool:
        """Whether an answer may hold reasoning, in its own field or between tags in its text."""
        return self.role == "assistant" and (bool(self.reasoning) or "</think>" in self.content)


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A whole row: messages in order."""

    messages: tuple[Message, ...]

    @property
    def is_plain_text(self) -> bool:
        """Whether the row is text without roles: all of its messages are `TEXT`, or none."""
        return self.messages[0].role == TEXT

    @property
    def tools(self) -> list[Any] | None:
        """The tools that the conversation offers first, parsed; None where it offers none."""
        texts = [message.tools for message in self.messages if message.tools]
        return json.loads(texts[0]) if texts else None

    def check_trainable(self) -> None:
        """Raise `RowError` unless there is at least one answer to learn from and none is empty or blank."""
        if self.is_plain_text:
            if is_blank(self.messages[-1].content):
                raise RowError("the row has no text to train on")
            return
        assistants = [message for message in self.messages if message.role == "assistant"]
        if not assistants:
            raise RowError("no assistant message, so there is nothing to train on")
        for index, message in enumerate(self.messages):
            if message.role == "assistant" and is_blank(message.content):
                raise RowError(f"message {self.number_of(index)} is an assistant message without content")

    def check_order(self) -> None:
        """Raise `RowError` unless the messages come in an order that a chat has, the last one the assistant's."""
        before = ""
        for index, message in enumerate(self.messages):
            role = message.role
            if role == "system" and index:
                first = "another system message" if self.messages[0].role == "system" else "a system message"
                raise RowError(f"message {self.number_of(index)} is {first}; expected one at the beginning only")
            if role in ("assistant", "observation") and before in ("", "system"):
                raise RowError(f"message {self.number_of(index)} has role `{role}`; expected a user message first")
            if role == "observation" and before == "user":
                raise RowError(f"message {self.number_of(index)} is an observation without a tool call before it")
            before = role
        if before not in ("assistant", TEXT):
            raise RowError(
                f"message {self.number_of(len(self.messages) - 1)}, the last, has role `{before}`; "
                "expected an assistant message at the end"
            )

    def number_of(self, index: int) -> int:
        """Return the place in the row of the message at `index`, for an error to name it by."""
        number = self.messages[index].number
        return index if number is None else number


def _is_json_call(content: str) -> bool:
    """Whether the content is the `{"name": ..., "arguments": ...}` text that GLM-4's own demo data uses for a call."""
    if not content.startswith("{"):
        return False
    try:
        call = json.loads(content)
    except ValueError:
        return False
    return isinstance(call, dict) and set(call) == {"name", "arguments"} and isinstance(call["name"], str)
