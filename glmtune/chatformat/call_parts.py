r"""The arguments of a call while it is written; put together they are, letter for letter, those of the whole call.

GLM-4's and ChatML's are an object of JSON, given out as it comes. GLM-4.5's stand between tags, one pair of key and
value after the other, and become a member of an object each, once both are there. All of it takes time in proportion to
the text.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

OPEN_KEY, CLOSE_KEY = "<arg_key>", "</arg_key>"
OPEN_ARGUMENT, CLOSE_ARGUMENT = "<arg_value>", "</arg_value>"


@dataclass(frozen=True, kw_only=True)
class CallPart:
    """What has become certain of a call that is still being written: its name first, then arguments."""

    name: str | None = None
    arguments: str = ""


def next_argument(text: str, start: int) -> tuple[str, str, int] | None:
    """Return the key and value of the pair that begins at `start`, and where it ends; None where none is complete."""
    start = _behind_blanks(text, start)
    end_of_key = text.find(CLOSE_KEY, start) if text.startswith(OPEN_KEY, start) else -1
    if end_of_key < 0:
        return None
    value = _behind_blanks(text, end_of_key + len(CLOSE_KEY))
    end = text.find(CLOSE_ARGUMENT, value) if text.startswith(OPEN_ARGUMENT, value) else -1
    if end < 0:
        return None
    key = text[start + len(OPEN_KEY) : end_of_key].strip()
    return key, text[value + len(OPEN_ARGUMENT) : end], end + len(CLOSE_ARGUMENT)


def _behind_blanks(text: str, start: int) -> int:
    while start < len(text) and text[start].isspace():
        start += 1
    return start


def members(text: str, value_of: Callable[[str, str], Any]) -> list[str] | None:
    """Return the pairs in a text as members of a JSON object; None where there is anything else in it.

    `value_of` takes a key and the text of its value.
    """
    found = []
    place = 0
    while (pair := next_argument(text, place)) is not None:
        key, value, place = pair
        found.append(member(key, value_of(key, value)))
    return found if not text[place:].strip() else None


def member(key: str, value: Any) -> str:
    """Return a member of a JSON object."""
    return f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}"


@dataclass
class ObjectParts:
    """Gives out an object of JSON up to its last brace, and no white space before more of it follows."""

    num_given: int = field(default=0, init=False)
    """Characters that were given out."""
    num_taken: int = field(default=0, init=False)
    """Characters of the text that these stand for."""
    is_whole: bool = field(default=False, init=False)
    _depth: int = field(default=0, init=False)
    _is_in_string: bool = field(default=False, init=False)
    _is_escaped: bool = field(default=False, init=False)
    _held: str = field(default="", init=False)

    def feed(self, text: str) -> str:
        """Take more text; returns what is certain to be of the object."""
        if self.is_whole:
            return ""
        end = next((place + 1 for place, letter in enumerate(text) if self._closes(letter)), len(text))
        text = self._held + text[:end]
        given = text.rstrip()
        self._held = text[len(given) :]
        self.num_given += len(given)
        self.num_taken = self.num_given
        return given

    def _closes(self, letter: str) -> bool:
        """Whether this letter is the object's last one."""
        if self._is_escaped:
            self._is_escaped = False
        elif self._is_in_string:
            self._is_escaped = letter == "\\"
            self._is_in_string = letter != '"'
        elif letter == '"':
            self._is_in_string = True
        elif letter in "{[":
            self._depth += 1
        elif letter in "}]":
            self._depth -= 1
            self.is_whole = self._depth == 0
        return self.is_whole


@dataclass
class ArgumentParts:
    """Gives out each pair of key and value as a member of an object."""

    value_of: Callable[[str, str], Any]
    num_given: int = field(default=0, init=False)
    num_taken: int = field(default=0, init=False)
    is_whole: bool = field(default=False, init=False)
    """It never is: the tag that ends the call does that."""
    _text: str = field(default="", init=False)

    def feed(self, text: str) -> str:
        """Take more text; returns the members that are complete now."""
        is_closed = CLOSE_ARGUMENT in self._text[1 - len(CLOSE_ARGUMENT) :] + text
        self._text += text
        place = 0
        given = ""
        while is_closed and (pair := next_argument(self._text, place)) is not None:
            key, value, place = pair
            given += (", " if self.num_given or given else "{") + member(key, self.value_of(key, value))
        self._text = self._text[place:]
        self.num_taken += place
        self.num_given += len(given)
        return given
