"""The runs below a folder, each as its own folder tells it: also those that began before a run had a status."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.errors import GlmtuneError
from glmtune.files.missing import RUN_FILE
from glmtune.files.user_paths import user_path
from glmtune.modeling.finding.model_source import checkpoints_of
from glmtune.modeling.finding.run_record import read_run_file
from glmtune.python_arguments import expect_paths
from glmtune.reports.metrics_file import METRICS_FILE, read_last_logs
from glmtune.reports.run_status import STATUS_FILE, RunStatus, is_alive, read_status

MOST_LEVELS = 4
"""Of folders below the given one that are looked through."""
NOT_ENTERED = ("checkpoint-", ".")
MAX_STATE_BYTES = 64_000_000


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A run as it is now."""

    folder: Path
    state: str
    """`running`; `silent`: it has written nothing for a minute and nobody can tell why; `finished`; `stopped`, which
    `resume` goes on from; `failed`; `killed`: its process is gone and has not said how it ended."""
    status: RunStatus | None
    """None of a run from before there was `status.json`."""
    method: str = ""
    """`lora`, `ptuning_v2`, `sft`; empty where `run.yaml` is not written yet or cannot be read."""
    model: str = ""
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    """The last that was logged."""
    checkpoint: Path | None = None
    """The last complete one: what `resume` goes on from."""
    updated: float = 0.0
    """When the run last wrote something, in seconds since 1970."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "folder": str(self.folder),
            "state": self.state,
            "phase": self.status.phase if self.status else None,
            "step": self.step,
            "total_steps": self.total_steps,
            "loss": self.loss,
            "method": self.method,
            "model": self.model,
            "checkpoint": self.checkpoint.name if self.checkpoint else None,
            "updated": self.updated,
            "pid": self.status.pid if self.status else None,
            "host": self.status.host if self.status else None,
            "exit_code": self.status.exit_code if self.status else None,
            "error": dict(self.status.error) if self.status and self.status.error else None,
        }


def list_runs(folder: str | Path = ".") -> list[RunSummary]:
    """Return the runs in a folder and below it, the one that was written to last first.

    Args:
        folder: The folder of one run, or one that holds runs at any of the next four levels.

    Raises:
        GlmtuneError: There is no such folder.
    """
    expect_paths(folder=folder)
    top = user_path(folder)
    if not top.is_dir():
        raise GlmtuneError(f"there is no folder `{top}`", fix="give a run's folder, or one that holds runs")
    runs = [read_summary(found) for found in _run_folders(top)]
    return sorted(runs, key=lambda run: run.updated, reverse=True)


def _run_folders(top: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(top, followlinks=False):
        here = Path(place)
        if RUN_FILE in files or (STATUS_FILE in files and read_status(here) is not None):
            yield here
            folders.clear()
        elif len(here.relative_to(top).parts) >= MOST_LEVELS:
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith(NOT_ENTERED))


def read_summary(folder: Path) -> RunSummary:
    """Return what a run's folder says; what cannot be read of it is left out."""
    status = read_status(folder)
    checkpoints = checkpoints_of(folder)
    checkpoint = checkpoints[-1] if checkpoints else None
    done, planned = _steps(checkpoint)
    method, model = _asked(folder)
    logs = read_last_logs(folder / METRICS_FILE)
    losses = [log["loss"] for log in logs if isinstance(log.get("loss"), (int, float))]
    return RunSummary(
        folder=folder,
        state=_state(status, done, planned),
        status=status,
        method=method,
        model=model,
        step=status.step if status and status.total_steps else max([done, *(log["step"] for log in logs)]),
        total_steps=(status.total_steps if status else 0) or planned,
        loss=losses[-1] if losses else None,
        checkpoint=checkpoint,
        updated=status.updated if status else _last_written(folder),
    )


def _state(status: RunStatus | None, done: int, planned: int) -> str:
    if status is None:
        return "finished" if planned and done >= planned else "stopped"
    if status.phase == "ended":
        return status.outcome or "failed"
    return {True: "running", None: "silent", False: "killed"}[is_alive(status)]


def _steps(checkpoint: Path | None) -> tuple[int, int]:
    """Return the steps that a checkpoint stands at, and those that the run was to take."""
    path = checkpoint / "trainer_state.json" if checkpoint else None
    try:
        if path is None or path.stat().st_size > MAX_STATE_BYTES:
            return 0, 0
        state = json.loads(path.read_bytes())
        return int(state["global_step"]), int(state["max_steps"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0, 0


def _asked(folder: Path) -> tuple[str, str]:
    """Return the method and the model of a run."""
    try:
        asked = read_run_file(folder / RUN_FILE)["asked"]
        kind = (asked["config"].get("peft_config") or {}).get("peft_type", "")
        method = {"": "sft", "PREFIX_TUNING": "ptuning_v2"}.get(str(kind).upper(), str(kind).lower())
        return method, str(asked["model"])
    except (OSError, GlmtuneError, KeyError, TypeError, AttributeError):
        return "", ""


def _last_written(folder: Path) -> float:
    times = [path.stat().st_mtime for path in (folder / METRICS_FILE, folder / RUN_FILE) if path.is_file()]
    return max(times, default=time.time())
