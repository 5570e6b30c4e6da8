"""`status.json` while the run lives: a thread writes it, so that no step waits for a disk, and hears when to stop."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from glmtune.console import is_main_process
from glmtune.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_PREEMPTED, GlmtuneError, shown
from glmtune.files.missing import RUN_FILE
from glmtune.processes.signals import Preempted, ask_to_stop
from glmtune.processes.undoing import undone_at_exit
from glmtune.reports.run_status import HEARTBEAT_SECONDS, STATUS_FILE, STOP_FILE, RunStatus, status_text

SHORTEST_PAUSE_SECONDS = 0.5
"""Between two writings, however fast the steps are."""


class StatusFile:
    """What a run says of itself; every process has one, the main process writes it."""

    def __init__(self, run_folder: Path, *, num_processes: int) -> None:
        self.run_folder = run_folder
        now = time.time()
        self.status = RunStatus(
            pid=os.getpid(),
            host=socket.gethostname(),
            num_processes=num_processes,
            started=now,
            phase_since=now,
            updated=now,
        )
        self._has_news = threading.Event()
        self._is_over = threading.Event()
        self._writer: threading.Thread | None = None

    def start(self) -> None:
        """Write the first status, and the later ones from a thread."""
        (self.run_folder / STOP_FILE).unlink(missing_ok=True)  # one that came too late for the run before
        self._write()
        self._writer = threading.Thread(target=self._keep_writing, name="glmtune-status", daemon=True)
        self._writer.start()

    def tell(self, phase: str | None = None, **values: Any) -> None:
        """Note where the run is; the file follows.

        Args:
            phase: What it does now, if that is something new.
            values: Fields of `RunStatus`.
        """
        if phase is not None and phase != self.status.phase:
            values = {"done": 0, "total": 0} | values | {"phase": phase, "phase_since": time.time()}
        self.status = replace(self.status, **values)
        self._has_news.set()

    def end(self, *, is_kept: bool) -> None:
        """Stop the thread, and leave the last status behind, unless the run leaves nothing else."""
        self._is_over.set()
        self._has_news.set()
        if self._writer is None or self._writer is threading.current_thread():
            return
        self._writer.join()
        self._writer = None
        (self.run_folder / STOP_FILE).unlink(missing_ok=True)
        if is_kept:
            self._write()
        else:
            (self.run_folder / STATUS_FILE).unlink(missing_ok=True)

    def _keep_writing(self) -> None:
        is_asked = False
        written_at = time.monotonic()
        while not self._is_over.is_set():
            if self._has_news.is_set() or time.monotonic() - written_at >= HEARTBEAT_SECONDS:
                self._has_news.clear()
                self._write()
                written_at = time.monotonic()
            if not is_asked and (self.run_folder / STOP_FILE).exists():
                is_asked = ask_to_stop()
            self._is_over.wait(SHORTEST_PAUSE_SECONDS)

    def _write(self) -> None:
        """Put the status in its place; a full disk or a folder that is gone is for the run to complain about."""
        self.status = replace(self.status, updated=time.time())
        staged = self.run_folder / f".{STATUS_FILE}"
        with suppress(OSError):
            # Not flushed to the disk: after a power cut, what it says is not true any more.
            staged.unlink(missing_ok=True)
            with staged.open("x", encoding="utf-8") as file:
                file.write(status_text(self.status))
            staged.replace(self.run_folder / STATUS_FILE)


@contextmanager
def told_status(run_folder: Path, *, num_processes: int) -> Iterator[StatusFile]:
    """Keep `status.json` of a run while it lasts, and say in it at last how it ended."""
    file = StatusFile(run_folder, num_processes=num_processes)
    if not is_main_process():
        yield file
        return

    def leave() -> None:
        # A run that has left nothing but its status has left nothing: its folder goes, or is the user's again.
        file.end(is_kept=(run_folder / RUN_FILE).is_file())

    file.start()
    try:
        with undone_at_exit(leave):
            yield file
        file.tell("ended", outcome="finished", exit_code=0)
    except BaseException as error:
        file.tell("ended", **_outcome(error))
        raise
    finally:
        leave()


def _outcome(error: BaseException) -> dict[str, Any]:
    """Return how a run ended that was left by an error."""
    if isinstance(error, (KeyboardInterrupt, Preempted)):
        code = EXIT_PREEMPTED if isinstance(error, Preempted) else EXIT_INTERRUPTED
        return {"outcome": "stopped", "exit_code": code}
    if isinstance(error, GlmtuneError):
        told = {"what": error.what, "where": error.where, "fix": error.fix}
        return {"outcome": "failed", "exit_code": error.exit_code, "error": told}
    code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else EXIT_FAILURE
    what = shown(f"{type(error).__name__}: {error}")
    return {"outcome": "failed", "exit_code": code, "error": {"what": what, "where": None, "fix": None}}
