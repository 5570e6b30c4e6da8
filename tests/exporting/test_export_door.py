"""`glmtune export` in a process of its own: a full disk, Ctrl-C, and nothing on stdout but the report."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

EXPORT = ["export", "demo", "out"]


@pytest.mark.slow
def test_a_full_disk_is_a_failure_told_in_one_line_that_leaves_nothing(demo_model: str, tmp_path: Path) -> None:
    def small_files() -> None:
        # No file of this process may grow past 1 MB: what a full disk does, without one.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    command = [sys.executable, "-m", "glmtune", *EXPORT]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, preexec_fn=small_files, check=False)
    assert done.returncode == 1, done.stderr
    assert f"error: `{tmp_path / 'out'}` cannot be written: " in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_sigterm_or_a_closed_terminal_leaves_nothing_behind(
    number: signal.Signals, program: Path, demo_model: str, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [program, *EXPORT], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: [signal.signal(each, signal.SIG_DFL) for each in (signal.SIGINT, signal.SIGHUP)],
    ) as process:  # fmt: skip
        assert process.stderr is not None
        while not process.stderr.readline().startswith("loading what was written"):
            assert process.poll() is None
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.endswith("interrupted\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_stdout_holds_the_report_alone(demo_model: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    command = [sys.executable, "-m", "glmtune", *EXPORT]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == (
        "out: a full model in float32, 1 file of 4.3 MB\n"
        "greedy answers: 8 of 8 are the same as before (8 general questions)\n"
        "largest logit difference: 0\n"
        "it can be served with `glmtune serve out`, `vllm serve out` or `transformers serve out`\n"
    )
    assert "Warning" not in done.stderr
