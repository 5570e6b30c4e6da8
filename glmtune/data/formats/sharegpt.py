"""ShareGPT's `conversations` of `from` and `value`, with tool calls as in the glaive data set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glmtune.data.conversation import Conversation, Message, RowError
from glmtune.data.parts.calls import CALLERS as CALLS
from glmtune.data.parts.calls import in_order_of_calls
from glmtune.data.parts.fields import joined_text, kind, loss_weight
from glmtune.data.parts.media import refuse_media
from glmtune.data.parts.tools import calls_in

from .messages import items_of, reasoning_of, text_message, with_row

SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
    "observation": "observation",
    "tool": "observation",
    "function_response": "observation",
    "tool_response": "observation",
}
"""What stands in `from`, and GLM-4's role for it; `function_call` and `tool_call` are the assistant's, too."""


def from_sharegpt(row: dict[str, Any]) -> list[Conversation]:
    """Read ShareGPT's conversations; `system` and `tools` may stand beside them."""
    return [with_row(row, read_turns(row["conversations"], "conversations"))]


def are_turns(items: Any) -> bool:
    """Whether a list holds messages of `from` and `value`."""
    return isinstance(items, list) and any(isinstance(item, dict) and "from" in item for item in items)


def read_turns(raw_turns: Any, key: str, first_number: int = 0) -> list[Message]:
    """Return the messages of a list with `from` and `value`, numbered from `first_number`."""
    messages: list[Message] = []
    has_results = False
    for number, raw in enumerate(items_of(raw_turns, key), first_number):
        if not isinstance(raw, dict):
            raise RowError(f"message {number} is {kind(raw)}; expected an object with `from` and `value`")
        if len(raw) > 2:
            refuse_media(raw, f"message {number}")
        speaker = raw.get("from")
        if speaker in CALLS:
            messages.extend(_calls(raw, number))
        else:
            messages.append(_message(raw, speaker, number))
            has_results = has_results or (len(raw) > 2 and messages[-1].role == "observation")
    return in_order_of_calls(raw_turns, messages, first_number) if has_results else messages


def _message(raw: dict[str, Any], speaker: Any, number: int) -> Message:
    role = SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise RowError(
            f"message {number} is from `{speaker}`; expected human, gpt, system, function_call or observation"
        )
    value = raw.get("value")
    content = value if type(value) is str else joined_text(value, f"`value` of message {number}")
    loss = loss_weight(raw, role, number)
    return text_message(role, content, number, loss=loss, reasoning=reasoning_of(raw, role, number))


def _calls(raw: dict[str, Any], number: int) -> list[Message]:
    """Read `{"name": ..., "arguments": ...}`, or a list of them, in an object or as JSON text."""
    name = f"`value` of message {number}, a function call,"
    first, *others = calls_in(raw.get("value"), name, number, loss_weight(raw, "assistant", number))
    return [replace(first, reasoning=reasoning_of(raw, "assistant", number)), *others]
