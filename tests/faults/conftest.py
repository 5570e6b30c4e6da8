"""A run of six steps with three checkpoints, and copies of it to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_run import write_config, write_rows

from glmtune import train


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("faults") / "rows")


@pytest.fixture(scope="session")
def whole_run(rows: Path) -> Path:
    """The undisturbed run: `checkpoint-2`, `checkpoint-4`, `checkpoint-6`."""
    room = rows.parent
    return train(rows, "demo", write_config(room / "config.yaml", room / "run", validation=False, max_steps=6))


@pytest.fixture
def run(whole_run: Path, tmp_path: Path) -> Path:
    """A copy of the run as it was between `checkpoint-4` and `checkpoint-6`."""
    copy = tmp_path / "run"
    shutil.copytree(whole_run, copy)
    shutil.rmtree(copy / "checkpoint-6")
    return copy
