"""The bar of a run in a notebook: one output of the cell, replaced as the steps go by."""

from __future__ import annotations

import time

from tqdm import tqdm

from glmtune.notebook import NotebookLine

COLUMNS = 100


class NotebookBar:
    """Has of tqdm's bar what a run needs; tqdm's own for notebooks needs widgets, and is empty in a saved notebook."""

    def __init__(self, *, total: int, initial: int) -> None:
        self.n = initial
        self._total = total
        self._initial = initial
        self._started = time.monotonic()
        self._description: str | None = None
        self._postfix = ""
        self._line = NotebookLine()
        self.refresh()

    def __str__(self) -> str:
        text: str = tqdm.format_meter(
            self.n,
            self._total,
            time.monotonic() - self._started,
            ncols=COLUMNS,
            prefix=self._description or "",
            unit="step",
            postfix=self._postfix or None,
            initial=self._initial,
        )
        return text

    def update(self, num_steps: int) -> None:
        """Count steps."""
        self.n += num_steps
        self._line.show(str(self), at_once=self.n >= self._total)

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Put a text behind the bar."""
        self._postfix = text
        if refresh:
            self.refresh()

    def set_description(self, text: str | None) -> None:
        """Put a text before the bar; None takes it away."""
        self._description = text
        self._line.show(str(self), at_once=text is None)

    def clear(self) -> None:
        """Do nothing: the lines of losses are another output."""

    def refresh(self) -> None:
        """Show the bar as it is now."""
        self._line.show(str(self))

    def close(self) -> None:
        """Leave the bar as it is now."""
        self.refresh()
