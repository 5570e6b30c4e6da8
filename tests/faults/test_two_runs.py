"""Two runs are started on one folder: the second refuses, with all of its processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_run import hashes, write_config, write_rows

import glmtune
from glmtune.training.folder.run_lock import hold_run

TWO_PROCESSES = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ENVIRONMENT = {
    "PYTHONPATH": str(Path(glmtune.__file__).parents[1]),
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "DS_ACCELERATOR": "cpu",
}


@pytest.mark.multi
def test_a_second_group_of_processes_ends_soon_and_says_why_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = write_config(tmp_path / "config.yaml", run)
    rows = write_rows(tmp_path / "rows")
    with hold_run(run):
        before = hashes(run)
        started = time.monotonic()
        done = subprocess.run(
            [*TWO_PROCESSES, "-m", "glmtune", "train", str(rows), "demo", str(config)],
            env=os.environ | ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        elapsed = time.monotonic() - started
        assert hashes(run) == before
    assert done.returncode != 0
    assert done.stderr.count(f"error: another process (pid {os.getpid()} on ") == 1, done.stderr
    assert elapsed < 60, done.stderr
