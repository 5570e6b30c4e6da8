"""All processes of a run multiply in what the main process found to be faster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.multi


def test_all_processes_take_what_the_main_process_chose(
    demo_data: Path, write_small_config, cpu_environment, tmp_path: Path
) -> None:
    config = write_small_config(tmp_path, bf16=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = str(Path(__file__).with_name("choosing_processes.py"))
    done = subprocess.run(
        [sys.executable, *launcher, script, str(config), str(demo_data), str(tmp_path)],
        capture_output=True, text=True, env=cpu_environment, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found = [json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
    assert found == [{"loss": "bfloat16", "attention": "bfloat16", "layers": "bfloat16"}] * 2
