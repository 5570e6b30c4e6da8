"""What is in a data file: rows, messages, tokens, and why rows were rejected; for a person and for programs."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from glmtune.data.conversation import Conversation
from glmtune.data.unused import Unread
from glmtune.errors import shown
from glmtune.text.text_table import format_table, wrap

from .histogram import text_bars

PERCENTILES = (0, 5, 25, 50, 75, 95, 99, 100)
NUM_PLACES = 3  # of a reason: enough to look at, few enough to read
NUM_REASONS_SHOWN = 10
COLUMNS = 80
LABEL_COLUMNS = 12

# What differs between rows with the same problem: literals in backticks, Python's quoted text, numbers.
LITERAL = re.compile(r"""(`[^`]*`|(?<!\w)'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\d+(?:[.,]\d+)*)""")


@dataclass
class RejectGroup:
    """Rows that were rejected for the same reason, but for numbers and literals in it."""

    parts: list[str]
    """The reason: fixed text and literals in turn."""
    num_rows: int = 0
    where: list[str] = field(default_factory=list)
    """The first places."""

    @property
    def reason(self) -> str:
        """The first row's reason; a literal that differs in another row is `…`, such a number is N."""
        return "".join(self.parts)

    def add(self, parts: list[str], where: str) -> None:
        """Count a row whose reason has the same fixed text."""
        self.parts = [ours if ours == theirs else _blank(ours) for ours, theirs in zip(self.parts, parts)]
        self.num_rows += 1
        if len(self.where) < NUM_PLACES:
            self.where.append(where)


@dataclass(kw_only=True)
class Statistics:
    """Counts over rows. A row is either usable, `add_conversation` and with a model `add_example`, or `add_reject`.

    Memory grows by four bytes a row. Of a format that makes several conversations of a row, each counts as one.
    """

    max_length_tokens: int | None = None
    """Where rows are cut; None where they are not."""
    num_usable: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    """Usable rows by the name of their format, where it is given."""
    turns: Counter[int] = field(default_factory=Counter)
    """Usable rows by their number of turns: questions with all that follows until the next one."""
    messages: Counter[str] = field(default_factory=Counter)
    """Messages by role, as the model sees them: each of several tool calls is one."""
    num_tool_calls: int = 0
    num_rows_with_tools: int = 0
    num_characters: int = 0
    lengths: array[int] = field(default_factory=lambda: array("i"))
    """Tokens of every usable row."""
    num_trained_tokens: int = 0
    num_truncated: int = 0
    groups: dict[tuple[str, ...], RejectGroup] = field(default_factory=dict)
    """Rejected rows by the fixed text of the reason."""
    unread: Unread = field(default_factory=Unread)
    """What of the usable rows is not used."""

    def __repr__(self) -> str:
        """Return the numbers of rows and tokens; `print(statistics.table())` shows all."""
        rejected = f", {self.num_rejected:,} rejected" if self.groups else ""
        tokens = f"; {sum(self.lengths):,} tokens, {self.num_trained_tokens:,} of them trained" if self.lengths else ""
        return f"<Statistics: {self.num_usable:,} usable rows{rejected}{tokens}>"

    def add_conversation(self, conversation: Conversation, format_name: str | None = None) -> None:
        """Count a usable row as it stands in the file."""
        messages = conversation.messages
        self.num_usable += 1
        if format_name:
            self.formats[format_name] += 1
        # User messages in a row are one question.
        self.turns[sum(role == "user" for role, _ in groupby(message.role for message in messages))] += 1
        self.messages.update(message.role for message in messages)
        self.num_tool_calls += sum(message.is_tool_call for message in messages)
        self.num_rows_with_tools += any(message.tools for message in messages)
        self.num_characters += sum(len(message.content) + len(message.reasoning) for message in messages)

    def add_example(self, num_tokens: int, num_trained: int, is_truncated: bool = False) -> None:
        """Count the tokens of a usable row.

        Args:
            num_tokens: Of the whole row; best before it is cut, so that the percentiles show how long rows are.
            num_trained: Tokens with a label, of those that are left where the row is cut.
            is_truncated: Whether the row is cut.
        """
        self.lengths.append(num_tokens)
        self.num_trained_tokens += num_trained
        self.num_truncated += is_truncated

    def add_reject(self, reason: str, where: str) -> None:
        """Count a row that cannot be trained on."""
        parts = LITERAL.split(reason)
        self.groups.setdefault(tuple(parts[::2]), RejectGroup(parts)).add(parts, where)

    @property
    def num_rejected(self) -> int:
        """Rows that cannot be trained on."""
        return sum(group.num_rows for group in self.groups.values())

    @property
    def num_rows(self) -> int:
        """All rows, usable or not."""
        return self.num_usable + self.num_rejected

    def is_too_bad(self, max_bad: float) -> bool:
        """Whether more rows were rejected than allowed: below 1 a share of all rows, from 1 on a number."""
        return self.num_rejected > (max_bad * self.num_rows if max_bad < 1 else max_bad)

    def rejects(self) -> list[RejectGroup]:
        """Return the groups, the largest first."""
        return sorted(self.groups.values(), key=lambda group: -group.num_rows)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON types.

        `tokens` is None where no row was encoded; what is not used of the rows is there where there is any.
        """
        return {
            "rows": self.num_rows,
            "usable": self.num_usable,
            "rejected": self.num_rejected,
            "formats": dict(self.formats),
            "turns": sum(turns * rows for turns, rows in self.turns.items()),
            "max_turns": max(self.turns, default=0),
            "messages": dict(self.messages),
            "tool_calls": self.num_tool_calls,
            "rows_with_tools": self.num_rows_with_tools,
            "characters": self.num_characters,
            "tokens": self._tokens() if self.lengths else None,
            "rejects": [
                {"reason": group.reason, "rows": group.num_rows, "where": group.where} for group in self.rejects()
            ],
            **({"unread": dict(self.unread.keys.most_common())} if self.unread.keys else {}),
            **({"rejected_answers": self.unread.num_rejected} if self.unread.num_rejected else {}),
            **({"doubts": dict(self.unread.doubts.most_common())} if self.unread.doubts else {}),
            **({"special_tokens_in_texts": dict(self.unread.tokens.most_common())} if self.unread.tokens else {}),
        }

    def _tokens(self) -> dict[str, Any]:
        lengths = np.asarray(self.lengths)
        fed = lengths if self.max_length_tokens is None else np.minimum(lengths, self.max_length_tokens)
        percentiles = np.percentile(lengths, PERCENTILES).tolist()
        return {
            "total": int(fed.sum(dtype=np.int64)),
            "trained": self.num_trained_tokens,
            "trained_share": self.num_trained_tokens / max(1, int(fed.sum(dtype=np.int64))),
            "truncated_rows": self.num_truncated,
            "max_length": self.max_length_tokens,
            "length_percentiles": {str(percent): value for percent, value in zip(PERCENTILES, percentiles)},
        }

    def table(self) -> str:
        """Return everything as text for a terminal of 80 columns."""
        counts = self.as_dict()
        rows = f"{self.num_usable:,} usable" + (f", {self.num_rejected:,} rejected" if self.groups else "")
        fields = [("rows", rows), ("formats", _listed(self.formats)), ("messages", _listed(self.messages))]
        if counts["turns"]:
            mean = counts["turns"] / self.num_usable
            fewest, most = min(self.turns), max(self.turns)
            spread = f"{fewest:,} to {most:,} a row, {mean:.1f} on average" if fewest < most else f"{fewest:,} a row"
            fields.append(("turns", f"{counts['turns']:,}; {spread}"))
        if self.num_rows_with_tools or self.num_tool_calls:
            fields.append(("tools", f"rows {self.num_rows_with_tools:,}, calls {self.num_tool_calls:,}"))
        fields.append(("characters", f"{self.num_characters:,}"))
        blocks = [_fields(fields)]
        if counts["tokens"]:
            blocks += self._token_blocks(counts["tokens"])
        if lines := self.unread.lines():
            blocks.append("\n".join(part for line in lines for part in wrap(line, COLUMNS)))
        if self.groups:
            blocks.append(self._reject_block())
        return "\n\n".join(blocks)

    def _token_blocks(self, tokens: dict[str, Any]) -> list[str]:
        trained = f"{tokens['total']:,}; {tokens['trained']:,} of them trained ({tokens['trained_share']:.1%})"
        fields = [("tokens", trained)]
        if self.max_length_tokens is not None:
            fields.append(("truncated", f"{self.num_truncated:,}, cut at {self.max_length_tokens:,} tokens"))
        percentiles = tokens["length_percentiles"]
        headers = ["percentile", *(f"{percent}%" for percent in percentiles)]
        table = format_table(headers, [["tokens", *(f"{value:,.0f}" for value in percentiles.values())]])
        return [_fields(fields), table, "\n".join(["tokens in a row, and rows", *text_bars(self.lengths)])]

    def _reject_block(self) -> str:
        groups = self.rejects()
        digits = max(len(f"{group.num_rows:,}") for group in groups)
        lines = [_fields([("rejected", f"{self.num_rejected:,} of {self.num_rows:,} rows")])]
        for group in groups[:NUM_REASONS_SHOWN]:
            count = f"  {group.num_rows:>{digits},}  "
            first, *more = wrap(group.reason, COLUMNS - len(count)) or [""]
            lines.append(count + first)
            lines += [" " * len(count) + line for line in more]
            lines += [f"{' ' * len(count)}--> {shown(where)}" for where in group.where]
        left = groups[NUM_REASONS_SHOWN:]
        if left:
            lines.append(f"  {sum(group.num_rows for group in left):>{digits},}  for {len(left):,} other reasons")
        return "\n".join(lines)


def _blank(literal: str) -> str:
    return "N" if literal[0].isdigit() or literal == "N" else f"{literal[0]}…{literal[-1]}"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common())


def _fields(fields: list[tuple[str, str]]) -> str:
    """Return a line for every name with a value, long ones wrapped below themselves."""
    lines = []
    for name, value in fields:
        for index, line in enumerate(wrap(value, COLUMNS - LABEL_COLUMNS)):
            lines.append(f"{'' if index else name:<{LABEL_COLUMNS}}{line}")
    return "\n".join(lines)
