"""`status.json`: read as it was written, passed over where it is damaged; whether its process lives."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glmtune.reports.run_status import SILENT_SECONDS, STATUS_FILE, RunStatus, is_alive, read_status, status_text

STATUS = RunStatus(
    phase="evaluating",
    done=3,
    total=8,
    step=50,
    total_steps=100,
    pid=os.getpid(),
    host=socket.gethostname(),
    memory_bytes=10**9,
    started=100.0,
    phase_since=150.0,
    updated=200.0,
)
FAILED = RunStatus(phase="ended", outcome="failed", exit_code=2, error={"what": "混乱", "where": "a:1", "fix": None})


@pytest.mark.parametrize("status", [STATUS, FAILED, RunStatus()])
def test_what_was_written_is_read(status: RunStatus, tmp_path: Path) -> None:
    (tmp_path / STATUS_FILE).write_text(status_text(status), encoding="utf-8")
    assert read_status(tmp_path) == status


def test_keys_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    content = json.loads(status_text(STATUS)) | {"mood": "good"}
    (tmp_path / STATUS_FILE).write_text(json.dumps(content), encoding="utf-8")
    assert read_status(tmp_path) == STATUS


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"1", b"\xff", b"[" * 100_000, b" " * 70_000),
        *(json.dumps({"phase": "asleep"}).encode(), json.dumps({"step": "many"}).encode()),
        *(json.dumps({"outcome": "won"}).encode(), json.dumps({"error": "all"}).encode()),
        *(json.dumps({"pid": True}).encode(), json.dumps({"host": None}).encode()),
    ],
)
def test_a_damaged_status_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / STATUS_FILE).write_bytes(content)
    assert read_status(tmp_path) is None


def test_a_link_and_an_absent_file_are_no_status(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    (tmp_path / "elsewhere").write_text(status_text(STATUS), encoding="utf-8")
    (tmp_path / STATUS_FILE).symlink_to(tmp_path / "elsewhere")
    assert read_status(tmp_path) is None


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("changes", "age", "lives"),
    [
        ({}, 1.0, True),
        ({}, SILENT_SECONDS + 1, None),
        ({"host": "elsewhere"}, 1.0, True),
        ({"host": "elsewhere", "pid": -1}, 1.0, True),
        ({"host": "elsewhere"}, SILENT_SECONDS + 1, None),
        ({"pid": -1}, 1.0, False),
        ({"pid": 2**70}, 1.0, True),
        ({"phase": "ended", "outcome": "finished"}, 1.0, False),
    ],
)
def test_whether_a_run_lives(changes: dict[str, Any], age: float, lives: bool | None) -> None:
    status = replace(STATUS, **changes)
    assert is_alive(status, now=status.updated + age) is lives


def test_a_process_that_is_gone_does_not_live() -> None:
    assert is_alive(replace(STATUS, pid=dead_pid()), now=STATUS.updated) is False
