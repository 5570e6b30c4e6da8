"""Two processes, each of which finds another type to be faster: `torchrun choosing_processes.py CONFIG DATA FOLDER`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from glmtune.config.run_config import load_config
from glmtune.console import notice
from glmtune.kernels import arithmetic
from glmtune.training.folder.run_folder import RunRequest
from glmtune.training.run import leave_process_group
from glmtune.training.setup.arguments import training_arguments
from glmtune.training.setup.preparation import prepare_run
from glmtune.training.setup.run_arithmetic import arithmetic_of_run

if __name__ == "__main__":
    config_file, data_dir, folder = (Path(argument) for argument in sys.argv[1:])
    rank = os.environ["RANK"]
    half = 0.5 if rank == "0" else 9.0
    arithmetic.measure = lambda shapes: {part: {"float32": 1.0, "bfloat16": half} for part in arithmetic.CHOSEN}
    config = load_config(config_file)
    arguments = training_arguments(config, folder / "run", notice)
    prepared = prepare_run(RunRequest(data_dir=data_dir, model="demo", config=config))
    # Rows are encoded by one process and read by all; what was timed before is of each one's own.
    os.environ["GLMTUNE_CACHE"] = str(folder / f"cache-{rank}")
    chosen = arithmetic_of_run(prepared, arguments)
    assert chosen is not None
    (folder / f"{rank}.json").write_text(json.dumps(chosen.names()), encoding="utf-8")
    leave_process_group()
