"""One row of a data file, before it is known whether it is a conversation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from glmtune.data import json_text
from glmtune.data.conversation import Conversation, RowError
from glmtune.data.formats import AUTO, ReadRow, RowFormat, read_row

MAX_ROW_BYTES = 16 << 20
"""Longest row that is read: far beyond any context length, so a longer one is a file without line breaks."""

TOO_LONG = f"the row is longer than {MAX_ROW_BYTES >> 20} MiB; expected one conversation, or one text, in a row"


@dataclass(frozen=True, kw_only=True)
class Reject:
    """A row that is not trained on, or only in part, and why."""

    where: str
    """`file:line`."""
    reason: str
    kind: Literal["unusable", "too_long", "cut", "without_turns"] = field(default="unusable", compare=False)
    """What became of it, to count by: left out, left out for its length, or trained in part."""


class Row(NamedTuple):
    """One row of a data file, as the JSON text that stands there; a tuple, since millions are made."""

    where: str
    text: str
    problem: str = ""
    """Why there is no text, such as bytes that are not UTF-8; empty where there is."""

    def read(self, row_format: RowFormat = AUTO) -> ReadRow:
        """Parse and convert the row, and tell what of it is not read."""
        if self.problem:
            return ReadRow([RowError(self.problem)])
        try:
            row = json_text.parse(self.text)
        except RowError as error:
            return ReadRow([error])
        return read_row(row, row_format)

    def parts(self, row_format: RowFormat = AUTO) -> list[Conversation | RowError]:
        """Return the row's conversations, and the error of what cannot be trained on; it may cost a part alone."""
        return self.read(row_format).parts

    def conversations(self, row_format: RowFormat = AUTO) -> list[Conversation]:
        """Return the row's conversations, one in most formats; raises `RowError`."""
        parts = self.parts(row_format)
        for part in parts:
            if isinstance(part, RowError):
                raise part
        return [part for part in parts if isinstance(part, Conversation)]


def row_from_bytes(where: str, raw: bytes) -> Row:
    """Return the row that these bytes are, or one that carries the problem where they are no text."""
    if len(raw) <= MAX_ROW_BYTES and b"\0" not in raw:
        try:
            return Row(where, raw.strip().decode())
        except UnicodeDecodeError:
            pass
    return Row(where, "", bytes_problem(raw))


def bytes_problem(raw: bytes) -> str:
    """Return why these bytes are not the text of a row, or an empty string where they are."""
    if len(raw) > MAX_ROW_BYTES:
        return TOO_LONG
    if b"\0" in raw:
        return f"byte {raw.index(0) + 1} of the row is NUL; expected text"
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        return f"byte {error.start + 1} of the row, 0x{byte:02x}, is not UTF-8; expected a file saved as UTF-8"
    return ""
