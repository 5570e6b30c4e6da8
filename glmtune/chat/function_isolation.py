"""What keeps the functions of tools apart from the chat that calls them: they get neither its keys nor its terminal.

What they and their children print comes through a pipe, and is shown with all written out that a terminal would obey.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext

from glmtune.console import notice, show_printed
from glmtune.text.secret_values import FOLDERS, is_secret

KEY_VARIABLE = re.compile(r"(?:^|_)(?:keys?|pat|auth)$", re.IGNORECASE)
"""Names that are those of keys in an environment, and not everywhere."""
BYTES_AT_ONCE = 65536
"""As many as a pipe of Linux holds."""
MAX_PRINTED = 100_000
"""Characters that are shown from one call to the next: what prints for ever would leave no room for the chat."""
SECONDS_TO_DRAIN = 1.0
"""For what is left when the functions have ended: a child that could not be ended may print for ever."""


def key_variables(*, kept: Collection[str] = (), more: Collection[str] = ()) -> tuple[str, ...]:
    """Return the variables of the environment that hold keys, by their names.

    Args:
        kept: Those that are none of the chat's.
        more: Those that are, whatever their name is.
    """
    return tuple(
        sorted(
            name
            for name in os.environ
            if name not in kept
            and name not in FOLDERS
            and (name in more or is_secret(name) or KEY_VARIABLE.search(name))
        )
    )


@cache
def tell_hidden(names: tuple[str, ...]) -> None:
    """Say once which variables the functions do not get."""
    if names:
        listed = ", ".join(f"`{name}`" for name in names)
        notice(f"the functions do not get {listed}: `--tool-env NAME` lets them have one")


@contextmanager
def without_variables(names: Collection[str]) -> Iterator[None]:
    """Take variables out of the environment: a process that is started meanwhile never has them."""
    taken = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)


class FunctionOutput:
    """Shows on stderr what is printed into `writer`, until it is closed."""

    writer: Connection
    """The end for the process of the functions."""

    def __init__(self, context: SpawnContext) -> None:
        self._reader, self.writer = context.Pipe(duplex=False)
        self._end, self._ending = context.Pipe(duplex=False)
        # A lone carriage return would let a line be written over.
        decoder = codecs.getincrementaldecoder("utf-8")(errors="backslashreplace")
        self._decoder = io.IncrementalNewlineDecoder(decoder, translate=True)
        self._lock = threading.Lock()
        self._is_line_ended = True
        self._num_left = MAX_PRINTED
        self._thread = threading.Thread(target=self._show_all, name="function-output", daemon=True)

    def begin(self) -> None:
        """Begin to show, once the process has its end of the pipe."""
        self.writer.close()
        self._thread.start()

    def allow_more(self) -> None:
        """Begin to count anew how much is shown."""
        with self._lock:
            self._num_left = MAX_PRINTED

    def catch_up(self, *, is_last: bool = False) -> None:
        """Show what has been printed until now, and end its line."""
        with self._lock:
            self._show_next(is_last=is_last)
            self._end_line()

    def close(self) -> None:
        """Show what is left and end."""
        self._ending.close()
        self._thread.join()
        self.catch_up(is_last=True)
        self._reader.close()
        self._end.close()

    def _show_all(self) -> None:
        deadline = None
        while deadline is None or time.monotonic() < deadline:
            sources = [self._reader] if deadline else [self._reader, self._end]
            ready = wait(sources, 0 if deadline else None)
            if not ready:
                return
            if self._end in ready:
                deadline = time.monotonic() + SECONDS_TO_DRAIN
            with self._lock:
                if not self._show_next():
                    return

    def _show_next(self, *, is_last: bool = False) -> bool:
        """Show what there is; returns whether more may come."""
        is_ready = self._reader.poll(0)
        content = os.read(self._reader.fileno(), BYTES_AT_ONCE) if is_ready else b""
        self._show(self._decoder.decode(content, final=is_last))
        return bool(content) or not is_ready

    def _show(self, text: str) -> None:
        if not text or self._num_left < 0:
            return
        shown = text[: self._num_left]
        show_printed(shown)
        self._is_line_ended = shown.endswith("\n")
        self._num_left -= len(text)
        if self._num_left < 0:
            self._end_line()
            notice(f"what the functions print beyond {MAX_PRINTED:,} characters is not shown, until the next call")

    def _end_line(self) -> None:
        if not self._is_line_ended:
            show_printed("\n")
            self._is_line_ended = True
