"""Outside formats of a row, one small function each, to `Conversation`; and back out as GLM-4 messages.

A function gets one parsed JSON object and returns its conversations (one, but for ToolAlpaca) or raises `RowError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from glmtune.data.conversation import Conversation, RowError
from glmtune.data.parts.fields import kind, says_nothing
from glmtune.data.parts.media import refuse_media
from glmtune.data.verdicts.sides import check_winner
from glmtune.errors import GlmtuneError, nearest

from .beside import ANSWERS, NOTHING_BESIDE, look_beside, unread_keys, weighted
from .columns import are_known_names, refuse_rejected, rename_columns, suggested_columns
from .doubts import doubts_about
from .messages import from_messages
from .output import to_row
from .table import BESIDE, FORMATS, Format
from .unread import HARMLESS

__all__ = [
    "AUTO",
    "FORMATS",
    "Format",
    "ReadRow",
    "RowFormat",
    "format_name",
    "guessed_columns",
    "read_row",
    "to_conversation",
    "to_conversations",
    "to_row",
]


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """How the rows of a file are read."""

    name: str | None = None
    """A key of `FORMATS`; None finds it out row by row."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Key of the format: what the file calls it."""

    def __post_init__(self) -> None:
        if self.name is not None and self.name not in FORMATS:
            raise GlmtuneError(
                f"`{self.name}` is no row format{nearest(str(self.name), list(FORMATS))}",
                fix="use one of " + ", ".join(f"`{name}`" for name in FORMATS),
            )
        keys = sorted(self.row_keys | self.message_keys)
        whose = f"the format `{self.name}`" if self.name else "any format"
        for key, own in self.columns.items():
            if key not in keys:
                raise GlmtuneError(
                    f"`columns` renames a column to `{key}`, which is no key of {whose}{nearest(str(key), keys)}",
                    fix="write the key of the format first, then the file's own: `{instruction: question}`",
                )
            if not isinstance(own, str):
                raise GlmtuneError(f"`columns` names {kind(own)} for `{key}`; expected the name of a column")
        refuse_rejected(self.columns)

    @cached_property
    def row_keys(self) -> frozenset[str]:
        """Keys that may stand in a row."""
        return frozenset(key for one in self._formats() for key in (*one.keys, *one.more_keys))

    @cached_property
    def message_keys(self) -> frozenset[str]:
        """Keys that may stand in a message."""
        return frozenset(key for one in self._formats() for key in one.message_keys)

    def own_names(self, keys: Iterable[str]) -> list[str]:
        """Return what the file calls these keys."""
        return [self.columns.get(key, key) for key in keys]

    def _formats(self) -> list[Format]:
        return [FORMATS[self.name]] if self.name else list(FORMATS.values())


AUTO = RowFormat()


class ReadRow(NamedTuple):
    """What became of one row."""

    parts: list[Conversation | RowError]
    """Its conversations (one, but for ToolAlpaca), and the error of what cannot be trained on."""
    format_name: str = ""
    """Empty where the row is in no known format."""
    unread: tuple[str, ...] = ()
    """Keys that carry something and are not read, as `score` or `messages[].name`."""
    has_rejected: bool = False
    """Whether the row has a rejected answer, which is not used."""
    doubts: tuple[str, ...] = ()
    """What is read as it stands and may be meant otherwise."""


def read_row(row: Any, row_format: RowFormat = AUTO) -> ReadRow:
    """Convert one parsed row to train on, and tell what of it is not read."""
    name, beside = "", NOTHING_BESIDE
    try:
        name, row, replaced = _recognize(row, row_format)
        one = FORMATS[name]
        beside = look_beside(row, one, name, is_named=row_format.name is not None)
        conversations = one.convert(row)
        for conversation in conversations:
            conversation.check_order()
        has_rejected = beside.has_rejected(row, conversations)
    except RowError as error:
        # Of a row that is many conversations some may be left; what stands beside them is told with them.
        rest = [weighted(conversation, beside.weight) for conversation in error.rest] if error.rest else []
        unread = unread_keys(row, FORMATS[name], name, beside, row_format.columns) if rest else ()
        return ReadRow([*rest, error], name, unread)
    rejected = beside.rejected[0] if has_rejected else None
    parts: list[Conversation | RowError] = [*conversations]
    if beside.weight != 1:
        parts = [weighted(conversation, beside.weight) for conversation in conversations]
    unread = (*replaced, *unread_keys(row, one, name, beside, row_format.columns))
    return ReadRow(parts, name, unread, has_rejected, doubts_about(row, conversations, rejected))


