"""MOSS's conversations, as published: turns between marks of its own, in objects (003) or in one text (002).

`{"meta_instruction": "...", "chat": {"turn_1": {"Human": "<|Human|>: Hi<eoh>", "MOSS": "<|MOSS|>: Hi.<eom>"}}}`
`{"plain_text": "[Human]: Hi<eoh> [MOSS]: Hi.<eoa>"}`
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from glmtune.data.conversation import Conversation, Message, RowError, is_blank
from glmtune.data.parts.fields import kind, required_text, says_nothing

from .messages import with_row

HUMAN, MOSS, THOUGHTS, CALLS = "Human", "MOSS", "Inner Thoughts", "Commands"
RESULTS = "Tool Responses"
TURN_KEYS = frozenset((HUMAN, MOSS, THOUGHTS, CALLS, RESULTS))

_MARKS = re.compile(r"\A\s*<\|[^|>]+\|>:\s*|\s*<eo[a-z]>\s*\Z")
_SPOKEN = re.compile(r"\[(Human|MOSS)\]:\s*(.*?)\s*(?:<eo[ha]>|\Z)", re.DOTALL)


def from_moss(row: dict[str, Any]) -> list[Conversation]:
    """Read the turns under `chat`, or those of `plain_text`; `meta_instruction` or `prefix` is the system's text.

    Raises:
        RowError: A turn calls a plugin: that is a line of a program here, and no call with arguments by name.
    """
    for first, second in (("chat", "plain_text"), ("meta_instruction", "prefix")):
        if not says_nothing(row.get(first)) and not says_nothing(row.get(second)):
            raise RowError(f"the row has `{first}` and `{second}`; expected one of them")
    messages = _from_turns(row["chat"]) if "chat" in row else _from_text(required_text(row, "plain_text"))
    system = next((row[key] for key in ("meta_instruction", "prefix") if not says_nothing(row.get(key))), None)
    return [with_row({"system": system}, messages)]


def unread_in_chat(chat: Any) -> Iterator[str]:
    """Yield what of the turns nobody reads, as `chat.turn_1.score`."""
    for name, turn in chat.items():
        yield from (
            f"chat.{name}.{key}" for key, value in turn.items() if key not in TURN_KEYS and not says_nothing(value)
        )


def _from_turns(chat: Any) -> list[Message]:
    if not isinstance(chat, dict) or not chat:
        raise RowError(f"`chat` is {'empty' if chat == {} else kind(chat)}; expected `turn_1`, `turn_2` and so on")
    messages: list[Message] = []
    for name, turn in chat.items():
        if not isinstance(turn, dict):
            raise RowError(f"`{name}` of `chat` is {kind(turn)}; expected an object with `{HUMAN}` and `{MOSS}`")
        if _said(turn, CALLS, name) or _said(turn, RESULTS, name):
            raise RowError(
                f"`{name}` of `chat` has `{CALLS}`, calls of plugins in words of MOSS's own; expected messages with "
                "`tool_calls`, and `tools` that describe them"
            )
        question, answer = _said(turn, HUMAN, name), _said(turn, MOSS, name)
        for key, text in ((HUMAN, question), (MOSS, answer)):
            if is_blank(text):
                raise RowError(f"`{key}` of `{name}` is empty; expected text")
        number = len(messages)
        messages += [
            Message(role="user", content=question, number=number),
            Message(role="assistant", content=answer, reasoning=_said(turn, THOUGHTS, name), number=number + 1),
        ]
    return messages


def _said(turn: dict[str, Any], key: str, name: str) -> str:
    """Return a text of a turn without the marks around it; an empty one for `None`, which says that there is none."""
    text = turn.get(key) or ""
    if not isinstance(text, str):
        raise RowError(f"`{key}` of `{name}` is {kind(text)}; expected text")
    bare = _MARKS.sub("", text)
    return "" if key not in (HUMAN, MOSS) and bare == "None" else bare


def _from_text(text: str) -> list[Message]:
    turns = _SPOKEN.findall(text)
    rest = _SPOKEN.sub("", text)
    if not turns or not is_blank(rest):
        raise RowError("`plain_text` is not of the form `[Human]: ...<eoh> [MOSS]: ...<eoa>` throughout")
    messages = []
    for number, (speaker, said) in enumerate(turns):
        if is_blank(said):
            raise RowError(f"turn {number} of `plain_text`, of `{speaker}`, is empty")
        messages.append(Message(role="user" if speaker == "Human" else "assistant", content=said, number=number))
    return messages
