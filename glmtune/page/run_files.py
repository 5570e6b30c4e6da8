"""What the page is told of runs: read from their folders, never from outside the one that it was given."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.errors import GlmtuneError
from glmtune.files.missing import RUN_FILE
from glmtune.modeling.finding.model_source import checkpoints_of
from glmtune.reports.metrics_file import METRICS_FILE
from glmtune.runs.listing import RunSummary, list_runs, read_summary
from glmtune.text.plain_json import plain_json

MAX_METRICS_BYTES = 4_000_000
"""Of one answer; the page asks for the rest."""
MAX_PREDICTIONS = 50
MAX_LINE_BYTES = 1_000_000
MAX_FILE_BYTES = 1_000_000


@dataclass(frozen=True)
class MetricsPart:
    """Lines of `metrics.jsonl` from one place to another."""

    file: str
    """Which file it was: another one, or a shorter one, is read from its beginning."""
    offset: int
    """Where the next part begins, in bytes."""
    is_reset: bool
    """Whether it begins anew, and what was read before is not there any more."""
    logs: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"file": self.file, "offset": self.offset, "reset": self.is_reset, "logs": self.logs}


class RunFolders:
    """The runs below a folder, called by their path in it."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def list(self) -> list[dict[str, Any]]:
        """Return the summaries of all runs."""
        return [self._told(run) for run in list_runs(self.root)]

    def find(self, name: str) -> Path:
        """Return the folder of a run; raises a KeyError where there is none of that name below the root."""
        try:
            folder = (self.root / name).resolve()
            is_there = folder.is_relative_to(self.root) and folder.is_dir()
        except (OSError, ValueError):  # a name that is none: too long, or with a NUL
            is_there = False
        if not is_there:
            raise KeyError(name)
        summary = read_summary(folder)
        if summary.status is None and not (folder / RUN_FILE).is_file():
            raise KeyError(name)
        return folder

    def detail(self, name: str) -> dict[str, Any]:
        """Return all that the page of a run shows beside its curves."""
        folder = self.find(name)
        summary = read_summary(folder)
        status = summary.status
        return self._told(summary) | {
            "done": status.done if status else 0,
            "total": status.total if status else 0,
            "phase_since": status.phase_since if status else None,
            "started": status.started if status else None,
            "num_processes": status.num_processes if status else None,
            "memory_bytes": status.memory_bytes if status else None,
            "checkpoints": [self._checkpoint(path) for path in checkpoints_of(folder)],
            "predictions": sorted(_names(folder / "predictions", ".jsonl")),
            "record": _text(folder / RUN_FILE),
            "path": str(folder),
        }

    def metrics(self, name: str, file: str, offset: int) -> MetricsPart:
        """Return what was logged since a place in the file; whole lines alone.

        Args:
            name: Of the run.
            file: The file that was read before; empty for none.
            offset: Up to where, in bytes.
        """
        path = self.find(name) / METRICS_FILE
        try:
            if path.is_symlink():
                raise FileNotFoundError
            with path.open("rb") as opened:
                stat = os.fstat(opened.fileno())
                own = f"{stat.st_dev:x}-{stat.st_ino:x}"
                is_reset = own != file or offset > stat.st_size or offset < 0
                start = 0 if is_reset else offset
                opened.seek(start)
                data = opened.read(MAX_METRICS_BYTES)
        except OSError:
            return MetricsPart("", 0, bool(file), [])
        end = data.rfind(b"\n") + 1
        return MetricsPart(own, start + end, is_reset, _logs(data[:end]))

    def predictions(self, name: str, file: str, start: int) -> dict[str, Any]:
        """Return some predictions of an evaluation, and where the next begin; None at the end."""
        folder = self.find(name) / "predictions"
        if file not in _names(folder, ".jsonl"):
            raise KeyError(file)
        found: list[dict[str, Any]] = []
        with (folder / file).open("rb") as opened:
            opened.seek(max(0, start))
            while len(found) < MAX_PREDICTIONS:
                line = opened.readline(MAX_LINE_BYTES)
                if not line:
                    return {"rows": found, "next": None}
                found.extend(_logs(line, needs_step=False))
            return {"rows": found, "next": opened.tell()}

    def _told(self, run: RunSummary) -> dict[str, Any]:
        name = run.folder.relative_to(self.root).as_posix()
        return run.as_dict() | {"name": name}

    def _checkpoint(self, path: Path) -> dict[str, Any]:
        size = sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
        return {"name": path.name, "bytes": size, "written": path.stat().st_mtime}


def _names(folder: Path, ending: str) -> list[str]:
    if not folder.is_dir() or folder.is_symlink():
        return []
    return [
        each.name for each in folder.iterdir() if each.suffix == ending and each.is_file() and not each.is_symlink()
    ]


def _text(path: Path) -> str | None:
    try:
        if path.is_symlink() or path.stat().st_size > MAX_FILE_BYTES:
            return None
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _logs(data: bytes, *, needs_step: bool = True) -> list[dict[str, Any]]:
    """Return the objects of lines of JSON; lines that say nothing are passed over, and so are numbers that are none."""
    found = []
    for line in data.splitlines():
        try:
            value = json.loads(line)
            if isinstance(value, dict) and (not needs_step or isinstance(value.get("step"), int)):
                found.append(json.loads(plain_json(value)))
        except (ValueError, RecursionError, GlmtuneError):
            continue
    return found
