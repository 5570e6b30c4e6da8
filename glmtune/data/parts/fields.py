"""What stands under the keys of a row, in every format: texts, JSON text, loss weights."""

from __future__ import annotations

import json
from typing import Any

from glmtune.data import json_text
from glmtune.data.conversation import RowError, is_blank
from glmtune.data.verdicts.marks import LOSS_KEYS, MAX_WEIGHT, marked_bad, refuse_marks, refuse_unclear

PLAIN_KEYS = frozenset(("role", "content", "from", "value", "tool_calls", "tool_call_id", "name", "metadata"))
"""Keys of a message that hold neither a weight nor reasoning nor anything but text."""

NOTHING = ("", "null", "none", "nan", "[]", "{}")
"""Texts that stand in tables for no value."""


def says_nothing(value: Any) -> bool:
    """Whether a value carries nothing that could be lost: null, a blank text, an empty list or object."""
    if isinstance(value, str):
        return is_blank(value) or value.strip().lower() in NOTHING
    if isinstance(value, list):
        return all(map(says_nothing, value))
    return value is None or value == {}


def kind(value: Any) -> str:
    """Name the JSON type of a value, for an error message."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def required_text(row: dict[str, Any], key: str) -> str:
    """Return the text of a key that no row of the format can do without; raises `RowError`."""
    text = joined_text(row.get(key), f"`{key}`")
    if is_blank(text):
        found = "missing" if key not in row else "null" if row[key] is None else "blank" if text else "empty"
        raise RowError(f"`{key}` is {found}; expected text")
    return text


def joined_text(value: Any, name: str) -> str:
    """Return the text of a value, null as an empty one; OpenAI's list form is joined where all of its parts are text.

    Args:
        value: What the row holds.
        name: What the value is, such as `content of message 3`, for an error message.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if not isinstance(value, list):
        raise RowError(f"{name} is {kind(value)}; expected text")
    kinds = [part.get("type") if isinstance(part, dict) else f"{kind(part)} alone" for part in value]
    others = sorted({str(kind) for kind in kinds if kind != "text"})
    if others:
        raise RowError(f"{name} has parts of type {', '.join(others)}; expected text only")
    for part in value:
        refuse_marks(part, f"a part of {name}")
    texts = [part["text"] if "text" in part else part.get("value") for part in value]  # `value` is LLaMA-Factory's
    if not all(isinstance(text, str) for text in texts):
        raise RowError(f"{name} has a text part without `text`")
    return "".join(texts)


def from_json(text: str, name: str) -> Any:
    """Return the value that a JSON text inside a row holds; raises `RowError` with the text's `name`."""
    try:
        return json_text.parse(text)
    except RowError as error:
        raise RowError(f"{name} is text that is {error}") from None


def to_json(value: Any, name: str) -> str:
    """Return the value as JSON text, key order kept; raises `RowError` with the value's `name`."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise RowError(f"{name} holds a number that is not finite") from None


def loss_weight(raw: dict[str, Any], role: str, number: int) -> float | None:
    """Return the weight that a message gives its own tokens: `loss`, or `weight` as OpenAI calls it.

    Only an assistant message may have one above zero; for other messages zero says what holds anyway. An answer that
    is marked as bad has the weight 0.
    """
    if raw.keys() <= PLAIN_KEYS:
        return None
    refuse_unclear(raw, number)
    given = {key: raw[key] for key in LOSS_KEYS if raw.get(key) is not None}
    if role == "assistant" and marked_bad(raw):
        return 0.0
    if not given:
        return None
    for key, value in given.items():
        if not isinstance(value, (int, float)) or not 0 <= value <= MAX_WEIGHT:  # NaN fails, too
            found = f"`{str(value)[:40]}`" if isinstance(value, (int, float)) else kind(value)
            most = f" and at most {MAX_WEIGHT:,}" if isinstance(value, (int, float)) and value > MAX_WEIGHT else ""
            raise RowError(
                f"`{key}` of message {number} is {found}; expected true, false or a weight of at least 0{most}"
            )
    key, first = next(iter(given.items()))
    for other, value in given.items():
        if value != first:
            raise RowError(f"message {number} has `{key}` {first} and `{other}` {value}; expected one of them")
    weight = float(first)
    if role == "assistant":
        return weight
    if weight:
        raise RowError(f"message {number} has `{key}` {weight} but role `{role}`; only assistant messages are trained")
    return None
