"""A stranger's run in several processes: none of them unpickles a sharded state."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hostile_checkpoints import gadgets, rewritten, seal

SETTINGS: dict[str, dict[str, Any]] = {
    "both spellings": {"fsdp_state_dict_type": "SHARDED_STATE_DICT", "state_dict_type": "FULL_STATE_DICT"},
    "one spelling": {"state_dict_type": "FULL_STATE_DICT"},
    "a sharded state": {"state_dict_type": "SHARDED_STATE_DICT"},
}


@pytest.mark.multi
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_sharded_state_is_not_unpickled(settings: dict[str, Any], run: Path, crater: Path) -> None:
    rewritten(run, {}, {"fsdp": True, "fsdp_config": {"version": 2, **settings}})
    checkpoint = run / "checkpoint-2"
    (checkpoint / "optimizer.pt").unlink()
    for name in ("optimizer_0", "pytorch_model_fsdp_0"):
        (checkpoint / name).mkdir()
        (checkpoint / name / ".metadata").write_bytes(pickle.dumps(gadgets(crater)["posix.mkdir"]))
    seal(checkpoint)
    done = subprocess.run(
        [sys.executable, "-m", "glmtune", "resume", str(run), "--nproc", "2"],
        capture_output=True, text=True, timeout=120, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "error: checkpoint `checkpoint-2` is refused: the f" in done.stderr
    assert "is none that glmtune writes" in done.stderr
    assert "Traceback" not in done.stderr
    assert not crater.exists()
