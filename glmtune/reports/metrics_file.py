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

METRICS_FILE = "metrics.jsonl"
"""In the folder of a run."""

LAST_BYTES = 65_536

NOT_JSON = object()
"""In the place of what a line would say."""


def append_log(path: Path, step: int, logs: Mapping[str, Any]) -> None:
    """Append what was logged at a step, on a line of its own."""
    with path.open("ab+") as file:
        # Half a line that a killed run has left would take this one with it.
        if file.tell() and not _ends_with_newline(path):
            file.write(b"\n")
        file.write((plain_json({"step": step, **logs}) + "\n").encode())


def read_logs(path: Path) -> Iterator[dict[str, Any]]:
    """Yield what was logged, in order; nothing where there is no file."""
    for value in read_lines(path):
        if _is_log(value):
            yield value


def read_last_logs(path: Path) -> list[dict[str, Any]]:
    """Return the last logs of a file, in order: those in its last 64 KiB, which is enough to see where a run is."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - LAST_BYTES))
        lines = file.read(LAST_BYTES).splitlines()
    values = map(_value, lines if size <= LAST_BYTES else lines[1:])
    return [value for value in values if _is_log(value)]


def read_lines(path: Path) -> list[Any]:
    """Return what each line of the file says, a log or not, or `NOT_JSON`; without blank lines at its end."""
    lines = _lines(path)
    while lines and not lines[-1].strip():
        lines.pop()
    return [_value(line) for line in lines]


def keep_logs(path: Path, is_kept: Callable[[dict[str, Any]], bool]) -> None:
    """Take out the logs that are not kept; lines that are no logs stay, but for half a line at the end."""
    lines = _lines(path)
    kept = [line for line in lines if line.endswith(b"\n") and (not _is_log(value := _value(line)) or is_kept(value))]
    if kept != lines:
        replace_file(path, b"".join(kept))


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.is_file() else []


def _value(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return NOT_JSON


def _is_log(value: Any) -> bool:
    """Whether a line is one of ours: not damaged, nor written by somebody else."""
    return isinstance(value, dict) and isinstance(value.get("step"), int)


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read() == b"\n"
