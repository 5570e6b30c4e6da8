"""What a run has logged, as a data frame of pandas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glmtune.errors import GlmtuneError, require
from glmtune.files.user_paths import user_path
from glmtune.python_arguments import expect_paths

from .metrics_file import METRICS_FILE, read_logs


def read_metrics(run_dir: str | Path) -> Any:
    """Return the figures of a run as a data frame of pandas: a row for each step that was logged, which is its index.

    What training and an evaluation log at one step stand in one row: `loss`, `learning_rate`, `eval_loss` and others.

    Raises:
        GlmtuneError: pandas is not installed, or the folder is none of a run that has logged anything.
    """
    expect_paths(run_dir=run_dir)
    pandas = require("pandas")
    path = user_path(run_dir) / METRICS_FILE
    by_step: dict[int, dict[str, Any]] = {}
    for log in read_logs(path):
        by_step.setdefault(log["step"], {}).update(log)
    if not by_step:
        raise GlmtuneError(
            f"there is no `{METRICS_FILE}` with figures", where=str(path.parent), fix="give the folder of a run"
        )
    return pandas.DataFrame([by_step[step] for step in sorted(by_step)]).set_index("step")
