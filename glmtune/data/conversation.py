"""The canonical form of a training row: a conversation in GLM-4's own terms.

A tool call is an assistant message whose `metadata` is the function's name and whose content is the arguments
as JSON text: exactly what GLM-4 writes, `<|assistant|>name` on the role line and the JSON below. Tool schemas
travel as JSON text, never as nested columns: Arrow merges the fields of nested objects over rows, so that every
schema comes back with the other schemas' parameters as nulls.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

ROLES = ("system", "user", "assistant", "observation")


class RowError(ValueError):
    """A row that cannot be trained on; the message says what is wrong and what was expected."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message of a conversation."""

    role: str
    """One of `ROLES`."""
    content: str
    metadata: str = ""
    """What GLM-4 writes on the role line: the function's name of a tool call."""
    tools: str | None = None
    """JSON text of the list of tools that the message offers."""
    number: int | None = field(default=None, compare=False)
    """Place in the row, from 0. A text and the tool calls that came with it share one; None for what we add."""

    @property
    def is_tool_call(self) -> bool:
        """Whether an observation is due next."""
        return self.role == "assistant" and (bool(self.metadata) or _is_json_call(self.content))


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A whole row: messages in order."""

    messages: tuple[Message, ...]

    @property
    def tools(self) -> list | None:
        """The tools that the conversation offers first, parsed; None where it offers none."""
        texts = [message.tools for message in self.messages if message.tools]
        return json.loads(texts[0]) if texts else None

    def check_trainable(self) -> None:
        """Raise `RowError` unless there is at least one answer to learn from and none is empty."""
        assistants = [message for message in self.messages if message.role == "assistant"]
        if not assistants:
            raise RowError("no assistant message, so there is nothing to train on")
        for index, message in enumerate(self.messages):
            if message.role == "assistant" and not message.content:
                raise RowError(f"message {self.number_of(index)} is an assistant message without content")

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
