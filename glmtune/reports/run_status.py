"""`status.json` of a run: where it is, and how it ended. Written by the run, read by whoever watches it, without torch.

A run that was killed leaves what it wrote last; whether it still lives is told by its process, or by how old that is.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

STATUS_FILE = "status.json"
"""In the folder of a run."""
STOP_FILE = ".stop"
"""Put into the folder of a run by whoever wants it to end."""

HEARTBEAT_SECONDS = 10.0
"""A run that lives writes its status at least this often."""
SILENT_SECONDS = 60.0
"""A run that has written nothing for so long stands still, or is gone."""

MAX_STATUS_BYTES = 65_536


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """Where a run is; `phase` is `ended` once its process has nothing left to do."""

    phase: str = "reading rows"
    """One of PHASES."""
    done: int = 0
    """Of what the phase counts, such as batches of an evaluation; 0 of 0 where it counts nothing."""
    total: int = 0
    step: int = 0
    total_steps: int = 0
    """0 before they are known."""
    outcome: str | None = None
    """Of a run that has ended: one of OUTCOMES."""
    exit_code: int | None = None
    error: Mapping[str, str | None] | None = None
    """`what`, `where` and `fix`."""
    pid: int = 0
    """Of the main process."""
    host: str = ""
    num_processes: int = 1
    memory_bytes: int | None = None
    """The most that the main process has used: of its GPU, else of the machine's memory."""
    started: float = 0.0
    """Seconds since 1970, as all times here; when this process began, not the run that it resumes."""
    phase_since: float = 0.0
    updated: float = 0.0


PHASES = ("reading rows", "loading the model", "trying", "training", "evaluating", "saving", "ended")
OUTCOMES = ("finished", "stopped", "failed")


def read_status(run_folder: Path) -> RunStatus | None:
    """Return what a run says of itself; None where it says nothing that can be read."""
    path = run_folder / STATUS_FILE
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_STATUS_BYTES:
            return None
        found = json.loads(path.read_bytes())
        return _status(found) if isinstance(found, dict) else None
    except (OSError, ValueError, RecursionError, TypeError):
        return None


def _status(found: Mapping[str, Any]) -> RunStatus:
    """Return a status; raises a TypeError where a value is of another type than one that is written."""
    usual = RunStatus()
    given = {field.name: found[field.name] for field in fields(RunStatus) if field.name in found}
    for name, value in given.items():
        known = getattr(usual, name)
        is_right = (
            isinstance(value, (int, float)) and not isinstance(value, bool)
            if isinstance(known, (int, float))
            else isinstance(value, str)
            if isinstance(known, str)
            else value is None or isinstance(value, {"outcome": str, "error": dict}.get(name, int))
        )
        if not is_right:
            raise TypeError(name)
    status = RunStatus(**given)
    if status.phase not in PHASES or status.outcome not in (None, *OUTCOMES):
        raise TypeError("phase")
    return status


def status_text(status: RunStatus) -> str:
    """Return the content of `status.json`."""
    return json.dumps(asdict(status), ensure_ascii=False, indent=1) + "\n"


def is_alive(status: RunStatus, now: float | None = None) -> bool | None:
    """Whether the process of a run lives; None where nobody can tell: it is elsewhere, and has been silent for long."""
    if status.phase == "ended":
        return False
    is_silent = (time.time() if now is None else now) - status.updated > SILENT_SECONDS
    # Windows has no signal that asks and does nothing.
    if status.host == socket.gethostname() and os.name != "nt":
        if not _has_process(status.pid):
            return False
        return None if is_silent else True
    return None if is_silent else True


def _has_process(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
