"""Locks left behind by a process that was killed while it compiled a kernel of DeepSpeed's.

PyTorch marks a folder it compiles in with a file named `lock`, which the process removes at its end, and which every
other process waits for without a limit or a word. After a kill at the wrong moment no run would start on that machine
again: seen as two idle processes, hours later.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from filelock import FileLock
from torch.utils.cpp_extension import get_default_build_root

QUIET_SECONDS = 60
"""Without a file written for this long in the folder: another machine that shares it is not compiling there either."""


def wait_for_compilers(notify: Callable[[str], None]) -> None:
    """Return once nothing is being compiled, and remove the locks of compilers that are gone; both are told."""
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    removes = os.environ.get("LOCAL_RANK", "0") == "0"
    top = Path(given or get_default_build_root())
    for lock in top.glob("*/lock" if given else "*/*/lock"):
        told = False
        while lock.exists():
            # Of several runs one at a time, or it would remove the lock of a compiler that began meanwhile.
            with FileLock(top / "glmtune.lock"):
                if removes and lock.exists() and _is_left_behind(lock):
                    lock.unlink()
                    notify(f"removed `{lock}`: whoever compiled there was killed")
                    break
            if not told:
                told = True
                notify(f"waiting for another program that compiles `{lock.parent.name}`: `{lock}`")
            time.sleep(0.5)


def _is_left_behind(lock: Path) -> bool:
    """Whether nobody on this machine has the lock open, as its holder has, and nothing was written there of late."""
    try:
        written = [path.stat().st_mtime for path in lock.parent.iterdir()]
    except FileNotFoundError:  # a file of the compiler's went away: it is at work
        return False
    return time.time() - max(written) > QUIET_SECONDS and not _is_open(lock)


def _is_open(path: Path) -> bool:
    for process in psutil.process_iter():
        try:
            if any(Path(file.path) == path.resolve() for file in process.open_files()):
                return True
        except (psutil.Error, OSError):
            # Gone by now, or another user's, whose folder is another one, too.
            continue
    return False