def to_conversations(row: Any, row_format: RowFormat = AUTO) -> list[Conversation]:
    """Convert one parsed row to train on; most formats hold one conversation a row.

    Raises:
        RowError: The row cannot be read, its messages come in no order that a chat has, or it says of its answer
            that it is not to be imitated.
    """
    conversations: list[Conversation] = []
    for part in read_row(row, row_format).parts:
        if isinstance(part, RowError):
            raise part
        conversations.append(part)
    return conversations


def to_conversation(row: Any) -> Conversation:
    """Convert a row that holds one conversation, be it a prompt that still wants its answer."""
    name, row, _ = _recognize(row, AUTO)
    refuse_media(row, "the row")
    conversations = from_messages(row, is_prompt=True) if name == "messages" else FORMATS[name].convert(row)
    if len(conversations) > 1:
        raise RowError(f"the row holds {len(conversations)} conversations; expected one")
    return conversations[0]


def format_name(row: Any, row_format: RowFormat = AUTO) -> str:
    """Return the name of the format that a parsed row is in; raises `RowError` where it is in none."""
    return _recognize(row, row_format)[0]


def _recognize(row: Any, row_format: RowFormat) -> tuple[str, dict[str, Any], list[str]]:
    """Return the name of a row's format, the row under the format's own keys, and keys that made way for those."""
    if not isinstance(row, dict):
        raise RowError(f"the row is {kind(row)}; expected an object with `messages`")
    replaced: list[str] = []
    if row_format.columns:
        check_winner(row, row_format.columns)
        row, replaced = rename_columns(row, row_format.columns, row_format.row_keys, row_format.message_keys)
    if row_format.name is None:
        return _detect(row), row, replaced
    if not FORMATS[row_format.name].matches(row):
        raise RowError(_lacking(row_format.name, tuple(map(str, row))))
    return row_format.name, row, replaced


def _detect(row: dict[str, Any]) -> str:
    """Return the name of the first format whose keys the row has."""
    for name, one in FORMATS.items():
        if one.matches(row) and one.fits(row):
            return "chatglm3" if name == "sharegpt" and _has_roles(row["conversations"]) else name
    told = [str(key) for key, value in row.items() if key not in HARMLESS and not says_nothing(value)]
    if len(told) == 1 and told[0] in ANSWERS:
        raise RowError(
            f"the row has `{told[0]}` and no question; expected `query`, `instruction` or `prompt` beside it, or, for "
            "plain text that a base model learns to continue, `columns` that say so, such as "
            f"`{{text: {told[0]}}}` (`--column text={told[0]}`)"
        )
    raise RowError(_unknown(tuple(map(str, row)), tuple(suggested_columns(row, HARMLESS.union(BESIDE)).items())))


def guessed_columns(row: Mapping[str, Any]) -> dict[str, str]:
    """Return what a row in an unknown format calls the keys of a known one, where the names themselves tell; or {}."""
    columns = suggested_columns(row, HARMLESS.union(BESIDE))
    return columns if are_known_names(row, columns) else {}


def _has_roles(messages: Any) -> bool:
    """Whether the first message says `role`, as ChatGLM3's do, and not `from`."""
    first = messages[0] if isinstance(messages, list) and messages else None
    return isinstance(first, dict) and "role" in first and first.get("from") is None


@lru_cache(maxsize=64)  # A file in an unknown format fails with the same words on each of its rows.
def _unknown(keys: tuple[str, ...], columns: tuple[tuple[str, str], ...]) -> str:
    known = sorted(AUTO.row_keys)
    found = ", ".join(f"`{key}`{'' if key in known else nearest(key, known)}" for key in keys[:6]) or "none"
    formats = ", ".join(f"{name} ({' and '.join(f'`{key}`' for key in one.keys)})" for name, one in FORMATS.items())
    way_out = ""
    if columns:
        mapping = ", ".join(f"{key}: {own}" for key, own in columns)
        options = " ".join(f"--column {key}={own}" for key, own in columns)
        way_out = f"; or `columns` that say what the file calls them, such as `{{{mapping}}}` (`{options}`)"
    return f"unknown row format (keys: {found}); expected the keys of one of these: {formats}{way_out}"


@lru_cache(maxsize=64)
def _lacking(name: str, keys: tuple[str, ...]) -> str:
    missing = next(key for key in FORMATS[name].keys if key not in keys)
    found = ", ".join(f"`{key}`" for key in keys[:6]) or "none"
    return f"the row has no `{missing}`{nearest(missing, list(keys))}, which the format `{name}` needs (keys: {found})"
