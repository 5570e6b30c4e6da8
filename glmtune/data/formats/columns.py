"""Other people's names of columns to the keys of a format."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from glmtune.data.conversation import RowError
from glmtune.data.parts.fields import says_nothing
from glmtune.data.verdicts.sides import says_rejected, side_of
from glmtune.errors import GlmtuneError

from .messages import SYSTEM_KEYS

MESSAGE_LISTS = (
    "messages",
    "conversations",
    "prompt",
    "completion",
    "chosen",
    "chosen_response",
    "chosen_messages",
    "preferred_output",
)
"""Keys under which messages stand."""

NEEDED_IN_MESSAGES = ("role", "content", "from", "value")


def rename_columns(
    row: dict[str, Any], columns: Mapping[str, str], row_keys: Collection[str], message_keys: Collection[str]
) -> tuple[dict[str, Any], list[str]]:
    """Return the row with the format's keys instead of the file's own, in the row and inside its messages.

    Also return the keys that had to make way: the file uses them for another thing.

    Args:
        row: One row of the file; it is not changed.
        columns: Key of the format: what the file calls it.
        row_keys: Keys of the format that stand in the row itself.
        message_keys: Those that stand in its messages.

    Raises:
        RowError: The row lacks a column that is renamed.
    """
    in_row = {key: own for key, own in columns.items() if key in row_keys and own in row}
    in_messages = {key: own for key, own in columns.items() if key in message_keys}
    renamed = _renamed(row, in_row)
    replaced = _replaced(row, in_row)
    found: set[str] = set()
    for key in MESSAGE_LISTS if in_messages else ():
        value = renamed.get(key)
        items = value if isinstance(value, list) else [value]
        messages = [_renamed(item, in_messages) if isinstance(item, dict) else item for item in items]
        replaced += [
            f"{key}[].{name}" for item in items if isinstance(item, dict) for name in _replaced(item, in_messages)
        ]
        found.update(name for item in items if isinstance(item, dict) for name in item)
        if key in renamed:
            renamed[key] = messages if isinstance(value, list) else messages[0]
    for key, own in columns.items():
        is_there = key in in_row or (key in in_messages and own in found)
        may_lack = key in message_keys and key not in NEEDED_IN_MESSAGES and key not in row_keys
        if not is_there and not may_lack:
            raise RowError(f"the row has no `{own}`, which `columns` names for `{key}`")
    return renamed, replaced


def _replaced(item: dict[str, Any], columns: Mapping[str, str]) -> list[str]:
    """Return the item's keys that another one of its keys replaces, where they carry something."""
    present = {key: own for key, own in columns.items() if own in item}
    return [key for key in present if key in item and key not in present.values() and not says_nothing(item[key])]


def _renamed(item: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return the item under the format's keys; a key that the file uses for another thing makes way."""
    present = {key: own for key, own in columns.items() if own in item}
    taken = {*present, *present.values()}
    return {key: value for key, value in item.items() if key not in taken} | {
        key: item[own] for key, own in present.items()
    }


_QUESTION_NAMES = """
    instruction prompt query question problem ask user human source input 问题 提问 问 用户 指令 输入 title text
"""
QUESTION_NAMES = tuple(_QUESTION_NAMES.split())
_ANSWER_NAMES = """
    output response answer completion reply target solution assistant bot summary 回答 答案 回复 答 输出 label
"""
ANSWER_NAMES = tuple(_ANSWER_NAMES.split())


def are_known_names(row: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    """Whether columns were suggested by what they are called, not by where they stand, and one alone is the answer."""
    if sum(name.strip().lower() in ANSWER_NAMES for name in row if name != columns.get("instruction")) > 1:
        return False
    names = {own.strip().lower() for own in columns.values()} | {key for key in ("instruction", "output") if key in row}
    return not columns.keys() & {"instruction", "output"} or (
        not names.isdisjoint(QUESTION_NAMES) and not names.isdisjoint(ANSWER_NAMES)
    )


INPUT_NAMES = ("input", "context", "输入", "上下文", "背景", "材料", "passage", "ctx")
"""What a question is about, beside it."""


_NO_ANSWERS = """
    label labels gold_label class premise hypothesis sentence1 sentence2 sentence_1 sentence_2 anchor positive negative
"""
NO_ANSWERS = frozenset(_NO_ANSWERS.split())
"""Keys of rows that hold no answer at all: texts to be classified or compared."""
QUESTION_ONLY = frozenset(
    ("instruction", "prompt", "question", "query", "input", "history", "functions", "tools", *SYSTEM_KEYS)
)
"""Keys of the formats under which nothing stands that is trained, unless it says so itself."""


def refuse_rejected(columns: Mapping[str, str]) -> None:
    """Raise where a column of rejected answers would be read as one of good answers."""
    for key, own in columns.items():
        if key not in QUESTION_ONLY and not says_rejected(key) and says_rejected(own):
            raise GlmtuneError(
                f"`columns` renames `{own}` to `{key}`, which would train answers that were rejected",
                fix="name the column of the good answers, or give this one another name where its answers are good",
            )


def suggested_columns(row: Mapping[str, Any], skipped: Collection[str]) -> dict[str, str]:
    """Return a guess of what a row in an unknown format calls the keys of a known one; empty where there is none.

    Keys that are `skipped` hold neither the question nor the answer. One of several answers, such as `answer_0`, is
    never guessed: which of them is good stands elsewhere.
    """
    usable = {key: value for key, value in row.items() if not says_rejected(key) and not side_of(key)}
    for key, value in usable.items():
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, dict) and ("role" in first or "from" in first):
            return {"messages" if "role" in first else "conversations": key}
    names = {
        key.strip().lower(): key
        for key, value in usable.items()
        if key not in skipped and not isinstance(value, (list, dict))
    }
    question = next((names[name] for name in QUESTION_NAMES if name in names), None)
    others = {name: key for name, key in names.items() if key != question}
    answer = next((others[name] for name in ANSWER_NAMES if name in others), None)
    if (question is None or answer is None) and len(usable) == len(row) and NO_ANSWERS.isdisjoint(names):
        question, answer, *_ = [*names.values(), None, None]  # The first two, whatever they are called.
    if question is None or answer is None:
        return {}
    more = next((others[name] for name in INPUT_NAMES if others.get(name) not in (None, answer)), None)
    extra = {"input": more} if more is not None else {}
    guess = {"instruction": question, **extra, "output": answer}
    return {key: own for key, own in guess.items() if key != own}
