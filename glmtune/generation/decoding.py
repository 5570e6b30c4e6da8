"""Tokens to text, all at once or while they come: whole characters, stop strings, reasoning, tool calls.

Token ─▶ TextStream (whole characters) ─▶ StopStrings (cut there) ─▶ ReplyReader (text or call) ─▶ Delta, ToolCall
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from glmtune.chatformat.replies import Delta, Found, ReplyReader
from glmtune.family import ASSISTANT

INCOMPLETE = "\ufffd"
"""What decoders write for bytes that are no character, such as the beginning of one."""

MOST_HELD = 16
"""Tokens that wait for the end of a character, which has four bytes at most; what goes on longer never becomes one."""


def border_of(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id that stands between two sections of an answer, GLM-4's `<|assistant|>`; None where it has none."""
    return tokenizer.added_tokens_encoder.get(ASSISTANT)  # type: ignore[no-any-return]


def decode_answer(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of an answer, special tokens and outer white space removed.

    An answer may say something before it calls a tool, with `<|assistant|>` between: a newline stands there instead.
    """
    return join_sections(decode_sections(tokenizer, ids))


def decode_sections(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Return the texts between the `<|assistant|>` tokens of an answer, special tokens removed."""
    parts: list[list[int]] = [[]]
    border = border_of(tokenizer)
    for token in ids:
        if token == border:
            parts.append([])
        else:
            parts[-1].append(token)
    return [str(tokenizer.decode(part, skip_special_tokens=True)) for part in parts]


def join_sections(sections: Sequence[str]) -> str:
    """Return the text of an answer, given as its sections, without outer white space."""
    texts = [section.strip() for section in sections]
    return "\n".join(text for text in texts if text)


class TextStream:
    """Decodes tokens one by one; a character that several tokens make up comes out whole."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._ids: list[int] = []
        self._num_shown = 0
        """Ids whose text has been given out; some of them stay, since a token's text may depend on those before."""

    def add(self, token: int) -> str:
        """Return the text that is certain now."""
        self._ids.append(token)
        text = self._text(self._ids)
        if text.endswith(INCOMPLETE) and len(self._ids) - self._num_shown < MOST_HELD:
            return ""
        return self._give(text)

    def rest(self) -> str:
        """Return what was held back, broken characters included."""
        return self._give(self._text(self._ids))

    def _give(self, text: str) -> str:
        before = self._text(self._ids[: self._num_shown])
        self._ids = self._ids[self._num_shown :]
        self._num_shown = len(self._ids)
        return text[len(before) :]

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class StopStrings:
    """Ends a text before the first of some strings, however they are split."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = stops
        self.reached: str | None = None
        """The string that ended the text."""
        self._held = ""

    def add(self, text: str) -> str:
        """Return the text that no longer can be the beginning of a stop string."""
        text = self._held + text
        found = [(place, stop) for stop in self.stops if (place := text.find(stop)) >= 0]
        if found:
            place, self.reached = min(found, key=lambda each: each[0])
            self._held = ""
            return text[:place]
        longest = max(map(len, self.stops), default=1)
        size = next(
            (
                size
                for size in range(min(longest - 1, len(text)), 0, -1)
                if any(stop.startswith(text[-size:]) for stop in self.stops)
            ),
            0,
        )
        self._held = text[len(text) - size :]
        return text[: len(text) - size]

    def rest(self) -> str:
        """Return what was held back, once it is known that nothing follows."""
        held, self._held = self._held, ""
        return held


@dataclass
class AnswerReader:
    """Turns the tokens of one answer into what the client gets."""

    tokenizer: PreTrainedTokenizerBase
    stops: Sequence[str] = ()
    reader: ReplyReader | None = None
    """Takes replies of a chat apart; without it the text is given out as it is."""
    border: int | None = None
    """The id that ends a section of a reply, see `border_of`; where nothing takes it apart, a newline stands there."""
    num_tokens: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._text = TextStream(self.tokenizer)
        self._stop = StopStrings(self.stops)

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string has been written: nothing more is wanted."""
        return self._stop.reached is not None

    @property
    def stopped_by(self) -> str | None:
        """The stop string that has been written."""
        return self._stop.reached

    def add(self, token: int) -> list[Found]:
        """Take the next token; returns what is certain now."""
        self.num_tokens += 1
        if token == self.border:
            before = self._feed(self._stop.add(self._text.rest()) + self._stop.rest())
            return [*before, *(self.reader.border() if self.reader is not None else [Delta(text="\n")])]
        events = self._feed(self._stop.add(self._text.add(token)))
        return [*events, *self._finish()] if self.is_stopped else events

    def end(self, *, keeps_broken: bool = True) -> list[Found]:
        """Take the end of the answer; returns what was held back, half a character only where it is to be kept."""
        if self.is_stopped:
            return []
        rest = self._text.rest()
        text = self._stop.add(rest if keeps_broken else rest.rstrip(INCOMPLETE))
        return [*self._feed(text + self._stop.rest()), *self._finish()]

    def _feed(self, text: str) -> list[Found]:
        if self.reader is not None:
            return self.reader.feed(text)
        return [Delta(text=text)] if text else []

    def _finish(self) -> list[Found]:
        return self.reader.finish() if self.reader is not None else []


def token_text(tokenizer: Any, token: int) -> tuple[str, list[int]]:
    """Return a token's text, and its bytes: a token may be a part of a character."""
    text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    if INCOMPLETE not in text:
        return text, list(text.encode())
    characters = _byte_values()
    piece = tokenizer.convert_ids_to_tokens(token)
    if all(character in characters for character in piece):
        return text, [characters[character] for character in piece]
    return text, list(text.encode())


@cache
def _byte_values() -> dict[str, int]:
    """Return the byte that each letter of a byte-level vocabulary stands for (GPT-2's table)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + number): byte for number, byte in enumerate(others)}
