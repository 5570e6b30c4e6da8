"""A run of four steps with two checkpoints, and copies of it for others to have been at."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hostile_checkpoints import write_config

from glmtune import train


@pytest.fixture(scope="session")
def honest_run(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as its user left it: `checkpoint-2` of four steps."""
    room = tmp_path_factory.mktemp("honest")
    run = train(demo_data, "demo", write_config(room / "c.yaml", room / "run"))
    shutil.rmtree(run / "checkpoint-4")
    return run


@pytest.fixture
def run(honest_run: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(honest_run, tmp_path / "run"))


@pytest.fixture
def crater(tmp_path: Path) -> Path:
    """A folder that is not there, and that only foreign code would make."""
    return tmp_path / "crater"
