"""Conversations whose turns are objects of a question and its answer: ms-swift's and Firefly's, xtuner's, COIG's.

`{"conversation": [{"human": "Hi", "assistant": "Hello."}]}`
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from glmtune.data.conversation import Conversation, Message, RowError, is_blank
from glmtune.data.parts.fields import joined_text, kind, loss_weight, says_nothing
from glmtune.data.parts.media import refuse_media
from glmtune.data.verdicts.marks import LOSS_KEYS

from .messages import items_of, with_row

PAIRS = (
    ("human", "assistant"),
    ("user", "assistant"),
    ("human", "gpt"),
    ("human", "bot"),
    ("question", "answer"),
    ("query", "response"),
    ("prompt", "response"),
    ("input", "output"),
)
"""What the question and the answer of a turn are called."""
LISTS = ("conversation", "conversations")
"""Keys under which such turns stand."""
BESIDE = ("system", *LOSS_KEYS)
"""What else a turn may have; a system's text in the first one alone, as xtuner has it."""


def holds_pairs(items: Any) -> bool:
    """Whether a list holds turns, and not messages."""
    return isinstance(items, list) and bool(items) and isinstance(items[0], dict) and _pair_of(items[0]) is not None


def from_turn_pairs(row: dict[str, Any]) -> list[Conversation]:
    """Read turns of a question and its answer; what stands in `instruction` begins the first question, as in COIG."""
    key = list_key(row)
    if all(not says_nothing(row.get(each)) for each in LISTS):
        raise RowError("the row has `conversation` and `conversations`; expected one of them")
    turns = items_of(row[key], key, "turns")
    messages: list[Message] = []
    for number, turn in enumerate(turns):
        messages += _turn(turn, number, joined_text(row.get("instruction"), "`instruction`") if not number else "")
    return [with_row(_with_system_of_turns(row, turns), messages)]


def list_key(row: dict[str, Any]) -> str:
    """Return the key under which the turns stand."""
    return next(key for key in LISTS if key in row)


def unread_in_turns(turns: list[Any], key: str) -> Iterator[str]:
    """Yield what of the turns nobody reads, as `conversation[].score`."""
    for turn in turns:
        known = {*(_pair_of(turn) or ()), *BESIDE}
        yield from (f"{key}[].{name}" for name, value in turn.items() if name not in known and not says_nothing(value))


def _pair_of(turn: dict[str, Any]) -> tuple[str, str] | None:
    return next((pair for pair in PAIRS if pair[0] in turn and pair[1] in turn), None)


def _turn(turn: Any, number: int, before: str) -> list[Message]:
    """Return the question and the answer of a turn."""
    pair = _pair_of(turn) if isinstance(turn, dict) else None
    if pair is None:
        found = ", ".join(f"`{key}`" for key in turn) if isinstance(turn, dict) else kind(turn)
        raise RowError(
            f"turn {number} has {found or 'no keys'}; expected `human` and `assistant`, or other names of the two"
        )
    refuse_media(turn, f"turn {number}")
    question, answer = (joined_text(turn[key], f"`{key}` of turn {number}") for key in pair)
    question = f"{before}\n{question}" if before and question else before or question
    for key, text in zip(pair, (question, answer)):
        if is_blank(text):
            raise RowError(f"`{key}` of turn {number} is empty; expected text")
    loss = loss_weight(turn, "assistant", 2 * number + 1)
    return [
        Message(role="user", content=question, number=2 * number),
        Message(role="assistant", content=answer, number=2 * number + 1, loss=loss),
    ]


def _with_system_of_turns(row: dict[str, Any], turns: list[Any]) -> dict[str, Any]:
    """Return the row with the system's text that its first turn has."""
    for number, turn in enumerate(turns):
        text = joined_text(turn.get("system"), f"`system` of turn {number}")
        if is_blank(text):
            continue
        if number or not says_nothing(row.get("system")):
            raise RowError(f"turn {number} has a `system` text; expected one before all turns")
        row = row | {"system": text}
    return row
