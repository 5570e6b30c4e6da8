"""What a notebook needs that a terminal does not: one output that is replaced, and errors without a traceback."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SECONDS_BETWEEN = 0.5
"""From one replacement to the next: each is a message to the browser."""


def is_notebook() -> bool:
    """Whether a kernel of Jupyter's runs this program, so that a notebook shows what it prints."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config


class NotebookLine:
    """One output of a cell that is replaced again and again, and comes into being when it is first shown."""

    def __init__(self) -> None:
        self._output: Any = None
        self._shown_at = time.monotonic()

    def show(self, text: str, *, at_once: bool = True) -> None:
        """Replace what is shown; where that is not `at_once`, only if it has stood for a while."""
        if not at_once and time.monotonic() - self._shown_at < SECONDS_BETWEEN:
            return
        self._shown_at = time.monotonic()
        content = {"text/plain": text}
        if self._output is None:
            from IPython.display import display

            self._output = display(content, raw=True, display_id=True)
        else:
            self._output.update(content, raw=True)

    def clear(self) -> None:
        """Leave an empty output, where there is one."""
        if self._output is not None:
            self.show("")


def render(error: BaseException, text: str) -> list[str]:
    """Return what IPython shows of an error, by its `_render_traceback_`; `GLMTUNE_DEBUG` asks for the traceback."""
    if os.environ.get("GLMTUNE_DEBUG"):
        return traceback.format_exception(error)
    return text.splitlines()


@contextmanager
def interrupts_without_traceback() -> Iterator[None]:
    """Let IPython show an interrupt in one line: where in our code it came says nothing to who pressed the button."""
    try:
        yield
    except KeyboardInterrupt as error:
        if not os.environ.get("GLMTUNE_DEBUG"):
            # On the object itself: Python ends a program by SIGINT for this very type alone.
            vars(error)["_render_traceback_"] = _interrupted
        raise


def _interrupted() -> list[str]:
    return ["interrupted"]
