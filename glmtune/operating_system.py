"""What not every operating system has: looked for by name, so that all else works where it is missing.

Windows has neither process groups nor most signals, cannot open a folder as a file, and starts a process from nothing;
macOS can fork, but its own libraries do not survive that.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

HAS_PROCESS_GROUPS = {"setsid", "killpg"} <= vars(os).keys() and "SIGKILL" in vars(signal)
"""Whether a process and all that it has started can be ended together."""

CAN_SUSPEND = os.name == "nt" or "SIGSTOP" in vars(signal)
"""Whether another process can be held up and be killed by psutil; Windows does it without signals."""

PIPES_ARE_FILES = os.name != "nt"
"""Whether the end of a pipe between two processes is a number of a file, which may take the place of stdout."""

CAN_LEAD_WORKERS = HAS_PROCESS_GROUPS and "SIGUSR1" in vars(signal)
"""Whether one process can start the workers of a run and pass on the signals that end it."""


def signals(*names: str) -> tuple[signal.Signals, ...]:
    """Return those of the named signals that this system knows."""
    return tuple(signal.Signals(vars(signal)[name]) for name in names if name in vars(signal))


def peak_resident_bytes() -> int | None:
    """Return the most memory that this process has held at once; None where the system does not count it."""
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def start_method() -> str:
    """Return how a process that works beside this one is started: as Python itself would do it on this system.

    Forked, where that is safe: a fresh interpreter imports torch before it does anything.
    """
    chosen = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    return chosen if chosen != "fork" or "fork" in vars(os) else "spawn"
