"""What is read as it stands, and may be meant otherwise: it is counted and told, for a person to look at."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from glmtune.data.conversation import TEXT, Conversation, Message
from glmtune.data.parts.calls import doubts_about_calls
from glmtune.data.verdicts.marks import normal_name

from .columns import MESSAGE_LISTS
from .transcripts import doubts_about_speakers, spoken_turns

_OTHER_SPLITS = """
    test testing val valid validation dev eval evaluation holdout hold_out heldout 测试 测试集 验证 验证集
"""
OTHER_SPLITS = frozenset(_OTHER_SPLITS.split())
SPLIT_KEYS = ("split", "Split", "data_split", "set_type")
_MISSING = """
    nan null none n/a #n/a na <na> nat nil undefined
    #ref! #value! #name? #div/0! #num! #null! #spill! #calc! #field! #getting_data
"""
MISSING = frozenset(_MISSING.split())
"""What programs write where there is no text, and spreadsheets where a formula failed."""
_LONGEST_MISSING = max(map(len, MISSING))

_MEDIUM = r"image|video|audio|img|speech|picture|photo|vision|frame"
_TOKENS = re.compile(
    rf"<\|[a-z0-9_]*(?:{_MEDIUM})[a-z0-9_]*\|>|<(?:start|end|begin)_of_(?:{_MEDIUM})>|\[(?:IMG|IMAGE)\]"
    r"|<(?:image|img|video|audio)[_-](?:soft_token|placeholder|context|pad|token)>|<ImageHere>|<im_patch>"
    r"|(<(?:image|img|video|audio)>)[^<\n]*\.\w{2,4}</",
    re.IGNORECASE,
)
"""What other models have in the place of pictures, films and sounds; nothing else looks like it."""
_NUMBER, _NO_TAG = r"(?:[ _-]?\d+)?", r"(?!`|\s*-?(?:tag|element|标签|元素|标记))"
_PLACES = re.compile(
    rf"(?:^|\n)\s*(<(?:image|video|audio|img|picture|speech){_NUMBER}>){_NO_TAG}"
    rf"|(<(?:image|video|audio|img){_NUMBER}>)\s*$"
    r"|(<img>)[^<]*</img>|(!\[[^\]]*\]\(data:image)"
    rf"|(?<![`\w])(<(?:image|video|audio|picture|speech){_NUMBER}>){_NO_TAG}",
    re.IGNORECASE,
)
"""Such places in the form of tags; what is quoted, or called a tag, is one of HTML."""
_LINES = re.compile(rf"(?:^|\n)\s*(<image{_NUMBER}>)|^\s*(<(?:video|audio|picture|speech){_NUMBER}>)", re.IGNORECASE)
"""Those in plain text, which may be a page: HTML has no `<image>`."""
_WHERE_MISSING = {
    "assistant": "a text to be trained",
    TEXT: "a text to be trained",
    "user": "a question",
    "system": "a system prompt",
}
_WHERE = {"user": "a question", "system": "a system prompt", TEXT: "a text"}


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
            if len(content) <= 2 * _LONGEST_MISSING and content.strip().lower() in MISSING:
                what = _WHERE_MISSING.get(message.role)
                found += [f"{what} is `{content.strip()}`"] if what else []
            if "<" in content or "![" in content or "[i" in content.lower():
                found += _doubts_about_places(message, is_answer=message is conversation.messages[-1])
            if ":" in content or "：" in content:
                found += doubts_about_speakers(message)
    if rejected is not None and _is_of_another_question(row[rejected], conversations[0]):
        found.append("the rejected answer is one to another question")
    if any(message.metadata for conversation in conversations for message in conversation.messages):
        found += doubts_about_calls(_raw_messages(row))
    return tuple(dict.fromkeys(found))


def _doubts_about_places(message: Message, *, is_answer: bool) -> Iterator[str]:
    """Yield the first place of a picture in a text; in an answer, and in pages of plain text, tags are tags."""
    where = _WHERE.get(message.role)
    if where is None:
        return
    place = _TOKENS.search(message.content)
    if place is None:
        is_page = message.role == TEXT and is_answer
        place = (_LINES if is_page else _PLACES).search(message.content)
        if place is None or _is_closed(next(filter(None, place.groups())), message.content):
            return
    shown = next(filter(None, place.groups()), place[0])
    yield f"`{shown}` stands in {where}, and nothing is shown to the model there"


def _is_closed(tag: str, text: str) -> bool:
    """Whether a tag is one of HTML, which is closed again."""
    return tag.lower() != "<img>" and f"</{tag[1:-1]}>" in text


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
