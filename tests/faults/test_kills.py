"""A run may be killed at any moment: it goes on from its last checkpoint, and ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import glmtune


@pytest.mark.slow
@pytest.mark.long
def test_a_run_that_is_killed_again_and_again_ends_as_the_undisturbed_one(tmp_path: Path) -> None:
    """In a process of its own: the soak forks, and the tests' process may have threads."""
    soak = [sys.executable, str(Path(__file__).with_name("soak.py")), "--figures", str(tmp_path / "figures.json")]
    done = subprocess.run(
        [*soak, "--kills", "6", "--seed", os.environ.get("SEED", "1")],
        env=os.environ | {"PYTHONPATH": str(Path(glmtune.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures["kills"] == 6
    assert figures["of them equal to the undisturbed run, bit for bit"] >= 1
    assert figures["evaluating"] >= 1
    assert figures["before the first checkpoint"] >= 1
