"""The two ends of a chat: lines that a person types, and answers as they are written.

Only answers go to stdout; prompts, calls of tools, reasoning and everything else go to stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

from glmtune.console import is_watched
from glmtune.errors import GlmtuneError
from glmtune.standard_streams import input_text
from glmtune.text.visible_text import ANSWER_KEEPS, visible

CONTINUATION = "... "
"""Stands before the second line of a text and those below."""


class ChatTerminal:
    """Reads from stdin, with line editing where it is a terminal, and writes answers to stdout."""

    def __init__(self) -> None:
        self.is_interactive = sys.stdin.isatty()
        self._read = _line_editor() if self.is_interactive else _read_plainly
        self._is_dim = is_watched() and "NO_COLOR" not in os.environ
        self._unfinished: TextIO | None = None
        """Where a line was begun and not ended."""

    def read(self, prompt: str) -> str:
        """Return what is typed next, one or several lines; raises `EOFError` at the end of the input."""
        text = self._read(visible(prompt))
        try:
            text.encode()
        except UnicodeEncodeError:
            raise GlmtuneError("what was typed is not UTF-8", fix="set the terminal, or the file, to UTF-8") from None
        return text

    def write(self, text: str) -> None:
        """Show a piece of an answer."""
        self._put(text, sys.stdout)

    def write_aside(self, text: str) -> None:
        """Show a piece of what is not the answer, such as reasoning: dimmed where the terminal can."""
        self._put(text, sys.stderr, "\x1b[2m{}\x1b[22m" if self._is_dim else "{}")

    def show_aside(self, text: str) -> None:
        """Show a line that is not the answer, such as a call of a tool."""
        self.end_line()
        self.write_aside(text)
        self.end_line()

    def end_line(self) -> None:
        """Begin a new line where the last one has not been ended."""
        if self._unfinished is not None:
            print(file=self._unfinished, flush=True)
            self._unfinished = None

    def _put(self, text: str, stream: TextIO, style: str = "{}") -> None:
        if self._unfinished is not stream:
            self.end_line()
        # Into a file or pipe goes an answer as it is; stderr is for eyes, sooner or later.
        shown = text if stream is sys.stdout and not stream.isatty() else visible(text, ANSWER_KEEPS)
        print(style.format(shown), end="", file=stream, flush=True)
        self._unfinished = None if text.endswith("\n") else stream


def _read_plainly(prompt: str) -> str:
    """Return the next line of stdin, and the one below where it ends with a backslash; stderr shows them, too."""
    lines: list[str] = []
    while True:
        print(prompt, end="", file=sys.stderr, flush=True)
        raw = sys.stdin.buffer.readline()
        print(visible(raw.decode(errors="replace").rstrip("\r\n"), "\t"), file=sys.stderr, flush=True)
        line = input_text(raw, "what was typed").removesuffix("\n").removesuffix("\r")
        if not raw and not lines:
            raise EOFError
        if not raw or not line.endswith("\\"):
            return "\n".join([*lines, line])
        lines.append(line[:-1])
        prompt = CONTINUATION


def _line_editor() -> Callable[[str], str]:
    """Return a function that reads with line editing and remembers what was typed, in memory only."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.output import create_output

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: Any) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.newline(copy_margin=False)

    session: PromptSession[str] = PromptSession(
        multiline=True, key_bindings=keys, prompt_continuation=CONTINUATION, output=create_output(stdout=sys.stderr)
    )

    return session.prompt
