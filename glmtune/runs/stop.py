"""Ends a run from outside: on this machine or, over a shared disk, on another one."""

from __future__ import annotations

import time
from pathlib import Path

from glmtune.errors import GlmtuneError, RunFailure
from glmtune.files.missing import missing_run
from glmtune.files.user_paths import user_path
from glmtune.python_arguments import expect_paths
from glmtune.reports.run_status import STOP_FILE, RunStatus, is_alive, read_status

from .listing import RunSummary, read_summary

WAITED_SECONDS = 600.0
PAUSE_SECONDS = 0.2


def stop_run(run_dir: str | Path, *, timeout: float = WAITED_SECONDS) -> RunSummary:
    """Ask a run to save its step and end, as SIGTERM does, and wait until it has; returns what has become of it.

    A run that has not begun with its steps ends at once, and leaves nothing behind.

    Args:
        run_dir: The run's folder.
        timeout: Seconds to wait for its end; with 0 it is asked, and not waited for.

    Raises:
        GlmtuneError: No run, or one that has ended or whose process is gone; RunFailure: it did not end in time.
    """
    expect_paths(run_dir=run_dir)
    folder = user_path(run_dir)
    status = read_status(folder)
    if status is None:
        if folder.is_dir() and read_summary(folder).method:
            raise GlmtuneError(
                "the run does not say where it is: it was begun by a glmtune that wrote no `status.json`",
                where=str(folder),
                fix="stop its process: `kill PID`, or Ctrl-C where it runs",
            )
        raise missing_run(folder)
    _refuse_ended(folder, status)
    (folder / STOP_FILE).touch()
    if timeout > 0:
        _wait(folder, status, timeout)
    return read_summary(folder)


def _refuse_ended(folder: Path, status: RunStatus) -> None:
    if status.phase == "ended":
        raise GlmtuneError(f"the run has ended already: {status.outcome}", where=str(folder))
    if is_alive(status) is False:
        raise GlmtuneError(
            f"the run's process (pid {status.pid}) is gone",
            where=str(folder),
            fix=f"to go on with it: `glmtune resume {folder}`",
        )


def _wait(folder: Path, asked: RunStatus, timeout: float) -> None:
    """Wait until the process that was asked has ended, or has left nothing behind."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        status = read_status(folder)
        if status is None or status.phase == "ended" or status.started != asked.started or is_alive(status) is False:
            return
        time.sleep(PAUSE_SECONDS)
    raise RunFailure(
        f"the run was asked to stop, and has not ended within {timeout:g} s: it is {asked.phase}",
        where=str(folder),
        fix="wait longer: it saves after the step at hand",
    )
