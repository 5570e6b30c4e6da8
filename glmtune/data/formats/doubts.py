"""What is read as it stands, and may be meant otherwise: it is counted and told, for a person to look at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from glmtune.data.conversation import TEXT, Conversation

from .calls import doubts_about_calls
from .columns import MESSAGE_LISTS
from .marks import normal_name
from .preference import spoken_turns

_OTHER_SPLITS = """
    test testing val valid validation dev eval evaluation holdout hold_out heldout 测试 测试集 验证 验证集
"""
OTHER_SPLITS = frozenset(_OTHER_SPLITS.split())
SPLIT_KEYS = ("split", "Split", "data_split", "set_type")
MISSING = frozenset(("nan", "null", "none", "n/a", "#n/a", "na", "<na>", "nat", "nil", "undefined"))
"""What programs write where there is no text."""
_LONGEST_MISSING = max(map(len, MISSING))

_PLACES = re.compile(
    r"<\|(?:image|video|audio|image_\d+|image_pad|video_pad|audio_bos|vision_start)\|>"
    r"|(?:^|\n)\s*(<(?:image|video|audio|img|ImageHere|image_placeholder|speech)>)|(<(?:image|video|audio|img)>)\s*$"
    r"|(<img>)[^<]*</img>|(!\[[^\]]*\]\(data:image)",
)
"""Places of pictures, films and sounds in a question; what looks like HTML counts at its beginning and end alone."""


def doubts_about(
    row: dict[str, Any], conversations: Sequence[Conversation], rejected: str | None = None
) -> tuple[str, ...]:
    """Return what of a row may be meant otherwise than it is read, such as an answer that is `nan`.

    Args:
        row: With the keys of its format.
        conversations: What it is read as.
        rejected: The key of its rejected answer.
    """
    found: list[str] = []
    for key in SPLIT_KEYS:
        if key in row and isinstance(row[key], str) and normal_name(row[key]) in OTHER_SPLITS:
            found.append(f"`{key}` is `{row[key].strip()}`")
    for conversation in conversations:
        for message in conversation.messages:
            content = message.content
            if message.role in ("assistant", TEXT):
                if len(content) <= 2 * _LONGEST_MISSING and content.strip().lower() in MISSING:
                    found.append(f"a text to be trained is `{content.strip()}`")
            elif message.role == "user" and ("<" in content or "![" in content):
                place = _PLACES.search(content)
                if place:
                    shown = next(filter(None, place.groups()), place[0])
                    found.append(f"`{shown}` stands in a question, and nothing is shown to the model there")
    if rejected is not None and _is_of_another_question(row[rejected], conversations[0]):
        found.append("the rejected answer is one to another question")
    if any(message.metadata for conversation in conversations for message in conversation.messages):
        found += doubts_about_calls(_raw_messages(row))
    return tuple(dict.fromkeys(found))


def _is_of_another_question(rejected: Any, chosen: Conversation) -> bool:
    """Whether a rejected answer repeats a question that is not the last one that the chosen answer answers."""
    asked: Any = None
    if isinstance(rejected, str):
        asked = next((said for speaker, said in spoken_turns(rejected)[::-1] if speaker == "Human"), None)
    for item in rejected if isinstance(rejected, list) else ():
        if isinstance(item, dict) and (item.get("role") or item.get("from")) in ("user", "human"):
            asked = item.get("content", item.get("value"))
    questions = [message.content.strip() for message in chosen.messages if message.role == "user"]
    return isinstance(asked, str) and bool(questions) and asked.strip() != questions[-1]


def _raw_messages(row: dict[str, Any]) -> list[Any]:
    """Return the messages of a row as it has them, those of the question before those of the answer."""
    return [raw for key in MESSAGE_LISTS if isinstance(row.get(key), list) for raw in row[key]]
