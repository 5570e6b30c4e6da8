"""What is to be undone where a process ends without leaving its functions: one that waits in vain for others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_undoings: list[Callable[[], None]] = []


@contextmanager
def undone_at_exit(undo: Callable[[], None]) -> Iterator[None]:
    """Have `undo` called if the process is ended from another thread before this is left."""
    _undoings.append(undo)
    try:
        yield
    finally:
        _undoings.remove(undo)


def undo_all() -> None:
    """Undo everything, the newest first: for a thread that is about to end the process."""
    for undo in reversed(_undoings):
        with suppress(Exception):  # the process ends anyway, and what comes next is to be tried as well
            undo()
