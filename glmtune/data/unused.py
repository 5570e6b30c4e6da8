"""What rows hold that is not used as it might be meant: keys nobody reads, rejected answers, tokens, and doubts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .formats import ReadRow

MAX_NAMES = 200
"""Distinct keys that are counted by name: rows may have any."""

NUM_NAMES_TOLD = 8

AS_TEXT = (
    "written as ordinary text (one of your own that is meant as a token has to be a plain one: "
    "`tokenizer.add_tokens([...], special_tokens=False)`)"
)
"""What becomes of a special token in the text of a message, and what to do where that is not wanted."""


@dataclass(kw_only=True)
class Unread:
    """Rows by what of them is not used. A row counts once it is read, whatever its length then makes of it."""

    keys: Counter[str] = field(default_factory=Counter)
    """Rows by the key that is not read."""
    num_others: int = 0
    """Times that further keys were met, beyond `MAX_NAMES` of them."""
    num_rejected: int = 0
    """Rows with a rejected answer, which is not used."""
    doubts: Counter[str] = field(default_factory=Counter)
    """Rows by what is read as it stands and may be meant otherwise."""
    tokens: Counter[str] = field(default_factory=Counter)
    """Rows by the special token that stands in their text, where it is text like any other."""

    def add(self, row: ReadRow) -> None:
        """Count a row, unless nothing of it could be used."""
        if (row.unread or row.has_rejected or row.doubts) and not all(
            isinstance(part, ValueError) for part in row.parts
        ):
            self.num_rejected += row.has_rejected
            self.doubts.update(row.doubts)
            self.add_keys(row.unread)

    def add_keys(self, keys: Iterable[str]) -> None:
        """Count a row with these keys that are not read."""
        for key in keys:
            self._count(key, 1)

    def update(self, other: Unread) -> None:
        """Add the counts of other rows."""
        self.num_others += other.num_others
        self.num_rejected += other.num_rejected
        self.doubts.update(other.doubts)
        self.tokens.update(other.tokens)
        for key, num_rows in other.keys.items():
            self._count(key, num_rows)

    def add_tokens(self, names: Iterable[str]) -> None:
        """Count a row with these special tokens in its text."""
        self.tokens.update(sorted(set(names)))  # in one order, so that equal counts are told alike

    def _count(self, key: str, num_rows: int) -> None:
        if key in self.keys or len(self.keys) < MAX_NAMES:
            self.keys[key] += num_rows
        else:
            self.num_others += num_rows

    def lines(self, use: str = "trained") -> list[str]:
        """Return what a person is told; no line where everything is used. `use` is what becomes of good answers."""
        lines = []
        if self.keys:
            told, num_more = _most_common(self.keys, "`{}`")
            text = ", ".join(told)
            more = f" and {'at least ' if self.num_others else ''}{num_more:,} more" if num_more else ""
            lines.append(f"keys that are not read: {text}{more}")
        if self.num_rejected:
            has = "has" if self.num_rejected == 1 else "have"
            rows = f"{self.num_rejected:,} {_rows(self.num_rejected)}"
            lines.append(f"{rows} {has} two answers: the chosen one is {use}, the rejected answer is not used")
        if self.doubts:
            told, num_more = _most_common(self.doubts, "{}")
            text = "; ".join(told)
            more = f"; and {num_more} more" if num_more else ""
            lines.append(f"{use} as they stand, and perhaps not meant so: {text}{more}")
        if self.tokens:
            told, num_more = _most_common(self.tokens, "`{}`")
            text = ", ".join(told)
            lines.append(f"special tokens in texts are {AS_TEXT}: {text}{f' and {num_more} more' if num_more else ''}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as plain JSON types, which `from_dict` reads again."""
        return {
            "keys": dict(self.keys),
            "others": self.num_others,
            "rejected": self.num_rejected,
            "doubts": dict(self.doubts),
            "tokens": dict(self.tokens),
        }

    @classmethod
    def from_dict(cls, counts: dict[str, Any]) -> Unread:
        """Return the counts that `as_dict` gave."""
        return cls(
            keys=Counter(counts["keys"]),
            num_others=counts["others"],
            num_rejected=counts["rejected"],
            doubts=Counter(counts["doubts"]),
            tokens=Counter(counts["tokens"]),
        )


def total(counts: Iterable[Unread]) -> Unread:
    """Return the sum of what is not used in several files."""
    whole = Unread()
    for each in counts:
        whole.update(each)
    return whole


def _most_common(counts: Counter[str], form: str) -> tuple[list[str], int]:
    """Return the names that most rows have, each in a form and with its rows, and how many names are left out."""
    told = counts.most_common(NUM_NAMES_TOLD)
    return [f"{form.format(name)} ({num_rows:,} {_rows(num_rows)})" for name, num_rows in told], len(counts) - len(told)


def _rows(number: int) -> str:
    return "row" if number == 1 else "rows"
