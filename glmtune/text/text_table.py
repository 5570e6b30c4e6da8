"""Plain text in columns and lines of a terminal, where a Chinese character is as wide as two Latin ones."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from .visible_text import visible

NUMBER = re.compile(r"[-+]?(\d[\d,]*\.?\d*|\.\d+)(e[-+]?\d+)?%?|nan|[-+]?inf", re.IGNORECASE)


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an aligned table: a header line, a rule, the rows; columns of numbers stand at the right.

    Widths are those of a terminal, where a Chinese character takes two columns. A missing number is `-` or empty.
    """
    assert all(len(row) == len(headers) for row in rows), "every row needs one cell per header"
    rows = [[visible(cell) for cell in row] for row in rows]
    columns = list(zip(headers, *rows))
    widths = [max(display_width(cell) for cell in column) for column in columns]
    at_right = [_is_numeric(column[1:]) for column in columns]
    lines = [[*headers], ["-" * width for width in widths], *rows]
    return "\n".join("  ".join(map(_pad, line, widths, at_right)).rstrip() for line in lines)


def display_width(text: str) -> int:
    """Return how many terminal columns `text` takes: wide and full-width characters two, combining marks none."""
    visible = [char for char in text if unicodedata.category(char) not in ("Mn", "Me", "Cf")]
    return len(visible) + sum(unicodedata.east_asian_width(char) in ("W", "F") for char in visible)


def _is_numeric(cells: Sequence[str]) -> bool:
    filled = [cell for cell in cells if cell not in ("", "-")]
    return bool(filled) and all(NUMBER.fullmatch(cell) for cell in filled)


def _pad(cell: str, width: int, at_right: bool) -> str:
    padding = " " * (width - display_width(cell))
    return padding + cell if at_right else cell + padding


def wrap(text: str, width: int) -> list[str]:
    """Break `text` into lines of at most `width` columns: between words, and inside a word that is longer than a line.

    Chinese has no spaces, so a stretch of it counts as one word.
    """
    lines = [""]
    for word in visible(text, keep="\n\t").split():
        if lines[-1] and display_width(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        elif display_width(word) <= width:
            lines.append(word)
        else:
            lines[-1] += " " if lines[-1] else ""
            for char in word:
                if display_width(lines[-1] + char) > width:
                    lines.append("")
                lines[-1] += char
    return [line.rstrip() for line in lines if line]
