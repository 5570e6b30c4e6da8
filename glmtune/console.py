"""What a person is told while a command works: to stderr, from the main process only; stdout carries data."""

from __future__ import annotations

import os
import sys


def is_main_process() -> bool:
    """Whether this is the process that speaks for a group started by `torchrun`."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Print a line for the user."""
    if is_main_process():
        print(text, file=sys.stderr, flush=True)


def notice(text: str) -> None:
    """Print a line about a choice that was made for the user."""
    say(f"note: {text}")
