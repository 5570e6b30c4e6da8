"""Whatever a process has started, and what that has started: ended with it, also what began a session of its own.

On Linux the process adopts its orphans (`PR_SET_CHILD_SUBREAPER`), so that a walk down from it finds all of them. What
is left of one that has died, and other systems have no such thing, is found by a variable in its environment; there a
program that empties its environment and begins a session of its own outlives the tool.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time

from glmtune.operating_system import CAN_SUSPEND

MARK = "GLMTUNE_TOOL"
"""Variable that everything a tool starts inherits."""
PR_SET_CHILD_SUBREAPER = 36  # of <linux/prctl.h>
SECONDS = 3.0
"""For a walk: what forks faster than it is killed is left."""


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, where the system can do that."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_descendants(pid: int) -> None:
    """Kill all that a living process has started, but not the process itself."""
    import psutil

    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            found = [each for each in psutil.Process(pid).children(recursive=True) if _lives(each)]
        except psutil.Error:
            return
        if not found:
            return
        for each in found:
            with contextlib.suppress(psutil.Error):
                each.kill()
        time.sleep(0.01)  # what they had started is this process's now


def end_marked(mark: str) -> None:
    """Kill the processes of this user that a tool has started, by the mark in their environment."""
    import psutil

    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if each.pid != os.getpid() and each.environ().get(MARK) == mark:
                each.kill()


def suspend(pid: int) -> None:
    """Have a process start nothing more, where it lives."""
    import psutil

    if CAN_SUSPEND:
        with contextlib.suppress(psutil.Error):
            psutil.Process(pid).suspend()


def _lives(process: object) -> bool:
    import psutil

    assert isinstance(process, psutil.Process)
    with contextlib.suppress(psutil.Error):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False
