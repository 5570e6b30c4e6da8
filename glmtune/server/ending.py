"""How a server ends at a signal: within its time, whatever its threads do; at a second signal at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from glmtune.console import say

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECONDS_TO_TELL = 3.0
"""For the last words to those whose answers are broken off; half of the time where that is less."""
SHORTEST_SECONDS = 1.0
"""No server ends in less: those who wait are told."""


class Ending:
    """What a signal sets going."""

    def __init__(self, break_off: Callable[[], None], *, seconds: float, may_exit: bool) -> None:
        """Wait for a signal.

        Args:
            break_off: Ends answers that are still being written.
            seconds: From the signal to the end.
            may_exit: Whether the process is the server's alone; a notebook's is not.
        """
        self.break_off = break_off
        self.seconds = max(seconds, SHORTEST_SECONDS)
        self.may_exit = may_exit
        self.signal: int | None = None
        self._is_over = threading.Event()

    def begin(self, number: int) -> None:
        """Take a signal."""
        if self.signal is not None:
            self._exit(128 + number, "the server has ended at once, as the second signal wants it")
            raise KeyboardInterrupt
        self.signal = number
        threading.Thread(target=self._watch, name="ending", daemon=True).start()

    def over(self) -> None:
        """Take note that everything has ended in time."""
        self._is_over.set()

    def _watch(self) -> None:
        seconds_to_tell = min(SECONDS_TO_TELL, self.seconds / 2)
        if self._is_over.wait(self.seconds - seconds_to_tell):
            return
        self.break_off()
        if not self._is_over.wait(seconds_to_tell):
            code = 128 + signal.SIGINT if self.signal == signal.SIGINT else 0
            self._exit(code, "the server has ended, although not all of its threads had")

    def _exit(self, code: int, message: str) -> None:
        if self.may_exit:
            say(message)
            leave_at_once(code)


def leave_at_once(code: int) -> NoReturn:
    """End the process without what Python does at its end: it waits for threads, and takes torch apart for a second."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


@contextmanager
def signals_taken(take: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have signals taken before and behind uvicorn's own time, too; they are for the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.signal(number, take) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
