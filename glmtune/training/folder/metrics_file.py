"""`metrics.jsonl` of a run: a line of JSON for each log, appended; what is taken out of it is never lost half-way.

A run that was killed may leave half a line, and people edit the file: lines that say nothing are passed over.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from glmtune.files.durable import replace_file
from glmtune.text.plain_json import plain_json


def append_log(path: Path, step: int, logs: Mapping[str, Any]) -> None:
    """Append what was logged at a step, on a line of its own."""
    with path.open("ab+") as file:
        # Half a line that a killed run has left would take this one with it.
        if file.tell() and not _ends_with_newline(path):
            file.write(b"\n")
        file.write((plain_json({"step": step, **logs}) + "\n").encode())


def read_logs(path: Path) -> Iterator[dict[str, Any]]:
    """Yield what was logged, in order; nothing where there is no file."""
    for line in _lines(path):
        if (log := _log(line)) is not None:
            yield log


def keep_logs(path: Path, is_kept: Callable[[dict[str, Any]], bool]) -> None:
    """Take out the logs that are not kept; lines that are no logs stay, but for half a line at the end."""
    lines = _lines(path)
    kept = [line for line in lines if line.endswith(b"\n") and ((log := _log(line)) is None or is_kept(log))]
    if kept != lines:
        replace_file(path, b"".join(kept))


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.is_file() else []


def _log(line: bytes) -> dict[str, Any] | None:
    """Return what a line says; None for one that is damaged, or not ours."""
    try:
        log = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_ours = isinstance(log, dict) and isinstance(log.get("step"), int)
    return log if is_ours else None


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read() == b"\n"
